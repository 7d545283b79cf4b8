"""Reindex: rebuilds the indexes of all owners after a server of a Cluster has restored an older copy of its data.

An owner's index and the state that it lists are on different shards. If only one shard restores an older copy, they
differ: entries reappear that no index lists, or the index of a dead node lacks its latest entries. Without a rebuild,
these entries would never be removed.

Rules:
- After a server starts (a new *run*, identified by Redis' run_id), one node scans all primaries, once: a rolled-back
  index may lack entries of any of them. A key per run records that this was done; a lock selects the node.
- Every entry that is found is added to its owner's index. A living owner then compares its index with its holdings. An
  owner without a lease gets an expired one, so that reapers find it. An index element without state is harmless.
- At most `KEYS_PER_S` keys per second are scanned on each primary; the hashes found are read in small batches.
"""

import asyncio
import re
from collections import defaultdict
from collections.abc import Callable
from contextlib import suppress
from typing import Final

import structlog

from snorky.gateway.errors import BrokerUnavailable
from snorky.gateway.redis.connection.pipeline import all_ended
from snorky.gateway.redis.connection.resp import command
from snorky.gateway.redis.connection.scripts import Call, Scripts
from snorky.gateway.redis.directory.owned_index import BATCH, OwnedName, RosterEntry
from snorky.gateway.redis.keys import index_lock_key, indexed_run_key, leases_key, owned_key, reaped_key

__all__ = ["Reindex"]

LOOK_S: Final = 60.0  # between two checks for new runs, without a new connection
AGAIN_S: Final = 1.0  # while a scan is pending, or a server does not answer
PATIENCE_S: Final = 120.0  # enough for 2 million keys on a server
HOLD_S: Final = 15.0  # lifetime of the lock after its node failed or died; renewed at each step, which takes less
KEPT_S: Final = 30 * 86_400.0  # lifetime of the record that a run was scanned; afterwards it is scanned once more
PAGE: Final = 1_000  # keys per step: blocks a server for 0.3 ms
KEYS_PER_S: Final = 20_000  # per server
HASHES: Final = 20  # read per step
FIELDS: Final = 100  # read of each hash per step; small hashes are always read whole

_OWNER: Final = re.compile(rb"([A-Za-z0-9_.-]+:[A-Za-z0-9-]+):(\d+)")

_log = structlog.get_logger("snorky.redis")


class Reindex:
    """Watches the runs of all primaries while started. on_done: called after a node has scanned all of them."""

    def __init__(
        self,
        scripts: Scripts,
        *,
        prefix: str,
        node_id: str,
        on_done: Callable[[], None],
        keys_per_s: float = KEYS_PER_S,
    ) -> None:
        self.is_pending = False  # a new run is not scanned yet, so Redis may have outdated entries
        self._scripts = scripts
        self._prefix = prefix
        self._node_id = node_id
        self._on_done = on_done
        self._pause_s = PAGE / keys_per_s
        self._runs: set[bytes] = set()  # the current runs of all servers
        self._done: set[bytes] | None = None  # the runs that this node knows to be scanned
        self._problem = ""
        self._pending_since = 0.0  # loop time
        self._hurry = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    @property
    def is_searching(self) -> bool:
        """True while entries may exist that no index lists; at most for `PATIENCE_S`, even if the scan does not end."""
        return self.is_pending and asyncio.get_running_loop().time() - self._pending_since < PATIENCE_S

    def start(self) -> None:
        """Start; returns at once. Does nothing without a Cluster: one server restores index and state together."""
        if self._scripts.is_sharded:
            self._task = asyncio.get_running_loop().create_task(self._run(), name="redis-reindex")

    async def stop(self) -> None:
        """Stop. Idempotent."""
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    def start_now(self) -> None:
        """Check now: there is a new connection, perhaps to a new run."""
        self._hurry.set()

    async def _run(self) -> None:
        while True:
            self._hurry.clear()
            is_whole = False
            try:
                is_whole = await self._rebuild()
            except BrokerUnavailable as error:
                self._complain(error.what)
            except Exception as error:  # the top of a task
                self._complain(repr(error))
            with suppress(TimeoutError):
                async with asyncio.timeout(LOOK_S if is_whole else AGAIN_S):
                    await self._hurry.wait()

    def _complain(self, problem: str) -> None:
        if problem != self._problem:
            _log.warning("indexes not rebuilt", error=problem[:300])
        self._problem = problem

    async def _rebuild(self) -> bool:
        """If there are new runs, scan all servers, unless another node does.

        Returns True if all runs are scanned. Raises BrokerUnavailable: also if one of the servers does not answer.
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
        count, owners, adopted = await self._go_through()  # if this fails, the lock stays until it expires
        kept_ms = b"%d" % round(KEPT_S * 1000)
        await self._scripts.run(*(command(b"SET", mark, b"1", b"PX", kept_ms) for mark in marks))
        self._scripts.forget(command(b"DEL", index_lock_key(self._prefix)))
        _log.info("indexes rebuilt", entries=count, owners=owners, without_lease=adopted)
        self.is_pending, self._done, self._problem = False, self._runs, ""
        self._on_done()
        return True

    async def _lock(self, *, is_ours: bool = False) -> bool:
        """Take the lock; is_ours: extend it. Returns True on success."""
        how = b"XX" if is_ours else b"NX"
        hold_ms = b"%d" % round(HOLD_S * 1000)
        key = index_lock_key(self._prefix)
        (answer,) = await self._scripts.run(command(b"SET", key, self._node_id.encode(), how, b"PX", hold_ms))
        return answer is not None

    async def _go_through(self) -> tuple[int, int, int]:
        """Index all entries; returns the number of entries, of owners, and of owners without a lease."""
        owners: set[bytes] = set()
        counts = await all_ended(self._go_through_one(server, owners) for server in self._scripts.servers())
        found = sorted(owners)
        adopted = 0
        for start in range(0, len(found), BATCH):
            call = Call("adopt", [leases_key(self._prefix), reaped_key(self._prefix)], found[start : start + BATCH])
            adopted += (await self._scripts.run(call))[0]
        return sum(counts), len(owners), adopted

    async def _go_through_one(self, server: Scripts, owners: set[bytes]) -> int:
        """Index all entries on one server; returns their number. Adds their owners to `owners`."""
        pattern = _literal(self._prefix).encode() + b":[n{]*[r}]"
        count, cursor = 0, b"0"
        while True:
            ((cursor, keys),) = await server.run(command(b"SCAN", cursor, b"MATCH", pattern, b"COUNT", b"%d" % PAGE))
            hashes = []
            for key in keys:
                kind, name = self._read_key(key)
                if kind == "owned":
                    owners.add(name.encode())  # its owner may have no lease
                elif kind:
                    hashes.append((key, kind, name))
            for start in range(0, len(hashes), HASHES):
                count += await self._index(hashes[start : start + HASHES], owners)
            await self._lock(is_ours=True)
            if cursor == b"0":
                return count
            await asyncio.sleep(self._pause_s)

    async def _index(self, hashes: list[tuple[bytes, str, str]], owners: set[bytes]) -> int:
        """Add the entries of some hashes to their owners' indexes; returns their number."""
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
        """Classify a key: "roster", "names" or "owned", and its roster, names or owner; "" = another kind."""
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
    """Decode a field of a roster: its owner, and the index element; None = not in our format."""
    whose, _, entry = field.partition(b" ")
    found = _OWNER.fullmatch(whose)
    with suppress(UnicodeDecodeError):
        return None if found is None else (found[1], RosterEntry(roster, int(found[2]), entry.decode()).element())
    return None


def _read_name(names: str, name: bytes, value: bytes) -> tuple[bytes, bytes] | None:
    """Decode a name and its value: its owner, and the index element; None = not in our format."""
    found = _OWNER.fullmatch(value.partition(b" ")[0])
    with suppress(UnicodeDecodeError):
        return None if found is None else (found[1], OwnedName(names, name.decode(), int(found[2])).element())
    return None


def _literal(text: str) -> str:
    """Escape the special characters of a Redis pattern."""
    return re.sub(r"([*?\[\]\\^])", r"\\\1", text)
