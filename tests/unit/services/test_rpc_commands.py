"""Writing commands: which methods are commands, and under which names."""

from typing import Any

import pytest

from snorky.gateway import ConfigurationError
from snorky.services.rpc import Request, RPCService, rpc_command
from tests.support.fakes.fake_wire import house
from tests.support.scenarios.rpc_service import INVALID, UNKNOWN, Everything, ask

# -- writing a service ------------------------------------------------------------------------------------------


async def test_method_overridden_without_the_decorator_is_no_command_and_its_alias_is_reported() -> None:
    class Silent(Everything):
        aliases = {}  # noqa: RUF012 - as above

        def nothing(self, request: Request) -> None:
            return None

    async with house(Silent()) as built:
        assert await ask(built, {"command": "nothing"}) == UNKNOWN

    class Dangling(Everything):
        def sum(self, request: Request, a: float, b: float) -> float:
            return a

    with pytest.raises(ConfigurationError, match="'add' is an alias of 'sum'"):
        Dangling()


def test_command_that_cannot_be_called_by_name_is_refused_when_made() -> None:
    class NoRequest(RPCService):
        @rpc_command
        def ping(self) -> None:
            return None

    class ByPlace(RPCService):
        @rpc_command
        def ping(self, request: Request, a: int, /) -> None:
            return None

    for service in (NoRequest, ByPlace):
        with pytest.raises(ConfigurationError, match="'ping'"):
            service("x")


async def test_static_commands_are_commands() -> None:
    class Static(RPCService):
        @staticmethod
        @rpc_command
        def double(request: Request, a: int) -> int:
            return 2 * a

    async with house(Static("rpc")) as built:
        assert (await ask(built, {"command": "double", "params": {"a": 4}}))["data"] == 8
        assert await ask(built, {"command": "double", "params": {"request": 4}}) == INVALID


# -- names of commands ------------------------------------------------------------------------------------------------


async def test_command_may_have_another_name_than_its_method() -> None:
    class Camel(RPCService):
        @rpc_command(name="send")
        def send_message(self, request: Request, someBody: Any) -> Any:
            return someBody

    async with house(Camel("camel")) as built:
        client = built.client()
        client.send("camel", {"command": "send", "params": {"someBody": 1}, "callId": 1})
        client.send("camel", {"command": "send_message", "params": {"someBody": 1}, "callId": 2})
        answers = [(message["type"], message.get("data", message.get("message"))) for message in client.messages]
        assert answers == [("response", 1), ("error", "Unknown command")]


def test_two_methods_cannot_be_one_command() -> None:
    class Twice(RPCService):
        @rpc_command
        def one(self, request: Request) -> None: ...

        @rpc_command(name="one")
        def other(self, request: Request) -> None: ...

    with pytest.raises(ConfigurationError, match="two methods are the command 'one'"):
        Twice("twice")
