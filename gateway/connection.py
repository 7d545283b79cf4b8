"""Connection: one client, whatever wire it came by, and what waits to be written to it.

Rules:
- `write` never waits. While the wire takes bytes, `write` *is* the wire's own write, so that a pass over
  thousands of connections costs one call each; while it does not, bytes are held here, up to a bound in
  bytes; past the bound the connection is a slow consumer and ends (4008). Others are not slowed.
- A reply counts against that bound before it is written, and against the node's bound while it waits
  (`gateway.waiting`). One that is larger than the bound by itself is refused: `too_large`.
- What is held are references to frames that all their receivers share, never copies.
- Joining the writes of one loop tick into one system call is the event loop's work (uvloop does).
- Once closed, writes are discarded, and `is_closed` stays true.
"""

from collections.abc import Callable
from typing import Any, Protocol

from gateway.codec import MAX_VALUES, encode
from gateway.errors import CloseCode, ReplyTooLarge
from gateway.frames import Dialect
from gateway.limiter import Limiter
from gateway.waiting import WaitingReplies

__all__ = ["Connection", "Wire"]


class Wire(Protocol):
    """What carries a connection's bytes: a WebSocket transport, a SockJS session, a backend request."""

    transport_name: str  # for metrics: "websocket", ...

    def write(self, data: bytes) -> object:
        """Take bytes of whole frames; never waits. May call `Connection.pause` from within."""

    def buffered_bytes(self) -> int:
        """Bytes taken and not yet handed to the kernel."""

    def pause_reading(self) -> None:
        """Take no more from the peer for now."""

    def resume_reading(self) -> None:
        """Take from the peer again."""

    def close(self, code: int, reason: str) -> None:
        """Begin to end; what was written goes out first, within a deadline of the wire's."""


def _discard(_data: bytes) -> None:
    """Take the place of a closed connection's write: a pass may still reach it."""


class Connection:
    """One client of a registry. Made by a handler, known to services, gone with its wire.

    id: unique in the cluster, "NODE.NUMBER". identity: who it is, None if it has not said.
    remote_ip: of the client itself where the proxies between are trusted ones.
    channels: keys of the channels it subscribes to. data: for services, theirs to fill.
    outbox_max_bytes: what may wait for it, the wire's own buffer included. waiting: the replies of the node that wait.
    """

    __slots__ = (
        "_data",
        "_is_closed",
        "_node_id",
        "_outbox",
        "_outbox_bytes",
        "_outbox_max_bytes",
        "_serial",
        "_waiting",
        "_wire",
        "channels",
        "dialect",
        "identity",
        "limiter",
        "remote_ip",
        "write",
    )

    def __init__(
        self,
        wire: Wire,
        dialect: Dialect,
        *,
        node_id: str,
        serial: int,
        remote_ip: str = "",
        outbox_max_bytes: int = 1 << 20,
        waiting: WaitingReplies | None = None,
    ) -> None:
        self._wire = wire
        self._node_id = node_id
        self._serial = serial
        self._outbox_max_bytes = outbox_max_bytes
        self._waiting = waiting
        self._outbox: list[bytes] | None = None
        self._outbox_bytes = 0
        self._is_closed = False
        self._data: dict[str, Any] | None = None
        self.dialect = dialect
        self.identity: str | None = None
        self.remote_ip = remote_ip
        self.channels: set[str] | tuple[()] = ()  # a set from the first subscription on: most have few
        self.limiter: Limiter | None = None  # there from the first message on
        self.write: Callable[[bytes], object] = wire.write

    def __repr__(self) -> str:
        return f"<Connection {self.id} {self.dialect.name}{' closed' if self._is_closed else ''}>"

    @property
    def id(self) -> str:
        """Address in the cluster, "NODE.NUMBER"."""
        return f"{self._node_id}.{self._serial}"

    @property
    def serial(self) -> int:
        """Number among the connections of its node."""
        return self._serial

    @property
    def transport_name(self) -> str:
        """Name of the kind of wire, for metrics."""
        return self._wire.transport_name

    @property
    def outbox_max_bytes(self) -> int:
        """What may wait for it; more than that and it is a slow consumer."""
        return self._outbox_max_bytes

    @property
    def pending_bytes(self) -> int:
        """What waits for it now, here and in its wire: who has much to send waits for it to become less."""
        return self._outbox_bytes + self._wire.buffered_bytes()

    @property
    def is_closed(self) -> bool:
        """True from the moment that either side began to end it."""
        return self._is_closed

    @property
    def data(self) -> dict[str, Any]:
        """What services keep with the connection, under keys of their own; gone with it."""
        if self._data is None:
            self._data = {}
        return self._data

    def send(self, value: Any) -> None:
        """Encode and write one message to this connection only. value: a whole envelope.

        For what goes to many, `Service.publish` encodes once for all. Raises InvalidMessage: no strict JSON value;
        ReplyTooLarge.
        """
        self.write_reply(self.framed(value))

    def framed(self, value: Any) -> bytes:
        """Make the frame of one message. Raises as `send`."""
        # No node reads it: a room may have more members than a message values. Each takes a byte at least.
        max_values = max(self._outbox_max_bytes, 2 * MAX_VALUES)  # the id of a call may be all that a message may hold
        frame = self.dialect.frame(encode(value, self.dialect.encoding, max_values=max_values))
        if len(frame) > self._outbox_max_bytes:
            raise ReplyTooLarge(self._outbox_max_bytes)
        return frame

    def write_reply(self, frame: bytes) -> None:
        """Write what is for this connection only, if it may wait; else close: slow consumer. frame: of its dialect.

        Raises ReplyTooLarge: it could never wait; nothing is written.
        """
        if len(frame) > self._outbox_max_bytes:
            raise ReplyTooLarge(self._outbox_max_bytes)
        if not self.has_room(len(frame)):
            self.close(CloseCode.SLOW_CONSUMER, "Slow consumer")
            return
        self.write(frame)
        if self._waiting is not None and self.write == self._hold:  # the wire takes no more
            self._waiting.add(self, len(frame))

    def has_room(self, size: int) -> bool:
        """True if a reply of so many bytes may wait, beside what waits already."""
        return self._outbox_bytes + self._wire.buffered_bytes() + size <= self._outbox_max_bytes

    def close(self, code: int, reason: str = "") -> None:
        """End the connection: what waits here is dropped, a close frame is the last thing written. Idempotent."""
        if self._is_closed:
            return
        self._is_closed, self.write = True, _discard
        try:
            self._wire.close(code, reason)  # it may take what is held
        finally:
            self.mark_closed()

    def mark_closed(self) -> None:
        """Discard what waits and whatever is written from now on. For wires, when the peer has gone."""
        self._is_closed = True
        self._outbox = None
        self._outbox_bytes = 0
        self.write = _discard
        if self._waiting is not None:
            self._waiting.settle(self)

    def pause(self) -> None:
        """Hold what is written from now on. For wires, when their buffer is full."""
        if not self._is_closed:
            self.write = self._hold

    def resume(self) -> None:
        """Write what was held, as one piece, and let writes through again. For wires, when their buffer drained."""
        if self._is_closed:
            return
        held, self._outbox, self._outbox_bytes = self._outbox, None, 0
        self.write = self._wire.write
        if held:
            self._wire.write(b"".join(held))
        if self._waiting is not None:
            self._waiting.settle(self, 0 if self.write != self._hold else self._wire.buffered_bytes())

    def take_held(self) -> bytes:
        """Take what waits here. For wires, as they close: that of a client which is only between two requests."""
        held, self._outbox, self._outbox_bytes = self._outbox, None, 0
        return b"".join(held or ())

    def pause_reading(self) -> None:
        """Take no more messages from the peer for now."""
        self._wire.pause_reading()

    def resume_reading(self) -> None:
        """Take messages from the peer again."""
        self._wire.resume_reading()

    def _hold(self, data: bytes) -> None:
        self._outbox_bytes += len(data)
        if self._outbox_bytes + self._wire.buffered_bytes() > self._outbox_max_bytes:
            self.close(CloseCode.SLOW_CONSUMER, "Slow consumer")
        elif self._outbox is None:
            self._outbox = [data]
        else:
            self._outbox.append(data)
