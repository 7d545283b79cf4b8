"""The stage for faults of services: three node processes, a multitude on the first, a witness on each of the others.

    async with open_scene(tmp_path) as scene:
        scene.begin()                                     # record from here on
        ... a fault ...
        await scene.until_heard(scene.multitude.told("left", "cursorRemoved"), scene.deadline(15))
        await scene.look()                                # a newcomer gets the right state

Twins are identities with one connection on the first node and one on the second: while one lives, they do not leave.
"""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Mapping, Sequence, Set
from contextlib import asynccontextmanager
from pathlib import Path

from tests.support.clients.multitude import DOCUMENTS, ROOMS, Caller, Heard, Multitude, Witness, rooms_of
from tests.support.processes.deadline import Deadline
from tests.support.scenarios.node_stage import NodeStage, node_stage

__all__ = ["Scene", "open_scene"]

TWINS = 3
HEARD_WITHIN_S = 5.0
# A witness is in every room, and ten thousand notices are 2 MB within a moment.
LIMITS = {"SNORKY_LIMITS__CHANNELS_PER_CONNECTION": "5000", "SNORKY_LIMITS__OUTBOX_MAX_BYTES": "100000000"}


class Scene:
    """Three nodes with everybody connected."""

    def __init__(self, stage: NodeStage) -> None:
        self.stage = stage
        self.multitude = Multitude(stage, 0)
        self.witnesses: list[Witness] = []
        self.twins: list[tuple[Caller, ...]] = []
        self._looks = self._said = 0

    async def enter(self) -> None:
        """Connect everybody. Witnesses get each join once."""
        self.witnesses = [await Witness.come(self.stage, node, f"witness {node}") for node in (1, 2)]
        await asyncio.gather(*(witness.enter() for witness in self.witnesses))
        await self.fence()
        self.begin()
        await self.multitude.come()
        await self.until_heard(self.multitude.told("joined", "cursorAdded"), self.deadline(10.0))
        for number in range(TWINS):
            pair = [await Caller.come(self.stage, node, f"twin {number}") for node in (0, 1)]
            for caller in pair:
                await asyncio.gather(*(caller.ask("chat", "join", channel=room) for room in rooms_of(number)))
            self.twins.append(tuple(pair))
        await self.fence()

    def begin(self) -> None:
        """Start to record."""
        for witness in self.witnesses:
            witness.heard.clear()
            witness.messages.clear()

    def deadline(self, within_s: float) -> Deadline:
        """Start the clock."""
        return Deadline(within_s, [each.pid for each in (*self.stage.nodes, self.stage.redis)])

    async def until_heard(self, expected: Mapping[Heard, int], deadline: Deadline) -> None:
        """Wait until both witnesses have received that many. Raises AssertionError: others than these."""
        count = sum(expected.values())
        for witness in self.witnesses:
            await witness.until(lambda heard=witness.heard: len(heard) >= count, deadline, what=f"{count} heard")
        self.check_heard(expected)

    def check_heard(self, expected: Mapping[Heard, int]) -> None:
        """Compare the witnesses' records with the expected ones. Raises AssertionError."""
        for witness in self.witnesses:
            heard = Counter(witness.heard)
            missing, surplus = Counter(expected) - heard, heard - Counter(expected)
            assert not missing and not surplus, (
                f"{witness.identity}: {missing.total()} not heard, as {list(missing.items())[:3]}; "
                f"{surplus.total()} not expected, as {list(surplus.items())[:3]}"
            )

    async def fence(self) -> None:
        """Wait until the witnesses have what Redis sent them so far."""
        await self.say(self.witnesses[0], ROOMS[0])

    async def say(self, caller: Caller, room: str) -> None:
        """Send a message to a room, and wait until the witnesses have it."""
        self._said += 1
        body = f"{self._said} by {caller.identity}"
        await caller.ask("chat", "send", channel=room, body=body)
        await self.until_told({"type": "message", "channel": room, "body": body})

    async def until_told(self, message: Mapping[str, object], witnesses: Sequence[Witness] = ()) -> None:
        """Wait until these witnesses, or both, have a notification with these fields."""
        for witness in witnesses or self.witnesses:
            await witness.until(
                lambda messages=witness.messages: any(message.items() <= each.items() for each in messages),
                self.deadline(HEARD_WITHIN_S),
                what=f"{witness.identity} receives {message}",
            )

    async def until_listed(self, names: Set[str], deadline: Deadline) -> None:
        """Wait until exactly these names are registered, and the witnesses'."""
        expected = names | {witness.identity for witness in self.witnesses}
        while (listed := set(await self.witnesses[0].ask("messaging", "listParticipants"))) != expected:
            assert deadline.left_s > 0, (
                f"too late: {len(listed - expected)} names too many, {len(expected - listed)} lack"
            )
            await asyncio.sleep(0.05)  # there are no notifications of names

    async def look(self) -> None:
        """Connect a newcomer, and check that it gets the right state."""
        self._looks += 1
        looker = await Caller.come(self.stage, 2, f"looker {self._looks}")
        await self.until_listed(self.multitude.names, self.deadline(0.0))
        answers = await asyncio.gather(*(looker.ask("chat", "join", channel=room) for room in ROOMS))
        members = self.multitude.members
        others = {each.identity for each in [looker, *self.witnesses]}
        twins = {room: f"twin {number}" for number in range(TWINS) for room in rooms_of(number)}
        for room, answer in zip(ROOMS, answers, strict=True):
            assert set(answer["members"]) == members[room] | others | ({twins[room]} if room in twins else set()), room
        answers = await asyncio.gather(*(looker.ask("cursors", "join", document=each) for each in DOCUMENTS))
        shown = [cursor for answer in answers for cursor in answer["cursors"]]
        assert {each["publicHandle"]: each for each in shown} == self.multitude.cursors
        assert len(shown) == len(self.multitude.cursors)
        await looker.go()


@asynccontextmanager
async def open_scene(directory: Path) -> AsyncIterator[Scene]:
    """Run a scene with everybody connected."""
    async with node_stage(directory, 3, env=LIMITS) as stage:
        scene = Scene(stage)
        await scene.enter()
        yield scene
