"""SSEHandler: the routes of event streams.

    GET /sse?channel=C        a stream
    POST /sse/ticket          a ticket for the URL of one stream, for pages that cannot send the header Authorization

Rules:
- Which pages may read a stream: as for SockJS, by the origin.
- A ticket replaces a token in the URL, which is kept in logs and browser histories: it is valid once, for 30 s.
- A refusal has an HTTP status, so a load balancer can try another node. EventSource gives up then: a page must make
  another one.
"""

import secrets
from collections.abc import Awaitable, Callable
from typing import Any, Final

from aiohttp import web

from snorky.gateway.auth.sessions import Session
from snorky.gateway.config.origins import Origins
from snorky.gateway.errors import BrokerUnavailable, InvalidToken
from snorky.gateway.http.protocols.sse.request import StreamRequest, read_request
from snorky.gateway.http.protocols.sse.stream import EventStream, retry_line
from snorky.gateway.http.serving.page_check import check_page, cors_headers
from snorky.gateway.http.serving.response_stream import ResponseStream, is_gone, write_stream
from snorky.gateway.http.websocket.credentials import admit, token_of
from snorky.gateway.http.websocket.entry import Entry, enter, refuse_draining
from snorky.gateway.http.websocket.handler import WebSocketHandler
from snorky.gateway.http.websocket.handshake import HandshakeRefused

__all__ = ["SSEHandler"]

TICKET_S: Final = 30.0
RETRY_S: Final = 1.0  # after the end of a stream
_HEADERS: Final = {
    "Content-Type": "text/event-stream; charset=utf-8",
    "Cache-Control": "no-store, no-transform",
    "X-Content-Type-Options": "nosniff",
}
_Respond = Callable[[web.Request], Awaitable[web.StreamResponse]]


class SSEHandler:
    """Serves event streams of the registry of a WebSocketHandler, by its rules."""

    def __init__(self, websockets: WebSocketHandler) -> None:
        self._websockets = websockets
        self._allowed_origins = Origins(websockets.public.allowed_origins)

    def routes(self, path: str) -> list[web.RouteDef]:
        """Make the routes for an aiohttp application. path: e.g. "/sse"."""
        return [
            web.get(path, self._guarded(self._serve), allow_head=False),
            web.post(f"{path}/ticket", self._guarded(self._make_ticket)),
            web.options(f"{path}/ticket", self._guarded(self._allow_ticket)),
        ]

    # -- streams -------------------------------------------------------------------------------------------------

    async def _serve(self, request: web.Request) -> web.StreamResponse:
        endpoint, asked = self._websockets.endpoint, read_request(request)
        node, address = endpoint.node, endpoint.admission.client_ip(request)
        refuse_draining(node)
        endpoint.admission.knock(address)
        token = await self._token_of_ticket(asked)
        identify = self._websockets.identify_hook
        entry = await enter(
            node, endpoint.admission, address, lambda: admit(request, node, identify, address=address, token=token)
        )
        try:
            if entry.refusal is not None:
                raise self._refuse_token(request, entry.refusal)
            refuse_draining(node)  # authentication may have taken a while
        except BaseException:
            entry.leave()
            raise
        return await self._stream(request, asked, entry)

    async def _stream(self, request: web.Request, asked: StreamRequest, entry: Entry) -> web.StreamResponse:
        """Make the connection of a client, and write its stream until it ends."""
        endpoint, node = self._websockets.endpoint, entry.node
        stream = ResponseStream(is_streaming=True, is_gone=lambda: is_gone(request))
        client = EventStream(endpoint, asked, stream, entry.address)
        connection = client.connection
        try:
            node.cluster_limits.counts.bind(connection, entry.units)
            if entry.session is not None:
                self._bind(request, entry.session, client)
            node.connect(connection, endpoint.registry)
            endpoint.wheel.add(client)
            await client.subscribe()
            client.begin()
            return await write_stream(request, stream, {**_HEADERS, **cors_headers(request)}, retry_line(RETRY_S))
        finally:
            stream.lose()
            endpoint.wheel.remove(client)
            connection.mark_closed()
            node.disconnect(connection, client.close_code)
            node.auth.forget(connection)  # needed if it was never connected to the node
            node.cluster_limits.counts.forget(connection)
            endpoint.admission.leave(entry.address)

    def _bind(self, request: web.Request, session: Session, client: EventStream) -> None:
        try:
            self._websockets.endpoint.node.auth.bind(session, client.connection)
        except InvalidToken as error:  # it was revoked just now
            raise self._refuse_token(request, error) from None

    # -- tickets -------------------------------------------------------------------------------------------------

    async def _make_ticket(self, request: web.Request) -> web.StreamResponse:
        endpoint = self._websockets.endpoint
        node = endpoint.node
        endpoint.admission.knock(endpoint.admission.client_ip(request))
        token = token_of(request.headers)
        if token is None or not node.auth.takes_tokens:
            raise HandshakeRefused(401, "token", "Send a token as Authorization: Bearer TOKEN")
        try:
            node.auth.leave(await node.auth.enter(token))
        except InvalidToken as error:
            raise self._refuse_token(request, error) from None
        ticket = await node.ownership.directory.put_token({"sse": token}, TICKET_S)
        return web.json_response({"ticket": ticket, "expiresInS": int(TICKET_S)}, headers={"Cache-Control": "no-store"})

    async def _token_of_ticket(self, asked: StreamRequest) -> str | None:
        if asked.ticket is None:
            return None
        node = self._websockets.endpoint.node
        found: Any = None
        if asked.ticket.isascii() and asked.ticket.isalnum():
            found = await node.ownership.directory.take_token(asked.ticket, secrets.token_hex())
        if not isinstance(found, dict) or not isinstance(found.get("sse"), str):
            raise HandshakeRefused(401, "ticket", "The ticket is used or has expired: request another one")
        return str(found["sse"])

    async def _allow_ticket(self, _request: web.Request) -> web.StreamResponse:
        headers = {"Access-Control-Allow-Methods": "POST", "Access-Control-Allow-Headers": "Authorization"}
        return web.Response(status=204, headers=headers)

    # -- refusals ------------------------------------------------------------------------------------------------

    def _refuse_token(self, request: web.Request, error: InvalidToken) -> HandshakeRefused:
        endpoint = self._websockets.endpoint
        endpoint.node.auth.refusals.note("token", error.reason, address=endpoint.admission.client_ip(request))
        return HandshakeRefused(401, "token", str(error))

    def _guarded(self, answer: _Respond) -> _Respond:
        async def respond(request: web.Request) -> web.StreamResponse:
            """Serve allowed origins; always return exactly one response."""
            response: web.StreamResponse
            try:
                check_page(request, self._allowed_origins)
                response = await answer(request)
            except HandshakeRefused as refused:
                response = self._websockets.refuse(request, refused)
                if refused.reason in ("origin", "duplicate_header"):
                    return response
            except BrokerUnavailable:
                response = web.Response(status=503, text="Temporarily unavailable\n", headers={"Retry-After": "5"})
            except ConnectionError:
                return web.Response()  # the client has gone
            if not response.prepared:
                response.headers.update(cors_headers(request))
            return response

        return respond
