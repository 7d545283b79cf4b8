"""RosterSync: after a node received nothing, its subscribers get missed joins and leaves, once; no false leaves."""

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest

from snorky.gateway import BrokerUnavailable
from snorky.gateway.contracts.directory import Member, Owner, RosterSnapshot
from snorky.gateway.metrics import Metrics
from snorky.gateway.presence.roster_sync import PORTION, RosterSync
from snorky.gateway.presence.roster_view import Difference
from snorky.gateway.protocol.publication import Change
from snorky.services.chat import ChatService
from snorky.services.cursors import CursorsService
from snorky.services.pubsub import PubSubService
from tests.support.fakes.fake_wire import settle, until
from tests.support.fakes.memory_cluster import Resident, Town, town

GRACE_S = 0.2
ROSTER = "chat:room"


def services() -> list[Any]:
    rules = [{"match": "there:*", "presence": True, "join_leave": True, "history": 10, "history_ttl_s": 60}]
    return [ChatService(), CursorsService(), PubSubService(channels=rules)]


def heard(client: Resident) -> list[tuple[str, str]]:
    return [(each["from"], each["status"]) for each in client.notifications if each["type"] == "presence"]


def deafen(nodes: Town) -> None:
    """Let node 0 miss what is published from now on."""
    nodes.brokers[0].is_lossy = True


def cure(nodes: Town) -> None:
    """Let it receive again, and know that it missed publications."""
    nodes.brokers[0].is_lossy = False
    nodes.nodes[0].on_interrupted()


async def join(*clients: Resident) -> None:
    for client in clients:
        await client.ask("chat", "join", channel="room")
    await settle(30)


# -- what subscribers see ---------------------------------------------------------------------------------------------


async def test_joins_and_leaves_that_a_node_missed_are_reported_once() -> None:
    async with town(2, services, grace_s=GRACE_S) as nodes:
        watcher, other = nodes.client(0, "watcher"), nodes.client(0, "other")
        leaver, comer, stayer = nodes.client(1, "leaver"), nodes.client(1, "comer"), nodes.client(1, "stayer")
        await join(watcher, other, leaver, stayer)
        before = len(watcher.notifications)
        deafen(nodes)
        leaver.leave()
        await join(comer)
        assert len(watcher.notifications) == before
        cure(nodes)
        for client in (watcher, other):
            await until(lambda client=client: ("comer", "joined") in heard(client))
            await until(lambda client=client: ("leaver", "left") in heard(client))
        await settle(30)
        assert heard(watcher)[before:] == [("comer", "joined"), ("leaver", "left")]
        assert sorted(heard(stayer)) == [("comer", "joined"), ("leaver", "left")], "where nothing was missed"


async def test_members_entered_again_within_the_grace_period_never_left() -> None:
    """Redis lost its state: for a moment there are no members."""
    async with town(2, services, grace_s=GRACE_S) as nodes:
        watcher, other = nodes.client(0, "watcher"), nodes.client(1, "other")
        await join(watcher, other)
        deafen(nodes)
        before = heard(watcher)
        nodes.cluster.rosters.clear()
        nodes.cluster.versions.clear()
        cure(nodes)
        await settle(30)
        nodes.cluster.flush()  # all nodes register again, without notices
        await asyncio.sleep(2 * GRACE_S)  # the time itself is tested
        assert heard(watcher) == before


async def test_missed_cursors_are_reported() -> None:
    async with town(2, services, grace_s=GRACE_S) as nodes:
        watcher, writer = nodes.client(0, "watcher"), nodes.client(1, "writer")
        for client in (watcher, writer):
            await client.ask("cursors", "join", document="doc")

        async def create(name: str) -> Any:
            params = {"privateHandle": name, "document": "doc", "position": 0, "status": "s"}
            return await writer.ask("cursors", "createCursor", **params)

        first, second = await create("first"), await create("second")
        await watcher.notified(2)
        deafen(nodes)
        await writer.ask("cursors", "removeCursor", privateHandle="first")
        await writer.ask("cursors", "updateCursor", privateHandle="second", newData={"position": 9})
        third = await create("third")
        cure(nodes)
        await until(lambda: any(each["type"] == "cursorRemoved" for each in watcher.notifications))
        told = [(each["type"], each["cursor"]["publicHandle"]) for each in watcher.notifications[2:]]
        assert sorted(told[:2]) == [("cursorAdded", third), ("cursorUpdated", second)]
        assert ("cursorRemoved", first) in told and ("cursorRemoved", second) not in told
        moved = [each["cursor"] for each in watcher.notifications[2:] if each["cursor"]["publicHandle"] == second]
        assert moved[0]["position"] == 9
        assert all(each["type"] in ("response", "error") for each in writer.inbox), (
            "no client is notified of its own entries"
        )


async def test_pubsub_notifies_recovering_clients_too_if_the_rule_has_notices() -> None:
    async with town(2, services, grace_s=GRACE_S) as nodes:
        plain, recovering, comer = nodes.client(0, "plain"), nodes.client(0, "recovering"), nodes.client(1, "comer")
        await plain.ask("pubsub", "subscribe", channel="there:a")
        await recovering.ask("pubsub", "subscribe", channel="there:a", recover=True)
        await settle(30)
        deafen(nodes)
        await comer.ask("pubsub", "subscribe", channel="there:a")
        cure(nodes)
        joined = {"type": "joined", "channel": "there:a", "identity": "comer"}
        for client in (plain, recovering):
            await client.hears(joined)
            assert client.notifications.count(joined) == 1


async def test_a_service_that_fails_on_a_notice_does_not_stop_the_others() -> None:
    class Fussy(ChatService):
        def roster_notice(self, channel: Any, member: Member, **kinds: bool) -> Any:
            if member.identity == "bad":
                raise RuntimeError("not about him")
            return super().roster_notice(channel, member, **kinds)

    async with town(2, lambda: [Fussy()], grace_s=GRACE_S) as nodes:
        watcher, bad, good = nodes.client(0, "watcher"), nodes.client(1, "bad"), nodes.client(1, "good")
        await join(watcher)
        deafen(nodes)
        await join(bad, good)
        cure(nodes)
        await until(lambda: ("good", "joined") in heard(watcher))


# -- alone, on a directory that the test answers -----------------------------------------------------------------------


class Scripted:
    """A directory of one roster. is_away: it does not answer. gate: its censuses wait for it."""

    def __init__(self) -> None:
        self.members: list[Member] = []
        self.version = 1
        self.is_away = False
        self.gate = asyncio.Event()
        self.gate.set()
        self.asked: list[str] = []

    async def versions(self, rosters: Sequence[str]) -> list[int | None]:
        self.asked.append(f"versions {len(rosters)}")
        self._answer()
        return [self.version] * len(rosters)

    async def census(self, roster: str) -> RosterSnapshot:
        self.asked.append(f"census {roster}")
        self._answer()
        census = RosterSnapshot(self.version, list(self.members))
        await self.gate.wait()
        return census

    def _answer(self) -> None:
        if self.is_away:
            raise BrokerUnavailable("away")


class Rig:
    def __init__(self, grace_s: float = 30.0) -> None:
        self.directory = Scripted()
        self.told: list[tuple[str, str]] = []
        self.roster_sync = RosterSync(self.directory, self._tell, Metrics(), grace_s=grace_s)  # type: ignore[arg-type]
        self.roster_sync.start()

    def _tell(self, roster: str, differences: Sequence[Difference], version: int) -> None:
        self.told += [(each.kind, each.member.identity) for each in differences]

    def come(self, identity: str) -> None:
        self.directory.version += 1
        self.directory.members.append(Member(identity, Owner("n", "i", len(self.directory.members))))


@pytest.fixture
async def rig() -> Any:
    rig = Rig()
    yield rig
    await rig.roster_sync.stop()


async def followed(rig: Rig, *rosters: str) -> None:
    for roster in rosters:
        rig.roster_sync.follow(roster)
    await until(lambda: all(f"census {roster}" in rig.directory.asked for roster in rosters))
    await settle(5)
    rig.directory.asked.clear()


async def test_notice_that_does_not_follow_the_one_before_has_the_roster_read(rig: Rig) -> None:
    await followed(rig, ROSTER)
    version = rig.directory.version
    rig.come("ann")  # which was lost
    rig.come("bob")
    assert rig.roster_sync.receive(ROSTER, Change("+", True, "bob", "n.1", "", version + 2, version + 1))
    await until(lambda: rig.told == [("joined", "ann")])


async def test_entries_removed_with_their_identity_are_reported(rig: Rig) -> None:
    rig.come("ann")
    await followed(rig, ROSTER)
    version = rig.directory.version
    assert rig.roster_sync.receive(ROSTER, Change("-", True, "ann", "n.7", "", version + 1, version))
    await until(lambda: rig.told == [("left", "ann")])


async def test_where_nothing_was_missed_a_version_is_all_that_is_asked(rig: Rig) -> None:
    await followed(rig, "chat:a", "chat:b")
    rig.roster_sync.interrupted()
    await until(lambda: rig.directory.asked == ["versions 2"])
    await settle(5)
    assert rig.directory.asked == ["versions 2"] and rig.told == []


async def test_a_failed_census_is_retried_until_it_succeeds(rig: Rig) -> None:
    await followed(rig, ROSTER)
    rig.directory.is_away = True
    rig.come("ann")
    rig.roster_sync.interrupted()
    await until(lambda: len(rig.directory.asked) >= 2)
    rig.directory.is_away = False
    await until(lambda: rig.told == [("joined", "ann")])


async def test_many_changes_are_reported_in_portions_with_the_current_state(rig: Rig) -> None:
    await followed(rig, ROSTER)
    full = asyncio.Event()
    rig.roster_sync._is_congested = lambda _roster: not full.is_set()
    for number in range(PORTION + 2):
        rig.come(f"p{number}")
    rig.roster_sync.interrupted()
    await until(lambda: rig.told)
    await settle(20)
    assert len(rig.told) == PORTION, "the others wait until these are taken"
    last, version = PORTION + 1, rig.directory.version
    assert rig.roster_sync.receive(ROSTER, Change("-", True, f"p{last}", f"n.{last}", "", version + 1, version))
    full.set()
    await until(lambda: len(rig.told) > PORTION)
    await settle(20)
    assert rig.told[PORTION:] == [("joined", f"p{PORTION}")], (
        "a member that has left meanwhile is not reported as joined"
    )


async def test_changes_received_during_a_census_are_not_reported_twice(rig: Rig) -> None:
    await followed(rig, ROSTER)
    rig.directory.gate.clear()
    rig.come("ann")
    rig.roster_sync.interrupted()
    await until(lambda: f"census {ROSTER}" in rig.directory.asked)
    assert rig.roster_sync.receive(
        ROSTER, Change("+", True, "ann", "n.0", "", rig.directory.version, rig.directory.version - 1)
    )
    rig.directory.gate.set()
    await settle(10)
    assert rig.told == []


async def test_interruption_while_a_roster_is_read_has_it_compared_again(rig: Rig) -> None:
    await followed(rig, ROSTER)
    rig.directory.gate.clear()
    rig.come("ann")
    rig.roster_sync.interrupted()
    await until(lambda: f"census {ROSTER}" in rig.directory.asked)
    rig.come("bob")  # after the running census, and lost
    rig.roster_sync.interrupted()
    rig.directory.gate.set()
    await until(lambda: rig.told == [("joined", "ann"), ("joined", "bob")])


async def test_clients_that_unsubscribed_get_no_notices(rig: Rig) -> None:
    await followed(rig, ROSTER)
    rig.directory.gate.clear()
    rig.come("ann")
    rig.roster_sync.interrupted()
    await until(lambda: f"census {ROSTER}" in rig.directory.asked)
    rig.roster_sync.forget(ROSTER)
    rig.roster_sync.follow(ROSTER)  # and another one came: for its own list it has asked itself
    rig.directory.gate.set()
    await until(lambda: rig.directory.asked.count(f"census {ROSTER}") == 2)
    await settle(10)
    assert rig.told == []


async def test_change_of_a_roster_without_followers_is_reported(rig: Rig) -> None:
    assert rig.roster_sync.receive("chat:other", Change("+", True, "ann", "n.0", "", 2, 1))


async def test_departure_is_reported_after_a_redis_outage_longer_than_the_grace_period(rig: Rig) -> None:
    rig.roster_sync._grace_s = 0.05
    rig.come("ann")
    await followed(rig, ROSTER)
    rig.directory.members.clear()
    rig.directory.version += 1
    rig.directory.is_away = True
    rig.roster_sync.interrupted()
    await until(lambda: len(rig.directory.asked) >= 2)
    rig.directory.is_away = False
    await until(lambda: rig.told == [("left", "ann")])


async def test_roster_that_could_not_be_read_at_the_subscribe_is_still_followed(rig: Rig) -> None:
    rig.directory.is_away = True
    rig.roster_sync.follow(ROSTER)
    await until(lambda: rig.directory.asked)
    rig.roster_sync.interrupted()
    rig.directory.is_away = False
    await followed(rig, ROSTER)
    rig.come("ann")
    rig.roster_sync.interrupted()
    await until(lambda: rig.told == [("joined", "ann")])


async def test_one_roster_that_cannot_be_read_keeps_no_other(rig: Rig) -> None:
    async def census(roster: str) -> RosterSnapshot:
        if roster == "chat:broken":
            raise ValueError("not what we wrote")
        return await Scripted.census(rig.directory, roster)

    rig.directory.census = census  # type: ignore[method-assign]
    rig.roster_sync.follow("chat:broken")
    await followed(rig, ROSTER)
    rig.come("ann")
    rig.roster_sync.interrupted()
    await until(lambda: rig.told == [("joined", "ann")])


async def test_departure_waits_for_the_last_interruption(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    loop, passed_s = asyncio.get_running_loop(), [0.0]
    real_s = loop.time
    monkeypatch.setattr(loop, "time", lambda: real_s() + passed_s[0])  # timers use it

    async def pass_time(seconds: float) -> None:
        await settle(50)  # work that is due now is done now
        passed_s[0] += seconds
        await settle(50)

    rig.come("ann")
    await followed(rig, ROSTER)
    rig.directory.members.clear()
    rig.directory.version += 1
    rig.roster_sync.interrupted()
    await pass_time(20)
    rig.roster_sync.interrupted()
    await pass_time(20)
    rig.roster_sync._want(ROSTER)  # it is read between the time of the first one and that of the second
    await settle(50)
    assert rig.told == []
    await pass_time(31)
    await until(lambda: rig.told == [("left", "ann")])
