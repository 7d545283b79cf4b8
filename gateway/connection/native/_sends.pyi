"""The extension module that setup.py builds from _sends.c where it compiles."""

from asyncio import Transport
from collections.abc import Sequence

class Direct:
    """The socket of one transport, for `send_many`. It uses the socket only while the transport would, too."""

    def __init__(self, fd: int, transport: Transport) -> None: ...

def send_many(targets: list[Direct | None], data: bytes, /) -> Sequence[tuple[int, int]] | None:
    """Send data on the socket of each target, without waiting and without the GIL.

    Each target may occur once; None stands for one that must not be used. Returns, for each target that did not take
    all of it, its index and the number of bytes that it took: the caller must give the rest to its transport. None =
    no target can be used, and nothing was sent.
    """

class Ring:
    """An io_uring, to send to all targets by one system call. For one thread of the process that made it.

    Raises OSError: the kernel is too old (Linux 5.18), or the kernel or the container forbids it.
    """

    def send_many(self, targets: list[Direct | None], data: bytes, /) -> Sequence[tuple[int, int]] | None:
        """Send as the function `send_many`. Raises RuntimeError: another thread or process uses this ring."""
