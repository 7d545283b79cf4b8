"""Sharding: how a broker on one shard of a Cluster differs from one on a single server."""

from collections.abc import Callable
from dataclasses import dataclass

from snorky.gateway.errors import BrokerUnavailable

__all__ = ["ChannelMoved", "Sharding"]


@dataclass(frozen=True, slots=True)
class Sharding:
    """Makes a broker use sharded pub/sub (SSUBSCRIBE, SPUBLISH).

    on_moved: called with the key of a subscribed channel whose slot moved to another server. new_canary_name: makes a
    canary's Redis channel in one of the shard's slots; called for each connection.
    """

    on_moved: Callable[[str], None]
    new_canary_name: Callable[[], bytes]


class ChannelMoved(BrokerUnavailable):
    """The slot of a channel is on another server. Raised by `subscribe` of a broker with Sharding."""
