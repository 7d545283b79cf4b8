"""Functions: the library `snorky` in Redis, so that any client publishes once and in order with one FCALL.

    FCALL snorky_publish 1 'PREFIX:{SERVICE:CHANNEL}' PAYLOAD [IDEMPOTENCY_KEY]      -> EPOCH:OFFSET:TAG, or ''

Rules:
- Every heartbeat each node registers its channel rules under its prefix, in its database, and learns what all nodes
  promise together (`scripts/rules.lua`). Rules count for `GRACE_S` after the last node that has them was there, counted
  only while some node is there. So a node without rules, or a restart of all nodes, weakens nothing.
- Every heartbeat each node also compares the library in Redis with its own (`library_text`), and loads it again if it
  is missing, older or changed. A later one stays.
- Nodes publish by the merged rules too: `promised`.
- An older or foreign library may have published without keeping. So a node that replaces one leaves a mark, `doubt`.
  Every node reads it with its next heartbeat; earlier positions of a channel are then refused (`scripts/lost.lua`).
"""

import asyncio
import contextlib
import secrets
from typing import Any, Final

import hiredis
import structlog

from gateway.errors import BrokerUnavailable
from gateway.history import History
from gateway.metrics import Metrics
from gateway.redis.cluster_commander import AnyCommander
from gateway.redis.library_text import LIBRARY, Found, code_in, judge, lines_in, quote, write_library
from gateway.redis.names import doubt_key, rule_lines_key, rules_key
from gateway.redis.rule_tables import RuleTables, write_table
from gateway.redis.scripting import Call, Scripts
from gateway.redis.wire import command
from gateway.rules import Rules, digest_of

__all__ = ["GRACE_S", "Functions"]

LOOK_S: Final = 2.0  # as the heartbeat
GRACE_S: Final = 3600.0  # a deployment that is replaced node by node, or rolled back, takes less
KEEP_S: Final = 30 * 86_400.0  # without any node: then the deployment has gone
DOUBT_S: Final = 2 * 86_400.0  # longer than a channel's state lives that nobody touches
STEP_MAX_S: Final = 10.0  # the longest time between two registrations in which nodes count as present

_log = structlog.get_logger("snorky.redis")


class Functions:
    """Keeps the library and this node's rules in one Redis. commander: its connection; its `on_up` is taken over.

    doubt: names the last time that a foreign library was replaced; b"" = none within `DOUBT_S`.
    """

    def __init__(
        self,
        commander: AnyCommander,
        scripts: Scripts,
        *,
        prefix: str,
        metrics: Metrics,
        look_s: float = LOOK_S,
        grace_s: float = GRACE_S,
    ) -> None:
        self._commander = commander
        self._scripts = scripts
        self._prefix = prefix
        self._metrics = metrics
        self._look_s = look_s
        self._grace_s = grace_s
        self._rules: dict[str, Rules] = {}
        self._tables = RuleTables()
        self._own_digest = self._tables.digest  # of tables that have nothing but our own rules
        self.doubt = b""
        self._had_rules = False
        self._hurry = asyncio.Event()
        self._has_loaded = False
        self._problem = ""
        self._task: asyncio.Task[None] | None = None

    def set_rules(self, service: str, rules: Rules) -> None:
        """Take a service's rules. Call before `start`."""
        self._rules[service] = rules

    @property
    def has_other_rules(self) -> bool:
        """True if other nodes have other rules than this one."""
        return self._tables.digest != self._own_digest

    def promised(self, service: str, name: str, own: History | None) -> History | None:
        """Tell what a channel keeps by the rules of all nodes, its own included. name: by `codec.channel_name`."""
        return self._tables.promised(service, name, own)

    def start(self) -> None:
        """Begin to register and to look; returns at once."""
        self._commander.on_up = self._hurry.set
        self._task = asyncio.get_running_loop().create_task(self._run(), name="redis-functions")

    async def stop(self) -> None:
        """Stop looking. Library and rules stay for clients that publish while no node is there. Idempotent."""
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def ensure(self) -> bool:
        """Register the rules, and load the library unless it is there; returns True if it had to be loaded.

        Raises BrokerUnavailable: the outcome is unknown; ValueError: the library must not be replaced.
        """
        await self._register()
        present = await self._read()
        found = judge(present)
        if found is Found.LATER:
            raise ValueError("Redis has the function library of a later version: upgrade this node")
        is_sharded = self._commander.is_sharded
        has_rules = not is_sharded or lines_in(present).get(self._prefix) == quote(self._tables.text)
        is_sound = found is Found.OURS or (found is Found.SIBLING and self._has_loaded)
        if is_sound and has_rules and (present is None or _is_for_cluster(present) is is_sharded):
            self._has_loaded = True
            return False
        wanted = write_library(present, (self._prefix, self._tables.text) if is_sharded else None)
        is_doubtful = self._had_rules and found in (Found.OLDER, Found.FOREIGN)
        if is_doubtful:
            await self._mark_doubt()  # this node may end before it has done what is below
        await self._send(command(b"FUNCTION", b"LOAD", b"REPLACE", wanted.encode()))
        if is_doubtful:
            await self._mark_doubt()  # until now it was used
        if found is Found.FOREIGN or (self._has_loaded and found in (Found.MISSING, Found.OLDER)):
            self._metrics.library_repairs.labels(found.value).inc()
            _log.warning("functions repaired", library=LIBRARY, reason=found.value)
        else:
            _log.info("functions loaded", library=LIBRARY, rules=digest_of(self._rules))
        self._has_loaded = True
        return True

    async def _register(self) -> None:
        table = write_table(self._rules)
        keys = [rule_lines_key(self._prefix), rules_key(self._prefix)]
        arguments = [
            digest_of(self._rules).encode(),
            table.encode(),
            b"%d" % round(self._grace_s * 1000),
            b"%d" % round(STEP_MAX_S * 1000),
            self._tables.digest.encode(),
            b"%d" % round(KEEP_S * 1000),
        ]
        exists = command(b"EXISTS", rules_key(self._prefix))
        doubt = command(b"GET", doubt_key(self._prefix))
        had_rules, answer, found = await self._scripts.run(exists, Call("rules", keys, arguments), doubt)
        self._had_rules, self.doubt = bool(had_rules), found or b""
        self._own_digest = RuleTables(f"[{table}]").digest
        if answer:
            self._tables = RuleTables(answer.decode())
            _log.info("channel rules merged", tables=self._tables.count, own=digest_of(self._rules))

    async def _mark_doubt(self) -> None:
        mark = secrets.token_hex(8).encode()
        await self._scripts.run(command(b"SET", doubt_key(self._prefix), mark, b"PX", b"%d" % round(DOUBT_S * 1000)))
        self.doubt = mark

    async def _run(self) -> None:
        while True:
            self._hurry.clear()
            try:
                if await self._scripts.is_plain():
                    self._complain("this server knows no functions")
                    return
                await self.ensure()
            except BrokerUnavailable as error:
                self._complain(error.what)  # until the next look, or the next connection
            except Exception as error:  # the top of a task: functions are for publishers; the node works without
                self._complain(str(error))
                self._metrics.library_unusable.set(1)
            else:
                self._problem = ""
                self._metrics.library_unusable.set(0)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._look_s):
                    await self._hurry.wait()

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


def _is_for_cluster(library: str) -> bool:
    return "\nlocal IS_SHARDED = true\n" in library
