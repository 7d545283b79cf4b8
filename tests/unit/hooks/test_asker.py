"""Asker: every question gets one result, and no backend can cost more than the settings allow."""

import asyncio
import json
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from structlog.testing import capture_logs

from snorky.gateway.config.hooks import Hook
from snorky.gateway.contracts.hooks import Answer, Question
from snorky.gateway.errors import HookRefused, HookUnavailable
from snorky.gateway.hooks import asker as asker_module
from snorky.gateway.hooks.answers import CallFailed
from snorky.gateway.hooks.asker import Asker
from snorky.gateway.hooks.breaker import FAILURES_MAX, PAUSE_S
from snorky.gateway.metrics import Metrics
from snorky.gateway.testing.cluster import settle

ALLOW, REFUSE = b'{"allow": true}', b'{"allow": false, "reason": "banned"}'
URL = "http://127.0.0.1:1/"


class Clock:
    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


class Backend:
    """A backend in memory. answer: status and body, or an error, or a function of the request's body."""

    def __init__(self) -> None:
        self.answer: Any = (200, ALLOW)
        self.bodies: list[bytes] = []
        self.may_answer = asyncio.Event()
        self.may_answer.set()
        self.at_once = self.most_at_once = 0

    async def post(self, url: str, body: bytes) -> tuple[int, bytes]:
        assert url == URL
        self.bodies.append(body)
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        try:
            await self.may_answer.wait()
            answer = self.answer(body) if callable(self.answer) else self.answer
            if isinstance(answer, BaseException):
                raise answer
            return answer  # type: ignore[no-any-return]
        finally:
            self.at_once -= 1


class Desk:
    """An asker with its backend and clock."""

    def __init__(self, **settings: Any) -> None:
        self.backend, self.clock, self.metrics = Backend(), Clock(), Metrics()
        hook = Hook(url=URL, **settings)
        self.asker = Asker(
            "connect", hook, self.backend.post, self.metrics, clock=self.clock, wall_clock=lambda: self.clock() + 1e6
        )

    async def ask(self, name: str | None = "ann", **others: Any) -> Answer:
        question = Question(operation="connect", identity=name, claims={}, address="192.0.2.1", **others)
        body = json.dumps([question.identity, question.address]).encode()
        return await self.asker.ask(question, body)

    async def outcome(self, name: str | None = "ann") -> str:
        """Ask; return "allowed", "refused" or the reason of the failure."""
        try:
            await self.ask(name)
        except HookRefused:
            return "refused"
        except HookUnavailable as error:
            return error.reason
        return "allowed"

    def calls(self, outcome: str) -> float:
        labels = {"operation": "connect", "outcome": outcome}
        return self.metrics.registry.get_sample_value("snorky_hook_calls_total", labels) or 0.0

    def sample(self, name: str) -> float:
        return self.metrics.registry.get_sample_value(f"snorky_hook_{name}", {"operation": "connect"}) or 0.0


@asynccontextmanager
async def desk(**settings: Any) -> AsyncIterator[Desk]:
    made = Desk(**settings)
    try:
        yield made
    finally:
        await made.asker.stop()
        assert made.sample("requests") == made.sample("waiting") == 0


async def test_fresh_question_uses_no_earlier_answer() -> None:
    async with desk(cache_s=60.0) as made:
        assert await made.outcome() == "allowed"
        made.backend.answer = (200, REFUSE)
        assert await made.outcome() == "allowed"
        with pytest.raises(HookRefused):
            await made.ask(is_fresh=True)
        assert await made.outcome() == "refused", "the new answer is known to all"
        made.backend.answer = (200, ALLOW)
        made.backend.may_answer.clear()
        early = asyncio.create_task(made.ask(is_fresh=True))
        await settle()
        late = [asyncio.create_task(made.ask(is_fresh=True)) for _ in range(3)]
        await settle()
        sent = len(made.backend.bodies)
        made.backend.may_answer.set()
        await asyncio.gather(early, *late)
        assert len(made.backend.bodies) == sent + 1, "those that came during a request share the next one"


async def test_yes_no_and_failure_are_told_apart_and_counted() -> None:
    async with desk() as made:
        assert await made.outcome() == "allowed"
        made.backend.answer = (200, REFUSE)
        assert await made.outcome() == "refused"
        made.backend.answer = (403, b"")
        assert await made.outcome() == "refused"
        made.backend.answer = CallFailed("connect")
        assert await made.outcome() == "hook_failed"
        assert [made.calls(each) for each in ("ok", "refused", "failed", "busy", "cached")] == [1, 2, 1, 0, 0]
        assert made.sample("duration_seconds_count") == 4


@pytest.mark.parametrize(
    "answer",
    [
        (500, ALLOW),
        (204, b""),
        (302, ALLOW),
        (401, ALLOW),
        (200, b"<html>"),
        (200, b""),
        (200, b"[]"),
        (200, b'{"allow": 1}'),
        (200, b'{"allow": "true"}'),
        (200, b'{"allow": null}'),
        (200, b'{"Allow": true}'),
        (200, b"[" * 100_000),
        CallFailed("too_large"),
        RuntimeError("a fault of ours"),
    ],
)
async def test_anything_else_refuses_unless_written_otherwise(answer: Any) -> None:
    async with desk() as closed, desk(on_failure="open") as opened:
        closed.backend.answer = opened.backend.answer = answer
        assert await closed.outcome() == "hook_failed"
        assert await opened.outcome() == "allowed"
        assert closed.calls("failed") == opened.calls("failed") == 1


async def test_no_is_no_also_if_failures_are_open() -> None:
    async with desk(on_failure="open") as made:
        made.backend.answer = (200, REFUSE)
        assert await made.outcome() == "refused"


async def test_slow_backend_is_a_failure_after_the_timeout() -> None:
    async with asyncio.timeout(30.0), desk(timeout_s=0.02) as made:
        made.backend.may_answer.clear()
        assert await made.outcome() == "hook_failed"
        assert made.backend.at_once == 0, "its request is cancelled"


async def test_time_in_which_the_node_itself_was_late_is_not_the_backends() -> None:
    async with desk(timeout_s=0.1) as made:
        made.backend.may_answer.clear()
        asking = asyncio.ensure_future(made.outcome())
        await settle()
        time.sleep(0.3)  # noqa: ASYNC251 - the event loop is busy with other clients
        for _ in range(5):  # what has arrived meanwhile is read some iterations later
            await asyncio.sleep(0)
        made.backend.may_answer.set()
        assert await asking == "allowed"


# -- cache and single flight -----------------------------------------------------------------------------------


@pytest.mark.parametrize(("answer", "outcome"), [((200, ALLOW), "allowed"), ((200, REFUSE), "refused")])
async def test_yes_and_no_are_cached_for_so_many_seconds(answer: Any, outcome: str) -> None:
    async with desk(cache_s=10) as made:
        made.backend.answer = answer
        for _ in range(5):
            assert await made.outcome() == outcome
        made.clock.now_s += 9.9
        assert await made.outcome() == outcome
        assert (len(made.backend.bodies), made.calls("cached")) == (1, 5)
        made.clock.now_s += 0.2
        assert await made.outcome() == outcome
        assert len(made.backend.bodies) == 2


async def test_failures_are_never_cached() -> None:
    async with desk(cache_s=10) as made:
        made.backend.answer = (500, b"")
        assert await made.outcome() == "hook_failed"
        made.backend.answer = (200, ALLOW)
        assert await made.outcome() == "allowed"


async def test_answer_for_one_client_is_not_that_for_another() -> None:
    async with desk(cache_s=10) as made:
        made.backend.answer = lambda body: (200, ALLOW if b"ann" in body else REFUSE)
        assert await made.outcome("ann") == "allowed"
        assert await made.outcome("bob") == "refused"
        assert await made.outcome(None) == "refused"
        assert len(made.backend.bodies) == 3


async def test_identity_is_not_cached_beyond_its_end() -> None:
    async with desk(cache_s=100) as made:
        made.backend.answer = (200, b'{"allow": true, "identity": "ann", "expires_in_s": 10}')
        first = await made.ask(None)
        assert first.expires_at_s == made.clock() + 1e6 + 10
        made.clock.now_s += 9
        assert await made.ask(None) is first
        made.clock.now_s += 2
        assert (await made.ask(None)).expires_at_s == first.expires_at_s + 11


async def test_equal_questions_at_one_time_share_a_request() -> None:
    async with desk() as made:
        made.backend.may_answer.clear()
        asking = [asyncio.ensure_future(made.outcome("ann" if number % 2 else "bob")) for number in range(100)]
        await settle()
        assert len(made.backend.bodies) == 2
        made.backend.may_answer.set()
        assert set(await asyncio.gather(*asking)) == {"allowed"}
        assert made.calls("ok") == 100
        assert await made.outcome() == "allowed"
        assert len(made.backend.bodies) == 3, "nothing is cached"


async def test_client_that_leaves_does_not_end_the_request_of_others() -> None:
    async with desk() as made:
        made.backend.may_answer.clear()
        leaving, staying = (asyncio.ensure_future(made.outcome()) for _ in range(2))
        await settle()
        leaving.cancel()
        await settle()
        made.backend.may_answer.set()
        assert await staying == "allowed"


# -- bounds ----------------------------------------------------------------------------------------------------


async def test_requests_and_waiting_questions_are_bounded_and_the_rest_is_refused_at_once() -> None:
    async with desk(concurrency=2, queue_max=3, on_failure="open") as made:
        made.backend.may_answer.clear()
        asking = [asyncio.ensure_future(made.outcome(str(number))) for number in range(20)]
        await settle()
        assert (made.sample("requests"), made.sample("waiting")) == (2, 3)
        assert sum(each.done() for each in asking) == 15
        made.backend.may_answer.set()
        outcomes = await asyncio.gather(*asking)
        assert outcomes == ["allowed"] * 5 + ["hook_busy"] * 15, "also refused where failures are open"
        assert (made.backend.most_at_once, len(made.backend.bodies)) == (2, 5)
        assert (made.calls("ok"), made.calls("busy")) == (5, 15)


async def test_bodies_that_wait_are_bounded_in_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(asker_module, "BODIES_MAX_BYTES", 1_000)

    async def ask(made: Desk, number: int, size: int) -> str:
        question = Question(operation="connect", identity=str(number), claims={}, address="")
        try:
            await made.asker.ask(question, b"%d" % number * size)
        except HookUnavailable as error:
            return error.reason
        return "allowed"

    async with desk() as made:
        assert await ask(made, 1, 5_000) == "allowed", "a single one may be larger"
        made.backend.may_answer.clear()
        asking = [asyncio.ensure_future(ask(made, number, 400)) for number in range(5)]
        await settle()
        made.backend.may_answer.set()
        assert await asyncio.gather(*asking) == ["allowed"] * 2 + ["hook_busy"] * 3
        assert await ask(made, 7, 900) == "allowed"


async def test_question_does_not_wait_longer_than_the_timeout_for_a_place() -> None:
    async with desk(concurrency=1, timeout_s=0.02) as made:
        made.backend.may_answer.clear()
        made.backend.answer = (200, ALLOW)
        outcomes = await asyncio.gather(*(made.outcome(str(number)) for number in range(3)))
        assert outcomes[0] == "hook_failed"
        assert set(outcomes[1:]) <= {"hook_busy", "hook_failed"} and "hook_busy" in outcomes
        made.backend.may_answer.set()
        assert await made.outcome("later") == "allowed", "all places are free again"


async def test_dead_backend_costs_only_some_clients_the_timeout() -> None:
    async with desk() as made:
        made.backend.answer = CallFailed("connect")
        for number in range(FAILURES_MAX + 20):
            assert await made.outcome(str(number)) == "hook_failed"
        assert len(made.backend.bodies) == FAILURES_MAX
        made.clock.now_s += PAUSE_S
        made.backend.may_answer.clear()
        asking = [asyncio.ensure_future(made.outcome(str(number))) for number in range(10)]
        await settle()
        assert len(made.backend.bodies) == FAILURES_MAX + 1, "one probe"
        made.backend.may_answer.set()
        assert set(await asyncio.gather(*asking)) == {"hook_failed"}
        assert await made.outcome() == "hook_failed"
        assert len(made.backend.bodies) == FAILURES_MAX + 1, "the next pause"
        made.clock.now_s += PAUSE_S
        made.backend.answer = (200, ALLOW)
        assert await made.outcome() == "allowed"
        assert {await made.outcome(str(number)) for number in range(10)} == {"allowed"}


async def test_questions_that_wait_fail_at_once_when_the_backend_is_found_dead() -> None:
    async with desk(concurrency=FAILURES_MAX) as made:
        made.backend.may_answer.clear()
        made.backend.answer = CallFailed("connect")
        asking = [asyncio.ensure_future(made.outcome(str(number))) for number in range(100)]
        await settle()
        made.backend.may_answer.set()
        assert set(await asyncio.gather(*asking)) == {"hook_failed"}
        assert len(made.backend.bodies) == FAILURES_MAX
        assert made.calls("failed") == 100


async def test_no_after_failures_also_proves_the_backend_alive() -> None:
    async with desk() as made:
        for answer in ((500, b""), (200, REFUSE)) * 2 * FAILURES_MAX:
            made.backend.answer = answer
            await made.outcome()
        assert len(made.backend.bodies) == 4 * FAILURES_MAX


async def test_stop_leaves_nothing_of_questions_that_have_just_come() -> None:
    async with desk() as made:
        asking = asyncio.ensure_future(made.outcome())
        await asyncio.sleep(0)
        await made.asker.stop()
        assert isinstance((await asyncio.gather(asking, return_exceptions=True))[0], asyncio.CancelledError)
        assert made.asker._bodies_bytes == len(made.asker._flights) == 0


async def test_stop_ends_requests_and_waiting_questions() -> None:
    async with desk(concurrency=1) as made:
        made.backend.may_answer.clear()
        asking = [asyncio.ensure_future(made.outcome(str(number))) for number in range(3)]
        await settle()
        await made.asker.stop()
        assert all(
            isinstance(each, asyncio.CancelledError) for each in await asyncio.gather(*asking, return_exceptions=True)
        )


# -- the log ---------------------------------------------------------------------------------------------------


async def test_failures_have_one_line_a_second_for_each_kind_and_no_text_of_the_backend() -> None:
    async with desk() as made:
        with capture_logs() as logs:
            for _ in range(3):
                made.backend.answer = (200, b"secret nonsense")
                await made.outcome()
                made.backend.answer = (200, ALLOW)
                await made.outcome()
                made.backend.answer = (503, b"secret")
                await made.outcome()
        found = [(each["event"], each["kind"], each["unlogged"]) for each in logs]
        assert found == [("hook failed", "not_an_answer", 0), ("hook failed", "status", 0)]
        assert "secret" not in str(logs)
        made.clock.now_s += 1.0
        with capture_logs() as logs:
            await made.outcome()
        assert [(each["kind"], each["detail"], each["unlogged"]) for each in logs] == [("status", "503", 2)]


async def test_reason_of_a_refusal_is_only_in_the_log() -> None:
    async with desk() as made:
        made.backend.answer = (200, json.dumps({"allow": False, "reason": "banned\n" + "x" * 1000}).encode())
        with capture_logs() as logs, pytest.raises(HookRefused) as caught:
            await made.ask()
        assert str(caught.value) == "Not authorized"
        (line,) = logs
        assert line["event"] == "hook refused" and line["identity"] == "ann" and line["address"] == "192.0.2.1"
        assert line["said"] == "banned " + "x" * 193
