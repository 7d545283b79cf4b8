"""RosterSync: the rosters that subscribers on this node follow; repairs them after the node missed notices.

Rules:
- A roster is tracked while a connection of this node subscribes to its channel, and its service sends presence events.
- After an interruption the versions of all are compared, and again when nodes that were disconnected have registered
  their members again. If a version differs, if a notice does not follow the previous one, or while a member is
  suspected to have left, the roster is read, and its subscribers receive the events that they missed.
- One census of a roster at a time, and at most `CENSUSES` in total: reading a large one blocks Redis.
- Many events are sent in portions, as fast as the slowest subscriber reads them; changes received meanwhile count.
"""

import asyncio
from collections.abc import Callable, Collection, Sequence
from typing import Final

import structlog

from snorky.gateway.contracts.directory import Directory
from snorky.gateway.errors import BrokerUnavailable
from snorky.gateway.metrics import Metrics
from snorky.gateway.presence.roster_view import GRACE_S, Difference, RosterView
from snorky.gateway.protocol.publication import Change

__all__ = ["RosterSync"]

AFTERMATH_S: Final = 30.0  # nodes have registered their members again within 10 s; a slow node within this time
CENSUSES: Final = 8
PAGE: Final = 500  # versions per pipeline
MARGIN_S: Final = 0.05  # the clock of timers is coarse: a census that begins too early decides nothing
PORTION: Final = 100  # differences
PATIENCE_S: Final = 5.0  # maximum wait until subscribers have read a portion
RETRY_S: Final = 0.25
FAILED_RETRY_S: Final = 5.0

_log = structlog.get_logger("snorky.presences")


class RosterSync:
    """Tracks rosters. grace_s: see Presence.

    notify: sends differences to a roster's subscribers on this node, except those with a list of this version or a
    later one; 0 = to all. is_congested: True while subscribers have much unsent data.
    """

    def __init__(
        self,
        directory: Directory,
        notify: Callable[[str, Sequence[Difference], int], None],
        metrics: Metrics,
        *,
        is_congested: Callable[[str], bool] = lambda _roster: False,
        grace_s: float = GRACE_S,
    ) -> None:
        self._directory = directory
        self._notify = notify
        self._metrics = metrics
        self._is_congested = is_congested
        self._grace_s = grace_s
        self._followed: dict[str, RosterView] = {}
        self._wanted: dict[str, None] = {}  # an ordered set: the rosters to compare
        self._woken = asyncio.Event()
        self._grace_timers: dict[str, asyncio.TimerHandle] = {}
        self._aftermath: asyncio.TimerHandle | None = None
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Start the background task; returns at once."""
        self._task = asyncio.get_running_loop().create_task(self._run(), name="presences")

    async def stop(self) -> None:
        """Stop timers and the background task. Idempotent."""
        for roster in tuple(self._followed):
            self.forget(roster)
        if self._aftermath is not None:
            self._aftermath.cancel()
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    def follow(self, roster: str) -> None:
        """Begin to track a roster; no effect if it is tracked already."""
        if roster not in self._followed:
            self._followed[roster] = RosterView(grace_s=self._grace_s)
            self._want(roster)

    def forget(self, roster: str) -> None:
        """Stop tracking a roster; no effect if it is not tracked."""
        if self._followed.pop(roster, None) is not None:
            self._wanted.pop(roster, None)
            self._end_doubt(roster)

    def receive(self, roster: str, change: Change) -> bool:
        """Process a received change. False: subscribers have been notified of it already."""
        presence = self._followed.get(roster)
        if presence is None:
            return True
        loop = asyncio.get_running_loop()
        is_news = presence.receive(change, loop.time())
        if presence.has_hole:
            self._want(roster)
        if presence.unsaid:
            unsaid, presence.unsaid = presence.unsaid, []
            loop.call_soon(self._tell_current, roster, presence, unsaid)  # after the present notice
        return is_news

    def known(self, roster: str) -> int:
        """For the last change received: subscribers with a list up to this version know it already; 0 = none does."""
        presence = self._followed.get(roster)
        return 0 if presence is None else presence.known

    def interrupted(self) -> None:
        """Compare all rosters, now and once more later: the broker was not received for a while."""
        for roster, presence in self._followed.items():
            presence.interrupted()
            self._end_doubt(roster)
        self._want_all()
        if self._aftermath is not None:
            self._aftermath.cancel()
        self._aftermath = asyncio.get_running_loop().call_later(AFTERMATH_S, self._want_all)

    # -- comparing ---------------------------------------------------------------------------------------------------

    def _want(self, *rosters: str) -> None:
        self._wanted.update(dict.fromkeys(rosters))
        self._woken.set()

    def _want_all(self) -> None:
        self._want(*self._followed)

    def _look_when_ripe(self, roster: str) -> None:
        self._end_doubt(roster)
        self._grace_timers[roster] = asyncio.get_running_loop().call_later(self._grace_s + MARGIN_S, self._want, roster)

    def _end_doubt(self, roster: str) -> None:
        timer = self._grace_timers.pop(roster, None)
        if timer is not None:
            timer.cancel()

    async def _run(self) -> None:
        while True:
            await self._woken.wait()
            self._woken.clear()
            wanted, self._wanted = list(self._wanted), {}
            for start in range(0, len(wanted), PAGE):
                page = wanted[start : start + PAGE]
                try:
                    await self._look(page)
                except BrokerUnavailable:
                    self._want(*page)
                except Exception:  # the top of a task
                    _log.exception("comparing rosters failed")
                    asyncio.get_running_loop().call_later(FAILED_RETRY_S, self._want, *page)
            if self._wanted:
                await asyncio.sleep(RETRY_S)

    async def _look(self, rosters: Collection[str]) -> None:
        """Compare rosters; those of unknown version are queued again. Raises BrokerUnavailable: none was compared."""
        followed = [roster for roster in rosters if roster in self._followed]
        versions = dict(zip(followed, await self._directory.versions(followed), strict=True))
        turns = asyncio.Semaphore(CENSUSES)

        async def count(roster: str, presence: RosterView) -> None:
            async with turns:
                try:
                    await self._count(roster, presence)
                except BrokerUnavailable:
                    self._want(roster)
                except Exception:  # an error with one roster must not stop the others
                    _log.exception("comparing a roster failed")
                    asyncio.get_running_loop().call_later(FAILED_RETRY_S, self._want, roster)

        behind = []
        for roster, version in versions.items():
            presence = self._followed.get(roster)
            if presence is None:
                continue  # no longer tracked
            if version is None:
                self._want(roster)
            elif presence.version is None or presence.is_doubtful or not presence.agrees(version):
                behind.append(count(roster, presence))
        await asyncio.gather(*behind)

    async def _count(self, roster: str, presence: RosterView) -> None:
        presence.begin_census(asyncio.get_running_loop().time())
        try:
            census = await self._directory.census(roster)
        except BaseException:
            presence.abandon_census()
            raise
        if self._followed.get(roster) is not presence:
            return  # no longer tracked
        differences = presence.settle(census, asyncio.get_running_loop().time())
        if presence.is_doubtful:
            self._look_when_ripe(roster)
        for difference in differences:
            self._metrics.presence_corrections.labels(difference.kind).inc()
        for start in range(0, len(differences), PORTION):
            if start:
                await self._until_taken(roster)
            self._tell_current(roster, presence, differences[start : start + PORTION], census.version)

    def _tell_current(
        self, roster: str, presence: RosterView, differences: Sequence[Difference], version: int = 0
    ) -> None:
        if self._followed.get(roster) is not presence:
            return  # no longer tracked
        current = [now for each in differences if (now := presence.current(each)) is not None]
        if current:
            self._notify(roster, current, version)

    async def _until_taken(self, roster: str) -> None:
        """Wait until a roster's subscribers have read most of the sent events, at most PATIENCE_S."""
        await asyncio.sleep(0)
        for _ in range(round(PATIENCE_S / RETRY_S)):
            if not self._is_congested(roster):
                return
            await asyncio.sleep(RETRY_S)
