"""Waiting replies: limits the bytes of unread replies, for the whole node.

Rules:
- Replies are counted from when a client's transport is full until it has drained. Replies that the transport
  accepts at once are not counted.
- Above the limit, the clients with the most unread bytes are closed (4008) until a quarter of the limit is free. A
  client that reads its replies has none counted, so clients that read nothing cannot cause it to be closed.
- Publications are not counted here: clients share their bytes.
"""

from collections.abc import Callable
from time import perf_counter
from typing import Final, Protocol

import structlog

from snorky.gateway.errors import CloseCode
from snorky.gateway.metrics import Metrics

__all__ = ["Debtor", "ReliefReport", "WaitingReplies"]

COMPLAIN_EVERY_S: Final = 1.0  # the metric counts all; many slow readers must not flood the log

_HELP: Final = "too many replies waited: limits.replies_max_bytes"
_log = structlog.get_logger("snorky.node")


class Debtor(Protocol):
    """A client with unread replies: a connection."""

    def close(self, code: int, reason: str = "") -> None:
        """Close the connection. It calls `settle` with 0 before this returns."""


class WaitingReplies:
    """The unread replies of one node. max_bytes: limit. on_relieved: called with the closed clients and freed bytes."""

    def __init__(
        self, max_bytes: int, on_relieved: Callable[[int, int], object] = lambda _clients, _bytes: None
    ) -> None:
        self._max_bytes = max_bytes
        self._on_relieved = on_relieved
        self._bytes: dict[Debtor, int] = {}
        self.total_bytes = 0

    def add(self, client: Debtor, size: int) -> None:
        """Count an unread reply; closes clients if the total is above the limit."""
        self._bytes[client] = self._bytes.get(client, 0) + size
        self.total_bytes += size
        if self.total_bytes > self._max_bytes:
            self._relieve()

    def settle(self, client: Debtor, left: int = 0) -> None:
        """Record that at most `left` bytes are unread by a client now."""
        counted = self._bytes.get(client)
        if counted is None or counted <= left:
            return
        self.total_bytes -= counted - left
        if left:
            self._bytes[client] = left
        else:
            del self._bytes[client]

    def _relieve(self) -> None:
        before, closed = self.total_bytes, 0
        for client in sorted(self._bytes, key=self._bytes.__getitem__, reverse=True):
            if self.total_bytes <= self._max_bytes * 3 // 4:
                break
            client.close(CloseCode.SLOW_CONSUMER, "Slow consumer")
            self.settle(client)
            closed += 1
        self._on_relieved(closed, before - self.total_bytes)


class ReliefReport:
    """Counts the clients that were closed, and logs them, at most one line a second."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self._complained_s = -COMPLAIN_EVERY_S

    def __call__(self, clients: int, size: int) -> None:
        """Report closed clients, and the bytes of their replies."""
        self._metrics.limit_hits.labels("replies_max_bytes").inc(clients)
        now_s = perf_counter()
        if now_s - self._complained_s >= COMPLAIN_EVERY_S:
            self._complained_s = now_s
            _log.warning("clients that read no replies were closed", clients=clients, bytes=size, help=_HELP)
