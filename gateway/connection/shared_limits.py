"""Shares: the rate limits of an address and an identity, over all their connections of a node, including closed ones.

Rules:
- Connections hold a reference to their shares. In addition the REMEMBERED shares used last are kept,
  so that a client that reconnects continues with the same buckets. The memory is bounded.
- IPv6 addresses are grouped by /64, as in the limit of connections.
"""

import ipaddress
from collections import OrderedDict
from typing import Final
from weakref import WeakValueDictionary

from snorky.gateway.config.settings import Limits
from snorky.gateway.connection.cluster_rates import ClusterRates
from snorky.gateway.connection.rate_limiter import Rates, Share

__all__ = ["Shares", "rates_of", "site_of"]

REMEMBERED: Final = 10_000  # about 6 MB
FRAMES_BURST_S: Final = 10.0  # as with the default of messages_burst


class Shares:
    """The shares of one registry. cluster_rates: the rates over all nodes; None = there are none."""

    def __init__(self, limits: Limits, cluster_rates: ClusterRates | None = None) -> None:
        self._cluster_rates = cluster_rates
        rates = rates_of(limits)
        # without a limit of connections per address, addresses do not identify clients
        self._per_ip = rates.times(limits.rate_factor_per_ip) if limits.connections_per_ip else None
        if not limits.rate_factor_per_ip:
            self._per_ip = None
        factor = limits.rate_factor_per_identity
        self._per_identity = rates.times(factor) if factor else None
        self._known: WeakValueDictionary[tuple[str, str], Share] = WeakValueDictionary()
        self._remembered: OrderedDict[tuple[str, str], Share] = OrderedDict()

    def of(self, remote_ip: str, identity: str | None) -> tuple[Share, ...]:
        """Find or make the shares of a client. remote_ip: "" = unknown."""
        found = []
        if self._per_ip is not None and remote_ip:
            found.append(self._find("per_ip", site_of(remote_ip), self._per_ip))
        if self._per_identity is not None and identity is not None:
            found.append(self._find("per_identity", identity, self._per_identity))
        if self._cluster_rates is not None and identity is not None:
            share = self._cluster_rates.share_of(identity)
            if share is not None:
                found.append(share)
        return tuple(found)

    def _find(self, kind: str, name: str, rates: Rates) -> Share:
        key = kind, name
        share = self._known.get(key)
        if share is None:
            share = self._known[key] = Share(kind, rates)
        self._remembered[key] = share
        self._remembered.move_to_end(key)
        if len(self._remembered) > REMEMBERED:
            self._remembered.popitem(last=False)
        return share


def rates_of(limits: Limits) -> Rates:
    """Return the rates of one connection."""
    return Rates(
        limits.messages_per_s,
        limits.messages_burst,
        limits.bytes_per_s,
        max(limits.bytes_burst, limits.message_max_bytes),  # else the largest message would never be allowed
        limits.frames_per_s,
        max(1.0, limits.frames_per_s * FRAMES_BURST_S),
    )


def site_of(ip: str) -> str:
    """Return the network that counts as one client: an IPv4 address, or an IPv6 /64, which one host may have."""
    if ":" not in ip:
        return ip
    try:
        address = ipaddress.IPv6Address(ip.partition("%")[0])
    except ValueError:
        return ip
    if address.ipv4_mapped is not None:
        return str(address.ipv4_mapped)
    return str(ipaddress.IPv6Network((int(address) >> 64 << 64, 64)))
