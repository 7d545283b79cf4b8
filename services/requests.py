"""Requests: one call of an RPC service, the error that refuses it, and the reply to it."""

import asyncio
import inspect
from collections.abc import Awaitable
from dataclasses import dataclass
from typing import Any

from gateway import Connection, SnorkyError

__all__ = ["Fitted", "RPCError", "Request", "acknowledged", "check_allowed", "demand_allowed", "is_allowed", "response"]


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


@dataclass(frozen=True, slots=True)
class Fitted:
    """A reply as the bytes that its client gets."""

    frame: bytes


async def is_allowed(verdict: bool | Awaitable[bool]) -> bool:
    """Tell what a hook says, be it a plain method or a coroutine. One that says nothing (None) allows nothing."""
    return bool(await verdict if inspect.isawaitable(verdict) else verdict)


def check_allowed(verdict: object) -> None:
    """Refuse unless a hook allowed it. Raises RPCError."""
    if not verdict:  # also None, of a hook that said nothing
        raise RPCError("Not authorized", "not_authorized")


async def demand_allowed(verdict: bool | Awaitable[bool]) -> None:
    """Refuse unless a hook allows it, be it a plain method or a coroutine. Raises RPCError."""
    check_allowed(await is_allowed(verdict))


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


def response(request: Request, data: Any) -> dict[str, Any]:
    """Make the message that answers a call."""
    message = {"type": "response", "data": data}
    if request.has_call_id:
        message["callId"] = request.call_id
    return message
