"""AcceptGate: counts and limits the connections of a public port from the moment they are accepted.

Rules:
- A connection without a handshake already uses a descriptor and a parser. It is counted before its first byte is
  read; Admission counts what is admitted afterwards: WebSockets and SockJS sessions.
- One address may have HTTP_PER_CONNECTION times `connections_per_ip` connections in plain HTTP: a SockJS session uses
  two, one to receive and one to send. Trusted proxies are not clients: only the total is limited for them.
- Some descriptors are reserved for the private port, for Redis and for connections that are being refused. A connection
  beyond the rest gets a short response and is closed, so the node never runs out of descriptors.
"""

import asyncio
import fcntl
import math
import os
import random
import resource
from collections import Counter
from collections.abc import Callable
from typing import Final

import structlog

from snorky.gateway.config.settings import Limits
from snorky.gateway.metrics import Metrics

__all__ = ["AcceptGate", "Descriptors"]

HTTP_PER_CONNECTION: Final = 2
RESERVE_MIN: Final = 16  # for the private port, reconnects to Redis, files
RESERVE_MAX: Final = 1_024
ROOM_MAX: Final = 262_144  # descriptors; 8 bytes each in the kernel
ANSWERED_MAX: Final = 64  # connections that are being refused with a response
LOG_INTERVAL_S: Final = 10.0
RETRY_AFTER_S: Final = 5
_ANSWER: Final = (
    "HTTP/1.1 {status}\r\nContent-Type: text/plain\r\nContent-Length: {length}\r\nRetry-After: {after_s}\r\n"
    "Connection: close\r\n\r\n{text}"
)

_log = structlog.get_logger("snorky.http")


class Descriptors:
    """The number of file descriptors that this process may open, has open, and reserves."""

    def __init__(self, limit: int, used: int) -> None:
        self.limit = limit
        self.reserve = max(RESERVE_MIN, min(RESERVE_MAX, limit // 4))
        self.capacity = max(1, limit - used - self.reserve)  # for client connections

    @classmethod
    def now(cls) -> "Descriptors":
        """Inspect this process."""
        limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        if limit == resource.RLIM_INFINITY:
            limit = 1 << 30
        try:
            used = len(os.listdir("/dev/fd"))
        except OSError:
            used = 32  # no such folder: assume what a node without clients uses
        return cls(limit, used)

    def bounded(self, connections: int) -> int:
        """Return the limit, or what the descriptors allow if that is less, with a warning. 0 = only the descriptors."""
        # the rest is for connections that are refused with a response
        possible = self.capacity - min(ANSWERED_MAX, self.capacity // 8)
        if connections <= possible:
            return connections
        _log.warning(
            "limits.connections is above what the file descriptors allow",
            connections=connections,
            used_instead=possible,
            descriptors=self.limit,
            remedy="raise the limit (ulimit -n, LimitNOFILE=, --ulimit nofile=), or lower [limits] connections",
        )
        return possible

    def make_room(self, connections: int) -> None:
        """Enlarge the kernel's table of this process's descriptors now, for that many clients; 0 = ROOM_MAX in all.

        The kernel doubles the table each time it is full. In a process with threads that takes 10-20 ms, in which the
        process waits, and happens six times while 10,000 clients connect.
        """
        size = min(self.limit - self.capacity + (connections or ROOM_MAX), self.limit, ROOM_MAX)
        try:
            with open(os.devnull, "rb") as null:
                os.close(fcntl.fcntl(null, fcntl.F_DUPFD_CLOEXEC, size - 1))
        except OSError as error:  # it is enlarged when clients connect
            _log.warning("no room for file descriptors in advance", error=str(error))


class AcceptGate:
    """One per public port. network_of: returns the network that an address counts to; None: a trusted proxy."""

    def __init__(
        self, limits: Limits, descriptors: Descriptors, network_of: Callable[[str], str | None], metrics: Metrics
    ) -> None:
        self._descriptors = descriptors
        self._network_of = network_of
        self._metrics = metrics
        self._per_network_max = limits.connections_per_ip * HTTP_PER_CONNECTION or math.inf
        self._http_max = limits.connections * HTTP_PER_CONNECTION or math.inf
        self._per_network: Counter[str] = Counter()
        self._networks: dict[object, str | None] = {}  # of each connection that uses plain HTTP
        self.websockets = 0
        self.accepted = 0  # since the start
        self.wait_s = 0.0  # how long a new connection would wait to be answered, if that is too long
        self._refuses_until_s = 0.0  # loop time: the figure may become old without another one
        self._refused = 0  # since the last log line
        self._logged_s = -math.inf

    def enter(self, key: object, transport: asyncio.Transport) -> tuple[str, bool]:
        """Count an accepted connection; above a limit, respond and close it. The caller must call `leave` later.

        Returns the address that has connected, "" = unknown; and True if it was refused: nothing that it sends counts.
        """
        self.accepted += 1
        peer = transport.get_extra_info("peername")
        address = str(peer[0]) if isinstance(peer, tuple) else ""
        network = self._network_of(address)
        refusal = self._find_refusal(network)
        if refusal is not None:
            self._refuse(transport, *refusal)
        self._networks[key] = network
        if network is not None:
            self._per_network[network] += 1
        return address, refusal is not None

    @property
    def at_once_max(self) -> int:
        """How many connections may be accepted in one iteration of the loop, before the first of them is refused."""
        return max(1, self._descriptors.reserve // 16)

    def refuse_new(self, wait_s: float, *, for_s: float) -> None:
        """Refuse new connections for a time, because they would wait so long; 0 = accept them again."""
        self.wait_s = wait_s
        self._refuses_until_s = asyncio.get_running_loop().time() + for_s

    def pass_on(self, key: object, successor: object) -> None:
        """Count a connection for another object from now on, whatever limits are reached meanwhile."""
        self._networks[successor] = self._networks.pop(key)

    def leave(self, key: object) -> None:
        """Stop counting a connection that has ended, or has become a WebSocket. Idempotent."""
        network = self._networks.pop(key, None)
        if network is not None:
            self._per_network[network] -= 1
            if self._per_network[network] <= 0:
                del self._per_network[network]

    def _find_refusal(self, network: str | None) -> tuple[str, str, str] | None:
        """Return the limit that is reached, and the status and text of the response; None: no limit is."""
        if self.wait_s and asyncio.get_running_loop().time() < self._refuses_until_s:
            return "backlog", "503 Service Unavailable", "Many clients come to this node now: try again later\n"
        if len(self._networks) + self.websockets >= self._descriptors.capacity:
            return "descriptors", "503 Service Unavailable", "This node is full: try another one\n"
        if len(self._networks) >= self._http_max:
            return "connections", "503 Service Unavailable", "This node is full: try another one\n"
        if network is not None and self._per_network[network] >= self._per_network_max:
            return "connections_per_ip", "429 Too Many Requests", "Too many connections from this address\n"
        return None

    def _refuse(self, transport: asyncio.Transport, limit: str, status: str, text: str) -> None:
        self._metrics.limit_hits.labels(limit).inc()
        self._refused += 1
        now_s = asyncio.get_running_loop().time()
        if now_s - self._logged_s >= LOG_INTERVAL_S:
            peer = transport.get_extra_info("peername")
            _log.warning("connections refused", limit=limit, count=self._refused, last_peer=str(peer))
            self._refused, self._logged_s = 0, now_s
        after_s = RETRY_AFTER_S
        if limit == "backlog":  # they must not come all at once again
            after_s = math.ceil(random.uniform(0, self.wait_s))  # noqa: S311 - no secret
        transport.write(_ANSWER.format(status=status, length=len(text), text=text, after_s=after_s).encode())
        transport.pause_reading()
        # not now: aiohttp starts the connection's task with an assertion that it is open
        asyncio.get_running_loop().call_soon(transport.close)
