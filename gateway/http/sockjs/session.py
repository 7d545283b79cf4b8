"""Session: one SockJS client that comes by one HTTP request after another; the Wire of its connection.

Rules:
- One receiver at a time: a second one is told 2010 and ends; the first stays.
- Between two receivers what is written waits in the Connection, bounded in bytes like everybody's.
- A receiver that the client cut ends the session (1002): what was on its way is lost, and a session has no holes.
- A session that ended is kept for the delay of a disconnect, so that the next receiver hears why; and before that what
  was written for it, unless there would be a hole (1002) or it is too much (4008).
- Its connection leaves the node when the client was told, or when the delay is over.
"""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from time import perf_counter

from gateway.connection import Connection
from gateway.errors import CloseCode, LimitExceeded
from gateway.http.sockjs.binding import Binding
from gateway.http.sockjs.frames import HEARTBEAT, OPEN, SESSION_DIALECT, array_of, end_frame
from gateway.http.sockjs.outlet import HIGH_WATER_BYTES, Drain
from gateway.http.turns import TURN_S
from gateway.node import Node
from gateway.registry import ServiceRegistry

__all__ = ["Session", "Timing"]

_STILL_OPEN = end_frame(2010, "Another connection still open")


@dataclass(frozen=True, slots=True)
class Timing:
    """What the protocol leaves to the server; the defaults are the customary ones."""

    heartbeat_s: float = 25.0  # proxies cut what is silent for 30 s
    disconnect_delay_s: float = 5.0  # without a receiver
    response_max_bytes: int = 131_072  # of one streaming response: browsers keep all of it
    beat_s: float = 1.0  # how late a heartbeat, or the notice that a client has gone, may be


class Session:
    """One client. Its maker sets `on_removed`, told once when nothing of it is left. clock: monotonic seconds.

    binding: which requests are its client's. Whoever attaches a receiver or brings messages looks first.
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
    ) -> None:
        self.slot = 0  # on the wheel
        self.binding = binding
        self.on_removed: Callable[[], None] = lambda: None
        self._node = node
        self._registry = registry
        self._timing = timing
        self._clock = clock
        self._loop = asyncio.get_running_loop()
        self._drain: Drain | None = None
        self._drained_bytes = 0  # into the present receiver
        self._since_s = self._clock()  # of the last frame, or of the last receiver's end, or of the session's
        self._is_open = False
        self._is_removed = False
        self._end: bytes | None = None  # its last frame
        self._before_end = b""  # messages that were waiting for a receiver when it came
        self._close_code: int = CloseCode.ABNORMAL
        self._may_read = asyncio.Event()
        self._may_read.set()
        self._reading = asyncio.Lock()
        self.connection: Connection = node.new_connection(self, SESSION_DIALECT, remote_ip=remote_ip)
        self.connection.pause()  # nobody receives yet

    # -- receivers -----------------------------------------------------------------------------------------------

    def attach(self, drain: Drain) -> None:
        """Let a receiver have what there is, and what comes. It is ended by the session."""
        if self._end is not None:
            self._tell_end(drain, self._end)
            return
        if self._drain is not None:
            drain.send(_STILL_OPEN)
            drain.end()
            return
        self._drain, self._drained_bytes = drain, 0
        drain.on_drained = self._on_drained
        drain.on_lost = lambda: self._on_lost(drain)
        if not self._is_open:
            self._is_open = True
            self._send(OPEN)
        if self._drain is not None:
            self.connection.resume()

    def release(self, drain: Drain) -> None:
        """End a receiver in peace: the client comes back with the next one."""
        if drain is self._drain:
            drain.send(HEARTBEAT)
            self._detach()

    def _tell_end(self, drain: Drain, end: bytes) -> None:
        last, self._before_end = self._before_end, b""
        if last:
            drain.send(array_of(last))
        if not last or drain.is_streaming:  # else the next one hears it
            drain.send(end)
            self._leave_node()  # now it knows
        drain.end()

    def _send(self, frame: bytes) -> None:
        drain = self._drain
        if drain is None:  # a write that was under way
            return
        if drain.is_gone():  # it was cut since the last beat
            self._on_lost(drain)
            return
        drain.send(frame)
        self._drained_bytes += len(frame)
        self._since_s = self._clock()
        if not drain.is_streaming or self._drained_bytes >= self._timing.response_max_bytes:
            self._detach()
        elif drain.buffered_bytes() > HIGH_WATER_BYTES:
            self.connection.pause()

    def _detach(self) -> None:
        drain, self._drain = self._drain, None
        self._since_s = self._clock()
        self.connection.pause()
        if drain is not None:
            drain.end()

    def _on_drained(self) -> None:
        if self._drain is not None:
            self.connection.resume()

    def _on_lost(self, drain: Drain) -> None:
        """End: the client cut a receiver that had not ended."""
        if drain is self._drain:
            self._drain = None
            drain.end()  # nobody cancels who writes the response
            self.connection.close(1002, "Connection interrupted")

    # -- what the client sends -----------------------------------------------------------------------------------

    async def receive(self, messages: Sequence[str]) -> None:
        """Hand messages to the services, in order; waits while they are busy, and lets others have their turns."""
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
                self._registry.receive(self.connection, data)

    def _count_nothing(self) -> None:
        """Count a request that brings no message; too many end the session."""
        try:
            self._registry.check_frame(self.connection)
        except LimitExceeded as error:
            self.connection.close(CloseCode.LIMIT, str(error))

    # -- Wire ----------------------------------------------------------------------------------------------------

    def write(self, data: bytes) -> None:
        """Send messages, as SESSION_DIALECT framed them, to the receiver."""
        self._send(array_of(data))

    def buffered_bytes(self) -> int:
        """Bytes in the receiver."""
        return 0 if self._drain is None else self._drain.buffered_bytes()

    def pause_reading(self) -> None:
        """Let the client's requests wait for their answers."""
        self._may_read.clear()

    def resume_reading(self) -> None:
        """Answer them."""
        self._may_read.set()

    def close(self, code: int, reason: str) -> None:
        """Tell the client by its receiver, or by the next one within the delay."""
        self._close_code, self._end = code, end_frame(code, reason)
        self._since_s = self._clock()
        self._may_read.set()
        if code == CloseCode.SLOW_CONSUMER:
            self._node.metrics.slow_consumers_closed.inc()
        drain, self._drain = self._drain, None
        if drain is None and code not in (CloseCode.PROTOCOL_ERROR, CloseCode.SLOW_CONSUMER):
            self._before_end = self.connection.take_held()
        if drain is not None:
            drain.send(self._end)
            drain.end()
            self._loop.call_soon(self._leave_node)  # services are not told from within their own calls

    # -- Spoke: what the wheel does ------------------------------------------------------------------------------

    def beat(self) -> None:
        """Look whether the client is there, and show it that we are."""
        silent_s = self._clock() - self._since_s
        drain = self._drain
        if drain is not None:
            if drain.is_gone():
                self._on_lost(drain)
            elif silent_s >= self._timing.heartbeat_s and drain.buffered_bytes() == 0:
                self._send(HEARTBEAT)
        elif silent_s >= self._timing.disconnect_delay_s:
            self.abort()

    def abort(self) -> None:
        """End at once. Idempotent."""
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
        self._node.disconnect(self.connection, self._close_code)
