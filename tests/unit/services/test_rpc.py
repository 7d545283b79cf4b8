"""RPC services: PROTOCOL "RPC services" in every detail, and exactly one answer to every request."""

import asyncio
from collections import OrderedDict
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from structlog.testing import capture_logs

from snorky.gateway import BrokerUnavailable, ConfigurationError, NotSubscribed
from snorky.services.rpc import Request, RPCError, RPCService, acknowledged, rpc_command
from tests.support.fakes.fake_wire import JSON, MSGPACK, House, house, settle, until


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


# -- replies ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("request_", "data"),
    [
        ({"command": "sum", "params": {"a": 1, "b": 2}}, 3),
        ({"command": "add", "params": {"a": 1, "b": 2}}, 3),
        ({"command": "nothing"}, None),
        ({"command": "nothing", "params": {}}, None),
        ({"command": "optional"}, [1, 2]),
        ({"command": "optional", "params": {"b": 5}}, [1, 5]),
        ({"command": "optional", "params": {"a": None, "b": None}}, [None, None]),
        ({"command": "anything", "params": {"x": 1, "": 2}}, {"x": 1, "": 2}),
        ({"command": "open", "params": {"request": 1, "self": 2}, "extra": 3}, {"request": 1, "self": 2}),
        ({"command": "later", "params": {"value": [{}]}}, [{}]),
        ({"command": "plainly"}, ["tuple", {"x": True}]),
    ],
)
async def test_request_is_answered_with_the_commands_return_value(request_: Any, data: Any) -> None:
    async with house(Everything()) as built:
        assert await ask(built, {**request_, "callId": 1}) == {"type": "response", "callId": 1, "data": data}


@pytest.mark.parametrize("call_id", [None, 0, "", False, "x", 1.5, [1, {"a": None}], {"id": 1}, 2**64 - 1])
async def test_call_id_is_any_entity_and_is_returned(call_id: Any) -> None:
    async with house(Everything()) as built:
        reply = await ask(built, {"command": "nothing", "callId": call_id})
        assert reply == {"type": "response", "callId": call_id, "data": None}
        assert type(reply["callId"]) is type(call_id)
        error = await ask(built, {"command": "nope", "callId": call_id})
        assert error == {**UNKNOWN, "callId": call_id}


@pytest.mark.parametrize("command", ["nothing", "later"])
async def test_reply_has_no_call_id_key_if_the_request_had_none(command: str) -> None:
    async with house(Everything()) as built:
        params = {"value": None} if command == "later" else {}
        assert await ask(built, {"command": command, "params": params}) == {"type": "response", "data": None}


async def test_command_gets_its_caller_and_its_name() -> None:
    async with house(Everything()) as built:
        reply = await ask(built, {"command": "whoami", "callId": 7})
        assert reply["data"] == ["n1.1", None, "rpc", "whoami", 7]


@pytest.mark.parametrize("dialect", [JSON, MSGPACK], ids=["json", "msgpack"])
async def test_answers_have_the_order_of_requests_whether_plain_or_coroutine(dialect: Any) -> None:
    async with house(Everything()) as built:
        client = built.client(dialect)
        for number in range(20):
            command = ("later", "anything")[number % 2]
            client.send("rpc", {"command": command, "params": {"value": number}, "callId": number})
        messages = await client.received(20)
        assert [message["callId"] for message in messages] == list(range(20))


# -- errors -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "message",
    [
        None,
        True,
        5,
        "sum",
        [],
        ["sum"],
        {},
        {"command": None},
        {"command": ""},
        {"command": 1},
        {"command": ["sum"]},
        {"command": {"sum": 1}},
        {"command": "SUM"},
        {"command": "hidden"},
        {"command": "on_message"},
        {"command": "send"},
        {"command": "__init__"},
        {"command": "__class__"},
        {"command": "_commands"},
        {"command": "topics"},
        {"command": "nope", "params": 5},
    ],
)
async def test_message_that_names_no_command_is_an_unknown_command(message: Any) -> None:
    async with house(Everything()) as built:
        assert await ask(built, message) == UNKNOWN


@pytest.mark.parametrize(
    ("command", "params"),
    [
        ("sum", {}),
        ("sum", {"a": 1}),
        ("sum", {"a": 1, "b": 2, "c": 3}),
        ("sum", {"a": 1, "B": 2}),
        ("sum", [1, 2]),
        ("sum", None),
        ("sum", "a"),
        ("sum", 0),
        ("sum", {"a": 1, "b": 2, "request": 3}),
        ("sum", {"a": 1, "b": 2, "self": 3}),
        ("nothing", {"request": None}),
        ("optional", {"c": 1}),
        ("anything", {"request": 1}),
        ("anything", {"self": 1}),
        ("anything", {"x": 1, "request": None, "self": None}),
        ("later", {}),
    ],
)
async def test_params_that_do_not_fit_are_invalid_params(command: str, params: Any) -> None:
    async with house(Everything()) as built:
        with capture_logs() as logs:
            assert await ask(built, {"command": command, "params": params}) == INVALID
        assert logs == []


@pytest.mark.parametrize("command", ["fail", "fail_later", "fail_in_a_future"])
@pytest.mark.parametrize("kind", FAILURES)
async def test_failure_is_answered_once_and_logged_once_if_it_is_ours(command: str, kind: str) -> None:
    error, expected = FAILURES[kind]
    async with house(Everything()) as built:
        with capture_logs() as logs:
            answer = await ask(built, {"command": command, "params": {"kind": kind}, "callId": 1})
        assert answer == {"type": "error", "callId": 1, **expected}
        assert "secret" not in str(answer)
        is_fault = expected["message"] == "Internal error"
        assert [entry["event"] for entry in logs] == ["command failed"] * is_fault
        assert all(entry["exc_info"] is error for entry in logs)
        outcome = "internal_error" if is_fault else "error"
        assert built.sample("snorky_rpc_calls_total", service="rpc", command=command, outcome=outcome) == 1


@pytest.mark.parametrize("command", ["no_json", "no_json_later"])
@pytest.mark.parametrize("kind", NO_JSON)
async def test_command_that_returns_no_json_is_an_internal_error(command: str, kind: str) -> None:
    async with house(Everything()) as built:
        with capture_logs() as logs:
            assert await ask(built, {"command": command, "params": {"kind": kind}, "callId": 1}) == INTERNAL
        assert [entry["event"] for entry in logs] == ["no JSON entity returned"]


async def test_answer_may_have_more_values_than_a_message_and_its_call_id_besides() -> None:
    """In a plain command, in a coroutine and in a future's callback, where an exception would be lost."""
    async with house(Everything()) as built:
        call_id = [0] * 9_990
        for command in ("nothing", "nope", "later"):
            assert (await ask(built, {"command": command, "callId": call_id}))["callId"] == call_id
        service = built.registry["rpc"]
        assert isinstance(service, Everything)
        service.gate.set_result([0] * 20_000)
        answer = await ask(built, {"command": "future", "callId": call_id})
        assert answer == {"type": "response", "data": [0] * 20_000, "callId": call_id}


# -- futures and cancellation -----------------------------------------------------------------------------------


@pytest.mark.parametrize("command", ["future", "future_later"])
async def test_future_is_answered_when_done_while_other_messages_are_taken_on(command: str) -> None:
    service = Everything()
    async with house(service) as built:
        client = built.client()
        client.send("rpc", {"command": command, "callId": 1})
        client.send("rpc", {"command": "nothing", "callId": 2})
        assert [message["callId"] for message in await client.received(1)] == [2]
        service.gate.set_result("done")
        assert (await client.received(2))[1] == {"type": "response", "callId": 1, "data": "done"}


@pytest.mark.parametrize("command", ["future", "future_later", "wait"])
async def test_cancelled_future_is_an_internal_error_and_not_the_end(command: str) -> None:
    service = Everything()
    async with house(service) as built:
        client = built.client()
        client.send("rpc", {"command": command, "callId": 1})
        await settle()
        with capture_logs() as logs:
            service.gate.cancel()
            assert await client.received(1) == [INTERNAL]
        client.send("rpc", {"command": "nothing", "callId": 2})
        assert (await client.received(2))[1]["callId"] == 2
        assert [entry["event"] for entry in logs] == ["command failed"]
        labels = {"service": "rpc", "command": command, "outcome": "internal_error"}
        assert built.sample("snorky_rpc_calls_total", **labels) == 1


async def test_command_of_a_client_that_leaves_is_cancelled_and_not_answered() -> None:
    service = Everything()
    async with house(service) as built:
        client = built.client()
        client.send("rpc", {"command": "wait", "callId": 1})
        await settle()
        with capture_logs() as logs:
            client.leave()
            await until(lambda: service.log == ["cancelled"])
            await settle()
        assert logs == []
        assert client.messages == []


async def test_future_of_a_client_that_left_affects_no_other() -> None:
    service = Everything()
    async with house(service) as built:
        client = built.client()
        client.send("rpc", {"command": "future", "callId": 1})
        client.leave()
        service.gate.set_result(1)
        await settle()
        assert client.messages == []
        assert built.sample("snorky_rpc_calls_total", service="rpc", command="future", outcome="ok") == 1


async def test_acknowledged_is_none_or_the_error() -> None:
    loop = asyncio.get_running_loop()
    unhandled: list[Any] = []
    loop.set_exception_handler(lambda _, context: unhandled.append(context))
    done, failed, cancelled, given_up = (loop.create_future() for _ in range(4))
    outer = [acknowledged(each) for each in (done, failed, cancelled, given_up)]
    done.set_result(5)
    failed.set_exception(NotSubscribed())
    cancelled.cancel()
    outer[3].cancel()
    given_up.set_result(5)
    results = await asyncio.gather(*outer, return_exceptions=True)
    assert results[0] is None
    assert isinstance(results[1], NotSubscribed)
    assert isinstance(results[2], ConnectionError)
    assert isinstance(results[3], asyncio.CancelledError)
    assert unhandled == []


# -- exactly one answer -----------------------------------------------------------------------------------------

JSON_VALUES: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"]), max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["a", "b", "kind"]), inner, max_size=3),
    max_leaves=5,
)  # fmt: skip
COMMANDS = st.sampled_from(
    ["sum", "add", "optional", "anything", "open", "nothing", "later", "future", "future_later", "no_json", "fail",
     "fail_later", "fail_in_a_future", "no_json_later", "wait", "nope"]
)  # fmt: skip
PARAMS = st.one_of(
    JSON_VALUES,
    st.dictionaries(st.sampled_from(["a", "b", "value", "request", "self"]), JSON_VALUES, max_size=3),
    st.builds(lambda kind: {"kind": kind}, st.sampled_from([*FAILURES, *NO_JSON])),
)
REQUESTS = st.one_of(
    JSON_VALUES,
    st.fixed_dictionaries({}, optional={"command": COMMANDS | JSON_VALUES, "params": PARAMS, "callId": JSON_VALUES}),
    st.fixed_dictionaries({"command": COMMANDS, "params": PARAMS}, optional={"callId": JSON_VALUES}),
)


@settings(max_examples=300, deadline=None)
@given(requests=st.lists(REQUESTS, min_size=1, max_size=5))
@example(requests=[{"command": "wait"}, {"command": "nothing"}])
def test_every_request_is_answered_exactly_once(requests: list[Any]) -> None:
    async def run() -> None:
        service = Everything()
        async with house(service) as built:
            client = built.client()
            for request in requests:
                client.send("rpc", request)
            await settle(5)
            service.gate.set_result("open")
            await client.received(len(requests))
            await settle()
            assert len(client.messages) == len(requests)
            for message in client.messages:
                assert message["type"] in ("response", "error")
                if message["type"] == "error":
                    assert isinstance(message["message"], str)
                    assert {"type", "callId", "message", "code"} <= set(message)
                else:
                    assert set(message) - {"callId"} == {"type", "data"}
            ids = [request["callId"] for request in requests if isinstance(request, dict) and "callId" in request]
            answered = [message.get("callId") for message in client.messages]
            for call_id in ids:
                answered.remove(call_id)
            assert answered == [None] * len(answered)

    with capture_logs():
        asyncio.run(run())


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
