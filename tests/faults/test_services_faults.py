"""Chat members, names and cursors under faults: three node processes, 10,000 of each on the node with the fault.

The scenes share one stage, one after the other, because filling it takes longer than killing a node. Each scene but
the last starts and ends with everybody present.
"""

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import suppress

import pytest
import pytest_asyncio
from redis.asyncio import Redis

from tests.support.clients.multitude import MEMBERS, Caller, names_of, rooms_of
from tests.support.processes.tools import eventually
from tests.support.scenarios.scene import Scene, open_scene

pytestmark = [pytest.mark.needs("redis-server"), pytest.mark.alone, pytest.mark.asyncio(loop_scope="module")]

GONE_WITHIN_S = 15.0
BACK_WITHIN_S = 10.0
HEALED_WITHIN_S = 3.0
REAPED_WITHIN_S = 6.0  # after a pause all leases have expired, and two sightings are 3 s apart
LATE_S = 2.0  # how much later one node renews than the others; from 3 s on it counts as dead
FIRST = 0  # the node that the 10,000 are on


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def stage(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Scene]:
    async with open_scene(tmp_path_factory.mktemp("services")) as opened:
        yield opened


@pytest.fixture
def scene(stage: Scene) -> Scene:
    stage.begin()
    assert len(stage.multitude.cursors) == MEMBERS, "a scene before this one has failed"
    return stage


async def is_healed(scene: Scene) -> bool:
    if not all([await node.status("/readyz") == 200 for node in scene.stage.nodes]):
        return False
    answer = await scene.multitude.callers[6].call("messaging", "registerParticipant", name="new")
    return bool(answer["type"] == "response")


async def test_after_flushall_all_is_registered_again_quietly_within_ten_seconds(scene: Scene) -> None:
    async with Redis.from_url(scene.stage.redis.url) as client:
        await client.flushall()
    deadline = scene.deadline(BACK_WITHIN_S)
    await scene.until_listed(scene.multitude.names, deadline)
    print(f"re-registered after {deadline.elapsed_s:.1f} s")
    await scene.look()
    assert deadline.left_s > 0
    taken = await scene.witnesses[0].call("messaging", "registerParticipant", name=names_of(7)[0])
    assert taken["message"] == "Name already registered"
    await scene.fence()
    scene.check_heard({})


async def test_a_pause_of_redis_for_twelve_seconds_causes_no_left(scene: Scene) -> None:
    members = scene.multitude.callers
    redis, last = scene.stage.redis, scene.stage.nodes[2]
    last.freeze()  # its lease has expired when Redis is back, and no renewal is in flight
    redis.freeze()
    try:
        await asyncio.sleep(12.0)  # the fault
        refused = await members[1].call("messaging", "registerParticipant", name="in the pause", within_s=1.0)
        assert refused["code"] == "unavailable", "a node without a lease refuses at once"
    finally:
        redis.thaw()
        thawed = time.monotonic()
        await asyncio.sleep(LATE_S)  # the fault
        last.thaw()
    await eventually(
        lambda: is_healed(scene), within_s=HEALED_WITHIN_S, what="names are given, and all nodes are ready"
    )
    await works(scene)
    await asyncio.sleep(max(0.0, thawed + REAPED_WITHIN_S - time.monotonic()))  # absence over time is tested
    await scene.fence()
    scene.check_heard({})
    await scene.look()
    assert not [number for number, member in members.items() if member.closed.done()]


async def works(scene: Scene) -> None:
    """Perform each action once."""
    members, witness = scene.multitude.callers, scene.witnesses[0]
    for number in range(0, 100, 10):
        await scene.say(members[number], rooms_of(number)[3])
    name = names_of(5)[2]
    await members[5].ask("messaging", "send", sender=name, dest=witness.identity, body="there")
    await scene.until_told({"type": "message", "sender": name, "body": "there"}, scene.witnesses[:1])
    await witness.ask("messaging", "send", sender=witness.identity, dest=name, body="and back")
    assert (await witness.call("messaging", "registerParticipant", name="new"))["type"] == "error"
    await members[6].ask("messaging", "unregisterParticipant", name="new")
    await witness.ask("messaging", "registerParticipant", name="new")
    await witness.ask("messaging", "unregisterParticipant", name="new")
    cursor = next(iter(scene.multitude.cursors.values()))
    owner, private = members[int(cursor["owner"].split()[1])], cursor["position"]
    cursor["status"] = "blinking"
    await owner.ask("cursors", "updateCursor", privateHandle=private, newData={"status": "blinking"})
    await scene.until_told({"type": "cursorUpdated", "cursor": cursor})


async def test_a_node_stopped_for_twenty_seconds_leaves_once_and_joins_once(scene: Scene) -> None:
    multitude, (claimer, other) = scene.multitude, scene.witnesses
    rivals = {number: names_of(number)[0] for number in range(5)}  # these lose a name each
    gone, back = multitude.told("left", "cursorRemoved"), multitude.told("joined", "cursorAdded")
    closed = multitude.told("left", "cursorRemoved", rivals)
    node = scene.stage.nodes[FIRST]
    node.freeze()
    frozen, deadline = time.monotonic(), scene.deadline(GONE_WITHIN_S)
    try:
        formers = [
            asyncio.create_task(use_until_closed(multitude.callers[number], name, other))
            for number, name in rivals.items()
        ]
        await scene.until_heard(gone, deadline)
        await scene.until_listed(set(), deadline)
        for name in rivals.values():
            await claimer.ask("messaging", "registerParticipant", name=name)
        await asyncio.sleep(max(0.0, frozen + 20.0 - time.monotonic()))  # the rest of the fault
    finally:
        node.thaw()
    deadline = scene.deadline(2 * BACK_WITHIN_S)
    async with asyncio.timeout(60.0):
        assert [await multitude.callers[number].closed for number in rivals] == [4010] * len(rivals)
    assert [await former for former in formers] == [0] * len(rivals), "two used a name"
    await scene.until_heard(Counter(gone) + Counter(back) + Counter(closed), deadline)
    print(f"fenced, re-registered and heard of after {deadline.elapsed_s:.1f} s")
    for witness in scene.witnesses:
        assert Counter(witness.heard[len(gone) : len(gone) + len(back)]) == Counter(back), (
            "clients that lost a name left last"
        )
    assert await is_taken_from(claimer, rivals[0], other)
    for number, name in rivals.items():
        await claimer.ask("messaging", "unregisterParticipant", name=name)
        multitude.forget(number)
    await scene.look()
    assert not [number for number, member in multitude.callers.items() if member.closed.done()]
    await multitude.come(rivals)
    await scene.fence()


async def use_until_closed(caller: Caller, name: str, other: Caller) -> int:
    """Send under a name repeatedly; returns how often it was accepted."""
    count = 0
    with suppress(ConnectionError):
        while True:
            count += await is_taken_from(caller, name, other)
    return count


async def is_taken_from(caller: Caller, name: str, other: Caller) -> bool:
    """Send something under a name; True if it was accepted."""
    answer = await caller.call("messaging", "send", sender=name, dest=other.identity, body=None)
    return bool(answer["type"] == "response")


async def test_entries_of_a_killed_node_are_removed_within_fifteen_seconds_with_one_left_each(scene: Scene) -> None:
    multitude, claimer = scene.multitude, scene.witnesses[0]
    scene.stage.nodes[FIRST].kill()
    deadline = scene.deadline(GONE_WITHIN_S)
    await scene.until_heard(multitude.told("left", "cursorRemoved"), deadline)
    await scene.until_listed(set(), deadline)
    print(f"{MEMBERS:,} members, names and cursors gone after {deadline.elapsed_s:.1f} s")
    names = [names_of(number)[0] for number in range(0, 500, 10)]
    await asyncio.gather(*(claimer.ask("messaging", "registerParticipant", name=name) for name in names))
    await asyncio.gather(*(claimer.ask("messaging", "unregisterParticipant", name=name) for name in names))
    for number in list(multitude.callers):
        multitude.forget(number)
    await scene.look()
    await scene.fence()
    assert len(scene.witnesses[0].heard) == 2 * MEMBERS
