"""The command snorky, as a shell runs it."""

import asyncio
import os

from typer.testing import CliRunner

from snorky.gateway.cli import app


async def snorky(*arguments: str, env: dict[str, str] | None = None, lines: bytes = b"") -> tuple[int, str]:
    """Run one command to its end, in this process (a new one costs a second); return exit code and output."""
    clean = {name: None for name in os.environ if name.startswith("SNORKY_")}
    runner = CliRunner(env={**clean, "TERMINAL_WIDTH": "200", "NO_COLOR": "1", **(env or {})})
    result = await asyncio.to_thread(runner.invoke, app, arguments, input=lines)
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.output


RULED = """
[services.pubsub]
class = "snorky.services.pubsub:PubSubService"
[[services.pubsub.channels]]
match = "kept:*"
history = {size}
"""
