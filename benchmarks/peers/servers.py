"""The peers as variants of the fan-out: how each is installed and started."""

import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from benchmarks.peers.install import NotInstalled, installed
from benchmarks.receivers.kinds import PLAIN, SOCKET_IO, Kind
from benchmarks.servers.variants import Rig, Variant
from benchmarks.support.child import Child, ChildFailed
from benchmarks.support.machine import server_cpu
from benchmarks.support.message import compact, envelope

__all__ = ["BUN", "UWS", "peers"]

BUN = "Bun, publish"
UWS = "uWebSockets in socketify, publish"
HERE = Path(__file__).parent


@dataclass(frozen=True, slots=True)
class Peer:
    """One row. package: of versions.toml. command: how its server is started, given the folder of the package."""

    name: str
    package: str
    command: Callable[[Path], list[str]]
    kind: Kind = PLAIN


def _node(server: str) -> Callable[[Path], list[str]]:
    def command(_: Path) -> list[str]:
        node = shutil.which("node")
        if node is None:
            raise NotInstalled("there is no node")
        return [node, str(HERE / server)]

    return command


def _python(module: str) -> Callable[[Path], list[str]]:
    return lambda _: [sys.executable, "-m", f"benchmarks.peers.{module}"]


def _bun(folder: Path) -> list[str]:
    """Take the binary of the platform's package: the package `bun` would copy it by a script."""
    for binary in folder.glob("node_modules/@oven/bun-*/bin/bun"):
        return [str(binary), str(HERE / "bun_server.mjs")]
    raise NotInstalled("npm has no binary of Bun for this platform")


PEERS = (
    Peer(BUN, "bun", _bun),
    Peer(UWS, "socketify", _python("socketify_server")),
    Peer("ws, a loop of send", "ws", _node("ws_server.mjs")),
    Peer("Socket.IO, emit to a room", "socket.io", _node("socketio_server.mjs"), SOCKET_IO),
    Peer("python-socketio, emit to a room", "python-socketio", _python("python_socketio_server"), SOCKET_IO),
)


def peers(note: Callable[[str], None]) -> list[Variant]:
    """Install all peers. One that cannot be installed becomes a variant whose start says why."""
    return [Variant(peer.name, _starter(peer, note)) for peer in PEERS]


def _starter(peer: Peer, note: Callable[[str], None]) -> Callable[[int], Rig]:
    note(f"{peer.package}, unless it is installed")
    reason = ""
    argv: list[str] = []
    try:
        folder = installed(peer.package)
        argv = [*peer.command(folder), str(folder), compact(envelope()).decode()]
    except NotInstalled as error:
        reason = f"not installed: {error}"

    def start(connections: int) -> Rig:
        if reason:
            raise ChildFailed(reason)
        return Rig(Child(argv, cpu=server_cpu()), connections, kinds=(peer.kind,))

    return start
