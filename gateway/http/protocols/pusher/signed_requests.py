"""SignedRequests: admits requests of the HTTP API that the secret of an app has signed, and reads their bodies.

Rules:
- The signature is checked before the body is read; its query has the body's MD5. A refused body is not read.
- Signed are the method, the path and the query as they are decoded, so each signed text must mean one query only.
- A request is valid for VALID_S before and after its time. Within it, whoever has seen the request can repeat it: the
  protocol has no nonce, and libraries repeat requests themselves. TLS keeps others from seeing it.
- A wrong signature is answered later and later, as a wrong key of the backend is. A right one never waits.
"""

import asyncio
import hashlib
import hmac
import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Final

from aiohttp import web

from snorky.gateway.config.pusher import PusherApp
from snorky.gateway.http.backend.key_brake import Brake
from snorky.gateway.http.protocols.pusher.signatures import request_text, sign, signed_query
from snorky.gateway.http.serving.bodies import Bodies
from snorky.gateway.http.websocket.handler import WebSocketHandler
from snorky.gateway.http.websocket.handshake import HandshakeRefused

__all__ = ["VALID_S", "RequestRefused", "SignedRequest", "SignedRequests"]

VALID_S: Final = 600  # before and after its time, for a request


class RequestRefused(Exception):
    """A request is refused with an HTTP status."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status


@dataclass(frozen=True, slots=True)
class SignedRequest:
    """A request that an app's secret has signed. names: the parts of its path that vary. query: the signed one."""

    app: PusherApp
    names: Mapping[str, str]
    query: Mapping[str, str]


class SignedRequests:
    """Admits requests for the apps of a WebSocketHandler."""

    def __init__(self, websockets: WebSocketHandler) -> None:
        self._websockets = websockets
        self._apps = dict(websockets.public.pusher_apps or {})

    @cached_property
    def _brake(self) -> Brake:
        return Brake()

    @cached_property
    def _bodies(self) -> Bodies:
        endpoint = self._websockets.endpoint
        return Bodies(endpoint.node.metrics, lambda _address: None)  # it is a backend, which has signed the request

    async def admit(self, request: web.Request) -> SignedRequest:
        """Check app, signature and time of a request. Raises RequestRefused."""
        query = signed_query(request.query.items())
        app = self._app_of(request, query or {})
        if app is None:
            await self._delay(request, "unknown_app")
            raise RequestRefused(404, "There is no such app")
        if query is None or not _is_signed(request, app, query):
            await self._delay(request, "signature")
            raise RequestRefused(401, "Invalid signature: check key and secret, and that no proxy changes the URL")
        written = query.get("auth_timestamp", "")
        is_number = written.isascii() and written.isdecimal() and len(written) <= 15
        if not is_number or abs(int(written) - time.time()) > VALID_S:
            self._note(request, "timestamp")
            raise RequestRefused(401, f"auth_timestamp is not within {VALID_S} s of this node's clock")
        return SignedRequest(app, dict(request.match_info), query)

    async def body_of(self, request: web.Request, signed: SignedRequest) -> bytes:
        """Read the body of a signed request. Raises RequestRefused."""
        try:
            body = await self._bodies.read(request, "")
        except web.HTTPRequestEntityTooLarge:
            raise RequestRefused(413, "The request is too large") from None
        except web.HTTPRequestTimeout:
            raise RequestRefused(408, "The body did not arrive in time") from None
        except (web.RequestPayloadError, HandshakeRefused, ConnectionError):  # the last one: the sender has gone
            raise RequestRefused(400, "The body is broken") from None
        stated = signed.query.get("body_md5")
        found = hashlib.md5(body, usedforsecurity=False).hexdigest()  # the protocol demands it; the HMAC covers it
        if stated != found and (body or stated is not None):
            self._note(request, "body_md5")
            raise RequestRefused(401, "body_md5 is missing" if stated is None else "body_md5 is not that of the body")
        return body

    def _app_of(self, request: web.Request, query: Mapping[str, str]) -> PusherApp | None:
        app_id = request.match_info.get("app")
        if app_id is not None:
            return self._apps.get(app_id)
        return next((each for each in self._apps.values() if each.key == query.get("auth_key")), None)

    async def _delay(self, request: web.Request, reason: str) -> None:
        """Note a wrong signature; each further one of an address is answered later. Raises RequestRefused: too many."""
        self._note(request, reason)
        endpoint = self._websockets.endpoint
        wait_s = self._brake.wait_s(endpoint.admission.client_ip(request))
        if wait_s is None:
            endpoint.node.metrics.limit_hits.labels("wrong_keys").inc()
            raise RequestRefused(429, "Too many wrong signatures from this address")
        await asyncio.sleep(wait_s)

    def _note(self, request: web.Request, reason: str) -> None:
        endpoint = self._websockets.endpoint
        endpoint.node.auth.refusals.note("pusher", reason, address=endpoint.admission.client_ip(request))


def _is_signed(request: web.Request, app: PusherApp, query: Mapping[str, str]) -> bool:
    expected = sign(app, request_text(request.method, request.path, query)).encode()
    given = query.get("auth_signature", "").encode("utf-8", "surrogatepass")
    is_ours = query.get("auth_key") == app.key and query.get("auth_version", "1.0") == "1.0"
    return hmac.compare_digest(expected, given) and is_ours
