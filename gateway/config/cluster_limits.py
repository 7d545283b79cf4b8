"""[cluster_limits]: limits over all nodes together, beside those of one node in [limits].

    [cluster_limits]
    connections_per_identity = 10

0 = no limit, the default: with a limit, a node asks Redis before it admits a client that the limit applies to.
"""

from dataclasses import dataclass
from typing import Annotated

from msgspec import Meta

__all__ = ["ClusterLimits"]

Rate = Annotated[float, Meta(ge=0)]
Bytes = Annotated[int, Meta(ge=0)]
Count = Annotated[int, Meta(ge=0, le=1_000_000)]


@dataclass(frozen=True, slots=True, kw_only=True)
class ClusterLimits:
    """[cluster_limits]: limits of one identity or address on all nodes together. 0 = no limit."""

    connections_per_identity: Count = 0
    connections_per_ip: Count = 0  # IPv6: of a /64
    channels_per_identity: Count = 0  # subscriptions of all its connections, over all services
    messages_per_s_per_identity: Rate = 0.0  # at most one second's worth at once
    bytes_per_s_per_identity: Rate = 0.0
    publishes_per_s_per_identity: Rate = 0.0
    stored_bytes_per_identity: Bytes = 0  # in Redis within 300 s
    stored_bytes_per_ip: Bytes = 0  # of the anonymous clients of an address

    @property
    def are_set(self) -> bool:
        """True if there is any limit."""
        return self != ClusterLimits()
