"""Supervisor: runs N worker processes, each a node, which share the public port.

The supervisor itself provides what exists only once: the private port (sums of metrics, readiness of all workers) and
the embedded Redis.

Rules:
- A worker that ends is restarted, with growing delays; if it ran for a minute, the delays start again from the first.
- If a worker ends before any was ever ready, the settings or the machine are wrong: the supervisor ends too.
- SIGTERM drains all workers at once. SIGHUP is passed on to all, and each reads the settings again. Workers have
  sessions of their own, so that Ctrl-C reaches only the supervisor; they obey only the supervisor, and end when it
  ends, for any reason (the kernel's parent-death signal).
"""

import asyncio
import contextlib
import math
import os
import signal
import socket
import sys
from asyncio.subprocess import Process
from collections.abc import Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Final

import structlog

from snorky.gateway.config.settings import Settings
from snorky.gateway.errors import ConfigurationError
from snorky.gateway.http.serving.listen import listen
from snorky.gateway.http.serving.site import Site
from snorky.gateway.http.workers.app import WorkerDoor, workers_app
from snorky.gateway.http.workers.metrics import Totals
from snorky.gateway.logs import log_line
from snorky.gateway.redis import EmbeddedServer
from snorky.gateway.runtime.process import READY_TIMEOUT_S, SHORT_GRACE_S, process_age_s
from snorky.gateway.runtime.stop_signals import DRAIN_SHORTLY, DRAIN_SIGNAL, StopSignals, exit_at_once
from snorky.gateway.socket_directory import NoDirectory, SocketDirectory

__all__ = ["Supervisor", "supervise"]

BACKOFF_S: Final = (0.1, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0)
SETTLED_S: Final = 60.0  # after this time, the end of a worker does not count as a failed start
KILL_AFTER_S: Final = 10.0  # in addition to the drain's grace period
STOP_SIGNAL_TIMEOUT_S: Final = 1.0  # from a worker's end by a signal until the supervisor gets the same signal
_STOP_CODES: Final = frozenset((-signal.SIGTERM, -signal.SIGINT, -signal.SIGHUP))
_POLL_S: Final = 0.05
_PRIVATE_HEADER_TIMEOUT_S: Final = 75.0

_log = structlog.get_logger("snorky.supervisor")


async def supervise(settings: Settings, workers: int, arguments: Sequence[str]) -> None:
    """Run workers until a stop signal. arguments: of `snorky serve`, for each worker. Raises ConfigurationError."""
    await Supervisor(settings, workers, arguments).run()


class Supervisor:
    """Keeps `workers` processes running. See the rules above."""

    def __init__(self, settings: Settings, workers: int, arguments: Sequence[str]) -> None:
        self._settings = settings
        self._wanted = workers
        self._arguments = list(arguments)
        self._environment = dict(os.environ)
        self._processes: dict[str, Process] = {}
        self._doors: dict[str, WorkerDoor] = {}
        self._totals = Totals()
        self._was_ready = False  # any worker, ever
        self._was_told = False
        self._ending = asyncio.Event()
        self._to_reload: set[str] = set()  # names of workers that still have to get SIGHUP
        self._reload_requested = asyncio.Event()

    async def run(self) -> None:
        """Start the workers, restart those that end, drain on a signal."""
        signals = StopSignals(on_impatient=self._end_at_once, on_reload=self._request_reload)
        signals.install()
        async with AsyncExitStack() as stack:
            try:
                directory = stack.enter_context(SocketDirectory("snorky-workers-")).path
            except NoDirectory as error:
                raise ConfigurationError(f"workers cannot be reached: {error}") from error
            if not self._settings.redis_url:
                self._set("SNORKY_REDIS_URL", (await stack.enter_async_context(EmbeddedServer())).url)
            url, port = self._reserve(stack)
            self._set("SNORKY_PUBLIC__PORT", str(port))
            app = workers_app(
                lambda: list(self._doors.values()),
                self._wanted,
                self._totals,
                self._settings.private,
                on_ready=lambda: self._print_ready(url, " ".join(site.urls)),
            )
            site = Site(app, header_timeout_s=_PRIVATE_HEADER_TIMEOUT_S)
            stack.push_async_callback(site.stop)
            await site.start(listen(self._settings.private.host, self._settings.private.port))
            worker_tasks = [asyncio.create_task(self._keep(slot, directory)) for slot in range(self._wanted)]
            telling = asyncio.create_task(self._tell_when_ready(url, " ".join(site.urls)))
            waiting = asyncio.create_task(signals.wait())
            reloading = asyncio.create_task(self._forward_reloads())
            try:
                await asyncio.wait([waiting, *worker_tasks], return_when=asyncio.FIRST_COMPLETED)
            finally:
                self._ending.set()
                telling.cancel()
                waiting.cancel()
                reloading.cancel()
                results = await self._end(worker_tasks, is_short=signals.wants_short_drain)
                await asyncio.gather(telling, waiting, reloading, return_exceptions=True)
        for result in results:
            if isinstance(result, Exception):
                raise result

    def _set(self, variable: str, value: str) -> None:
        self._environment.pop(f"{variable}_FILE", None)
        self._environment[variable] = value

    def _reserve(self, stack: AsyncExitStack) -> tuple[str, int]:
        """Reserve the public port for the workers, without listening on it. Returns a URL and the port."""
        public = self._settings.public
        # at first without SO_REUSEPORT: another process on this port, even another gateway, must be an error
        probes = listen(public.host, public.port)
        port = int(probes[0].getsockname()[1])
        addresses = [(probe.family, probe.getsockname()) for probe in probes]
        for probe in probes:
            probe.close()
        for family, address in addresses:
            held = stack.enter_context(socket.socket(family, socket.SOCK_STREAM))
            held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            if family == socket.AF_INET6:
                held.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            held.bind(address)
        host = public.host or "127.0.0.1"
        return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}", port

    async def _keep(self, slot: int, directory: Path) -> None:
        """Run one worker, and restart it whenever it ends. Raises ConfigurationError: no worker was ever ready."""
        loop = asyncio.get_running_loop()
        failures = count = 0
        while not self._ending.is_set():
            count += 1
            name = f"worker-{slot + 1}.{count}"
            began_s = loop.time()
            code = await self._run_one(name, directory / f"{slot}.{count}")
            if code in _STOP_CODES:  # the whole service is being stopped, and the worker got the signal first
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._ending.wait(), STOP_SIGNAL_TIMEOUT_S)
            if self._ending.is_set():
                return
            if not self._was_ready:
                raise ConfigurationError(f"{name} ended with {code} before any worker was ready: see its output above")
            failures = 0 if loop.time() - began_s > SETTLED_S else failures + 1
            pause_s = BACKOFF_S[min(failures, len(BACKOFF_S)) - 1] if failures else BACKOFF_S[0]
            _log.error("worker ended", worker=name, code=code, starts_again_in_s=pause_s)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._ending.wait(), pause_s)

    async def _run_one(self, name: str, path: Path) -> int:
        # known from here on: a SIGHUP that arrives before the process is known must reach it too
        door = self._doors[name] = WorkerDoor(name, path)
        try:
            process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                "snorky.gateway.cli",
                "serve",
                *self._arguments,
                "--reuse-port",
                "--private-path",
                str(path),
                "--supervisor",
                str(os.getpid()),
                stdin=asyncio.subprocess.DEVNULL,
                env=self._environment,
                start_new_session=True,
            )
            self._processes[name] = process
            if self._ending.is_set():  # the stop signal arrived while the worker was being started
                process.send_signal(DRAIN_SIGNAL)
            return await process.wait()
        finally:
            self._processes.pop(name, None)
            del self._doors[name]
            self._totals.end(name)
            await door.close()

    def _request_reload(self) -> None:
        self._to_reload.update(self._doors)
        self._reload_requested.set()

    async def _forward_reloads(self) -> None:
        """Send SIGHUP to the workers; to one that is starting, when it handles signals: before, it would end it."""
        while True:
            await self._reload_requested.wait()
            self._reload_requested.clear()
            while self._to_reload:
                for name in tuple(self._to_reload):
                    door, process = self._doors.get(name), self._processes.get(name)
                    if door is None:  # it has ended; the next one reads the settings itself
                        self._to_reload.discard(name)
                    elif process is not None and door.path.exists():  # made after the handlers were installed
                        with contextlib.suppress(ProcessLookupError):
                            process.send_signal(signal.SIGHUP)
                        self._to_reload.discard(name)
                if self._to_reload:
                    await asyncio.sleep(_POLL_S)

    async def _tell_when_ready(self, public: str, private: str) -> None:
        """Print the ready line when all workers are ready; if that takes long, first log which are not."""
        loop = asyncio.get_running_loop()
        late_s = loop.time() + READY_TIMEOUT_S
        while True:
            doors = list(self._doors.values())
            answers = await asyncio.gather(*(door.reasons() for door in doors))
            self._was_ready = self._was_ready or not all(answers)
            if len(doors) == self._wanted and not any(answers):
                break
            if loop.time() > late_s:
                late_s = math.inf
                reasons = {door.name: answer for door, answer in zip(doors, answers, strict=True) if answer}
                _log.warning("not all workers are ready", reasons=reasons)
            await asyncio.sleep(_POLL_S)
        self._print_ready(public, private)

    def _print_ready(self, public: str, private: str) -> None:
        """Print the ready line once; called before /readyz first answers 200."""
        if self._was_told:
            return
        self._was_ready = self._was_told = True
        log_line(f"ready in {process_age_s():.2f} s  public {public}  private {private}  {self._wanted} workers")

    async def _end(self, worker_tasks: Sequence["asyncio.Task[None]"], *, is_short: bool) -> list[BaseException | None]:
        """Drain all workers, and kill those that do not end in time."""
        grace_s = self._settings.public.drain_grace_s
        self._signal(DRAIN_SHORTLY if is_short else DRAIN_SIGNAL)
        timeout_s = (min(grace_s, SHORT_GRACE_S) if is_short else grace_s) + KILL_AFTER_S
        _, unfinished = await asyncio.wait(worker_tasks, timeout=timeout_s)
        if unfinished:
            _log.error("workers killed", workers=sorted(self._processes))
            self._signal(signal.SIGKILL)
        return await asyncio.gather(*worker_tasks, return_exceptions=True)

    def _end_at_once(self, number: int) -> None:
        self._signal(signal.SIGKILL)
        exit_at_once(number)

    def _signal(self, number: signal.Signals) -> None:
        for process in list(self._processes.values()):
            with contextlib.suppress(ProcessLookupError):
                process.send_signal(number)
