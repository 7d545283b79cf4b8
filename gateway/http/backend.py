"""The backend's door: one request envelope in by HTTP POST, one response envelope out; or an array of them.

Status: 401 wrong or missing key, 429 too many of those, 403 a web page where there is no key, 400 not JSON or no
envelope, 404 unknown service, 408 the body did not come in time, 413 too large, 504 no answer in time; an error of a
command is 200 with an `error` message. In a batch the status is 200 and each element stands for itself.
"""

import asyncio
from typing import Any, Final

import structlog
from aiohttp import web

from gateway.codec import Encoding, Envelope, decode_json, encode_json, envelope_of
from gateway.errors import InvalidEnvelope, InvalidInput, InvalidMessage, SnorkyError, UnknownService
from gateway.frames import TEXT, Dialect
from gateway.http.backend_door import BackendDoor, error_envelope, error_response
from gateway.node import node_of
from gateway.registry import ServiceRegistry, call_id_of, error_message
from gateway.settings import ApiKey, Private

__all__ = ["BackendHandler"]

REPLY_TIMEOUT_S: Final = 10.0  # a publish gives up after 5 s
BATCH_MAX: Final = 1000  # envelopes of one request
REPLY_MAX_BYTES: Final = 16 << 20  # of one envelope

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
        self._door = BackendDoor(
            private or Private(api_key=api_key),
            metrics=lambda: node_of(registry).metrics,
            refusals=lambda: node_of(registry).auth.refusals,
        )

    def route(self, path: str) -> web.RouteDef:
        """Make the route for an aiohttp application."""
        return web.post(path, self.handle)

    async def handle(self, request: web.Request) -> web.Response:
        """Answer one request."""
        return await self._door.admit(request, self._answer)

    async def _answer(self, body: bytes, key_name: str) -> web.Response:
        node_of(self._registry).metrics.backend_requests.labels(key_name).inc()
        try:
            value: Any = decode_json(body)
            if isinstance(value, list):
                return await self._batch(value)
            return _json(200, await self._one(envelope_of(value)))
        except InvalidInput as error:
            service = error.service if isinstance(error, InvalidEnvelope) else None
            return error_response(400, error, service=service)
        except UnknownService as error:
            return error_response(404, error, service=error.service, call_id=call_id_of(value["message"]))
        except TimeoutError:
            return error_response(504, SnorkyError("No reply"), "no_reply")

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
            return error_envelope(error, service=error.service, call_id=call_id_of(value["message"]))
        except InvalidInput as error:
            return error_envelope(error, service=error.service if isinstance(error, InvalidEnvelope) else None)
        except TimeoutError:
            return error_envelope(SnorkyError("No reply"), "no_reply")

    async def _one(self, envelope: Envelope) -> bytes:
        """Dispatch one envelope; returns the encoded reply. Raises UnknownService, TimeoutError."""
        reply = _Reply()
        node = node_of(self._registry)
        connection = node.new_connection(reply, _BARE, outbox_max_bytes=REPLY_MAX_BYTES)
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
            return error_envelope(error, service=envelope.service, call_id=call_id_of(envelope.message))
        except Exception:  # the top of this request: told as such, logged once
            _log.exception("service failed", service=envelope.service)
            internal = SnorkyError("Internal error")
            return error_envelope(internal, service=envelope.service, call_id=call_id_of(envelope.message))


def _json(status: int, body: bytes) -> web.Response:
    return web.Response(status=status, body=body, content_type="application/json")
