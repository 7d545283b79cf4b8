"""EventStream: one client's stream of events; the transport and the `Frontend` of its connection.

Rules:
- The channels are subscribed before the response begins: a refusal has an HTTP status.
- From then on the stream carries first what the client has missed, then what is published, in order. Until the response
  begins, the connection queues it.
- A stream ends with the event `close`. EventSource then reconnects, with its last `id`.
"""

import asyncio
import random
from collections.abc import Mapping
from typing import Any, Final

from snorky.gateway.connection.connection import Connection
from snorky.gateway.errors import CloseCode
from snorky.gateway.http.protocols.sse.rendering import DIALECTS, Record, event, records
from snorky.gateway.http.protocols.sse.request import StreamRequest
from snorky.gateway.http.serving.response_stream import HIGH_WATER_BYTES, ResponseStream
from snorky.gateway.http.websocket.handshake import HandshakeRefused
from snorky.gateway.http.websocket.protocol import Endpoint
from snorky.gateway.protocol.codec import Envelope, encode_json
from snorky.gateway.protocol.publication import Position

__all__ = ["EventStream", "retry_line"]

SUBSCRIBE_TIMEOUT_S: Final = 10.0
HEARTBEAT: Final = b":\n\n"
# HTTP status by the code of the error that refuses a subscription
_STATUS: Final = {
    "invalid_channel": 400,
    "invalid_params": 400,
    "limit_exceeded": 429,
    "not_authenticated": 401,
    "rate_limited": 429,
    "unavailable": 503,
    "unknown_command": 404,
    "unknown_service": 404,
    "internal": 503,
}


def retry_line(seconds: float) -> bytes:
    """Tell EventSource how long to wait before it reconnects: `seconds`, varied so that not all come back together."""
    return b"retry: %d\n\n" % int(1000 * seconds * random.uniform(0.5, 1.5))  # noqa: S311 - no secret


class EventStream:
    """One client. stream: the frames of its response. close_code: why it ended."""

    transport_name = "sse"
    accepts_orders = False

    def __init__(self, endpoint: Endpoint, asked: StreamRequest, stream: ResponseStream, address: str) -> None:
        self.slot = 0  # of the wheel
        self.close_code: int = CloseCode.ABNORMAL
        self._endpoint = endpoint
        self._asked = asked
        self._stream = stream
        self._has_several = len(asked.channels) > 1
        self._names = {channel: encode_json(channel) for channel in asked.channels}
        self._positions = {self._names[channel]: position for channel, position in asked.since.items()}
        self._unanswered = len(asked.channels)
        self._refusal: HandshakeRefused | None = None
        self._settled: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        dialect, self._rendering = DIALECTS[self._has_several]
        self.connection: Connection = endpoint.node.new_connection(self, dialect, remote_ip=address)
        self.connection.frontend = self
        self.connection.pause()

    async def subscribe(self) -> None:
        """Subscribe the connection to all channels. Raises HandshakeRefused."""
        for number, channel in enumerate(self._asked.channels):
            since = self._asked.since.get(channel, True)
            params = {"channel": channel, "recover": since}
            envelope = Envelope(self._asked.service, {"command": "subscribe", "params": params, "callId": number})
            self._endpoint.registry.accept(self.connection, envelope, 0)
        try:
            async with asyncio.timeout(SUBSCRIBE_TIMEOUT_S):
                await self._settled
        except TimeoutError:
            raise HandshakeRefused(503, "subscribe", "The channels cannot be subscribed for the moment") from None
        if self._refusal is not None:
            raise self._refusal

    def begin(self) -> None:
        """Pass on what is queued; call it when the response begins."""
        self._stream.on_drained = self.connection.resume
        self._stream.on_lost = self._on_lost
        self.connection.resume()

    # -- Frontend ------------------------------------------------------------------------------------------------

    def translate(self, envelope: Mapping[str, Any]) -> bytes | None:
        """See `Frontend`."""
        message = envelope["message"]
        kind = message.get("type") if isinstance(message, dict) else None
        if kind == "error":
            self._refuse(message["code"], message["message"])
        elif kind == "response":
            return self._subscribed(self._asked.channels[message["callId"]], message["data"] or {})
        elif kind == "unsubscribed":
            asyncio.get_running_loop().call_soon(self._end_if_empty, message["code"], message["reason"])
            return self._rendering.notice(envelope)
        return None

    def _refuse(self, code: str, text: str) -> None:
        status = _STATUS.get(code, 403)
        self._refusal = HandshakeRefused(status, "subscribe", f"{code}: {text}")
        self._settle()

    def _subscribed(self, channel: str, data: Mapping[str, Any]) -> bytes:
        """Encode what a channel's reply contains: a gap, the messages that the client has missed, the position.

        The event `subscribed` has the position as its `id`, so that a client recovers also before its first message.
        """
        whole, events = self._rendering.whole, []
        position = data.get("position")
        place = {"channel": channel, "position": position}
        if channel in self._asked.since and not data.get("recovered"):
            events.append(whole(channel, position, event("gap", encode_json(place))))
        for each in data.get("messages", ()):
            if not each.get("tombstone"):
                message = each["message"]
                at = Position.parse(each["position"])
                events.append(self._rendering.publication(channel, encode_json(message), message, at))
        events.append(whole(channel, position, event("subscribed", encode_json(place))))
        self._unanswered -= 1
        if not self._unanswered:
            self._settle()
        return b"".join(events)

    def _settle(self) -> None:
        if not self._settled.done():
            self._settled.set_result(None)

    def _end_if_empty(self, code: str, reason: str) -> None:
        if not self.connection.channels:
            self.connection.close(CloseCode.OK, f"{code}: {reason}")

    # -- Transport -----------------------------------------------------------------------------------------------

    def write(self, data: bytes) -> None:
        """Send events, or records of a stream of several channels."""
        self._stream.send(b"".join(map(self._event, records(data))) if self._has_several else data)
        if self._stream.buffered_bytes() > HIGH_WATER_BYTES:
            self.connection.pause()

    def _event(self, record: Record) -> bytes:
        if not record.position:
            return record.event
        self._positions[record.channel] = record.position
        known = ",".join(self._positions.get(self._names[each], "-") for each in self._asked.channels)
        return b"id: %b\n%b" % (known.encode(), record.event)

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
        self._refuse("closed", reason)
        if code == CloseCode.SLOW_CONSUMER:
            self._endpoint.node.metrics.slow_consumers_closed.inc()
        self._stream.send(event("close", encode_json({"code": int(code), "reason": reason})))
        self._stream.end()

    def _on_lost(self) -> None:
        self.connection.mark_closed()

    # -- TimedConnection -----------------------------------------------------------------------------------------

    def beat(self) -> None:
        """Send a comment: proxies close connections that are silent."""
        if not self._stream.buffered_bytes():
            self._stream.send(HEARTBEAT)

    def abort(self) -> None:
        """End immediately."""
        self.connection.mark_closed()
        self._stream.lose()
