"""Publisher: publishes through Redis alone, once, with a receipt.

    publisher = Publisher("redis://127.0.0.1:6379/0")
    publisher.publish("news", {"title": "Hello"}).position

Through the Redis Function that nodes load (`FCALL snorky_publish`), so that it is stored before it is told, has its
place in the channel's order, and is taken once however often it is sent. Needs redis-py: snorky-client[redis].
"""

import re
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final, Literal

from snorky.batch import Batch
from snorky.publication import Publication, Receipt, Refusal, Sending
from snorky.redis_cluster import Server
from snorky.redis_pool import Pools
from snorky.redis_versions import connection_of

__all__ = ["Publisher"]

_FULL: Final = Refusal("Redis cannot take it now: it has as many clients as its maxclients", "unavailable", True)
_PREFIX: Final = re.compile(r"[A-Za-z0-9_.:-]{1,64}").fullmatch  # as nodes read theirs
PIPELINE_MAX: Final = 500  # publications in flight at once; Redis answers each in some 20 us


class Publisher:
    """Publishes to the channels of a deployment. May be shared by threads and made before a fork; connects when used.

    redis_url, prefix: as the nodes have them. timeout_s: for one call, all its attempts together. attempt_timeout_s:
    what a connection or a reply may take before the next attempt. if_refused: "error" raises at once where the only
    Redis refuses connections; "retry" tries until timeout_s, for jobs that outlast a restart. if_no_function:
    "publish" publishes with PUBLISH where Redis lacks the function: at most once, without position, and never a
    second time when its answer is lost.
    Raises ValueError: a URL that cannot be used; ImportError: redis-py is missing.
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
            raise ValueError("prefix: 1 to 64 letters, digits and _ . : -, as the nodes have it")
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

        key: makes it once: what was published under it before is answered as then, and not published again. None =
        a random one. count: have the receipt tell how many nodes and connections hear the channel. timeout_s: for
        this call, None = the publisher's. require_history: raises HistoryNotKept if the channel does not keep it; it
        was published all the same, but never by plain PUBLISH. Raises PublishError: it was not published, or that is
        unknown (`may_have_happened`; a retry under `error.key` is safe); ValueError, TypeError: a node would not take
        it, nothing was sent.
        """
        batch = self._batch([Publication(channel, message, key, service, require_history)], timeout_s)
        self._run(batch, count=count)
        return batch.receipt()

    def publish_many(
        self, messages: Iterable[Publication], *, count: bool = False, timeout_s: float | None = None
    ) -> list[Receipt]:
        """Publish messages, pipelined, in their order, and return their receipts; one that is bad refuses all.

        Not a transaction: others may come in between, and what Redis refuses does not hold those behind it. Raises
        PublishManyError: not all were taken; ValueError, TypeError: as publish.
        """
        batch = self._batch(messages, timeout_s)
        self._run(batch, count=count)
        return batch.receipts()

    def close(self) -> None:
        """Let go of the connections. The publisher can be used on; it opens new ones."""
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
            parts: dict[tuple[Server, Any], list[Sending]] = {}  # by the pool of the Redis that has their channels
            for sending in batch.pending:
                server = self._pools.of(sending.channel_key)
                sending.is_sharded = server.is_sharded
                parts.setdefault((server, server.pool(sending.name)), []).append(sending)
            for (server, pool), part in parts.items():
                for start in range(0, len(part), PIPELINE_MAX):
                    sent = part[start : start + PIPELINE_MAX]
                    is_final = server.is_fixed and self._is_refusal_final
                    if not self._attempt(pool, sent, batch.deadline_s, count=count, is_refusal_final=is_final):
                        server.lost(pool)
                        break
                for sending in part:
                    if sending.refusal is not None and sending.refusal.moved_to is not None:
                        server.moved(sending.name, sending.refusal.moved_to)
            wait_s = batch.wait_s(time.monotonic())

    def _attempt(
        self, pool: Any, publications: Sequence[Sending], deadline_s: float, *, count: bool, is_refusal_final: bool
    ) -> bool:
        """Send publications once, and tell each what came of it. False: the connection was lost."""
        from redis.exceptions import RedisError

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
            _exchange(connection, publications, deadline_s, self.attempt_timeout_s, count=count)
            is_done = True
        except (RedisError, OSError) as error:
            refusal = _FULL if _is_full(error) else None
            for publication in publications:
                if refusal is not None:
                    publication.refuse(refusal)
                elif not publication.is_answered:
                    publication.lose(str(error), was_sent=True)
        finally:
            if not is_done:  # also of a KeyboardInterrupt: the next user would read these answers as its own
                connection.disconnect()
            pool.release(connection)
        return is_done


def _exchange(
    connection: Any,
    publications: Sequence[Sending],
    deadline_s: float,
    attempt_timeout_s: float,
    *,
    count: bool,
) -> None:
    """Send publications and read their answers. Raises RedisError, OSError: those without an answer have none."""
    commands: list[tuple[str | bytes, ...]] = []
    for publication in publications:
        commands.append(publication.command())
        if count:
            commands += publication.count_commands()
    connection.send_packed_command(connection.pack_commands(commands), check_health=False)
    for publication in publications:
        reply = _read(connection, deadline_s, attempt_timeout_s)
        counted = [_read(connection, deadline_s, attempt_timeout_s) for _ in publication.count_commands() if count]
        if isinstance(reply, Refusal):
            publication.refuse(reply)
        else:
            publication.take(reply, counted)


def _read(connection: Any, deadline_s: float, attempt_timeout_s: float) -> Any:
    """Read one answer; a Refusal if Redis says that it did nothing."""
    from redis.exceptions import RedisError

    left_s = max(0.0, min(attempt_timeout_s, deadline_s - time.monotonic()))
    if not connection.can_read(timeout=left_s):
        raise TimeoutError("not in time")
    try:
        return connection.read_response()
    except RedisError as error:
        refusal = _refusal(error)
        if refusal is None or refusal is _FULL:  # the second is of all that was sent: the connection ends with it
            raise
        return refusal


def _is_full(error: Exception) -> bool:
    """True if Redis had no room for the connection: what was sent over it was never looked at."""
    return "max number of clients reached" in str(error)


def _is_connection_refused(error: BaseException | None) -> bool:
    """True if no server listens at the address of Redis."""
    while error is not None:
        if isinstance(error, (ConnectionRefusedError, FileNotFoundError)):  # the second: no such Unix socket
            return True
        error = error.__cause__ or error.__context__
    return False


def _refusal(error: Exception) -> Refusal | None:
    """Tell what Redis says by an error; None = it is not Redis that says so."""
    from redis import exceptions

    if _is_full(error):
        return _FULL
    told = (exceptions.ResponseError, exceptions.AuthenticationError, exceptions.BusyLoadingError)
    if not isinstance(error, told):
        return None
    text = str(error)
    if text.startswith("MOVED "):  # redis-py before 6 tells it so
        error = exceptions.MovedError(text.removeprefix("MOVED "))
    if isinstance(error, exceptions.MovedError):
        return Refusal(f"Another server of the Cluster has it: {text}", "unavailable", True, error.node_addr)
    # redis-py takes these first words off
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
