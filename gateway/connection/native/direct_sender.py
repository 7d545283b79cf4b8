"""DirectSender: chooses how the fan-out writes, by the extension module where it is built or by each transport.

Rules:
- `Connection.direct` is set only while the connection neither queues nor discards, and if its transport writes to a
  socket without a layer between (TLS). A pass that finds it missing prepares some connections for later passes.
- The extension module uses the socket only if the transport is open and its buffer is empty: the transport itself
  would then write at once, so no byte overtakes another.
- If a socket does not take all bytes, the rest goes to `Connection.write` before anything else runs. So the transport
  queues it, pauses the connection or finds the error, as it does without this module.
- Without the module no connection has a `direct`, and each write is the transport's.
"""

import asyncio
from collections.abc import Callable, Sequence
from importlib import import_module
from typing import TYPE_CHECKING, Final, Literal

if TYPE_CHECKING:
    from snorky.gateway.connection.native._sends import Direct

__all__ = ["DIRECT_MIN", "DirectSender", "Path", "SendMany"]

DIRECT_MIN: Final = 2  # connections of a pass; for one, its transport is as fast

Path = Literal["io_uring", "send", "python"]
SendMany = Callable[["list[Direct | None]", bytes], "Sequence[tuple[int, int]] | None"]

_MODULE: Final = "snorky.gateway.connection.native._sends"
_PLAIN: Final = frozenset(  # classes that write to their socket at once if their buffer is empty
    (
        ("uvloop.loop", "TCPTransport"),
        ("uvloop.loop", "UnixTransport"),
        ("asyncio.selector_events", "_SelectorSocketTransport"),
    )
)


class DirectSender:
    """The way in which one node writes to many connections. setting: `native_fanout`, see `config.parsers`.

    path: "io_uring" (one system call for all), "send" (one for each) or "python" (no extension module). reason: why
    it is not "io_uring", else "". send_many: see `_sends.pyi`; None = "python".
    """

    def __init__(self, setting: str = "auto") -> None:
        self.path: Path = "python"
        self.reason = ""
        self.send_many: SendMany | None = None
        self._make: Callable[[int, asyncio.Transport], Direct] | None = None
        if setting == "off":
            self.reason = 'native_fanout = "off"'
            return
        try:
            module = import_module(_MODULE)
        except ImportError as error:
            is_missing = isinstance(error, ModuleNotFoundError)
            self.reason = "the extension module was not built: no compiler" if is_missing else str(error)
            return
        self.path, self.send_many, self._make = "send", module.send_many, module.Direct
        if setting == "send":
            self.reason = 'native_fanout = "send"'
            return
        try:
            ring = module.Ring()
        except OSError as error:  # the kernel is older, or a container's seccomp profile forbids it
            self.reason = f"io_uring: {error.strerror}"
        else:
            self.path, self.send_many = "io_uring", ring.send_many

    def direct_of(self, transport: asyncio.Transport) -> "Direct | None":
        """Make what `send_many` needs to write for a transport; None = it cannot."""
        kind = type(transport)
        if self._make is None or (kind.__module__, kind.__qualname__) not in _PLAIN or transport.is_closing():
            return None
        return self._make(transport.get_extra_info("socket").fileno(), transport)
