"""ClientWatchlist: the watchlist of one client, which the backend has signed as part of its user."""

from typing import Any, Final

from snorky.gateway.config.pusher import PusherApp
from snorky.gateway.connection.connection import Connection
from snorky.gateway.errors import InvalidChannel, InvalidMessage, LimitExceeded
from snorky.gateway.http.protocols.pusher.codes import ErrorCode
from snorky.gateway.http.protocols.pusher.users.online_users import online_users_of
from snorky.gateway.http.protocols.pusher.users.user_data import user_id_of
from snorky.gateway.http.protocols.pusher.users.watched import Watcher, user_key
from snorky.gateway.node import Node
from snorky.gateway.protocol.codec import channel_name

__all__ = ["ClientWatchlist", "Refusal"]

WATCHLIST_MAX: Final = 100  # different users

Refusal = tuple[ErrorCode | None, str]  # code and text of `pusher:error`


class ClientWatchlist:
    """Lets a client's user be online, and tells the client who else is. The connection stays open in any case."""

    __slots__ = ("_app_id", "_connection", "_has_entered", "_node", "_users", "_watcher")

    def __init__(self, node: Node, app: PusherApp, connection: Connection) -> None:
        self._node = node
        self._app_id = app.id
        self._users = online_users_of(node) if app.watchlists else None
        self._connection = connection
        self._has_entered = False
        self._watcher: Watcher | None = None

    async def enter(self, user: str) -> Refusal | None:
        """Let the client's user be online. Idempotent. Returns why it is not. Raises BrokerUnavailable,
        ConnectionClosed.
        """
        if self._users is None or self._has_entered:  # each entry would count in the user's quota again
            return None
        try:
            await self._users.enter(self._connection, user_key(self._app_id, user), user)
        except (InvalidChannel, LimitExceeded) as error:  # the user can do everything else
            return None, f"Others do not see that this user is online: {error}"
        self._has_entered = True
        return None

    def watch(self, value: Any) -> Refusal | None:
        """Replace the client's watchlist. value: as its user has it. Returns why there is none."""
        before, self._watcher = self._watcher, None
        try:
            return None if self._connection.is_closed else self._replace(before, value)
        finally:  # not earlier: users on both lists stay known
            self._end(before)

    def stop(self) -> None:
        """Stop watching. Idempotent."""
        watcher, self._watcher = self._watcher, None
        self._end(watcher)

    def _replace(self, before: Watcher | None, value: Any) -> Refusal | None:
        if value is None or value == []:
            return None
        if self._users is None:
            return ErrorCode.WATCHLISTS_OFF, "Watchlists are off for this app"
        try:
            keys = self._read(value)
        except (InvalidChannel, InvalidMessage) as error:
            return None, f"The watchlist must be a list of user ids: {error}"
        if len(keys) > WATCHLIST_MAX:
            self._node.metrics.limit_hits.labels("watchlist").inc()
            return ErrorCode.WATCHLIST_TOO_LONG, f"The watchlist has more than {WATCHLIST_MAX} users"
        watcher = Watcher(keys, self._write, after=before)
        if not self._users.watch(watcher):
            return None, "This server watches too many users"
        self._watcher = watcher
        return None

    def _end(self, watcher: Watcher | None) -> None:
        if watcher is not None and self._users is not None:
            self._users.unwatch(watcher)

    def _read(self, value: Any) -> dict[str, None]:
        """Return the users' names, each once. Raises InvalidMessage, InvalidChannel: an id is too long."""
        if not isinstance(value, list):
            raise InvalidMessage("it is no list")
        keys = dict.fromkeys(user_key(self._app_id, user_id_of(each)) for each in value)
        for key in keys:
            channel_name(key)
        return keys

    def _write(self, event: bytes) -> None:
        self._connection.write(self._connection.dialect.frame(event))
