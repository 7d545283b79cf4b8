"""Presences: the rosters that subscribers on this node hear of, made true again when the node was deaf.

Rules:
- A roster is followed while a connection of this node subscribes to its channel, and its service has notices of it.
- After an interruption the versions of all are compared; where one is not what was heard, or when a notice does not
  follow the one before, the roster is read, and its subscribers are told what they missed, by the notices that they
  would have got.
- Who is missing then may only seem so: Redis may have lost its state, and nodes enter their members again within 10 s.
  So departures are told when a second look, `GRACE_S` later and with no interruption in between, misses them still.
- One census of a roster at a time, and `CENSUSES` of all: Redis does nothing else while a large one is read.
"""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from typing import Final

import structlog

from gateway.directory import Directory
from gateway.errors import BrokerUnavailable
from gateway.metrics import Metrics
from gateway.presence import Difference, Presence
from gateway.publication import Change

__all__ = ["GRACE_S", "Presences"]

GRACE_S: Final = 12.0
CENSUSES: Final = 8
PAGE: Final = 500  # versions in one pipeline
RETRY_S: Final = 0.25

_log = structlog.get_logger("snorky.presences")


class Presences:
    """Follows rosters. tell: has a roster's subscribers on this node told of differences."""

    def __init__(
        self,
        directory: Directory,
        tell: Callable[[str, Sequence[Difference]], None],
        metrics: Metrics,
        *,
        grace_s: float = GRACE_S,
    ) -> None:
        self._directory = directory
        self._tell = tell
        self._metrics = metrics
        self._grace_s = grace_s
        self._followed: dict[str, Presence] = {}
        self._wanted: dict[str, bool] = {}  # what is to be looked at; and whether who is missing then has left
        self._woken = asyncio.Event()
        self._second_look: asyncio.TimerHandle | None = None
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin; returns at once."""
        self._task = asyncio.get_running_loop().create_task(self._run(), name="presences")

    async def stop(self) -> None:
        """End what is under way. Idempotent."""
        self._cancel_second_look()
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    def follow(self, roster: str) -> None:
        """Follow a roster from now on; nothing if it is followed already."""
        if roster not in self._followed:
            self._followed[roster] = Presence()
            self._want(roster)

    def forget(self, roster: str) -> None:
        """Follow a roster no more; nothing if it is not followed."""
        if self._followed.pop(roster, None) is not None:
            self._wanted.pop(roster, None)

    def hear(self, roster: str, change: Change) -> bool:
        """Take a change that the broker brought. False: subscribers have been told of it already."""
        presence = self._followed.get(roster)
        if presence is None:
            return True
        loop = asyncio.get_running_loop()
        is_news = presence.hear(change, loop.time())
        if presence.has_hole and roster not in self._wanted:
            self._want(roster)
        if presence.unsaid:
            unsaid, presence.unsaid = presence.unsaid, []
            loop.call_soon(self._tell, roster, unsaid)  # behind what was heard just now
        return is_news

    def interrupted(self) -> None:
        """Know that the broker was not heard for a while."""
        self._cancel_second_look()
        for roster in self._followed:
            self._want(roster)

    # -- looks -------------------------------------------------------------------------------------------------------

    def _want(self, roster: str, *, with_departures: bool = False) -> None:
        self._wanted[roster] = with_departures
        self._woken.set()

    def _want_again(self, looks: Mapping[str, bool]) -> None:
        """Put back what could not be looked at, unless it was given up, or is wanted anew."""
        for roster, with_departures in looks.items():
            if roster in self._followed and roster not in self._wanted:
                self._want(roster, with_departures=with_departures)

    def _cancel_second_look(self) -> None:
        if self._second_look is not None:
            self._second_look.cancel()
            self._second_look = None

    def _look_again_later(self) -> None:
        self._cancel_second_look()
        self._second_look = asyncio.get_running_loop().call_later(self._grace_s, self._look_for_departures)

    def _look_for_departures(self) -> None:
        for roster, presence in self._followed.items():
            if presence.is_doubtful:
                self._want(roster, with_departures=True)

    async def _run(self) -> None:
        while True:
            await self._woken.wait()
            self._woken.clear()
            wanted, self._wanted = list(self._wanted.items()), {}
            for start in range(0, len(wanted), PAGE):
                await self._look(dict(wanted[start : start + PAGE]))
            if self._wanted:
                await asyncio.sleep(RETRY_S)

    async def _look(self, looks: dict[str, bool]) -> None:
        """Look at some rosters; what Redis does not tell now is wanted still."""
        try:
            behind = await self._behind(looks)
        except BrokerUnavailable:
            self._want_again(looks)
            return
        turns = asyncio.Semaphore(CENSUSES)

        async def count(roster: str) -> None:
            async with turns:
                try:
                    await self._count(roster, with_departures=looks[roster])
                except BrokerUnavailable:
                    self._want_again({roster: looks[roster]})
                except Exception:  # one roster's fault must not keep the others
                    _log.exception("roster was not compared")

        await asyncio.gather(*map(count, behind))

    async def _behind(self, looks: Mapping[str, bool]) -> list[str]:
        """Find those that must be read: that are new here, in doubt, or of another version than was heard."""
        versions = dict(zip(looks, await self._directory.versions(list(looks)), strict=True))
        behind = []
        for roster, version in versions.items():
            presence = self._followed.get(roster)
            if presence is None:
                continue  # given up meanwhile
            if version is None:
                self._want_again({roster: looks[roster]})
            elif presence.version is None or presence.is_doubtful or not presence.agrees(version):
                behind.append(roster)
        return behind

    async def _count(self, roster: str, *, with_departures: bool) -> None:
        presence = self._followed.get(roster)
        if presence is None:
            return
        presence.begin_census()
        census = await self._directory.census(roster)
        if self._followed.get(roster) is not presence:
            return  # given up meanwhile
        now_s = asyncio.get_running_loop().time()
        differences = presence.settle(census, now_s, with_departures=with_departures)
        for difference in differences:
            self._metrics.roster_differences.labels(difference.kind).inc()
        if differences:
            self._tell(roster, differences)
        if presence.is_doubtful:
            self._look_again_later()
