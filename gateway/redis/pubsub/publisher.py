"""Publisher: sends PUBLISH commands over one connection, by the rules of `pipeline`."""

import asyncio
from typing import Final

import hiredis

from snorky.gateway.errors import BrokerUnavailable
from snorky.gateway.metrics import Metrics
from snorky.gateway.redis.connection.address import RedisTarget
from snorky.gateway.redis.connection.pipeline import Pipeline, fail
from snorky.gateway.redis.connection.refusals import is_undone, refusal_of
from snorky.gateway.redis.connection.resp import ConnectionLost, Gets
from snorky.gateway.redis.connection.timeouts import RedisTimeouts

__all__ = ["PublishRefused", "Publisher"]

QUEUE_MAX: Final = 100_000  # publications; half a second at the maximum rate of one node
QUEUE_MAX_BYTES: Final = 32 * 1024 * 1024


class PublishRefused(BrokerUnavailable):
    """Redis rejected a publication with an error. Raised by the future of `Publisher.publish`. refusal: why.

    The publication was not delivered, unless it had been sent before (is_repeated) and that answer was lost.
    """

    def __init__(self, what: str = "", *, is_repeated: bool = False) -> None:
        super().__init__(what, is_undone=not is_repeated and is_undone(what))
        self.refusal = refusal_of(what)


class Publisher(Pipeline):
    """The publishing half of a broker. role: for metrics and logs. is_sharded: use SPUBLISH, for a Cluster."""

    def __init__(
        self,
        target: RedisTarget,
        *,
        client_name: str,
        metrics: Metrics,
        timeouts: RedisTimeouts,
        role: str = "publisher",
        is_sharded: bool = False,
        queue_max: int = QUEUE_MAX,
        queue_max_bytes: int = QUEUE_MAX_BYTES,
    ) -> None:
        super().__init__(
            target,
            role=role,
            client_name=client_name,
            metrics=metrics,
            timeout_s=timeouts.publish_timeout_s,
            dial_timeout_s=timeouts.dial_timeout_s,
            queue_max=queue_max,
            queue_max_bytes=queue_max_bytes,
            refused=metrics.drops.labels("publish_queue_full"),
        )
        self._verb = b"*3\r\n$8\r\nSPUBLISH" if is_sharded else b"*3\r\n$7\r\nPUBLISH"

    def publish(self, name: bytes, payload: bytes) -> "asyncio.Future[int]":
        """Queue one publication to the Redis channel `name`; never waits.

        The future: number of subscribers reached; or BrokerUnavailable, or its subclass PublishRefused if Redis
        rejected it. If it is cancelled before the publication was written, that is not sent.
        """
        words = (self._verb, len(name), name, len(payload), payload)
        return self._queue(b"%b\r\n$%d\r\n%b\r\n$%d\r\n%b\r\n" % words)

    def _consume(self, gets: Gets) -> None:
        while (reply := gets()) is not False:
            if not self._written:
                raise ConnectionLost(f"unexpected answer: {str(reply)[:200]}")
            future = self._answered()
            if type(reply) is int:
                if not future.done():
                    future.set_result(reply)
            elif isinstance(reply, hiredis.ReplyError):
                fail(future, PublishRefused(str(reply)))
                self._link.on_refused(reply)
            else:
                fail(future, BrokerUnavailable("outcome unknown: unexpected answer"))
                raise ConnectionLost(f"unexpected answer: {str(reply)[:200]}")
        self._link.settle()
