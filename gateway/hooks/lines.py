"""Lines: log lines about hooks, for each operation and kind at most one per LINE_EVERY_S."""

from collections.abc import Callable
from typing import Final

import structlog

__all__ = ["Lines"]

LINE_EVERY_S: Final = 1.0  # anyone can connect at any rate; the metrics count all

_log = structlog.get_logger("snorky.hooks")


class Lines:
    """One per hook. clock: monotonic seconds."""

    def __init__(self, operation: str, clock: Callable[[], float]) -> None:
        self._operation = operation
        self._clock = clock
        self._next: dict[str, tuple[float, int]] = {}  # by kind: the earliest time of the next line, number unlogged

    def failed(self, kind: str, detail: str) -> None:
        """Log that a request got no usable answer. kind: a literal."""
        self._write(_log.warning, "hook failed", kind, detail=detail)

    def refused(self, identity: str | None, address: str, said: str) -> None:
        """Log that the backend refused a client. said: its reason."""
        self._write(_log.info, "hook refused", "refused", identity=identity, address=address, said=said)

    def _write(self, write: Callable[..., object], event: str, kind: str, **facts: str | None) -> None:
        now_s = self._clock()
        next_s, unlogged = self._next.get(kind, (now_s, 0))
        if now_s < next_s:
            self._next[kind] = next_s, unlogged + 1
            return
        self._next[kind] = now_s + LINE_EVERY_S, 0
        known = {name: value for name, value in facts.items() if value}
        write(event, operation=self._operation, kind=kind, unlogged=unlogged, **known)
