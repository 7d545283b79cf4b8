"""RPC services: PROTOCOL "RPC services" in every detail, and exactly one answer to every request."""

import asyncio
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from structlog.testing import capture_logs

from tests.support.fakes.fake_wire import JSON, MSGPACK, house, settle
from tests.support.scenarios.rpc_service import (
    FAILURES,
    INTERNAL,
    INVALID,
    NO_JSON,
    UNKNOWN,
    Everything,
    ask,
)

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
