"""CountedNode: a gateway node in a process of its own that reports what it holds, for tests that nothing is left.

    node = await CountedNode.start(env, tmp_path / "log")
    node.state()["tasks"]

The process, `python -W error -m tests.support.processes.counted_node`, answers each line on its standard input with its
state, a line of JSON. Its log goes to a file.
"""

import asyncio
import gc
import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import uvloop

from snorky.gateway.config.settings import load
from snorky.gateway.connection.connection import Connection
from snorky.gateway.http.websocket.protocol import WebSocketProtocol
from snorky.gateway.logs import configure_logs
from snorky.gateway.runtime.gateway import Gateway
from tests.support.processes.nodes import clean_environment
from tests.support.processes.tools import ROOT

__all__ = ["CountedNode"]

_READY_S = 20.0


class CountedNode:
    """The process. log: the file with its log. url: of its public port."""

    def __init__(self, env: Mapping[str, str], log: Path) -> None:
        self.log = log
        ports = {"SNORKY_PUBLIC__PORT": "0", "SNORKY_PRIVATE__PORT": "0"}
        memory = {"PYTHONMALLOC": "malloc", "MALLOC_TRIM_THRESHOLD_": "65536"}
        with log.open("w") as written:
            self._process = subprocess.Popen(
                [sys.executable, "-W", "error", "-m", "tests.support.processes.counted_node"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=written,
                cwd=ROOT,
                env=clean_environment({**ports, **memory, **env}),
                text=True,
            )
        self.url = str(self._read()["url"])

    @property
    def port(self) -> int:
        """The public port."""
        return int(self.url.rpartition(":")[2])

    def state(self) -> dict[str, Any]:
        """Ask for its state."""
        assert self._process.stdin is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        return self._read()

    def errors(self) -> list[str]:
        """Return the lines of its log that report an error or a warning of Python."""
        signs = ("[error", "[critical", '"level": "error"', "Traceback", "Warning", "never retrieved", "Exception")
        return [line for line in self.log.read_text().splitlines() if any(sign in line for sign in signs)]

    def close(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.wait()
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.close()
        self._process.stdout.close()

    def _read(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        assert line, f"the node has ended: {self._process.wait()}\n{self.log.read_text()[-2000:]}"
        return dict(json.loads(line))


def _state(gateway: Gateway) -> dict[str, Any]:
    gc.collect()
    objects = gc.get_objects()
    calls = [each for family in gateway.node.metrics.rpc_calls.collect() for each in family.samples]
    return {
        **gateway.node.counts,
        "calls": {f"{each.labels['command']} {each.labels['outcome']}": each.value for each in calls},
        "ours": sum(isinstance(each, Connection | WebSocketProtocol) for each in objects),
        "tasks": len(asyncio.all_tasks()),
        "fds": len(os.listdir("/proc/self/fd")),
        "rss": int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE"),
    }


async def _serve() -> None:
    loop = asyncio.get_running_loop()
    async with Gateway(load(None, os.environ)) as gateway:
        await gateway.until_ready(_READY_S)
        print(json.dumps({"url": gateway.public_urls[0]}), flush=True)
        while await loop.run_in_executor(None, sys.stdin.readline):
            print(json.dumps(_state(gateway)), flush=True)


if __name__ == "__main__":
    configure_logs(level="warning")  # to stderr: standard output has the answers
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_serve())
