"""Commands: sends groups of commands to Redis. CommandPipeline: over one connection, by the rules of `pipeline`."""

import asyncio
from collections.abc import Callable, Sequence
from typing import Any, Final, Protocol

import hiredis

from snorky.gateway.metrics import Metrics
from snorky.gateway.redis.connection.address import RedisTarget
from snorky.gateway.redis.connection.pipeline import Pipeline
from snorky.gateway.redis.connection.resp import ConnectionLost, Gets, RespConnection, command

__all__ = ["CommandPipeline", "Commands"]

QUEUE_MAX: Final = 50_000  # groups; needed when 10,000 clients connect to a node at once
QUEUE_MAX_BYTES: Final = 64 * 1024 * 1024


class Commands(Protocol):
    """Sends commands to one Redis: to one server, or to the servers of a Cluster.

    on_up: optional callback for each new connection.
    """

    on_up: Callable[[], None] | None

    @property
    def is_sharded(self) -> bool:
        """True in a Cluster: a group may go to several servers, and scripts publish with SPUBLISH."""

    @property
    def servers(self) -> "Sequence[Commands]":
        """The commands of each server; in a Cluster, of each primary."""

    def start(self) -> None:
        """Start to connect. Call once, on the event loop of all other calls."""

    async def stop(self) -> None:
        """Close all connections; pending groups fail. Idempotent."""

    def send(self, commands: Sequence[bytes], *, in_order: bool = True) -> "asyncio.Future[list[Any]]":
        """Queue a group of commands, each encoded by `resp.command`; never waits.

        in_order: False = in a Cluster, send to all slots at once, without order between them.

        The future: one answer per command, `hiredis.ReplyError` for a failed one; or BrokerUnavailable: the outcome
        is unknown. If it is cancelled before it was written, the group is not sent.
        """


class CommandPipeline(Pipeline):
    """Implements `Commands` for one server. role: for metrics and logs. timeout_s: from `send` to the last answer."""

    is_sharded = False

    def __init__(
        self,
        target: RedisTarget,
        *,
        role: str,
        client_name: str,
        metrics: Metrics,
        timeout_s: float,
        dial_timeout_s: float,
        queue_max: int = QUEUE_MAX,
        queue_max_bytes: int = QUEUE_MAX_BYTES,
    ) -> None:
        super().__init__(
            target,
            role=role,
            client_name=client_name,
            metrics=metrics,
            timeout_s=timeout_s,
            dial_timeout_s=dial_timeout_s,
            queue_max=queue_max,
            queue_max_bytes=queue_max_bytes,
            refused=metrics.limit_hits.labels("redis_commands"),
        )
        self.on_up: Callable[[], None] | None = None
        self._db = target.db
        self._unasked = 0  # pending answers that belong to no group: of SELECT
        self._answers: list[Any] = []  # received so far for the oldest group

    @property
    def servers(self) -> "Sequence[CommandPipeline]":
        """See Commands.servers."""
        return (self,)

    def send(self, commands: Sequence[bytes], *, in_order: bool = True) -> "asyncio.Future[list[Any]]":
        """See Commands.send. One server always keeps the order."""
        return self._queue(b"".join(commands), len(commands))

    def on_refused(self, answer: object) -> None:
        """Handle a part of an answer: if it is the error of a server that became a replica, connect again."""
        if isinstance(answer, hiredis.ReplyError):
            self._link.on_refused(answer)

    def _on_up(self, wire: RespConnection) -> None:
        self._answers = []
        self._unasked = 0
        if self._db:
            self._unasked = 1
            wire.write(command(b"SELECT", b"%d" % self._db))
        super()._on_up(wire)
        if self.on_up is not None:
            self.on_up()

    def _consume(self, gets: Gets) -> None:
        while (reply := gets()) is not False:
            if self._unasked:
                self._unasked -= 1
                if reply != b"OK":
                    raise ConnectionLost(f"database not selected: {str(reply)[:200]}")
                continue
            if not self._written:
                raise ConnectionLost(f"unexpected answer: {str(reply)[:200]}")
            if isinstance(reply, hiredis.ReplyError):
                self._link.on_refused(reply)
            self._answers.append(reply)
            if len(self._answers) == self._written[0][3]:
                answers, self._answers = self._answers, []
                future = self._answered()
                if not future.done():
                    future.set_result(answers)
        self._link.settle()
