"""Libraries: checks the function library in every server of one Redis, and loads it again where necessary.

A *doubt* marks a period in which another library may have published without adding to the history. Rules:
- A node remembers, for each run of a server, the last instance that it found correct (`library_instance`). An unknown
  instance is judged by its text; one that no node can have loaded is replaced, whatever its text.
- A library that replaces one that may have published without history contains a new doubt. So every node, with any
  prefix and database, finds the doubt together with the library.
- Just before a load the node asks for the instance that is being replaced. If it is not the one that was judged, the
  library is loaded again, with a new doubt.
- All servers of a Cluster have the same doubt, because channels move between them. They also have the same rules: all
  that any of them has, or had at an earlier look, because the rules of a prefix without nodes are nowhere else.
"""

import re
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import hiredis
import structlog

from snorky.gateway.errors import BrokerUnavailable
from snorky.gateway.metrics import Metrics
from snorky.gateway.redis.connection.commands import Commands
from snorky.gateway.redis.connection.pipeline import all_ended
from snorky.gateway.redis.connection.refusals import Refusal, refusal_of
from snorky.gateway.redis.connection.resp import command
from snorky.gateway.redis.history.library_instance import NO_DOUBT, Doubt, Instance
from snorky.gateway.redis.history.library_text import (
    LIBRARY,
    Found,
    code_in,
    has_kept,
    judge,
    lines_in,
    quote,
    write_library,
)

__all__ = ["DOUBT_S", "Libraries", "LibraryRefused", "asking"]

DOUBT_S: Final = 2 * 86_400.0  # longer than the state of an unused channel lives
LOOKS_MAX: Final = 5  # attempts if the library is loaded again while we read it
_RUN: Final = re.compile(rb"^run_id:([0-9a-f]+)", re.MULTILINE)

_log = structlog.get_logger("snorky.redis")


class LibraryRefused(BrokerUnavailable):
    """Redis rejected a command about functions. is_barred: the Redis user lacks the permission."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.is_barred = refusal_of(text) is Refusal.NO_PERMISSION


def asking(key: bytes | None = None) -> bytes:
    """Build the command that asks for the loaded instance. key: selects the server of its slot; None = any server."""
    keys = [b"0"] if key is None else [b"1", key]
    return command(b"FCALL_RO", b"snorky_library", *keys)


@dataclass(frozen=True, slots=True)
class _Look:
    server: Commands
    run: str
    now_us: int
    present: str | None
    instance: Instance | None
    found: Found


class Libraries:
    """The libraries of one Redis, or of all servers of a Cluster. doubt: the latest one, or `NO_DOUBT`."""

    def __init__(self, commands: Commands, *, metrics: Metrics) -> None:
        self.doubt = NO_DOUBT
        self._commands = commands
        self._metrics = metrics
        self._known: dict[str, Instance] = {}  # by the run of a server
        self._lines: dict[str, str] = {}  # of a Cluster: the rules of all prefixes that were ever seen
        self._has_loaded = False

    def knows(self, answer: object) -> bool:
        """True if the answer to `asking` is an instance that was found correct, and its doubt is known."""
        instance = Instance.parse(answer)
        return instance is not None and instance.is_same(self._known.get(instance.run)) and instance.doubt <= self.doubt

    async def is_unchanged(self) -> bool:
        """True if each server has the instance that was found correct last. Raises BrokerUnavailable."""
        servers = self._commands.servers
        answers = await all_ended(server.send([asking()]) for server in servers)
        return bool(servers) and all(self.knows(answer) for (answer,) in answers)

    async def ensure(self, rules: tuple[str, str], *, former: bytes) -> bool:
        """Load the library on servers where it is missing, outdated or doubtful; returns True if there were any.

        rules: prefix, and merged rules of all nodes. former: the mark of the last doubt, as nodes of format 2 store it.
        Raises LibraryRefused; BrokerUnavailable: the outcome is unknown; ValueError: the library is of a later version.
        """
        servers = self._commands.servers
        if not servers:
            raise BrokerUnavailable("no server is known")
        looks = await all_ended(self._look(server) for server in servers)
        doubtful = [look for look in looks if self._is_doubtful(look)]
        doubt = max((look.instance.doubt for look in looks if look.instance and look not in doubtful), default=NO_DOUBT)
        if doubtful:
            doubt = self._new_doubt(looks)
        elif former and doubt == NO_DOUBT and any(look.found is Found.OLDER for look in looks):
            doubt = Doubt(looks[0].now_us + round(DOUBT_S * 1_000_000), former.decode())
        lines = self._merge(looks, rules) if self._commands.is_sharded else None
        ours = [look for look in looks if look.found is not Found.LATER]
        wanted = [look for look in ours if look in doubtful or not self._is_sound(look, lines, doubt)]
        loaded = await all_ended(self._load(look, lines, doubt, is_doubtful=look in doubtful) for look in wanted)
        sound = [look.instance for look in looks if look.instance and look not in doubtful and look not in wanted]
        known = {each.run: each for each in (*sound, *loaded) if each is not None}
        former_ones = {look.run: self._known[look.run] for look in looks if look.run in self._known}
        self._known = former_ones | known  # keep the last correct instance of a run until there is a newer one
        self.doubt = max((each.doubt for each in self._known.values()), default=NO_DOUBT)
        if len(ours) < len(looks):
            raise ValueError("Redis has the function library of a later version: upgrade this node")
        self._has_loaded = True
        return bool(wanted)

    def _is_doubtful(self, look: _Look) -> bool:
        """True if a library since the last check, or the present one, may have published without history."""
        known = self._known.get(look.run)
        if look.found is Found.MISSING:
            return known is not None
        if look.found is Found.OLDER:
            return known is not None or not has_kept(look.present)
        if look.found is Found.FOREIGN:
            return True
        return look.instance is not None and not look.instance.may_follow(known)

    def _merge(self, looks: Sequence[_Look], rules: tuple[str, str]) -> dict[str, str]:
        """Merge the rules that all servers have. Of two texts of one prefix that of the library loaded last counts."""
        for look in sorted(looks, key=lambda look: look.instance.loaded_us if look.instance else 0):
            self._lines |= lines_in(look.present)
        self._lines[rules[0]] = quote(rules[1])
        return self._lines.copy()

    def _is_sound(self, look: _Look, lines: dict[str, str] | None, doubt: Doubt) -> bool:
        if look.found is not Found.OURS and not (look.found is Found.SIBLING and self._has_loaded):
            return False
        if look.instance is not None and look.instance.doubt < doubt:
            return False
        if look.present is None or _is_for_cluster(look.present) is not (lines is not None):
            return False
        return lines is None or lines_in(look.present) == lines

    async def _look(self, server: Commands) -> _Look:
        listing = command(b"FUNCTION", b"LIST", b"LIBRARYNAME", LIBRARY.encode(), b"WITHCODE")
        for _ in range(LOOKS_MAX):
            steps = [asking(), listing, asking(), command(b"TIME"), command(b"INFO", b"server")]
            before, *answers = await server.send(steps)
            if isinstance(answers[1], hiredis.ReplyError):
                answers[1] = None  # snorky_library does not exist
            (library, after, time, info) = _sound(answers)
            instance = Instance.parse(after)
            if instance is None or instance.is_same(Instance.parse(before)):
                present, run = code_in(library), _RUN.search(info)
                now_us = int(time[0]) * 1_000_000 + int(time[1])
                return _Look(server, run[1].decode() if run else "", now_us, present, instance, judge(present))
        raise BrokerUnavailable("the function library is being replaced again and again")

    async def _load(
        self, look: _Look, lines: dict[str, str] | None, doubt: Doubt, *, is_doubtful: bool
    ) -> Instance | None:
        """Load the library on one server. Returns its instance; None = another node has replaced it already."""
        text = write_library(lines, doubt=doubt, loaded_us=look.now_us)
        loading = command(b"FUNCTION", b"LOAD", b"REPLACE", text.encode())
        answers = await look.server.send([asking(), loading, asking()])
        before, after = Instance.parse(answers[0]), Instance.parse(answers[2])
        _sound(answers[1:2])
        self._count(look, is_doubtful=is_doubtful)
        if look.instance is not None and not is_doubtful and (before is None or not before.may_follow(look.instance)):
            return await self._load(look, lines, self._new_doubt([look]), is_doubtful=True)
        if before is not None and before.doubt > doubt:  # another node was faster
            return await self._load(look, lines, before.doubt, is_doubtful=True)
        return after if after is not None and f"'{after.salt}'" in text else None

    def _new_doubt(self, looks: Sequence[_Look]) -> Doubt:
        before = max([self.doubt, *(look.instance.doubt for look in looks if look.instance)])
        until_us = max(look.now_us for look in looks) + round(DOUBT_S * 1_000_000)
        return Doubt(max(until_us, before.until_us + 1), secrets.token_hex(8))

    def _count(self, look: _Look, *, is_doubtful: bool) -> None:
        found = look.found
        if is_doubtful and found in (Found.OURS, Found.SIBLING):
            found = Found.FOREIGN  # an old copy, or there was a foreign library in between
        if found is Found.FOREIGN or (self._has_loaded and found in (Found.MISSING, Found.OLDER)):
            self._metrics.library_repairs.labels(found.value).inc()
            _log.warning("functions repaired", library=LIBRARY, reason=found.value)
        else:
            _log.info("functions loaded", library=LIBRARY)


def _sound(answers: list[Any]) -> list[Any]:
    """Return the answers. Raises LibraryRefused: one is an error."""
    for answer in answers:
        if isinstance(answer, hiredis.ReplyError):
            raise LibraryRefused(str(answer)[:300])
    return answers


def _is_for_cluster(library: str) -> bool:
    return "\nlocal IS_SHARDED = true\n" in library
