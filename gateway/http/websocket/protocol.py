"""The WebSocket of one client after the handshake: passes bytes of a transport as messages to a registry.

Rules:
- Each connection has one small protocol object and one Connection: no task, no timer, no queue; a frame
  parser only in the middle of a message.
- There is one way to end: `close` writes a close frame and waits, on the wheel, for the peer's close frame;
  `connection_lost` releases everything, for whatever reason it is called.
- Frames that are not a whole message are limited: pings, pongs, fragments, and frames after our close frame. A message
  that has begun must end within `message_timeout_s` of reading it.
- A read that is one small message is processed at once; anything else waits for its turns (`turns.py`), and the client
  is not read meanwhile. Nor is a client whose services accept no more.
- After a protocol fault nothing is parsed any more (RFC 6455 7.1.7); bytes are read and discarded until
  the peer closes or the deadline passes, because an unread byte would turn our close into a reset.
"""

import asyncio
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from time import perf_counter
from typing import Final

from snorky.gateway.auth.sessions import Session
from snorky.gateway.errors import CloseCode, InvalidToken, LimitExceeded, ProtocolFault
from snorky.gateway.http.serving.accept_gate import AcceptGate
from snorky.gateway.http.websocket.admission import Admission
from snorky.gateway.http.websocket.handshake import SUBPROTOCOLS
from snorky.gateway.http.websocket.masking import unmask
from snorky.gateway.http.websocket.peer_progress import SilentPeer, read_sent
from snorky.gateway.http.websocket.timer_wheel import TimerWheel
from snorky.gateway.http.websocket.turns import Turns
from snorky.gateway.node import Node
from snorky.gateway.presence.cluster_counts import Unit
from snorky.gateway.protocol.codec import Encoding
from snorky.gateway.protocol.ws_frames import (
    BINARY,
    CLOSE,
    PING,
    PING_FRAME,
    TEXT,
    Dialect,
    FrameParser,
    close_frame,
    close_reason,
    pong_frame,
    whole_message,
)
from snorky.gateway.sdk.registry import ServiceRegistry

__all__ = ["Endpoint", "WebSocketProtocol"]

AT_ONCE_MAX_BYTES: Final = 4_096  # of a read that is processed without waiting for a turn
HIGH_WATER_BYTES: Final = 65_536  # in the transport's buffer; above it the Connection queues further writes


@dataclass(frozen=True, slots=True)
class Endpoint:
    """State that the connections of one endpoint share."""

    node: Node
    registry: ServiceRegistry
    wheel: TimerWheel
    admission: Admission
    gate: AcceptGate
    turns: Turns

    def count_message(self, size: int, transport_name: str) -> None:
        """Count one message of a client. size: bytes of its payload."""
        metrics = self.node.metrics
        metrics.messages_received.labels(transport_name).value += 1
        metrics.received_bytes.value += size


class WebSocketProtocol(asyncio.Protocol):
    """One client's WebSocket. Made for `take_over`; belongs to its transport.

    session: its identity from the handshake, if any. refusal: its token is not accepted; it is closed with that code.
    """

    __slots__ = (
        "_acked_bytes",
        "_close_code",
        "_connection",
        "_endpoint",
        "_has_failed",
        "_is_full",
        "_is_heard",
        "_is_in_line",
        "_is_paused",
        "_is_pong_due",
        "_parser",
        "_refusal",
        "_silent",
        "_transport",
        "_work",
        "slot",
        "units",
        "write",
    )

    transport_name = "websocket"
    can_deflate = True
    subprotocols: Mapping[str, Encoding] = SUBPROTOCOLS
    ping_frame: bytes = PING_FRAME

    def __init__(
        self,
        endpoint: Endpoint,
        transport: asyncio.Transport,
        dialect: Dialect,
        remote_ip: str,
        *,
        session: Session | None = None,
        refusal: InvalidToken | None = None,
    ) -> None:
        self._endpoint = endpoint
        self._transport = transport
        self._parser: FrameParser | None = None
        self._work: Iterator[None] | None = None  # what was read and is not processed yet
        self._is_in_line = False  # for turns
        self._is_paused = False  # by its services
        self._is_full = False  # its client does not read
        self._is_heard = True
        self._is_pong_due = False
        self._acked_bytes = 0  # at the last ping
        self._silent: SilentPeer | None = None
        self._has_failed = False
        self._close_code: int = CloseCode.ABNORMAL
        self.slot = 0
        self.units: Sequence[Unit] = ()  # that the client counts against limits; until the connection is made
        self.write: Callable[[bytes], object] = transport.write
        self._refusal = refusal
        self._connection = endpoint.node.new_connection(self, dialect, remote_ip=remote_ip)
        if session is not None:
            try:
                endpoint.node.auth.bind(session, self._connection)
            except InvalidToken as error:  # it was revoked just now
                self._refusal = error
                endpoint.node.auth.refusals.note("token", error.reason, address=remote_ip)

    @property
    def frame_max_bytes(self) -> int:
        """The limit of one message of the peer, in bytes."""
        return self._endpoint.node.limits.message_max_bytes

    # -- asyncio.Protocol ----------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Start the connection: the 101 response is written."""
        # at most the outbox's limit: otherwise the transport alone would buffer more than that
        self._transport.set_write_buffer_limits(high=min(HIGH_WATER_BYTES, self._endpoint.node.limits.outbox_max_bytes))
        self._endpoint.gate.websockets += 1
        self._endpoint.wheel.add(self)
        self._endpoint.node.cluster_limits.counts.bind(self._connection, self.units)
        self.units = ()
        refusal, self._refusal = self._refusal, None
        if refusal is None:
            self._endpoint.node.connect(self._connection, self._endpoint.registry)
        else:  # services are not notified
            self._endpoint.node.metrics.handshakes_rejected.labels("token").inc()
            self._connection.close(refusal.close_code, str(refusal))

    def connection_lost(self, exc: Exception | None) -> None:
        """Release everything, after publications have had a turn: until then the connection is whole."""
        self._endpoint.node.interleaved_reads.tick()
        self.release()

    def release(self) -> None:
        """Release everything; other protocols have more."""
        self._endpoint.gate.websockets -= 1
        self._endpoint.wheel.remove(self)
        self._endpoint.admission.leave(self._connection.remote_ip)
        self._endpoint.node.disconnect(self._connection, self._close_code)
        self._endpoint.node.cluster_limits.counts.forget(self._connection)
        self._parser = self._work = None
        self._set_full(False)

    def eof_received(self) -> None:
        """The peer sends nothing more: the transport sends its buffer and closes, within a deadline."""
        if not self._connection.is_closed:
            self._connection.mark_closed()
            self._endpoint.wheel.end_soon(self)

    def pause_writing(self) -> None:
        """The transport's buffer is full: process no more messages of the client until it reads its replies."""
        self._set_full(not self._connection.is_closed)
        self._connection.pause()

    def resume_writing(self) -> None:
        """The transport's buffer has drained."""
        self._set_full(False)
        self._connection.resume()
        if self._work is not None:
            self._join_line()

    def data_received(self, data: bytes) -> None:
        """Process one read: nearly always one whole message."""
        self._endpoint.node.interleaved_reads.tick()
        self._is_heard = True
        if self._has_failed:
            return
        parser = self._parser
        if parser is None and len(data) <= AT_ONCE_MAX_BYTES and not self._is_full:
            try:
                if (frame := whole_message(data, self.frame_max_bytes, unmask)) is not None:
                    if (rest := self._on_frame(*frame)) is not None:
                        self._work = rest
                        self._join_line()
                    return
            except ProtocolFault as fault:
                self._fail(fault)
                return
        if parser is None:
            parser = self._parser = FrameParser(
                self.frame_max_bytes,
                deflate=self._connection.dialect.has_deflate,
                unmask=unmask,
                on_fragment=self._count_frame,
            )
        is_new = parser.is_idle
        self._work = self._frames(parser, parser.feed(data), is_new=is_new)
        self._join_line()

    # -- Wire: called by the Connection ----------------------------------------------------------------------

    def buffered_bytes(self) -> int:
        """Return the number of bytes in the transport's buffer."""
        return self._transport.get_write_buffer_size()

    def make_direct(self) -> object:
        """Make the value of `Connection.direct`; None = the fan-out cannot write to this socket itself."""
        return self._endpoint.node.direct_sender.direct_of(self._transport)

    def pause_reading(self) -> None:
        """Leave the peer's data in the socket."""
        self._is_paused = True
        self._transport.pause_reading()

    def resume_reading(self) -> None:
        """Resume reading, after what was read already is processed."""
        self._is_paused = False
        if self._work is not None:
            self._join_line()
            return
        self._transport.resume_reading()
        if self._parser is not None and not self._connection.is_closed:
            self._expect_message()  # the paused time does not count

    def close(self, code: int, reason: str) -> None:
        """Write a close frame after what was written, and abort if the peer takes too long to answer."""
        self._close_code = code
        self._transport.write(self.close_frame(code, reason))
        self._set_full(False)
        self.resume_reading()  # for the peer's close frame
        self._endpoint.wheel.end_soon(self)
        if code == CloseCode.SLOW_CONSUMER:
            self._endpoint.node.metrics.slow_consumers_closed.inc()

    def close_frame(self, code: int, reason: str) -> bytes:
        """Encode the end of the connection; other protocols have other codes."""
        return close_frame(code, reason)

    # -- Taker: processes what was read in small parts -----------------------------------------------------------

    def take_turn(self, until_s: float) -> bool:
        """See `Taker`."""
        if (work := self._work) is not None and not (self._is_paused or self._is_full):
            try:
                for _ in work:
                    if self._is_paused or self._is_full:
                        break
                    if perf_counter() >= until_s:
                        return True
                else:
                    self._work = None
            except ProtocolFault as fault:
                self._fail(fault)
        self._is_in_line = False
        if self._work is None and not self._is_paused and not self._transport.is_closing():
            self._transport.resume_reading()
        return False

    def _set_full(self, is_full: bool) -> None:
        if is_full != self._is_full:
            self._is_full = is_full
            self._endpoint.node.metrics.unread_clients.inc(1 if is_full else -1)

    def _join_line(self) -> None:
        if not self._is_in_line:
            self._is_in_line = True
            self._transport.pause_reading()  # also so that the end of the stream is not seen before earlier data
            self._endpoint.turns.join(self)

    # -- TimedConnection: called by the wheel ----------------------------------------------------------------

    def beat(self) -> None:
        """Ping, or abort if nothing came since the last beat and the peer does not acknowledge our data either.

        A connection from which the node does not read is not silent. But if the reason is that it does not read its
        replies, the bytes that it acknowledges decide.
        """
        sent = read_sent(self._transport)
        if self._is_heard or not (self._transport.is_reading() or self._is_full):
            self._is_heard = False
            self._silent = None
            self._acked_bytes = 0 if sent is None else sent.acked_bytes
            self._is_pong_due = True
            self._connection.write(self.ping_frame)
            return
        if self._silent is None:
            self._silent = SilentPeer(self._acked_bytes)
        if self._silent.is_alive(sent, self._endpoint.wheel.interval_s, is_read=self._transport.is_reading()):
            self._is_pong_due = True
            self._connection.write(self.ping_frame)  # if the line dies now, this stays unacknowledged
        else:
            self._endpoint.node.metrics.ping_timeouts.inc()
            self.abort()

    def _on_late_message(self) -> None:
        """Fail the connection: a message that has begun did not end in time."""
        if not self._transport.is_reading():
            return self._expect_message()
        node, connection, limit = self._endpoint.node, self._connection, "message_timeout_s"
        node.metrics.limit_hits.labels(limit).inc()
        node.auth.refusals.note("limit", limit, address=connection.remote_ip, identity=connection.identity)
        text = f"A message took longer than {node.limits.message_timeout_s:g} s"
        self._fail(ProtocolFault(CloseCode.POLICY, text))

    def abort(self) -> None:
        """Abort: the transport drops its buffer and calls `connection_lost`."""
        self._connection.mark_closed()
        self._transport.abort()

    # -- frames ----------------------------------------------------------------------------------------------

    def _frames(self, parser: FrameParser, frames: Iterator[tuple[int, bytes]], *, is_new: bool) -> Iterator[None]:
        """Process the frames of one read; yields after each. is_new: a message began with it. Raises ProtocolFault."""
        for opcode, payload in frames:
            is_new |= opcode < CLOSE
            rest = self._on_frame(opcode, payload)
            if self._transport.is_closing():
                return
            yield
            if rest is not None:
                yield from rest
        if parser.is_idle:
            self._parser = None
            self._endpoint.wheel.came(self)
        elif is_new and not self._connection.is_closed:  # a closing connection has a deadline already
            self._expect_message()

    def _expect_message(self) -> None:
        self._endpoint.wheel.expect(self, self._endpoint.node.limits.message_timeout_s, self._on_late_message)

    def _on_frame(self, opcode: int, payload: bytes) -> Iterator[None] | None:
        """Process one message or control frame. Returns the rest of it, if it may take long. Raises ProtocolFault."""
        if opcode == TEXT or opcode == BINARY:
            if self._connection.is_closed:
                self._count_frame()
                return None  # RFC 6455 1.4: data after our close frame is discarded
            if opcode != self._connection.dialect.opcode:
                raise ProtocolFault(CloseCode.UNSUPPORTED_DATA, "Wrong frame type for this encoding")
            self._endpoint.count_message(len(payload), self.transport_name)
            self._endpoint.registry.receive(self._connection, payload)
        elif opcode == PING:
            self._count_frame()
            self._connection.write(pong_frame(payload))
        elif opcode == CLOSE:
            self._on_close(payload)
        elif self._is_pong_due:
            self._is_pong_due = False
        else:
            self._count_frame()
        return None

    def _count_frame(self) -> None:
        """Count a frame that is not a whole message. Raises ProtocolFault: too many."""
        try:
            self._endpoint.registry.check_frame(self._connection)
        except LimitExceeded as error:
            raise ProtocolFault(CloseCode.LIMIT, str(error)) from None

    def _on_close(self, payload: bytes) -> None:
        """Answer the peer's close frame, or accept it as the answer to ours; then end."""
        code = close_reason(payload)
        if not self._connection.is_closed:
            self._close_code = code
            self._connection.mark_closed()
            self._transport.write(close_frame(CloseCode.OK if code == CloseCode.NO_STATUS else code))
        self._transport.close()  # RFC 6455 7.1.1: the server closes first; the buffer is sent before
        self._endpoint.wheel.end_soon(self)

    def _fail(self, fault: ProtocolFault) -> None:
        """Fail the connection (RFC 6455 7.1.7)."""
        self._has_failed = True
        self._parser = self._work = None
        self._endpoint.wheel.came(self)
        self._endpoint.node.metrics.client_errors.labels(fault.code).inc()
        self._connection.close(fault.close_code, str(fault))
        if self._transport.can_write_eof():
            self._transport.write_eof()  # the peer's answer is not parsed: it need not wait for our deadline
