"""BackendDoor: checks who may post to `/backend`, and reads the body; shared by a single node and a supervisor.

Rules:
- The sender is checked before the body is read: within BODY_TIMEOUT_S, at most as large as the application
  allows, decompressed if necessary. The body of a refused request is not read: the connection is closed.
- Without a key, requests of web pages are refused. A browser lets any page send requests to loopback; Origin or
  Sec-Fetch-Site shows that a page is the sender. If a page's own name resolves to loopback (DNS rebinding), the Host
  header shows it: a name with a dot. An attacker cannot register a single word (`gateway`, the name of a container),
  and an address as Host was written by a client that knows where the port is.
"""

import asyncio
import ipaddress
from collections.abc import Awaitable, Callable
from functools import cached_property
from typing import Any, Final
from urllib.parse import urlsplit

from aiohttp import web

from snorky.gateway.config.settings import Private, is_loopback
from snorky.gateway.connection.refusals import Refusals
from snorky.gateway.errors import SnorkyError
from snorky.gateway.http.backend.key_brake import Brake
from snorky.gateway.metrics import Metrics
from snorky.gateway.protocol.codec import MAX_VALUES, encode_json
from snorky.gateway.sdk.registry import error_message

__all__ = ["BackendDoor", "error_envelope", "error_response", "refuse_pages", "trace_of_page"]

BODY_TIMEOUT_S: Final = 10.0  # 1 MiB at 1 Mbit/s


class BackendDoor:
    """Checks requests and reads their bodies. metrics, refusals: called when needed."""

    def __init__(self, private: Private, *, metrics: Callable[[], Metrics], refusals: Callable[[], Refusals]) -> None:
        self._private = private
        self._metrics = metrics
        self._refusals = refusals

    @cached_property
    def _brake(self) -> Brake:
        return Brake()

    async def admit(
        self, request: web.Request, answer: Callable[[bytes, str], Awaitable[web.Response]], *, key: str | None = None
    ) -> web.Response:
        """Refuse a request, or respond with `answer`, which receives the body and the name of the key.

        key: that the sender presents; None = the one in the header X-Backend-Key.
        """
        presented = request.headers.get("X-Backend-Key", "") if key is None else key
        key_name = self._private.key_name(presented)
        if key_name is None:
            return await self._refuse_key(request, "wrong_key" if presented else "no_key")
        if not self._private.has_key and (trace := trace_of_page(request)):
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

    async def _refuse_key(self, request: web.Request, reason: str) -> web.Response:
        """Respond to a wrong or missing key; each further failure from an address is answered later."""
        self._note(request, reason)
        wait_s = self._brake.wait_s(request.remote or "")
        if wait_s is None:
            self._metrics().limit_hits.labels("wrong_keys").inc()
            response = error_response(429, SnorkyError("Too many wrong keys from this address"), "rate_limited")
            response.headers["Retry-After"] = "5"
        else:
            await asyncio.sleep(wait_s)
            response = error_response(401, SnorkyError("Wrong or missing X-Backend-Key"), "unauthorized")
        response.force_close()  # the body is not read
        return response

    def _note(self, request: web.Request, reason: str) -> None:
        self._refusals().note("backend", reason, address=request.remote, origin=request.headers.get("Origin"))


def trace_of_page(request: web.Request) -> str:
    """Return which header shows that a web page sent this request: "origin", "fetch_site" or "host"; "" = none."""
    if "Origin" in request.headers:
        return "origin"
    if request.headers.get("Sec-Fetch-Site", "none") != "none":  # none: the user typed the URL
        return "fetch_site"
    hosts = request.headers.getall("Host", ())
    return "" if all(map(_is_local, hosts)) and len(hosts) < 2 else "host"


def refusal_of_page(trace: str) -> web.Response:
    """Make the response to a web page if no key is configured."""
    if trace == "host":
        advice = "use localhost or an address, or set [private] api_key"
        response = error_response(403, SnorkyError(f"This name is not served without a key: {advice}"), "forbidden")
    else:
        response = error_response(403, SnorkyError("Browsers need a key: set [private] api_key"), "forbidden")
    response.force_close()  # the body is not read
    return response


def refuse_pages(private: Private, refusals: Refusals) -> Any:
    """Make the middleware of a private port: without a key, health and metrics are refused to web pages too.

    There, every Host is accepted: load balancers and Prometheus use the names of services.
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
    """Encode an error for a backend. code: replaces the error's own."""
    message = error_message(error, call_id)
    if code is not None:
        message["code"] = code
    answer = {"service": service or "gateway", "message": message}
    return encode_json(answer, max_values=2 * MAX_VALUES)  # a call's id alone may have MAX_VALUES values


def error_response(
    status: int, error: SnorkyError, code: str | None = None, *, service: str | None = None, call_id: Any = None
) -> web.Response:
    """Make the response of an error."""
    body = error_envelope(error, code, service=service, call_id=call_id)
    return web.Response(status=status, body=body, content_type="application/json")


def _is_local(host: str) -> bool:
    """Return True if a Host header has a name that attackers cannot own: loopback, a single word, or an address."""
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
