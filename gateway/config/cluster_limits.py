"""[cluster_limits]: limits over all nodes together, beside those of one node in [limits].

    [cluster_limits]
    connections_per_identity = 10

0 = no limit, the default: with a limit, a node asks Redis before it admits a client that the limit applies to.
"""

from dataclasses import dataclass
from typing import Annotated

from msgspec import Meta

__all__ = ["ClusterLimits"]

Count = Annotated[int, Meta(ge=0, le=1_000_000)]


@dataclass(frozen=True, slots=True, kw_only=True)
class ClusterLimits:
    """[cluster_limits]: limits of one identity or address on all nodes together. 0 = no limit."""

    connections_per_identity: Count = 0
    connections_per_ip: Count = 0  # IPv6: of a /64

    @property
    def are_counted(self) -> bool:
        """True if this node has to count connections in Redis."""
        return bool(self.connections_per_identity or self.connections_per_ip)
