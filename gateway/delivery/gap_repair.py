"""GapRepair: restores channels with a history after this node has missed publications.

Rules:
- A channel is tracked from before the subscribe request to the broker until no local subscriber is left: one `Sequence`
  for all its subscribers, one fill at a time, at most `FILLS` of all channels at once.
- `open` is called after the broker's confirmation. The node receives whatever is published from then on, so nothing is
  lost between the position that history returns then and the first publication received.
- A missed publication that another one follows is noticed at once, by its offset. If the latest ones are missed, the
  node notices it by comparing positions with history: after every interruption, and every `COMPARE_EVERY_S` (a
  publication can be lost without an interruption).
- For a client that recovers, history is read after `open`; publications delivered meanwhile are kept, and joined to it
  by offsets and tags. If they do not meet, this node itself has missed something, which is repaired first.
- If a channel was dropped during an await and is tracked again, it is a new `_Followed`, not the same one.
"""

import asyncio
from collections.abc import Callable, Coroutine, Iterable, Iterator, Sequence
from itertools import islice
from typing import Any, Final, TypeVar

import structlog

from snorky.gateway.connection.pace import Pace
from snorky.gateway.contracts.history import HistoryStore, Recovery
from snorky.gateway.delivery.channel_order import ChannelOrder, Step
from snorky.gateway.delivery.gap_filler import GapFiller
from snorky.gateway.delivery.unkept import Unkept
from snorky.gateway.errors import BrokerUnavailable, InvalidMessage
from snorky.gateway.metrics import Metrics
from snorky.gateway.protocol.codec import decode_json
from snorky.gateway.protocol.publication import Position, Publication, tombstone

__all__ = ["COMPARE_EVERY_S", "GapRepair"]

FILLS: Final = 16  # concurrent: Redis does nothing else while it reads a page
RECOVERIES: Final = 64  # concurrent reads for clients that recover
COMPARE_EVERY_S: Final = 20.0
COMPARE_GRACE_S: Final = 1.0
COMPARE_PAGE: Final = 500  # channels per pipeline
RETRY_S: Final = 0.25
PATIENCE_S: Final = 5.0  # maximum wait for a fill
REPLAY_MAX: Final = 300  # of one client, PROTOCOL
REPLAY_MAX_BYTES: Final = 1 << 20
KEEP_S: Final = 0.25  # a read for clients that recover: when a node dies, its clients come within some seconds
KEPT_MAX_BYTES: Final = 16 << 20  # of all these reads
ATTEMPTS: Final = 5

_T = TypeVar("_T")
_Replay = asyncio.Task[list[Publication] | None]  # of a client that recovers

_log = structlog.get_logger("snorky.repair")


class _Followed:
    """One channel. asked: callers waiting for a fill not begun yet. unkept: number received that are not retained.

    replays: reads for clients that recover, in progress and just ended, by position and `unkept` when they began.
    """

    __slots__ = ("asked", "fill", "opening", "order", "replays", "unkept")

    def __init__(self) -> None:
        self.order = ChannelOrder()
        self.opening = asyncio.Lock()
        self.fill: asyncio.Task[None] | None = None
        self.asked: list[asyncio.Future[None]] = []
        self.replays: dict[tuple[Position, int], _Replay] = {}
        self.unkept = 0


class GapRepair:
    """Tracks channels. filler: reads what they missed. compare_grace_s: publications in history may be in transit."""

    def __init__(
        self,
        history_store: HistoryStore,
        filler: GapFiller,
        metrics: Metrics,
        *,
        compare_every_s: float = COMPARE_EVERY_S,
        compare_grace_s: float = COMPARE_GRACE_S,
    ) -> None:
        self._history_store = history_store
        self._filler = filler
        self._metrics = metrics
        self._unkept = Unkept(history_store, metrics)
        self._compare_every_s = compare_every_s
        self._compare_grace_s = compare_grace_s
        self._followed: dict[str, _Followed] = {}
        self._fills = asyncio.Semaphore(FILLS)
        self._recoveries = asyncio.Semaphore(RECOVERIES)
        self.pace = Pace()  # of clients that recover
        self._kept_bytes = 0  # of replays that have ended
        self._interruption = asyncio.Event()
        self._tasks: set[asyncio.Task[Any]] = set()
        self.release: Callable[[str], object] = lambda _key: None  # set by the node: deliver what waits in a channel

    def __contains__(self, key: str) -> bool:
        return key in self._followed

    def start(self) -> None:
        """Start comparing in the background."""
        self._run(self._compare_for_ever(), "comparing histories")

    async def stop(self) -> None:
        """Cancel all tasks and reads in progress. Idempotent."""
        self._followed.clear()
        await self._unkept.stop()
        tasks = tuple(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    # -- channels ----------------------------------------------------------------------------------------------------

    def follow(self, key: str) -> None:
        """Begin to track a channel; no effect if it is tracked already."""
        if key not in self._followed:
            self._followed[key] = _Followed()

    def forget(self, key: str) -> None:
        """Stop tracking a channel; no effect if it is not tracked."""
        followed = self._followed.pop(key, None)
        if followed is not None and followed.fill is not None:
            followed.fill.cancel()

    async def open(self, key: str) -> None:
        """Read a channel's position after the broker has confirmed the subscription. Raises BrokerUnavailable."""
        followed = self._followed.get(key)
        if followed is None:
            return  # no longer tracked; the caller notices it
        async with followed.opening:
            if followed.order.last is None:
                followed.order.start_at(await self._history_store.position(key))
                self._fill_if_wanted(key, followed)

    def receive(self, key: str, publications: Sequence[Publication]) -> list[Step]:
        """Process received publications of a tracked channel; returns what to deliver now."""
        followed = self._followed[key]
        followed.unkept += self._unkept.receive(key, publications)
        steps = followed.order.receive(publications)
        self._fill_if_wanted(key, followed)
        return steps

    def interrupted(self) -> None:
        """Compare all channels soon: the broker was not received for a while."""
        for followed in self._followed.values():
            followed.replays.clear()  # they may lack what was published meanwhile
            if followed.order.is_filling:
                followed.order.want_fill()  # the read may have been before the interruption ended
        self._interruption.set()

    # -- client recovery ---------------------------------------------------------------------------------------------

    async def catch_up(self, key: str, since: Position | None) -> Recovery | None:
        """Return what was published after a position, up to the last publication delivered to local subscribers.

        The channel must be open; None = it is no longer tracked. The caller must add its client to the subscribers
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
            publications = None  # a publication that is not retained came before this client was subscribed
        if self._followed.get(key) is not followed or order.last is None:
            return None
        self._metrics.recoveries.labels("not_recovered" if publications is None else "recovered").inc()
        return Recovery(order.last, publications is not None, publications or [])

    async def _catch_up(self, key: str, followed: _Followed, since: Position) -> list[Publication] | None:
        for _ in range(ATTEMPTS):
            wanted = since, followed.unkept
            replay = followed.replays.get(wanted)
            if replay is None:
                replay = self._begin_replay(key, followed, wanted)
                missed = await asyncio.shield(replay)
            else:
                missed = await asyncio.shield(replay)
                await self.pace.turn()  # all that have waited for it wake in one iteration
            last = followed.order.last
            if missed is None:
                if last is not None and last.epoch == since.epoch:
                    await self._fill(key, followed)  # history may have been lost, unnoticed by this node
                return None
            joined = followed.order.join(since, missed)
            if joined is not None and not _is_too_much(joined):
                return joined[: len(missed)] + [_as_deliverable(each) for each in joined[len(missed) :]]
            if followed.replays.get(wanted) is replay:  # else another caller has begun the next one
                del followed.replays[wanted]
            if joined is None:
                await self._fill(key, followed)
        return None  # unknown what it missed

    def _begin_replay(self, key: str, followed: _Followed, wanted: tuple[Position, int]) -> _Replay:
        """Read what follows a position, once for all clients that recover from it at about this time (of a dead node).

        A caller may share a read that began before its call: publications delivered since then are kept, for the first
        caller too. If a publication came that is not retained, another read begins.
        """
        replay = followed.replays[wanted] = self._run(self._read(key, wanted[0]), f"recovering {key[:100]}")
        self._run(self._keep(replay, followed, wanted), f"keeping {key[:100]}")
        return replay

    async def _keep(self, replay: _Replay, followed: _Followed, wanted: tuple[Position, int]) -> None:
        """Keep a read for clients that come soon, with the publications that are delivered meanwhile."""
        size = 0
        with followed.order.joining():
            try:
                await asyncio.wait((replay,))
                if not replay.cancelled() and replay.exception() is None:
                    size = sum(each.size for each in replay.result() or ())
                    self._kept_bytes += size
                    if self._kept_bytes <= KEPT_MAX_BYTES:
                        await asyncio.sleep(KEEP_S)
            finally:
                self._kept_bytes -= size
                if followed.replays.get(wanted) is replay:
                    del followed.replays[wanted]

    async def _read(self, key: str, since: Position) -> list[Publication] | None:
        async with self._recoveries:
            missed = await self._history_store.read(
                key, since, max_entries=REPLAY_MAX, max_bytes=REPLAY_MAX_BYTES, is_away=True
            )
            await self.pace.turn()  # still one of RECOVERIES: few results wait in the line
        if missed is None:
            return None
        checked = [_as_deliverable(each) for each in missed]
        for each in checked:
            if each.is_tombstone:
                self._metrics.drops.labels(each.fault).inc()
        return checked

    async def _fill(self, key: str, followed: _Followed) -> None:
        """Run a fill that begins after this call. Raises BrokerUnavailable: it takes too long."""
        self.release(key)
        followed.order.want_fill()
        self._fill_if_wanted(key, followed)
        if followed.fill is None:
            return  # no longer tracked
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
                self.release(key)
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
        """Return the channels whose history has more than this node, or something else."""
        behind: dict[str, tuple[_Followed, Position | None]] = {}
        for page in _pages(self._followed.items(), COMPARE_PAGE):
            tops = await self._history_store.positions([key for key, _ in page])
            behind |= {key: (each, tops.get(key)) for key, each in page if not each.order.agrees(tops.get(key))}
        return behind

    def _run(self, coroutine: Coroutine[Any, Any, _T], name: str) -> asyncio.Task[_T]:
        task = asyncio.get_running_loop().create_task(coroutine, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task


def _pages(items: Iterable[tuple[str, _Followed]], size: int) -> Iterator[list[tuple[str, _Followed]]]:
    """Yield all present items, in pages."""
    rest = iter(tuple(items))
    while page := list(islice(rest, size)):
        yield page


def _release(asked: Iterable[asyncio.Future[None]]) -> None:
    for future in asked:
        if not future.done():  # the waiting caller may have been cancelled
            future.set_result(None)


def _is_too_much(publications: Sequence[Publication]) -> bool:
    """True if one client gets a gap instead of so many publications."""
    return len(publications) > REPLAY_MAX or sum(each.size for each in publications) > REPLAY_MAX_BYTES


def _as_deliverable(publication: Publication) -> Publication:
    try:
        decode_json(publication.payload)
    except InvalidMessage:
        return tombstone(publication)
    return publication
