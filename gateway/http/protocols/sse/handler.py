"""SSEHandler: the routes of event streams.

    GET /sse?channel=C        a stream
    POST /sse/ticket          a ticket for the URL of one stream, for pages that cannot send the header Authorization

Rules:
- Which pages may read a stream: as for SockJS, by the origin.
- A ticket replaces a token in the URL, which is kept in logs and browser histories: it is valid once, for 30 s.
- A refusal has an HTTP status. EventSource reconnects after the end of a stream, but not after an error. So a temporary
  refusal is a stream that ends at once, except where a load balancer can try another node: it needs the status.
- HTTP connections of streams are not used again: the next request may reach another node.
"""

import asyncio
import secrets
from functools import cached_property
from typing import Any, Final

from aiohttp import web

from snorky.gateway.auth.sessions import Session
from snorky.gateway.config.origins import Origins
from snorky.gateway.contracts.directory import Directory
from snorky.gateway.errors import BrokerUnavailable, ConfigurationError, InvalidToken
from snorky.gateway.http.protocols.sse.rendering import event
from snorky.gateway.http.protocols.sse.request import StreamRequest, read_request
from snorky.gateway.http.protocols.sse.stream import EventStream, retry_line
from snorky.gateway.http.serving.page_answers import Respond, answer_page
from snorky.gateway.http.serving.page_check import check_page, cors_headers
from snorky.gateway.http.serving.response_stream import ResponseStream, is_gone, write_stream
from snorky.gateway.http.websocket.credentials import admit, token_of
from snorky.gateway.http.websocket.entry import Entry, enter, refuse_draining
from snorky.gateway.http.websocket.handler import WebSocketHandler
from snorky.gateway.http.websocket.handshake import HandshakeRefused
from snorky.gateway.http.websocket.timer_wheel import TimerWheel
from snorky.gateway.protocol.codec import encode_json

__all__ = ["SSEHandler"]

TICKET_S: Final = 30.0
RETRY_S: Final = 1.0  # after the end of a stream
RETRY_REFUSED_S: Final = 5.0  # after a temporary refusal
BEAT_S: Final = 1.0  # maximum delay of noticing that a client has gone
_HEADERS: Final = {
    "Content-Type": "text/event-stream; charset=utf-8",
    "Cache-Control": "no-store, no-transform",
    "X-Content-Type-Options": "nosniff",
}


class SSEHandler:
    """Serves event streams of the registry of a WebSocketHandler, by its rules."""

    def __init__(self, websockets: WebSocketHandler) -> None:
        self._websockets = websockets
        self._allowed_origins = Origins(websockets.public.allowed_origins)

    def routes(self, path: str = "/sse") -> list[web.RouteDef]:
        """Make the routes for an aiohttp application."""
        return [
            web.get(path, self._guarded(self._serve), allow_head=False),
            web.post(f"{path}/ticket", self._guarded(self._make_ticket)),
            web.options(f"{path}/ticket", self._guarded(self._allow_ticket)),
        ]

    # -- streams -------------------------------------------------------------------------------------------------

    @cached_property
    def _wheel(self) -> TimerWheel:
        return TimerWheel(BEAT_S)

    async def _serve(self, request: web.Request) -> web.StreamResponse:
        endpoint = self._websockets.endpoint
        node, address = endpoint.node, endpoint.admission.client_ip(request)
        refuse_draining(node)
        endpoint.admission.knock(address)
        asked = read_request(request)
        token = await self._token_of_ticket(asked)
        identify = self._websockets.asked(request)
        entry = await enter(
            node,
            endpoint.admission,
            address,
            lambda: admit(request.headers, node, identify, address=address, token=token),
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
        client = EventStream(
            endpoint,
            self._wheel,
            asked,
            stream,
            entry.address,
            cut=lambda: _cut(request),
            heartbeat_s=self._websockets.public.ping_interval_s,
        )
        connection, rest = client.connection, None
        try:
            node.cluster_limits.counts.bind(connection, entry.units)
            if entry.session is not None:
                self._bind(request, entry.session, client)
            node.connect(connection, endpoint.registry)
            self._wheel.add(client)
            first = await client.subscribe_first()
            client.begin()
            rest = asyncio.get_running_loop().create_task(client.subscribe_rest(first))
            rest.add_done_callback(client.on_rest_done)
            prelude, headers = retry_line(RETRY_S), {**_HEADERS, **cors_headers(request)}
            return await write_stream(request, stream, headers, prelude, client.pieces, keeps_alive=False)
        finally:
            if rest is not None:
                rest.cancel()
            stream.lose()
            self._wheel.remove(client)
            connection.mark_closed()
            client.leave_node()
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
        ticket = await self._directory().put_token({"sse": token}, TICKET_S)
        return web.json_response({"ticket": ticket, "expiresInS": int(TICKET_S)}, headers={"Cache-Control": "no-store"})

    async def _token_of_ticket(self, asked: StreamRequest) -> str | None:
        if asked.ticket is None:
            return None
        found: Any = None
        if asked.ticket.isascii() and asked.ticket.isalnum():
            try:
                found = await self._directory().take_token(asked.ticket, secrets.token_hex())
            except BrokerUnavailable:
                raise HandshakeRefused(503, "ticket", "The ticket cannot be read for the moment") from None
        if not isinstance(found, dict) or not isinstance(found.get("sse"), str):
            raise HandshakeRefused(401, "ticket", "The ticket is used or has expired: request another one")
        return str(found["sse"])

    def _directory(self) -> Directory:
        try:
            return self._websockets.endpoint.node.ownership.directory
        except ConfigurationError:
            raise HandshakeRefused(503, "ticket", "This node cannot store tickets") from None

    async def _allow_ticket(self, _request: web.Request) -> web.StreamResponse:
        headers = {"Access-Control-Allow-Methods": "POST", "Access-Control-Allow-Headers": "Authorization"}
        return web.Response(status=204, headers=headers)

    # -- refusals ------------------------------------------------------------------------------------------------

    def _refuse_token(self, request: web.Request, error: InvalidToken) -> HandshakeRefused:
        endpoint = self._websockets.endpoint
        endpoint.node.auth.refusals.note("token", error.reason, address=endpoint.admission.client_ip(request))
        return HandshakeRefused(401, "token", str(error))

    def _is_temporary(self, request: web.Request, refused: HandshakeRefused) -> bool:
        """Return True if EventSource shall try again; a load balancer that sees a 503 tries another node itself."""
        is_direct = not self._websockets.endpoint.admission.is_trusted(request.remote or "")
        is_event_source = "text/event-stream" in request.headers.get("Accept", "")
        return is_event_source and (refused.status == 429 or (refused.status == 503 and is_direct))

    def _refuse(self, request: web.Request, refused: HandshakeRefused) -> web.Response:
        response = self._websockets.refuse(request, refused)
        if self._is_temporary(request, refused):
            end = event("close", encode_json({"code": refused.status, "reason": str(refused)}))
            response = web.Response(body=retry_line(RETRY_REFUSED_S) + end, headers=_HEADERS)
            response.force_close()
        return response

    def _guarded(self, answer: Respond) -> Respond:
        async def checked(request: web.Request) -> web.StreamResponse:
            check_page(request, self._allowed_origins)
            return await answer(request)

        async def respond(request: web.Request) -> web.StreamResponse:
            return await answer_page(request, checked, self._refuse)

        return respond


def _cut(request: web.Request) -> None:
    """Abort the client's connection: what is queued for it is dropped."""
    if request.transport is not None:
        request.transport.abort()
