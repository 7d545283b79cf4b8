"""EventStream: one client's stream of events; the transport and the `Frontend` of its connection.

Rules:
- The channels are subscribed one after another. The response begins with the first that is subscribed: if none is, the
  request gets an HTTP status. A channel that is refused later gets the event `unsubscribed`. If it cannot be subscribed
  at present, the stream ends, because EventSource then reconnects.
- The stream carries first the messages that the client has missed, then the later ones, in order. Before the next
  channel, the client must receive most of its queue. So one queue does not limit all recoveries together.
- A stream ends with the event `close`. Its connection leaves the node at once, whether its client reads or not.
"""

import asyncio
import random
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final

import structlog

from snorky.gateway.connection.connection import Connection
from snorky.gateway.errors import CloseCode, ConnectionClosed
from snorky.gateway.http.protocols.sse.rendering import DIALECTS, event, records
from snorky.gateway.http.protocols.sse.request import StreamRequest
from snorky.gateway.http.serving.response_stream import HIGH_WATER_BYTES, ResponseStream
from snorky.gateway.http.websocket.handshake import HandshakeRefused
from snorky.gateway.http.websocket.protocol import Endpoint
from snorky.gateway.http.websocket.timer_wheel import TimerWheel
from snorky.gateway.protocol.codec import Envelope, Json, encode_json
from snorky.gateway.protocol.publication import Position

__all__ = ["EventStream", "retry_line"]

SUBSCRIBE_TIMEOUT_S: Final = 10.0
RETRY_LATER_S: Final = 5.0  # after a channel could not be subscribed
_TEMPORARY: Final = frozenset(("closed", "connection_closed", "internal", "rate_limited", "unavailable"))
# HTTP status by the code of the error that refuses a subscription; 403 for others
_STATUS: Final = {
    "connection_closed": 503,
    "internal": 503,
    "invalid_channel": 400,
    "invalid_params": 400,
    "limit_exceeded": 429,
    "not_authenticated": 401,
    "rate_limited": 429,
    "unavailable": 503,
    "unknown_command": 404,
    "unknown_service": 404,
}
# and by the close code, if the connection ends before the response begins; 503 for others
_STATUS_OF_END: Final[Mapping[int, int]] = {
    CloseCode.BAD_TOKEN: 401,
    CloseCode.REVOKED: 401,
    CloseCode.AUTHENTICATION_TIMEOUT: 401,
    CloseCode.DISCONNECTED: 403,
    CloseCode.LIMIT: 429,
    CloseCode.TOO_MUCH_BAD_INPUT: 429,
}

_log = structlog.get_logger("snorky.sse")


def retry_line(seconds: float) -> bytes:
    """Tell EventSource how long to wait before it reconnects: `seconds`, varied so that not all come back together."""
    return b"retry: %d\n\n" % int(1000 * seconds * random.uniform(0.5, 1.5))  # noqa: S311 - no secret


class EventStream:
    """One client. stream: the frames of its response. close_code: why it ended.

    wheel: visits it each second. cut: aborts the client's connection. heartbeat_s: seconds between comments.
    """

    transport_name = "sse"
    authenticates = False  # see `Frontend`

    def __init__(
        self,
        endpoint: Endpoint,
        wheel: TimerWheel,
        asked: StreamRequest,
        stream: ResponseStream,
        address: str,
        *,
        cut: Callable[[], None],
        heartbeat_s: float,
    ) -> None:
        self.slot = 0  # of the wheel
        self.close_code: int = CloseCode.ABNORMAL
        self._endpoint = endpoint
        self._wheel = wheel
        self._asked = asked
        self._stream = stream
        self._cut = cut
        self._heartbeat_s = self._quiet_s = heartbeat_s
        self._has_several = len(asked.channels) > 1
        self._positions = {encode_json(each): asked.since.get(each, "") for each in asked.channels}
        self._answers: list[asyncio.Future[HandshakeRefused | None]] = [
            asyncio.get_running_loop().create_future() for _ in asked.channels
        ]  # by the channel's number: its refusal, None = it is subscribed
        self._has_begun = False
        self._has_written = asyncio.Event()
        dialect, self._rendering = DIALECTS[self._has_several]
        self.connection: Connection = endpoint.node.new_connection(self, dialect, remote_ip=address)
        self.connection.frontend = self
        self.connection.pause()

    # -- subscribing ---------------------------------------------------------------------------------------------

    async def subscribe_first(self) -> int:
        """Subscribe the connection until one channel is subscribed; returns its number.

        Raises HandshakeRefused; ConnectionClosed: the client has gone.
        """
        refusals: list[HandshakeRefused] = []
        for number in range(len(self._asked.channels)):
            try:
                refusal = await self._subscribe(number)
            except TimeoutError:
                raise HandshakeRefused(503, "subscribe", "The channel cannot be subscribed for the moment") from None
            if self._stream.is_gone():
                raise ConnectionClosed
            if self.connection.is_closed:
                raise refusal or HandshakeRefused(503, "subscribe", "closed: The connection has been closed")
            if refusal is None:
                return number
            refusals.append(refusal)
        raise next(filter(_is_temporary, refusals), refusals[0])

    async def subscribe_rest(self, first: int) -> None:
        """Subscribe the connection to the channels after the first one; the response has begun."""
        for number in range(first):
            self._report(number)
        for number in range(first + 1, len(self._asked.channels)):
            while self.connection.pending_bytes > self.connection.outbox_max_bytes // 4:
                self._has_written.clear()
                await self._has_written.wait()
            if self.connection.is_closed:
                return
            try:
                await self._subscribe(number)
            except TimeoutError:
                self._end_for_now("A channel cannot be subscribed for the moment")
            if self.connection.is_closed:
                return
            self._report(number)
        self._end_if_empty("unsubscribed", "No channel is subscribed")

    def on_rest_done(self, task: "asyncio.Task[None]") -> None:
        """End the stream if `subscribe_rest` failed: an error of ours."""
        if not task.cancelled() and (error := task.exception()) is not None:
            _log.error("event stream failed", exc_info=error)
            self.connection.close(CloseCode.INTERNAL_ERROR, "Internal error")

    async def _subscribe(self, number: int) -> HandshakeRefused | None:
        channel = self._asked.channels[number]
        params = {"channel": channel, "recover": self._asked.since.get(channel, True)}
        envelope = Envelope(self._asked.service, {"command": "subscribe", "params": params, "callId": number})
        self._endpoint.registry.accept(self.connection, envelope, 0)
        async with asyncio.timeout(SUBSCRIBE_TIMEOUT_S):
            return await asyncio.shield(self._answers[number])

    def _report(self, number: int) -> None:
        """Notify the client of a refused channel, or end the stream if it may be accepted later."""
        refusal = self._answers[number].result()
        code, _, reason = str(refusal).partition(": ")
        if refusal is None or code == "not_subscribed":  # ended meanwhile: the client has been notified
            return
        if _is_temporary(refusal):
            self._end_for_now(str(refusal))
            return
        message = {"type": "unsubscribed", "channel": self._asked.channels[number], "code": code, "reason": reason}
        self.connection.write_reply(self._rendering.notice({"message": message}) or b"")

    def _end_for_now(self, reason: str) -> None:
        self._stream.send(self._rendering.whole(None, None, retry_line(RETRY_LATER_S)))
        self.connection.close(CloseCode.RECONNECT, reason)

    def begin(self) -> None:
        """Pass on the queued events; call it when the response begins."""
        self._has_begun = True
        self._stream.on_drained = self.connection.resume
        self._stream.on_written = lambda _size: self._has_written.set()
        self._stream.on_lost = self.connection.mark_closed
        self.connection.resume()

    # -- Frontend ------------------------------------------------------------------------------------------------

    def accepts_order(self, channel: Json) -> bool:
        """See `Frontend`: the channels of a stream are those in its URL."""
        return False

    def recovers_from(self, channel: Json) -> None:
        """See `Frontend`."""

    def take(self, envelope: Mapping[str, Any]) -> None:
        """See `Frontend`: there is nothing of the kind."""

    def translate(self, envelope: Mapping[str, Any]) -> bytes | None:
        """See `Frontend`. A reply may be translated a second time, shorter, if it has no room in the queue."""
        message = envelope["message"]
        kind = message.get("type") if isinstance(message, dict) else None
        if kind == "error" and isinstance(message["callId"], int):
            text = f"{message['code']}: {message['message']}"
            self._answer(message["callId"], HandshakeRefused(_STATUS.get(message["code"], 403), "subscribe", text))
        elif kind == "response":
            self._answer(message["callId"], None)
            data = message["data"]
            return self._subscribed(self._asked.channels[message["callId"]], data if isinstance(data, dict) else {})
        elif kind == "unsubscribed":
            asyncio.get_running_loop().call_soon(self._end_if_empty, message["code"], message["reason"])
            return self._rendering.notice(envelope)
        return None

    def _answer(self, number: int, refusal: HandshakeRefused | None) -> None:
        if not self._answers[number].done():
            self._answers[number].set_result(refusal)

    def _refuse_all(self, refusal: HandshakeRefused) -> None:
        for number in range(len(self._answers)):
            self._answer(number, refusal)

    def _subscribed(self, channel: str, data: Mapping[str, Any]) -> bytes:
        """Encode the content of a channel's reply: a gap, missed messages, the position.

        The event `subscribed` has the position as its `id`, so that a client recovers also before its first message.
        """
        whole, events = self._rendering.whole, []
        position = data.get("position")
        place = encode_json({"channel": channel, "position": position})
        if position is None:
            self._positions[encode_json(channel)] = ""
        if channel in self._asked.since and not data.get("recovered"):
            events.append(whole(channel, position, event("gap", place)))
        encode = self._rendering.encoder(channel)
        for each in data.get("messages", ()):
            if not each.get("tombstone"):
                events.append(encode(each["message"], Position.parse(each["position"]), b""))
        events.append(whole(channel, position, event("subscribed", place)))
        return b"".join(events)

    def _end_if_empty(self, code: str, reason: str) -> None:
        if not self.connection.channels and all(each.done() for each in self._answers):
            self.connection.close(CloseCode.OK, f"{code}: {reason}")

    # -- Transport -----------------------------------------------------------------------------------------------

    def write(self, data: bytes) -> None:
        """Queue events, or records of a stream of several channels, for the response."""
        self._stream.send(data)
        if self._stream.buffered_bytes() > HIGH_WATER_BYTES:
            self.connection.pause()

    def pieces(self, data: bytes) -> Iterator[bytes]:
        """Encode queued bytes as parts of the response: with the `id` that differs by client."""
        if not self._has_several:
            yield data
            return
        found: list[bytes] = []
        size = 0
        for record in records(data):
            if record.position:
                self._positions[record.channel] = record.position
                known = ",".join(each or "-" for each in self._positions.values())
                found.append(b"id: %b\n" % known.encode())
            found.append(record.event)
            size += len(record.event) + len(found[0])
            if size > HIGH_WATER_BYTES:
                yield b"".join(found)
                found, size = [], 0
        yield b"".join(found)

    def buffered_bytes(self) -> int:
        """Return the number of bytes queued in the response."""
        return self._stream.buffered_bytes()

    def pause_reading(self) -> None:
        """Do nothing: the client sends nothing."""

    def resume_reading(self) -> None:
        """Do nothing: the client sends nothing."""

    def close(self, code: int, reason: str) -> None:
        """End the stream; before it has begun, refuse the request."""
        self.close_code = code
        self._refuse_all(HandshakeRefused(_STATUS_OF_END.get(code, 503), "subscribe", f"closed: {reason}"))
        if code == CloseCode.SLOW_CONSUMER:
            self._endpoint.node.metrics.slow_consumers_closed.inc()
        if self._has_begun:
            end = event("close", encode_json({"code": int(code), "reason": reason}))
            self._stream.send(self._rendering.whole(None, None, end))
        self._stream.end()
        asyncio.get_running_loop().call_soon(self.leave_node)  # later: services must not be called in their own calls
        self._wheel.end_soon(self)

    def leave_node(self) -> None:
        """Remove the connection from the node. Idempotent."""
        self._endpoint.node.disconnect(self.connection, self.close_code)

    # -- TimedConnection -----------------------------------------------------------------------------------------

    def beat(self) -> None:
        """End if the client has gone; send a comment when due, because proxies close connections that are silent."""
        if self._stream.is_gone():
            self.abort()
            return
        self._quiet_s -= self._wheel.interval_s
        if self._quiet_s <= 0 and self._has_begun:
            self._quiet_s = self._heartbeat_s
            if not self._stream.buffered_bytes():
                self._stream.send(self._rendering.whole(None, None, b":\n\n"))

    def abort(self) -> None:
        """End immediately: the client has gone, or does not receive the end."""
        self.connection.mark_closed()
        self._refuse_all(HandshakeRefused(503, "subscribe", "closed: The client has gone"))
        self.leave_node()
        self._stream.lose()
        self._cut()


def _is_temporary(refusal: HandshakeRefused) -> bool:
    """Return True if a channel may be subscribed soon. Its text begins with the code of the error."""
    return str(refusal).partition(":")[0] in _TEMPORARY
