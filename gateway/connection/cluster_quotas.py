"""ClusterQuotas: how many bytes clients may store in Redis, counted over all nodes together.

Rules:
- A node takes bytes from the quota of an identity or address in portions, before its clients store anything, and while
  its clients spend them. So no write waits for Redis, and all nodes together never spend more than the quota.
- Bytes that were spent are given back after STORED_S, and bytes that were not when the last connection ends.
- If this node could not renew what it has taken, it spends nothing: other nodes may have taken it.
"""

import asyncio
from collections import deque
from collections.abc import Awaitable
from math import ceil
from time import monotonic
from typing import Final, Protocol

import structlog

from snorky.gateway.connection.connection import Connection
from snorky.gateway.connection.shared_limits import site_of
from snorky.gateway.errors import BrokerUnavailable

__all__ = ["PER_IDENTITY", "PER_IP", "ClusterQuotas", "Reserve", "Taken"]

PER_IDENTITY: Final = "cluster_stored_bytes_per_identity"
PER_IP: Final = "cluster_stored_bytes_per_ip"
STORED_S: Final = 300.0  # as in `storage_quotas`
SLOT_S: Final = 5.0  # spent bytes are given back together
PORTIONS: Final = 8  # of a quota: all nodes together hold this part in advance
NODES_MIN: Final = 4
ASK_AGAIN_S: Final = 1.0  # after a refusal
SOON_MS: Final = 100  # until a portion is here

_log = structlog.get_logger("snorky.node")


class Reserve(Protocol):
    """The part of a LimitStore that is used here."""

    @property
    def nodes(self) -> int: ...

    def take(self, limit: str, name: str, units: int, maximum: int) -> Awaitable[bool]: ...

    def give_back(self, limit: str, name: str, units: int) -> None: ...

    def is_current(self, limit: str, name: str) -> bool: ...


class Taken:
    """What this node has taken of one quota. room: bytes not spent. connections: clients here that may spend them."""

    __slots__ = ("ask_at_s", "connections", "is_asking", "name", "room", "spent")

    def __init__(self, name: tuple[str, str]) -> None:
        self.name = name
        self.room = 0
        self.connections = 0
        self.is_asking = False
        self.ask_at_s = 0.0  # monotonic; not before, after a refusal
        self.spent: deque[list[float]] = deque()  # [monotonic seconds, bytes]

    def refund(self, size: int) -> None:
        """Undo a spending: nothing was stored."""
        if self.spent and self.spent[-1][1] >= size:  # else it has been given back already
            self.spent[-1][1] -= size
            self.room += size

    def lose(self, units: int) -> None:
        """Count bytes no more that other nodes have taken; the oldest spent ones first, then those not spent."""
        while units > 0 and self.spent:
            size = min(units, int(self.spent[0][1]))
            self.spent[0][1] -= size
            units -= size
            if not self.spent[0][1]:
                self.spent.popleft()
        self.room = max(0, self.room - units)


class ClusterQuotas:
    """The quotas of one node. per_identity, per_ip: bytes over all nodes; 0 = no limit."""

    def __init__(self, reserve: Reserve, *, per_identity: int, per_ip: int) -> None:
        self._reserve = reserve
        self._maxima = {PER_IDENTITY: per_identity, PER_IP: per_ip}
        self._taken: dict[tuple[str, str], Taken] = {}
        self._of_connection: dict[Connection, Taken | None] = {}  # of the node's clients; None: no limit applies
        self._tasks: set[asyncio.Task[None]] = set()
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin to give bytes back; returns at once."""
        if any(self._maxima.values()):
            self._task = asyncio.get_running_loop().create_task(self._run(), name="cluster quotas")

    async def stop(self) -> None:
        """Stop. Idempotent."""
        tasks = [*self._tasks, *([] if self._task is None else [self._task])]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._task = None

    def prepare(self, client: Connection) -> None:
        """A client has connected, or has a new identity: take a first portion, without waiting for it."""
        if not any(self._maxima.values()):
            return
        self.forget(client)
        name = self._name_of(client)
        if name is None:
            self._of_connection[client] = None
            return
        taken = self._taken.setdefault(name, Taken(name))
        taken.connections += 1
        self._of_connection[client] = taken
        if not taken.room:
            self._ask(taken, 1)

    def forget(self, client: Connection) -> None:
        """A client has gone. Idempotent."""
        taken = self._of_connection.pop(client, None)
        if taken is not None:
            taken.connections -= 1
            self._tidy(taken)

    def spend(self, client: Connection, size: int) -> tuple[Taken | None, int]:
        """Spend bytes. Returns the quota (None: no limit) and 0, or the ms to wait: then nothing was spent.

        Raises BrokerUnavailable: this node was cut off from Redis.
        """
        name = self._name_of(client)
        if name is None or client not in self._of_connection:
            return None, 0
        taken = self._of_connection[client]
        if taken is None or taken.name != name:
            self.prepare(client)  # a service has set its identity
            taken = self._taken[name]
        if not self._reserve.is_current(*name):
            raise BrokerUnavailable("limits")
        size, now_s = min(size, self._maxima[name[0]]), monotonic()
        if taken.room < size:
            self._ask(taken, size - taken.room)
            return taken, SOON_MS if taken.is_asking else self._wait_ms(taken, now_s)
        taken.room -= size
        if taken.spent and now_s - taken.spent[-1][0] < SLOT_S:
            taken.spent[-1][1] += size
        else:
            taken.spent.append([now_s, size])
        if taken.room < self._portion(name[0]) // 2:
            self._ask(taken, 1)
        return taken, 0

    def on_lost(self, limit: str, name: str, units: int) -> bool:
        """Handle the loss of bytes to other nodes. False = not a limit of this object."""
        if limit not in self._maxima:
            return False
        taken = self._taken.get((limit, name))
        if taken is not None:
            taken.lose(units)
        self._reserve.give_back(limit, name, units)
        return True

    def limit_of(self, client: Connection) -> str:
        """Return the name of the limit that applies to a client."""
        return PER_IP if client.identity is None else PER_IDENTITY

    # -- inner -------------------------------------------------------------------------------------------------

    def _name_of(self, client: Connection) -> tuple[str, str] | None:
        limit = self.limit_of(client)
        name = site_of(client.remote_ip) if client.identity is None else client.identity
        return (limit, name) if name and self._maxima[limit] else None

    def _portion(self, limit: str) -> int:
        return max(1, self._maxima[limit] // (PORTIONS * max(NODES_MIN, self._reserve.nodes)))

    def _wait_ms(self, taken: Taken, now_s: float) -> int:
        """Return when bytes of this node are given back; other nodes may give some back earlier."""
        oldest_s = taken.spent[0][0] + STORED_S - now_s if taken.spent else 0.0
        return max(1000, min(30_000, ceil(oldest_s * 1000)))

    def _ask(self, taken: Taken, wanted: int) -> None:
        """Take at least `wanted` bytes, better a portion, unless this was refused just now."""
        if taken.is_asking or monotonic() < taken.ask_at_s:
            return
        taken.is_asking = True
        task = asyncio.get_running_loop().create_task(self._take(taken, wanted), name="cluster quota")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _take(self, taken: Taken, wanted: int) -> None:
        limit, name = taken.name
        try:
            for size in dict.fromkeys((max(wanted, self._portion(limit)), wanted)):
                if await self._reserve.take(limit, name, size, self._maxima[limit]):
                    taken.room += size
                    return
            taken.ask_at_s = monotonic() + ASK_AGAIN_S
        except BrokerUnavailable:
            taken.ask_at_s = monotonic() + ASK_AGAIN_S
        finally:
            taken.is_asking = False
            self._tidy(taken)

    def _tidy(self, taken: Taken) -> None:
        """Give back what no connection may spend any more."""
        if taken.connections or taken.is_asking:
            return
        if taken.room:
            self._reserve.give_back(*taken.name, taken.room)
            taken.room = 0
        if not taken.spent:
            self._taken.pop(taken.name, None)

    def give_back_old(self) -> None:
        """Give back the bytes that were spent more than STORED_S ago."""
        until_s = monotonic() - STORED_S - SLOT_S
        for taken in list(self._taken.values()):
            old = 0
            while taken.spent and taken.spent[0][0] <= until_s:
                old += int(taken.spent.popleft()[1])
            if old:
                self._reserve.give_back(*taken.name, old)
            self._tidy(taken)

    async def _run(self) -> None:
        while True:
            await asyncio.sleep(SLOT_S)
            try:
                self.give_back_old()
            except Exception:  # the top of a task
                _log.exception("stored bytes not given back")
