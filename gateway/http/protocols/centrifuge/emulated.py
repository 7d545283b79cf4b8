"""EmulatedConnection: one Centrifuge client without a WebSocket; the transport of its connection.

Rules:
- Commands of all requests are processed in one order, a few at a time: other clients must not wait. The
  queue is limited; a client that sends more is closed.
- The session that later requests present has a secret, so that no other client can send commands in its name.
"""

import asyncio
import base64
import hmac
import secrets
from collections import deque
from collections.abc import Callable
from typing import Any, Final

import structlog

from snorky.gateway.errors import CloseCode, ConfigurationError, InvalidMessage, LimitExceeded
from snorky.gateway.http.protocols.centrifuge.client import CentrifugeClient
from snorky.gateway.http.protocols.centrifuge.codes import Disconnect, disconnect_of
from snorky.gateway.http.protocols.centrifuge.commands import command_of
from snorky.gateway.http.protocols.centrifuge.forms import FORMS, Form
from snorky.gateway.http.protocols.centrifuge.rendering import STREAM_DIALECTS
from snorky.gateway.http.serving.response_stream import HIGH_WATER_BYTES, ResponseStream
from snorky.gateway.http.websocket.protocol import Endpoint
from snorky.gateway.http.websocket.timer_wheel import TimerWheel

__all__ = ["EmulatedConnection"]

_log = structlog.get_logger("snorky.centrifuge")

AT_ONCE: Final = 50  # commands of a frame, before other clients get a turn
FRAMES_MAX_BYTES: Final = 262_144  # of commands that a client has sent and that wait
_READING: Final = frozenset(("connect", "subscribe"))


class EmulatedConnection:
    """One client: the transport of its connection. kind: "sse", "json" or "protobuf". cut: aborts its connection."""

    transport_name = "centrifuge-http"

    def __init__(
        self,
        endpoint: Endpoint,
        wheel: TimerWheel,
        stream: ResponseStream,
        address: str,
        kind: str,
        *,
        cut: Callable[[], None],
        has_personal_channel: bool,
        ping_every_s: float,
    ) -> None:
        self.slot = 0  # of the wheel
        self.close_code: int = CloseCode.ABNORMAL
        self._endpoint = endpoint
        self._wheel = wheel
        self._stream = stream
        self._cut = cut
        self._form: Form = FORMS["protobuf" if kind == "protobuf" else "json"]
        self._ping_every_s = self._ping_in_s = ping_every_s
        self.connection = endpoint.node.new_connection(self, STREAM_DIALECTS[kind], remote_ip=address)
        self._secret = secrets.token_hex(16)
        self.session = f"{self.connection.id}~{_incarnation_of(endpoint)}~{self._secret}"
        self.client = self.connection.frontend = CentrifugeClient(
            endpoint,
            self.connection,
            self._form,
            has_personal_channel=has_personal_channel,
            wire=self,
            session=self.session,
        )
        stream.on_drained = self.connection.resume
        stream.on_lost = self.connection.mark_closed
        self._frames: deque[bytes] = deque()  # commands that are not processed yet
        self._bytes = 0
        self._worker: asyncio.Task[None] | None = None
        self._may_work = asyncio.Event()
        self._may_work.set()

    def take_commands(self, message: Any) -> bool:
        """See `Wire`. message: {"secret", "data" in base64}, from another node."""
        secret, data = message.get("secret"), message.get("data")
        return isinstance(secret, str) and isinstance(data, str) and self.receive(secret, base64.b64decode(data))

    def receive(self, secret: str, frame: bytes) -> bool:
        """Queue commands. Returns False: the secret is wrong."""
        if not hmac.compare_digest(secret.encode(), self._secret.encode()):
            return False
        self.queue(frame)
        return True

    def queue(self, frame: bytes, *, may_only_read: bool = False) -> None:
        """Queue the commands of a frame; close a client that sends more than it may. may_only_read: see `_work_off`."""
        self._endpoint.count_message(len(frame), self.transport_name)
        self._bytes += len(frame)
        if self._bytes > FRAMES_MAX_BYTES and self._frames:
            self._endpoint.node.metrics.limit_hits.labels("waiting_commands").inc()
            self.connection.close(CloseCode.LIMIT, "Too many messages")
            return
        self._frames.append(frame)
        if self._worker is None:
            self._worker = asyncio.get_running_loop().create_task(self._work(may_only_read=may_only_read))

    async def _work(self, *, may_only_read: bool) -> None:
        """Process queued frames, in small parts: other clients must not wait."""
        try:
            while self._frames and not self.connection.is_closed:
                frame = self._frames.popleft()
                await self._work_off(frame, may_only_read=may_only_read)
                self._bytes -= len(frame)
                may_only_read = False
            if not self.client.has_begun and not self.connection.is_closed:
                self.connection.close(Disconnect.BAD_REQUEST, "bad request")
        except Exception:  # the top of a task: else the client would wait without an end
            _log.exception("commands failed", connection=self.connection.id)
            self.connection.close(CloseCode.INTERNAL_ERROR, "Internal error")
        finally:
            self._worker = None

    async def _work_off(self, frame: bytes, *, may_only_read: bool) -> None:
        """Process the commands of a frame. may_only_read: they come from a URL, which any page can make a link to."""
        try:
            found = enumerate(self._form.read(frame), 1)
            count = 0
            for count, (value, size) in found:
                await self._may_work.wait()
                if count % AT_ONCE == 0:
                    await asyncio.sleep(0)
                if self.connection.is_closed:
                    return
                command = command_of(value)
                if command is None:  # a pong without a ping
                    self._endpoint.registry.check_frame(self.connection)
                elif may_only_read and command.method not in _READING:
                    raise InvalidMessage("A URL may only connect and subscribe")
                else:
                    self.client.process(command, size)
            if not count:
                self._endpoint.registry.check_frame(self.connection)
        except InvalidMessage as error:
            self._endpoint.node.metrics.client_errors.labels(error.code).inc()
            self.connection.close(Disconnect.BAD_REQUEST, "bad request")
        except LimitExceeded as error:
            self.connection.close(CloseCode.LIMIT, str(error))

    # -- Transport -----------------------------------------------------------------------------------------------

    def write(self, data: bytes) -> None:
        """Queue messages for the response."""
        self._stream.send(data)
        if self._stream.buffered_bytes() > HIGH_WATER_BYTES:
            self.connection.pause()

    def buffered_bytes(self) -> int:
        """Return the number of bytes queued in the response."""
        return self._stream.buffered_bytes()

    @property
    def is_full(self) -> bool:
        """See `Wire`."""
        return self._stream.buffered_bytes() > HIGH_WATER_BYTES

    def pause_reading(self) -> None:
        """Leave further commands in the queue."""
        self._may_work.clear()

    def resume_reading(self) -> None:
        """Process queued commands again."""
        self._may_work.set()

    def close(self, code: int, reason: str) -> None:
        """End the stream with a push."""
        self.close_code = code
        if code == CloseCode.SLOW_CONSUMER:
            self._endpoint.node.metrics.slow_consumers_closed.inc()
        end = {"push": {"disconnect": {"code": int(disconnect_of(code, reason)), "reason": reason}}}
        self._stream.send(self.connection.dialect.frame(self._form.encode(end)))
        self._stream.end()
        asyncio.get_running_loop().call_soon(self.leave_node)  # later: services must not be called in their own calls
        self._wheel.end_soon(self)

    def leave_node(self) -> None:
        """Remove the connection from the node. Idempotent."""
        self.client.stop()
        self._may_work.set()
        self._endpoint.node.disconnect(self.connection, self.close_code)

    # -- TimedConnection -----------------------------------------------------------------------------------------

    def beat(self) -> None:
        """End if the client has gone, or has sent no `connect`; ping when due."""
        if self._stream.is_gone():
            self.abort()
            return
        self._ping_in_s -= self._wheel.interval_s
        if self._ping_in_s <= 0 and self.client.has_answered:
            self._ping_in_s = self._ping_every_s
            self.connection.write(self.connection.dialect.frame(self._form.ping))

    def abort(self) -> None:
        """End immediately: the client has gone, or does not receive the end."""
        self.connection.mark_closed()
        self.leave_node()
        self._stream.lose()
        self._cut()


def _incarnation_of(endpoint: Endpoint) -> str:
    try:
        return endpoint.node.ownership.directory.incarnation
    except ConfigurationError:  # this node is alone
        return "0"
