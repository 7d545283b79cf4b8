"""Connection: one client over any transport, and the bytes queued for it.

Rules:
- `write` never waits. While the transport accepts bytes, `write` *is* the transport's own write, so that writing
  to thousands of connections costs one call each. Otherwise bytes are queued here, up to a bound in
  bytes; beyond it the connection is closed as a slow consumer (4008). Other connections are not slowed down.
- A reply counts against that bound before it is written, and against the node's bound while it is queued
  (`snorky.gateway.connection.waiting_replies`). A reply that exceeds the bound by itself is refused: `too_large`.
- The queue holds references to frames that all receivers share, never copies.
- While `direct` is set, the fan-out may write to the socket itself (`snorky.gateway.connection.native.direct_sender`).
  A pass that misses it sets it for later ones: a connection that receives nothing does without the memory.
- After closing, writes are discarded, and `is_closed` stays true.
"""

from collections.abc import Callable, Iterable, Mapping
from collections.abc import Set as AbstractSet
from functools import lru_cache
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final, Protocol

from snorky.gateway.connection.newest import Newest
from snorky.gateway.connection.rate_limiter import Limiter
from snorky.gateway.connection.waiting_replies import WaitingReplies
from snorky.gateway.errors import CloseCode, ReplyTooLarge
from snorky.gateway.protocol.codec import MAX_VALUES, encode
from snorky.gateway.protocol.foreign import Frontend
from snorky.gateway.protocol.splicing import Compound
from snorky.gateway.protocol.ws_frames import Dialect

if TYPE_CHECKING:
    from snorky.gateway.connection.native._sends import Direct

__all__ = ["NO_CLAIMS", "SERVER_SIDE", "Connection", "Transport"]

NO_CLAIMS: Final[Mapping[str, Any]] = MappingProxyType({})

# In `grants`: the backend has subscribed the client. Compared by identity: a token may permit the same operations.
SERVER_SIDE: Final = frozenset(("subscribe", "history", "presence"))


class Transport(Protocol):
    """Transport of a connection's bytes: a WebSocket transport, a SockJS session, a backend request."""

    transport_name: str  # for metrics: "websocket", ...

    def write(self, data: bytes) -> object:
        """Accept bytes of whole frames; never waits. May call `Connection.pause` during the call."""

    def buffered_bytes(self) -> int:
        """Return the number of bytes accepted and not yet handed to the kernel."""

    def pause_reading(self) -> None:
        """Stop reading from the peer for now."""

    def resume_reading(self) -> None:
        """Resume reading from the peer."""

    def close(self, code: int, reason: str) -> None:
        """Begin to close; bytes already written are sent first, within the transport's own deadline."""


def _discard(_data: bytes) -> None:
    """Replace a closed connection's write: a delivery that already started may still call it."""


class _Ended:
    """Replaces the transport of a connection that has ended."""

    def __init__(self, transport_name: str) -> None:
        self.transport_name = transport_name

    def write(self, data: bytes) -> None:
        """Discard bytes."""

    def buffered_bytes(self) -> int:
        """Hold nothing."""
        return 0

    def pause_reading(self) -> None:
        """Nothing is read."""

    def resume_reading(self) -> None:
        """Nothing is read."""

    def close(self, code: int, reason: str) -> None:
        """It is closed."""


_ended = lru_cache(maxsize=None)(_Ended)  # one for each name of a transport


class Connection:
    """One client of a registry. Made by a handler, used by services, ends with its transport.

    id: unique in the cluster, "NODE.NUMBER". identity: None = not authenticated. claims: of its token; read-only.
    remote_ip: of the client itself, if all proxies between are trusted.
    channels: keys of the subscribed channels. grants: what subscription tokens permit there. data: for services to use.
    outbox_max_bytes: limit of queued bytes, the transport's buffer included. waiting: the queued replies of the node.
    """

    __slots__ = (
        "_data",
        "_is_closed",
        "_newest",
        "_node_id",
        "_outbox",
        "_outbox_bytes",
        "_outbox_max_bytes",
        "_serial",
        "_waiting",
        "_wire",
        "channels",
        "claims",
        "dialect",
        "direct",
        "frontend",
        "grants",
        "identity",
        "limiter",
        "remote_ip",
        "write",
    )

    def __init__(
        self,
        wire: Transport,
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
        self._newest: Newest | None = None  # of the messages in the outbox
        self._is_closed = False
        self._data: dict[str, Any] | None = None
        self.dialect = dialect
        self.frontend: Frontend | None = None  # set by the transport before `connect`, if its protocol is a foreign one
        self.identity: str | None = None
        self.claims: Mapping[str, Any] = NO_CLAIMS
        self.remote_ip = remote_ip
        self.channels: set[str] | tuple[()] = ()  # a set from the first subscription on: most have few
        self.grants: dict[str, AbstractSet[str]] | None = None  # by channel key: operations that a token permits
        self.limiter: Limiter | None = None  # set at the first message
        self.write: Callable[[bytes], object] = wire.write
        self.direct: Direct | None = None  # see `open_direct`

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
        """Name of the kind of transport, for metrics."""
        return self._wire.transport_name

    @property
    def backend_key(self) -> str | None:
        """Name of the key that a backend's request came with, "none" if it needs none; None for clients."""
        return getattr(self._wire, "backend_key", None)

    @property
    def outbox_max_bytes(self) -> int:
        """Limit of queued bytes; above it the client is a slow consumer."""
        return self._outbox_max_bytes

    @property
    def pending_bytes(self) -> int:
        """Bytes queued for this client, in the outbox and the transport. Bulk senders wait until it shrinks."""
        return self._outbox_bytes + self._wire.buffered_bytes()

    @property
    def is_behind(self) -> bool:
        """True while the transport is full, so that writes are queued here."""
        return self.write == self._hold

    @property
    def is_closed(self) -> bool:
        """True from the moment that either side began to close."""
        return self._is_closed

    @property
    def data(self) -> dict[str, Any]:
        """State of services for this connection, each under its own keys; discarded with the connection."""
        if self._data is None:
            self._data = {}
        return self._data

    def send(self, value: Any) -> None:
        """Encode and write one message to this connection only. value: a whole envelope.

        For messages to many, `Service.publish` encodes once for all. Raises InvalidMessage: not a strict JSON value;
        ReplyTooLarge.
        """
        self.write_reply(self.framed(value))

    def deliver(self, value: Any) -> bool:
        """Send a message of another node; False: the client's protocol refuses it. Raises as `send`."""
        taken = None if self.frontend is None else self.frontend.take(value)
        if taken is not None:
            return taken
        self.send(value)
        return True

    def framed(self, value: Any) -> bytes:
        """Encode one message as a frame of this connection's dialect. Raises as `send`.

        If a foreign protocol sends nothing for it: b"".
        """
        if self.frontend is not None:
            return self._checked(self._translated(value))
        # No node decodes it: a room may have more members than MAX_VALUES. Each takes a byte at least.
        max_values = max(self._outbox_max_bytes, 2 * MAX_VALUES)  # a call's id alone may have MAX_VALUES values
        return self._checked(self.dialect.frame(encode(value, self.dialect.encoding, max_values=max_values)))

    def framed_compound(self, envelope: dict[str, Any], compound: Compound) -> bytes:
        """Encode a message that contains `compound.value`, and its followers, as frames. Raises InvalidMessage."""
        dialect = self.dialect
        if dialect.rendering is None or self.frontend is None:
            encoded = compound.encode(envelope, dialect.encoding)
            return b"".join(map(dialect.frame, (encoded, *compound.followers(envelope["service"], dialect.encoding))))
        has_service = dialect.serves(envelope["service"])
        followers = map(dialect.frame, compound.foreign_followers(dialect.rendering) if has_service else ())
        return b"".join((self._translated(compound.resolve(envelope)), *followers))

    def write_reply(self, frame: bytes) -> None:
        """Write or queue a frame for this connection only; if the outbox has no room, close: slow consumer.

        Raises ReplyTooLarge: larger than the whole outbox; nothing is written.
        """
        self._checked(frame)
        if not frame:
            return
        if not self.has_room(len(frame)):
            self.close(CloseCode.SLOW_CONSUMER, "Slow consumer")
            return
        self.write(frame)
        if self._waiting is not None and self.is_behind:
            self._waiting.add(self, len(frame))

    def has_room(self, size: int) -> bool:
        """True if the outbox has room for a reply of this many bytes."""
        return self._outbox_bytes + self._wire.buffered_bytes() + size <= self._outbox_max_bytes

    def hold_newest(self, messages: Iterable[tuple[bytes | None, bytes]]) -> int:
        """Queue messages while `is_behind`; each replaces a queued one with its subject. Returns how many it replaced.

        messages: with their subjects; None = it replaces none. Closes the connection as `write` does.
        """
        replaced = 0
        for subject, data in messages:
            if self._is_closed:
                break
            if subject is None:
                self._hold(data)
                continue
            self._newest = self._newest or Newest()
            self._outbox = self._outbox or []
            removed = self._newest.put(self._outbox, subject, data)
            replaced += removed > 0
            self._outbox_bytes += len(data) - removed
            if self._is_full:
                self.close(CloseCode.SLOW_CONSUMER, "Slow consumer")
        return replaced

    def close(self, code: int, reason: str = "") -> None:
        """Close: queued bytes are dropped, a close frame is written last. Idempotent."""
        if self._is_closed:
            return
        self._is_closed, self.write, self.direct = True, _discard, None
        try:
            self._wire.close(code, reason)  # it may call `take_held`
        finally:
            self.mark_closed()

    def mark_closed(self) -> None:
        """Discard queued bytes and all later writes. Called by the transport when the peer has gone."""
        self._is_closed = True
        self._outbox = self._newest = None
        self._outbox_bytes = 0
        self.write, self.direct = _discard, None
        if self._waiting is not None:
            self._waiting.settle(self)

    def detach(self) -> None:
        """Release transport and frontend, which have ended: in a cycle, only the collector can free them."""
        self._wire = _ended(self._wire.transport_name)
        self.frontend = None

    def pause(self) -> None:
        """Queue writes from now on. Called by the transport when its buffer is full."""
        if not self._is_closed:
            self.write, self.direct = self._hold, None

    def resume(self) -> None:
        """Write the queued bytes at once, and stop queueing. Called by the transport when its buffer has drained."""
        if self._is_closed:
            return
        held, self._outbox, self._outbox_bytes, self._newest = self._outbox, None, 0, None
        self.write = self._wire.write
        if held:
            self._wire.write(b"".join(held))
        if self._waiting is not None:
            self._waiting.settle(self, 0 if self.write != self._hold else self._wire.buffered_bytes())

    def open_direct(self) -> bool:
        """Set `direct` if the transport can make one and takes bytes now; returns whether it is set."""
        if self.direct is None and self.write == self._wire.write:
            make = getattr(self._wire, "make_direct", None)
            self.direct = None if make is None else make()
        return self.direct is not None

    def take_held(self) -> bytes:
        """Remove and return the queued bytes. For closing transports whose client is only between two requests."""
        held, self._outbox, self._outbox_bytes, self._newest = self._outbox, None, 0, None
        return b"".join(held or ())

    def pause_reading(self) -> None:
        """Stop reading messages from the peer for now."""
        self._wire.pause_reading()

    def resume_reading(self) -> None:
        """Resume reading messages from the peer."""
        self._wire.resume_reading()

    def _translated(self, envelope: dict[str, Any]) -> bytes:
        message = None if self.frontend is None else self.frontend.translate(envelope)
        return b"" if message is None else self.dialect.frame(message)

    def _checked(self, frame: bytes) -> bytes:
        if len(frame) > self._outbox_max_bytes:
            raise ReplyTooLarge(self._outbox_max_bytes)
        return frame

    @property
    def _is_full(self) -> bool:
        return self._outbox_bytes + self._wire.buffered_bytes() > self._outbox_max_bytes

    def _hold(self, data: bytes) -> None:
        self._outbox_bytes += len(data)
        if self._is_full:
            self.close(CloseCode.SLOW_CONSUMER, "Slow consumer")
        elif self._outbox is None:
            self._outbox = [data]
        else:
            self._outbox.append(data)
