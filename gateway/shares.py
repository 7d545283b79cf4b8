"""Shares: what an address and an identity may send over all their connections of a node, also those that have ended.

Rules:
- A share is held by the connections that take from it, and for a while by itself: the REMEMBERED used last are kept,
  so that a connection that comes again finds the bucket as it left it. The memory is bounded.
- An IPv6 address is its /64, as in the limit of connections.
"""

import ipaddress
from collections import OrderedDict
from typing import Final
from weakref import WeakValueDictionary

from gateway.limiter import Rates, Share
from gateway.settings import Limits

__all__ = ["Shares", "rates_of", "site_of"]

REMEMBERED: Final = 10_000  # some 6 MB
FRAMES_BURST_S: Final = 10.0  # as long as messages_burst by default


class Shares:
    """The shares of one registry."""

    def __init__(self, limits: Limits) -> None:
        rates = rates_of(limits)
        # with no limit of connections per address an address says nothing about who connects
        self._per_ip = rates.times(limits.rate_factor_per_ip) if limits.connections_per_ip else None
        if not limits.rate_factor_per_ip:
            self._per_ip = None
        factor = limits.rate_factor_per_identity
        self._per_identity = rates.times(factor) if factor else None
        self._known: WeakValueDictionary[tuple[str, str], Share] = WeakValueDictionary()
        self._remembered: OrderedDict[tuple[str, str], Share] = OrderedDict()

    def of(self, remote_ip: str, identity: str | None) -> tuple[Share, ...]:
        """Find or make the shares of a client. remote_ip: "" = it has none."""
        found = []
        if self._per_ip is not None and remote_ip:
            found.append(self._find("per_ip", site_of(remote_ip), self._per_ip))
        if self._per_identity is not None and identity is not None:
            found.append(self._find("per_identity", identity, self._per_identity))
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
    """Give what one connection may send."""
    return Rates(
        limits.messages_per_s,
        limits.messages_burst,
        limits.bytes_per_s,
        max(limits.bytes_burst, limits.message_max_bytes),  # else the largest message could never come
        limits.frames_per_s,
        max(1.0, limits.frames_per_s * FRAMES_BURST_S),
    )


def site_of(ip: str) -> str:
    """Tell whose address this is: one IPv4 address, or the /64 of an IPv6 one, of which a single host has them all."""
    if ":" not in ip:
        return ip
    try:
        address = ipaddress.IPv6Address(ip.partition("%")[0])
    except ValueError:
        return ip
    if address.ipv4_mapped is not None:
        return str(address.ipv4_mapped)
    return str(ipaddress.IPv6Network((int(address) >> 64 << 64, 64)))
