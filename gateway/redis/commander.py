"""Commander: sends commands of any kind, in groups, by the rules of `pipeline`, and gives each group its answers."""

import asyncio
from collections.abc import Callable, Sequence
from typing import Any, Final

import hiredis

from gateway.metrics import Metrics
from gateway.redis.pipeline import Pipeline
from gateway.redis.target import RedisTarget
from gateway.redis.wire import Gets, Wire, WireError, command

__all__ = ["Commander"]

QUEUE_MAX: Final = 50_000  # groups; a node of 10,000 connections that all come at once needs as many
QUEUE_MAX_BYTES: Final = 64 * 1024 * 1024


class Commander(Pipeline):
    """One connection for commands. role: for metrics and logs. timeout_s: from `send` to the last answer.

    on_up: to be set by who wants to know of each new connection. is_sharded: its server is one of a Cluster's.
    """

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
            refused=metrics.limited.labels("redis_commands"),
        )
        self.on_up: Callable[[], None] | None = None
        self._db = target.db
        self._unasked = 0  # answers to come that are nobody's: of SELECT
        self._answers: list[Any] = []  # of the oldest group, so far

    @property
    def servers(self) -> "Sequence[Commander]":
        """Give who sends to each server; of a Cluster, to each primary."""
        return (self,)

    def send(self, commands: Sequence[bytes], *, in_order: bool = True) -> "asyncio.Future[list[Any]]":
        """Queue a group of commands, each as `wire.command` spells it; never waits. in_order: it always is.

        The future: one answer for each, `hiredis.ReplyError` among them; or BrokerUnavailable: not known what
        happened. Cancelled before it was written, it is not sent.
        """
        return self._queue(b"".join(commands), len(commands))

    def _on_up(self, wire: Wire) -> None:
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
                    raise WireError(f"database not selected: {str(reply)[:200]}")
                continue
            if not self._written:
                raise WireError(f"unasked answer: {str(reply)[:200]}")
            if isinstance(reply, hiredis.ReplyError):
                self._link.on_refused(reply)
            self._answers.append(reply)
            if len(self._answers) == self._written[0][3]:
                answers, self._answers = self._answers, []
                future = self._answered()
                if not future.done():
                    future.set_result(answers)
        self._link.settle()
