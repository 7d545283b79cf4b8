"""Calls of SnorkyBackend and AsyncSnorkyBackend: their requests and results, single and in batches."""

import asyncio
import json
import pickle
import subprocess
import sys
import threading
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from scripted_server import ScriptedServer, answer, hang_up, http, read, reply, wait

from snorky.client import AsyncSnorkyBackend, Call, SnorkyBackend, SnorkyError, SnorkyHTTPTransport, TransportError

PACKAGES = Path(__file__).parents[1]


class Recorder:
    """A transport that returns responses from a list."""

    def __init__(self, *answers: Any) -> None:
        self.answers = list(answers)
        self.sent: list[tuple[Any, bool]] = []

    def send(self, message: Any, *, json: Any = None, retry: bool = False) -> Any:
        self.sent.append((message, retry))
        return self.answers.pop(0)


def refusal(text: str, **more: Any) -> Any:
    return {"service": "echo", "message": {"type": "error", "callId": None, "message": text, **more}}


def test_call_sends_command_and_params_and_returns_the_data() -> None:
    transport = Recorder(reply({"sum": 3}))
    assert SnorkyBackend(transport).call("calculator", "sum", a=1, b=2) == {"sum": 3}
    message = {"command": "sum", "params": {"a": 1, "b": 2}}
    assert transport.sent == [({"service": "calculator", "message": message}, False)]


def test_refusal_is_raised_with_code_and_time() -> None:
    backend = SnorkyBackend(Recorder(refusal("Slow down", code="rate_limited", retryAfterMs=250), refusal("No")))
    with pytest.raises(SnorkyError, match="Slow down") as caught:
        backend.call("echo", "say")
    assert (caught.value.code, caught.value.retry_after_ms) == ("rate_limited", 250)
    with pytest.raises(SnorkyError, match="No") as caught:  # a gateway of 2016 sends only this text
        backend.call("echo", "say")
    assert (caught.value.code, caught.value.retry_after_ms) == ("refused", None)


@pytest.mark.parametrize(
    "envelope",
    [
        None,
        1,
        [],
        {},
        {"message": 1},
        {"message": {}},
        {"message": {"type": "response"}},
        {"message": {"type": "error"}},
        {"message": {"type": "error", "message": 1}},
        {"message": {"type": "message", "data": 1}},
    ],
)
def test_answer_that_is_no_reply_is_an_error(envelope: Any) -> None:
    with pytest.raises(TransportError) as caught:
        SnorkyBackend(Recorder(envelope)).call("echo", "say")
    assert (caught.value.code, caught.value.may_have_happened) == ("invalid_reply", True)


def test_odd_code_and_time_of_a_refusal_harm_nothing() -> None:
    backend = SnorkyBackend(Recorder(refusal("No", code=1, retryAfterMs=True)))
    with pytest.raises(SnorkyError) as caught:
        backend.call("echo", "say")
    assert (caught.value.code, caught.value.retry_after_ms) == ("refused", None)


def test_many_calls_are_one_request_and_one_refusal_harms_no_other() -> None:
    transport = Recorder([reply(1), refusal("No", code="not_authorized"), reply(None)])
    backend = SnorkyBackend(transport, retry=True)
    replies = backend.call_many([Call("a", "x", {"service": 1}), Call("b", "y"), Call("c", "z")])
    assert [each.data for each in replies] == [1, None, None]
    assert replies[0].result() == 1 and replies[2].result() is None
    with pytest.raises(SnorkyError, match="No"):
        replies[1].result()
    (envelopes, retry), *rest = transport.sent
    assert (rest, retry) == ([], True)
    assert envelopes[0] == {"service": "a", "message": {"command": "x", "params": {"service": 1}}}


def test_no_calls_need_no_request() -> None:
    assert SnorkyBackend(Recorder()).call_many([]) == []


def test_more_calls_than_a_gateway_takes_are_refused_before_anything_is_sent() -> None:
    with pytest.raises(ValueError, match="1000"):
        SnorkyBackend(Recorder()).call_many([Call("a", "x")] * 1001)


@pytest.mark.parametrize("answers", [reply(1), [], [reply(1)], [reply(1)] * 3])
def test_replies_that_do_not_fit_the_calls_are_an_error(answers: Any) -> None:
    with pytest.raises(TransportError) as caught:
        SnorkyBackend(Recorder(answers)).call_many([Call("a", "x"), Call("b", "y")])
    assert caught.value.code == "invalid_reply"


def test_json_of_ones_own_is_used() -> None:
    class Money:
        def dumps(self, value: Any, /) -> str:
            return json.dumps(value, default=str)

        def loads(self, text: str, /) -> Any:
            return json.loads(text, parse_float=Decimal)

    with ScriptedServer([answer(reply(0.1))]) as server, SnorkyHTTPTransport(server.url) as transport:
        assert SnorkyBackend(transport, json=Money()).call("shop", "pay", price=Decimal("1.10")) == Decimal("0.1")
        assert server.bodies[0]["message"]["params"] == {"price": "1.10"}


def test_the_module_json_will_do() -> None:
    with ScriptedServer([answer(reply([1]))]) as server, SnorkyHTTPTransport(server.url) as transport:
        assert SnorkyBackend(transport, json=json).call("shop", "list") == [1]


def test_errors_survive_pickling() -> None:
    refused = pickle.loads(pickle.dumps(SnorkyError("No", "not_authorized", retry_after_ms=5)))
    assert (str(refused), refused.code, refused.retry_after_ms) == ("No", "not_authorized", 5)
    lost = pickle.loads(pickle.dumps(TransportError("No reply", "no_reply", may_have_happened=True, status=504)))
    assert (str(lost), lost.code, lost.may_have_happened, lost.status) == ("No reply", "no_reply", True, 504)


def test_code_of_2016_finds_the_names_where_they_were() -> None:
    from snorky.client import backend

    assert (backend.SnorkyBackend, backend.SnorkyError) == (SnorkyBackend, SnorkyError)
    assert backend.SnorkyHTTPTransport is SnorkyHTTPTransport


def test_calls_of_asyncio_run_side_by_side() -> None:
    met = threading.Barrier(3)

    class Meeting:
        def send(self, message: Any, *, json: Any = None, retry: bool = False) -> Any:
            met.wait(10)  # continues only when all three are here
            return reply(message["message"]["params"]["number"])

    async def main() -> list[Any]:
        async with AsyncSnorkyBackend(Meeting()) as backend:
            return await asyncio.gather(*(backend.call("echo", "say", number=number) for number in range(3)))

    assert asyncio.run(main()) == [0, 1, 2]


def test_asyncio_raises_what_the_blocking_one_raises() -> None:
    async def main(url: str) -> None:
        async with AsyncSnorkyBackend(SnorkyHTTPTransport(url)) as backend:
            assert (await backend.call_many([Call("a", "x")]))[0].result() == 1
            with pytest.raises(SnorkyError, match="No"):
                await backend.call("echo", "say")
            with pytest.raises(TransportError) as caught:
                await backend.call("echo", "say")
            assert caught.value.code == "no_reply"

    with ScriptedServer([answer([reply(1)]), answer(refusal("No")), read, hang_up]) as server:
        asyncio.run(main(server.url))


def test_event_loop_goes_on_while_a_call_waits_and_one_that_was_cancelled_in_line_is_never_sent() -> None:
    async def main(server: ScriptedServer) -> None:
        async with AsyncSnorkyBackend(SnorkyHTTPTransport(server.url), concurrency_max=1) as backend:
            first = asyncio.create_task(backend.call("echo", "first"))
            while not server.requests:  # noqa: ASYNC110 - another thread's state, with no event
                await asyncio.sleep(0)
            second = asyncio.create_task(backend.call("echo", "second"))
            await asyncio.sleep(0)
            second.cancel()
            with pytest.raises(asyncio.CancelledError):
                await second
            server.released.set()
            assert await first == 1
        assert [each["message"]["command"] for each in server.bodies] == ["first"]

    def late(peer: Any) -> None:
        read(peer)
        wait(peer)
        peer.sock.sendall(http(reply(1)))

    with ScriptedServer([late]) as server:
        asyncio.run(main(server))


def test_client_needs_python_alone() -> None:
    program = f"import sys; sys.path.insert(0, {str(PACKAGES)!r}); from snorky import client; print(client.__all__)"
    ran = subprocess.run([sys.executable, "-I", "-S", "-c", program], capture_output=True, text=True, check=False)
    assert "'SnorkyBackend'" in ran.stdout and ran.stderr == ""
