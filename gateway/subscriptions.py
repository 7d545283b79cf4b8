"""Subscriptions: how connections of this node come into channels and out of them, and the node's own listeners.

Rules:
- A connection stands in the hub from the moment it asks to subscribe; the answer waits for the broker's
  confirmation. If that fails the connection stands there no more, and the caller is told.
- The broker subscribes to a channel while the hub has it; the hub decides, the broker lingers.
- Who recovers is in the hub and gets nothing until it has been told what it missed; from the same step on it gets all.
"""

from collections.abc import Callable

from gateway.broker import Broker
from gateway.codec import Json, Template
from gateway.connection import Connection
from gateway.errors import AlreadySubscribed, BrokerUnavailable, ConfigurationError, ConnectionClosed, NotSubscribed
from gateway.fanout import Fanout, Listener, OnGap
from gateway.history import Recovery
from gateway.hub import Hub
from gateway.presences import Presences
from gateway.publication import Position
from gateway.repair import Repair

__all__ = ["Subscriptions"]


class Subscriptions:
    """Joins hub, broker, fan-out and what follows channels. Keys: `codec.channel_key`.

    repair: None = the node has no keeper; presences: None = it has no directory.
    """

    def __init__(
        self, hub: Hub, broker: Broker, fanout: Fanout, repair: Repair | None, presences: Presences | None = None
    ) -> None:
        self._hub = hub
        self._broker = broker
        self._fanout = fanout
        self._repair = repair
        self._presences = presences

    async def subscribe(
        self,
        connection: Connection,
        key: str,
        shape: Callable[[], Template],
        *,
        is_held: bool = False,
        is_kept: bool = False,
        has_presence: bool = False,
    ) -> None:
        """Subscribe a connection. shape: asked once a channel. has_presence: hears who comes and goes.

        See Topics.subscribe.
        """
        repair = self._keeping() if is_kept else None
        self._hub.add(connection, key, self._template(key, shape), is_held=is_held)
        try:
            await self._confirm(key, repair)
        except BaseException:
            # unless the client left or unsubscribed meanwhile: then it was taken out already
            if key in connection.channels:
                self.remove(connection, key)
            raise
        self._give_up_unless_needed(key)  # it was told so before; but has confirmed since, and holds the channel
        if connection.is_closed:
            raise ConnectionClosed
        if key not in connection.channels:
            raise NotSubscribed
        self._follow_presence(key, has_presence)

    async def recover(
        self,
        connection: Connection,
        key: str,
        shape: Callable[[], Template],
        gap: Callable[[Position], Json],
        since: Position | None,
        *,
        has_presence: bool = False,
    ) -> Recovery:
        """Subscribe a connection, and tell what it missed. gap: shape of the notice. See Topics.recover."""
        repair, template = self._keeping(), self._template(key, shape)
        if not template.has_place_for_position:
            raise ConfigurationError(
                "who recovers needs notifications that are objects, with offset and position left free"
            )
        number = self._hub.add(connection, key, template, is_pending=True)
        try:
            await self._confirm(key, repair)
            recovery = await repair.catch_up(key, since)
            if connection.is_closed:
                raise ConnectionClosed
            if not self._hub.is_pending(connection, key, number):
                raise NotSubscribed
            if recovery is None:
                raise BrokerUnavailable("the node stops")
        except BaseException:
            if self._hub.is_pending(connection, key, number):
                self.remove(connection, key)
            else:
                self._give_up_unless_needed(key)
            raise
        self._hub.go_live(connection, key, gap)  # no await since `catch_up`: nothing was delivered in between
        self._follow_presence(key, has_presence)
        return recovery

    def remove(self, connection: Connection, key: str) -> None:
        """Unsubscribe a connection. Raises NotSubscribed."""
        if self._hub.remove(connection, key):
            self._give_up_unless_needed(key)

    def remove_all(self, connection: Connection) -> None:
        """Unsubscribe a connection from everything."""
        for key in self._hub.remove_all(connection):
            self._give_up_unless_needed(key)

    async def listen(self, key: str, listener: Listener, *, is_kept: bool = False, on_gap: OnGap | None = None) -> None:
        """Hear a channel on this node itself. See Topics.listen."""
        if self._fanout.is_listened(key):
            raise AlreadySubscribed
        repair = self._keeping() if is_kept else None
        self._fanout.listen(key, listener, on_gap)
        try:
            await self._confirm(key, repair)
        except BaseException:
            if self._fanout.unlisten(key, listener):  # unless that was done meanwhile
                self._give_up_unless_needed(key)
            raise
        self._give_up_unless_needed(key)  # if it was unlistened meanwhile, the broker holds what nobody needs

    def unlisten(self, key: str) -> None:
        """Undo `listen`. Raises NotSubscribed."""
        if not self._fanout.unlisten(key):
            raise NotSubscribed
        self._give_up_unless_needed(key)

    def _follow_presence(self, key: str, has_presence: bool) -> None:
        if has_presence and self._presences is not None:
            self._presences.follow(key)

    def _template(self, key: str, shape: Callable[[], Template]) -> Template:
        known = self._hub.get(key)
        return shape() if known is None else known.template

    def _keeping(self) -> Repair:
        if self._repair is None:
            raise ConfigurationError("this node has no keeper: topics with history need one")
        return self._repair

    async def _confirm(self, key: str, repair: Repair | None) -> None:
        """Wait for the broker, also where it has confirmed already: perhaps only for one who is about to give up."""
        if repair is not None:
            repair.follow(key)
        await self._broker.subscribe(key)
        if repair is not None:
            await repair.open(key)

    def _give_up_unless_needed(self, key: str) -> None:
        """Tell the broker that this node needs a channel no more, unless somebody here still does."""
        if key not in self._hub and self._presences is not None:
            self._presences.forget(key)
        if key not in self._hub and not self._fanout.is_listened(key):
            if self._repair is not None:
                self._repair.forget(key)
            self._broker.unsubscribe(key)
