"""Control: what the backend orders all nodes to do with their clients, and which nodes have done it.

    order -> ControlLog -> every node: find the connections, close or unsubscribe them -> result -> the reply

Rules:
- Every node carries out an order once, by its id, on the connections that it has when it reads the order.
- A client that shall reconnect is closed when all nodes have read the order, so that its next connection is not closed.
- An order to subscribe begins after the earlier orders to unsubscribe have ended, and these end it if they are later.
- The node that gives the order carries it out in the same way: from the list, as all others do.
- The reply names the nodes that should have answered and have not. An order is stored for a minute, so a node that was
  paused, or cut off from Redis, obeys when it is back. If it may have missed orders, it closes its clients with 4000.
"""

import asyncio
import secrets
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal, Protocol

import msgspec
import structlog

from snorky.gateway.config.rules.patterns import pattern_of
from snorky.gateway.connection.connection import Connection
from snorky.gateway.contracts.control import ORDERS_MAX, ControlLog, ControlOrder, encode_order
from snorky.gateway.errors import BrokerUnavailable, CloseCode, LimitExceeded
from snorky.gateway.protocol.codec import channel_of
from snorky.gateway.sdk.control_views import connections_page, merged, place_of
from snorky.gateway.sdk.server_subscriptions import ServerSubscriptions
from snorky.gateway.sdk.service_channels import ServiceChannels

__all__ = ["CHANNELS_MAX", "LOOK_MAX", "Control", "Found", "Reached"]

ANSWER_S: Final = 0.9  # the documented limit, until the backend has the reply, is one second
STORE_S: Final = 0.4  # of ANSWER_S, for storing a server-side subscription
POLL_S: Final = (0.01, 0.05)  # between two reads of the results: the first, and the longest
AWAITED_MAX: Final = 1_000  # orders whose results this node waits for
LOOK_MAX: Final = 200  # entries of one page: at most 100 KiB from each node
CHANNELS_MAX: Final = 2_000  # of one page: at most 600 KiB from each node, which visits all its channels for a page
CHUNK: Final = 256  # connections per loop iteration

_log = structlog.get_logger("snorky.control")


@dataclass(frozen=True, slots=True)
class Reached:
    """The result of an order. nodes: those that have carried it out, with the number of connections; missing: the
    other nodes that hold a lease, or held one until recently."""

    nodes: dict[str, int]
    missing: list[str]

    @property
    def connections(self) -> int:
        """The number of connections that were reached."""
        return sum(self.nodes.values())


@dataclass(frozen=True, slots=True)
class Found:
    """One page of an answer. missing: nodes whose entries are not in it. last: `after` of the next page; None = it is
    the last one."""

    entries: list[dict[str, Any]]
    missing: list[str]
    last: str | None


_NAMES: Final = {"nodes": "node", "connections": "connection", "channels": "name"}  # the entry's name
_KEYS: Final[dict[str, Callable[[dict[str, Any]], Any]]] = {  # what entries are ordered by
    "nodes": lambda entry: entry["node"],
    "connections": lambda entry: place_of(entry["connection"]),
    "channels": lambda entry: entry["name"],
}


class EndsSubscriptions(Protocol):
    """A service, as an order needs it."""

    def end_subscription(self, connection: Connection, channel: Any, code: str, reason: str) -> bool:
        """See Service.end_subscription."""


class Control:
    """Gives orders to all nodes, and carries them out on this one.

    connections: returns all of this node. find_service: by name; None = not on this node. state: of this
    node, JSON values. subscriptions: those that the backend orders. refresh: looks again at what a connection may do,
    by an order's claims and expiry; returns whether it was reached.
    """

    def __init__(
        self,
        log: ControlLog,
        *,
        node_id: str,
        connections: Callable[[], Iterable[Connection]],
        channels: ServiceChannels,
        find_service: Callable[[str], EndsSubscriptions | None],
        state: Callable[[], Mapping[str, Any]],
        subscriptions: ServerSubscriptions,
        refresh: Callable[[Connection, ControlOrder], Awaitable[bool]],
    ) -> None:
        self._orders = log
        self._node_id = node_id
        self._connections = connections
        self._channels = channels
        self._find_service = find_service
        self._state = state
        self.subscriptions = subscriptions
        self._refresh_one = refresh
        self._subscribing = asyncio.Lock()  # see the rules; asyncio's locks are fair
        self._known: dict[str, None] = {}  # ids of the orders carried out; more than are stored at the same time
        self._tasks: set[asyncio.Task[None]] = set()  # one for each order: at most as many as are stored
        self._awaited = 0

    def start(self) -> None:
        """Begin to carry out orders; returns at once."""
        self._orders.begin(self._on_orders, self._on_missed)

    async def stop(self) -> None:
        """Stop. Orders in progress are cancelled: the connections of a node that stops are closed. Idempotent."""
        tasks = tuple(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self.subscriptions.stop()
        await self._orders.stop()

    async def give(
        self,
        command: Literal["disconnect", "subscribe", "unsubscribe", "refresh"],
        *,
        service: str = "",
        identity: str | None = None,
        connection_id: str | None = None,
        channel: str | None = None,
        **options: Any,
    ) -> Reached:
        """Give an order to all nodes, and wait up to ANSWER_S for their results. options: fields of ControlOrder.

        An order to subscribe that names only an identity is stored for its later connections, and one to unsubscribe
        removes what is stored. Raises LimitExceeded; BrokerUnavailable: it is not known whether the order was given.
        """
        order = ControlOrder(
            secrets.token_hex(8),
            command,
            service=service,
            identity=identity,
            connection_id=connection_id,
            channel=channel,
            **options,
        )
        encode_order(order)  # if it is too large, nothing is stored
        results, missing = await self._answers(order)
        return Reached({node: count for node, count in results.items() if isinstance(count, int)}, missing)

    async def look(
        self,
        what: Literal["nodes", "connections", "channels"],
        *,
        service: str = "",
        identity: str | None = None,
        pattern: str | None = None,
        names: Sequence[str] = (),
        after: str = "",
        limit: int,
    ) -> Found:
        """Ask all nodes for a page: the nodes, the connections of an identity, or the channels that match a pattern.

        names: of the channels instead, as `channel_name` returns them. after: the `last` of the previous page. limit:
        at most LOOK_MAX, of channels CHANNELS_MAX. Raises ValueError: `after` or the pattern is wrong; and as `give`.
        """
        key = _KEYS[what]
        if what == "connections" and after:
            place_of(after)
        if pattern is not None:
            pattern_of(pattern)
        limit = min(limit, CHANNELS_MAX if what == "channels" else LOOK_MAX)
        order = ControlOrder(
            secrets.token_hex(8),
            what,
            service=service,
            identity=identity,
            channel=pattern,
            after=after,
            limit=limit + 1,  # one more, to know whether this page is the last one
            names=tuple(names),
        )
        results, missing = await self._answers(order)
        pages = [page for page in results.values() if isinstance(page, list)]
        entries, has_more = merged(pages, key, limit)
        last = entries[-1][_NAMES[what]] if entries and has_more else None
        if what == "channels":
            entries = [{"channel": channel_of(each["name"]), "subscribers": each["subscribers"]} for each in entries]
        return Found(entries, missing, last)

    async def _answers(self, order: ControlOrder) -> tuple[dict[str, Any], list[str]]:
        """Give an order; returns the results of nodes, decoded, and the nodes that did not answer in time."""
        if self._awaited >= AWAITED_MAX:
            raise LimitExceeded("control_calls", "Too many control calls", code="rate_limited", retry_after_ms=1000)
        self._awaited += 1
        try:
            return await self._gathered(order)
        finally:
            self._awaited -= 1

    async def _gathered(self, order: ControlOrder) -> tuple[dict[str, Any], list[str]]:
        loop = asyncio.get_running_loop()
        until_s, (pause_s, pause_max_s) = loop.time() + ANSWER_S, POLL_S
        try:
            async with asyncio.timeout_at(until_s):
                is_stored = await self._store(order)
                nodes = await self._orders.add(order) | {self._node_id}
        except TimeoutError:
            raise BrokerUnavailable("control order not stored in time") from None
        if order.connection_id is not None:
            nodes &= {order.connection_id.rpartition(".")[0]}
        results: dict[str, bytes] = {}
        while not nodes <= results.keys() and loop.time() < until_s:
            await asyncio.sleep(min(pause_s, until_s - loop.time()))
            pause_s = min(2 * pause_s, pause_max_s)
            try:
                async with asyncio.timeout_at(until_s):
                    results = await self._orders.acknowledged(order.id)
            except (BrokerUnavailable, TimeoutError):
                continue
        if not is_stored:
            raise BrokerUnavailable("stored server-side subscriptions not removed")
        decoded = {node: msgspec.json.decode(result) for node, result in sorted(results.items())}
        done = {node: result for node, result in decoded.items() if result or node in nodes}
        return done, sorted(nodes - results.keys())

    async def _store(self, order: ControlOrder) -> bool:
        """Store what an order begins, or remove what it ends. False: it could not be removed in time.

        Present connections are unsubscribed nevertheless. Raises BrokerUnavailable, LimitExceeded: not stored.
        """
        try:
            async with asyncio.timeout(STORE_S):
                await self.subscriptions.store_order(order)
        except (BrokerUnavailable, TimeoutError):
            if order.command != "unsubscribe":
                raise
            return False
        return True

    # -- carrying out --------------------------------------------------------------------------------------------

    def _on_orders(self, orders: Sequence[ControlOrder]) -> None:
        fresh = []
        for order in orders:
            if order.id not in self._known:
                self._known[order.id] = None
                fresh.append(order)
        while len(self._known) > 2 * ORDERS_MAX:
            del self._known[next(iter(self._known))]
        for order, connections in zip(fresh, self._named(fresh), strict=True):
            task = asyncio.get_running_loop().create_task(self._carry_out(order, connections))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    def _on_missed(self) -> None:
        """Close all clients, so that they ask for everything again: a right of theirs may have ended."""
        connections = tuple(self._connections())
        _log.warning("control orders were missed: clients reconnect", connections=len(connections))
        for connection in connections:
            connection.close(CloseCode.RECONNECT, "Come back")

    def _named(self, orders: Sequence[ControlOrder]) -> list[Sequence[Connection]]:
        """Find the connections that each order names, with one pass over all connections of the node."""
        by_name: dict[str, list[Connection]] = {}  # connection ids contain a dot and no blank
        identities: dict[str, list[Connection]] = {}
        for order in orders:
            if order.identity is not None:
                identities[order.identity] = []
            if order.connection_id is not None:
                by_name[order.connection_id] = []
        if identities or by_name:
            for connection in self._connections():
                if connection.identity is not None and (found := identities.get(connection.identity)) is not None:
                    found.append(connection)
                if by_name and (found := by_name.get(connection.id)) is not None:
                    found.append(connection)
        named: list[Sequence[Connection]] = []
        for order in orders:
            if order.connection_id is not None:
                those = by_name[order.connection_id]
                named.append([each for each in those if order.identity in (None, each.identity)])
            else:
                named.append(() if order.identity is None else identities[order.identity])
        return named

    def _on_channel(self, order: ControlOrder, named: Sequence[Connection]) -> Sequence[Connection]:
        """Return those of the connections that are on the order's channel now: earlier orders may have changed it."""
        if order.channel is None:
            return named  # an order without criteria reaches no connection
        key = f"{order.service}:{order.channel}"
        if order.identity is None and order.connection_id is None:
            return self._channels.subscribers(key)
        return [each for each in named if key in each.channels]

    async def _carry_out(self, order: ControlOrder, named: Sequence[Connection]) -> None:
        try:
            match order.command:
                case "disconnect":
                    result: Any = await self._disconnect(order, self._on_channel(order, named))
                case "subscribe":
                    async with self._subscribing:
                        subscribing = self.subscriptions.begin(order, self._on_channel(order, named))
                    result = await subscribing
                case "unsubscribe":
                    async with self._subscribing:
                        result = await self._unsubscribe(order, self._on_channel(order, named))
                case "refresh":
                    result = await self._refresh(order, self._on_channel(order, named))
                case "connections":
                    result = connections_page(named, order.after, order.limit)
                case "channels" if order.names:
                    result = self._channels.counts(order.service, order.names)
                case "channels":
                    result = await self._channels.page(order.service, order.channel or "", order.after, order.limit)
                case "nodes":
                    result = [{"node": self._node_id, **self._state()}] if self._node_id > order.after else []
            await self._orders.acknowledge(order.id, msgspec.json.encode(result))
        except BrokerUnavailable as error:
            _log.info("control order carried out, not acknowledged", order=order.id, error=error.what)
        except Exception:  # the top of a task: one order must not prevent the others
            _log.exception("control order failed", order=order.id, command=order.command)

    @staticmethod
    def _chunks(connections: Sequence[Connection]) -> Iterable[Sequence[Connection]]:
        return (connections[at : at + CHUNK] for at in range(0, len(connections), CHUNK))

    async def _disconnect(self, order: ControlOrder, connections: Sequence[Connection]) -> int:
        code = CloseCode.RECONNECT if order.code == CloseCode.RECONNECT else CloseCode.DISCONNECTED
        reached = 0
        if code == CloseCode.RECONNECT:
            await asyncio.sleep(self._orders.spread_s)
        for chunk in self._chunks(connections):
            for connection in chunk:
                reached += not connection.is_closed
                connection.close(code, order.reason)
            await asyncio.sleep(0)
        return reached

    async def _unsubscribe(self, order: ControlOrder, connections: Sequence[Connection]) -> int:
        self.subscriptions.cancel(order)
        service = self._find_service(order.service)
        if service is None:
            return 0
        own = f"{order.service}:"
        ended: set[Connection] = set()
        for chunk in self._chunks(connections):
            for connection in chunk:
                keys = [f"{own}{order.channel}"] if order.channel is not None else connection.channels
                for name in [key.removeprefix(own) for key in keys if key.startswith(own)]:
                    if not connection.is_closed and self._end(service, connection, name, order.reason):
                        ended.add(connection)
            await asyncio.sleep(0)
        return len(ended)

    async def _refresh(self, order: ControlOrder, connections: Sequence[Connection]) -> int:
        reached = 0
        for chunk in self._chunks(connections):
            reached += sum(await asyncio.gather(*(self._refresh_one(each, order) for each in chunk)))
        return reached

    @staticmethod
    def _end(service: EndsSubscriptions, connection: Connection, name: str, reason: str) -> bool:
        try:
            return service.end_subscription(connection, channel_of(name), "unsubscribed", reason)
        except Exception:  # an error of one service or transport: the others must still be reached
            _log.exception("subscription not ended", connection=connection.id)
            return False
