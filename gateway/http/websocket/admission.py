"""Admission: finds a client's address behind trusted proxies, and limits connections per address and in total."""

import ipaddress
import math
import re
from collections import Counter
from collections.abc import Sequence

from aiohttp import web

from snorky.gateway.config.settings import Limits, Network
from snorky.gateway.connection.shared_limits import site_of
from snorky.gateway.http.websocket.handshake import HandshakeRefused, Headers
from snorky.gateway.http.websocket.handshake_rate import Knocks
from snorky.gateway.metrics import Metrics

__all__ = ["Admission"]


class Admission:
    """Counts the connections of a node, in total and per client address. One per public port.

    trusted_proxies: networks whose X-Forwarded-For is trusted.
    """

    def __init__(self, limits: Limits, trusted_proxies: Sequence[Network], metrics: Metrics) -> None:
        self._limits = limits
        self._trusted_proxies = trusted_proxies
        self._metrics = metrics
        metrics.connections_limit.set(limits.connections or math.inf)
        self._per_ip: Counter[str] = Counter()
        self._total = 0
        self._knocks = Knocks(limits)

    def client_ip(self, request: web.Request) -> str:
        """Return the address of the client that sent a request. See `address_of`."""
        return self.address_of(request.remote or "", request.headers)

    def address_of(self, peer: str, headers: Headers) -> str:
        """Return the client's address: the right-most of X-Forwarded-For that is not a trusted proxy.

        The client itself may have written the addresses further left. peer: the address that has connected.
        """
        address = peer
        if not self.is_trusted(address):
            return address
        forwarded = ",".join(headers.getall("X-Forwarded-For", ()))
        for each in reversed([part.strip() for part in forwarded.split(",") if part.strip()]):
            address = _without_port(each)
            if not self.is_trusted(address):
                break
        return address

    def network_of(self, ip: str) -> str | None:
        """Return the network that an address counts to; None: a trusted proxy, with many clients."""
        return None if self.is_trusted(ip) else site_of(ip)

    def knock(self, ip: str) -> None:
        """Count one connection attempt, before any other check. Raises HandshakeRefused: too many recently."""
        if not self._knocks.take(site_of(ip)):
            self._metrics.limit_hits.labels("handshakes_per_ip").inc()
            raise HandshakeRefused(429, "handshakes_per_ip", "Too many new connections from this address")

    def enter(self, ip: str) -> None:
        """Count one connection; the caller must call `leave` later. Raises HandshakeRefused: a limit is reached."""
        limits = self._limits
        if limits.connections and self._total >= limits.connections:
            self._metrics.limit_hits.labels("connections").inc()
            raise HandshakeRefused(503, "connections", "This node is full: try another one")
        site = site_of(ip)
        if limits.connections_per_ip and self._per_ip[site] >= limits.connections_per_ip:
            self._metrics.limit_hits.labels("connections_per_ip").inc()
            raise HandshakeRefused(429, "connections_per_ip", "Too many connections from this address")
        self._total += 1
        self._per_ip[site] += 1

    def leave(self, ip: str) -> None:
        """Stop counting one connection."""
        self._total -= 1
        site = site_of(ip)
        self._per_ip[site] -= 1
        if self._per_ip[site] <= 0:
            del self._per_ip[site]

    def is_trusted(self, address: str) -> bool:
        """Return True if an address is one of a trusted proxy."""
        if not self._trusted_proxies:
            return False
        try:
            ip = ipaddress.ip_address(address)
        except ValueError:
            return False
        return any(ip in network for network in self._trusted_proxies)


def _without_port(address: str) -> str:
    """Remove the port that some proxies append: otherwise every connection would count as another address."""
    bracketed = re.fullmatch(r"\[([0-9A-Fa-f:.]+)\](?::\d+)?|(\d+\.\d+\.\d+\.\d+):\d+", address)
    return (bracketed[1] or bracketed[2]) if bracketed else address
