"""Refusals: counts and logs refused clients and requests.

Rules:
- Every refusal is counted. Log lines are limited, because anyone can be refused at any rate: for each door and reason
  one line per LINE_EVERY_S, with the number of refusals not logged since the last line (`unlogged`).
- A line contains reason, address and identity, as far as they are known; never a token, a key or a payload.
"""

import re
from collections.abc import Callable
from time import monotonic
from typing import Final, Protocol

import structlog

from snorky.gateway.metrics import Metrics

__all__ = ["Refusals"]

LINE_EVERY_S: Final = 1.0
# An origin as browsers send it, in lower case. Other programs may send anything, even a token.
_ORIGIN: Final = re.compile(r"null|[a-z][a-z0-9+.-]*://[a-z0-9._:\[\]-]{1,255}")
_OF_COMMANDS: Final = frozenset(  # the error codes of commands that count as refusals
    {"not_authorized", "not_authenticated", "name_not_allowed", "too_large"}
)

_log = structlog.get_logger("snorky.refused")


class Client(Protocol):
    """The part of a connection that is used here."""

    identity: str | None
    remote_ip: str


class Refusals:
    """The refusals of one node. clock: monotonic seconds."""

    def __init__(self, metrics: Metrics, *, clock: Callable[[], float] = monotonic) -> None:
        self._count = metrics.refusals
        self._clock = clock
        self._lines: dict[tuple[str, str], tuple[float, int]] = {}  # earliest time of the next line, number unlogged

    def note(self, door: str, reason: str, *, address: str | None = None, **facts: str | None) -> None:
        """Count one refusal, and log it unless one was logged less than LINE_EVERY_S ago.

        door, reason: literals in our code. facts: origin, identity, key, service, command; those that are None are
        omitted.
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
        """Count the error of a command if it is a refusal."""
        if code in _OF_COMMANDS:
            who = client.identity
            self.note("command", code, address=client.remote_ip, identity=who, service=service, command=command)
