"""Functions: the library `snorky` in Redis, so that any client publishes once and in order with one FCALL.

    FCALL snorky_publish 1 'PREFIX:{SERVICE:CHANNEL}' PAYLOAD [IDEMPOTENCY_KEY]      -> EPOCH:OFFSET:TAG, or ''

Rules:
- One source: the library's body is `scripts/publish.lua`, which nodes publish by themselves.
- Function names are global in a Redis, whatever the prefix. So all prefixes share one library, in which each has one
  line: the rules of its channels, and their digest. Who loads keeps the lines of the others as they are.
- A node that starts puts its rules in, if they differ; later it only looks from time to time, and loads what is
  missing: two nodes with different rules would else replace each other's for ever. `snorky check` tells of them.
- Two that load at once may each miss the other's line. So who has loaded looks again soon, and puts its line in again.
- A salt in the library stands in for the entropy that a caller would give: Redis has none of its own that differs
  after every start.
"""

import asyncio
import contextlib
import re
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import hiredis
import structlog

from gateway.errors import BrokerUnavailable
from gateway.redis.cluster_commander import AnyCommander
from gateway.redis.scripting import Scripts, sharded
from gateway.redis.sequencer import KEEP_S, ONCE_S
from gateway.redis.wire import command
from gateway.rules import ChannelRule, Rules, digest_of

__all__ = ["LIBRARY", "Functions", "code_in", "digests_in", "merge"]

LIBRARY: Final = "snorky"
LOOK_S: Final = 30.0
SOON_S: Final = 1.0  # much longer than reading and loading take
FORMAT: Final = 1  # of the lines of rules

_FOLDER = Path(__file__).parent
_PUBLISH = (_FOLDER / "scripts" / "publish.lua").read_text().partition("\n")[2]
_FUNCTION = (_FOLDER / "library" / "snorky_publish.lua").read_text()
_LINE = re.compile(r"^\['([^'\n]+)'\]=\{digest='([0-9a-f]+)',.*\},$", re.MULTILINE)
_FORMAT = re.compile(r"^-- format (\d+)$", re.MULTILINE)
_SALT = re.compile(r"^local SALT = .*$", re.MULTILINE)

_log = structlog.get_logger("snorky.redis")


def digests_in(library: str) -> dict[str, str]:
    """Read whose rules a library has: prefix -> digest."""
    return dict(_LINE.findall(library))


def code_in(answer: Any) -> str | None:
    """Read the text of a library from the answer to FUNCTION LIST ... WITHCODE; None = it is not there."""
    if not answer:
        return None
    fields = answer[0]  # name, value, name, value ...; or a mapping
    named = fields if isinstance(fields, dict) else dict(zip(fields[::2], fields[1::2], strict=True))
    return str(named[b"library_code"].decode(errors="replace"))


def merge(library: str | None, prefix: str, rules: Mapping[str, Rules], *, is_sharded: bool = False) -> str:
    """Write a library with a prefix's rules, and those that the present one has of other prefixes.

    is_sharded: for a Cluster.
    Raises ValueError: the present one is of a later format, which only a later version of the gateway can keep.
    """
    lines = {}
    if library is not None and (found := _FORMAT.search(library)) is not None:
        if int(found[1]) > FORMAT:
            raise ValueError("the library in Redis is a later version's")
        if int(found[1]) == FORMAT:
            lines = {match[1]: match[0] for match in _LINE.finditer(library)}
    lines[prefix] = _line(prefix, rules)
    return "\n".join(
        [
            f"#!lua name={LIBRARY}",
            "-- Loaded by the nodes of the gateway; what is changed here is replaced.",
            f"-- format {FORMAT}",
            f"local SALT = '{secrets.token_hex(16)}'",
            f"local KEEP_MS, ONCE_MS = '{round(KEEP_S * 1000)}', '{round(ONCE_S * 1000)}'",
            f"local IS_SHARDED = {'true' if is_sharded else 'false'}",
            "local RULES = {",
            *(lines[each] for each in sorted(lines)),
            "}",
            "local function publish(KEYS, ARGV)",
            (sharded(_PUBLISH.encode()).decode() if is_sharded else _PUBLISH).rstrip("\n"),
            "end",
            _FUNCTION,
        ]
    )


class Functions:
    """Keeps the library loaded on one Redis. commander: its connection; tells of each new one by its `on_up`."""

    def __init__(self, commander: AnyCommander, scripts: Scripts, *, prefix: str, look_s: float = LOOK_S) -> None:
        self._commander = commander
        self._scripts = scripts
        self._prefix = prefix
        self._look_s = look_s
        self._rules: dict[str, Rules] = {}
        self._hurry = asyncio.Event()
        self._has_loaded = False
        self._problem = ""
        self._task: asyncio.Task[None] | None = None

    def set_rules(self, service: str, rules: Rules) -> None:
        """Take a service's rules. Call before `start`."""
        self._rules[service] = rules

    def start(self) -> None:
        """Begin to load and to look; returns at once."""
        self._commander.on_up = self._hurry.set
        self._task = asyncio.get_running_loop().create_task(self._run(), name="redis-functions")

    async def stop(self) -> None:
        """Look no more; the library stays, for who publishes while no node is here. Idempotent."""
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def ensure(self) -> bool:
        """Load the library if it is missing, or at the first time if it differs; tells if it had to be loaded.

        Raises BrokerUnavailable: not known; ValueError: it may not be replaced.
        """
        present = await self._read()
        wanted = merge(present, self._prefix, self._rules, is_sharded=self._commander.is_sharded)
        if present is not None:
            is_there = (
                self._prefix in digests_in(present)
                if self._has_loaded
                else _without_salt(present) == _without_salt(wanted)
            )
            if is_there:
                self._has_loaded = True
                return False
        await self._send(command(b"FUNCTION", b"LOAD", b"REPLACE", wanted.encode()))
        self._has_loaded = True
        _log.info("functions loaded", library=LIBRARY, rules=digest_of(self._rules))
        return True

    async def _run(self) -> None:
        wait_s = self._look_s
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(wait_s):
                    await self._hurry.wait()
            self._hurry.clear()
            wait_s = self._look_s
            try:
                if await self._scripts.is_plain():
                    self._complain("this server knows no functions")
                    return
                if await self.ensure():
                    wait_s = min(SOON_S, self._look_s)
            except BrokerUnavailable as error:
                self._complain(error.what)  # until the next look, or the next connection
            except Exception as error:  # the top of a task: functions are for publishers, a node lives without
                self._complain(str(error))
            else:
                self._problem = ""

    def _complain(self, problem: str) -> None:
        if problem != self._problem:
            _log.warning("snorky_publish is not loaded", error=problem[:300])
        self._problem = problem

    async def _read(self) -> str | None:
        (answer,) = await self._send(command(b"FUNCTION", b"LIST", b"LIBRARYNAME", LIBRARY.encode(), b"WITHCODE"))
        return code_in(answer)

    async def _send(self, one: bytes) -> list[Any]:
        answers = await self._commander.send([one])
        for answer in answers:
            if isinstance(answer, hiredis.ReplyError):
                raise BrokerUnavailable(str(answer))
        return answers


def _line(prefix: str, rules: Mapping[str, Rules]) -> str:
    services = ",".join(
        f"[{_quote(service)}]={{{','.join(map(_rule, each))}}}" for service, each in sorted(rules.items()) if each
    )
    return f"['{prefix}']={{digest='{digest_of(rules)}',services={{{services}}}}},"


def _rule(rule: ChannelRule) -> str:
    ttl_ms = round(rule.history_ttl_s * 1000) if rule.history else 0
    return f"{{'{rule.history}','{ttl_ms}',{{{','.join(map(_quote, rule.parts))}}}}}"


def _quote(text: str) -> str:
    """Write a text for Lua: what is no letter or digit as a number, so nothing in it can end it."""
    return (
        '"'
        + "".join(chr(byte) if chr(byte).isalnum() and byte < 128 else f"\\{byte:03d}" for byte in text.encode())
        + '"'
    )


def _without_salt(library: str) -> str:
    return _SALT.sub("", library)
