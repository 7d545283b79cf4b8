"""Waiting replies: bytes of replies that clients do not read, bounded for the whole node.

Rules:
- Replies are counted from the moment that a client's wire takes no more until it has drained. What wires take
  at once is not counted.
- Beyond the bound the clients for which most waits are closed (4008), until a quarter of the bound is free. Clients
  that read their replies have none waiting, so a crowd that reads nothing cannot have them closed.
- Publications are not counted here: clients share their bytes.
"""

from collections.abc import Callable
from typing import Protocol

from gateway.errors import CloseCode

__all__ = ["Debtor", "WaitingReplies"]


class Debtor(Protocol):
    """A client for which replies wait: a connection."""

    def close(self, code: int, reason: str = "") -> None:
        """End the connection. It calls `settle` with 0 before this returns."""


class WaitingReplies:
    """Counts of one node. max_bytes: of all. on_relieved: is told how many clients were closed, of how many bytes."""

    def __init__(
        self, max_bytes: int, on_relieved: Callable[[int, int], object] = lambda _clients, _bytes: None
    ) -> None:
        self._max_bytes = max_bytes
        self._on_relieved = on_relieved
        self._bytes: dict[Debtor, int] = {}
        self.total_bytes = 0

    def add(self, client: Debtor, size: int) -> None:
        """Count a reply that waits; closes clients if that is too much."""
        self._bytes[client] = self._bytes.get(client, 0) + size
        self.total_bytes += size
        if self.total_bytes > self._max_bytes:
            self._relieve()

    def settle(self, client: Debtor, left: int = 0) -> None:
        """Take note that at most `left` bytes wait for a client now."""
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
