"""RedisControlLog: the cluster's control orders, in one stream. Every node waits for new ones.

In Redis, all in one slot: the stream `PREFIX:{nodes}::orders`, with entries NUMBER-0 whose numbers are consecutive; the
stream `PREFIX:{nodes}::orders:announced`, with one entry, which names the last order; and for each order the hash
`PREFIX:{nodes}::order:ID` with the number of connections that each node reached, for a few seconds. Rules:
- A node waits by a blocking XREAD on a connection of its own, so an order does not depend on pub/sub. It waits for both
  streams: nodes of the previous version announce nothing, and in a stream that began again (it expired, or Redis lost
  its data) the numbers are lower than the one that the node waits for.
- The node also reads the stream after each error of the wait, and after REPAIR_S without an order: the announcement can
  be lost together with Redis' data.
- It reads over the connection on which it waits. So both are at the same server, and this connection is up when the
  deadline of the wait begins.
- So without the right to run XREAD, the node reads the stream several times a second.
- A node reads from the last order that it knows, this one included. If Redis has another order at that number or none,
  it was restored from an older copy or has lost its state: the node reads all orders again.
- If the first order after that does not have the next number, orders were removed before the node read them.
"""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import hiredis
import msgspec
import structlog

from snorky.gateway.contracts.control import KEEP_S, ORDERS_MAX, ControlOrder, OnOrders, encode_order
from snorky.gateway.errors import BrokerUnavailable, LimitExceeded
from snorky.gateway.redis.connection.commands import Commands
from snorky.gateway.redis.connection.resp import command
from snorky.gateway.redis.connection.scripts import Call, Scripts
from snorky.gateway.redis.keys import announced_order_key, leases_key, order_result_key, orders_key

__all__ = ["ANSWER_S", "WAIT_S", "RedisControlLog"]

WAIT_S: Final = 1.8  # of one XREAD; a connection that is lost without a notice is noticed as fast as by short reads
ANSWER_S: Final = 0.4  # from the end of the wait to its answer
REPAIR_S: Final = 10.0
INTERVAL_S: Final = 0.25  # from an error to the next read: an order reaches all nodes within the documented second
PAUSE_S: Final = 0.1  # after each read: each looks through the connections of the node, so a burst is read in few
READ_WITHIN_S: Final = 0.08  # one read, normally
READ_MAX: Final = 500  # orders per command
SLACK_MS: Final = 10  # times are compared in whole milliseconds, and clocks do not run at quite the same speed
LIST_TTL_MS: Final = 86_400_000  # without new orders
RESULT_TTL_MS: Final = 5_000  # the backend waits for one second

_BEFORE_ALL: Final = b"0-0"  # an id before all entries of a stream

_log = structlog.get_logger("snorky.control")


@dataclass(frozen=True, slots=True)
class _Entry:
    """One entry of the stream. at_ms: of Redis' clock. data: the order as JSON."""

    number: int
    order_id: str
    at_ms: int
    data: bytes


class RedisControlLog:
    """Implements `contracts.control.ControlLog`. commands: to one Redis; not started. keep_s: of an order.

    waiting: other connections to the same Redis, with a timeout of WAIT_S + ANSWER_S. orders_max: stored at the same
    time. interval_s: from an error to the next read.
    """

    def __init__(
        self,
        commands: Commands,
        waiting: Commands,
        *,
        prefix: str,
        node_id: str,
        keep_s: float = KEEP_S,
        orders_max: int = ORDERS_MAX,
        interval_s: float = INTERVAL_S,
    ) -> None:
        self.read_at_s: float | None = None  # loop time of the last successful read
        self.spread_s = interval_s + PAUSE_S + READ_WITHIN_S
        self._commands, self._waiting = commands, waiting
        self._scripts, self._reading = Scripts(commands), Scripts(waiting)
        self._prefix = prefix
        self._node_id = node_id
        self._orders, self._announced = orders_key(prefix), announced_order_key(prefix)
        self._keep_s = keep_s
        self._orders_max = orders_max
        self._interval_s = interval_s
        self._last: _Entry | None = None  # the order read last; None: there was none
        self._announcement = _BEFORE_ALL  # id of the last one
        self._task: asyncio.Task[None] | None = None

    def begin(self, on_orders: OnOrders, on_missed: Callable[[], None]) -> None:
        """See ControlLog."""
        if self._task is None:
            self._commands.start()
            self._waiting.start()
            self._task = asyncio.get_running_loop().create_task(
                self._watch(on_orders, on_missed), name="control orders"
            )

    async def stop(self) -> None:
        """See ControlLog."""
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
        await self._commands.stop()
        await self._waiting.stop()

    async def add(self, order: ControlOrder) -> frozenset[str]:
        """See ControlLog."""
        data, keep_ms = encode_order(order), b"%d" % round(self._keep_s * 1000)
        arguments = [order.id.encode(), data, keep_ms, b"%d" % self._orders_max, b"%d" % LIST_TTL_MS]
        call = Call("order", [self._orders, leases_key(self._prefix), self._announced], arguments)
        ((number, owners),) = await self._scripts.run(call)
        if number == 0:
            raise LimitExceeded("control_orders", "Too many control orders", retry_after_ms=1000)
        return frozenset(owner.decode(errors="replace").rpartition(":")[0] for owner in owners)

    async def acknowledge(self, order_id: str, result: bytes) -> None:
        """See ControlLog."""
        key = order_result_key(self._prefix, order_id)
        await self._scripts.run(
            command(b"HSET", key, self._node_id.encode(), result),
            command(b"PEXPIRE", key, b"%d" % RESULT_TTL_MS),
        )

    async def acknowledged(self, order_id: str) -> dict[str, bytes]:
        """See ControlLog."""
        (words,) = await self._scripts.run(command(b"HGETALL", order_result_key(self._prefix, order_id)))
        return {node.decode(errors="replace"): result for node, result in zip(words[::2], words[1::2], strict=True)}

    # -- reading -------------------------------------------------------------------------------------------------

    async def _watch(self, on_orders: OnOrders, on_missed: Callable[[], None]) -> None:
        loop = asyncio.get_running_loop()
        started_s, failure = loop.time(), ""
        while True:
            try:
                if self.read_at_s is None:
                    await self._read_first(started_s, on_orders)
                else:
                    await self._read(on_orders, on_missed)
                await asyncio.sleep(PAUSE_S)
                await self._until_due()
                failure = ""
            except Exception as error:  # the top of a task: it must continue, or orders are never read
                what = error.what if isinstance(error, BrokerUnavailable) else repr(error)
                if what != failure:
                    _log.warning("control orders not read; trying again", error=what)
                failure, self._announcement = what, _BEFORE_ALL
                await asyncio.sleep(self._interval_s)

    async def _until_due(self) -> None:
        """Wait until the stream must be read. Raises BrokerUnavailable: at once."""
        loop = asyncio.get_running_loop()
        due_s = loop.time() + REPAIR_S
        while loop.time() < due_s:
            is_due = False
            for name, ((entry_id, words),) in await self._wait():
                if name == self._announced:
                    self._announcement = entry_id
                    if self._last is not None and words[1] == self._last.order_id.encode():
                        continue  # it is read: Redis may report the streams one after the other
                is_due = True
            if is_due:
                return

    async def _wait(self) -> Sequence[Any]:
        """Wait for an order, up to WAIT_S. Returns the streams that have one, each with the first. Raises
        BrokerUnavailable.
        """
        after = b"%d-0" % (0 if self._last is None else self._last.number)
        streams = (self._orders, self._announced, after, self._announcement)
        block_ms = b"%d" % round(WAIT_S * 1000)
        (answer,) = await self._waiting.send(
            [command(b"XREAD", b"COUNT", b"1", b"BLOCK", block_ms, b"STREAMS", *streams)]
        )
        if isinstance(answer, hiredis.ReplyError):
            raise BrokerUnavailable(str(answer)[:300])
        return answer or ()

    async def _read_first(self, started_s: float, on_orders: OnOrders) -> None:
        """Find the end of the list; report the orders given since this node started."""
        loop = asyncio.get_running_loop()
        read_at_s, (time,) = loop.time(), await self._reading.run(command(b"TIME"))
        since_ms = int(time[0]) * 1000 + int(time[1]) // 1000 - (loop.time() - started_s) * 1000 - SLACK_MS
        entries = await self._entries(0)
        self._last, self.read_at_s = entries[-1] if entries else None, read_at_s
        self._report([entry for entry in entries if entry.at_ms >= since_ms], on_orders)

    async def _read(self, on_orders: OnOrders, on_missed: Callable[[], None]) -> None:
        """Report the orders after the last one."""
        read_at_s, last = asyncio.get_running_loop().time(), self._last
        entries = await self._entries(0 if last is None else last.number)
        is_missed = False
        if last is not None and entries and entries[0].order_id == last.order_id:
            del entries[0]
        else:
            if last is not None:
                self._announcement = _BEFORE_ALL
                entries = await self._entries(0)
            next_number = 1 if last is None else last.number + 1
            is_missed = bool(entries) and entries[0].number > next_number
            last = None
        self._last, self.read_at_s = entries[-1] if entries else last, read_at_s
        if is_missed:
            on_missed()
        self._report(entries, on_orders)

    async def _entries(self, number: int) -> list[_Entry]:
        """Read the entries from this number on."""
        found: list[_Entry] = []
        while True:
            start, count = b"%d-0" % number, b"%d" % READ_MAX
            (page,) = await self._reading.run(command(b"XRANGE", self._orders, start, b"+", b"COUNT", count))
            found += map(_entry_of, page)
            if len(page) < READ_MAX:
                return found
            number = found[-1].number + 1

    @staticmethod
    def _report(entries: Sequence[_Entry], on_orders: OnOrders) -> None:
        orders = []
        for entry in entries:
            try:
                orders.append(msgspec.json.decode(entry.data, type=ControlOrder))
            except msgspec.DecodeError as error:  # of a newer node, which counts this node as missing
                _log.warning("control order is not readable", order=entry.order_id[:100], error=str(error)[:200])
        if orders:
            on_orders(orders)


def _entry_of(raw: Any) -> _Entry:
    """Read [NUMBER-0, [name, value...]]."""
    number, words = raw
    values = dict(zip(words[::2], words[1::2], strict=True))
    order_id = values[b"id"].decode(errors="replace")
    return _Entry(int(number.partition(b"-")[0]), order_id, int(values[b"at"]), values[b"order"])
