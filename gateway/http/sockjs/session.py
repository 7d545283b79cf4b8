"""Session: one SockJS client over successive HTTP requests; the transport (`Wire`) of its connection.

Rules:
- One receiver at a time: a second one gets close frame 2010 and ends; the first continues.
- Between two receivers, the Connection queues what is written, with the same limit as for all connections.
- If the client aborts a receiver, the session ends (1002): frames in transit are lost, and a session must have no gaps.
- A receiver that has ended may still be lost before its frames are written. So the next one gets messages only when
  the writers of all earlier ones have reported that they are written; the session ends (1002) if one does not.
- An ended session is kept for the disconnect delay, so that the next receiver gets the reason, after the messages
  still queued. They are dropped if there would be a gap (1002) or there are too many (4008).
- The same is true while a response is not written: what is queued then, and the reason, wait for it too.
- Its connection leaves the node when the client has been notified, or after the delay.
"""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from time import perf_counter

from snorky.gateway.connection.connection import Connection
from snorky.gateway.errors import CloseCode, LimitExceeded
from snorky.gateway.http.serving.response_stream import HIGH_WATER_BYTES, FrameSink
from snorky.gateway.http.sockjs.binding import Binding
from snorky.gateway.http.sockjs.frames import HEARTBEAT, OPEN, SESSION_DIALECT, array_of, end_frame
from snorky.gateway.http.websocket.turns import TURN_S
from snorky.gateway.node import Node
from snorky.gateway.protocol.ws_frames import Dialect
from snorky.gateway.sdk.registry import ServiceRegistry

__all__ = ["Session", "Timing"]

_STILL_OPEN = end_frame(2010, "Another connection still open")


@dataclass(frozen=True, slots=True)
class Timing:
    """Times and sizes that the protocol leaves to the server; the defaults are the usual ones."""

    heartbeat_s: float = 25.0  # proxies close connections that are silent for 30 s
    disconnect_delay_s: float = 5.0  # without a receiver
    unwritten_s: float = 5.0  # that a receiver waits until the frames of an earlier one are written
    writing_s: float = 60.0  # that a client may read a response which has ended, before the session ends
    response_max_bytes: int = 131_072  # of one streaming response: browsers keep all of it in memory. See `_size_of`
    beat_s: float = 1.0  # maximum delay of a heartbeat, or of noticing that a client has gone


class Session:
    """One client. Its creator sets `on_removed`, called once when the session is removed. clock: monotonic seconds.

    binding: decides which requests are its client's. Callers ask it before attaching a receiver or passing messages.
    dialect: its frames end with a comma, as those of SESSION_DIALECT.
    """

    transport_name = "sockjs"

    def __init__(
        self,
        node: Node,
        registry: ServiceRegistry,
        timing: Timing,
        clock: Callable[[], float],
        remote_ip: str,
        binding: Binding,
        *,
        dialect: Dialect = SESSION_DIALECT,
    ) -> None:
        self.slot = 0  # of the wheel
        self.binding = binding
        self.has_left_node = False  # its connection has, and no longer owns the session's id
        self.on_removed: Callable[[], None] = lambda: None
        self._node = node
        self._registry = registry
        self._timing = timing
        self._clock = clock
        self._loop = asyncio.get_running_loop()
        self._drain: FrameSink | None = None
        self._drained_bytes = 0  # written to the present receiver
        self._attached_s = 0.0
        self._unwritten: set[FrameSink] = set()  # receivers that have ended, but whose frames may not be written yet
        self._since_s = self._clock()  # time of the last frame, of the last receiver's end, or of the session's end
        self._is_open = False
        self._is_removed = False
        self._end: bytes | None = None  # its close frame
        self._before_end = b""  # messages that were queued for a receiver when it ended
        self._close_code: int = CloseCode.ABNORMAL
        self._may_read = asyncio.Event()
        self._may_read.set()
        self._reading = asyncio.Lock()
        self.connection: Connection = node.new_connection(self, dialect, remote_ip=remote_ip)
        self.connection.pause()  # there is no receiver yet

    # -- receivers -----------------------------------------------------------------------------------------------

    def attach(self, drain: FrameSink) -> None:
        """Write queued and future messages to this receiver. The session ends the receiver."""
        if self._drain is not None:
            drain.send(_STILL_OPEN)
            drain.end()
            return
        if self._end is not None and not self._unwritten:
            self._tell_end(drain, self._end)
            return
        self._drain, self._drained_bytes, self._attached_s = drain, 0, self._clock()
        drain.on_drained = self._resume
        drain.on_lost = lambda: self._on_lost(drain)
        drain.on_finished = lambda: self._on_finished(drain)
        if not self._is_open:
            self._is_open = True
            self._send(OPEN)
        self._resume()

    def release(self, drain: FrameSink) -> None:
        """End a receiver regularly: the client then opens the next one."""
        if drain is self._drain:
            drain.send(HEARTBEAT)
            self._detach()

    def _tell_end(self, drain: FrameSink, end: bytes) -> None:
        last, self._before_end = self._before_end, b""
        if last:
            drain.send(array_of(last))
        if not last or drain.is_streaming:  # else the next receiver gets it
            drain.send(end)
            self._leave_node()  # the client has been notified
        drain.end()

    def _send(self, frame: bytes) -> None:
        drain = self._drain
        if drain is None:  # a write that was already in progress
            return
        if drain.is_gone():  # the client has closed it since the last beat
            self._on_lost(drain)
            return
        drain.send(frame)
        self._drained_bytes += self._size_of(frame)
        self._since_s = self._clock()
        if not drain.is_streaming or self._drained_bytes >= self._timing.response_max_bytes:
            self._detach()
        elif drain.buffered_bytes() > HIGH_WATER_BYTES:
            self.connection.pause()

    def _size_of(self, frame: bytes) -> int:
        """Return what a frame adds to its response, to be compared with `Timing.response_max_bytes`."""
        return len(frame)

    def _detach(self) -> None:
        drain, self._drain = self._drain, None
        self._since_s = self._clock()
        self.connection.pause()
        if drain is not None:
            self._unwritten.add(drain)
            drain.end()

    def _resume(self) -> None:
        if self._drain is None or self._unwritten:
            return
        if self._end is None:
            self.connection.resume()
        else:
            drain, self._drain = self._drain, None
            self._tell_end(drain, self._end)

    def _on_finished(self, drain: FrameSink) -> None:
        if drain in self._unwritten:
            self._unwritten.remove(drain)
            self._since_s = self._clock()
            self._resume()

    def _on_lost(self, drain: FrameSink) -> None:
        """End the session: frames that were sent to this receiver have not reached the client."""
        if drain is self._drain:
            self._drain = None
            drain.end()  # else the handler that writes the response would wait indefinitely
        elif drain not in self._unwritten:
            return
        self._unwritten.clear()
        self._before_end = b""
        if self._end is None:
            self.connection.close(1002, "Connection interrupted")
        else:
            self._resume()  # a receiver that waits gets the reason

    # -- messages from the client --------------------------------------------------------------------------------

    async def receive(self, messages: Sequence[str]) -> None:
        """Pass messages to the services, in order; waits while they are busy, and yields to other clients."""
        limits, metrics = self._node.limits, self._node.metrics
        async with self._reading:
            if not messages:
                self._count_nothing()
            turn_end_s = perf_counter() + TURN_S
            for message in messages:
                if perf_counter() >= turn_end_s:
                    await asyncio.sleep(0)
                    turn_end_s = perf_counter() + TURN_S
                await self._may_read.wait()
                if self.connection.is_closed:
                    return
                data = message.encode()
                if len(data) > limits.message_max_bytes:
                    self.connection.close(CloseCode.TOO_LARGE, f"Message larger than {limits.message_max_bytes} bytes")
                    return
                metrics.messages_received.labels(self.transport_name).inc()
                metrics.received_bytes.inc(len(data))
                self._take(data)

    def _take(self, data: bytes) -> None:
        """Process one message of the client."""
        self._registry.receive(self.connection, data)

    def _count_nothing(self) -> None:
        """Count a request without a message; too many close the session."""
        try:
            self._registry.check_frame(self.connection)
        except LimitExceeded as error:
            self.connection.close(CloseCode.LIMIT, str(error))

    # -- Wire ----------------------------------------------------------------------------------------------------

    def write(self, data: bytes) -> None:
        """Send messages framed by the dialect to the receiver."""
        self._send(array_of(data))

    def buffered_bytes(self) -> int:
        """Return the number of bytes queued in the receiver."""
        return 0 if self._drain is None else self._drain.buffered_bytes()

    def pause_reading(self) -> None:
        """Delay the client's requests."""
        self._may_read.clear()

    def resume_reading(self) -> None:
        """Process the client's requests again."""
        self._may_read.set()

    def close(self, code: int, reason: str) -> None:
        """Send the close frame to the receiver, or to the next one within the delay."""
        self._close_code, self._end = code, self.end_frame(code, reason)
        self._since_s = self._clock()
        self._may_read.set()
        if code == CloseCode.SLOW_CONSUMER:
            self._node.metrics.slow_consumers_closed.inc()
        has_held = self._drain is None or self._unwritten
        if has_held and code not in (CloseCode.PROTOCOL_ERROR, CloseCode.SLOW_CONSUMER):
            self._before_end = self.connection.take_held()
        if self._unwritten:
            return  # `_resume` tells the receiver, when it is known what the client has
        drain, self._drain = self._drain, None
        if drain is not None:
            drain.on_finished = None  # no frame follows
            drain.send(self._end)
            drain.end()
            self._loop.call_soon(self._leave_node)  # later: services must not be called from within their own calls

    def end_frame(self, code: int, reason: str) -> bytes:
        """Encode the end of the session; other protocols have other codes."""
        return end_frame(code, reason)

    # -- TimedConnection: called by the wheel --------------------------------------------------------------------

    def beat(self) -> None:
        """Check whether the client is still there, and send it a heartbeat when due."""
        now_s = self._clock()
        silent_s = now_s - self._since_s
        drain = self._drain
        if drain is not None:
            if drain.is_gone():
                self._on_lost(drain)
            elif self._unwritten and now_s - self._attached_s >= self._timing.unwritten_s:
                self._on_lost(next(iter(self._unwritten)))
            elif silent_s >= self._timing.heartbeat_s and drain.buffered_bytes() == 0:
                self._send(HEARTBEAT)
        elif silent_s >= self._patience_s:
            self.abort()

    @property
    def _patience_s(self) -> float:
        """How long the session waits for a next receiver: longer while the client still reads the last response."""
        is_read = bool(self._unwritten) and self._end is None
        return self._timing.writing_s if is_read else self._timing.disconnect_delay_s

    def abort(self) -> None:
        """End immediately. Idempotent."""
        if self._is_removed:
            return
        self._is_removed, self._before_end = True, b""
        self._may_read.set()
        self.connection.mark_closed()
        drain, self._drain = self._drain, None
        if drain is not None:
            drain.end()
        self._leave_node()
        self.on_removed()

    def _leave_node(self) -> None:
        self.has_left_node = True
        self._node.disconnect(self.connection, self._close_code)
