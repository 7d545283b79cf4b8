"""The backend's door: one request envelope in by HTTP POST, one response envelope out; or an array of them.

Status: 401 wrong or missing key, 429 too many of those, 403 a browser where there is no key, 400 not JSON or no
envelope, 404 unknown service, 408 the body did not come in time, 413 too large, 504 no answer in time; an error of a
command is 200 with an `error` message. In a batch the status is 200 and each element stands for itself.
"""

import asyncio
from functools import cached_property
from typing import Any, Final

import structlog
from aiohttp import web

from gateway.codec import MAX_VALUES, Encoding, Envelope, decode_json, encode_json, envelope_of
from gateway.errors import InvalidEnvelope, InvalidInput, InvalidMessage, SnorkyError, UnknownService
from gateway.frames import TEXT, Dialect
from gateway.http.brake import Brake
from gateway.node import node_of
from gateway.registry import ServiceRegistry, call_id_of, error_message
from gateway.settings import ApiKey, Private

__all__ = ["BackendHandler"]

BODY_TIMEOUT_S: Final = 10.0  # 1 MiB at 1 Mbit/s
REPLY_TIMEOUT_S: Final = 10.0  # a publish gives up after 5 s
BATCH_MAX: Final = 1000  # envelopes of one request

_BARE: Final = Dialect("json", Encoding.JSON, TEXT, lambda message: message)  # nothing around a message
_log = structlog.get_logger("snorky.backend")


class _Reply:
    """The wire of one request: what is written to it first is the reply."""

    transport_name = "backend"

    def __init__(self) -> None:
        self.message: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()

    def write(self, data: bytes) -> None:
        if not self.message.done():
            self.message.set_result(data)

    def buffered_bytes(self) -> int:
        return 0

    def pause_reading(self) -> None:
        """Nothing more comes anyway."""

    def resume_reading(self) -> None:
        """Nothing more comes anyway."""

    def close(self, code: int, reason: str) -> None:
        """Answer with the reason: a service that closes a backend request refuses it."""
        self.write(encode_json({"service": "gateway", "message": error_message(SnorkyError(reason))}))


class BackendHandler:
    """Connects a backend to a private registry, request by request.

    api_key: None = anybody who reaches the port. private: the keys of settings, instead.
    """

    def __init__(
        self, registry: ServiceRegistry, api_key: ApiKey | None = None, *, private: Private | None = None
    ) -> None:
        self._registry = registry
        self._private = private or Private(api_key=api_key)

    @cached_property
    def _brake(self) -> Brake:
        return Brake()

    def route(self, path: str) -> web.RouteDef:
        """Make the route for an aiohttp application."""
        return web.post(path, self.handle)

    async def handle(self, request: web.Request) -> web.Response:
        """Answer one request."""
        key_name: str | None = "none"
        if self._private.has_key:
            key_name = self._private.key_name(request.headers.get("X-Backend-Key", ""))
            if key_name is None:
                return await self._refuse_key(request)
        elif "Origin" in request.headers:
            # any page that somebody on this machine looks at can post to loopback, with no question asked before
            self._note(request, "origin")
            return _error(403, SnorkyError("Browsers need a key: set [private] api_key"), "forbidden")
        node_of(self._registry).metrics.backend_requests.labels(key_name).inc()
        try:
            async with asyncio.timeout(BODY_TIMEOUT_S):
                body = await request.read()
        except TimeoutError:
            return _error(408, SnorkyError("The request took too long"), "timeout")
        except web.HTTPRequestEntityTooLarge:
            return _error(413, SnorkyError("The request is too large"), "too_large")
        except web.RequestPayloadError:
            return _error(400, SnorkyError("The request's body is broken"), "invalid_message")
        try:
            value: Any = decode_json(body)
            if isinstance(value, list):
                return await self._batch(value)
            return _json(200, await self._one(envelope_of(value)))
        except InvalidInput as error:
            service = error.service if isinstance(error, InvalidEnvelope) else None
            return _error(400, error, service=service)
        except UnknownService as error:
            return _error(404, error, service=error.service, call_id=call_id_of(value["message"]))
        except TimeoutError:
            return _error(504, SnorkyError("No reply"), "no_reply")

    async def _refuse_key(self, request: web.Request) -> web.Response:
        """Answer who has no right key, the later the more often that happens from their address."""
        self._note(request, "wrong_key" if "X-Backend-Key" in request.headers else "no_key")
        wait_s = self._brake.wait_s(request.remote or "")
        if wait_s is None:
            node_of(self._registry).metrics.limited.labels("wrong_keys").inc()
            response = _error(429, SnorkyError("Too many wrong keys from this address"), "rate_limited")
            response.headers["Retry-After"] = "5"
        else:
            await asyncio.sleep(wait_s)
            response = _error(401, SnorkyError("Wrong or missing X-Backend-Key"), "unauthorized")
        response.force_close()  # nobody reads the body
        return response

    def _note(self, request: web.Request, reason: str) -> None:
        refusals = node_of(self._registry).auth.refusals
        refusals.note("backend", reason, address=request.remote, origin=request.headers.get("Origin"))

    async def _batch(self, values: list[Any]) -> web.Response:
        if len(values) > BATCH_MAX:
            raise InvalidMessage(f"A batch has at most {BATCH_MAX} envelopes")
        # started in order, so that publications keep theirs; answered side by side
        replies = await asyncio.gather(*(self._element(value) for value in values))
        return _json(200, b"[" + b",".join(replies) + b"]")

    async def _element(self, value: Any) -> bytes:
        try:
            return await self._one(envelope_of(value))
        except UnknownService as error:
            return _envelope(error, service=error.service, call_id=call_id_of(value["message"]))
        except InvalidInput as error:
            return _envelope(error, service=error.service if isinstance(error, InvalidEnvelope) else None)
        except TimeoutError:
            return _envelope(SnorkyError("No reply"), "no_reply")

    async def _one(self, envelope: Envelope) -> bytes:
        """Dispatch one envelope; returns the encoded reply. Raises UnknownService, TimeoutError."""
        reply = _Reply()
        node = node_of(self._registry)
        connection = node.new_connection(reply, _BARE)
        node.metrics.messages_received.labels("backend").inc()
        try:
            async with asyncio.timeout(REPLY_TIMEOUT_S):
                pending = self._registry.dispatch(connection, envelope)
                if pending is not None:
                    await pending
                return await reply.message
        except (UnknownService, TimeoutError):
            raise
        except SnorkyError as error:
            return _envelope(error, service=envelope.service, call_id=call_id_of(envelope.message))
        except Exception:  # the top of this request: told as such, logged once
            _log.exception("service failed", service=envelope.service)
            internal = SnorkyError("Internal error")
            return _envelope(internal, service=envelope.service, call_id=call_id_of(envelope.message))


def _envelope(error: SnorkyError, code: str | None = None, *, service: str | None = None, call_id: Any = None) -> bytes:
    message = error_message(error, call_id)
    if code is not None:
        message["code"] = code
    answer = {"service": service or "gateway", "message": message}
    return encode_json(answer, max_values=2 * MAX_VALUES)  # the id of a call may be all that a message may hold


def _json(status: int, body: bytes) -> web.Response:
    return web.Response(status=status, body=body, content_type="application/json")


def _error(
    status: int, error: SnorkyError, code: str | None = None, *, service: str | None = None, call_id: Any = None
) -> web.Response:
    return _json(status, _envelope(error, code, service=service, call_id=call_id))
