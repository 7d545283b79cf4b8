"""The `/backend` endpoint: an HTTP POST with one request envelope gets one response envelope; or an array of each.

Status: 401 wrong or missing key, 429 too many of those, 403 a web page if no key is configured, 403 a service that the
key may not call, 400 not JSON or not an envelope, 404 unknown service, 408 the body did not arrive in time, 413 too
large, 504 no reply in time; an error of a command is 200 with an `error` message. A batch gets 200, and each element
has its own result.
"""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Final, NoReturn

import structlog
from aiohttp import web

from snorky.gateway.config.settings import ApiKey, Private
from snorky.gateway.connection.connection import Connection
from snorky.gateway.errors import (
    InvalidEnvelope,
    InvalidInput,
    InvalidMessage,
    ServiceNotPermitted,
    SnorkyError,
    UnknownService,
)
from snorky.gateway.http.backend.door import BackendDoor, error_envelope, error_response
from snorky.gateway.node import node_of
from snorky.gateway.protocol.codec import Encoding, Envelope, decode_json, encode_json, envelope_of
from snorky.gateway.protocol.ws_frames import TEXT, Dialect
from snorky.gateway.sdk.registry import ServiceRegistry, call_id_of, error_message

__all__ = ["BackendHandler", "Sender"]

REPLY_TIMEOUT_S: Final = 10.0  # a publish fails after 5 s
BATCH_MAX: Final = 1000  # envelopes of one request
REPLY_MAX_BYTES: Final = 16 << 20  # of one envelope

_BARE: Final = Dialect("json", Encoding.JSON, TEXT, lambda message: message)  # messages without framing
_log = structlog.get_logger("snorky.backend")


@dataclass(frozen=True, slots=True)
class Sender:
    """The sender of a request. key_name: "none" if no key is set. address: of its host."""

    key_name: str
    address: str | None


class _Reply:
    """The transport of one request: the first message written to it is the reply."""

    transport_name = "backend"

    def __init__(self, key_name: str) -> None:
        self.backend_key = key_name  # see Connection.backend_key
        self.message: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()

    def write(self, data: bytes) -> None:
        if not self.message.done():
            self.message.set_result(data)

    def buffered_bytes(self) -> int:
        return 0

    def pause_reading(self) -> None:
        """Do nothing: there is only one message."""

    def resume_reading(self) -> None:
        """Do nothing: there is only one message."""

    def close(self, code: int, reason: str) -> None:
        """Reply with the reason: a service refuses a backend request by closing it."""
        self.write(encode_json({"service": "gateway", "message": error_message(SnorkyError(reason))}))


class BackendHandler:
    """Passes requests of backends to a private registry.

    api_key: None = anyone who can reach the port may post. private: the settings with the keys, used instead.
    """

    def __init__(
        self, registry: ServiceRegistry, api_key: ApiKey | None = None, *, private: Private | None = None
    ) -> None:
        self._registry = registry
        self._private = private or Private(api_key=api_key)
        self._door = BackendDoor(
            self._private,
            metrics=lambda: node_of(registry).metrics,
            refusals=lambda: node_of(registry).auth.refusals,
        )

    def route(self, path: str) -> web.RouteDef:
        """Make the route for an aiohttp application."""
        return web.post(path, self.handle)

    async def handle(self, request: web.Request) -> web.Response:
        """Respond to one request."""

        async def answer(body: bytes, key_name: str) -> web.Response:
            return await self._answer(body, Sender(key_name, request.remote))

        return await self._door.admit(request, answer)

    async def admit(
        self, request: web.Request, answer: Callable[[bytes, str], Awaitable[web.Response]], *, key: str
    ) -> web.Response:
        """Respond to a request in another form, by the rules of this endpoint. See `BackendDoor.admit`."""
        return await self._door.admit(request, answer, key=key)

    def count(self, sender: Sender) -> None:
        """Count a request."""
        node_of(self._registry).metrics.backend_requests.labels(sender.key_name).inc()

    async def _answer(self, body: bytes, sender: Sender) -> web.Response:
        self.count(sender)
        try:
            value: Any = decode_json(body)
            if isinstance(value, list):
                return await self._batch(value, sender)
            return _json(200, await self.reply_to(envelope_of(value), sender))
        except InvalidInput as error:
            service = error.service if isinstance(error, InvalidEnvelope) else None
            return error_response(400, error, service=service)
        except UnknownService as error:
            return error_response(404, error, service=error.service, call_id=call_id_of(value["message"]))
        except ServiceNotPermitted as error:
            return error_response(403, error, service=error.service, call_id=call_id_of(value["message"]))
        except TimeoutError:
            return error_response(504, SnorkyError("No reply"), "no_reply")

    async def _batch(self, values: list[Any], sender: Sender) -> web.Response:
        if len(values) > BATCH_MAX:
            raise InvalidMessage(f"A batch has at most {BATCH_MAX} envelopes")
        # started in order, so that publications keep their order; processed concurrently
        replies = await asyncio.gather(*(self._element(value, sender) for value in values))
        return _json(200, b"[" + b",".join(replies) + b"]")

    async def _element(self, value: Any, sender: Sender) -> bytes:
        try:
            return await self.reply_to(envelope_of(value), sender)
        except (UnknownService, ServiceNotPermitted) as error:
            return error_envelope(error, service=error.service, call_id=call_id_of(value["message"]))
        except InvalidInput as error:
            return error_envelope(error, service=error.service if isinstance(error, InvalidEnvelope) else None)
        except TimeoutError:
            return error_envelope(SnorkyError("No reply"), "no_reply")

    async def reply_to(self, envelope: Envelope, sender: Sender) -> bytes:
        """Dispatch one envelope; returns the encoded reply.

        Raises UnknownService, ServiceNotPermitted, TimeoutError.
        """
        reply = _Reply(sender.key_name)
        node = node_of(self._registry)
        connection = node.new_connection(reply, _BARE, outbox_max_bytes=REPLY_MAX_BYTES)
        node.metrics.messages_received.labels("backend").inc()
        try:
            if not self._private.permits(sender.key_name, envelope.service):
                self._refuse(connection, envelope, sender)
            async with asyncio.timeout(REPLY_TIMEOUT_S):
                pending = self._registry.dispatch(connection, envelope)
                if pending is not None:
                    await pending
                return await reply.message
        except (UnknownService, ServiceNotPermitted, TimeoutError):
            raise
        except SnorkyError as error:
            return error_envelope(error, service=envelope.service, call_id=call_id_of(envelope.message))
        except Exception:  # the top of this request: reply with an internal error, log it once
            _log.exception("service failed", service=envelope.service)
            internal = SnorkyError("Internal error")
            return error_envelope(internal, service=envelope.service, call_id=call_id_of(envelope.message))

    def _refuse(self, connection: Connection, envelope: Envelope, sender: Sender) -> NoReturn:
        """Log and count a call that the key does not permit. Raises ServiceNotPermitted."""
        name = envelope.service if envelope.service in self._registry else None  # not a text that the sender made up
        refusals = node_of(self._registry).auth.refusals
        refusals.note("backend", "not_authorized", address=sender.address, key=sender.key_name, service=name)
        if name is not None:
            self._registry[name].on_refused_backend(connection, envelope.message)
        raise ServiceNotPermitted(envelope.service)


def _json(status: int, body: bytes) -> web.Response:
    return web.Response(status=status, body=body, content_type="application/json")
