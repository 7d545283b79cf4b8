"""Refusals: one log line and one count for everybody who is turned away.

Rules:
- The count has no gaps; lines are bounded, for anybody can be refused as often as they like: of one door and reason
  one line in LINE_EVERY_S, which says how many came without a line before it (`unlogged`).
- A line says why, from where and of whom, as far as it is known; never a token, a key or a payload.
"""

import re
from collections.abc import Callable
from time import monotonic
from typing import Final, Protocol

import structlog

from gateway.metrics import Metrics

__all__ = ["Refusals"]

LINE_EVERY_S: Final = 1.0
# As browsers write an origin: in lower case. Other programs may send anything there, a token too.
_ORIGIN: Final = re.compile(r"null|[a-z][a-z0-9+.-]*://[a-z0-9._:\[\]-]{1,255}")
_OF_COMMANDS: Final = frozenset(  # other errors are none
    {"not_authorized", "not_authenticated", "name_not_allowed", "too_large"}
)

_log = structlog.get_logger("snorky.refused")


class Client(Protocol):
    """A connection, as far as it is looked at here."""

    identity: str | None
    remote_ip: str


class Refusals:
    """The refusals of one node. clock: monotonic seconds."""

    def __init__(self, metrics: Metrics, *, clock: Callable[[], float] = monotonic) -> None:
        self._count = metrics.refusals
        self._clock = clock
        self._lines: dict[tuple[str, str], tuple[float, int]] = {}  # when the next may be written, how many were not

    def note(self, door: str, reason: str, *, address: str | None = None, **facts: str | None) -> None:
        """Count one refusal, and write a line unless there was one a moment ago.

        door, reason: literals of ours. facts: origin, identity, service, command; None is left out.
        """
        self._count.labels(door, reason).inc()
        now_s = self._clock()
        next_s, unlogged = self._lines.get((door, reason), (now_s, 0))
        if now_s < next_s:
            self._lines[door, reason] = next_s, unlogged + 1
            return
        self._lines[door, reason] = now_s + LINE_EVERY_S, 0
        origin = facts.get("origin")
        if origin and not _ORIGIN.fullmatch(origin):
            facts["origin"] = "malformed"
        known = {name: value for name, value in {"address": address, **facts}.items() if value}
        _log.info("refused", door=door, reason=reason, unlogged=unlogged, **known)

    def note_command(self, code: str, client: Client, service: str, command: str | None = None) -> None:
        """Note the error of a command, if that is a refusal."""
        if code in _OF_COMMANDS:
            who = client.identity
            self.note("command", code, address=client.remote_ip, identity=who, service=service, command=command)
