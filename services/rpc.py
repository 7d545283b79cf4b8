"""RPCService: commands with replies.

    class Calculator(RPCService):
        @rpc_command
        def sum(self, request: Request, a: float, b: float) -> float:
            return a + b

    -> {"service": "calculator", "message": {"command": "sum", "params": {"a": 1, "b": 2}, "callId": 7}}
    <- {"service": "calculator", "message": {"type": "response", "callId": 7, "data": 3}}

Rules:
- Every request is answered exactly once: with what the command returns, with the RPCError that it raises, or,
  when anything else is raised, with `Internal error`, which is logged.
- A command is a coroutine or a plain function; it returns a JSON entity, or a Compound of one. One that returns a
  future (`return self.publish(...)`) is answered when that is done, while the connection's next message is taken on
  already.
- Parameters must fit the signature (`Invalid params`); types are not checked: they are JSON entities.
"""

import asyncio
import inspect
from collections.abc import Awaitable
from dataclasses import dataclass
from time import perf_counter
from typing import Any

import structlog
from prometheus_client import Counter, Histogram

from gateway import Compound, ConfigurationError, Connection, Service, SnorkyError, is_cancelling, send_error
from services.commands import commands_of, rpc_command

__all__ = ["RPCError", "RPCService", "Request", "acknowledged", "is_allowed", "rpc_command"]

_log = structlog.get_logger("snorky.rpc")
_UNKNOWN = "unknown"  # what a peer calls a command that there is none of is no label value


class RPCError(SnorkyError):
    """A command refuses. text: goes to the client as it is; code: stable, snake_case."""

    code = "refused"

    def __init__(self, text: str, code: str | None = None, *, retry_after_ms: int | None = None) -> None:
        super().__init__(text)
        if code is not None:
            self.code = code
        self.retry_after_ms = retry_after_ms


@dataclass(slots=True)
class Request:
    """One call. connection: who calls. call_id: the client's, None if it gave none."""

    connection: Connection
    service: str
    command: str
    call_id: Any
    started_s: float
    has_call_id: bool = True

    @property
    def identity(self) -> str | None:
        """Who calls, None if it has not said."""
        return self.connection.identity

    def demand_identity(self) -> str:
        """Tell who calls. Raises RPCError: it has not said."""
        if self.connection.identity is None:
            raise RPCError("Not authenticated", "not_authenticated")
        return self.connection.identity


async def is_allowed(verdict: bool | Awaitable[bool]) -> bool:
    """Tell what a hook says, be it a plain method or a coroutine. One that says nothing (None) allows nothing."""
    return bool(await verdict if inspect.isawaitable(verdict) else verdict)


def acknowledged(future: "asyncio.Future[Any]") -> "asyncio.Future[None]":
    """Make a future that is done with None when another is done; its error stays. For replies of `null`."""
    done: asyncio.Future[None] = future.get_loop().create_future()

    def settle(settled: "asyncio.Future[Any]") -> None:
        if done.cancelled():
            return
        error = ConnectionError("cancelled") if settled.cancelled() else settled.exception()
        if error is None:
            done.set_result(None)
        else:
            done.set_exception(error)

    future.add_done_callback(settle)
    return done


class RPCService(Service):
    """A service of commands. Subclass it and mark methods with `rpc_command`; aliases share one method."""

    aliases: dict[str, str] = {}  # noqa: RUF012 - other name -> command; set by subclasses, never changed

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self._commands = commands_of(self)
        self._counters: dict[tuple[str, str], tuple[Counter, Histogram]] = {}  # command, outcome -> calls, duration
        for alias, command in self.aliases.items():
            if command not in self._commands:
                raise ConfigurationError(f"{self!r}: {alias!r} is an alias of {command!r}, which is no command")
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
        except Exception as error:  # the top of a call: answered, and logged if it is a fault of ours
            self._refuse(request, error)
            return None
        if inspect.iscoroutine(result):
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
            if is_cancelling():  # the client left, or the node stops: nobody is left to answer
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
        """Answer with what a future came to."""
        if future.cancelled():
            self._refuse(request, asyncio.CancelledError())
        elif (error := future.exception()) is not None:
            self._refuse(request, error)
        else:
            self._reply(request, future.result())

    def _reply(self, request: Request, data: Any) -> None:
        message = {"type": "response", "data": data}
        if request.has_call_id:
            message["callId"] = request.call_id
        try:
            if isinstance(data, Compound):
                self.send_compound(request.connection, {**message, "data": data.value}, data)
            else:
                self.send(request.connection, message)
        except Exception as error:  # it returned what is no JSON entity
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
        if found is None:  # finding them by their labels costs as much as the counting
            metrics = self.cluster.metrics
            found = metrics.rpc_calls.labels(self.name, *key), metrics.rpc_duration.labels(self.name)
            self._counters[key] = found
        calls, duration = found
        calls.inc()
        duration.observe(perf_counter() - request.started_s)
