"""Surveys: callers share questions, orders stay few and small, failures and cancellations reach the right callers."""

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest

import snorky.gateway.http.protocols.pusher.surveys as surveys
from snorky.gateway.contracts.control import ControlOrder, encode_order
from snorky.gateway.errors import BrokerUnavailable, LimitExceeded
from snorky.gateway.http.protocols.pusher.surveys import Surveys, TooManyChannels
from snorky.gateway.sdk.control import Found

NAMES = [f"presence-{number:03}" for number in range(100)]


class FakeNode:
    """A cluster whose channels have these numbers of subscribers. Each look waits until it may go on."""

    def __init__(self, **subscribers: int) -> None:
        self.subscribers = subscribers
        self.asked: list[dict[str, Any]] = []
        self.may_answer = asyncio.Event()
        self.may_answer.set()
        self.error: Exception | None = None

    @property
    def control(self) -> "FakeNode":
        return self

    async def look(
        self, what: str, *, service: str, pattern: str | None, names: Sequence[str], after: str, limit: int
    ) -> Found:
        self.asked.append({"pattern": pattern, "names": list(names), "after": after})
        await self.may_answer.wait()
        if self.error is not None:
            raise self.error
        prefix = "" if pattern is None else pattern.removesuffix("*")
        found = names or sorted(name for name in self.subscribers if name.startswith(prefix) and name > after)
        entries: list[dict[str, Any]] = [
            {"channel": name, "subscribers": self.subscribers[name]} for name in found if name in self.subscribers
        ]
        return Found(entries[:limit], [], entries[limit - 1]["channel"] if len(entries) > limit else None)


def asking(node: FakeNode) -> Surveys:
    return Surveys(lambda: node)  # type: ignore[arg-type,return-value]


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(surveys, "PER_S", 1e6)


async def settled() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


async def test_callers_during_a_question_share_the_next_one() -> None:
    node = FakeNode(a=1, b=2)
    found = asking(node)
    node.may_answer.clear()
    first = asyncio.create_task(found.subscribers("pubsub", ["a"]))
    await settled()
    later = [asyncio.create_task(found.subscribers("pubsub", [name])) for name in ("a", "b", "c", "b")]
    await settled()
    node.may_answer.set()
    assert await first == {"a": 1}
    assert await asyncio.gather(*later) == [{"a": 1}, {"b": 2}, {"c": 0}, {"b": 2}]
    assert [each["names"] for each in node.asked] == [["a"], ["a", "b", "c"]]


async def test_answer_is_not_older_than_the_call() -> None:
    node = FakeNode(a=1)
    found = asking(node)
    assert await found.subscribers("pubsub", ["a"]) == {"a": 1}
    node.subscribers["a"] = 2
    assert await found.subscribers("pubsub", ["a"]) == {"a": 2}
    assert len(node.asked) == 2


async def test_services_do_not_share_questions() -> None:
    node = FakeNode(a=1)
    found = asking(node)
    await asyncio.gather(found.subscribers("one", ["a"]), found.subscribers("other", ["a"]))
    assert len(node.asked) == 2


async def test_question_goes_on_if_its_first_caller_is_cancelled() -> None:
    node = FakeNode(a=1, b=2)
    found = asking(node)
    node.may_answer.clear()
    first = asyncio.create_task(found.subscribers("pubsub", ["a"]))
    await settled()
    leader, follower = (asyncio.create_task(found.subscribers("pubsub", [name])) for name in "ab")
    await settled()
    first.cancel()
    await settled()
    leader.cancel()
    await settled()
    node.may_answer.set()
    assert await follower == {"b": 2}
    assert first.cancelled() and leader.cancelled()
    assert await found.subscribers("pubsub", ["a"]) == {"a": 1}


async def test_failure_reaches_all_callers_of_a_question_and_none_of_the_next() -> None:
    node = FakeNode(a=1)
    found = asking(node)
    node.error = BrokerUnavailable("redis")
    callers = [asyncio.create_task(found.subscribers("pubsub", ["a"])) for _ in range(3)]
    outcomes = await asyncio.gather(*callers, return_exceptions=True)
    assert all(isinstance(each, BrokerUnavailable) for each in outcomes) and len(node.asked) == 2
    node.error = None
    assert await found.subscribers("pubsub", ["a"]) == {"a": 1}


async def test_lists_are_shared_and_do_not_keep_counts_waiting() -> None:
    node = FakeNode(a=1, b=2)
    found = asking(node)
    node.may_answer.clear()
    lists = [asyncio.create_task(found.listed("pubsub", "")) for _ in range(3)]
    await settled()
    count = asyncio.create_task(found.subscribers("pubsub", ["b"]))
    await settled()
    assert [each["pattern"] for each in node.asked] == ["*", None], "a count does not wait for a list"
    node.may_answer.set()
    assert await count == {"b": 2}
    assert await asyncio.gather(*lists) == [{"a": 1, "b": 2}] * 3
    assert [each["pattern"] for each in node.asked] == ["*", None, "*"]


async def test_list_has_all_pages_and_a_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(surveys, "CHANNELS_MAX", 10)
    node = FakeNode(**dict.fromkeys(NAMES, 1), other=1)
    assert await asking(node).listed("pubsub", "presence-") == dict.fromkeys(NAMES, 1)
    assert len(node.asked) == 10
    monkeypatch.setattr(surveys, "LIST_MAX", 30)
    with pytest.raises(TooManyChannels):
        await asking(node).listed("pubsub", "")
    assert len(node.asked) == 13


@pytest.mark.parametrize("length", [1, 20, 200])
async def test_names_are_divided_so_that_each_order_is_accepted(length: int) -> None:
    names = [f"{number:03}".rjust(length, "x")[-max(length, 3) :] for number in range(100)]
    node = FakeNode(**dict.fromkeys(names, 1))
    assert await asking(node).subscribers("pubsub", names) == dict.fromkeys(names, 1)
    assert sorted(name for each in node.asked for name in each["names"]) == sorted(names)
    assert len(node.asked) <= {1: 1, 20: 2, 200: 15}[length]
    for each in node.asked:
        encode_order(ControlOrder("0" * 16, "channels", service="s" * 64, limit=201, names=tuple(each["names"])))


async def test_orders_are_paced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(surveys, "PER_S", 50.0)
    node = FakeNode(a=1)
    found = asking(node)
    began_s = asyncio.get_running_loop().time()
    for _ in range(6):
        await found.subscribers("pubsub", ["a"])
    assert asyncio.get_running_loop().time() - began_s >= 0.099


async def test_question_that_would_take_too_long_accepts_no_further_names(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(surveys, "NAMES_MAX", 100)
    node = FakeNode(a=1)
    asked = asking(node)
    node.may_answer.clear()
    first = asyncio.create_task(asked.subscribers("pubsub", ["a"]))  # in progress
    await asyncio.sleep(0)
    next_one = asyncio.create_task(asked.subscribers("pubsub", NAMES))
    await asyncio.sleep(0)
    async with asyncio.timeout(30.0):
        with pytest.raises(LimitExceeded, match="Too many channels"):
            await asked.subscribers("pubsub", ["b"])
    node.may_answer.set()
    assert await first == {"a": 1}
    assert set((await next_one).values()) == {0}


async def test_question_that_all_callers_gave_up_is_not_asked() -> None:
    node = FakeNode(a=1, b=2)
    asked = asking(node)
    node.may_answer.clear()
    first = asyncio.create_task(asked.subscribers("pubsub", ["a"]))
    await asyncio.sleep(0)
    given_up = asyncio.create_task(asked.subscribers("pubsub", NAMES))
    await asyncio.sleep(0)
    given_up.cancel()
    await asyncio.gather(given_up, return_exceptions=True)
    node.may_answer.set()
    assert await first == {"a": 1}
    assert await asked.subscribers("pubsub", ["b"]) == {"b": 2}
    assert [each["names"] for each in node.asked] == [["a"], ["b"]]
