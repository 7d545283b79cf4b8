"""[limits] of one node, and [cluster_limits] over all nodes together.

    [cluster_limits]
    connections_per_identity = 10

In [cluster_limits], 0 = no limit, the default: with a limit, a node asks Redis before it admits a client that the limit
applies to.
"""

from dataclasses import dataclass
from typing import Annotated, Final

from msgspec import Meta

__all__ = ["PAYLOAD_MAX_BYTES", "ClusterLimits", "Limits"]

PAYLOAD_MAX_BYTES: Final = 1 << 20  # from backends: the limit of /backend, the Publisher and snorky_publish

Count = Annotated[int, Meta(ge=0)]
BoundedCount = Annotated[int, Meta(ge=0, le=1_000_000)]
Positive = Annotated[int, Meta(ge=1)]
Seconds = Annotated[float, Meta(gt=0, le=86_400)]
Rate = Annotated[float, Meta(gt=0)]
RateOrNone = Annotated[float, Meta(ge=0)]  # 0 = no limit
Factor = Annotated[float, Meta(ge=0)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """[limits]: limits of one node. For `connections` and `connections_per_ip`, 0 = no limit."""

    message_max_bytes: Annotated[int, Meta(ge=64, le=16_777_216)] = 65_536
    outbox_max_bytes: Positive = 1_048_576  # unsent bytes for one client; above that it is closed with 4008
    replies_max_bytes: Positive = 33_554_432  # unsent replies for all clients; above that the largest are closed, 4008
    send_buffer_bytes: Count = 65_536  # SO_SNDBUF; by default the kernel buffers 4 MB for a client that does not read
    connections: Count = 50_000
    connections_per_ip: Count = 1_000
    channels_per_connection: Positive = 1_000
    roster_max_bytes: Positive = 4_194_304  # entries of one room, document or channel, in the whole cluster
    messages_per_s: Rate = 100.0  # of one connection, token bucket
    messages_burst: Positive = 1_000  # as many as channels: a client that reconnects subscribes to all at once
    bytes_per_s: Rate = 2_097_152.0  # of messages of one connection, token bucket
    bytes_burst: Positive = 16_777_216  # the largest message that the settings allow
    frames_per_s: Rate = 200.0  # pings, pongs and fragments of one connection; burst: ten seconds' worth
    rate_factor_per_ip: Factor = 10.0  # an address may send as much as this many connections; 0 = no limit
    rate_factor_per_identity: Factor = 5.0
    stored_bytes_per_identity: Count = (
        33_554_432  # in Redis, see snorky.gateway.connection.storage_quotas; 0 = no limit
    )
    stored_bytes_per_ip: Count = 4_194_304  # the same for all clients of an address that have no identity
    client_errors_per_minute: Positive = 20  # of one connection; above that it is closed with 4509
    message_timeout_s: Seconds = 30.0  # from a message's first byte to its last
    request_header_timeout_s: Seconds = 5.0  # until the request's headers are complete
    handshakes_per_s_per_ip: Annotated[float, Meta(ge=0)] = 50.0  # token bucket; 0 = no limit

    @property
    def payload_max_bytes(self) -> int:
        """The largest payload that clients or backends of this node can publish."""
        return max(self.message_max_bytes, PAYLOAD_MAX_BYTES)


@dataclass(frozen=True, slots=True, kw_only=True)
class ClusterLimits:
    """[cluster_limits]: limits of one identity or address on all nodes together. 0 = no limit."""

    connections_per_identity: BoundedCount = 0
    connections_per_ip: BoundedCount = 0  # IPv6: of a /64
    channels_per_identity: BoundedCount = 0  # subscriptions of all its connections, over all services
    messages_per_s_per_identity: RateOrNone = 0.0  # at most one second's worth at once
    bytes_per_s_per_identity: RateOrNone = 0.0
    publishes_per_s_per_identity: RateOrNone = 0.0
    stored_bytes_per_identity: Count = 0  # in Redis within 300 s
    stored_bytes_per_ip: Count = 0  # of the anonymous clients of an address

    @property
    def are_set(self) -> bool:
        """True if there is any limit."""
        return self != ClusterLimits()
