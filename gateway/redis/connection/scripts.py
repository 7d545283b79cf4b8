"""Scripts: runs the Lua files of `scripts/` in Redis: EVALSHA by digest, or EVAL if Redis does not know the script yet.

Because of the first line `#!lua`, Redis rejects a script before any write when memory is short, unless it has
`flags=allow-oom`.

Several scripts can be joined: Redis runs them as one command, one after the other, and an error of one does not stop
the others. All must be allowed when memory is short, because Redis decides that for the whole.
"""

import asyncio
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from itertools import chain
from pathlib import Path
from typing import Any, Final

import hiredis

from snorky.gateway.errors import BrokerUnavailable
from snorky.gateway.redis.connection.commands import Commands
from snorky.gateway.redis.connection.refusals import Refusal, is_undone, refusal_of
from snorky.gateway.redis.connection.resp import command

__all__ = ["Call", "Joined", "Scripts", "sharded"]

_JOINED: Final = b"""#!lua flags=allow-oom
-- ARGV for each part: how many keys and arguments it has; then all arguments
local keys_at, words_at, answers = 0, 2 * #parts, {}
for at, part in ipairs(parts) do
  local keys, words = {}, {}
  for number = 1, ARGV[2 * at - 1] do
    keys[number] = KEYS[keys_at + number]
  end
  for number = 1, ARGV[2 * at] do
    words[number] = ARGV[words_at + number]
  end
  keys_at, words_at = keys_at + #keys, words_at + #words
  local is_done, answer = pcall(part, keys, words)
  if not is_done and type(answer) ~= 'table' then
    answer = {err = 'ERR ' .. tostring(answer)}
  end
  answers[at] = answer or false
end
return answers
"""


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
    """The variants of a script."""

    full: _Script
    sharded: _Script


def _load() -> dict[str, _Spellings]:
    found = {}
    for path in sorted(Path(__file__).parents[1].glob("**/lua/*.lua")):
        source = path.read_bytes()
        found[path.stem] = _Spellings(_Script.of(source), _Script.of(sharded(source)))
    return found


_SCRIPTS = _load()


@dataclass(frozen=True, slots=True)
class Call:
    """One script to run. name: its file's name without `.lua`."""

    name: str
    keys: Sequence[bytes]
    arguments: Sequence[bytes]


@dataclass(frozen=True, slots=True)
class Joined:
    """Scripts to run as one command. The answer: one of each script, `hiredis.ReplyError` for one that failed.

    calls: all their keys are in one slot.
    """

    calls: Sequence[Call]


@cache
def _join(names: tuple[str, ...]) -> _Spellings:
    sources = [_SCRIPTS[name].full.source for name in names]
    parts = []
    for name, source in zip(names, sources, strict=True):
        head, _, body = source.partition(b"\n")
        if head not in (b"#!lua flags=allow-oom", b"#!lua flags=no-writes"):
            raise ValueError(f"{name} is not allowed when memory is short")
        parts.append(b"function(KEYS, ARGV)\n" + body + b"end,\n")
    head, _, body = _JOINED.partition(b"\n")
    source = head + b"\nlocal parts = {\n" + b"".join(parts) + b"}\n" + body
    return _Spellings(_Script.of(source), _Script.of(sharded(source)))


class Scripts:
    """Runs groups of commands and scripts, in order, over `Commands`."""

    def __init__(self, commands: Commands) -> None:
        self._commands = commands

    @property
    def is_sharded(self) -> bool:
        """True in a Cluster: there a script can publish only to channels in the slot of its keys."""
        return self._commands.is_sharded

    def servers(self) -> "list[Scripts]":
        """Return [self]; in a Cluster, one for each primary, for scripts that have no keys and do not publish."""
        if not self.is_sharded:
            return [self]
        return [Scripts(each) for each in self._commands.servers]

    async def run(self, *steps: Call | Joined | bytes, in_order: bool = True) -> list[Any]:
        """Run steps in order, with one round trip. A step is a script, several that are joined, or bytes: a command
        encoded by `wire.command`.

        In a Cluster, one round trip for each change of the slot; in_order=False: all slots concurrently.

        If Redis does not know a script, the script is sent again in full, together with all plain commands. Returns the
        answers. Raises BrokerUnavailable: a step failed or its outcome is unknown; others may have been executed.
        """
        answers = await self._send(steps, in_full=False, in_order=in_order)
        unknown = {at for at, answer in enumerate(answers) if _is_unknown(answer)}
        if unknown:
            # Scripts that ran are not repeated: they might return another result. Commands are, to read after scripts.
            again = [at for at, step in enumerate(steps) if at in unknown or isinstance(step, bytes)]
            for at, answer in zip(
                again, await self._send([steps[at] for at in again], in_full=True, in_order=in_order), strict=True
            ):
                answers[at] = answer
        answered = [answer for step, answer in zip(steps, answers, strict=True) if not isinstance(step, bytes)]
        return raise_for_errors(answers, is_undone=all(_is_refusal(answer) for answer in answered or answers))

    def forget(self, *steps: bytes) -> None:
        """Send commands and ignore their outcome; never waits."""
        self._commands.send(steps)

    def _send(
        self, steps: Sequence[Call | Joined | bytes], *, in_full: bool, in_order: bool
    ) -> "asyncio.Future[list[Any]]":
        return self._commands.send([self._spell(step, in_full) for step in steps], in_order=in_order)

    def _spell(self, step: Call | Joined | bytes, in_full: bool) -> bytes:
        if isinstance(step, bytes):
            return step
        if isinstance(step, Call):
            spellings, keys, arguments = _SCRIPTS[step.name], step.keys, step.arguments
        else:
            spellings = _join(tuple(call.name for call in step.calls))
            keys = [key for call in step.calls for key in call.keys]
            counts = [b"%d" % len(each) for call in step.calls for each in (call.keys, call.arguments)]
            arguments = [*counts, *chain.from_iterable(call.arguments for call in step.calls)]
        script = spellings.sharded if self._commands.is_sharded else spellings.full
        how, what = (b"EVAL", script.source) if in_full else (b"EVALSHA", script.digest)
        return command(how, what, b"%d" % len(keys), *keys, *arguments)


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
