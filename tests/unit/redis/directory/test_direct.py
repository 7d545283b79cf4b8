"""Direct messages over a scripted broker: answers, unknown outcomes, foreign bytes."""

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from snorky.gateway.contracts.directory import Owner
from snorky.gateway.errors import BrokerUnavailable
from snorky.gateway.redis.directory.direct import Direct

THERE = Owner("b", "i1", 7)


class ScriptedBroker:
    """Records publishes; the test sets the number of receivers and the messages that come."""

    def __init__(self) -> None:
        self.published: list[tuple[str, bytes]] = []
        self.hearers = 1
        self.bring: Callable[[Sequence[bytes]], None] = lambda payloads: None

    async def subscribe_node(self, key: str, on_payloads: Any, on_interrupted: Any) -> None:
        assert key == "direct a"
        self.bring = on_payloads

    def unsubscribe_node(self, key: str) -> None:
        assert key == "direct a"

    def publish(self, key: str, payload: bytes) -> "asyncio.Future[int]":
        self.published.append((key, payload))
        future: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        future.set_result(self.hearers)
        return future


class House:
    def __init__(self, timeout_s: float = 5.0) -> None:
        self.broker = ScriptedBroker()
        self.taken: list[tuple[int, bytes]] = []
        self.lost: list[tuple[str, str, int]] = []
        self.direct = Direct(
            self.broker,  # type: ignore[arg-type]  # as far as it is used
            node_id="a",
            is_mine=lambda incarnation: incarnation in ("i8", "i9"),
            on_message=self.take,
            on_lost=lambda names, name, serial: self.lost.append((names, name, serial)),
            on_interrupted=lambda: None,
            timeout_s=timeout_s,
        )

    def take(self, serial: int, message: bytes) -> bool:
        if message == b"poison":
            raise RuntimeError("a service's fault")
        self.taken.append((serial, message))
        return serial != 404

    async def sending(self, message: bytes = b"hello") -> tuple["asyncio.Task[bool]", bytes]:
        task = asyncio.ensure_future(self.direct.send(THERE, message))
        await asyncio.sleep(0)
        key, payload = self.broker.published[-1]
        assert key == "direct b"
        kind, number, sender, incarnation, serial = payload.partition(b"\n")[0].split(b" ")
        assert (kind, sender, incarnation, serial) == (b"m", b"a", b"i1", b"7")
        return task, number


async def started(timeout_s: float = 5.0) -> House:
    house = House(timeout_s)
    await house.direct.start()
    return house


async def test_the_answer_of_the_other_node_is_returned() -> None:
    house = await started()
    (yes, one), (no, two) = await house.sending(), await house.sending()
    house.broker.bring([b"a %b 0 %b 1" % (two, one)])
    assert await yes is True and await no is False


async def test_without_a_receiver_the_connection_is_closed() -> None:
    house = await started()
    house.broker.hearers = 0
    assert await house.direct.send(THERE, b"hello") is False


async def test_without_an_answer_in_time_it_is_not_known() -> None:
    house = await started(timeout_s=0.05)
    task, number = await house.sending()
    with pytest.raises(BrokerUnavailable):
        await task
    house.broker.bring([b"a %b 1" % number])  # late: no caller waits


async def test_messages_of_one_read_are_taken_in_order_and_answered_together() -> None:
    house = await started()
    house.broker.bring(
        [b"m 1 b i8 5\none", b"m 2 c i9 5\ntwo", b"m 3 b i9 404\n\nthree", b"m 4 b i7 5\nof another process"]
    )
    assert house.taken == [(5, b"one"), (5, b"two"), (404, b"\nthree")]
    assert house.broker.published == [("direct b", b"a 1 1 3 0 4 0"), ("direct c", b"a 2 1")]


async def test_an_unreadable_or_refused_message_does_not_delay_the_others() -> None:
    house = await started()
    junk = [b"", b"\xff\xff", b"m", b"m x", b"m 1 b i8 five\n", b"a 1", b"a x 1", b"l i8 5\n{}", b"l i8\n", b"z\n"]
    house.broker.bring([*junk, b"m 1 b i8 5\npoison", b"m 2 b i8 5\nlast"])
    assert house.taken == [(5, b"last")]
    assert house.broker.published == [("direct b", b"a 2 1")]
    assert house.lost == []


async def test_news_of_a_lost_name_are_handed_on_if_they_are_for_this_process() -> None:
    house = await started()
    house.broker.bring([b'l i8 5\n["messaging:names","x\\ny"]', b'l i7 5\n["messaging:names","z"]'])
    assert house.lost == [("messaging:names", "x\ny", 5)]


async def test_waiting_senders_get_an_error_when_it_stops() -> None:
    house = await started()
    task, _ = await house.sending()
    house.direct.stop()
    house.direct.stop()
    with pytest.raises(BrokerUnavailable):
        await task
