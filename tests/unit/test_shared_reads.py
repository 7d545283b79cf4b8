"""gateway/shared_reads.py: one read for all callers that want the same, never started before their call."""

import asyncio

import pytest

from snorky.gateway.shared_reads import SharedReads
from tests.support.fakes.fake_wire import settle


class Source:
    """Reads that end when the test lets them: each returns its number."""

    def __init__(self) -> None:
        self.begun: list[str] = []
        self.gates: list[asyncio.Future[None]] = []

    async def read(self, key: str) -> int:
        number = len(self.begun)
        self.begun.append(key)
        self.gates.append(asyncio.get_running_loop().create_future())
        await self.gates[number]
        return number


async def test_callers_during_a_read_share_the_next_one() -> None:
    source = Source()
    reads = SharedReads(source.read, name="test")
    first = asyncio.ensure_future(reads.get("a"))
    await settle()
    later = [asyncio.ensure_future(reads.get("a")) for _ in range(50)]
    other = asyncio.ensure_future(reads.get("b"))
    await settle()
    assert source.begun == ["a", "b"]
    source.gates[0].set_result(None)
    assert await first == 0
    await settle()
    assert source.begun == ["a", "b", "a"]
    source.gates[2].set_result(None)
    assert await asyncio.gather(*later) == [2] * 50
    source.gates[1].set_result(None)
    assert await other == 1
    assert not reads._present and not reads._next and not reads._took_s


async def test_a_cancelled_caller_takes_nothing_from_the_others() -> None:
    source = Source()
    reads = SharedReads(source.read, name="test")
    first, second = asyncio.ensure_future(reads.get("a")), asyncio.ensure_future(reads.get("a"))
    await settle()
    first.cancel()
    await settle()
    source.gates[0].set_result(None)
    await settle()
    source.gates[1].set_result(None)
    assert await second == 1


async def test_a_read_that_fails_fails_for_its_callers_only() -> None:
    source = Source()
    reads = SharedReads(source.read, name="test")
    first = asyncio.ensure_future(reads.get("a"))
    await settle()
    second = asyncio.ensure_future(reads.get("a"))
    await settle()
    source.gates[0].set_exception(RuntimeError("one"))
    with pytest.raises(RuntimeError, match="one"):
        await first
    await settle()
    source.gates[1].set_result(None)
    assert await second == 1


async def test_the_next_read_waits_in_proportion_to_the_last(monkeypatch: pytest.MonkeyPatch) -> None:
    slept: list[float] = []
    sleep = asyncio.sleep

    async def noted(delay: float) -> None:
        slept.append(delay)
        await sleep(0)

    monkeypatch.setattr("snorky.gateway.shared_reads.asyncio.sleep", noted)
    source = Source()
    reads = SharedReads(source.read, name="test", rest=3.0)
    first = asyncio.ensure_future(reads.get("a"))
    while not source.gates:
        await sleep(0)
    second = asyncio.ensure_future(reads.get("a"))
    await sleep(0.02)
    source.gates[0].set_result(None)
    await first
    while len(source.gates) < 2:
        await sleep(0)
    source.gates[1].set_result(None)
    assert await second == 1
    assert len(slept) == 1 and 0.05 <= slept[0] <= 0.5
    await reads.stop()
