"""Commands that return futures, are cancelled, or outlive their client."""

import asyncio
from typing import Any

import pytest
from structlog.testing import capture_logs

from snorky.gateway import NotSubscribed
from snorky.services.rpc import acknowledged
from tests.support.fakes.fake_wire import house, settle, until
from tests.support.scenarios.rpc_service import (
    INTERNAL,
    Everything,
)

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
