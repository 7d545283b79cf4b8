"""Scripts: runs the Lua files of `scripts/` in Redis: EVALSHA by digest, or EVAL if Redis does not know the script yet.

Because of the first line `#!lua`, Redis rejects a script before any write when memory is short, unless it has
`flags=allow-oom`. fakeredis does not support this line, so it is removed there. fakeredis' TCP server also closes a
connection after an error reply, so there scripts are always sent in full.
"""

import asyncio
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import hiredis

from snorky.gateway.errors import BrokerUnavailable
from snorky.gateway.redis.connection.commands import Commands
from snorky.gateway.redis.connection.refusals import Refusal, is_undone, refusal_of
from snorky.gateway.redis.connection.resp import command

__all__ = ["Call", "Scripts", "sharded"]


def sharded(source: bytes) -> bytes:
    """Make the variant of a script for a Cluster, which uses SPUBLISH."""
    return source.replace(b"redis.call('PUBLISH'", b"redis.call('SPUBLISH'")


@dataclass(frozen=True, slots=True)
class _Script:
    source: bytes
    digest: bytes

    @classmethod
    def of(cls, source: bytes) -> "_Script":
        return cls(source, hashlib.sha1(source, usedforsecurity=False).hexdigest().encode())


@dataclass(frozen=True, slots=True)
class _Spellings:
    """The variants of a script. plain: with an empty first line (so that line numbers in errors stay right)."""

    full: _Script
    plain: _Script
    sharded: _Script


def _load() -> dict[str, _Spellings]:
    found = {}
    for path in sorted(Path(__file__).parents[1].glob("*/lua/*.lua")):
        source = path.read_bytes()
        plain = source[source.index(b"\n") :]
        found[path.stem] = _Spellings(_Script.of(source), _Script.of(plain), _Script.of(sharded(source)))
    return found


_SCRIPTS = _load()
_ASK_VERSION = b"return redis.REDIS_VERSION_NUM or 0"  # introduced with the shebang line; fakeredis has neither


@dataclass(frozen=True, slots=True)
class Call:
    """One script to run. name: its file's name without `.lua`."""

    name: str
    keys: Sequence[bytes]
    arguments: Sequence[bytes]


class Scripts:
    """Runs groups of commands and scripts, in order, over `Commands`."""

    def __init__(self, commands: Commands) -> None:
        self._commands = commands
        self._is_plain: bool | None = None  # the server does not support the shebang line; None: not asked yet

    @property
    def is_sharded(self) -> bool:
        """True in a Cluster: there a script can publish only to channels in the slot of its keys."""
        return self._commands.is_sharded

    def servers(self) -> "list[Scripts]":
        """Return [self]; in a Cluster, one for each primary, for scripts that have no keys and do not publish."""
        if not self.is_sharded:
            return [self]
        servers = [Scripts(each) for each in self._commands.servers]
        for each in servers:
            each._is_plain = self._is_plain
        return servers

    async def run(self, *steps: Call | bytes, in_order: bool = True) -> list[Any]:
        """Run steps in order, with one round trip. A step is a script, or bytes: a command encoded by `wire.command`.

        In a Cluster, one round trip for each change of the slot; in_order=False: all slots concurrently.

        If Redis does not know a script, the script is sent again in full, together with all plain commands. Returns the
        answers. Raises BrokerUnavailable: a step failed or its outcome is unknown; others may have been executed.
        """
        await self.is_plain()
        answers = await self._send(steps, in_full=False, in_order=in_order)
        unknown = {at for at, answer in enumerate(answers) if _is_unknown(answer)}
        if unknown:
            # Scripts that ran are not repeated: they might return another result. Commands are, to read after scripts.
            again = [at for at, step in enumerate(steps) if at in unknown or isinstance(step, bytes)]
            for at, answer in zip(
                again, await self._send([steps[at] for at in again], in_full=True, in_order=in_order), strict=True
            ):
                answers[at] = answer
        answered = [answer for step, answer in zip(steps, answers, strict=True) if isinstance(step, Call)]
        return raise_for_errors(answers, is_undone=all(_is_refusal(answer) for answer in answered or answers))

    async def is_plain(self) -> bool:
        """True if the server supports neither the shebang line nor functions. Raises BrokerUnavailable."""
        if self._is_plain is None:
            (version,) = raise_for_errors(await self._commands.send([command(b"EVAL", _ASK_VERSION, b"0")]))
            self._is_plain = version == 0
        return self._is_plain

    def forget(self, *steps: bytes) -> None:
        """Send commands and ignore their outcome; never waits."""
        self._commands.send(steps)

    def _send(self, steps: Sequence[Call | bytes], *, in_full: bool, in_order: bool) -> "asyncio.Future[list[Any]]":
        return self._commands.send([self._spell(step, in_full) for step in steps], in_order=in_order)

    def _spell(self, step: Call | bytes, in_full: bool) -> bytes:
        if isinstance(step, bytes):
            return step
        spellings = _SCRIPTS[step.name]
        script = spellings.sharded if self._commands.is_sharded else spellings.full
        if self._is_plain:
            script = spellings.plain
        how, what = (b"EVAL", script.source) if in_full or self._is_plain else (b"EVALSHA", script.digest)
        return command(how, what, b"%d" % len(step.keys), *step.keys, *step.arguments)


def _is_unknown(answer: object) -> bool:
    return isinstance(answer, hiredis.ReplyError) and refusal_of(answer) is Refusal.NO_SCRIPT


def _is_refusal(answer: object) -> bool:
    return isinstance(answer, hiredis.ReplyError) and is_undone(str(answer))


def raise_for_errors(answers: list[Any], *, is_undone: bool = False) -> list[Any]:
    """Return the answers. Raises BrokerUnavailable: one is an error. is_undone: of that error; no script was run."""
    for answer in answers:
        if isinstance(answer, hiredis.ReplyError):
            raise BrokerUnavailable(str(answer)[:300], is_undone=is_undone)
    return answers
