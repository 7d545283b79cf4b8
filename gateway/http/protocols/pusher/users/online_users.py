"""OnlineUsers: which users have signed in on any node, and the clients of this node that watch them.

    sign-in -> the roster of the user -> `joined`, `left` on its channel -> nodes that watch it -> their clients

It is a service of the node that no client can address, because rosters and channels belong to services. Each user has
a roster, with an entry for each connection that has signed in. A node listens to the channels of the users that its
clients watch.

Rules:
- A notice of a roster only says that its number must be read. So nothing depends on the order of notices and reads, and
  a lost or repeated notice does no harm.
- A user is online as soon as the number says so. It is offline if the number is 0, and was 0 LATE_S before: then a page
  that reloads makes no event.
- After an interruption, Redis may have lost its state: nodes register their users again within 10 s. So users that are
  missing stay online for GRACE_S.
- All numbers are read again after an interruption, and every AGAIN_S: the last notice of a user may have been lost.
- One Redis of several may be unavailable. Users that cannot be read are tried again apart from the others, and a client
  does not wait for them longer than BEGIN_S.
"""

import asyncio
from collections import OrderedDict
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from functools import partial
from typing import Any, Final, TypeVar

import structlog

from snorky.gateway.connection.connection import Connection
from snorky.gateway.contracts.directory import Member
from snorky.gateway.errors import BrokerUnavailable, UnknownService
from snorky.gateway.http.protocols.pusher.users.watched import Watched, Watcher
from snorky.gateway.node import Node
from snorky.gateway.presence.roster_sync import AFTERMATH_S
from snorky.gateway.presence.roster_view import GRACE_S
from snorky.gateway.protocol.publication import Publication, Selector
from snorky.gateway.sdk.service import Service

__all__ = ["OnlineUsers", "online_users_of"]

NAME: Final = "pusher.users"  # no service of the settings can have a dot in its name
LATE_S: Final = 3.0  # as of the webhook `channel_vacated`
AGAIN_S: Final = 60.0
PAGE: Final = 100  # users that are read or listened to at once
PAUSE_S: Final = 0.02  # between pages: 50,000 users take 10 s. What happens meanwhile is read first
RETRY_S: Final = 0.5
BEGIN_S: Final = 10.0
CHUNK: Final = 250  # clients that receive events per loop tick: about 20 ms, if all of their users have changed
MARKED: Final = 10_000  # clients that have something to receive, likewise: about 2 ms

_T = TypeVar("_T")
_log = structlog.get_logger("snorky.pusher")


class OnlineUsers(Service):
    """The users of all apps. late_s, grace_s: until a user is offline, see the rules."""

    def __init__(self, *, watched: Watched | None = None, late_s: float = LATE_S, grace_s: float = GRACE_S) -> None:
        super().__init__("pusher")
        self.name = NAME
        self._late_s = late_s
        self._grace_s = grace_s
        self._grace_until_s = 0.0
        self._watched = Watched() if watched is None else watched
        self._listened: set[str] = set()
        self._listening: set[str] = set()  # not yet
        # in the order of the work; a dict would search its removed entries each time
        self._to_listen: OrderedDict[str, None] = OrderedDict()
        self._to_read: OrderedDict[str, bool] = OrderedDict()  # True: it may be offline, if its number is still 0
        self._to_compare: list[str] = []  # users to read when there is nothing else to read
        self._failed: OrderedDict[str, None] = OrderedDict()  # users to listen to or to read again, apart from others
        self._timers: dict[str, asyncio.TimerHandle] = {}  # of users whose number may be 0
        self._begins: dict[Watcher, asyncio.TimerHandle] = {}  # of clients that have received nothing yet
        self._has_work, self._has_failed, self._has_news = asyncio.Event(), asyncio.Event(), asyncio.Event()
        self._again: asyncio.TimerHandle | None = None

    @asynccontextmanager
    async def running(self, node: Node) -> AsyncIterator[None]:
        """Serve watchlists during the context, on a node that has this service. Clients should be gone at its end."""
        node.metrics.watched_users.set_function(lambda: len(self._watched))
        node.after_interruption = self.interrupted
        loop = asyncio.get_running_loop()
        tasks = [
            loop.create_task(self._run(), name="online users"),
            loop.create_task(self._run_failed(), name="online users, again"),
            loop.create_task(self._tell(), name="watchlist events"),
        ]
        self._read_all_in(AGAIN_S)
        try:
            yield
        finally:
            for timer in (self._again, *self._timers.values(), *self._begins.values()):
                if timer is not None:
                    timer.cancel()
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    # -- for clients ---------------------------------------------------------------------------------------------

    async def enter(self, connection: Connection, key: str, user: str) -> None:
        """Let a user be online while this connection lasts. key: see `user_key`. Raises as `Rosters.enter`."""
        await self.rosters.enter(connection, key, identity=user, lists_members=False)

    def watch(self, watcher: Watcher) -> bool:
        """Begin to send events to a client; returns at once. False: this node watches too many users."""
        new = self._watched.add(watcher)
        if new is None:
            self.cluster.metrics.limit_hits.labels("watched_users").inc()
            return False
        self._to_listen.update(dict.fromkeys(new))
        if watcher.unread:
            self._begins[watcher] = asyncio.get_running_loop().call_later(BEGIN_S, self._begin, watcher)
        self._wake()
        return True

    def _begin(self, watcher: Watcher) -> None:
        """Wait no longer for users that are not known."""
        del self._begins[watcher]
        self._watched.begin(watcher)
        self._wake()

    def unwatch(self, watcher: Watcher) -> None:
        """Send nothing more to a client. Idempotent."""
        if (begin := self._begins.pop(watcher, None)) is not None:
            begin.cancel()
        for key in self._watched.discard(watcher):
            self._end_timer(key)
            self._failed.pop(key, None)
            if key in self._listened:
                self._listened.discard(key)
                self.topics.unlisten(key)

    # -- Service -------------------------------------------------------------------------------------------------

    def on_message(self, connection: Connection, message: Any) -> None:
        """See Service: no registry of clients has this service."""
        raise UnknownService(self.name)

    def roster_notice(
        self, channel: Any, member: Member, *, has_joined: bool, is_identity: bool
    ) -> tuple[Any, Selector] | None:
        """See Service: a notice for nodes, about a user's first and last connection."""
        return (None, Selector.none()) if is_identity else None

    # -- which users to read -------------------------------------------------------------------------------------

    def interrupted(self) -> None:
        """Read all users again: notices may have been missed, and Redis may have lost its state."""
        self._grace_until_s = asyncio.get_running_loop().time() + self._grace_s
        for key in list(self._timers):
            self._read_late(key)
        self._read_all_in(AFTERMATH_S)
        self._read_all()

    def _on_changes(self, key: str, publications: Sequence[Publication]) -> None:
        for change in [each.change for each in publications]:
            if change is None:
                continue  # not of a node
            if change.kind == "-":
                self._read_late(key)
            else:
                self._end_timer(key)
                self._read(key)

    def _read(self, key: str) -> None:
        self._to_read[key] = False
        self._wake()

    def _read_late(self, key: str) -> None:
        """Read a user when it has been away for long enough, counted from now."""
        self._end_timer(key)
        loop = asyncio.get_running_loop()
        self._timers[key] = loop.call_at(max(loop.time() + self._late_s, self._grace_until_s), self._read_last, key)

    def _read_last(self, key: str) -> None:
        self._end_timer(key)
        self._to_read[key] = True
        self._wake()

    def _end_timer(self, key: str) -> None:
        timer = self._timers.pop(key, None)
        if timer is not None:
            timer.cancel()

    def _read_all(self) -> None:
        """Read all users when there is nothing else to read."""
        self._to_compare = self._watched.keys()
        self._wake()

    def _read_all_in(self, delay_s: float) -> None:
        """Read all users in a while, and from then on regularly."""
        if self._again is not None:
            self._again.cancel()
        self._again = asyncio.get_running_loop().call_later(delay_s, self._read_all_again)

    def _read_all_again(self) -> None:
        self._read_all()
        self._read_all_in(AGAIN_S)

    def _wake(self) -> None:
        self._has_work.set()
        if self._watched.has_news:
            self._has_news.set()

    # -- Redis ---------------------------------------------------------------------------------------------------

    async def _run(self) -> None:
        while True:
            await self._has_work.wait()
            self._has_work.clear()
            to_listen, to_read = _taken(self._to_listen), _taken(self._to_read)
            while len(to_read) < PAGE and self._to_compare:
                key = self._to_compare.pop()
                if key not in self._failed:
                    to_read.setdefault(key, False)
            await self._work(to_listen, to_read)
            if self._to_listen or self._to_read or self._to_compare:
                self._has_work.set()

    async def _run_failed(self) -> None:
        while True:
            await self._has_failed.wait()
            self._has_failed.clear()
            keys = _taken(self._failed)
            await self._work(keys, dict.fromkeys(keys, False))
            if self._failed:
                self._has_failed.set()

    async def _work(self, to_listen: Iterable[str], to_read: Mapping[str, bool]) -> None:
        """Listen to some users and read some; then wait, longer if this has failed for all of them."""
        try:
            await asyncio.gather(*map(self._listen_to, to_listen))
            await self._count(to_read)
        except Exception as error:  # the top of a task
            self._on_failure(error, to_read)
        keys = {*to_listen, *to_read}
        await asyncio.sleep(RETRY_S if keys and keys <= self._failed.keys() else PAUSE_S)

    def _on_failure(self, error: Exception, keys: Iterable[str]) -> None:
        if not isinstance(error, BrokerUnavailable):
            _log.error("users of watchlists not read", exc_info=error)
        self._failed.update(dict.fromkeys(keys))
        self._has_failed.set()

    async def _listen_to(self, key: str) -> None:
        """Listen to a user's channel; the user is read then."""
        if key not in self._watched or key in self._listened or key in self._listening:
            return
        self._listening.add(key)
        try:
            await self.topics.listen(key, partial(self._on_changes, key))
        except Exception as error:  # also unexpected ones: the user must be tried again
            self._on_failure(error, [key])
            return
        finally:
            self._listening.discard(key)
        if key in self._watched:
            self._listened.add(key)
            self._read(key)
        else:  # its last watcher has gone meanwhile
            self.topics.unlisten(key)

    async def _count(self, taken: Mapping[str, bool]) -> None:
        """Read some users. taken: True = it may be offline."""
        keys = [key for key in taken if key in self._watched]
        try:
            numbers = await self.rosters.count_identities(keys)
        except Exception as error:  # as above
            if len(keys) > 1:  # they may be in several Redis
                await asyncio.gather(*(self._count({key: taken[key]}) for key in keys))
            else:
                self._on_failure(error, keys)
            return
        marked = 0
        for key, number in zip(keys, numbers, strict=True):
            marked += self._note(key, number, is_last=taken[key])
            if marked >= MARKED:
                marked = 0
                self._wake()
                await asyncio.sleep(0)
        self._wake()

    def _note(self, key: str, number: int, *, is_last: bool) -> int:
        """Note how many users of this name there are: 0 or 1. is_last: it may be offline now. Returns as `set`."""
        if number or self._watched.is_online(key) is not True:
            return self._watched.set(key, is_online=number > 0)
        if key not in self._timers and key not in self._to_read:  # else there was a later notice
            if is_last:
                return self._watched.set(key, is_online=False)
            self._read_late(key)
        return 0

    # -- clients -------------------------------------------------------------------------------------------------

    async def _tell(self) -> None:
        told = 0
        while True:
            await self._has_news.wait()
            self._has_news.clear()
            while self._tell_next():
                told += 1
                if told % CHUNK == 0:
                    await asyncio.sleep(0)

    def _tell_next(self) -> bool:
        """Tell the next client; False: there is none. Not in `_tell`, whose variables would keep the last client."""
        if (found := self._watched.take()) is None:
            return False
        watcher, event = found
        try:
            if event:
                watcher.write(event)
        except Exception:  # the others must receive theirs
            _log.exception("a client was not told who is online")
        return True


def online_users_of(node: Node) -> OnlineUsers | None:
    """Return the users of a node; None: a program has made the node without them."""
    found = node.find_service(NAME)
    return found if isinstance(found, OnlineUsers) else None


def _taken(waiting: OrderedDict[str, _T]) -> dict[str, _T]:
    """Take the first page."""
    return dict(waiting.popitem(last=False) for _ in range(min(PAGE, len(waiting))))
