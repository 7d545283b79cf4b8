"""Reindex: the indexes of all owners made whole, after a server of a Cluster went back to an older copy.

An owner's index and what it stands for lie on different shards. Where one of them goes back alone, the other is wrong:
entries come back that no index has, or the index of a node that died lacks the last ones. Nobody would take them out.

Rules:
- Each run of a server is gone through once, by one node: a key for each run says that it was done, a lock who does it.
- With one new run all primaries are gone through: an index that went back may lack what lies anywhere.
- What is found is written into its owner's index. A living owner compares its index with its ledger then; an owner
  without a lease gets one that has ended, so that reapers find it. An element without state is harmless.
- A primary is asked for `KEYS_PER_S` keys a second at most; a batch of hashes is read in a step as well.
"""

import asyncio
import re
from collections import defaultdict
from collections.abc import Callable
from contextlib import suppress
from typing import Final

import structlog

from gateway.errors import BrokerUnavailable
from gateway.redis.estate import BATCH, NameHeld, Place
from gateway.redis.names import index_lock_key, indexed_run_key, leases_key, owned_key, reaped_key
from gateway.redis.pipeline import all_ended
from gateway.redis.scripting import Call, Scripts
from gateway.redis.wire import command

__all__ = ["Reindex"]

LOOK_S: Final = 60.0  # between two looks without a new connection
AGAIN_S: Final = 1.0  # while a run has not been gone through, or a server does not answer
PATIENCE_S: Final = 120.0  # 2 million keys on a server
HOLD_S: Final = 15.0  # the lock of a node that failed or died: a step takes less
KEPT_S: Final = 30 * 86_400.0  # that a run was gone through; afterwards it is once more
PAGE: Final = 1_000  # keys a step: 0.3 ms of a server
KEYS_PER_S: Final = 20_000  # and server
HASHES: Final = 20  # a step
FIELDS: Final = 100  # of each, and all of a small one

_OWNER: Final = re.compile(rb"([A-Za-z0-9_.-]+:[A-Za-z0-9-]+):(\d+)")

_log = structlog.get_logger("snorky.redis")


class Reindex:
    """Watches the runs of all primaries while started. on_done: called when all have been gone through, by any node."""

    def __init__(
        self,
        scripts: Scripts,
        *,
        prefix: str,
        node_id: str,
        on_done: Callable[[], None],
        keys_per_s: float = KEYS_PER_S,
    ) -> None:
        self.is_pending = False  # what Redis has may be from before
        self._scripts = scripts
        self._prefix = prefix
        self._node_id = node_id
        self._on_done = on_done
        self._pause_s = PAGE / keys_per_s
        self._runs: set[bytes] = set()  # of all servers, as last seen
        self._done: set[bytes] | None = None  # those that were gone through, as far as this node has seen
        self._problem = ""
        self._pending_since = 0.0  # loop time
        self._hurry = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    @property
    def is_searching(self) -> bool:
        """True while an entry may be one that has no index; not for longer than `PATIENCE_S`, if that does not end."""
        return self.is_pending and asyncio.get_running_loop().time() - self._pending_since < PATIENCE_S

    def start(self) -> None:
        """Begin; returns at once. On one server, index and state go back together: then there is nothing to do."""
        if self._scripts.is_sharded:
            self._task = asyncio.get_running_loop().create_task(self._run(), name="redis-reindex")

    async def stop(self) -> None:
        """Stop. Idempotent."""
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    def hurry(self) -> None:
        """Look now: there is a new connection, perhaps to another run."""
        self._hurry.set()

    async def _run(self) -> None:
        while True:
            self._hurry.clear()
            is_whole = False
            try:
                is_whole = await self._make_whole()
            except BrokerUnavailable as error:
                self._complain(error.what)
            except Exception as error:  # the top of a task
                self._complain(repr(error))
            with suppress(TimeoutError):
                async with asyncio.timeout(LOOK_S if is_whole else AGAIN_S):
                    await self._hurry.wait()

    def _complain(self, problem: str) -> None:
        if problem != self._problem:
            _log.warning("indexes are not made whole", error=problem[:300])
        self._problem = problem

    async def _make_whole(self) -> bool:
        """Look for runs that were not gone through; go through all servers then, unless another node does.

        Returns True when it is done. Raises BrokerUnavailable: also, one of the servers does not answer.
        """
        answers = await all_ended(server.run(Call("run", [], [])) for server in self._scripts.servers())
        self._runs = {bytes(run) for (run,) in answers}
        if not self._runs:
            return False  # no server is known yet
        marks = [indexed_run_key(self._prefix, run.decode()) for run in sorted(self._runs)]
        if all(await self._scripts.run(*(command(b"EXISTS", mark) for mark in marks))):
            if self.is_pending or (self._done is not None and not self._runs <= self._done):
                self._on_done()
            self.is_pending, self._done = False, self._runs
            return True
        if not self.is_pending:
            self.is_pending, self._pending_since = True, asyncio.get_running_loop().time()
        if not await self._lock():
            return False
        count, owners, adopted = await self._go_through()  # where this fails the lock stays, until another try
        kept_ms = b"%d" % round(KEPT_S * 1000)
        await self._scripts.run(*(command(b"SET", mark, b"1", b"PX", kept_ms) for mark in marks))
        self._scripts.forget(command(b"DEL", index_lock_key(self._prefix)))
        _log.info("indexes made whole", entries=count, owners=owners, without_lease=adopted)
        self.is_pending, self._done, self._problem = False, self._runs, ""
        self._on_done()
        return True

    async def _lock(self, *, is_ours: bool = False) -> bool:
        """Take the lock, or keep it."""
        how = b"XX" if is_ours else b"NX"
        hold_ms = b"%d" % round(HOLD_S * 1000)
        key = index_lock_key(self._prefix)
        (answer,) = await self._scripts.run(command(b"SET", key, self._node_id.encode(), how, b"PX", hold_ms))
        return answer is not None

    async def _go_through(self) -> tuple[int, int, int]:
        """Index all entries; returns how many there were, of how many owners, and how many had no lease."""
        owners: set[bytes] = set()
        counts = await all_ended(self._go_through_one(server, owners) for server in self._scripts.servers())
        found = sorted(owners)
        adopted = 0
        for start in range(0, len(found), BATCH):
            call = Call("adopt", [leases_key(self._prefix), reaped_key(self._prefix)], found[start : start + BATCH])
            adopted += (await self._scripts.run(call))[0]
        return sum(counts), len(owners), adopted

    async def _go_through_one(self, server: Scripts, owners: set[bytes]) -> int:
        """Index what lies on one server."""
        pattern = _literal(self._prefix).encode() + b":[n{]*[r}]"
        count, cursor = 0, b"0"
        while True:
            ((cursor, keys),) = await server.run(command(b"SCAN", cursor, b"MATCH", pattern, b"COUNT", b"%d" % PAGE))
            hashes = []
            for key in keys:
                kind, name = self._read_key(key)
                if kind == "owned":
                    owners.add(name.encode())  # an index without lease, too
                elif kind:
                    hashes.append((key, kind, name))
            for start in range(0, len(hashes), HASHES):
                count += await self._index(hashes[start : start + HASHES], owners)
            await self._lock(is_ours=True)
            if cursor == b"0":
                return count
            await asyncio.sleep(self._pause_s)

    async def _index(self, hashes: list[tuple[bytes, str, str]], owners: set[bytes]) -> int:
        """Write what some hashes have into the indexes of its owners."""
        count = 0
        cursors = [(each, b"0") for each in hashes]
        while cursors:
            reads = [command(b"HSCAN", each[0], cursor, b"COUNT", b"%d" % FIELDS) for each, cursor in cursors]
            answers = await self._scripts.run(*reads, in_order=False)
            elements: defaultdict[bytes, list[bytes]] = defaultdict(list)
            for ((_, kind, name), _), (_, flat) in zip(cursors, answers, strict=True):
                for field, value in zip(flat[::2], flat[1::2], strict=True):
                    found = _read_place(name, field) if kind == "roster" else _read_name(name, field, value)
                    if found is not None:
                        elements[found[0]].append(found[1])
            calls = [
                command(b"SADD", owned_key(self._prefix, owner.decode()), *each) for owner, each in elements.items()
            ]
            if calls:
                await self._scripts.run(*calls, in_order=False)
            owners.update(elements)
            count += sum(map(len, elements.values()))
            cursors = [
                (each, cursor) for (each, _), (cursor, _) in zip(cursors, answers, strict=True) if cursor != b"0"
            ]
            await asyncio.sleep(self._pause_s)
        return count

    def _read_key(self, key: bytes) -> tuple[str, str]:
        """Tell what a key is: "roster", "names" or "owned", and whose; "" = another one."""
        try:
            text = key.decode()
        except UnicodeDecodeError:
            return "", ""
        for kind, begin, end in (
            ("roster", "nodes{", "}:roster"),
            ("names", "{names ", "}"),
            ("owned", "{owned:", "}"),
        ):
            begin = f"{self._prefix}:{begin}"
            if text.startswith(begin) and text.endswith(end):
                return kind, text[len(begin) : -len(end)]
        return "", ""


def _read_place(roster: str, field: bytes) -> tuple[bytes, bytes] | None:
    """Read a field of a roster: the owner, and the element of its index."""
    whose, _, entry = field.partition(b" ")
    found = _OWNER.fullmatch(whose)
    with suppress(UnicodeDecodeError):
        return None if found is None else (found[1], Place(roster, int(found[2]), entry.decode()).element())
    return None


def _read_name(names: str, name: bytes, value: bytes) -> tuple[bytes, bytes] | None:
    """Read a name and who has it."""
    found = _OWNER.fullmatch(value.partition(b" ")[0])
    with suppress(UnicodeDecodeError):
        return None if found is None else (found[1], NameHeld(names, name.decode(), int(found[2])).element())
    return None


def _literal(text: str) -> str:
    """Escape what has a meaning in a pattern of Redis."""
    return re.sub(r"([*?\[\]\\^])", r"\\\1", text)
