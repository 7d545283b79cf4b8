"""Watched: which clients of a node watch which users, and what each client knows of them. Pure: no I/O, no clock.

Rules:
- A user is named by a text, APP blank ID: so two apps have different users.
- A client receives nothing until all of its users are known; then one event with those that are online.
- From then on it receives what differs from what it knows.
- At most USERS_MAX users; a list that does not fit is refused as a whole.
"""

from collections import OrderedDict
from collections.abc import Callable, Iterable
from functools import lru_cache
from typing import Final

from snorky.gateway.http.protocols.pusher.events import encode_event

__all__ = ["USERS_MAX", "Watched", "Watcher", "user_key"]

USERS_MAX: Final = 50_000  # that the clients of one node watch: 80 MB, with their channels
EVENT: Final = "pusher_internal:watchlist_events"


def user_key(app_id: str, user: str) -> str:
    """Return the name of a user of an app. Ids of apps have no blank."""
    return f"{app_id} {user}"


class Watcher:
    """A client with a watchlist. users: their names, in order. write: sends it an encoded event; must not block."""

    __slots__ = ("changed", "online", "unknown", "users", "write")

    def __init__(self, users: Iterable[str], write: Callable[[bytes], object]) -> None:
        self.users = tuple(dict.fromkeys(users))
        self.write = write
        self.online: set[str] = set()  # as the client knows
        self.unknown: set[str] = set()  # not read from Redis yet
        self.changed: dict[str, None] = {}  # to be compared with what the client knows


class _User:
    """One user. is_online: None = not known yet."""

    __slots__ = ("is_online", "key", "watchers")

    def __init__(self, key: str) -> None:
        self.key = key
        self.is_online: bool | None = None
        self.watchers: set[Watcher] = set()


class Watched:
    """The users that clients of one node watch. users_max: how many."""

    def __init__(self, *, users_max: int = USERS_MAX) -> None:
        self._users_max = users_max
        self._users: dict[str, _User] = {}
        # clients that may have something to receive; a dict would search its removed entries each time
        self._due: OrderedDict[Watcher, None] = OrderedDict()

    def __len__(self) -> int:
        return len(self._users)

    def __contains__(self, key: str) -> bool:
        return key in self._users

    def keys(self) -> list[str]:
        """Return the names of all users."""
        return list(self._users)

    def is_online(self, key: str) -> bool | None:
        """Return what clients are told of a user; None = it is not known yet, or not watched."""
        user = self._users.get(key)
        return None if user is None else user.is_online

    def add(self, watcher: Watcher) -> list[str] | None:
        """Add a client; returns the users that were not watched before. None: they do not fit, nothing was done."""
        new = [key for key in watcher.users if key not in self._users]
        if len(self._users) + len(new) > self._users_max:
            return None
        for key in new:
            self._users[key] = _User(key)
        users = [self._users[key] for key in watcher.users]
        watcher.users = tuple(user.key for user in users)  # one text for all watchers of a user
        for user in users:
            user.watchers.add(watcher)
            if user.is_online is None:
                watcher.unknown.add(user.key)
        watcher.changed = dict.fromkeys(watcher.users)
        if not watcher.unknown:
            self._due[watcher] = None
        return new

    def discard(self, watcher: Watcher) -> list[str]:
        """Remove a client; returns the users that nobody watches any more."""
        self._due.pop(watcher, None)
        ended = []
        for key in watcher.users:
            user = self._users.get(key)
            if user is not None and watcher in user.watchers:
                user.watchers.discard(watcher)
                if not user.watchers:
                    del self._users[key]
                    ended.append(key)
        return ended

    def set(self, key: str, *, is_online: bool) -> None:
        """Note whether a user is online; its clients will be told. No effect if nobody watches it."""
        user = self._users.get(key)
        if user is None or user.is_online is is_online:
            return
        user.is_online = is_online
        for watcher in user.watchers:
            watcher.unknown.discard(user.key)
            watcher.changed[user.key] = None
            if not watcher.unknown:
                self._due[watcher] = None

    @property
    def has_news(self) -> bool:
        """True if there may be something to take."""
        return bool(self._due)

    def take(self) -> tuple[Watcher, bytes] | None:
        """Take the next event and the client that it is for; None = there is none."""
        while self._due:
            watcher, _ = self._due.popitem(last=False)
            changed, watcher.changed = watcher.changed, {}
            now = {key: self._users[key].is_online for key in changed}
            online = tuple(key for key in changed if now[key] and key not in watcher.online)
            offline = tuple(key for key in changed if not now[key] and key in watcher.online)
            watcher.online.update(online)
            watcher.online.difference_update(offline)
            if online or offline:
                return watcher, _encode(online, offline)
        return None


@lru_cache(maxsize=64)
def _encode(online: tuple[str, ...], offline: tuple[str, ...]) -> bytes:
    """Encode an event. It is the same for all clients that watch a user whose state has changed."""
    parts = (("online", online), ("offline", offline))
    events = [{"name": name, "user_ids": [key.partition(" ")[2] for key in keys]} for name, keys in parts if keys]
    return encode_event(EVENT, {"events": events})
