"""Functions: the function library `snorky` in Redis, with which any Redis client publishes once and in order.

    FCALL snorky_publish 1 'PREFIX:{SERVICE:CHANNEL}' PAYLOAD [IDEMPOTENCY_KEY]      -> EPOCH:OFFSET:TAG, or ''

Rules:
- Every 2 s each node registers its channel rules under its prefix, in its database, and reads the merged rules of all
  nodes (`scripts/rules.lua`). Rules remain valid for `GRACE_S` after the last node with these rules registered; only
  time in which some node is running counts. So a node without rules, or a restart of all nodes, shortens no history.
- The registration rides on the renewal of the node's lease (`ride`). If it has not for a while, or if the rules or the
  connection have changed since, the node registers by a command of its own.
- Every 2 s each node also asks which library is loaded. If it is not the one that was found correct, the node compares
  it with its own (`libraries`), and loads its own if the one in Redis is missing, older or changed. A later one is not
  replaced.
- Nodes publish by the merged rules too: `promised`.
- An older or foreign library may have published without adding to the history. So while a node reads history for a
  client, it also asks which library is loaded (`ask`, `is_sound`), and if that has changed since its last check it
  checks again at once. A library that replaces a foreign one contains a mark, the `doubt`; earlier positions of a
  channel can then no longer be recovered from (`scripts/lost.lua`).
"""

import asyncio
import contextlib
import math
from typing import Any, Final

import hiredis
import structlog

from snorky.gateway.config.rules.channel_rules import ChannelRule, Rules, digest_of
from snorky.gateway.contracts.history import History
from snorky.gateway.errors import BrokerUnavailable
from snorky.gateway.metrics import Metrics
from snorky.gateway.redis.connection.commands import Commands
from snorky.gateway.redis.connection.refusals import Refusal, refusal_of
from snorky.gateway.redis.connection.resp import command
from snorky.gateway.redis.connection.scripts import Call, Scripts
from snorky.gateway.redis.history.libraries import DOUBT_S, Libraries, LibraryRefused, asking
from snorky.gateway.redis.history.rule_tables import RuleTables, write_table
from snorky.gateway.redis.keys import doubt_key, rule_lines_key, rules_key
from snorky.gateway.shared_reads import SharedReads

__all__ = ["GRACE_S", "Functions"]

LOOK_S: Final = 2.0  # same as the renewal of a lease
RIDES: Final = 1.5  # times LOOK_S without a registration by a renewal, after which the node registers by itself
GRACE_S: Final = 3600.0  # a rolling upgrade or a rollback takes less
KEEP_S: Final = 30 * 86_400.0  # without any node: then the deployment no longer exists
STEP_MAX_S: Final = 10.0  # the longest time between two registrations in which nodes count as present

_log = structlog.get_logger("snorky.redis")


class Functions:
    """Keeps the library and this node's rules in one Redis. commands: its connection; this class sets its `on_up`."""

    def __init__(
        self,
        commands: Commands,
        scripts: Scripts,
        *,
        prefix: str,
        metrics: Metrics,
        look_s: float = LOOK_S,
        grace_s: float = GRACE_S,
    ) -> None:
        self._commands = commands
        self._scripts = scripts
        self._prefix = prefix
        self._metrics = metrics
        self._libraries = Libraries(commands, metrics=metrics)
        self._looks = SharedReads(self._look, name="function library")
        self._look_s = look_s
        self._grace_s = grace_s
        self._rules: dict[str, Rules[ChannelRule]] = {}
        self._tables = RuleTables()
        self._own_digest = self._tables.digest  # of a merged text that contains only our own rules
        self._checked: str | None = None  # the merged rules with which all libraries were found correct
        self._former = b""  # the mark of the last doubt, under the key that nodes of the previous version use
        self._is_barred = False  # the Redis user has no permission for functions
        self._is_blind = False  # it has no permission to ask which library is loaded
        self._hurry = asyncio.Event()
        self._rode_at_s = self._registered_at_s = -math.inf  # loop time: of the last ride, and of the last answered one
        self._problem = ""
        self._task: asyncio.Task[None] | None = None

    def set_rules(self, service: str, rules: Rules[ChannelRule]) -> None:
        """Set a service's rules. Rules of this node that were registered before remain valid for `GRACE_S`."""
        self._rules[service] = rules
        if self._task is not None:
            self._own_digest = self._digest()  # `promised` looks at the tables from now on: they have the old rules
            self._register_anew()
            self._hurry.set()

    @property
    def has_other_rules(self) -> bool:
        """True if other nodes have other rules than this one."""
        return self._tables.digest != self._own_digest

    def promised(self, service: str, name: str, own: History | None) -> History | None:
        """Return a channel's history settings by the rules of all nodes. name: made by `codec.channel_name`."""
        return self._tables.promised(service, name, own)

    def start(self) -> None:
        """Start to register the rules and check the library; returns at once."""
        self._commands.on_up = self._on_up
        self._task = asyncio.get_running_loop().create_task(self._run(), name="redis-functions")

    async def stop(self) -> None:
        """Stop. Library and rules stay in Redis for clients that publish while no node runs. Idempotent."""
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
        await self._looks.stop()

    @property
    def doubt(self) -> bytes:
        """The mark of the last period in which a foreign library may have published; b"" = none within `DOUBT_S`."""
        return self._libraries.doubt.mark.encode()

    def ask(self, key: bytes) -> "asyncio.Future[list[Any]]":
        """Ask the server of a key which library is loaded; pass the returned future to `is_sound`."""
        return self._commands.send([asking(key)])

    async def is_sound(self, asked: "asyncio.Future[list[Any]]") -> bool:
        """True if the library has not changed since the last check, so that `doubt` is current; if False, call `look`.

        Also True if the Redis user has no permission for functions, as it cannot be checked then. Raises
        BrokerUnavailable.
        """
        (answer,) = await asked
        if isinstance(answer, hiredis.ReplyError) and refusal_of(answer) is Refusal.NO_PERMISSION:
            if not self._is_blind:
                _log.warning("function library not checked", error=str(answer), help="+fcall_ro")
            self._is_blind = True
            return True
        return self._is_barred or self._libraries.knows(answer)

    async def look(self) -> None:
        """Check the library now, and load it where necessary. Raises BrokerUnavailable: the outcome is unknown."""
        try:
            await self.ensure()
        except (LibraryRefused, ValueError) as error:
            self._complain(error)  # the next check may succeed

    async def ensure(self) -> bool:
        """Register the rules, and load the library where necessary; returns True if it had to be loaded.

        Callers share a check that has not begun yet. Raises BrokerUnavailable: the outcome is unknown; ValueError: the
        library is of a later version and must not be replaced.
        """
        self._register_anew()
        return await self._looks.get("")

    async def _look(self, _: str) -> bool:
        if asyncio.get_running_loop().time() - self._registered_at_s > RIDES * self._look_s:
            await self._register()
        text = self._tables.text
        if self._checked == text and await self._libraries.is_unchanged():
            return False
        self._checked = None
        (found,) = await self._scripts.run(command(b"GET", doubt_key(self._prefix)))
        self._former = found or b""
        try:
            has_loaded = await self._libraries.ensure((self._prefix, text), former=self._former)
        except LibraryRefused as error:
            self._is_barred = error.is_barred
            raise
        finally:
            await self._tell_doubt()
        self._checked = text
        return has_loaded

    async def _tell_doubt(self) -> None:
        """Write the doubt's mark under the key that nodes of the previous version read."""
        if self.doubt and self.doubt != self._former:
            key, ttl_ms = doubt_key(self._prefix), b"%d" % round(DOUBT_S * 1000)
            await self._scripts.run(command(b"SET", key, self.doubt, b"PX", ttl_ms))

    # -- registration of rules -----------------------------------------------------------------------------------

    def ride(self) -> Call | None:
        """See Rider."""
        if self._task is None:
            return None  # not all services have set their rules yet
        self._rode_at_s = asyncio.get_running_loop().time()
        return self._registration()

    def on_ridden(self, call: Call, answer: Any) -> None:
        """See Rider."""
        present, before = self._registration(), self._tables
        if self._task is None or isinstance(answer, hiredis.ReplyError) or call.arguments != present.arguments:
            return  # it failed, or the rules have changed meanwhile
        with contextlib.suppress(ValueError):  # `_register` reports it
            self._on_registered(answer)
            self._registered_at_s = self._rode_at_s
        if self._tables is not before:
            self._hurry.set()

    def _register_anew(self) -> None:
        """Do not count any ride until now."""
        self._rode_at_s = self._registered_at_s = -math.inf

    async def _register(self) -> None:
        (answer,) = await self._scripts.run(self._registration())
        self._on_registered(answer)

    def _registration(self) -> Call:
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
        return Call("rules", keys, arguments)

    def _on_registered(self, answer: bytes) -> None:
        self._own_digest = self._digest()  # of the present rules, which may have changed meanwhile
        if answer:
            self._tables = RuleTables(answer.decode())
            _log.info("channel rules merged", tables=self._tables.count, own=digest_of(self._rules))

    def _digest(self) -> str:
        """Return the digest of merged tables that have only this node's rules."""
        return RuleTables(f"[{write_table(self._rules)}]").digest

    # -- checks --------------------------------------------------------------------------------------------------

    def _on_up(self) -> None:
        self._register_anew()  # it may be another server
        self._hurry.set()

    async def _run(self) -> None:
        while True:
            self._hurry.clear()
            try:
                await self._looks.get("")
            except Exception as error:  # the top of a task: the node works without functions, publishers need them
                self._complain(error)
            else:
                self._problem, self._is_barred = "", False
                self._metrics.library_unusable.set(0)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._look_s):
                    await self._hurry.wait()

    def _complain(self, error: Exception) -> None:
        problem = error.what if isinstance(error, BrokerUnavailable) else str(error)
        if problem != self._problem:
            _log.warning("snorky_publish is not loaded", error=problem[:300])
        if not isinstance(error, BrokerUnavailable):
            self._metrics.library_unusable.set(1)
        self._problem = problem
