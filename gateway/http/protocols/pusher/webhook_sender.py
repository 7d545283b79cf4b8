"""AppWebhooks: reports what happens on this node to an app's webhooks, and sends the events while it is the sender.

With `subscription_counts` it also reports how many clients are subscribed to channels, and tells them the sums of
all nodes.

Rules:
- One exchange with Redis at a time; what changes meanwhile is part of the next one. Without changes there is one a
  second, which renews the lease.
- An exchange whose outcome is unknown is repeated unchanged: Redis applies it once.
- Each exchange says whether this node may send: it has the app's `webhook_url`. Other nodes only report and count.
- One request at a time, with the oldest events of the app, so their order is kept. A request that fails is repeated,
  with growing pauses. An event that is older than five minutes is dropped before the next request, whether a request
  with it has failed or no node could send.
- Nothing is dropped without a metric and a log line.
"""

import asyncio
from collections.abc import Callable, Coroutine, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Final

import structlog

from snorky.gateway.config.pusher import PusherApp
from snorky.gateway.contracts.webhooks import CountedClient, WebhookLog
from snorky.gateway.errors import BrokerUnavailable
from snorky.gateway.http.protocols.pusher.counts.count_events import CountEvents
from snorky.gateway.http.protocols.pusher.counts.local_counts import CHANNELS_MAX, COUNTS_MAX, LocalCounts, is_count
from snorky.gateway.http.protocols.pusher.names import kind_of
from snorky.gateway.http.protocols.pusher.webhooks import (
    BATCH_MAX,
    CHANGES_MAX,
    LocalFacts,
    Reports,
    batch_of,
    body_of,
    changes_wanted,
    fact_of_channel,
    fact_of_member,
    headers_of,
)
from snorky.gateway.metrics import Metrics

__all__ = ["AppWebhooks", "Pace", "Post"]

# Sends one request; returns why it failed, None = it was accepted. Never raises.
Post = Callable[[str, bytes, Mapping[str, str]], Coroutine[Any, Any, str | None]]
LINE_EVERY_S: Final = 1.0  # of log lines of one kind; the metrics count all

_log = structlog.get_logger("snorky.pusher")


@dataclass(frozen=True, slots=True)
class Pace:
    """Times of AppWebhooks. stop_s: for a request in progress, and for the last exchange, when the node stops."""

    renew_s: float = 1.0
    every_s: float = 0.02  # at least, between two exchanges: what changes meanwhile is part of the next one
    retry_s: float = 0.5  # after an exchange that failed
    first_pause_s: float = 1.0  # after a request that failed; doubles with each further one
    pause_max_s: float = 30.0
    keep_s: float = 300.0
    stop_s: float = 2.0


@dataclass(frozen=True, slots=True)
class _Taken:
    """What an exchange in progress contains."""

    changes: list[bytes] = field(default_factory=list)
    reports: list[bytes] = field(default_factory=list)


class AppWebhooks:
    """The webhooks of one app on one node. post: sends a request."""

    def __init__(
        self, app: PusherApp, log: WebhookLog, post: Post, metrics: Metrics, *, pace: Pace | None = None
    ) -> None:
        self.app = app
        self.waiting = 0  # events in the queue, by the last exchange
        self._log = log
        self._post = post
        self._pace = pace or Pace()
        self._events = metrics.webhook_events
        self._requests = metrics.webhook_requests
        self._limit_hits = metrics.limit_hits
        wanted = {change[1] for change in changes_wanted(app)}
        self._has_channels, self._has_members = "o" in wanted, "m" in wanted
        self._role = [b"!"] if app.webhook_url else []  # part of each exchange: this node may send
        self._facts = LocalFacts()
        self._counts = LocalCounts()
        self._count_events = CountEvents(self._counts)
        self._reports = Reports()
        self._occupied: set[str] = set()
        self._members: dict[str, dict[str, set[tuple[str, str]]]] = {}  # by channel and user: connections and entries
        self._taken: _Taken | None = None  # of an exchange whose outcome is not known
        self._is_lost = False  # Redis has lost this node's state
        self._sent_id = ""  # of the last event that the backend has accepted, until Redis knows it
        self._failures = 0  # requests in succession
        self._first = ("", 0)  # id of the first event of the last request, and when that was first sent: milliseconds
        self._is_posting = self._is_stopping = self._is_failing = False
        self._lines: dict[str, tuple[float, int]] = {}  # by kind: the earliest time of the next line, number unlogged
        self._changed, self._has_work = asyncio.Event(), asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []

    @property
    def is_sender(self) -> bool:
        """True while this node sends the app's events."""
        return self._log.is_sender

    @property
    def has_facts(self) -> bool:
        """True if it needs to know what begins and ends: not if it only counts."""
        return self._has_channels or self._has_members

    def start(self) -> None:
        """Begin to connect, to report and to send; returns at once."""
        self._log.start(self._changed.set)
        loop = asyncio.get_running_loop()
        self._tasks = [
            loop.create_task(self._run_exchanges(), name="webhook exchanges"),
            loop.create_task(self._run_requests(), name="webhook requests"),
        ]
        if self.app.subscription_counts:
            self._tasks.append(loop.create_task(self._count_events.run(), name="subscription counts"))

    async def stop(self) -> None:
        """Release what this node has claimed, and let another node send. The clients should be gone. Idempotent."""
        tasks, self._tasks = self._tasks, []
        if not tasks:
            return
        self._is_stopping = True
        if self._is_posting:
            await asyncio.wait(tasks[1:2], timeout=self._pace.stop_s)
        for each in tasks:
            each.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        try:
            async with asyncio.timeout(self._pace.stop_s):
                if self._sent_id and self._log.is_sender:
                    await self._confirm_sent(self._sent_id)
                while await self._exchange():
                    pass
                await self._log.resign()
        except (BrokerUnavailable, TimeoutError):
            _log.info("webhooks not given up: other nodes continue when the lease has expired", app=self.app.id)
        if self._reports:
            self._drop("stopped", len(self._reports), "redis did not answer when the node stopped")
        await self._log.stop()

    # -- what happens on this node; never waits ------------------------------------------------------------------

    def channel_changed(self, channel: str, *, is_occupied: bool) -> None:
        """Note that a channel has its first subscriber on this node, or has lost its last one."""
        if not self._has_channels:
            return
        if is_occupied:
            self._occupied.add(channel)
        else:
            self._occupied.discard(channel)
        self._compare(channel)

    def member_changed(self, channel: str, user: str, key: tuple[str, str], *, is_there: bool) -> None:
        """Note that a connection is on a presence channel as a user, or is not any more. key: connection and entry."""
        if not kind_of(channel).is_presence:
            return
        users = self._members.setdefault(channel, {})
        keys = users.setdefault(user, set())
        if is_there:
            keys.add(key)
            self._compare(channel)
        else:
            keys.discard(key)
        if self._has_members:
            self._facts.set(fact_of_member(channel, user), is_true=bool(keys))
        if not keys:
            del users[user]
            if not users:
                del self._members[channel]
                self._compare(channel)
        if self._facts.has_changes:
            self._changed.set()

    def count(self, channel: str, client: CountedClient, *, is_subscribed: bool) -> None:
        """Note that a client is subscribed to a channel, or is not any more. The app has `subscription_counts`."""
        if not is_subscribed:
            self._counts.discard(channel, client)
        elif not self._counts.add(channel, client):
            self._limit_hits.labels("counted_channels").inc()
            self._complain("subscriber not counted", "this node counts too many channels", channels=CHANNELS_MAX)
        if self._counts.has_changes:
            self._changed.set()

    def report(self, event: dict[str, Any]) -> None:
        """Send an event that is no change of a fact."""
        if self._reports.add(event):
            self._changed.set()
        else:
            self._drop("busy", 1, "too many events wait in this node for redis")

    def _compare(self, channel: str) -> None:
        """Note whether a channel is occupied: also while members are on it, who come before and leave after that."""
        if self._has_channels:
            self._facts.set(fact_of_channel(channel), is_true=channel in self._occupied or channel in self._members)
            if self._facts.has_changes:
                self._changed.set()

    # -- exchanges with Redis ------------------------------------------------------------------------------------

    async def _run_exchanges(self) -> None:
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(self._pace.renew_s):
                    await self._changed.wait()
            self._changed.clear()
            try:
                if await self._exchange():
                    self._changed.set()
                self._is_failing = False
                await asyncio.sleep(self._pace.every_s)
            except Exception as error:  # the top of a task
                if not isinstance(error, BrokerUnavailable):
                    _log.exception("exchange for webhooks failed", app=self.app.id)
                elif not self._is_failing:
                    _log.warning("exchange for webhooks failed; it is repeated", app=self.app.id, error=error.what)
                self._is_failing = True
                await asyncio.sleep(self._pace.retry_s)

    async def _exchange(self) -> bool:
        """Record in Redis what has changed; True: there is more. Raises BrokerUnavailable."""
        if self._is_lost:
            await self._restore()
        taken = self._taken = self._taken or self._take()
        found = await self._log.exchange([*self._role, *taken.changes, *taken.reports])
        self._taken = None
        if found.status == "fenced":
            self._facts.renew(())
            self._counts.renew(())
            return True
        if found.status == "lost":
            self._is_lost = True
            return True
        self._facts.confirm(each for each in taken.changes if each[:1] != b"#")
        self._counts.confirm(taken.changes)
        self._count_events.add(found.numbers)
        self._reports.remove(len(taken.reports))
        self.waiting = found.waiting
        if found.dropped:
            self._drop("full", found.dropped, "the app's queue in redis is full")
        if found.waiting and self._log.is_sender and self.app.webhook_url:
            self._has_work.set()
        return found.has_more or self._facts.has_changes or self._counts.has_changes or len(self._reports) > 0

    def _take(self) -> _Taken:
        changes = self._facts.take()
        changes += self._counts.take(min(COUNTS_MAX, CHANGES_MAX - len(changes)))
        # reports follow the changes that came before them
        return _Taken(changes, [] if self._facts.has_changes else self._reports.first(CHANGES_MAX - len(changes)))

    async def _restore(self) -> None:
        """Claim again in Redis, without events, what this node had claimed. Raises BrokerUnavailable."""
        held = set(await self._log.held())
        self._counts.renew(held)
        held = {fact for fact in held if not is_count(fact)}
        claimed = self._facts.claimed()
        missing = [f"={fact}".encode() for fact in claimed if fact not in held]
        for start in range(0, len(missing) or 1, CHANGES_MAX):
            found = await self._log.exchange([*self._role, *missing[start : start + CHANGES_MAX]], is_reset=True)
            if found.status == "fenced":
                held, claimed = set(), []
                self._counts.renew(())
                break
        self._facts.renew([*held, *claimed])
        self._is_lost = False
        _log.warning("claimed again for webhooks", app=self.app.id, facts=len(missing))

    # -- requests to the backend ---------------------------------------------------------------------------------

    async def _run_requests(self) -> None:
        while not self._is_stopping:
            await self._has_work.wait()
            try:
                pause_s = await self._send()
            except BrokerUnavailable:  # the exchanges log it
                pause_s = self._pace.retry_s
            except Exception:  # the top of a task
                _log.exception("webhook failed", app=self.app.id)
                pause_s = self._pace.pause_max_s
            if pause_s and not self._is_stopping:
                await asyncio.sleep(pause_s)

    async def _send(self) -> float:
        """Send the oldest events; returns the pause until the next request. Raises BrokerUnavailable."""
        self._has_work.clear()
        if not self._log.is_sender:
            return 0.0  # it may be after the next exchange
        if self._sent_id:
            await self._confirm_sent(self._sent_id)
        batch = batch_of(await self._log.head(BATCH_MAX))
        if not self._log.is_sender:  # its lease has ended meanwhile
            return 0.0
        if not batch:
            await self._log.sent("")
            return 0.0
        self._has_work.set()
        if expired := [each for each in batch if each.age_s > self._pace.keep_s]:
            await self._log.sent(expired[-1].id)
            if self._log.is_sender:  # else another node sends them, and nothing was removed
                self._drop("expired", len(expired), "they were not delivered in time")
            return 0.0
        first, last = batch[0], batch[-1]
        if first.id != self._first[0]:
            self._first = first.id, last.time_ms + round(last.age_s * 1000)  # now, by the clock of Redis
        body = body_of(batch, self._first[1])
        self._is_posting = True
        try:
            fault = await self._post(self.app.webhook_url, body, headers_of(self.app, body))
        finally:
            self._is_posting = False
        if fault is None:
            self._requests.labels("ok").inc()
            self._events.labels("sent").inc(len(batch))
            self._failures = 0
            self._sent_id = last.id
            await self._confirm_sent(self._sent_id)
            return 0.0
        self._requests.labels("failed").inc()
        self._complain("webhook failed", fault, events=len(batch), failures=self._failures + 1)
        pause_s: float = min(self._pace.pause_max_s, self._pace.first_pause_s * 2 ** min(self._failures, 30))
        self._failures += 1
        return pause_s

    async def _confirm_sent(self, last_id: str) -> None:
        self.waiting = await self._log.sent(last_id)
        self._sent_id = ""

    def _drop(self, outcome: str, count: int, because: str) -> None:
        self._events.labels(outcome).inc(count)
        self._complain("webhook events dropped", because, count=count)

    def _complain(self, event: str, kind: str, **facts: int) -> None:
        now_s = asyncio.get_running_loop().time()
        next_s, unlogged = self._lines.get(event, (now_s, 0))
        if now_s < next_s:
            self._lines[event] = next_s, unlogged + 1
            return
        self._lines[event] = now_s + LINE_EVERY_S, 0
        _log.warning(event, app=self.app.id, because=kind, unlogged=unlogged, **facts)
