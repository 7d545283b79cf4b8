"""Pusher's HTTP API, `/apps/ID/...`, for the libraries of backends. On the public port: each request is signed.

Status: 200 and an object, `{}` if there is nothing to say; else a line of text. 400 malformed, 401 signature, time or
MD5 of the body, 404 unknown app, 408 the body did not arrive in time, 413 too large, 429 too many wrong signatures,
503 Redis does not answer or the node is busy: a retry may help, although events may have been published.
"""

import asyncio
from collections.abc import Awaitable, Callable
from functools import cached_property
from typing import Any, Final

import structlog
from aiohttp import web

from snorky.gateway.errors import BrokerUnavailable, LimitExceeded, SnorkyError
from snorky.gateway.http.protocols.pusher import api_methods as methods
from snorky.gateway.http.protocols.pusher.api_methods import Call, Method
from snorky.gateway.http.protocols.pusher.signed_requests import RequestRefused, SignedRequest, SignedRequests
from snorky.gateway.http.protocols.pusher.surveys import LIST_MAX, Surveys
from snorky.gateway.http.websocket.handler import WebSocketHandler
from snorky.gateway.protocol.codec import encode_json

__all__ = ["PusherAPI"]

TIMEOUT_S: Final = 20.0
_OUTCOMES: Final = {400: "malformed", 401: "refused", 408: "timeout", 413: "too_large", 503: "unavailable"}
_UNREAD: Final = frozenset({401, 404, 408, 413, 429})  # after these, the connection is closed: there may be more body

_log = structlog.get_logger("snorky.pusher")


class PusherAPI:
    """Answers requests for the apps of a WebSocketHandler, by the services of its node."""

    def __init__(self, websockets: WebSocketHandler) -> None:
        self._websockets = websockets
        self._requests = SignedRequests(websockets)

    def routes(self) -> list[web.RouteDef]:
        """Make the routes for an aiohttp application."""
        app, terminate = "/apps/{app}", "/users/{user:.+}/terminate_connections"
        return [
            web.post(f"{app}/events", self._answering(methods.post_event)),
            web.post(f"{app}/batch_events", self._answering(methods.post_batch)),
            web.get(f"{app}/channels", self._answering(methods.get_channels), allow_head=False),
            web.get(f"{app}/channels/{{channel}}", self._answering(methods.get_channel), allow_head=False),
            web.get(f"{app}/channels/{{channel}}/users", self._answering(methods.get_users), allow_head=False),
            web.post(app + terminate, self._answering(methods.terminate)),
            web.post(terminate, self._answering(methods.terminate)),  # a library names no app here
        ]

    @cached_property
    def _surveys(self) -> Surveys:
        return Surveys(lambda: self._websockets.endpoint.node)

    def _answering(self, method: Method) -> Callable[[web.Request], Awaitable[web.Response]]:
        async def respond(request: web.Request) -> web.Response:
            try:
                signed = await self._requests.admit(request)
            except RequestRefused as refused:
                return _refusal(refused.status, str(refused))
            response = await self._respond(request, signed, method)
            outcome = "ok" if response.status == 200 else _OUTCOMES.get(response.status, "internal_error")
            self._websockets.endpoint.node.metrics.pusher_requests.labels(signed.app.id, outcome).inc()
            return response

        return respond

    async def _respond(self, request: web.Request, signed: SignedRequest, method: Method) -> web.Response:
        try:
            body = await self._requests.body_of(request, signed)
            call = Call(self._websockets.endpoint.node, self._surveys, signed, body)
            async with asyncio.timeout(TIMEOUT_S):
                found = await method(call)
            return _answer(found)
        except RequestRefused as refused:
            return _refusal(refused.status, str(refused))
        except (BrokerUnavailable, TimeoutError):
            return _refusal(503, "Temporarily unavailable: try again")
        except SnorkyError as error:
            return _refusal(_status_of(error), str(error))
        except Exception:  # the top of this request: answer it, and log it once
            _log.exception("request failed", method=request.method, app=signed.app.id)
            return _refusal(500, "Internal error")


def _answer(found: dict[str, Any]) -> web.Response:
    return web.Response(body=encode_json(found, max_values=10 * LIST_MAX), content_type="application/json")


def _status_of(error: SnorkyError) -> int:
    if error.code == "too_large":
        return 413
    return 503 if isinstance(error, LimitExceeded) and error.retry_after_ms is not None else 400


def _refusal(status: int, text: str) -> web.Response:
    response = web.Response(status=status, text=f"{text}\n")
    if status in (429, 503):
        response.headers["Retry-After"] = "1"
    if status in _UNREAD:
        response.force_close()
    return response
