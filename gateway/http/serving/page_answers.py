"""The one response to a request of a page: what it asks for, or why it is refused, readable by allowed pages."""

from collections.abc import Awaitable, Callable

from aiohttp import web

from snorky.gateway.errors import BrokerUnavailable, ConnectionClosed
from snorky.gateway.http.serving.page_check import cors_headers
from snorky.gateway.http.websocket.handshake import HandshakeRefused

__all__ = ["Respond", "answer_page"]

Respond = Callable[[web.Request], Awaitable[web.StreamResponse]]


async def answer_page(
    request: web.Request, answer: Respond, refuse: Callable[[web.Request, HandshakeRefused], web.Response]
) -> web.StreamResponse:
    """Return the response of `answer`, which checks the page and may raise; or that of `refuse`."""
    response: web.StreamResponse
    try:
        response = await answer(request)
    except HandshakeRefused as refused:
        response = refuse(request, refused)
        if refused.reason in ("origin", "duplicate_header"):  # this page may not read it
            return response
    except BrokerUnavailable:
        response = web.Response(status=503, text="Temporarily unavailable\n", headers={"Retry-After": "5"})
    except (ConnectionClosed, ConnectionError):
        return web.Response()  # the client has gone
    if not response.prepared:
        response.headers.update(cors_headers(request))
    return response
