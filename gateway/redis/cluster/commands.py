"""ClusterCommands: sends commands to a Redis Cluster, through one CommandPipeline for each shard.

Rules:
- The commands of a group are executed in order. Consecutive commands for one slot are sent together. Before the slot
  changes, their answers are awaited: there is no order between servers, nor between slots, which may move.
- The first commands of a group are sent at once, so groups for one slot are executed in call order unless it moves.
- A command that a server rejects because the slot is elsewhere was not executed. It is sent again until the deadline.
- A command without keys is sent to every shard; if any of them answers with an error or empty, that is the answer.
"""

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from itertools import groupby
from typing import Any, Final

import hiredis

from snorky.gateway.errors import BrokerUnavailable
from snorky.gateway.metrics import Metrics
from snorky.gateway.redis.cluster.shard_map import Shard, ShardMap
from snorky.gateway.redis.cluster.slots import key_of, slot_of
from snorky.gateway.redis.connection.commands import CommandPipeline
from snorky.gateway.redis.connection.pipeline import all_ended, fail
from snorky.gateway.redis.connection.refusals import refusal_of

__all__ = ["ClusterCommands"]

AGAIN_S: Final = 0.02  # same as in `slot_queue`


class ClusterCommands:
    """Implements `Commands` for a Cluster."""

    is_sharded = True

    def __init__(
        self,
        cluster: ShardMap,
        *,
        role: str,
        client_name: str,
        metrics: Metrics,
        timeout_s: float,
        dial_timeout_s: float,
    ) -> None:
        self.on_up: Callable[[], None] | None = None
        self._cluster = cluster
        self._timeout_s = timeout_s
        self._options: dict[str, Any] = {
            "role": role,
            "client_name": client_name,
            "metrics": metrics,
            "timeout_s": timeout_s,
            "dial_timeout_s": dial_timeout_s,
        }
        self._pipelines: dict[Shard, CommandPipeline] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._is_stopped = False

    def start(self) -> None:
        """Start to connect. Call once, on the event loop of all other calls."""
        self._cluster.start(self._on_change)
        self._on_change()

    async def stop(self) -> None:
        """Close all connections; pending groups fail. Idempotent."""
        self._is_stopped = True
        await self._cluster.stop(self._on_change)
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await asyncio.gather(*(pipeline.stop() for pipeline in self._pipelines.values()))

    @property
    def servers(self) -> Sequence[CommandPipeline]:
        """See Commands.servers."""
        return tuple(self._pipelines.values())

    def send(self, commands: Sequence[bytes], *, in_order: bool = True) -> "asyncio.Future[list[Any]]":
        """See Commands.send."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[list[Any]] = loop.create_future()
        if self._is_stopped:
            fail(future, BrokerUnavailable("the node is stopping"))
            return future
        keys = [key_of(each) for each in commands]
        slots = [None if key is None else slot_of(key) for key in keys]
        segments = [(slot, [each for each, _ in group]) for slot, group in _by_slot(commands, slots)]
        due = loop.time() + self._timeout_s
        if in_order:
            work = self._in_order(segments, self._try(*segments[0]), due)
        else:
            work = self._at_once([(slot, part, self._try(slot, part)) for slot, part in segments], due)
        task = loop.create_task(self._finish(future, work))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return future

    async def _in_order(
        self, segments: Sequence[tuple[int | None, list[bytes]]], first: "_Trial", due: float
    ) -> list[Any]:
        """Return the answers of a group whose first segment is already sent."""
        answers: list[Any] = []
        for at, (slot, commands) in enumerate(segments):
            answers += await self._done(slot, commands, first if at == 0 else self._try(slot, commands), due)
        return answers

    async def _at_once(self, segments: Sequence[tuple[int | None, list[bytes], "_Trial"]], due: float) -> list[Any]:
        """Return the answers of a group whose segments are all sent."""
        parts = await all_ended(self._done(slot, part, trial, due) for slot, part, trial in segments)
        return [answer for part in parts for answer in part]

    async def _finish(self, future: "asyncio.Future[list[Any]]", work: Coroutine[Any, Any, list[Any]]) -> None:
        try:
            answers = await work
        except BrokerUnavailable as error:
            fail(future, BrokerUnavailable(error.what))  # commands for other slots may have been executed
        except asyncio.CancelledError:
            fail(future, BrokerUnavailable("the node is stopping"))
            raise
        if not future.done():
            future.set_result(answers)

    async def _done(self, slot: int | None, commands: list[bytes], trial: "_Trial", due: float) -> list[Any]:
        """Return the answers of one segment, sent again until all commands are accepted. Raises BrokerUnavailable."""
        loop = asyncio.get_running_loop()
        answers: list[Any] = [None] * len(commands)
        open_ = list(range(len(commands)))
        while True:
            if trial is not None:
                for at, answer in zip(open_, await trial, strict=True):
                    answers[at] = answer
                open_ = [at for at in open_ if _is_elsewhere(answers[at])]
                if not open_:
                    return answers
            self._cluster.refresh_now()
            if loop.time() >= due:
                raise BrokerUnavailable(f"no server accepted the command within {self._timeout_s:g} s")
            await asyncio.sleep(AGAIN_S)
            trial = self._try(slot, [commands[at] for at in open_])

    def _try(self, slot: int | None, commands: list[bytes]) -> "_Trial":
        """Send commands to the server of their slot; None = no server is known to have it."""
        if slot is None:
            if not self._pipelines:
                return None
            return asyncio.ensure_future(self._ask_all(commands))
        shard = self._cluster.by_slot(slot)
        pipeline = None if shard is None else self._pipelines.get(shard)
        return None if pipeline is None else pipeline.send(commands)

    async def _ask_all(self, commands: list[bytes]) -> list[Any]:
        per_shard = await asyncio.gather(*(each.send(commands) for each in self._pipelines.values()))
        answers = []
        for found in zip(*per_shard, strict=True):
            bad = [answer for answer in found if isinstance(answer, hiredis.ReplyError) or not answer]
            answers.append(bad[0] if bad else found[0])
        return answers

    def _on_change(self) -> None:
        for shard in self._cluster.shards:
            if shard not in self._pipelines:
                pipeline = self._pipelines[shard] = CommandPipeline(shard.target, **self._options)
                pipeline.on_up = self._on_up
                pipeline.start()
        for shard in [each for each in self._pipelines if each not in self._cluster.shards]:
            task = asyncio.get_running_loop().create_task(self._pipelines.pop(shard).stop())
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    def _on_up(self) -> None:
        if self.on_up is not None:
            self.on_up()


_Trial = asyncio.Future[list[Any]] | None  # None: there was no server to send to


def _by_slot(commands: Sequence[bytes], slots: Sequence[int | None]) -> Any:
    return groupby(zip(commands, slots, strict=True), key=lambda pair: pair[1])


def _is_elsewhere(answer: object) -> bool:
    return isinstance(answer, hiredis.ReplyError) and refusal_of(answer).is_elsewhere
