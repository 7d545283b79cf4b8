"""Repair: a node's channels that keep a history, made whole again when the node missed something.

Rules:
- A channel is followed from before the broker is asked for it until nobody here has it any more; one `Sequence` for all
  its subscribers, one fill at a time, at most `FILLS` of all channels at once.
- `open` comes behind the broker's confirmation: what is published from then on is heard, so the position that history
  tells then has nothing in front of it that nobody hears.
- What was missed and followed by something is seen at once, by its offset. What was missed last is seen by comparing:
  after every interruption, and every `COMPARE_EVERY_S` (a publication can be lost without one).
- Who comes back reads history after all that, while what is delivered meanwhile is kept; where the two meet offsets and
  tags decide. If they do not meet this node has missed something itself: then that is repaired first.
- A channel that was given up while something was awaited is another one when it comes again.
"""

import asyncio
from collections.abc import Coroutine, Iterable, Iterator, Sequence
from itertools import islice
from typing import Any, Final

import structlog

from gateway.codec import decode_json
from gateway.errors import BrokerUnavailable, InvalidMessage
from gateway.filling import Filler
from gateway.history import Keeper, Recovery
from gateway.metrics import Metrics
from gateway.publication import Position, Publication, tombstone
from gateway.sequence import Sequence as Order
from gateway.sequence import Step
from gateway.unkept import Unkept

__all__ = ["COMPARE_EVERY_S", "Repair"]

FILLS: Final = 16  # at once: Redis does nothing else while a page is read
RECOVERIES: Final = 64  # reads of clients that come back, at once
COMPARE_EVERY_S: Final = 20.0
COMPARE_GRACE_S: Final = 1.0
COMPARE_PAGE: Final = 500  # channels in one pipeline
RETRY_S: Final = 0.25
PATIENCE_S: Final = 5.0  # of who waits for a fill
REPLAY_MAX: Final = 300  # of one client, PROTOCOL
REPLAY_MAX_BYTES: Final = 1 << 20
ATTEMPTS: Final = 5

_log = structlog.get_logger("snorky.repair")


class _Followed:
    """One channel. asked: who waits for a fill that has not begun yet. unkept: how many it heard that are not kept."""

    __slots__ = ("asked", "fill", "opening", "order", "unkept")

    def __init__(self) -> None:
        self.order = Order()
        self.opening = asyncio.Lock()
        self.fill: asyncio.Task[None] | None = None
        self.asked: list[asyncio.Future[None]] = []
        self.unkept = 0


class Repair:
    """Follows channels. filler: reads what they missed. compare_grace_s: what history has may be on its way so long."""

    def __init__(
        self,
        keeper: Keeper,
        filler: Filler,
        metrics: Metrics,
        *,
        compare_every_s: float = COMPARE_EVERY_S,
        compare_grace_s: float = COMPARE_GRACE_S,
    ) -> None:
        self._keeper = keeper
        self._filler = filler
        self._metrics = metrics
        self._unkept = Unkept(keeper, metrics)
        self._compare_every_s = compare_every_s
        self._compare_grace_s = compare_grace_s
        self._followed: dict[str, _Followed] = {}
        self._fills = asyncio.Semaphore(FILLS)
        self._recoveries = asyncio.Semaphore(RECOVERIES)
        self._replays: dict[tuple[str, Position, int], asyncio.Future[list[Publication] | None]] = {}  # under way
        self._interruption = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()

    def __contains__(self, key: str) -> bool:
        return key in self._followed

    def start(self) -> None:
        """Begin to compare."""
        self._run(self._compare_for_ever(), "comparing histories")

    async def stop(self) -> None:
        """End all that is under way. Idempotent."""
        self._followed.clear()
        await self._unkept.stop()
        tasks: list[asyncio.Future[Any]] = [*self._tasks, *self._replays.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    # -- channels ----------------------------------------------------------------------------------------------------

    def follow(self, key: str) -> None:
        """Follow a channel from now on; nothing if it is followed already."""
        if key not in self._followed:
            self._followed[key] = _Followed()

    def forget(self, key: str) -> None:
        """Follow a channel no more; nothing if it is not followed."""
        followed = self._followed.pop(key, None)
        if followed is not None and followed.fill is not None:
            followed.fill.cancel()

    async def open(self, key: str) -> None:
        """Learn where a channel stands, once the broker has confirmed it. Raises BrokerUnavailable."""
        followed = self._followed.get(key)
        if followed is None:
            return  # given up meanwhile, which the caller sees
        async with followed.opening:
            if followed.order.last is None:
                followed.order.start_at(await self._keeper.position(key))
                self._fill_if_wanted(key, followed)

    def hear(self, key: str, publications: Sequence[Publication]) -> list[Step]:
        """Take what was heard of a followed channel; returns what is to be delivered now."""
        followed = self._followed[key]
        followed.unkept += self._unkept.hear(key, publications)
        steps = followed.order.hear(publications)
        self._fill_if_wanted(key, followed)
        return steps

    def interrupted(self) -> None:
        """Know that the broker was not heard for a while."""
        for followed in self._followed.values():
            if followed.order.is_filling:
                followed.order.want_fill()  # the read may have been before the interruption ended
        self._interruption.set()

    # -- who comes back ----------------------------------------------------------------------------------------------

    async def catch_up(self, key: str, since: Position | None) -> Recovery | None:
        """Tell what was published behind a position, up to what is delivered next to the channel's subscribers.

        The channel is open; None = it was given up meanwhile. Whoever calls this takes its place among the subscribers
        without another await. Raises BrokerUnavailable.
        """
        followed = self._followed.get(key)
        if followed is None:
            return None
        order, unkept = followed.order, followed.unkept
        is_noted = self._unkept.is_noted(key)
        with order.joining():
            publications = [] if since is None else await self._catch_up(key, followed, since)
        if since is not None and not (is_noted and unkept == followed.unkept):
            publications = None  # something came that is not kept, before this client is among the subscribers
        if self._followed.get(key) is not followed or order.last is None:
            return None
        self._metrics.recoveries.labels("not_recovered" if publications is None else "recovered").inc()
        return Recovery(order.last, publications is not None, publications or [])

    async def _catch_up(self, key: str, followed: _Followed, since: Position) -> list[Publication] | None:
        for _ in range(ATTEMPTS):
            missed = await self._replay(key, since, followed.unkept)
            last = followed.order.last
            if missed is None:
                if last is not None and last.epoch == since.epoch:
                    await self._fill(key, followed)  # perhaps it is the history that has gone, and we have not noticed
                return None
            joined = followed.order.join(since, missed)
            if joined is not None:
                return joined[: len(missed)] + [_sound(each) for each in joined[len(missed) :]]
            await self._fill(key, followed)
        return None  # it cannot be said what it missed

    async def _replay(self, key: str, since: Position, unkept: int) -> list[Publication] | None:
        """Read what is behind a position, once for all who come back with it meanwhile: those of a node that died.

        Who comes later may get a read that began before: what was delivered since then is kept, also for the former;
        and where something came that is not kept, the read is another one.
        """
        wanted = key, since, unkept
        replay = self._replays.get(wanted)
        if replay is None:
            replay = self._replays[wanted] = asyncio.ensure_future(self._read(key, since))
            replay.add_done_callback(lambda done: self._end_replay(wanted, done))
        return await asyncio.shield(replay)

    def _end_replay(
        self, wanted: tuple[str, Position, int], replay: "asyncio.Future[list[Publication] | None]"
    ) -> None:
        del self._replays[wanted]
        if not replay.cancelled():
            replay.exception()  # who asked may have gone

    async def _read(self, key: str, since: Position) -> list[Publication] | None:
        async with self._recoveries:
            missed = await self._keeper.read(
                key, since, max_entries=REPLAY_MAX, max_bytes=REPLAY_MAX_BYTES, is_away=True
            )
        if missed is None:
            return None
        sound = [_sound(each) for each in missed]
        for each in sound:
            if each.is_tombstone:
                self._metrics.drops.labels(each.fault).inc()
        return sound

    async def _fill(self, key: str, followed: _Followed) -> None:
        """Make a channel whole, by a read that begins after this call. Raises BrokerUnavailable: it takes too long."""
        followed.order.want_fill()
        self._fill_if_wanted(key, followed)
        if followed.fill is None:
            return  # given up meanwhile
        asked: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        followed.asked.append(asked)
        try:
            async with asyncio.timeout(PATIENCE_S):
                await asked
        except TimeoutError:
            raise BrokerUnavailable("history cannot be read") from None

    # -- fills -------------------------------------------------------------------------------------------------------

    def _fill_if_wanted(self, key: str, followed: _Followed) -> None:
        if followed.order.wants_fill and followed.fill is None and self._followed.get(key) is followed:
            followed.fill = self._run(self._fill_until_whole(key, followed), f"filling {key[:100]}")

    async def _fill_until_whole(self, key: str, followed: _Followed) -> None:
        try:
            while followed.order.wants_fill:
                async with self._fills:
                    asked, is_read = tuple(followed.asked), await self._filler.fill(key, followed.order)
                if is_read:
                    del followed.asked[: len(asked)]
                    _release(asked)
                else:
                    await asyncio.sleep(RETRY_S)
        finally:
            followed.fill = None
            _release(followed.asked)
            followed.asked.clear()

    # -- comparing ---------------------------------------------------------------------------------------------------

    async def _compare_for_ever(self) -> None:
        while True:
            was_interrupted = await self._is_interrupted_within(self._compare_every_s)
            self._interruption.clear()
            try:
                behind = await self._behind()
            except Exception as error:  # the top of a task
                if not isinstance(error, BrokerUnavailable):
                    _log.exception("histories were not compared")
                if was_interrupted:
                    self._interruption.set()
                await asyncio.sleep(RETRY_S)
                continue
            if behind and not was_interrupted:
                await self._is_interrupted_within(self._compare_grace_s)
            for key, (followed, top) in behind.items():
                if not followed.order.agrees(top):
                    followed.order.want_fill()
                    self._fill_if_wanted(key, followed)

    async def _is_interrupted_within(self, seconds: float) -> bool:
        try:
            async with asyncio.timeout(seconds):
                return await self._interruption.wait()
        except TimeoutError:
            return False

    async def _behind(self) -> dict[str, tuple[_Followed, Position | None]]:
        """Find the channels of which history has more, or something else, than this node has."""
        behind: dict[str, tuple[_Followed, Position | None]] = {}
        for page in _pages(self._followed.items(), COMPARE_PAGE):
            tops = await self._keeper.positions([key for key, _ in page])
            behind |= {key: (each, tops.get(key)) for key, each in page if not each.order.agrees(tops.get(key))}
        return behind

    def _run(self, coroutine: Coroutine[Any, Any, None], name: str) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(coroutine, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task


def _pages(items: Iterable[tuple[str, _Followed]], size: int) -> Iterator[list[tuple[str, _Followed]]]:
    """Give all of now, in pages."""
    rest = iter(tuple(items))
    while page := list(islice(rest, size)):
        yield page


def _release(asked: Iterable[asyncio.Future[None]]) -> None:
    for future in asked:
        if not future.done():  # who waited may have gone
            future.set_result(None)


def _sound(publication: Publication) -> Publication:
    try:
        decode_json(publication.payload)
    except InvalidMessage:
        return tombstone(publication)
    return publication
