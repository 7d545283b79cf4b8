"""How a node starts and stops in situations that a machine, a shell or a service manager causes.

Each row of SITUATIONS: a name, how `snorky serve` is started, what happens to it, the exit code, the expected stderr.
A stderr without a reader, and more clients than descriptors, need more than a row: see test_starved.py.

Rules:
- A client is connected when a signal comes: it must get `moving` and close 1001, and no reset, unless the row says
  otherwise.
- Processes and signals are real; tests wait for events, under a deadline.
"""

import asyncio
import contextlib
import fcntl
import os
import pty
import shlex
import signal
import subprocess
import sys
import tempfile
import termios
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import aiohttp
import pytest

from tests.cluster.test_workers import children
from tests.support.processes.nodes import GATEWAY, clean_environment
from tests.support.processes.tools import ROOT, free_port

DEADLINE_S = 30.0
DRAIN_GRACE_S = "1"
_SERVE = " ".join([*GATEWAY, "serve"])


class Started:
    """`snorky serve` as a shell starts it, with its stderr in a file, and its ports known beforehand."""

    def __init__(self, row: "Situation", directory: Path) -> None:
        self.public_port, self.private_port = free_port(), free_port()
        self.log_path = directory / "stderr"
        if "TMPDIR" in row.env:
            Path(row.env["TMPDIR"]).mkdir(exist_ok=True)
        env = {
            "SNORKY_PUBLIC__PORT": str(self.public_port),
            "SNORKY_PRIVATE__PORT": str(self.private_port),
            "SNORKY_PUBLIC__DRAIN_GRACE_S": DRAIN_GRACE_S,
            **row.env,
        }
        command = row.command.replace("SERVE", _SERVE).replace("LOG", str(self.log_path))
        self.terminal = None
        if row.owns_terminal:
            self.hung_up, there = pty.openpty()
            self.process = subprocess.Popen(
                ["/bin/sh", "-c", command],
                env=clean_environment(env),
                cwd=ROOT,
                start_new_session=True,
                preexec_fn=lambda: fcntl.ioctl(there, termios.TIOCSCTTY, 0),
            )
            os.close(there)
        elif row.has_terminal:
            self.terminal, there = pty.openpty()
            self.process = subprocess.Popen(
                ["/bin/sh", "-c", command],
                env=clean_environment(env),
                cwd=ROOT,
                stdin=there,
                stdout=there,
                stderr=there,
            )
            os.close(there)
            os.set_blocking(self.terminal, False)
            self._seen = b""
        else:
            self.process = subprocess.Popen(["/bin/sh", "-c", command], env=clean_environment(env), cwd=ROOT)

    @property
    def log(self) -> str:
        if self.terminal is not None:
            with contextlib.suppress(OSError):
                while piece := os.read(self.terminal, 65_536):
                    self._seen += piece
            return self._seen.decode("utf-8", "replace")
        return self.log_path.read_text(errors="replace") if self.log_path.exists() else ""

    async def until_ready(self) -> None:
        """Wait until it serves, by its private port: its stderr may be closed."""
        await until_ready(self.process, self.private_port, lambda: self.log)

    async def code(self) -> int:
        code = await asyncio.to_thread(self.process.wait, DEADLINE_S)
        return code if code >= 0 else 128 - code

    def close(self) -> None:
        if self.process.poll() is None:
            for pid in (*children(self.process.pid), self.process.pid):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            self.process.wait(DEADLINE_S)
        if self.terminal is not None:
            os.close(self.terminal)


async def until_ready(
    process: "subprocess.Popen[bytes]", private_port: int, log: Callable[[], str] = lambda: ""
) -> None:
    deadline_s = time.monotonic() + DEADLINE_S
    async with aiohttp.ClientSession() as session:
        while True:
            assert process.poll() is None, f"it ended with {process.returncode}:\n{log()}"
            assert time.monotonic() < deadline_s, f"not ready:\n{log()}"
            with contextlib.suppress(aiohttp.ClientError):
                async with session.get(f"http://127.0.0.1:{private_port}/readyz") as response:
                    if response.status == 200:
                        return
            await asyncio.sleep(0.02)  # there is no signal for this: the port is not open yet


@dataclass(frozen=True)
class Situation:
    """command: for the shell; SERVE and LOG are replaced by the command and its stderr's file. act: action when it is
    ready; None: it ends by itself. sees: what the connected client gets. takes_max_s: from `act` to the end.
    """

    name: str
    command: str = "exec SERVE 2>LOG"
    env: dict[str, str] = field(default_factory=dict)
    act: Callable[[Started], None] | None = None
    code: int = 0
    says: Sequence[str] = ()
    says_not: Sequence[str] = ("Traceback",)
    sees: str = "moving 1001"
    has_terminal: bool = False
    owns_terminal: bool = False  # it has a session of its own, whose terminal is not its stderr
    takes_max_s: float = 15.0  # less than a grace that is to be cut short


Act = Callable[[Started], None]


def send(*numbers: signal.Signals, pause_s: float = 0.0) -> Act:
    """Send signals to the process, one after another."""

    def act(started: Started) -> None:
        for position, number in enumerate(numbers):
            if position:
                time.sleep(pause_s)  # the situation itself: the time between the two signals
            with contextlib.suppress(ProcessLookupError):
                os.kill(started.process.pid, number)

    return act


def send_after(text: str, first: signal.Signals, *numbers: signal.Signals, pause_s: float = 0.0) -> Act:
    """Send a signal, wait until the log has a text, and send the others a time later."""

    def act(started: Started) -> None:
        send(first)(started)
        deadline_s = time.monotonic() + DEADLINE_S
        while text not in started.log:
            assert time.monotonic() < deadline_s, f"it does not say {text!r}:\n{started.log}"
            time.sleep(0.02)
        time.sleep(pause_s)  # the situation itself: the time between the two signals
        send(*numbers)(started)

    return act


def send_to_all(started: Started) -> None:
    """SIGTERM to the supervisor and its workers at once, the workers first: as systemd may."""
    for pid in (*children(started.process.pid), started.process.pid):
        os.kill(pid, signal.SIGTERM)


def send_to_workers_only(started: Started) -> None:
    """SIGTERM to workers is ignored; then the supervisor is asked."""
    for pid in children(started.process.pid):
        os.kill(pid, signal.SIGTERM)
        os.kill(pid, signal.SIGHUP)
    os.kill(started.process.pid, signal.SIGTERM)


def close_terminal(started: Started) -> None:
    """Close the terminal as its window does at its end: the kernel sends SIGHUP."""
    os.close(started.hung_up)


def program(change: str, *arguments: str) -> str:
    """Return a command that changes our program before it runs."""
    never = "import asyncio\nasync def never(*_): await asyncio.Event().wait()"
    start = f"import sys; sys.argv = {['snorky', *arguments]!r}; from snorky.gateway.cli import main; main()"
    return f"exec {sys.executable} -c {shlex.quote(chr(10).join([never, change, start]))} 2>LOG"


WORKERS = "exec SERVE --workers 2 2>LOG"
LONG = tempfile.gettempdir() + "/" + "t" * (104 - len(tempfile.gettempdir()))
SITUATIONS = [
    Situation("SIGTERM", act=send(signal.SIGTERM), says=["draining"]),
    Situation("SIGINT", act=send(signal.SIGINT), says=["draining"]),
    Situation(
        "SIGHUP reads the settings again, and the client notices nothing",
        act=send_after("settings reloaded", signal.SIGHUP, signal.SIGTERM),
        says=["settings reloaded", "draining"],
    ),
    Situation(
        "SIGHUP to a program of one's own drains",
        command=f"exec {sys.executable} -c 'import snorky.gateway; snorky.gateway.run()' 2>LOG",
        act=send(signal.SIGHUP),
        says=["draining"],
    ),
    Situation(
        "SIGHUP under nohup is ignored",
        command="exec nohup SERVE 2>LOG",
        act=send(signal.SIGHUP, signal.SIGTERM),
        says_not=["settings reloaded", "Traceback"],
    ),
    Situation(
        "its terminal is closed", command="exec SERVE 2>LOG", act=close_terminal, says=["draining"], owns_terminal=True
    ),
    Situation(
        "its terminal is closed, with workers",
        command="exec SERVE --workers 2 2>LOG",
        act=close_terminal,
        says=["draining"],
        owns_terminal=True,
    ),
    Situation("SIGINT, 20 ms later SIGTERM", act=send(signal.SIGINT, signal.SIGTERM, pause_s=0.02), says=["draining"]),
    Situation("SIGTERM twice at once", act=send(signal.SIGTERM, signal.SIGTERM), says=["draining"]),
    Situation(
        "SIGTERM again after 1.2 s: impatience",
        env={"SNORKY_PUBLIC__DRAIN_GRACE_S": "30"},
        act=send_after("draining", signal.SIGTERM, signal.SIGTERM, pause_s=1.2),  # the kernel would join two at once
        code=128 + signal.SIGTERM,
        sees="either",
    ),
    Situation("workers: SIGTERM to the supervisor", command=WORKERS, act=send(signal.SIGTERM), says=["draining"]),
    Situation("workers: SIGTERM to all at once", command=WORKERS, act=send_to_all, says=["draining"]),
    Situation(
        "workers: signals to them are the supervisor's to decide",
        command=WORKERS,
        act=send_to_workers_only,
        says=["signal ignored: the supervisor decides"],
        says_not=["Traceback", "worker ended"],
    ),
    Situation(
        "workers: SIGHUP to the supervisor",
        command=WORKERS,
        act=send_after("settings reloaded", signal.SIGHUP, signal.SIGTERM),
        says=["settings reloaded", "draining"],
        says_not=["Traceback", "worker ended"],
    ),
    Situation(
        "Ctrl-C on a terminal is quick",
        command="exec SERVE",
        env={"SNORKY_PUBLIC__DRAIN_GRACE_S": "20"},
        act=send(signal.SIGINT),
        says=["draining"],
        has_terminal=True,
    ),
    Situation(
        "Ctrl-C on a terminal with workers is quick",
        command="exec SERVE --workers 2",
        env={"SNORKY_PUBLIC__DRAIN_GRACE_S": "20"},
        act=send(signal.SIGINT),
        says=["draining"],
        has_terminal=True,
    ),
    Situation("stdin is closed", command="exec SERVE <&- 2>LOG", act=send(signal.SIGTERM), says=["ready in"]),
    Situation("stdout is closed", command="exec SERVE >&- 2>LOG", act=send(signal.SIGTERM), says=["ready in"]),
    Situation("stderr is closed", command="exec SERVE 2>&-", act=send(signal.SIGTERM)),
    Situation("all three are closed", command="exec SERVE <&- >&- 2>&-", act=send(signal.SIGTERM)),
    Situation(
        "all three are closed, with workers", command="exec SERVE --workers 2 <&- >&- 2>&-", act=send(signal.SIGTERM)
    ),
    Situation(
        "stderr's reader has gone",
        command="mkfifo LOG.pipe; true <LOG.pipe & exec SERVE 2>LOG.pipe",
        act=send(signal.SIGTERM),
    ),
    Situation(
        "SIGTERM comes between /readyz and the task that says ready",
        command=program("import snorky.gateway.runtime.gateway as module; module.Gateway.until_ready = never", "serve"),
        act=send(signal.SIGTERM),
        says=["ready in", "draining"],
    ),
    Situation(
        "SIGTERM comes between /readyz and the task that says ready, with workers",
        command=program(
            "import snorky.gateway.runtime.supervisor as module; module._POLL_S = 3600", "serve", "--workers", "2"
        ),
        act=send(signal.SIGTERM),
        says=["ready in", "2 workers", "draining"],
    ),
    Situation("TMPDIR of 105 bytes", env={"TMPDIR": LONG}, act=send(signal.SIGTERM), says=["ready in"]),
    Situation(
        "TMPDIR of 105 bytes, with workers",
        command=WORKERS,
        env={"TMPDIR": LONG},
        act=send(signal.SIGTERM),
        says=["draining"],
    ),
    Situation(
        "no folder for sockets, with workers",
        command=program(
            'import snorky.gateway.socket_directory as module; module._places = lambda: ["/nowhere"]',
            "serve",
            "--workers",
            "2",
        ),
        code=1,
        says=["error:", "/nowhere: No such file or directory", "set TMPDIR to a short, writable path"],
        sees="nothing",
    ),
    Situation(
        "64 descriptors: the limit of connections is lowered",
        command="ulimit -n 64; exec SERVE 2>LOG",
        act=send(signal.SIGTERM),
        says=["limits.connections is above what the file descriptors allow", "ulimit -n"],
    ),
    Situation(
        "a host of another machine",
        command="exec SERVE 2>LOG",
        env={"SNORKY_PUBLIC__HOST": "192.0.2.1", "SNORKY_AUTH__REQUIRED": "false"},
        code=1,
        says=["error:", "192.0.2.1"],
        sees="nothing",
    ),
]


@asynccontextmanager
async def started(row: Situation, directory: Path) -> AsyncIterator[Started]:
    process = Started(row, directory)
    try:
        yield process
    finally:
        process.close()


async def watch(socket: aiohttp.ClientWebSocketResponse) -> str:
    """Subscribe until the end; returns the notice `moving`, and the close code."""
    seen = []
    async for message in socket:
        if message.type == aiohttp.WSMsgType.TEXT and message.json()["message"].get("type") == "moving":
            seen.append("moving")
    return " ".join([*seen, str(socket.close_code)])


@pytest.mark.parametrize("row", SITUATIONS, ids=lambda row: row.name)
async def test_situation(row: Situation, tmp_path: Path) -> None:
    async with started(row, tmp_path) as process, aiohttp.ClientSession() as session:
        if row.act is not None:
            await process.until_ready()
            socket = await session.ws_connect(f"ws://127.0.0.1:{process.public_port}/ws")
            await socket.send_json(
                {"service": "pubsub", "message": {"command": "subscribe", "params": {"channel": "a"}}}
            )
            assert (await socket.receive_json(timeout=30))["message"]["type"] == "response"
            watching = asyncio.ensure_future(watch(socket))
            began_s = time.monotonic()
            await asyncio.to_thread(row.act, process)
            code = await process.code()
            took_s = time.monotonic() - began_s
            seen = await asyncio.wait_for(watching, DEADLINE_S)
            assert row.sees == "either" or seen == row.sees, f"{seen}\n{process.log}"
            assert took_s < row.takes_max_s, f"{took_s:.1f} s\n{process.log}"
        else:
            code = await process.code()
        log = process.log
        assert code == row.code, log
        for text in row.says:
            assert text in log, log
        for text in row.says_not:
            assert text not in log, log
