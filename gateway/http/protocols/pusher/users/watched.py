"""Watched: which clients of a node watch which users, and what each client knows of them. Pure: no I/O, no clock.

Rules:
- A user is named by a text, APP blank ID: so two apps have different users.
- A client receives nothing until all of its users are known, or `begin`; then one event with those that are online.
- From then on it receives the changes only.
- At most USERS_MAX users, and ENTRIES_MAX on all lists together; a list that does not fit is refused as a whole.
"""

from collections import OrderedDict
from collections.abc import Callable, Iterable
from functools import lru_cache
from typing import Final

from snorky.gateway.http.protocols.pusher.events import encode_event

__all__ = ["ENTRIES_MAX", "USERS_MAX", "Watched", "Watcher", "user_key"]

USERS_MAX: Final = 50_000  # that the clients of one node watch: 80 MB, with their channels
ENTRIES_MAX: Final = 500_000  # on the lists of all clients of one node: 40 MB at most
EVENT: Final = "pusher_internal:watchlist_events"


def user_key(app_id: str, user: str) -> str:
    """Return the name of a user of an app. Ids of apps have no blank."""
    return f"{app_id} {user}"


class Watcher:
    """A client with a watchlist. users: their names, in order. write: sends it an encoded event; must not block.

    after: the list that this one replaces; the client knows what it received by that one.
    """

    __slots__ = ("has_begun", "known", "unread", "users", "write")

    def __init__(
        self, users: Iterable[str], write: Callable[[bytes], object], *, after: "Watcher | None" = None
    ) -> None:
        self.users = tuple(dict.fromkeys(users))
        self.write = write
        self.known = 0  # which users are online, as the client knows: a bit for each, because a set takes 80 bytes
        self.unread = 0  # how many users have not been read from Redis yet
        self.has_begun = False
        if after is not None:
            online = {key for place, key in enumerate(after.users) if after.known >> place & 1}
            self.known = sum(1 << place for place, key in enumerate(self.users) if key in online)


class _User:
    """One user. is_online: None = not known yet."""

    __slots__ = ("is_online", "key", "watchers")

    def __init__(self, key: str) -> None:
        self.key = key
        self.is_online: bool | None = None
        self.watchers: dict[Watcher, None] = {}  # a set takes twice the memory


class Watched:
    """The users that clients of one node watch. users_max: how many. entries_max: on all lists together."""

    def __init__(self, *, users_max: int = USERS_MAX, entries_max: int = ENTRIES_MAX) -> None:
        self._users_max = users_max
        self._entries_max = entries_max
        self._entries = 0
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
        """Return whether a user is online; None = it is not known yet, or not watched."""
        user = self._users.get(key)
        return None if user is None else user.is_online

    def add(self, watcher: Watcher) -> list[str] | None:
        """Add a client; returns the users that were not watched before. None: they do not fit, nothing was done."""
        new = [key for key in watcher.users if key not in self._users]
        if len(self._users) + len(new) > self._users_max:
            return None
        if self._entries + len(watcher.users) > self._entries_max:
            return None
        for key in new:
            self._users[key] = _User(key)
        users = [self._users[key] for key in watcher.users]
        watcher.users = tuple(user.key for user in users)  # one text for all watchers of a user
        for user in users:
            user.watchers[watcher] = None
        self._entries += len(users)
        watcher.unread = sum(user.is_online is None for user in users)
        if not watcher.unread:
            self.begin(watcher)
        return new

    def begin(self, watcher: Watcher) -> None:
        """Let a client that was added receive what is known of its users, and from then on each change."""
        watcher.has_begun = True
        self._due[watcher] = None

    def discard(self, watcher: Watcher) -> list[str]:
        """Remove a client; returns the users that no client watches any more."""
        self._due.pop(watcher, None)
        ended = []
        for key in watcher.users:
            user = self._users.get(key)
            if user is not None and watcher in user.watchers:
                del user.watchers[watcher]
                self._entries -= 1
                if not user.watchers:
                    del self._users[key]
                    ended.append(key)
        return ended

    def set(self, key: str, *, is_online: bool) -> int:
        """Note whether a user is online. Returns how many clients will receive it; 0: nothing changes."""
        user = self._users.get(key)
        if user is None or user.is_online is is_online:
            return 0
        is_first, user.is_online = user.is_online is None, is_online
        for watcher in user.watchers:
            if is_first:
                watcher.unread -= 1
            if watcher.has_begun:
                self._due[watcher] = None
            elif not watcher.unread:
                self.begin(watcher)
        return len(user.watchers)

    @property
    def has_news(self) -> bool:
        """True if there may be something to take."""
        return bool(self._due)

    def take(self) -> tuple[Watcher, bytes] | None:
        """Take the next client that may have something to receive, and its event; b"" = there is nothing new for it.

        None = there is no such client.
        """
        if not self._due:
            return None
        watcher, _ = self._due.popitem(last=False)
        known, online, offline = watcher.known, list[str](), list[str]()
        for place, key in enumerate(watcher.users):
            is_online = self._users[key].is_online
            if is_online and not known >> place & 1:
                online.append(key)
                watcher.known |= 1 << place
            elif is_online is False and known >> place & 1:
                offline.append(key)
                watcher.known ^= 1 << place
        return watcher, _encode(tuple(online), tuple(offline)) if online or offline else b""


@lru_cache(maxsize=64)
def _encode(online: tuple[str, ...], offline: tuple[str, ...]) -> bytes:
    """Encode an event. It is the same for all clients that watch a user whose state has changed."""
    parts = (("online", online), ("offline", offline))
    events = [{"name": name, "user_ids": [key.partition(" ")[2] for key in keys]} for name, keys in parts if keys]
    return encode_event(EVENT, {"events": events})
