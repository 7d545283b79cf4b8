"""The two applications of a node: the public one for clients, the private one for its operator and backend."""

from collections.abc import Awaitable, Callable, Mapping
from typing import Final

from aiohttp import web

from snorky.gateway.config.settings import Private
from snorky.gateway.http.backend.door import refuse_pages
from snorky.gateway.http.backend.routes import BackendHandler
from snorky.gateway.http.demo.routes import demo_routes
from snorky.gateway.http.health import ops_routes
from snorky.gateway.http.protocols.centrifuge.api import CentrifugeAPI
from snorky.gateway.http.protocols.centrifuge.websocket import CentrifugeHandler
from snorky.gateway.http.protocols.pusher.websocket import PusherHandler
from snorky.gateway.http.protocols.pusher.xhr import PusherXHRHandler
from snorky.gateway.http.protocols.raw.websocket import RawHandler
from snorky.gateway.http.protocols.sse.handler import SSEHandler
from snorky.gateway.http.sockjs import SockJSHandler
from snorky.gateway.http.websocket.handler import SEEN_BY_PAGES, WebSocketHandler
from snorky.gateway.node import Node
from snorky.gateway.sdk.registry import ServiceRegistry

__all__ = ["private_app", "public_app"]

BACKEND_MAX_BYTES: Final = 1 << 20  # one request: a batch of messages

_PROTOCOLS: Final[Mapping[str, type[CentrifugeHandler] | type[PusherHandler] | type[RawHandler] | type[SSEHandler]]] = {
    "centrifuge": CentrifugeHandler,
    "pusher": PusherHandler,
    "raw": RawHandler,
    "sse": SSEHandler,
}

_HEADERS: Final = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Content-Security-Policy": "default-src 'self'; connect-src 'self' ws: wss:; frame-ancestors 'none'",
}


@web.middleware
async def _security_headers(
    request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
) -> web.StreamResponse:
    try:
        response = await handler(request)
    except web.HTTPException as error:
        error.headers.update(_HEADERS)
        if error.status == 404:  # a wrong URL
            error.headers.update(SEEN_BY_PAGES)
        raise
    if not response.prepared:
        for name, value in _HEADERS.items():
            response.headers.setdefault(name, value)  # some pages have their own policy
    return response


def public_app(
    handler: WebSocketHandler, sockjs: SockJSHandler | None = None, *, with_demo: bool = False
) -> web.Application:
    """Make the application for clients: `/ws`, `/sockjs`, other protocols, and optionally the demo page at `/`."""
    app = web.Application(middlewares=[_security_headers])
    sockjs = sockjs or SockJSHandler(handler)
    app.add_routes([handler.route("/ws"), *sockjs.routes("/sockjs")])
    for name in handler.public.protocols:
        app.add_routes(_PROTOCOLS[name](handler).routes())
    handlers = [sockjs]  # of sessions
    if "pusher" in handler.public.protocols:
        handlers.append(PusherXHRHandler(handler))
        app.add_routes(handlers[-1].routes("/pusher"))
    for each in handlers:
        app.on_shutdown.append(each.end)
        app.on_cleanup.append(each.stop)
    if with_demo:
        app.add_routes(demo_routes())
    return app


def private_app(node: Node, registry: ServiceRegistry, private: Private) -> web.Application:
    """Make the application for backend and operator: `/backend`, `/api`, `/healthz`, `/readyz`, `/metrics`."""
    guard = refuse_pages(private, node.auth.refusals)
    app = web.Application(client_max_size=BACKEND_MAX_BYTES, middlewares=[guard])
    backend = BackendHandler(registry, private=private)
    app.add_routes([backend.route("/backend"), *CentrifugeAPI(backend).routes(), *ops_routes(node)])
    return app
