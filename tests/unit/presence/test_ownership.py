"""What connections own: recorded locally before Redis is asked, and released however it ends."""

import asyncio
from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager
from typing import Any

import pytest
from structlog.testing import capture_logs

from snorky.gateway import BrokerUnavailable, ConnectionClosed, Member, Owner, Selector
from snorky.gateway.connection.connection import Connection
from snorky.gateway.presence.ownership import encode_notice
from snorky.gateway.presence.roster_view import LEFT_DATA_MAX_BYTES
from snorky.gateway.protocol.codec import encode_json
from snorky.gateway.protocol.publication import Change, read_publication, write_change, write_version
from tests.support.fakes.fake_wire import JSON, FakeTransport, settle, until
from tests.support.fakes.ownership_rig import OwnershipRig

ROSTER = "chat:room"


@pytest.fixture
async def rig(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[OwnershipRig]:
    built = OwnershipRig(monkeypatch)
    yield built
    built.directory.is_failing = False
    for gate in built.directory.gates.values():
        gate.set()
    await built.ownership.stop()


@asynccontextmanager
async def under_way(work: Awaitable[Any]) -> AsyncIterator["asyncio.Future[Any]"]:
    """Run something alongside the block, until it waits; the block must check its errors."""
    task = asyncio.ensure_future(work)
    await settle()
    try:
        yield task
    finally:
        await asyncio.gather(task, return_exceptions=True)


# -- local records ----------------------------------------------------------------------------------------------------


async def test_entry_is_recorded_before_redis_has_it_and_removed_before_it_leaves(rig: OwnershipRig) -> None:
    connection = rig.connection()
    gate = rig.gate("enter")
    async with under_way(rig.ownership.enter(connection, ROSTER, entry="e", data=[1])):
        assert rig.members == [(ROSTER, Member("bob", Owner("n", "i1", 1), "e", [1]))]
        gate.set()
    gate = rig.gate("leave")
    async with under_way(rig.ownership.leave(connection, ROSTER, entry="e")):
        assert rig.members == [], "otherwise a fence at this moment would restore it"
        gate.set()
    assert rig.directory.asked == ["enter", "leave"]


async def test_anonymous_clients_are_entered_under_their_connection_id(rig: OwnershipRig) -> None:
    await rig.ownership.enter(rig.connection(7, None), ROSTER, entry="", data=None)
    assert rig.directory.calls == [("enter", ROSTER, 7, "n.7", "", None)]


async def test_name_is_recorded_before_redis_has_it_and_removed_if_taken(rig: OwnershipRig) -> None:
    connection = rig.connection()
    rig.directory.is_claimed = False
    gate = rig.gate("claim")
    async with under_way(rig.ownership.claim(connection, "messaging", "x")) as claimed:
        assert rig.names == [("messaging", "x", 1, "bob")]
        assert set(rig.ownership.names_of(connection)) == {("messaging", "x")}
        gate.set()
    assert await claimed is False
    assert rig.names == []


async def test_update_changes_the_registered_data_even_if_redis_has_lost_the_entry(rig: OwnershipRig) -> None:
    connection = rig.connection()
    assert not await rig.ownership.update(connection, ROSTER, entry="", data=1, notice=None)
    assert rig.directory.calls == []
    await rig.ownership.enter(connection, ROSTER, entry="", data=1)
    notice = ({"x": 1}, Selector(not_connection="n.1"))
    assert await rig.ownership.update(connection, ROSTER, entry="", data=2, notice=notice)
    changed = write_change(encode_notice(notice) or b"", Change("=", False, "bob", "n.1", data=2))
    assert rig.directory.calls[-1] == ("update", ROSTER, 1, "", 2, changed)
    assert [member.data for _, member in rig.members] == [2]


async def test_leaving_and_releasing_unowned_items_makes_no_calls(rig: OwnershipRig) -> None:
    connection = rig.connection()
    assert not await rig.ownership.leave(connection, ROSTER, entry="")
    assert not await rig.ownership.release(connection, "messaging", "x")
    assert rig.directory.calls == []


# -- release ----------------------------------------------------------------------------------------------------------


async def test_connection_that_ends_releases_everything_at_once(rig: OwnershipRig) -> None:
    connection, other = rig.connection(1), rig.connection(2)
    for each in (connection, other):
        await rig.ownership.enter(each, ROSTER, entry="", data=None)
    await rig.ownership.claim(connection, "messaging", "x")
    rig.end(connection)
    assert [member.owner.serial for _, member in rig.members] == [2]
    assert rig.names == []
    await until(lambda: rig.directory.calls[-1] == ("disowned", 1))


async def test_connection_that_owns_nothing_costs_redis_nothing(rig: OwnershipRig) -> None:
    rig.end(rig.connection())
    await settle()
    assert rig.directory.calls == []


@pytest.mark.parametrize("what", ["enter", "claim"])
async def test_items_acquired_after_the_disconnect_are_released_afterwards(rig: OwnershipRig, what: str) -> None:
    """The first `disowned` found nothing yet."""
    connection = rig.connection()
    gate = rig.gate(what)
    work = (
        rig.ownership.enter(connection, ROSTER, entry="", data=None)
        if what == "enter"
        else rig.ownership.claim(connection, "messaging", "x")
    )
    async with under_way(work) as done:
        rig.end(connection)
        await until(lambda: rig.directory.asked == ["disowned"])
        gate.set()
    with pytest.raises(ConnectionClosed):
        await done
    await until(lambda: rig.directory.asked == ["disowned", what, "disowned"])
    assert rig.members == [] and rig.names == []


async def test_enter_of_which_nothing_is_known_is_undone_when_redis_answers_again(rig: OwnershipRig) -> None:
    connection = rig.connection()
    rig.directory.is_failing = True
    with pytest.raises(BrokerUnavailable):
        await rig.ownership.enter(connection, ROSTER, entry="", data=None)
    assert rig.members == []
    rig.directory.is_failing = False
    await until(lambda: rig.directory.asked == ["leave"])


async def test_name_that_another_connection_has_by_now_is_not_owned_after_a_second_claim(rig: OwnershipRig) -> None:
    """The notice of its loss has not been handled yet."""
    connection = rig.connection()
    assert await rig.ownership.claim(connection, "messaging", "x")
    rig.directory.is_claimed = False
    assert not await rig.ownership.claim(connection, "messaging", "x")
    assert rig.names == [] and not rig.ownership.names_of(connection)


async def test_claim_of_which_nothing_is_known_is_undone_when_redis_answers_again(rig: OwnershipRig) -> None:
    connection = rig.connection()
    rig.directory.is_failing = True
    with pytest.raises(BrokerUnavailable):
        await rig.ownership.claim(connection, "messaging", "x")
    assert rig.names == []
    rig.directory.is_failing = False
    await until(lambda: rig.directory.asked == ["release"])


async def test_leave_and_release_that_failed_are_done_as_soon_as_they_can(rig: OwnershipRig) -> None:
    connection = rig.connection()
    await rig.ownership.enter(connection, ROSTER, entry="", data=None)
    await rig.ownership.claim(connection, "messaging", "x")
    rig.directory.is_failing = True
    with pytest.raises(BrokerUnavailable):
        await rig.ownership.leave(connection, ROSTER, entry="")
    with pytest.raises(BrokerUnavailable):
        await rig.ownership.release(connection, "messaging", "x")
    assert rig.members == [] and rig.names == []
    rig.directory.is_failing = False
    await until(lambda: rig.directory.asked == ["enter", "claim", "leave", "release"])


async def test_pending_release_is_cancelled_by_a_new_acquisition(rig: OwnershipRig) -> None:
    connection = rig.connection()
    rig.directory.is_failing = True
    with pytest.raises(BrokerUnavailable):
        await rig.ownership.enter(connection, ROSTER, entry="", data=None)
    with pytest.raises(BrokerUnavailable):
        await rig.ownership.claim(connection, "messaging", "x")
    gate = rig.gate("leave")  # the release waits in the first one
    rig.directory.is_failing = False
    await rig.ownership.enter(connection, ROSTER, entry="", data=None)
    await rig.ownership.claim(connection, "messaging", "x")
    gate.set()
    await until(lambda: rig.ownership._release_task is None)
    assert "leave" not in rig.directory.asked and "release" not in rig.directory.asked
    assert len(rig.members) == len(rig.names) == 1


async def test_a_failed_release_does_not_prevent_the_others(rig: OwnershipRig) -> None:
    async def broken(serial: int) -> None:
        raise ValueError("broken")

    first, second = rig.connection(1), rig.connection(2)
    for each in (first, second):
        await rig.ownership.enter(each, ROSTER, entry="", data=None)
    disowned, rig.directory.disowned = rig.directory.disowned, broken  # type: ignore[method-assign]  # once
    with capture_logs() as logs:
        rig.end(first)
        await until(lambda: logs)
        rig.directory.disowned = disowned  # type: ignore[method-assign]  # as it was
        rig.end(second)
        await until(lambda: rig.directory.calls[-1] == ("disowned", 2))
    assert [log["event"] for log in logs] == ["giving back failed"]


async def test_pending_releases_at_stop_run_before_the_lease_ends(rig: OwnershipRig) -> None:
    connections = [rig.connection(serial) for serial in range(200)]
    for connection in connections:
        await rig.ownership.enter(connection, ROSTER, entry="", data=None)
    for connection in connections:
        rig.end(connection)
    await rig.ownership.stop()
    assert rig.directory.asked.count("disowned") == 200
    assert rig.directory.is_stopped


async def test_many_connections_that_end_at_once_are_released_concurrently(rig: OwnershipRig) -> None:
    connections = [rig.connection(serial) for serial in range(10)]
    for connection in connections:
        await rig.ownership.enter(connection, ROSTER, entry="", data=None)
    waiting = 0
    gate = asyncio.Event()

    async def disowned(serial: int) -> None:
        nonlocal waiting
        waiting += 1
        await gate.wait()

    rig.directory.disowned = disowned  # type: ignore[method-assign]  # counts who waits
    for connection in connections:
        rig.end(connection)
    await until(lambda: waiting == 10)
    gate.set()


async def test_nothing_runs_on_once_it_has_stopped(rig: OwnershipRig) -> None:
    connection = rig.connection()
    await rig.ownership.enter(connection, ROSTER, entry="", data=None)
    rig.directory.is_failing = True
    rig.end(connection)
    await rig.ownership.stop()
    assert rig.directory.is_stopped
    assert rig.ownership._release_task is None
    late = rig.connection(2)
    rig.ownership._owned[2] = rig.ownership._of(late)
    rig.end(late)
    assert rig.ownership._release_task is None, "it would retry indefinitely: the directory has stopped"


async def test_connection_that_is_closed_or_not_of_this_node_owns_nothing(rig: OwnershipRig) -> None:
    closed, stranger = rig.connection(1), rig.connection(2)
    closed.mark_closed()
    rig.here.discard(stranger)
    for connection in (closed, stranger):
        with pytest.raises(ConnectionClosed):
            await rig.ownership.enter(connection, ROSTER, entry="", data=None)
        with pytest.raises(ConnectionClosed):
            await rig.ownership.claim(connection, "messaging", "x")
    assert rig.directory.calls == []


# -- queries of the directory -----------------------------------------------------------------------------------------


async def test_connection_that_lost_a_name_is_closed_unless_it_just_released_it(rig: OwnershipRig) -> None:
    connection = rig.connection()
    await rig.ownership.claim(connection, "messaging", "x")
    rig.ownership.on_lost_name("messaging", "y", 1)
    rig.ownership.on_lost_name("messaging", "x", 2)
    assert not connection.is_closed
    rig.ownership.on_lost_name("messaging", "x", 1)
    assert connection.is_closed
    assert rig.names == []


async def test_direct_message_reaches_its_connection_and_is_refused_after_its_end(rig: OwnershipRig) -> None:
    wire = FakeTransport()
    connection = Connection(wire, JSON, node_id="n", serial=3)
    rig.here.add(connection)
    await rig.ownership.claim(connection, "messaging", "x")
    message = encode_json({"service": "s", "message": 1})
    assert rig.ownership.on_direct(3, message)
    assert wire.writes == [message + b"\n"]
    assert not rig.ownership.on_direct(4, message)
    with capture_logs() as logs:
        assert not rig.ownership.on_direct(3, b"not JSON"), "and the reader continues"
    assert [log["event"] for log in logs] == ["direct message failed"]
    connection.mark_closed()
    assert not rig.ownership.on_direct(3, message)


async def test_notice_is_asked_of_the_service_for_the_channel_that_it_knows(rig: OwnershipRig) -> None:
    asked = []

    def notice(*question: Any) -> Any:
        asked.append(question)
        return {"hi": 1}, Selector(not_identity="bob")

    rig.notice = notice
    member = Member("bob", Owner("n", "i1", 1))
    data = rig.ownership.notice('chat:~["a:b",1]', member, has_joined=True, is_identity=False)
    assert asked == [("chat", ["a:b", 1], member, True, False)]
    assert data is not None
    publication = read_publication(write_version(data, 7, 6))
    assert (publication.payload, publication.selector) == (b'{"hi":1}', Selector(not_identity="bob"))
    assert publication.change == Change("+", False, "bob", "n.1", version=7, previous=6)


@pytest.mark.parametrize(
    ("size", "is_with_leaves"), [(0, True), (LEFT_DATA_MAX_BYTES, True), (LEFT_DATA_MAX_BYTES + 1, False)]
)
async def test_leaves_have_the_data_of_their_entries_unless_they_are_large(
    rig: OwnershipRig, size: int, is_with_leaves: bool
) -> None:
    rig.notice = lambda *_: (1, Selector.none())
    data = "x" * (size - 2) if size else None
    for has_joined, expected in ((True, data), (False, data if is_with_leaves else None)):
        member = Member("bob", Owner("n", "i1", 1), "", data)
        changed = rig.ownership.notice("pubsub:a", member, has_joined=has_joined, is_identity=True)
        assert changed is not None
        change = read_publication(write_version(changed, 7, 6)).change
        assert change is not None and change.data == expected


async def test_service_that_fails_on_a_notice_does_not_prevent_leaves(rig: OwnershipRig) -> None:
    def notice(*_: Any) -> Any:
        raise ValueError("a service's fault")

    rig.notice = notice
    with capture_logs() as logs:
        member = Member("bob", Owner("n", "i1", 1))
        assert rig.ownership.notice(ROSTER, member, has_joined=False, is_identity=True) is None
        assert rig.ownership.notice("chat:~no JSON", member, has_joined=False, is_identity=True) is None
    assert [log["event"] for log in logs] == ["no notice"] * 2
