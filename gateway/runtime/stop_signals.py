"""StopSignals: which signals stop a process, and when a second signal ends it immediately.

Rules:
- SIGTERM and SIGINT request a drain.
- SIGHUP asks to read the settings again, where that is possible (`on_reload`), else it requests a drain. It also
  requests one if the terminal of the process has been closed, because that sends SIGHUP too. It stays ignored if it
  was ignored at the start (nohup).
- Service managers and shells send several signals for one stop: systemd's SIGTERM reaches every process of the
  service, a script sends SIGINT and then SIGTERM. A signal within IMPATIENT_AFTER_S of the first is the same request;
  a later one ends the process at once.
- A worker obeys only its supervisor: SIGUSR1 = drain, SIGUSR2 = drain in a short time. The kernel sends it SIGUSR1
  when the supervisor ends. Other signals but SIGHUP are logged and ignored while the supervisor is alive. A worker
  has a session of its own, so no terminal sends it SIGHUP.
"""

import asyncio
import ctypes
import os
import signal
import sys
import time
from collections.abc import Callable
from typing import Final

import structlog

from snorky.gateway.logs import flush_logs

__all__ = ["DRAIN_SHORTLY", "DRAIN_SIGNAL", "IMPATIENT_AFTER_S", "StopSignals", "exit_at_once"]

IMPATIENT_AFTER_S: Final = 1.0  # duplicates of one request come within milliseconds; a person needs longer
DRAIN_SIGNAL: Final = signal.SIGUSR1  # from a supervisor to its workers
DRAIN_SHORTLY: Final = signal.SIGUSR2
_FLUSH_S: Final = 0.2
_PR_SET_PDEATHSIG: Final = 1  # linux/prctl.h
_log = structlog.get_logger("snorky.process")


def exit_at_once(number: int) -> None:
    """End this process with the status of a signal; connections are cut."""
    flush_logs(_FLUSH_S)
    os._exit(128 + number)


def has_terminal() -> bool:
    """Return True if this process has a controlling terminal; False also after it was closed."""
    try:
        os.close(os.open("/dev/tty", os.O_RDONLY | os.O_NOCTTY | os.O_NONBLOCK))
    except OSError:
        return False
    return True


class StopSignals:
    """Waits for a request to stop. See the rules above.

    supervisor_pid: this process is a worker of that one. on_impatient: called with the number of a signal that
    requests an immediate end; by default it ends the process. on_reload: called for SIGHUP; None = SIGHUP requests a
    drain. has_terminal: True while the process has a controlling terminal. clock: monotonic seconds.
    """

    def __init__(
        self,
        *,
        supervisor_pid: int | None = None,
        on_impatient: Callable[[int], None] = exit_at_once,
        on_reload: Callable[[], None] | None = None,
        has_terminal: Callable[[], bool] = has_terminal,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._supervisor_pid = supervisor_pid
        self._on_impatient = on_impatient
        self._on_reload = on_reload
        self._has_terminal = has_terminal
        self._had_terminal = has_terminal()
        self._clock = clock
        self._first_s = 0.0
        self._stopped = asyncio.Event()
        self.number = 0  # of the first signal; 0 = none yet

    def install(self) -> None:
        """Install the signal handlers. Call it in the main thread, in the event loop that waits.

        Raises SystemExit: the supervisor has ended.
        """
        loop = asyncio.get_running_loop()
        numbers = [signal.SIGTERM, signal.SIGINT]
        if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:
            numbers.append(signal.SIGHUP)
        if self._supervisor_pid is not None:
            numbers += [DRAIN_SIGNAL, DRAIN_SHORTLY]
        for number in numbers:
            loop.add_signal_handler(number, self.take, number)
        if self._supervisor_pid is not None:
            if sys.platform == "linux":
                ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, DRAIN_SIGNAL)
            if not self._has_supervisor():  # it ended before prctl was called
                raise SystemExit(1)

    def take(self, number: int) -> None:
        """Process one signal."""
        if number == signal.SIGHUP and self._on_reload is not None and not self._has_lost_terminal():
            self._on_reload()
            return
        is_command = number in (DRAIN_SIGNAL, DRAIN_SHORTLY)
        if self._has_supervisor() and not is_command:
            _log.info("signal ignored: the supervisor decides", signal=signal.Signals(number).name)
        elif not self._stopped.is_set():
            self.number, self._first_s = number, self._clock()
            self._stopped.set()
        elif self._clock() - self._first_s >= IMPATIENT_AFTER_S:
            self._on_impatient(number)

    async def wait(self) -> None:
        """Wait for the first signal."""
        await self._stopped.wait()

    @property
    def wants_short_drain(self) -> bool:
        """True if a person waits: Ctrl-C on a terminal, of this process or of its supervisor."""
        if self.number == signal.SIGINT:
            return sys.stderr is not None and sys.stderr.isatty()
        return self.number == DRAIN_SHORTLY

    def _has_lost_terminal(self) -> bool:
        return self._had_terminal and not self._has_terminal()

    def _has_supervisor(self) -> bool:
        return self._supervisor_pid is not None and os.getppid() == self._supervisor_pid
