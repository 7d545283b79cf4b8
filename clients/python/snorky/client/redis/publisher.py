"""Publisher: publishes through Redis, without a gateway, once and with a receipt.

    publisher = Publisher("redis://127.0.0.1:6379/0")
    publisher.publish("news", {"title": "Hello"}).position

It calls the Redis function that nodes load (`FCALL snorky_publish`). So a message is stored before it is delivered, has
its place in the channel's order, and is accepted once even if it is sent several times. Needs redis-py:
snorky-client[redis].
"""

import re
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final, Literal

from snorky.client.publication import Publication, Refusal, Sending
from snorky.client.receipt import Receipt
from snorky.client.redis.batch import Batch
from snorky.client.redis.calls import Call, calls_of, pipelines
from snorky.client.redis.cluster import Server
from snorky.client.redis.pool import Pools
from snorky.client.redis.versions import connection_of

__all__ = ["Publisher"]

_FULL: Final = Refusal("Redis cannot accept it now: it has as many clients as its maxclients", "unavailable", True)
_PREFIX: Final = re.compile(r"[A-Za-z0-9_.:-]{1,64}").fullmatch  # the same check as on nodes


class Publisher:
    """Publishes to the channels of a deployment. Thread-safe; may be created before a fork; connects when used.

    redis_url, prefix: those of the nodes. timeout_s: for one call with all its attempts. attempt_timeout_s: for a
    connection or a reply, before the next attempt. if_refused: "error" raises at once if the only Redis refuses
    connections; "retry" tries until timeout_s, for jobs that must survive a restart of Redis. if_no_function: "publish"
    uses PUBLISH if Redis does not have the function: at most once, without position, not sent again if the reply is
    lost. Raises ValueError: an argument is not valid; ImportError: redis-py is missing.
    """

    def __init__(
        self,
        redis_url: str,
        *,
        prefix: str = "snorky",
        timeout_s: float = 10.0,
        attempt_timeout_s: float = 3.0,
        if_no_function: Literal["error", "publish"] = "error",
        if_refused: Literal["error", "retry"] = "error",
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        if timeout_s <= 0 or attempt_timeout_s <= 0:
            raise ValueError("timeout_s, attempt_timeout_s: more than 0")
        if not _PREFIX(prefix):
            raise ValueError("prefix: 1 to 64 letters, digits and _ . : -, the same as on the nodes")
        if if_no_function not in ("error", "publish"):
            raise ValueError('if_no_function: "error" or "publish"')
        if if_refused not in ("error", "retry"):
            raise ValueError('if_refused: "error" or "retry"')
        self.prefix = prefix
        self.timeout_s = timeout_s
        self.attempt_timeout_s = attempt_timeout_s
        self._is_plain_allowed = if_no_function == "publish"
        self._is_refusal_final = if_refused == "error"
        self._sleep = sleep
        self._pools = Pools(redis_url, timeout_s=min(timeout_s, attempt_timeout_s))

    def __enter__(self) -> "Publisher":
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()

    def publish(
        self,
        channel: Any,
        message: Any,
        *,
        key: str | None = None,
        service: str = "pubsub",
        count: bool = False,
        require_history: bool = False,
        timeout_s: float | None = None,
    ) -> Receipt:
        """Publish one message and return its receipt.

        key: idempotency key; a message under a key that was used within 300 s is not published again, and gets the
        reply of the first one. None = a random key. count: the receipt then has the numbers of nodes and connections
        that subscribe to the channel. timeout_s: for this call, None = the publisher's. require_history: raises
        HistoryNotKept if the channel keeps no history (the message was published, but never by plain PUBLISH).
        Raises PublishError: not published, or unknown (`may_have_happened`; a retry under `error.key` is safe);
        ValueError, TypeError: a node would not accept the message, nothing was sent.
        """
        batch = self._batch([Publication(channel, message, key, service, require_history)], timeout_s)
        self._run(batch, count=count)
        return batch.receipt()

    def publish_many(
        self, messages: Iterable[Publication], *, count: bool = False, timeout_s: float | None = None
    ) -> list[Receipt]:
        """Publish messages, pipelined; return their receipts. If one is invalid, none is sent.

        Those to one channel are published in order, up to 64 by one call of the function. This is not a transaction:
        other publications may come in between, and if Redis refuses a message, the others are still published. Raises
        PublishManyError: some failed; ValueError, TypeError: as `publish`.
        """
        batch = self._batch(messages, timeout_s)
        self._run(batch, count=count)
        return batch.receipts()

    def close(self) -> None:
        """Close the connections. The publisher can still be used; it opens new ones."""
        self._pools.disconnect()

    def _batch(self, messages: Iterable[Publication], timeout_s: float | None) -> Batch:
        if timeout_s is not None and not timeout_s > 0:
            raise ValueError("timeout_s: more than 0")
        publications = [Sending(message, self.prefix) for message in messages]
        now_s = time.monotonic()
        return Batch(
            publications,
            begun_s=now_s,
            deadline_s=now_s + (self.timeout_s if timeout_s is None else timeout_s),
            is_plain_allowed=self._is_plain_allowed,
        )

    def _run(self, batch: Batch, *, count: bool) -> None:
        wait_s: float | None = 0.0 if batch.publications else None
        while wait_s is not None:
            if wait_s:
                self._sleep(wait_s)
                if not batch.has_time(time.monotonic()):
                    break
            parts: dict[tuple[Server, Any], list[Sending]] = {}  # by the pool of their channels' Redis
            for sending in batch.pending:
                server = self._pools.of(sending.channel_key)
                sending.is_sharded = server.is_sharded
                parts.setdefault((server, server.pool(sending.name)), []).append(sending)
            for (server, pool), part in parts.items():
                is_final = server.is_fixed and self._is_refusal_final
                for calls in pipelines(calls_of(part)):
                    if not self._attempt(pool, calls, batch.deadline_s, count=count, is_refusal_final=is_final):
                        server.lost(pool)
                        break
                for sending in part:
                    if sending.refusal is not None and sending.refusal.moved_to is not None:
                        server.moved(sending.name, sending.refusal.moved_to)
            wait_s = batch.wait_s(time.monotonic())

    def _attempt(
        self, pool: Any, calls: Sequence[Call], deadline_s: float, *, count: bool, is_refusal_final: bool
    ) -> bool:
        """Send calls once and record the outcome of each publication. Returns False if the connection was lost."""
        from redis.exceptions import RedisError

        publications = [publication for call in calls for publication in call.publications]
        for publication in publications:
            publication.begin()
        try:
            connection: Any = connection_of(pool)
        except (RedisError, OSError) as error:
            refusal = _refusal(error)
            for publication in publications:
                if refusal is not None:
                    publication.refuse(refusal)
                else:
                    publication.lose(
                        str(error), was_sent=False, is_final=is_refusal_final and _is_connection_refused(error)
                    )
            return False
        is_done = False
        try:
            _exchange(connection, calls, deadline_s, self.attempt_timeout_s, count=count)
            is_done = True
        except (RedisError, OSError) as error:
            refusal = _FULL if _is_full(error) else None
            for publication in publications:
                if refusal is not None:
                    publication.refuse(refusal)
                elif not publication.is_answered:
                    publication.lose(str(error), was_sent=True)
        finally:
            if not is_done:  # also on KeyboardInterrupt: the next user would read these replies as its own
                connection.disconnect()
            pool.release(connection)
        return is_done


def _exchange(
    connection: Any,
    calls: Sequence[Call],
    deadline_s: float,
    attempt_timeout_s: float,
    *,
    count: bool,
) -> None:
    """Send calls and record their replies. Raises RedisError, OSError: the remaining ones have no reply."""
    commands: list[tuple[str | bytes, ...]] = []
    for call in calls:
        commands.append(call.command())
        if count:
            commands += call.count_commands()
    connection.send_packed_command(connection.pack_commands(commands), check_health=False)
    for call in calls:
        reply = _read(connection, deadline_s, attempt_timeout_s)
        counted = [_read(connection, deadline_s, attempt_timeout_s) for _ in call.count_commands() if count]
        if isinstance(reply, Refusal):
            call.refuse(reply)
        else:
            call.take(reply, counted)


def _read(connection: Any, deadline_s: float, attempt_timeout_s: float) -> Any:
    """Read one reply; an error of Redis is returned as a Refusal."""
    from redis.exceptions import RedisError

    left_s = max(0.0, min(attempt_timeout_s, deadline_s - time.monotonic()))
    if not connection.can_read(timeout=left_s):
        raise TimeoutError("not in time")
    try:
        return connection.read_response()
    except RedisError as error:
        refusal = _refusal(error)
        if refusal is None or refusal is _FULL:  # _FULL concerns all commands: Redis closes the connection
            raise
        return refusal


def _is_full(error: Exception) -> bool:
    """True if Redis refused the connection because of maxclients: it executed no command of it."""
    return "max number of clients reached" in str(error)


def _is_connection_refused(error: BaseException | None) -> bool:
    """True if no server listens at the address of Redis."""
    while error is not None:
        if isinstance(error, (ConnectionRefusedError, FileNotFoundError)):  # FileNotFoundError: no such Unix socket
            return True
        error = error.__cause__ or error.__context__
    return False


def _refusal(error: Exception) -> Refusal | None:
    """Classify an error reply of Redis; None = the error did not come from Redis."""
    from redis import exceptions

    if _is_full(error):
        return _FULL
    told = (exceptions.ResponseError, exceptions.AuthenticationError, exceptions.BusyLoadingError)
    if not isinstance(error, told):
        return None
    text = str(error)
    if text.startswith("MOVED "):  # raised so by redis-py before 6
        error = exceptions.MovedError(text.removeprefix("MOVED "))
    if isinstance(error, exceptions.MovedError):
        return Refusal(f"Another server of the Cluster has it: {text}", "unavailable", True, error.node_addr)
    # redis-py removes these first words
    for kind, word in (
        (exceptions.BusyLoadingError, "LOADING "),
        (exceptions.NoPermissionError, "NOPERM "),
        (exceptions.AuthenticationError, "NOAUTH "),
        (exceptions.ReadOnlyError, "READONLY "),
        (exceptions.OutOfMemoryError, "OOM "),
        (exceptions.AskError, "ASK "),
        (exceptions.TryAgainError, "TRYAGAIN "),
        (exceptions.ClusterDownError, "CLUSTERDOWN "),
        (exceptions.MasterDownError, "MASTERDOWN "),
    ):
        if isinstance(error, kind) and not text.startswith(word):
            text = word + text
    return Refusal.of(text)
