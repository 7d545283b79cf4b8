"""RPCService: commands with replies.

    class Calculator(RPCService):
        @rpc_command
        def sum(self, request: Request, a: float, b: float) -> float:
            return a + b

    -> {"service": "calculator", "message": {"command": "sum", "params": {"a": 1, "b": 2}, "callId": 7}}
    <- {"service": "calculator", "message": {"type": "response", "callId": 7, "data": 3}}

Rules:
- Every request gets exactly one reply: the command's return value, the RPCError that it raises, or, for any other
  exception, `Internal error`; the exception is logged.
- A command is a coroutine or a plain function. It returns a JSON entity, a Compound, or the result of `fitted`. If it
  returns a future (`return self.publish(...)`), the reply is sent when the future completes; meanwhile the
  connection's next message is processed.
- Parameters must fit the signature (else `Invalid params`). Their types are not checked: they may be any JSON entities.
"""

import asyncio
from collections.abc import Awaitable, Callable
from time import perf_counter
from types import CoroutineType
from typing import Any

import structlog

from snorky.gateway import (
    Compound,
    ConfigurationError,
    Connection,
    Grant,
    ReplyTooLarge,
    Service,
    SnorkyError,
    channel_name,
    is_cancelling,
    send_error,
)
from snorky.services.commands import commands_of, rpc_command
from snorky.services.requests import Fitted, Request, RPCError, acknowledged, check_allowed, is_allowed, response

__all__ = ["Fitted", "RPCError", "RPCService", "Request", "acknowledged", "is_allowed", "rpc_command"]

_log = structlog.get_logger("snorky.rpc")
_UNKNOWN = "unknown"  # the label of unknown commands: names that peers invent must not become label values


class RPCService(Service):
    """A service with commands. Subclass it and mark methods with `rpc_command`. aliases: further names of commands."""

    aliases: dict[str, str] = {}  # noqa: RUF012 - alias -> command; set by subclasses, never changed

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self._commands = commands_of(self)
        # command, outcome -> counts a call, and its duration
        self._counters: dict[tuple[str, str], tuple[Callable[[], None], Callable[[float], None]]] = {}
        for alias, command in self.aliases.items():
            if command not in self._commands:
                raise ConfigurationError(f"{self!r}: {alias!r} is an alias of {command!r}, which is not a command")
            self._commands[alias] = self._commands[command]

    def on_message(self, connection: Connection, message: Any) -> Awaitable[None] | None:
        """Call the command that the message names."""
        if not isinstance(message, dict):
            message = {}
        name, params = message.get("command"), message.get("params", {})
        request = Request(connection, self.name, _UNKNOWN, message.get("callId"), perf_counter(), "callId" in message)
        command = self._commands.get(name) if isinstance(name, str) else None
        if command is None:
            self._refuse(request, RPCError("Unknown command", "unknown_command"))
            return None
        request.command = command.name
        if not isinstance(params, dict) or not command.fits(params):
            self._refuse(request, RPCError("Invalid params", "invalid_params"))
            return None
        try:
            result = command.function(request, **params)
        except Exception as error:  # the top of a call: any error gets a reply; ours are logged
            self._refuse(request, error)
            return None
        if isinstance(result, CoroutineType):
            return self._finish(request, result)
        if isinstance(result, asyncio.Future):
            result.add_done_callback(lambda future: self._settle(request, future))
            return None
        self._reply(request, result)
        return None

    async def _finish(self, request: Request, coroutine: Awaitable[Any]) -> None:
        try:
            result = await coroutine
        except asyncio.CancelledError as error:
            if is_cancelling():  # the client disconnected or the node stops: there is no recipient for a reply
                raise
            self._refuse(request, error)
            return
        except Exception as error:  # as in on_message
            self._refuse(request, error)
            return
        if isinstance(result, asyncio.Future):
            result.add_done_callback(lambda future: self._settle(request, future))
        else:
            self._reply(request, result)

    def _settle(self, request: Request, future: "asyncio.Future[Any]") -> None:
        """Reply with a completed future's result or error."""
        if future.cancelled():
            self._refuse(request, asyncio.CancelledError())
        elif (error := future.exception()) is not None:
            self._refuse(request, error)
        else:
            self._reply(request, future.result())

    def demand(self, request: Request, operation: str, channel: Any, grant: Grant | None = None) -> None:
        """Check that the rules permit an operation, as `permits`. Raises RPCError ("Not authorized")."""
        check_allowed(self.permits(request, operation, channel, grant))

    def demand_still(self, request: Request, operation: str, channel: Any, grant: Grant | None = None) -> None:
        """As `demand`, just before the command has its effect: the rules may have been replaced during an await."""
        self.demand(request, operation, channel, grant)

    def permits(
        self,
        request: Request,
        operation: str,
        channel: Any,
        grant: Grant | None = None,
        *,
        is_subscribing: bool = False,
    ) -> bool:
        """Return True if the service's rules permit an operation to this client.

        grant: of the token of this call; None = that of the present subscription counts. is_subscribing: this call
        subscribes the client, which counts as a subscriber. Raises InvalidChannel.
        """
        access = self.access
        if access is None:
            return True
        name = channel_name(channel)
        granted = None if grant is None else grant.operations
        rule, client = access.rules.find(name), request.connection
        return access.allows(operation, rule, name, client, granted, is_subscribing=is_subscribing)

    def fitted(self, request: Request, data: Any) -> Fitted:
        """Encode a command's reply before it returns, so that the command can undo its effects if that fails.

        data: a JSON entity. Raises ReplyTooLarge: the reply exceeds what this client can receive; InvalidMessage.
        """
        return Fitted(self.framed(request.connection, response(request, data)))

    def _reply(self, request: Request, data: Any) -> None:
        connection = request.connection
        try:
            if data is None and request.has_call_id:  # most replies
                self.respond(connection, None, request.call_id)
            elif isinstance(data, Fitted):
                connection.write_reply(data.frame)
            elif isinstance(data, Compound):
                instead = None if data.instead is None else response(request, data.instead)
                self.send_compound(connection, response(request, data.value), data, instead)
            elif request.has_call_id:
                self.respond(connection, data, request.call_id)
            else:
                self.send(connection, response(request, data))
        except ReplyTooLarge as error:
            self._refuse(request, error)
        except Exception as error:  # the return value is not a JSON entity
            _log.error("no JSON entity returned", service=self.name, command=request.command, error=str(error))
            self._refuse(request, SnorkyError("Internal error"))
        else:
            self._count(request, "ok")

    def _refuse(self, request: Request, error: BaseException) -> None:
        if not isinstance(error, SnorkyError):
            _log.error("command failed", service=self.name, command=request.command, exc_info=error)
            error = SnorkyError("Internal error")
        self.cluster.auth.refusals.note_command(error.code, request.connection, self.name, request.command)
        send_error(request.connection, self.name, error, request.call_id)
        self._count(request, "internal_error" if error.code == "internal" else "error")

    def _count(self, request: Request, outcome: str) -> None:
        key = request.command, outcome
        found = self._counters.get(key)
        if found is None:  # looking them up by labels costs as much as counting
            metrics = self.cluster.metrics
            found = metrics.rpc_calls.labels(self.name, *key).inc, metrics.rpc_duration.labels(self.name).observe
            self._counters[key] = found
        count, observe = found
        count()
        observe(perf_counter() - request.started_s)
