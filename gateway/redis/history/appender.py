"""HistoryAppender: sends publications that get a position, pipelined, by the script `publish`.

Rules (in addition to those of `pipeline`; the first one replaces a rule there):
- Publications of one channel that are queued in one loop tick are one call of the script, see `batch`.
- A call that was written but not answered *is* sent again on the next connection, before later ones. Each has an
  idempotency key, so it is executed only once, and in the order of the calls.
- Each publication carries the *run* (Redis' run_id, new at each start) of the server to which it is sent. If a history
  was written under another run, this server may have started from an older copy, so the history gets a new epoch.
- Nothing is sent before Redis has loaded the script. Otherwise, if another node loads it between two publications, the
  first one would fail and the second one succeed, so that they would change order.
"""

import asyncio
import hashlib
import secrets
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final, Protocol

import hiredis

from snorky.gateway.contracts.history import History
from snorky.gateway.errors import BrokerUnavailable
from snorky.gateway.metrics import Metrics
from snorky.gateway.protocol.publication import MARK, Position
from snorky.gateway.redis.connection.address import RedisTarget
from snorky.gateway.redis.connection.pipeline import fail
from snorky.gateway.redis.connection.refusals import Refusal, refusal_of
from snorky.gateway.redis.connection.resp import ConnectionLost, Gets, RespConnection, command
from snorky.gateway.redis.connection.scripts import sharded
from snorky.gateway.redis.connection.timeouts import RedisTimeouts
from snorky.gateway.redis.history.batch import Batch, Entry
from snorky.gateway.redis.keys import channel_name, node_channel_name, once_key, state_key, stream_key
from snorky.gateway.redis.pubsub.publisher import Publisher, PublishRefused

__all__ = ["KEEP_S", "Appender", "HistoryAppender"]

KEEP_S: Final = 86_400.0  # the state outlives the entries, so the next message of a quiet channel is no false gap
ONCE_S: Final = 300.0  # lifetime of an idempotency key of the caller
OWN_S: Final = 30.0  # lifetime of our own keys: covers a repetition within the deadline, and a pause of Redis after it

_REDIS: Final = Path(__file__).parents[1]
_SOURCE: Final = (_REDIS / "history/lua/publish.lua").read_bytes()
_ASK_RUN: Final = (_REDIS / "connection/lua/run.lua").read_bytes()


class Appender(Protocol):
    """Publishes with positions, in one Redis: on one server, or on the servers of a Cluster."""

    @property
    def runs(self) -> bytes:
        """The runs of servers between which channels move, separated by blanks: b"" without a Cluster."""

    def start(self) -> None:
        """Start to connect. Call once, on the event loop of all other calls."""

    async def stop(self) -> None:
        """Close all connections; pending publications fail. Idempotent."""

    def append(
        self, key: str, payload: bytes, history: History, once: str | None, rest: bytes = b""
    ) -> "asyncio.Future[Position]":
        """Queue one publication. See HistoryStore.publish; the future may also raise PublishRefused.

        rest: by `rest_of_header`.
        """

    def publish_once(self, key: str, payload: bytes, once: str) -> "asyncio.Future[None]":
        """Queue one publication without history. See HistoryStore.publish_once; may also raise PublishRefused."""


class HistoryAppender(Publisher):
    """Implements `Appender` by one connection. timeouts: dial_timeout_s also limits the loading of the script."""

    def __init__(
        self,
        target: RedisTarget,
        *,
        prefix: str,
        client_name: str,
        metrics: Metrics,
        timeouts: RedisTimeouts,
        is_sharded: bool = False,
    ) -> None:
        super().__init__(
            target,
            role="sequencer",
            client_name=client_name,
            metrics=metrics,
            timeouts=timeouts,
            is_sharded=is_sharded,
        )
        self._prefix = prefix
        self._db = target.db
        self._load_timeout_s = timeouts.dial_timeout_s
        self._source = sharded(_SOURCE) if is_sharded else _SOURCE
        self._digest = _digest(self._source)
        self._is_loaded = False
        self._open: dict[str, Batch] = {}  # by channel: of this loop tick
        self._batched = 0  # publications, beyond one for each request
        self._repeated = 0  # how many of the oldest were already sent on a lost connection
        self._is_selected = self._is_run_known = False
        self._runs = b""  # as the script expects them
        self.run: bytes | None = None  # of the last connected server; None: not connected yet
        self.find_other_runs: Callable[[], bytes] = bytes  # set in a Cluster: runs of the other shards
        self.on_run: Callable[[], None] = _ignore  # set in a Cluster: called when `run` has changed

    @property
    def runs(self) -> bytes:
        """See Appender.runs."""
        return b""

    async def stop(self) -> None:
        """See Appender.stop."""
        for key in tuple(self._open):
            self._end_batch(key)
        await super().stop()

    def append(
        self, key: str, payload: bytes, history: History, once: str | None, rest: bytes = b""
    ) -> "asyncio.Future[Position]":
        """See Appender.append."""
        if once is not None:
            self._end_batch(key)
            return self._queue(self._script(key, [(payload, rest)], history, once))
        future: asyncio.Future[Position] = asyncio.get_running_loop().create_future()
        entry = Entry(future, payload, rest)
        refusal = self._refusal()
        if refusal is not None:
            fail(future, refusal)
            return future
        batch = self._open.get(key)
        if batch is not None and not batch.takes(entry, history):
            self._end_batch(key)
            batch = None
        if batch is None:
            batch = self._open[key] = Batch(key, history)
            self._flush_soon()
        batch.entries.append(entry)
        batch.size += entry.size
        self._pending_bytes += entry.size
        self._batched += 1
        return future

    def publish_once(self, key: str, payload: bytes, once: str) -> "asyncio.Future[None]":
        """See Appender.publish_once."""
        self._end_batch(key)
        return self._queue(self._script(key, [(payload, b"")], None, once))

    def _script(
        self,
        key: str,
        publications: Sequence[tuple[bytes, bytes]],
        history: History | None,
        once: str | None,
        heads: str = "",
    ) -> bytes:
        """Build a call of the script.

        publications: at least one; each a payload, and the rest of its header. history: None = they get no positions.
        heads: 8 random digits for the tag of each; "" = of the only one, whose answer has the whole tag.
        """
        rests = [rest for _, rest in publications]
        # only nodes may publish positions, or attributes
        is_bare = history is None and publications[0][0][:1] != MARK
        name = (channel_name if is_bare else node_channel_name)(self._prefix, key)
        size, ttl_ms = (b"0", b"0") if history is None else (b"%d" % history.size, _milliseconds(history.ttl_s))
        keep_s = OWN_S if once is None else ONCE_S
        entropy = (secrets.token_hex(12) + (heads or secrets.token_hex(4))).encode()
        once = "own " + secrets.token_hex(8) if once is None else "given " + once
        return command(
            b"EVALSHA",
            self._digest,
            b"3",
            state_key(self._prefix, key),
            stream_key(self._prefix, key),
            once_key(self._prefix, key, once),
            name,
            entropy + (b"\n".join(rests) if any(rests) else b""),
            size,
            ttl_ms,
            _milliseconds(KEEP_S),
            _milliseconds(keep_s),
            *(payload for payload, _ in publications),
            self._runs,
        )

    def _script_of(self, batch: Batch) -> bytes:
        batch.heads = secrets.token_hex(4 * len(batch.entries))
        return self._script(batch.key, batch.publications, batch.history, None, batch.heads)

    def _end_batch(self, key: str) -> None:
        """Queue the call of an open batch, if there is one. Publications that were cancelled are not sent."""
        batch = self._open.pop(key, None)
        if batch is None:
            return
        self._pending_bytes -= batch.size
        self._batched -= len(batch.entries)
        batch.drop_cancelled()
        if len(batch.entries) == 1:
            self._append(batch.entries[0].future, self._script(key, batch.publications, batch.history, None))
        elif batch.entries:
            self._batched += len(batch.entries) - 1
            batch.add_done_callback(lambda _: self._on_batch_ended(batch))
            self._append(batch, self._script_of(batch))

    def _drop_cancelled(self) -> None:
        """Build again the calls that have waited for a connection, without what was cancelled meanwhile."""
        for place, (future, data, due, answers) in enumerate(self._waiting):
            if place < self._repeated - len(self._written) or not isinstance(future, Batch):
                continue  # what was written before is repeated unchanged
            count = len(future.entries)
            if not future.drop_cancelled():
                continue
            self._batched -= count - len(future.entries)
            if not future.entries:
                future.set_result("")
                continue
            new = self._script_of(future)
            self._pending_bytes += len(new) - len(data)
            self._waiting[place] = (future, new, due, answers)

    def _on_batch_ended(self, batch: Batch) -> None:
        self._batched -= len(batch.entries) - 1

    def _pending_count(self) -> int:
        return super()._pending_count() + self._batched

    # -- the wire ----------------------------------------------------------------------------------------------

    def _on_up(self, wire: RespConnection) -> None:
        wire.consume = self._consume_loading
        self._is_selected, self._is_run_known = not self._db, False
        if self._db:
            wire.write(command(b"SELECT", b"%d" % self._db))
        wire.write(command(b"EVAL", _ASK_RUN, b"0") + command(b"SCRIPT", b"LOAD", self._source))
        asyncio.get_running_loop().call_later(self._load_timeout_s, self._check_loaded, wire)

    def _check_loaded(self, wire: RespConnection) -> None:
        if wire.is_open and self._link.wire is wire and not self._is_loaded:
            wire.close(ConnectionLost(f"script not loaded within {self._load_timeout_s:g} s"))

    def _consume_loading(self, gets: Gets) -> None:
        wire = self._link.wire
        while wire is not None and (reply := gets()) is not False:
            if not isinstance(reply, bytes):
                raise ConnectionLost(f"script not loaded: {str(reply)[:200]}")
            if not self._is_selected:
                self._is_selected = True
            elif not self._is_run_known:
                self._is_run_known, self.run = True, reply
                self.spell_runs()
                self.on_run()
            elif reply == self._digest:
                self._is_loaded = True
                super()._on_up(wire)
            else:
                raise ConnectionLost(f"script not loaded: {str(reply)[:200]}")

    def spell_runs(self) -> None:
        """Update the runs in the publications that are not written yet."""
        runs = b" ".join(filter(None, (self.run, self.find_other_runs())))
        if runs != self._runs:
            self._runs = runs
            last = b"$%d\r\n%b\r\n" % (len(runs), runs)
            before = self._waiting
            self._waiting = deque((future, data[: data.rindex(b"$")] + last, due, 1) for future, data, due, _ in before)
            self._pending_bytes += sum(
                len(new[1]) - len(old[1]) for new, old in zip(self._waiting, before, strict=True)
            )

    def _on_down(self, error: ConnectionLost) -> None:
        self._is_loaded = False
        self._repeated = max(self._repeated, len(self._written))
        self._waiting.extendleft(reversed(self._written))
        self._written.clear()

    def _flush(self) -> None:
        wire = self._link.wire
        if self._is_loaded and wire is not None and not wire.is_congested:
            self._drop_cancelled()
        for key in tuple(self._open):
            self._end_batch(key)
        if self._is_loaded:
            super()._flush()
            return
        self._is_flush_due = False
        if self._timer is None and self._waiting:
            self._arm()

    def _consume(self, gets: Gets) -> None:
        while (reply := gets()) is not False:
            if not self._written:
                raise ConnectionLost(f"unexpected answer: {str(reply)[:200]}")
            is_error = isinstance(reply, hiredis.ReplyError)
            if is_error and refusal_of(reply) is Refusal.NO_SCRIPT:
                raise ConnectionLost(
                    "Redis has lost the script"
                )  # the next connection sends everything again, in order
            future = self._answered()
            is_repeated, self._repeated = self._repeated > 0, max(0, self._repeated - 1)
            if future.done():
                continue
            if is_error:
                self._link.on_refused(reply)
                fail(future, PublishRefused(str(reply), is_repeated=is_repeated))
                continue
            try:
                text = reply.decode()  # type: ignore[attr-defined]  # or it raises
                if isinstance(future, Batch):
                    future.spread(text)
                else:
                    future.set_result(Position.parse(text) if text else None)
            except (AttributeError, ValueError):
                fail(future, BrokerUnavailable("outcome unknown: unexpected answer"))
                raise ConnectionLost(f"unexpected answer: {str(reply)[:200]}") from None
        self._link.settle()


def _digest(source: bytes) -> bytes:
    return hashlib.sha1(source, usedforsecurity=False).hexdigest().encode()


def _milliseconds(seconds: float) -> bytes:
    return b"%d" % max(1, round(seconds * 1000))


def _ignore() -> None:
    pass
