"""`on_member` is called for each member that has entered, and when it is not there any more, however it ends."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from snorky.gateway import BrokerUnavailable, ConnectionClosed, Entered, Member
from snorky.gateway.connection.connection import Connection
from snorky.gateway.presence.ownership import Ownership
from tests.support.fakes.fake_wire import JSON, FakeTransport, settle

ROSTER, OTHER = "pubsub:presence-a", "pubsub:presence-b"


class QuietDirectory:
    """Does nothing. gate: `enter` waits for it. is_failing: everything raises."""

    incarnation = "i1"

    def __init__(self) -> None:
        self.gate = asyncio.Event()
        self.gate.set()
        self.is_failing = False

    async def enter(self, *_: Any, **__: Any) -> Entered:
        await self.gate.wait()
        if self.is_failing:
            raise BrokerUnavailable("scripted")
        return Entered(True, [], 1)

    async def leave(self, *_: Any, **__: Any) -> bool:
        if self.is_failing:
            raise BrokerUnavailable("scripted")
        return True

    async def disowned(self, _serial: int) -> None: ...

    async def stop(self) -> None: ...


class Rig:
    """An ownership that is watched. calls: (identity, True if it is there)."""

    def __init__(self) -> None:
        self.directory = QuietDirectory()
        directory: Any = self.directory
        self.ownership = Ownership("n", directory, lambda *_: None, lambda _: True)
        self.calls: list[tuple[str, bool]] = []
        self.ownership.on_member = self.on_member
        self.connection = Connection(FakeTransport(), JSON, node_id="n", serial=1)

    def on_member(self, roster: str, member: Member, is_there: bool) -> None:
        assert roster in (ROSTER, OTHER) and member.owner.serial == 1
        self.calls.append((member.identity, is_there))

    async def enter(self, identity: str = "ann", roster: str = ROSTER) -> None:
        await self.ownership.enter(self.connection, roster, entry="", data=None, identity=identity)

    async def leave(self) -> bool:
        return await self.ownership.leave(self.connection, ROSTER, entry="")

    def end(self) -> None:
        self.connection.mark_closed()
        self.ownership.forget(self.connection)


@pytest.fixture
async def rig() -> AsyncIterator[Rig]:
    built = Rig()
    yield built
    built.directory.is_failing = False
    await built.ownership.stop()


async def test_member_that_leaves_is_reported_once(rig: Rig) -> None:
    await rig.enter()
    assert await rig.leave() and not await rig.leave()
    rig.end()
    assert rig.calls == [("ann", True), ("ann", False)]


async def test_member_whose_connection_ends_is_reported(rig: Rig) -> None:
    await rig.enter()
    rig.end()
    assert rig.calls == [("ann", True), ("ann", False)]


async def test_member_that_leaves_without_waiting_is_reported(rig: Rig) -> None:
    await rig.enter()
    rig.ownership.leave_soon(rig.connection, ROSTER)
    assert rig.calls == [("ann", True), ("ann", False)]


async def test_member_that_could_not_enter_is_not_reported(rig: Rig) -> None:
    rig.directory.is_failing = True
    with pytest.raises(BrokerUnavailable):
        await rig.enter()
    assert rig.calls == []


async def test_member_is_gone_although_redis_did_not_answer(rig: Rig) -> None:
    await rig.enter()
    rig.directory.is_failing = True
    with pytest.raises(BrokerUnavailable):
        await rig.leave()
    assert rig.calls == [("ann", True), ("ann", False)]


async def test_member_that_left_while_it_entered_does_not_appear(rig: Rig) -> None:
    rig.directory.gate.clear()
    entering = asyncio.create_task(rig.enter())
    await settle()
    await rig.leave()
    rig.directory.gate.set()
    await entering
    assert ("ann", True) not in rig.calls


async def test_member_whose_connection_ends_while_it_enters_does_not_remain(rig: Rig) -> None:
    rig.directory.gate.clear()
    entering = asyncio.create_task(rig.enter())
    await settle()
    rig.connection.mark_closed()  # and `forget` comes later
    rig.directory.gate.set()
    with pytest.raises(ConnectionClosed):
        await entering
    rig.ownership.forget(rig.connection)
    assert ("ann", True) not in rig.calls


async def test_member_whose_connection_ends_while_it_enters_another_roster_is_gone(rig: Rig) -> None:
    await rig.enter()
    rig.directory.gate.clear()
    entering = asyncio.create_task(rig.enter("bob", OTHER))
    await settle()
    rig.connection.mark_closed()
    rig.directory.gate.set()
    with pytest.raises(ConnectionClosed):
        await entering
    rig.ownership.forget(rig.connection)
    assert rig.calls[0] == ("ann", True) and ("ann", False) in rig.calls and ("bob", True) not in rig.calls


async def test_entry_with_another_identity_is_another_member(rig: Rig) -> None:
    await rig.enter("ann")
    await rig.enter("bob")
    assert rig.calls == [("ann", True), ("ann", False), ("bob", True)]
