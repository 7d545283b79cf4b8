"""BackendDoor: who may post to `/backend`, and how a body comes in; the same for one node and for several workers.

Rules:
- Who asks is looked at first, then the body is read: within BODY_TIMEOUT_S, at most as large as the application
  allows, unpacked where it came packed. A refused request's body is not read: the connection is closed.
- Without a key no web page may ask. A browser sends pages' requests to loopback without asking anybody; it tells so
  by Origin or Sec-Fetch-Site, and a page that had its own name lead to loopback (DNS rebinding) by the Host header:
  a name with a dot. No attacker owns a single word (`gateway`, the name of a container), and an address as Host was
  written by somebody who knows where the port is.
"""

import asyncio
import ipaddress
from collections.abc import Awaitable, Callable
from functools import cached_property
from typing import Any, Final
from urllib.parse import urlsplit

from aiohttp import web

from gateway.codec import MAX_VALUES, encode_json
from gateway.errors import SnorkyError
from gateway.http.brake import Brake
from gateway.metrics import Metrics
from gateway.refusals import Refusals
from gateway.registry import error_message
from gateway.settings import Private, is_loopback

__all__ = ["BackendDoor", "error_envelope", "error_response", "refuse_pages", "trace_of_page"]

BODY_TIMEOUT_S: Final = 10.0  # 1 MiB at 1 Mbit/s


class BackendDoor:
    """Checks requests and reads their bodies. metrics, refusals: looked up when they are needed."""

    def __init__(self, private: Private, *, metrics: Callable[[], Metrics], refusals: Callable[[], Refusals]) -> None:
        self._private = private
        self._metrics = metrics
        self._refusals = refusals

    @cached_property
    def _brake(self) -> Brake:
        return Brake()

    async def admit(
        self, request: web.Request, answer: Callable[[bytes, str], Awaitable[web.Response]]
    ) -> web.Response:
        """Refuse a request, or have it answered. answer: takes the body and the name of the key."""
        key_name = "none"
        if self._private.has_key:
            found = self._private.key_name(request.headers.get("X-Backend-Key", ""))
            if found is None:
                return await self._refuse_key(request)
            key_name = found
        elif trace := trace_of_page(request):
            self._note(request, trace)
            return refusal_of_page(trace)
        try:
            async with asyncio.timeout(BODY_TIMEOUT_S):
                body = await request.read()
        except TimeoutError:
            return error_response(408, SnorkyError("The request took too long"), "timeout")
        except web.HTTPRequestEntityTooLarge:
            return error_response(413, SnorkyError("The request is too large"), "too_large")
        except web.RequestPayloadError:
            return error_response(400, SnorkyError("The request's body is broken"), "invalid_message")
        return await answer(body, key_name)

    async def _refuse_key(self, request: web.Request) -> web.Response:
        """Answer who has no right key, the later the more often that happens from their address."""
        self._note(request, "wrong_key" if "X-Backend-Key" in request.headers else "no_key")
        wait_s = self._brake.wait_s(request.remote or "")
        if wait_s is None:
            self._metrics().limited.labels("wrong_keys").inc()
            response = error_response(429, SnorkyError("Too many wrong keys from this address"), "rate_limited")
            response.headers["Retry-After"] = "5"
        else:
            await asyncio.sleep(wait_s)
            response = error_response(401, SnorkyError("Wrong or missing X-Backend-Key"), "unauthorized")
        response.force_close()  # nobody reads the body
        return response

    def _note(self, request: web.Request, reason: str) -> None:
        self._refusals().note("backend", reason, address=request.remote, origin=request.headers.get("Origin"))


def trace_of_page(request: web.Request) -> str:
    """Tell what shows that a web page makes this request: "origin", "fetch_site" or "host"; "" = nothing."""
    if "Origin" in request.headers:
        return "origin"
    if request.headers.get("Sec-Fetch-Site", "none") != "none":  # none: the user typed the URL
        return "fetch_site"
    hosts = request.headers.getall("Host", ())
    return "" if all(map(_is_local, hosts)) and len(hosts) < 2 else "host"


def refusal_of_page(trace: str) -> web.Response:
    """Make the answer to a page where there is no key."""
    if trace == "host":
        advice = "ask for localhost or for an address, or set [private] api_key"
        response = error_response(403, SnorkyError(f"This name is not served without a key: {advice}"), "forbidden")
    else:
        response = error_response(403, SnorkyError("Browsers need a key: set [private] api_key"), "forbidden")
    response.force_close()  # nobody reads the body
    return response


def refuse_pages(private: Private, refusals: Refusals) -> Any:
    """Make the middleware of a private port: without a key, pages get no health and no metrics either.

    Any Host is served there: load balancers and Prometheus ask by the names of services.
    """

    @web.middleware
    async def guard(
        request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
    ) -> web.StreamResponse:
        trace = "" if private.has_key or request.path == "/backend" else trace_of_page(request)
        if trace in ("", "host"):
            return await handler(request)
        refusals.note("private", trace, address=request.remote, origin=request.headers.get("Origin"))
        return refusal_of_page(trace)

    return guard


def error_envelope(
    error: SnorkyError, code: str | None = None, *, service: str | None = None, call_id: Any = None
) -> bytes:
    """Encode an error as a backend gets it. code: instead of the error's own."""
    message = error_message(error, call_id)
    if code is not None:
        message["code"] = code
    answer = {"service": service or "gateway", "message": message}
    return encode_json(answer, max_values=2 * MAX_VALUES)  # the id of a call may be all that a message may hold


def error_response(
    status: int, error: SnorkyError, code: str | None = None, *, service: str | None = None, call_id: Any = None
) -> web.Response:
    """Make the response of an error."""
    body = error_envelope(error, code, service=service, call_id=call_id)
    return web.Response(status=status, body=body, content_type="application/json")


def _is_local(host: str) -> bool:
    """Tell whether a Host header has a name that no attacker can own: loopback's, a single word, or an address."""
    try:
        name = urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return False
    if is_loopback(name) or (name and "." not in name and ":" not in name):
        return True
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True
