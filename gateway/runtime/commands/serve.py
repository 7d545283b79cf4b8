"""snorky serve: run a node until a signal stops it.

A node does not use redis-py. The other commands import it when they run: it takes 7 MB and a tenth of a node's start.
"""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from snorky.gateway.config.settings import Settings, load
from snorky.gateway.errors import ConfigurationError
from snorky.gateway.logs import configure_logs
from snorky.gateway.runtime.commands.common import Config, Insecure, environment_with, fail, read_settings
from snorky.gateway.runtime.gateway import Gateway
from snorky.gateway.runtime.process import raise_fd_limit, run_until_ended, serve_until_ended
from snorky.gateway.runtime.reload import Reloader
from snorky.gateway.runtime.supervisor import supervise

__all__ = ["serve"]


class LogLevel(StrEnum):
    debug = "debug"
    info = "info"
    warning = "warning"
    error = "error"


def serve(
    config: Config = None,
    host: Annotated[
        str | None, typer.Option("--host", help="Address of the public port; overrides the settings.", metavar="HOST")
    ] = None,
    port: Annotated[
        int | None, typer.Option("--port", "-p", min=0, max=65535, help="The public port; overrides the settings.")
    ] = None,
    workers: Annotated[int, typer.Option("--workers", "-w", min=1, help="Processes that share the public port.")] = 1,
    insecure: Insecure = False,
    demo: Annotated[bool, typer.Option("--demo", help="Serve the demo page at /.")] = False,
    log_level: Annotated[LogLevel, typer.Option(help="Lowest level to log.")] = LogLevel.info,
    private_path: Annotated[Path | None, typer.Option(hidden=True)] = None,  # set by a supervisor for its worker
    reuse_port: Annotated[bool, typer.Option(hidden=True)] = False,
    supervisor: Annotated[int | None, typer.Option(hidden=True)] = None,  # its process id
) -> None:
    """Run a node: WebSocket clients on the public port; backend, health and metrics on the private one.

    SIGTERM and SIGINT start a drain: /readyz returns 503, clients are disconnected over the grace period, then the node
    exits. Ctrl-C on a terminal drains within a second. A further signal, at least a second after the first, ends it at
    once. SIGHUP reads the settings again and applies changed rules.

    Examples:

        snorky serve --demo

        SNORKY_REDIS_URL=redis://127.0.0.1:6379/0 snorky serve --workers 2

        snorky serve --port 9000

        snorky serve --config /etc/snorky.toml --insecure
    """
    configure_logs(level=log_level)
    settings = read_settings(config, host=host, port=port)

    def problems_of(read: Settings) -> list[str]:
        found = read.problems(insecure=insecure)
        # a worker has no private port
        return [each for each in found if private_path is None or not each.startswith("[private]")]

    def read_again() -> Settings:
        read = load(config, environment_with(host=host, port=port))
        if problems := problems_of(read):
            raise ConfigurationError("\n".join(problems))
        return read

    if problems := problems_of(settings):
        fail(*problems)
    raise_fd_limit()
    try:
        if workers > 1:
            arguments = [*(["--config", str(config)] if config else []), "--log-level", log_level]
            arguments += ["--insecure"] * insecure + ["--demo"] * demo
            arguments += [] if host is None else ["--host", host]  # the supervisor passes the port on separately
            run_until_ended(lambda: supervise(settings, workers, arguments))
            return
        gateway = Gateway(settings, with_demo=demo, reuse_port=reuse_port, private_path=private_path)
        run_until_ended(
            lambda: serve_until_ended(
                gateway, supervisor_pid=supervisor, reloader=Reloader(gateway, settings, read_again)
            )
        )
    except ConfigurationError as error:
        fail(*str(error).splitlines())
