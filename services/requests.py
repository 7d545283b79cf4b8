"""Requests: a call of an RPC service, the error that rejects it, and its reply."""

import asyncio
import inspect
from collections.abc import Awaitable, Mapping
from dataclasses import dataclass
from typing import Any

from snorky.gateway import Connection, SnorkyError

__all__ = ["Fitted", "RPCError", "Request", "acknowledged", "check_allowed", "demand_allowed", "is_allowed", "response"]


class RPCError(SnorkyError):
    """A command rejects a call. text: sent to the client unchanged. code: a stable name in snake_case, for programs."""

    code = "refused"

    def __init__(self, text: str, code: str | None = None, *, retry_after_ms: int | None = None) -> None:
        super().__init__(text)
        if code is not None:
            self.code = code
        self.retry_after_ms = retry_after_ms


@dataclass(slots=True)
class Request:
    """One call. connection: the caller's. call_id: the client's ID of the call; None if it gave none."""

    connection: Connection
    service: str
    command: str
    call_id: Any
    started_s: float
    has_call_id: bool = True

    @property
    def identity(self) -> str | None:
        """The caller's identity; None if it has not authenticated."""
        return self.connection.identity

    @property
    def claims(self) -> Mapping[str, Any]:
        """The claims of the caller's token; empty without one."""
        return self.connection.claims

    @property
    def backend_key(self) -> str | None:
        """The name of the key that a backend sent; None for clients."""
        return self.connection.backend_key

    def demand_identity(self) -> str:
        """Return the caller's identity. Raises RPCError: it has not authenticated."""
        if self.connection.identity is None:
            raise RPCError("Not authenticated", "not_authenticated")
        return self.connection.identity


@dataclass(frozen=True, slots=True)
class Fitted:
    """A reply encoded as the bytes that its client receives."""

    frame: bytes


async def is_allowed(verdict: bool | Awaitable[bool]) -> bool:
    """Return the verdict of a hook, a plain method or a coroutine. None, from a hook without `return`, is a refusal."""
    return bool(await verdict if inspect.isawaitable(verdict) else verdict)


def check_allowed(verdict: object) -> None:
    """Raise RPCError ("Not authorized") unless a hook's verdict is true."""
    if not verdict:  # also None, from a hook without `return`
        raise RPCError("Not authorized", "not_authorized")


async def demand_allowed(verdict: bool | Awaitable[bool]) -> None:
    """Raise RPCError ("Not authorized") unless a hook, a plain method or a coroutine, allows the call."""
    check_allowed(await is_allowed(verdict))


def acknowledged(future: "asyncio.Future[Any]") -> "asyncio.Future[None]":
    """Return a future with the result None that completes with the given one, or with its error. For `null` replies."""
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
    """Build the reply to a call."""
    message = {"type": "response", "data": data}
    if request.has_call_id:
        message["callId"] = request.call_id
    return message
