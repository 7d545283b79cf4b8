"""A service with commands of every kind, and how they fail."""

import asyncio
from collections import OrderedDict
from typing import Any

from snorky.gateway import BrokerUnavailable, NotSubscribed
from snorky.services.rpc import Request, RPCError, RPCService, rpc_command
from tests.support.fakes.fake_wire import House, settle


class Unruly(dict[str, int]):
    """Claims to be a dict and fails when accessed."""

    def values(self) -> Any:
        raise RuntimeError("unruly")


def _cyclic() -> list[Any]:
    value: list[Any] = []
    value.append(value)
    return value


NO_JSON: dict[str, Any] = {
    "bytes": b"x",
    "object": object(),
    "nan": float("nan"),
    "infinity": [float("inf")],
    "set": {1},
    "key": {1: 2},
    "surrogate": "\ud800",
    "huge": 2**64,
    "cyclic": _cyclic(),
    "unruly": Unruly(a=1),
}


class Everything(RPCService):
    """A command of every kind."""

    aliases = {"add": "sum"}  # noqa: RUF012 - as in the services

    def __init__(self, name: str = "rpc") -> None:
        super().__init__(name)
        self.gate: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self.log: list[Any] = []

    @rpc_command
    def sum(self, request: Request, a: float, b: float) -> float:
        return a + b

    @rpc_command
    def optional(self, request: Request, a: Any = 1, *, b: Any = 2) -> list[Any]:
        return [a, b]

    @rpc_command
    def anything(self, request: Request, **params: Any) -> dict[str, Any]:
        return params

    @rpc_command
    def open(self, request: Request, /, **params: Any) -> dict[str, Any]:
        return params

    @rpc_command
    def nothing(self, request: Request) -> None:
        return None

    @rpc_command
    def whoami(self, request: Request) -> list[Any]:
        return [request.connection.id, request.identity, request.service, request.command, request.call_id]

    @rpc_command
    async def later(self, request: Request, value: Any) -> Any:
        await asyncio.sleep(0)
        return value

    @rpc_command
    def future(self, request: Request) -> "asyncio.Future[Any]":
        return self.gate

    @rpc_command
    async def future_later(self, request: Request) -> "asyncio.Future[Any]":
        await asyncio.sleep(0)
        return self.gate

    @rpc_command
    async def wait(self, request: Request) -> Any:
        try:
            return await self.gate
        except asyncio.CancelledError:
            self.log.append("cancelled")
            raise

    @rpc_command
    def no_json(self, request: Request, kind: str) -> Any:
        return NO_JSON[kind]

    @rpc_command
    async def no_json_later(self, request: Request, kind: str) -> Any:
        return NO_JSON[kind]

    @rpc_command
    def fail(self, request: Request, kind: str) -> Any:
        raise FAILURES[kind][0]

    @rpc_command
    async def fail_later(self, request: Request, kind: str) -> Any:
        await asyncio.sleep(0)
        raise FAILURES[kind][0]

    @rpc_command
    def fail_in_a_future(self, request: Request, kind: str) -> "asyncio.Future[Any]":
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        future.set_exception(FAILURES[kind][0])
        return future

    @rpc_command
    def plainly(self, request: Request) -> Any:
        return ("tuple", OrderedDict(x=True))

    def hidden(self, request: Request) -> str:
        return "secret"


FAILURES: dict[str, tuple[Exception, dict[str, Any]]] = {
    "rpc": (RPCError("Not your turn"), {"message": "Not your turn", "code": "refused"}),
    "coded": (RPCError("No", "no"), {"message": "No", "code": "no"}),
    "wait": (RPCError("Later", "busy", retry_after_ms=5), {"message": "Later", "code": "busy", "retryAfterMs": 5}),
    "gateway": (NotSubscribed(), {"message": "Not subscribed", "code": "not_subscribed"}),
    "broker": (
        BrokerUnavailable("secret"),
        {"message": "Temporarily unavailable", "code": "unavailable", "retryAfterMs": 1000},
    ),
    "surrogate": (RPCError("no file \udcff"), {"message": "no file ?", "code": "refused"}),
    "fault": (ZeroDivisionError("secret"), {"message": "Internal error", "code": "internal"}),
    "type": (TypeError("secret"), {"message": "Internal error", "code": "internal"}),
    "timeout": (TimeoutError("secret"), {"message": "Internal error", "code": "internal"}),
    "key": (KeyError("secret"), {"message": "Internal error", "code": "internal"}),
}


INTERNAL = {"type": "error", "callId": 1, "message": "Internal error", "code": "internal"}


UNKNOWN = {"type": "error", "callId": None, "message": "Unknown command", "code": "unknown_command"}


INVALID = {"type": "error", "callId": None, "message": "Invalid params", "code": "invalid_params"}


async def ask(built: House, message: Any) -> Any:
    """Send one request and return its only answer."""
    client = built.client()
    client.send("rpc", message)
    await client.received(1)
    await settle()
    (answer,) = client.messages
    return answer
