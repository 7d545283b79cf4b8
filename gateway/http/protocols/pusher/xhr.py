"""PusherXHRHandler: Pusher's clients without a WebSocket; their transports `xhr_streaming` and `xhr_polling`.

    POST /pusher/app/KEY/NNN/SESSION/xhr_streaming?protocol=7    events, as SockJS frames, a line each
    POST /pusher/app/KEY/NNN/SESSION/xhr?protocol=7              likewise, one frame a response
    POST /pusher/app/KEY/NNN/SESSION/xhr_send                    an array of events of the client, each as a text

Requests, sessions and frames are those of SockJS, so any node accepts any request. What differs:

- The session's id is the app's key, NNN and SESSION: SESSION alone, 40 random bits, is short.
- A client aborts a streaming response when it has read more than RESPONSE_MAX_CHARS, and requests the next one. It
  takes an earlier end for a fault, and loses frames that it has not read. So the node ends the response with
  the frame that exceeds this length.
- An empty array is a ping of the client, or its answer to a heartbeat. The node answers with an empty array, because
  the client answers each heartbeat.
- A client ignores the code of a close frame that comes before the open frame, and tries again without an end. So there
  is always an open frame.
"""

import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Final

from aiohttp import web

from snorky.gateway.config.pusher import PusherApp
from snorky.gateway.errors import CloseCode
from snorky.gateway.http.protocols.pusher.client import PusherClient
from snorky.gateway.http.protocols.pusher.codes import ErrorCode, close_code_of
from snorky.gateway.http.protocols.pusher.rendering import session_dialect_of
from snorky.gateway.http.protocols.pusher.websocket import NO_APP, fault_of
from snorky.gateway.http.serving.response_stream import FrameSink
from snorky.gateway.http.sockjs.frames import OPEN, array_of, end_frame
from snorky.gateway.http.sockjs.handler import SockJSHandler
from snorky.gateway.http.sockjs.session import Session, Timing
from snorky.gateway.http.sockjs.session_store import MakeSession
from snorky.gateway.http.sockjs.transports import XhrStreaming
from snorky.gateway.http.websocket.handler import WebSocketHandler
from snorky.gateway.http.websocket.protocol import Endpoint

__all__ = ["RESPONSE_MAX_CHARS", "TIMING", "PusherSession", "PusherXHRHandler"]

RESPONSE_MAX_CHARS: Final = 262_144  # of pusher-js, in characters of JavaScript; its first line counts
TIMING: Final = Timing(response_max_bytes=RESPONSE_MAX_CHARS + 1 - len(XhrStreaming().prelude()))


class PusherXHRHandler(SockJSHandler):
    """Connects Pusher's clients without a WebSocket to the registry of a WebSocketHandler, by its rules."""

    kind = "pusher"
    varying_query = frozenset(("protocol", "client", "version", "flash", "t", "n"))  # a sending request has fewer

    def __init__(
        self,
        websockets: WebSocketHandler,
        *,
        timing: Timing | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        super().__init__(websockets, timing=timing or TIMING, clock=clock)
        self._apps = {app.key: app for app in (websockets.public.pusher_apps or {}).values()}

    def routes(self, path: str) -> list[web.RouteDef]:
        """Make the routes for an aiohttp application; without apps there are none. path: e.g. "/pusher"."""
        return self.xhr_routes(path + "/app/{key}") if self._apps else []

    def session_id(self, request: web.Request) -> str:
        """Return the id of the session that a request is for."""
        return "/".join(request.match_info[each] for each in ("key", "server", "session"))

    def session_maker(self, request: web.Request) -> MakeSession:
        """Return what constructs the session, if this request opens it."""
        app = self._apps.get(request.match_info["key"])
        return partial(PusherSession, endpoint=self._websockets.endpoint, app=app, fault=fault_of(request, app))


class PusherSession(Session):
    """One client over successive requests. app: None = there is no such app. fault: why it is closed at once."""

    transport_name = "pusher-xhr"

    def __init__(
        self, *of_session: Any, endpoint: Endpoint, app: PusherApp | None, fault: tuple[ErrorCode, str] | None
    ) -> None:
        """of_session: the arguments of Session."""
        super().__init__(*of_session, dialect=session_dialect_of(NO_APP.service if app is None else app.service))
        self._fault: ErrorCode | None = None
        self._client = PusherClient(endpoint, self.connection, app or NO_APP)
        self.connection.frontend = self._client
        if fault is not None:
            self._fault, text = fault
            self.connection.close(CloseCode.POLICY, text)

    def attach(self, drain: FrameSink) -> None:
        """Write queued and future events to this receiver; to the first one, also the client's id."""
        if not self._is_open:
            self.connection.write(self.connection.dialect.frame(self._client.established()))
        super().attach(drain)

    def end_frame(self, code: int, reason: str) -> bytes:
        """Encode the end of the session for clients of this protocol: after a gap they come back at once."""
        if code == CloseCode.PROTOCOL_ERROR:
            code = CloseCode.RECONNECT
        return end_frame(close_code_of(code) if self._fault is None else self._fault, reason)

    def _tell_end(self, drain: FrameSink, end: bytes) -> None:
        if not self._is_open:
            self._is_open = True
            drain.send(OPEN)
        super()._tell_end(drain, end)

    def _size_of(self, frame: bytes) -> int:
        return 1 + (len(frame) if frame.isascii() else len(frame.decode()))  # astral characters are escaped in frames

    def _take(self, data: bytes) -> None:
        self._client.process(data)

    async def receive(self, messages: Sequence[str]) -> None:
        """Process events of the client, in order; none: it asks whether the session is alive."""
        await super().receive(messages)
        if not messages and self._drain is not None and self._drain.buffered_bytes() == 0:
            self._send(array_of(b""))

    def _leave_node(self) -> None:
        self._client.stop()
        super()._leave_node()
