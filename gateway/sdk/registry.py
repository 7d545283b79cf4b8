"""ServiceRegistry: services by name; delivers each client message to the service it is addressed to.

    bytes -> codec -> limits -> the service's on_message -> an inbox, if it returns an awaitable

Several registries may exist in one process: a public one for clients, a private one for the backend. No
message from a client makes it raise: the client receives an error, which is counted; after too many it is closed.
"""

import asyncio
from collections.abc import Awaitable, Iterable, Iterator
from typing import Any, Final

import structlog

from snorky.gateway.config.settings import Limits
from snorky.gateway.connection.connection import Connection
from snorky.gateway.connection.inbox import Inbox
from snorky.gateway.connection.pace import Pace
from snorky.gateway.connection.rate_limiter import Limiter, Rates
from snorky.gateway.connection.shared_limits import Shares, rates_of
from snorky.gateway.errors import (
    CloseCode,
    ConfigurationError,
    InvalidEnvelope,
    InvalidInput,
    LimitExceeded,
    NotAuthenticated,
    SnorkyError,
    UnknownService,
)
from snorky.gateway.protocol.codec import Envelope, decode_envelope
from snorky.gateway.sdk.handles import NodeServices
from snorky.gateway.sdk.old_names import refuse_old_attributes
from snorky.gateway.sdk.service import Service

__all__ = ["ServiceRegistry", "call_id_of", "error_message", "is_cancelling", "send_error"]

AWAITED_PORTION: Final = 16  # messages that are awaited, which begin in one iteration of the loop

_log = structlog.get_logger("snorky.registry")


def error_message(error: SnorkyError, call_id: Any = None) -> dict[str, Any]:
    """Make an error message: type, callId (or null), message, code, and retryAfterMs if a retry may help."""
    text = str(error).encode(errors="replace").decode()  # a lone surrogate, e.g. in a file name, cannot be encoded
    message = {"type": "error", "callId": call_id, "message": text, "code": error.code}
    if error.retry_after_ms is not None:
        message["retryAfterMs"] = error.retry_after_ms
    return message


def send_error(connection: Connection, service: str, error: SnorkyError, call_id: Any = None) -> None:
    """Send an error to a client, under the name of a service."""
    connection.send({"service": service, "message": error_message(error, call_id)})


def is_cancelling() -> bool:
    """True if the current task is being cancelled; else a CancelledError comes from something that it awaited."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


def call_id_of(message: Any) -> Any:
    """Return the id of a call; None if the message has none."""
    return message.get("callId") if isinstance(message, dict) else None


class ServiceRegistry:
    """Delivers messages to services by name.

    services: the initial ones; `register` adds more, until the registry is attached to a node.
    limits: of one connection's messages; by default the node's. requires_identity: unauthenticated clients
    can use only services with `allows_anonymous`, and are closed if they do not authenticate in time.
    """

    def __init__(
        self, services: Iterable[Service] = (), *, limits: Limits | None = None, requires_identity: bool = False
    ) -> None:
        self.requires_identity = requires_identity
        self._services: dict[str, Service] = {}
        self._limits = limits
        self._has_hook = False
        self._shares: Shares | None = None  # set by `bind`
        self._rates: Rates | None = None
        self._cluster: NodeServices | None = None
        self._inboxes: dict[Connection, Inbox] = {}  # of connections with a message that is being awaited
        self._pace = Pace(AWAITED_PORTION)
        for service in services:
            self.register(service)

    def __iter__(self) -> Iterator[Service]:
        return iter(self._services.values())

    def __contains__(self, name: str) -> bool:
        return name in self._services

    def __getitem__(self, name: str) -> Service:
        """Return a service. Raises UnknownService."""
        try:
            return self._services[name]
        except KeyError:
            raise UnknownService(name) from None

    @property
    def cluster(self) -> NodeServices:
        """The node that the registry is attached to."""
        if self._cluster is None:
            raise ConfigurationError("this registry is not attached to a node yet: call Node.attach(registry)")
        return self._cluster

    def register(self, service: Service) -> None:
        """Add a service. Raises ConfigurationError: another service has this name, or it has an old attribute."""
        refuse_old_attributes(Service, type(service))
        if service.name in self._services:
            raise ConfigurationError(f"two services are named {service.name!r}; give one another name")
        self._services[service.name] = service
        if self._cluster is not None:
            self._bind_service(service, self._cluster)

    def bind(self, cluster: NodeServices, limits: Limits) -> None:
        """Connect the services to a cluster. Called once, by the node."""
        if self._cluster is not None:
            raise ConfigurationError("a registry can be attached to only one node; make another one")
        self._cluster = cluster
        self._limits = self._limits or limits
        self._shares, self._rates = Shares(self._limits, cluster.cluster_limits.rates), rates_of(self._limits)
        for service in self:
            self._bind_service(service, cluster)

    def expect_identities(self) -> None:
        """Clients can have identities although the node's `auth` is not configured: a handler has a hook."""
        self._has_hook = True
        for service in self:
            service.set_authenticating(is_authenticating=True)

    def _bind_service(self, service: Service, cluster: NodeServices) -> None:
        service.bind(cluster)
        if self._has_hook or self.requires_identity:
            service.set_authenticating(is_authenticating=True)

    def connected(self, connection: Connection) -> None:
        """Notify the services of a new client."""
        for service in self:
            try:
                service.on_connect(connection)
            except Exception:  # an error of one service must not prevent the others from being called
                _log.exception("on_connect failed", service=service.name)

    def disconnected(self, connection: Connection) -> None:
        """Notify the services that a client has gone, and cancel its messages in progress."""
        if (inbox := self._inboxes.get(connection)) is not None:
            inbox.cancel()
        for service in self:
            try:
                service.on_disconnect(connection)
            except Exception:  # an error of one service must not keep the others from cleaning up
                _log.exception("on_disconnect failed", service=service.name)

    def receive(self, connection: Connection, data: bytes) -> None:
        """Process one message of a client. data: as received, in the connection's encoding."""
        if connection.is_closed:
            return
        try:
            envelope = decode_envelope(data, connection.dialect.encoding)
        except InvalidInput as error:
            self.refuse(connection, error)
            return
        self.accept(connection, envelope, len(data))

    def accept(self, connection: Connection, envelope: Envelope, size: int) -> None:
        """Process one decoded message of a client, within its limits. size: bytes as received."""
        if not self.admits(connection, envelope, size):
            return
        if (inbox := self._inboxes.get(connection)) is not None:
            inbox.append(envelope, size)
        elif not self._pace.has_room:
            inbox = self._inboxes[connection] = self._inbox(connection, None)
            inbox.append(envelope, size)
        elif (pending := self._dispatch(connection, envelope)) is not None:
            self._pace.take()
            self._inboxes[connection] = self._inbox(connection, pending)

    def check_frame(self, connection: Connection) -> None:
        """Count one frame that is not a whole message. Raises LimitExceeded: too many; the caller must close."""
        limiter = self._limiter(connection)
        if limiter is not None and not limiter.take_frame():
            limit = limiter.limit
            self._note_limited(connection, limit)
            raise LimitExceeded(limit, "Too many frames that are no whole messages")

    def lacks_identity(self, connection: Connection) -> bool:
        """Return True if a client must authenticate before it uses most services."""
        if not self.requires_identity or connection.identity is not None:
            return False
        return connection.frontend is None or not connection.frontend.authenticates

    def dispatch(self, connection: Connection, envelope: Envelope) -> Awaitable[None] | None:
        """Pass a message to its service, without limits or inbox. Raises UnknownService, and the service's errors.

        The awaitable, if any, must be awaited before the connection's next message.
        """
        return self[envelope.service].on_message(connection, envelope.message)

    async def stop(self) -> None:
        """Cancel all messages in progress."""
        inboxes = tuple(self._inboxes.values())
        for inbox in inboxes:
            inbox.cancel()
        await asyncio.gather(*(inbox.task for inbox in inboxes if inbox.task is not None), return_exceptions=True)

    def _inbox(self, connection: Connection, first: Awaitable[None] | None) -> Inbox:
        return Inbox(connection, self._dispatch, first, self._worked_off, self._pace)

    def _worked_off(self, connection: Connection) -> None:
        self._inboxes.pop(connection).release()

    def _dispatch(self, connection: Connection, envelope: Envelope) -> Awaitable[None] | None:
        """Call `dispatch`, and send errors to the client."""
        try:
            if self.lacks_identity(connection) and not self[envelope.service].allows_anonymous:
                raise NotAuthenticated
            pending = self.dispatch(connection, envelope)
        except Exception as error:  # the top of a message's processing: reply with the error, log it if it is our fault
            self._failed(connection, envelope, error)
            return None
        return None if pending is None else self._guarded(connection, envelope, pending)

    async def _guarded(self, connection: Connection, envelope: Envelope, pending: Awaitable[None]) -> None:
        try:
            await pending
        except asyncio.CancelledError as error:
            if is_cancelling():
                raise
            self._failed(connection, envelope, error)
        except Exception as error:  # as in _dispatch
            self._failed(connection, envelope, error)

    def _failed(self, connection: Connection, envelope: Envelope, error: BaseException) -> None:
        if isinstance(error, UnknownService | InvalidInput):
            self.refuse(connection, error, envelope)
            return
        if not isinstance(error, SnorkyError):
            _log.error("service failed", service=envelope.service, exc_info=error)
            error = SnorkyError("Internal error")
        elif isinstance(error, NotAuthenticated):
            self.cluster.auth.refusals.note_command(error.code, connection, envelope.service)
        send_error(connection, envelope.service, error, call_id_of(envelope.message))

    def admits(self, connection: Connection, envelope: Envelope, size: int) -> bool:
        """Count a message against the client's limits; False: it replies with the wait, or closes the client.

        `accept` calls it; other protocols call it for messages that they answer themselves.
        """
        limiter = connection.limiter
        if limiter is None or limiter.identity is not connection.identity:
            limiter = self._limiter(connection)
        if limiter is None or not (wait_ms := limiter.take(size)):
            return True
        limit = limiter.limit
        self._note_limited(connection, limit)
        if limiter.note_refused(size):
            connection.close(CloseCode.LIMIT, "Too many messages")
        else:
            error = LimitExceeded(limit, "Too many messages", code="rate_limited", retry_after_ms=wait_ms)
            send_error(connection, envelope.service, error, call_id_of(envelope.message))
        return False

    def _note_limited(self, connection: Connection, limit: str) -> None:
        self.cluster.metrics.limit_hits.labels(limit).inc()
        self.cluster.auth.refusals.note("limit", limit, address=connection.remote_ip, identity=connection.identity)

    def refuse(self, connection: Connection, error: SnorkyError, envelope: Envelope | None = None) -> None:
        """Reply to invalid input with an error; close the client after too many."""
        self.cluster.metrics.client_errors.labels(error.code).inc()
        limiter = self._limiter(connection)
        if limiter is not None and limiter.note_bad():
            connection.close(CloseCode.TOO_MUCH_BAD_INPUT, "Too much bad input")
            return
        if envelope is not None:
            service, call_id = envelope.service, call_id_of(envelope.message)
        else:
            service, call_id = (error.service if isinstance(error, InvalidEnvelope) else None) or "gateway", None
        send_error(connection, service, error, call_id)

    def _limiter(self, connection: Connection) -> Limiter | None:
        limiter = connection.limiter
        if limiter is None:
            if self._limits is None or self._shares is None or self._rates is None:
                return None
            identity, bad_max = connection.identity, self._limits.client_errors_per_minute
            shares = self._shares.of(connection.remote_ip, identity)
            limiter = connection.limiter = Limiter(self._rates, bad_max, shares, identity=identity)
        elif limiter.identity is not connection.identity and self._shares is not None:  # it has authenticated since
            limiter.share(self._shares.of(connection.remote_ip, connection.identity), connection.identity)
        return limiter
