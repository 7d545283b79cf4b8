"""ClusterCounts: what the connections of this node count against limits over all nodes, and give back at their end.

Rules:
- A connection counts before it is accepted, until its transport has ended, and a subscription before it is made. So the
  nodes together never have more than the limit allows.
- If units were lost because this node was cut off, its newest connections of that name are closed: clients reconnect.
- While Redis does not answer, present connections stay, and new ones that a limit applies to are refused.
"""

import asyncio
import itertools
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Final

import structlog

from snorky.gateway.config.limits import ClusterLimits
from snorky.gateway.connection.connection import Connection
from snorky.gateway.connection.refusals import Refusals
from snorky.gateway.connection.shared_limits import site_of
from snorky.gateway.contracts.limits import LimitStore
from snorky.gateway.errors import BrokerUnavailable, CloseCode, ConnectionClosed, LimitExceeded
from snorky.gateway.metrics import Metrics

__all__ = ["ClusterCounts", "Unit"]

Unit = tuple[str, str]  # limit, name

PER_IDENTITY: Final = "cluster_connections_per_identity"
PER_IP: Final = "cluster_connections_per_ip"
CHANNELS: Final = "cluster_channels_per_identity"
SUBSCRIBERS: Final = "channel_subscribers_max"
_TEXTS: Final = {
    PER_IDENTITY: "Too many connections of this identity",
    PER_IP: "Too many connections from this address",
    CHANNELS: "This identity has subscribed to too many channels",
    SUBSCRIBERS: "This channel has too many subscribers",
}

_log = structlog.get_logger("snorky.node")


class ClusterCounts:
    """The counts of one node."""

    def __init__(self, limits: ClusterLimits, store: LimitStore, metrics: Metrics, refusals: Refusals) -> None:
        self._maxima = {
            PER_IDENTITY: limits.connections_per_identity,
            PER_IP: limits.connections_per_ip,
            CHANNELS: limits.channels_per_identity,
        }
        self.is_counting = limits.connections_per_identity > 0 or limits.connections_per_ip > 0
        self._store = store
        self._metrics = metrics
        self._refusals = refusals
        self._units: dict[Connection, list[Unit]] = {}  # the newest last
        self._channels: dict[Connection, dict[str, list[Unit]]] = {}  # by channel key; the newest connection last
        self._lost: Counter[Unit] = Counter()  # not handled yet
        self._entering: dict[Connection, list[int]] = {}  # [subscriptions being counted, rechecks meanwhile]

    async def enter(self, identity: str | None, address: str) -> Sequence[Unit]:
        """Count a client before its connection exists. The caller must then call `bind` or `leave`.

        identity: None = anonymous. Raises LimitExceeded, BrokerUnavailable: nothing is counted.
        """
        taken: list[Unit] = []
        try:
            for limit, name in ((PER_IP, site_of(address)), (PER_IDENTITY, identity)):
                if name and self._maxima[limit]:
                    await self._take(limit, name, identity, address, self._maxima[limit])
                    taken.append((limit, name))
        except BaseException:
            self.leave(taken)
            raise
        return taken or ()

    def bind(self, connection: Connection, units: Sequence[Unit]) -> None:
        """Count these units for a connection until `forget`."""
        if self.is_counting:
            self._units[connection] = list(units)

    def leave(self, units: Sequence[Unit]) -> None:
        """Give units back that got no connection."""
        for limit, name in units:
            self._store.give_back(limit, name, 1)

    def forget(self, connection: Connection) -> None:
        """Give back what an ended connection counts. Idempotent."""
        self.leave(self._units.pop(connection, ()))

    async def enter_identity(self, connection: Connection, identity: str) -> None:
        """Count a connection that gets an identity later. Raises LimitExceeded, BrokerUnavailable, ConnectionClosed."""
        unit = PER_IDENTITY, identity
        if not self._maxima[PER_IDENTITY] or unit in self._units.get(connection, ()):
            return
        await self._take(*unit, identity, connection.remote_ip, self._maxima[PER_IDENTITY])
        units = self._units.get(connection)
        if units is None or unit in units:  # it ended meanwhile, or has counted meanwhile
            self.leave([unit])
        else:
            units.append(unit)
        if units is None:
            raise ConnectionClosed

    async def enter_channel(self, connection: Connection, key: str, *, subscribers_max: int) -> None:
        """Count a subscription before it is made, until `leave_channel`. key: of the channel. subscribers_max: 0 = any.

        Raises LimitExceeded, BrokerUnavailable (also after `recheck`), ConnectionClosed: nothing is counted.
        """
        wanted = [(SUBSCRIBERS, key, subscribers_max)] if subscribers_max else []
        if connection.identity is not None and self._maxima[CHANNELS]:
            wanted.append((CHANNELS, connection.identity, self._maxima[CHANNELS]))
        if not wanted or key in connection.channels or key in self._channels.get(connection, ()):
            return
        taken: list[Unit] = []
        entering = self._entering.setdefault(connection, [0, 0])
        entering[0] += 1
        rechecks = entering[1]
        try:
            for limit, name, maximum in wanted:
                await self._take(limit, name, connection.identity, connection.remote_ip, maximum)
                taken.append((limit, name))
            if connection.is_closed:
                raise ConnectionClosed
            if entering[1] != rechecks:
                raise BrokerUnavailable("rights changed while a subscription was counted")
        except BaseException:
            self.leave(taken)
            raise
        finally:
            entering[0] -= 1
            if not entering[0]:
                del self._entering[connection]
        if key in self._channels.setdefault(connection, {}):  # another call has counted it meanwhile
            self.leave(taken)
        else:
            self._channels[connection][key] = taken

    def recheck(self, connection: Connection) -> None:
        """Let the subscriptions fail that are being counted: they were permitted before rights were looked at again.

        Their clients get the error `unavailable`. When they try again, the rules are checked again.
        """
        entering = self._entering.get(connection)
        if entering is not None:
            entering[1] += 1

    def leave_channel(self, connection: Connection, key: str) -> None:
        """Give back what a subscription counts that has ended. Idempotent."""
        counted = self._channels.get(connection)
        if counted is not None:
            self.leave(counted.pop(key, ()))
            if not counted:
                del self._channels[connection]

    @contextmanager
    def kept(self, connection: Connection, key: str) -> Iterator[None]:
        """Count a subscription on that ends in the block, for a caller that subscribes again at once."""
        counted = self._channels.get(connection, {}).pop(key, None)
        try:
            yield
        finally:
            if counted is not None:
                self._channels.setdefault(connection, {})[key] = counted

    async def _take(self, limit: str, name: str, identity: str | None, address: str, maximum: int) -> None:
        if await self._store.take(limit, name, 1, maximum):
            return
        self._metrics.limit_hits.labels(limit).inc()
        self._refusals.note("limit", limit, address=address, identity=identity)
        raise LimitExceeded(limit, _TEXTS[limit])

    def on_lost(self, limit: str, name: str, units: int) -> None:
        """Close the newest connections that count against a limit, soon. units: how many were lost."""
        self._metrics.limit_hits.labels(limit).inc(units)
        if not self._lost:  # one pass over the connections for all that is lost
            asyncio.get_running_loop().call_soon(self._close_lost)
        self._lost[limit, name] += units

    def _close_lost(self) -> None:
        """Close the newest connections that count what other nodes have taken."""
        lost, self._lost = self._lost, Counter()
        _log.warning("other nodes have taken what this node counted: closing connections", units=lost.total())
        for connection in reversed(list(self._units | self._channels)):
            own = [*self._units.get(connection, ()), *itertools.chain(*self._channels.get(connection, {}).values())]
            reached = next((unit for unit in own if lost[unit] > 0), None)
            if reached is not None and not connection.is_closed:
                lost.subtract(own)
                connection.close(CloseCode.RECONNECT, _TEXTS[reached[0]])
