"""SlotQueues: the order of refused commands that are queued and sent again, while a slot moves."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from snorky.gateway.errors import BrokerUnavailable
from snorky.gateway.metrics import Metrics
from snorky.gateway.redis.cluster.slot_queue import SlotQueues
from snorky.gateway.redis.pubsub.publisher import PublishRefused

NAME = b"p:{pubsub:news}"


class Slot:
    """The place of a slot, and what its server received; the test gives the answers."""

    def __init__(self) -> None:
        self.server: str | None = "a"
        self.sent: list[tuple[str, int]] = []
        self.answers: dict[int, asyncio.Future[Any]] = {}
        self.hurries = 0
        self.metrics = Metrics()
        self.queues = SlotQueues(self.refresh_now, timeout_s=2.0, metrics=self.metrics, waiting_max=50)

    def refresh_now(self) -> None:
        self.hurries += 1

    def publish(self, number: int) -> "asyncio.Future[Any]":
        def send() -> "asyncio.Future[Any] | None":
            if self.server is None:
                return None
            self.sent.append((self.server, number))
            answer = self.answers[number] = asyncio.get_running_loop().create_future()
            return answer

        return self.queues.send(NAME, self.server, send)

    def refuse(self, *numbers: int) -> None:
        for number in numbers:
            self.answers[number].set_exception(PublishRefused("MOVED 5 127.0.0.1:1"))

    async def until_sent(self, *expected: tuple[str, int]) -> None:
        async with asyncio.timeout(30.0):
            while len(self.sent) < len(expected):  # noqa: ASYNC110 - a timer of the queues
                await asyncio.sleep(0.005)
        assert self.sent == list(expected)


@pytest.fixture
async def slot() -> AsyncIterator[Slot]:
    async with asyncio.timeout(30.0):
        yield Slot()


async def test_answers_are_passed_on(slot: Slot) -> None:
    future = slot.publish(1)
    slot.answers[1].set_result(7)
    assert await future == 7 and slot.hurries == 0


async def test_refused_commands_are_sent_before_later_ones(slot: Slot) -> None:
    futures = [slot.publish(number) for number in (1, 2)]
    slot.refuse(1, 2)
    await asyncio.sleep(0)
    slot.server = "b"
    futures.append(slot.publish(3))
    await slot.until_sent(("a", 1), ("a", 2), ("b", 1), ("b", 2), ("b", 3))
    for number in (1, 2, 3):
        slot.answers[number].set_result(number)
    assert await asyncio.gather(*futures) == [1, 2, 3]
    assert slot.hurries == 1


async def test_nothing_overtakes_commands_in_flight_to_the_former_server(slot: Slot) -> None:
    first = slot.publish(1)
    slot.server = "b"
    second = slot.publish(2)
    await asyncio.sleep(0)
    assert slot.sent == [("a", 1)]
    slot.refuse(1)
    await slot.until_sent(("a", 1), ("b", 1), ("b", 2))
    for number in (1, 2):
        slot.answers[number].set_result(number)
    assert [await first, await second] == [1, 2]


async def test_commands_without_a_server_fail_by_their_deadline(slot: Slot) -> None:
    slot.server = None
    with pytest.raises(BrokerUnavailable):
        await slot.publish(1)
    assert slot.sent == []


async def test_another_error_is_the_callers(slot: Slot) -> None:
    future = slot.publish(1)
    slot.answers[1].set_exception(PublishRefused("OOM command not allowed"))
    with pytest.raises(PublishRefused):
        await future
    again = slot.publish(2)
    assert slot.sent == [("a", 1), ("a", 2)], "and delays no other queue"
    slot.answers[2].set_result(1)
    await again


async def test_commands_cancelled_while_queued_are_not_sent(slot: Slot) -> None:
    first, second = slot.publish(1), slot.publish(2)
    slot.refuse(1, 2)
    await asyncio.sleep(0)
    second.cancel()
    slot.server = "b"
    await slot.until_sent(("a", 1), ("a", 2), ("b", 1))
    slot.answers[1].set_result(1)
    await first
    assert slot.sent[2:] == [("b", 1)]


async def test_nothing_is_kept_of_a_slot_that_is_quiet(slot: Slot) -> None:
    future = slot.publish(1)
    slot.refuse(1)
    await slot.until_sent(("a", 1), ("a", 1))
    slot.answers[1].set_result(1)
    await future
    assert not slot.queues._queues


async def test_commands_queued_after_one_without_a_server_fail_by_their_deadline_too(slot: Slot) -> None:
    slot.server = None
    started_s = asyncio.get_running_loop().time()
    outcomes = await asyncio.gather(*(slot.publish(number) for number in range(50)), return_exceptions=True)
    assert all(isinstance(outcome, BrokerUnavailable) for outcome in outcomes)
    assert asyncio.get_running_loop().time() - started_s < 2.5


async def test_more_than_may_line_up_fail_at_once_and_are_counted(slot: Slot) -> None:
    slot.server = None
    lined_up = [slot.publish(number) for number in range(50)]
    beyond = slot.publish(50)
    with pytest.raises(BrokerUnavailable):
        await beyond
    labels = {"reason": "publish_queue_full"}
    assert slot.metrics.registry.get_sample_value("snorky_drops_total", labels) == 1
    assert not any(future.done() for future in lined_up)
    slot.server = "b"
    await slot.until_sent(*(("b", number) for number in range(50)))
