"""SockJSHandler: the HTTP routes of SockJS, for the same registry as the WebSocket route.

Rules:
- The page's origin is checked first, as for WebSockets: an Origin header must be allowed; a cross-site request of a
  browser without one is refused. Any page can request a script (jsonp): there the Referer must be allowed.
- Each response is written by its own handler, from a stream that a session fills, on this node or on another one.
- Any node can serve any session: see Sessions and Peers. A session accepts only its own client: see Binding.
- A request for an unknown session and one for another client's session get the same 404; their rate per address is
  limited.
- A body is read only for an existing session: the session is looked up before the body is read,
  and again after it, because reading takes a while.
"""

import re
import time
from collections.abc import Callable, Collection
from functools import cached_property
from typing import Any, Final
from urllib.parse import parse_qs

from aiohttp import web

from snorky.gateway.config.origins import Origins
from snorky.gateway.errors import ConnectionClosed, InvalidMessage, InvalidToken
from snorky.gateway.http.backend.key_brake import Brake
from snorky.gateway.http.serving.bodies import Bodies
from snorky.gateway.http.serving.page_answers import Respond, answer_page
from snorky.gateway.http.serving.page_check import check_navigation, check_page, check_stated, cors_headers
from snorky.gateway.http.serving.response_stream import (
    ResponseStream,
    is_gone,
    notice_dead_peer,
    until_written,
    write_stream,
)
from snorky.gateway.http.sockjs.binding import VARYING_QUERY, Who, who_asks
from snorky.gateway.http.sockjs.forwarding.owner import NOT_ADMITTED, Answer
from snorky.gateway.http.sockjs.forwarding.requester import Requester
from snorky.gateway.http.sockjs.frames import decode_messages
from snorky.gateway.http.sockjs.pages import IframePage, ancestors_of, greeting, info, long_cached
from snorky.gateway.http.sockjs.session import Session, Timing
from snorky.gateway.http.sockjs.session_store import MakeSession, SessionStore
from snorky.gateway.http.sockjs.transports import TRANSPORTS, Transport
from snorky.gateway.http.sockjs.websocket import SockJSWebSocket
from snorky.gateway.http.websocket.credentials import admit, session_of
from snorky.gateway.http.websocket.handler import WebSocketHandler
from snorky.gateway.http.websocket.handshake import HandshakeRefused

__all__ = ["SockJSHandler"]

_SESSION: Final = r"/{server:[^/.]+}/{session:[A-Za-z0-9_~-]{1,128}}"
_CALLBACK: Final = re.compile(r"[a-zA-Z0-9\-_.]{1,128}")
_XHR: Final = ("xhr", "xhr_streaming")
_UNKNOWN: Final[Answer] = (NOT_ADMITTED, "unknown")


class SockJSHandler:
    """Connects SockJS clients to the registry of a WebSocketHandler, by its rules.

        app.add_routes(SockJSHandler(handler).routes("/sockjs"))

    Also: app.on_shutdown.append(sockjs.end), app.on_cleanup.append(sockjs.stop).

    Protocols whose clients use these transports have sessions of another kind, in a handler of their own: `xhr_routes`.
    """

    kind = "sockjs"  # of the sessions: an id of one kind means nothing to the others
    varying_query: Collection[str] = VARYING_QUERY  # see `who_asks`

    def __init__(
        self,
        websockets: WebSocketHandler,
        *,
        timing: Timing | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._websockets = websockets
        self._timing = timing or Timing()
        self._clock = clock
        public = websockets.public
        self._allowed_origins = Origins(public.allowed_origins)
        self._iframe = IframePage(public.sockjs_client_url, public.allowed_origins)

    @cached_property
    def _peers(self) -> Requester:
        return Requester(self._websockets.endpoint.node, self._sessions.get, self._timing.beat_s, self.kind)

    @cached_property
    def _sessions(self) -> SessionStore:
        endpoint = self._websockets.endpoint
        # a lambda, because Sessions and Peers need each other
        return SessionStore(
            endpoint.node,
            endpoint.registry,
            endpoint.admission,
            self._timing,
            self._clock,
            lambda: self._peers.start(),
            self.kind,
        )

    @cached_property
    def _brake(self) -> Brake:
        return Brake()

    @cached_property
    def _bodies(self) -> Bodies:
        endpoint = self._websockets.endpoint
        return Bodies(endpoint.node.metrics, endpoint.admission.network_of)

    def routes(self, path: str) -> list[web.RouteDef]:
        """Make the routes for an aiohttp application. path: e.g. "/sockjs"."""
        session = path + _SESSION
        routes = [web.get(path + slash, self._greet) for slash in ("", "/")]
        routes += [
            self._route(web.get, path + "/info", self._info, allow_head=False),
            self._route(web.options, path + "/info", self._options),
            web.get(path + r"/iframe{version:[0-9-.a-z_]*}.html", self._serve_iframe),
            web.get(path + "/websocket", self._websockets.handle, allow_head=False),
            web.get(session + "/websocket", self._websocket, allow_head=False),
        ]
        for name in TRANSPORTS:
            if name in _XHR:
                continue
            receive = self._receiver(name, is_script=name == "jsonp", is_frame=name == "htmlfile")
            routes.append(self._route(web.get, f"{session}/{name}", receive, allow_head=False))
        routes.append(self._route(web.post, session + "/jsonp_send", self._jsonp_send))
        return routes + self.xhr_routes(path)

    def xhr_routes(self, path: str) -> list[web.RouteDef]:
        """Make the routes of the transports by XMLHttpRequest alone."""
        session = path + _SESSION
        answers = {name: self._receiver(name) for name in _XHR} | {"xhr_send": self._xhr_send}
        return [
            self._route(route, f"{session}/{name}", respond)
            for name, answer in answers.items()
            for route, respond in ((web.post, answer), (web.options, self._options))
        ]

    def _route(self, route: Callable[..., web.RouteDef], path: str, answer: Respond, **options: Any) -> web.RouteDef:
        async def guarded(request: web.Request) -> web.StreamResponse:
            return await self._guarded(request, answer)

        return route(path, guarded, **options)

    def session_id(self, request: web.Request) -> str:
        """Return the id of the session that a request is for."""
        return request.match_info["session"]

    def session_maker(self, request: web.Request) -> MakeSession:
        """Return what constructs the session, if this request opens it."""
        return Session

    async def end(self, _app: object = None) -> None:
        """End all sessions and receivers, because the node is about to stop."""
        self._sessions.close_all()
        self._peers.release_all()

    async def stop(self, _app: object = None) -> None:
        """Abort the remaining sessions and stop."""
        self._sessions.abort_all()
        await self._peers.stop()

    # -- pages ---------------------------------------------------------------------------------------------------

    async def _greet(self, _request: web.Request) -> web.StreamResponse:
        return greeting()

    async def _serve_iframe(self, request: web.Request) -> web.StreamResponse:
        return self._iframe.respond(request)

    async def _info(self, _request: web.Request) -> web.StreamResponse:
        if self._websockets.endpoint.node.is_draining:
            raise HandshakeRefused(503, "draining", "This node is going away: try another one")
        return info()

    async def _options(self, request: web.Request) -> web.StreamResponse:
        method = "GET" if request.path.endswith("/info") else "POST"
        headers = {
            "Access-Control-Allow-Methods": f"OPTIONS, {method}",
            "Access-Control-Allow-Headers": "Authorization, Content-Type",
        }
        return web.Response(status=204, headers={**headers, **long_cached()})

    async def _websocket(self, request: web.Request) -> web.StreamResponse:
        return await self._websockets.handle(request, SockJSWebSocket)

    # -- receivers -----------------------------------------------------------------------------------------------

    def _receiver(self, name: str, *, is_script: bool = False, is_frame: bool = False) -> Respond:
        kind = TRANSPORTS[name]

        async def receive(request: web.Request) -> web.StreamResponse:
            callback = ""
            check_navigation(request, may_be_framed=is_frame)
            if kind.needs_callback:
                callback = request.query.get("c") or request.query.get("callback") or ""
                if not _CALLBACK.fullmatch(callback):
                    text = 'invalid "callback" parameter' if callback else '"callback" parameter required'
                    return web.Response(status=500, text=text)
            check_stated(request, self._allowed_origins, is_for_browsers=is_script)
            return await self._receive(request, kind(callback, ancestors_of(self._allowed_origins)))

        return receive

    async def _receive(self, request: web.Request, transport: Transport) -> web.StreamResponse:
        endpoint, session_id = self._websockets.endpoint, self.session_id(request)
        ip = endpoint.admission.client_ip(request)
        stream = ResponseStream(is_streaming=transport.is_streaming, is_gone=lambda: is_gone(request))
        identify = self._websockets.asked(request)
        who = self._who(request, session_id, ip)
        found = await self._sessions.find_or_open(
            session_id,
            ip,
            lambda: admit(request.headers, endpoint.node, identify, address=ip),
            who,
            self.session_maker(request),
        )
        if is_gone(request):
            raise ConnectionClosed
        if isinstance(found, Session):
            verdict = found.binding.judge(who)
            if verdict == "unknown":
                verdict = found.binding.judge(await self._known(request, who, ip))
            if is_gone(request):
                raise ConnectionClosed
            if verdict != "admitted" or self._sessions.get(session_id) is not found:
                return self._turn_away(request, ip, verdict)
            found.attach(stream)
            return await self._respond(request, transport, stream)
        endpoint.admission.enter(ip)
        try:
            far = await self._peers.attach(found.node_id, session_id, stream, who)
            if far == "unknown":
                who = await self._known(request, who, ip)
                far = await self._peers.attach(found.node_id, session_id, stream, who)
            if far != "admitted":
                return self._turn_away(request, ip, far)
            return await self._respond(request, transport, stream)
        finally:
            endpoint.admission.leave(ip)

    async def _respond(self, request: web.Request, transport: Transport, stream: ResponseStream) -> web.StreamResponse:
        """Write the stream's frames until it ends."""
        headers = {**transport.headers, **cors_headers(request), "X-Content-Type-Options": "nosniff"}
        try:
            if not transport.is_streaming:
                pieces = []
                while frames := await stream.take():
                    pieces += frames
                    stream.wrote(sum(map(len, frames)))
                notice_dead_peer(request)
                response = web.Response(body=b"".join(map(transport.wrap, pieces)), headers=headers)
                await response.prepare(request)
                await response.write_eof()
                if stream.on_finished is not None:
                    await until_written(request)
                stream.finish()
                return response
            return await write_stream(
                request, stream, headers, transport.prelude(), lambda frame: (transport.wrap(frame),)
            )
        except ConnectionError:
            stream.lose()
            raise ConnectionClosed from None
        except BaseException:
            stream.lose()
            raise

    # -- messages from clients -----------------------------------------------------------------------------------

    async def _xhr_send(self, request: web.Request) -> web.StreamResponse:
        return await self._send(request, web.Response(status=204, content_type="text/plain"))

    async def _jsonp_send(self, request: web.Request) -> web.StreamResponse:
        return await self._send(request, web.Response(text="ok"), may_be_form=True)  # a form posted into an iframe

    async def _send(self, request: web.Request, done: web.Response, *, may_be_form: bool = False) -> web.StreamResponse:
        endpoint, session_id = self._websockets.endpoint, self.session_id(request)
        check_navigation(request, may_be_framed=may_be_form)
        check_stated(request, self._allowed_origins, is_for_browsers=False)
        ip = endpoint.admission.client_ip(request)
        who = self._who(request, session_id, ip)
        found = await self._sessions.find(session_id)
        if found is None:
            return self._turn_away(request, ip, None)
        if isinstance(found, Session):
            verdict = found.binding.judge(who)
            if verdict == "unknown":
                verdict = found.binding.judge(await self._known(request, who, ip))
            if verdict != "admitted":
                return self._turn_away(request, ip, verdict)
        body = await self._bodies.read(request, ip)
        try:
            if may_be_form and request.content_type == "application/x-www-form-urlencoded":
                body = _field_of(body)
            messages = decode_messages(body)
        except InvalidMessage as error:
            endpoint.node.metrics.client_errors.labels(error.code).inc()
            return web.Response(status=500, text=str(error))
        if isinstance(found, Session):
            session = self._sessions.get(session_id)
            if session is not found:  # it ended while the body was read; sessions of other nodes are checked there
                return _refused(404)
            await session.receive(messages)
            return done
        status, text = await self._peers.send(found.node_id, session_id, body, who)
        if (status, text) == _UNKNOWN:
            known = await self._known(request, who, ip)
            status, text = await self._peers.send(found.node_id, session_id, body, known)
        if status in (404, NOT_ADMITTED):
            return self._turn_away(request, ip, text if status == NOT_ADMITTED else None)
        return done if status == 204 else web.Response(status=status, text=text)

    # -- authentication of requests ------------------------------------------------------------------------------

    def _who(self, request: web.Request, session_id: str, ip: str) -> Who:
        """Read the sender of a request from its headers. Raises HandshakeRefused."""
        auth, has_hook = self._websockets.endpoint.node.auth, self._websockets.identify_hook is not None
        return who_asks(
            request,
            session_id,
            ip,
            takes_tokens=auth.takes_tokens,
            has_hook=has_hook,
            asks_backend=auth.asks_backend,
            varying_query=self.varying_query,
        )

    async def _known(self, request: web.Request, who: Who, ip: str) -> Who:
        """Authenticate the sender; limited and counted like a handshake. Raises HandshakeRefused."""
        endpoint = self._websockets.endpoint
        endpoint.admission.knock(ip)
        try:
            login = await session_of(request.headers, endpoint.node.auth, self._websockets.asked(request))
        except InvalidToken as error:
            endpoint.node.auth.refusals.note("token", error.reason, address=ip)
            raise HandshakeRefused(403, "token", "The token is not accepted: connect again with another one") from None
        if login is None:
            return who.known_as(None)
        endpoint.node.auth.leave(login)  # this login gets no connection
        return who.known_as(login.who.identity)

    def _turn_away(self, request: web.Request, ip: str, verdict: str | None) -> web.Response:
        """Refuse a request for an unknown session (None), or another client's. Raises HandshakeRefused: too many."""
        endpoint = self._websockets.endpoint
        reason = "unknown_session" if verdict in (None, "admitted") else f"{verdict}_differs"
        endpoint.node.auth.refusals.note(self.kind, reason, address=ip, origin=request.headers.get("Origin"))
        site = endpoint.admission.network_of(ip)
        if site is not None and self._brake.wait_s(site) is None:
            raise HandshakeRefused(429, "session_attempts", "Too many requests for sessions that are not yours")
        return _refused(404)

    def _note_refused(self, refused: HandshakeRefused, request: web.Request) -> None:
        endpoint = self._websockets.endpoint
        endpoint.node.metrics.handshakes_rejected.labels(refused.reason).inc()
        address, origin = endpoint.admission.client_ip(request), request.headers.get("Origin")
        endpoint.node.auth.refusals.note("handshake", refused.reason, address=address, origin=origin)

    def _refuse(self, request: web.Request, refused: HandshakeRefused) -> web.Response:
        self._note_refused(refused, request)
        headers = {"Retry-After": "5"} if refused.status in (429, 503) else {}
        response = web.Response(status=refused.status, text=f"{refused}\n", headers=headers)
        response.force_close()  # the body is not read
        return response

    async def _guarded(self, request: web.Request, answer: Respond) -> web.StreamResponse:
        async def checked(request: web.Request) -> web.StreamResponse:
            check_page(request, self._allowed_origins)
            return await answer(request)

        return await answer_page(request, checked, self._refuse)


def _field_of(body: bytes) -> bytes:
    """Extract the messages from a form. Raises InvalidMessage."""
    try:
        return parse_qs(body.decode(), max_num_fields=10).get("d", [""])[0].encode()
    except ValueError:
        raise InvalidMessage("Broken JSON encoding.") from None


def _refused(status: int) -> web.Response:
    """Make the response to a request whose body is not read."""
    response = web.Response(status=status)
    response.force_close()
    return response
