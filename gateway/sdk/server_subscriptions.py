"""ServerSubscriptions: subscribes connections of this node to channels, by orders of the backend.

    an order, or a login of an identity that has stored subscriptions -> one task for each connection and channel

Rules:
- A connection is subscribed once, however many orders and logins ask for it. The task tries again until Redis confirms,
  the connection closes, or an order ends the subscription.
- While the subscription lasts, `SERVER_SIDE` is in the connection's grants, and no rule is asked about it.
- An order to unsubscribe also cancels tasks in progress. What began before it and has no task for the connection yet
  gets the order in `ended`: a stored subscription that was read before it was removed is not restored.
"""

import asyncio
import math
import random
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Final, Protocol, runtime_checkable

import structlog

from snorky.gateway.auth.authenticator import Authenticator
from snorky.gateway.auth.tokens import SubscriptionToken
from snorky.gateway.connection.connection import SERVER_SIDE, Connection
from snorky.gateway.contracts.control import ControlOrder
from snorky.gateway.contracts.subscriptions import StoredSubscription, SubscriptionStore
from snorky.gateway.errors import AlreadySubscribed, BrokerUnavailable, InvalidToken, SnorkyError
from snorky.gateway.protocol.codec import Json, channel_key, channel_name, channel_of

__all__ = ["ServerSubscriptions", "SubscribesClients"]

RETRY_S: Final = (0.5, 5.0)  # between attempts while Redis does not answer: the first pause, and the longest
WAIT_S: Final = 5.0  # of a client's command for a subscription in progress
CHUNK: Final = 256  # connections of one order that subscribe at the same time

_log = structlog.get_logger("snorky.control")


@runtime_checkable
class SubscribesClients(Protocol):
    """A service whose channels the backend may subscribe clients to."""

    async def subscribe_client(
        self,
        connection: Connection,
        channel: Json,
        *,
        recover: bool | str,
        expires_in_s: float | None,
        permit: Callable[[], object],
    ) -> None:
        """Subscribe a client as its own `subscribe` does, without asking rules and hooks, and notify it.

        permit: must be called when it is subscribed, before the notification; if it raises, the subscription is undone.
        Raises as Topics.subscribe.
        """

    def end_subscription(self, connection: Connection, channel: Json, code: str, reason: str) -> bool:
        """See Service.end_subscription."""


@dataclass(slots=True, eq=False)
class _Work:
    """An order or a restoration in progress. ended: orders to unsubscribe that were given meanwhile.

    read: of a restoration: completes with whether the stored subscriptions could be read.
    """

    ended: list[ControlOrder] = field(default_factory=list)
    read: "asyncio.Future[bool] | None" = None
    task: "asyncio.Task[None] | None" = None


class ServerSubscriptions:
    """Those of one node. store: of all identities. find_service: by name; None = not on this node."""

    def __init__(
        self, store: SubscriptionStore, auth: Authenticator, find_service: Callable[[str], object | None]
    ) -> None:
        self.store = store
        self._auth = auth
        self._find_service = find_service
        self._subscribing: dict[Connection, dict[str, asyncio.Task[bool]]] = {}  # by channel key
        self._orders: set[_Work] = set()
        self._restoring: dict[Connection, _Work] = {}
        self._again: dict[Connection, set[str]] = {}  # channel keys, see `begins_again`

    async def stop(self) -> None:
        """Cancel everything in progress. Idempotent."""
        tasks: list[asyncio.Task[bool] | asyncio.Task[None]] = []
        for each in self._subscribing.values():
            tasks += each.values()
        tasks += [work.task for work in self._restoring.values() if work.task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self.store.stop()

    # -- orders ----------------------------------------------------------------------------------------------------

    async def store_order(self, order: ControlOrder) -> None:
        """Store an order for the later connections of an identity, or remove what it ends.

        Only orders that name nothing but an identity are stored: the others are about present connections. Raises
        BrokerUnavailable, LimitExceeded.
        """
        identity, channel = order.identity, order.channel
        if order.command == "subscribe" and identity is not None and order.connection_id is None and channel is None:
            has_positions = order.recover is not False
            wanted = StoredSubscription(order.service, order.target or "", has_positions, order.expires_in_s)
            await self.store.add(identity, wanted)
        elif order.command == "unsubscribe" and order.connection_id is None:
            if identity is not None:
                await self.store.remove(identity, order.service, channel)
            elif channel is not None:
                await self.store.end(order.service, channel)

    def begin(self, order: ControlOrder, connections: Sequence[Connection]) -> Awaitable[int]:
        """Begin to subscribe connections to `order.target`: orders to unsubscribe from now on end it.

        Await the result: how many are subscribed.
        """
        work = _Work()
        self._orders.add(work)
        return self._carry_out(order, connections, work)

    async def _carry_out(self, order: ControlOrder, connections: Sequence[Connection], work: _Work) -> int:
        reached = 0
        wanted = StoredSubscription(order.service, order.target or "", expires_in_s=order.expires_in_s)
        try:
            for at in range(0, len(connections), CHUNK):
                chunk = connections[at : at + CHUNK]
                tasks = [self._begin(each, wanted, order.recover, work) for each in chunk]
                reached += sum([await _result(task) for task in tasks])
        finally:
            self._orders.discard(work)
        return reached

    def cancel(self, order: ControlOrder) -> None:
        """Cancel what is in progress and what an order to unsubscribe ends."""
        for connection, tasks in self._subscribing.items():
            for key, task in tasks.items():
                if _ends(order, connection, *key.split(":", 1)):
                    task.cancel()
        for connection, keys in self._again.items():
            for key in keys - set(connection.channels):
                if _ends(order, connection, *key.split(":", 1)):
                    self._auth.grants.drop(connection, key)
        for work in (*self._orders, *self._restoring.values()):
            work.ended.append(order)

    # -- logins ----------------------------------------------------------------------------------------------------

    def restore(self, connection: Connection) -> None:
        """Subscribe a connection that has got an identity to the channels stored for it; returns at once."""
        if connection.identity is not None and connection not in self._restoring:
            loop = asyncio.get_running_loop()
            work = self._restoring[connection] = _Work(read=loop.create_future())
            work.task = loop.create_task(self._restore(connection, connection.identity, work), name="subscriptions")
            work.task.add_done_callback(lambda _: self._restored(connection, work))

    def forget(self, connection: Connection) -> None:
        """Cancel what is in progress for a closed connection. Idempotent."""
        work = self._restoring.get(connection)
        if work is not None and work.task is not None:
            work.task.cancel()
        for task in self._subscribing.get(connection, {}).values():
            task.cancel()
        self._again.pop(connection, None)

    async def subscribe_by_token(self, connection: Connection, service: str, channels: Sequence[str]) -> None:
        """Subscribe a connection to the channels that its token names; returns when that is done, or has failed.

        Raises InvalidChannel.
        """
        work = _Work()
        wanted = [StoredSubscription(service, channel_name(channel)) for channel in channels]
        tasks = [self._begin(connection, each, True, work) for each in wanted]
        for task in tasks:
            await _result(task)

    # -- for services ----------------------------------------------------------------------------------------------

    async def settled(self, connection: Connection, service: str, channel: Json, *, is_restored: bool = False) -> bool:
        """Wait until no subscription to a channel is in progress; returns whether the connection may have it by order.

        is_restored: wait also for the stored subscriptions of its identity. Raises BrokerUnavailable: they could not
        be read, or it takes too long; InvalidChannel.
        """
        key = channel_key(service, channel)
        work = self._restoring.get(connection) if is_restored else None
        if work is not None and work.read is not None:
            await asyncio.wait((work.read,), timeout=WAIT_S)
            if not work.read.done() or not work.read.result():
                raise BrokerUnavailable("server-side subscriptions")
        task = self._subscribing.get(connection, {}).get(key)
        if task is not None:
            await asyncio.wait((task,), timeout=WAIT_S)
            if not task.done():
                raise BrokerUnavailable("server-side subscription")
        return connection.grants is not None and connection.grants.get(key) is SERVER_SIDE

    def begins_again(self, connection: Connection, service: str, channel: Json) -> None:
        """Note that a client begins its server-side subscription again. Call it while the connection is subscribed.

        If that fails, the client may try again, unless an order to unsubscribe comes first.
        """
        self._again.setdefault(connection, set()).add(channel_key(service, channel))

    # -- inner -----------------------------------------------------------------------------------------------------

    async def _restore(self, connection: Connection, identity: str, work: _Work) -> None:
        loop, pauses = asyncio.get_running_loop(), _pauses()
        try:
            while True:
                try:
                    stored = await self.store.find(identity)
                    break
                except BrokerUnavailable:
                    _complete(work.read, is_read=False)
                await asyncio.sleep(next(pauses))
                work.read = loop.create_future()
            tasks = [self._begin(connection, each, each.has_positions, work) for each in stored]
            _complete(work.read, is_read=True)
            for task in tasks:
                await _result(task)
        except Exception:  # the top of a task
            _log.exception("server-side subscriptions not restored", connection=connection.id)

    def _restored(self, connection: Connection, work: _Work) -> None:
        """Forget a restoration that has ended; a cancelled task may not even have begun."""
        _complete(work.read, is_read=False)
        del self._restoring[connection]

    def _begin(
        self, connection: Connection, wanted: StoredSubscription, recover: bool | str, work: _Work
    ) -> "asyncio.Task[bool] | bool":
        """Begin to subscribe a connection, or join the task that does; or say whether it is subscribed."""
        key = f"{wanted.service}:{wanted.channel}"
        if connection.is_closed or any(_ends(each, connection, wanted.service, wanted.channel) for each in work.ended):
            return False
        frontend = connection.frontend
        if frontend is not None and not frontend.accepts_order(channel_of(wanted.channel)):
            return False
        if frontend is not None and recover is True:
            recover = frontend.recovers_from(channel_of(wanted.channel)) or True
        before = self._subscribing.get(connection, {}).get(key)
        if before is not None and not before.cancelling():
            return before
        if before is None and key in connection.channels:
            return True
        service = self._find_service(wanted.service)
        if not isinstance(service, SubscribesClients):
            return False
        task = asyncio.get_running_loop().create_task(self._subscribe(connection, service, wanted, recover, before))
        self._subscribing.setdefault(connection, {})[key] = task
        task.add_done_callback(partial(self._end, connection, key))
        return task

    def _end(self, connection: Connection, key: str, task: "asyncio.Task[bool]") -> None:
        tasks = self._subscribing.get(connection, {})
        if tasks.get(key) is task:
            del tasks[key]
            if not tasks:
                del self._subscribing[connection]

    async def _subscribe(
        self,
        connection: Connection,
        service: SubscribesClients,
        wanted: StoredSubscription,
        recover: bool | str,
        before: "asyncio.Task[bool] | None",
    ) -> bool:
        """Subscribe a connection; tries again while Redis does not confirm. False: it cannot be subscribed.

        before: a cancelled task for the same channel, which must first undo what it has done.
        """
        if before is not None:
            await asyncio.wait((before,))
        key, channel, grants = f"{wanted.service}:{wanted.channel}", channel_of(wanted.channel), self._auth.grants
        until_s = math.inf if wanted.expires_in_s is None else self._auth.now_s + wanted.expires_in_s
        # without an identity: if that is revoked, the connection ends as a whole
        token = SubscriptionToken(None, wanted.service, wanted.channel, SERVER_SIDE, until_s)
        grant = grants.enter(connection, key, token)
        has_begun, pauses = False, _pauses()
        try:
            while True:
                try:
                    await service.subscribe_client(
                        connection,
                        channel,
                        recover=recover,
                        expires_in_s=None if until_s == math.inf else max(0.0, until_s - self._auth.now_s),
                        permit=partial(grants.start, grant, partial(service.end_subscription, connection, channel)),
                    )
                    has_begun = True
                    return True
                except BrokerUnavailable:
                    if connection.is_closed or grant.end is not None:
                        return False
                await asyncio.sleep(next(pauses))
        except AlreadySubscribed:  # by the client itself
            return True
        except InvalidToken:  # it expired meanwhile
            return False
        except SnorkyError as error:
            _log.info("server-side subscription refused", connection=connection.id, key=key, code=error.code)
            return False
        except Exception:  # the top of a task: an error of one service or transport
            _log.exception("server-side subscription failed", connection=connection.id, key=key)
            return False
        finally:
            if not has_begun:
                grants.leave(grant)


def _pauses() -> Iterator[float]:
    """Yield growing pauses, each shortened at random: many connections begin together."""
    pause_s, longest_s = RETRY_S
    while True:
        yield pause_s * random.uniform(0.5, 1.0)  # noqa: S311 - no secret
        pause_s = min(2 * pause_s, longest_s)


async def _result(task: "asyncio.Task[bool] | bool") -> bool:
    """Return what a task returns; False if it was cancelled."""
    if isinstance(task, bool):
        return task
    await asyncio.wait((task,))
    return not task.cancelled() and task.result()


def _complete(future: "asyncio.Future[bool] | None", *, is_read: bool) -> None:
    if future is not None and not future.done():
        future.set_result(is_read)


def _ends(order: ControlOrder, connection: Connection, service: str, channel: str) -> bool:
    """Return True if an order to unsubscribe applies to a connection and a channel."""
    return (
        order.service == service
        and order.channel in (None, channel)
        and order.identity in (None, connection.identity)
        and order.connection_id in (None, connection.id)
    )
