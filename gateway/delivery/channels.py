"""Channels: adds connections of this node to channels and removes them; and the node's own callbacks.

Rules:
- A connection is in the hub from the moment it asks to subscribe; the reply waits for the broker's
  confirmation. If that fails, the connection is removed from the hub, and the caller gets the error.
- The broker subscribes to a channel while the hub or a local callback needs it, and unsubscribes with a delay.
- A recovering connection is in the hub but receives nothing until its missed publications are read; from then on it
  receives everything.
"""

from collections.abc import Callable

from snorky.gateway.connection.connection import Connection
from snorky.gateway.contracts.broker import Broker
from snorky.gateway.contracts.history import Recovery
from snorky.gateway.delivery.fan_out import Fanout, Listener, OnGap
from snorky.gateway.delivery.gap_repair import GapRepair
from snorky.gateway.delivery.hub import Hub
from snorky.gateway.errors import (
    AlreadySubscribed,
    BrokerUnavailable,
    ConfigurationError,
    ConnectionClosed,
    NotSubscribed,
)
from snorky.gateway.presence.roster_sync import RosterSync
from snorky.gateway.protocol.codec import Json
from snorky.gateway.protocol.publication import Position
from snorky.gateway.protocol.splicing import Template

__all__ = ["Channels"]


class Channels:
    """Connects hub, broker, fan-out, repair and roster sync. Keys: from `codec.channel_key`.

    repair: None = the node has no history; roster_sync: None = it has no directory.
    """

    def __init__(
        self, hub: Hub, broker: Broker, fanout: Fanout, repair: GapRepair | None, roster_sync: RosterSync | None = None
    ) -> None:
        self._hub = hub
        self._broker = broker
        self._fanout = fanout
        self._repair = repair
        self._roster_sync = roster_sync

    async def subscribe(
        self,
        connection: Connection,
        key: str,
        make_template: Callable[[], Template],
        *,
        is_held: bool = False,
        is_kept: bool = False,
        has_presence: bool = False,
    ) -> None:
        """Subscribe a connection. See Topics.subscribe.

        make_template: called once per channel. has_presence: it receives join and leave events.
        """
        repair = self._require_history() if is_kept else None
        self._hub.add(connection, key, self._template(key, make_template), is_held=is_held)
        try:
            await self._confirm(key, repair)
        except BaseException:
            # unless the client left or unsubscribed meanwhile: then it has been removed already
            if key in connection.channels:
                self.remove(connection, key)
            raise
        self._give_up_unless_needed(key)  # unsubscribe may have raced with this: release an unneeded channel again
        if connection.is_closed:
            raise ConnectionClosed
        if key not in connection.channels:
            raise NotSubscribed
        self._follow_presence(key, has_presence)

    async def recover(
        self,
        connection: Connection,
        key: str,
        make_template: Callable[[], Template],
        gap: Callable[[Position], dict[str, Json]],
        since: Position | None,
        *,
        has_presence: bool = False,
    ) -> Recovery:
        """Subscribe a connection, and return what it missed. gap: makes the gap notice. See Topics.recover."""
        repair, template = self._require_history(), self._template(key, make_template)
        if not template.has_place_for_position:
            raise ConfigurationError(
                "recovery needs notifications that are objects, without keys named offset and position"
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
        """Call a local callback for a channel's publications. See Topics.listen."""
        if self._fanout.is_listened(key):
            raise AlreadySubscribed
        repair = self._require_history() if is_kept else None
        self._fanout.listen(key, listener, on_gap)
        try:
            await self._confirm(key, repair)
        except BaseException:
            if self._fanout.unlisten(key, listener):  # unless it was removed meanwhile
                self._give_up_unless_needed(key)
            raise
        self._give_up_unless_needed(key)  # it may have been removed meanwhile: release an unneeded channel again

    def unlisten(self, key: str) -> None:
        """Undo `listen`. Raises NotSubscribed."""
        if not self._fanout.unlisten(key):
            raise NotSubscribed
        self._give_up_unless_needed(key)

    def _follow_presence(self, key: str, has_presence: bool) -> None:
        if has_presence and self._roster_sync is not None:
            self._roster_sync.follow(key)

    def _template(self, key: str, make_template: Callable[[], Template]) -> Template:
        known = self._hub.get(key)
        return make_template() if known is None else known.template

    def _require_history(self) -> GapRepair:
        if self._repair is None:
            raise ConfigurationError("this node has no history store: topics with history need one")
        return self._repair

    async def _confirm(self, key: str, repair: GapRepair | None) -> None:
        """Always await the broker: an existing confirmation may belong to a subscriber that is about to unsubscribe."""
        if repair is not None:
            repair.follow(key)
        await self._broker.subscribe(key)
        if repair is not None:
            await repair.open(key)

    def _give_up_unless_needed(self, key: str) -> None:
        """Unsubscribe from the broker, unless this node still needs the channel."""
        if key not in self._hub and self._roster_sync is not None:
            self._roster_sync.forget(key)
        if key not in self._hub and not self._fanout.is_listened(key):
            self._fanout.intervals.forget(key)
            if self._repair is not None:
                self._repair.forget(key)
            self._broker.unsubscribe(key)
