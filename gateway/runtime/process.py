"""Run a gateway as a process: event loop, ready line, drain on a signal."""

import asyncio
import os
import resource
import sys
import time
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any, Final

import structlog

from snorky.gateway.config.settings import Settings, load
from snorky.gateway.errors import ConfigurationError
from snorky.gateway.logs import configure_logs, log_line
from snorky.gateway.runtime.gateway import Gateway
from snorky.gateway.runtime.memory import settle_memory
from snorky.gateway.runtime.reload import Reloader
from snorky.gateway.runtime.standard_streams import open_missing_streams
from snorky.gateway.runtime.stop_signals import StopSignals
from snorky.gateway.sdk.registry import ServiceRegistry

__all__ = ["raise_fd_limit", "run", "run_until_ended", "serve_until_ended"]

READY_TIMEOUT_S: Final = 5.0  # a Redis that runs responds within milliseconds
SHORT_GRACE_S: Final = 1.0  # when a person waits at a terminal
_PRIVATE_URL_OF_THE_PAGE: Final = "http://127.0.0.1:8003"  # the demo page's default for its backend example
_log = structlog.get_logger("snorky.process")
_started_s = time.monotonic()  # used only if the system does not provide the start time of the process


def run(
    *,
    public: ServiceRegistry | None = None,
    private: ServiceRegistry | None = None,
    settings: Settings | None = None,
    insecure: bool = False,
) -> None:
    """Run a gateway with these registries until SIGTERM, SIGINT or SIGHUP: `snorky serve` for custom programs.

    Wrong settings, a port in use and the like end the program with exit code 1 and one error per line on stderr.

    public, private: by default the settings' services. settings: by default from the environment.
    insecure: allow anyone who can reach the public port to connect. Raises SystemExit.
    """
    open_missing_streams()
    configure_logs()
    try:
        loaded = settings or load(None, os.environ)
        if problems := loaded.problems(insecure=insecure):
            raise ConfigurationError("\n".join(problems))
        raise_fd_limit()
        run_until_ended(lambda: serve_until_ended(Gateway(loaded, public=public, private=private)))
    except ConfigurationError as error:
        for problem in str(error).splitlines():
            print(f"error: {problem}", file=sys.stderr)
        raise SystemExit(1) from None


async def serve_until_ended(
    gateway: Gateway, *, supervisor_pid: int | None = None, reloader: Reloader | None = None
) -> None:
    """Start, print the ready line on stderr, wait for a signal, drain, stop.

    supervisor_pid: this process is a worker of that process, which sends its signals and prints the ready line.
    reloader: applies changed settings on SIGHUP; None = SIGHUP requests a drain.
    """
    signals = StopSignals(supervisor_pid=supervisor_pid, on_reload=None if reloader is None else reloader.request)
    signals.install()
    async with gateway:
        reloading = None if reloader is None else asyncio.create_task(reloader.run())
        line = ReadyLine(gateway, log_line if supervisor_pid is None else _keep_quiet)
        telling = asyncio.create_task(line.tell_when_ready())
        await signals.wait()
        tasks = [telling] if reloading is None else [telling, reloading]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if gateway.node.is_ready:  # /readyz may have answered 200 before the task ran
            line.tell()
        _log.info("ending")
        await gateway.drain(grace_max_s=SHORT_GRACE_S if signals.wants_short_drain else None)


class ReadyLine:
    """Prints the node's URLs once. If /readyz has answered 200, the line is in stderr by the time the node ends."""

    def __init__(self, gateway: Gateway, say: Callable[[str], None]) -> None:
        self._gateway = gateway
        self._say = say
        self._was_said = False

    async def tell_when_ready(self) -> None:
        """Print the line when the node is ready; if that takes long, first print that Redis does not respond."""
        try:
            await self._gateway.until_ready(READY_TIMEOUT_S)
        except TimeoutError:
            self._say(f"no answer from Redis yet, so /readyz returns 503; `snorky check` shows why  {self._where()}")
            await self._gateway.until_ready()
        self.tell()
        settle_memory()

    def tell(self) -> None:
        """Print the line, unless it was printed."""
        if self._was_said:
            return
        self._was_said = True
        gateway = self._gateway
        self._say(f"ready in {process_age_s():.2f} s  {self._where()}")
        if gateway.has_demo:
            page = f"{gateway.public_urls[0]}/"
            if gateway.private_urls[0] != _PRIVATE_URL_OF_THE_PAGE:
                page += f"?backend={gateway.private_urls[0]}"
            self._say(f"open {page} in a browser; Ctrl-C ends it")

    def _where(self) -> str:
        return f"public {' '.join(self._gateway.public_urls)}  private {' '.join(self._gateway.private_urls)}"


def _keep_quiet(_line: str) -> None:
    """Discard a worker's ready line: its supervisor prints one for all."""


def run_until_ended(main: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """Run on uvloop if it is installed."""
    try:
        import uvloop
    except ImportError:  # Windows: not a dependency there
        asyncio.run(main())
    else:
        uvloop.run(main())


def raise_fd_limit() -> None:
    """Raise the soft limit of file descriptors to the hard limit: each connection needs one."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def process_age_s() -> float:
    """Return how long this process has run, including the interpreter's start and our imports."""
    try:
        fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
        born_s = int(fields[19]) / os.sysconf("SC_CLK_TCK")  # field 22 of proc(5): since boot
        return time.clock_gettime(time.CLOCK_BOOTTIME) - born_s
    except (OSError, AttributeError):
        return time.monotonic() - _started_s
