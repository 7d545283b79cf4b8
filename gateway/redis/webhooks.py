"""RedisWebhookLog: the facts and the queue of an app's webhooks in Redis, all in the slot of `PREFIX:{webhooks APP}`.

`webhook_exchange.lua` and `webhook_numbers.lua` describe the keys. Rules:
- Each exchange of a node has the next number. The script applies it only to the state that the previous one left. So a
  repetition is applied once, and a node detects that Redis lost its state or returned to an older copy.
- A fenced node takes a new owner's id and begins with number 1.
- The app's leases are its own, with the timings of the directory's: one script then knows who is dead, and releases
  that node's facts in the slot where their counts are. Apps without webhooks have none of this.
- What a node reports of subscribers is their number, not a difference, so a repetition does no harm.
- An exchange with "!" among its changes says that this node may send. Without it the node does not become the sender,
  and does not remain it.
"""

import asyncio
import secrets
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any, Final

import structlog

from snorky.gateway.contracts.webhooks import Exchanged, QueuedEvent
from snorky.gateway.errors import BrokerUnavailable
from snorky.gateway.redis.connection.commands import Commands
from snorky.gateway.redis.connection.resp import command
from snorky.gateway.redis.connection.scripts import Call, Scripts
from snorky.gateway.redis.keys import webhooks_key

__all__ = ["EVENTS_MAX", "QUEUE_MAX_BYTES", "RedisWebhookLog", "WebhookTimings"]

EVENTS_MAX: Final = 10_000  # in the queue of an app
QUEUE_MAX_BYTES: Final = 4_194_304  # of these events; also bounds what one read returns
KEPT_MS: Final = 86_400_000  # without any node
FORGET_S: Final = 1_800.0  # without an exchange; Redis forgets after an hour whom it has fenced
MANY: Final = 100  # subscribers: above, numbers are sent less often
PAGE: Final = 500  # facts that one script releases: about 2 ms in Redis

_log = structlog.get_logger("snorky.redis")


@dataclass(frozen=True, slots=True)
class WebhookTimings:
    """ttl_s: of a lease. sighting_s: for this long a lease must be seen to be expired. late_s: until a fact ends.

    gap_s: without any exchange for longer, leases may have expired because Redis did not answer. number_every_s,
    many_every_s: between two numbers of a channel. numbers_after_s: see `webhook_numbers.lua`.
    """

    ttl_s: float = 8.0
    sighting_s: float = 3.0
    gap_s: float = 3.0
    late_s: float = 3.0  # a page that reloads is back within this time
    number_every_s: float = 1.0
    many_every_s: float = 5.0
    numbers_after_s: float = 3.0  # nodes exchange each second, and half a second after a failure


class RedisWebhookLog:
    """Implements `contracts.webhooks.WebhookLog` for one app. commands: to its Redis; not started.

    wanted: the changes that make an event: sign and kind of fact, "+o". "=n": nodes receive numbers of subscribers,
    "#n": and make events. events_max, queue_max_bytes: of the queue.
    """

    def __init__(
        self,
        commands: Commands,
        *,
        prefix: str,
        app_id: str,
        node_id: str,
        wanted: Sequence[str],
        timings: WebhookTimings | None = None,
        events_max: int = EVENTS_MAX,
        queue_max_bytes: int = QUEUE_MAX_BYTES,
    ) -> None:
        self._commands = commands
        self._scripts = Scripts(commands)
        self._prefix = prefix
        self._app_id = app_id
        self._node_id = node_id
        self._timings = timings or WebhookTimings()
        times = (self._timings.ttl_s, self._timings.sighting_s, self._timings.gap_s, self._timings.late_s)
        self._arguments = [
            *(b"%d" % round(each * 1000) for each in times),
            b"%d" % KEPT_MS,
            b"%d" % events_max,
            b"%d" % queue_max_bytes,
            " ".join(wanted).encode(),
        ]
        pauses = self._timings.number_every_s, self._timings.many_every_s
        self._has_numbers = "=n" in wanted
        self._number_arguments = [
            *(b"%d" % round(each * 1000) for each in pauses),
            b"%d" % MANY,
            b"%d" % round(self._timings.numbers_after_s * 1000),
            b"%d" % KEPT_MS,
            b"%d" % events_max,
            b"%d" % queue_max_bytes,
            b"1" if "#n" in wanted else b"",
        ]
        self._serial = -1  # of the last number of subscribers that this node received
        self._owner = self._new_owner()
        self._number = 0  # of the last exchange that Redis has confirmed
        self._dead: list[str] = []  # owners whose facts are to be released
        self._is_sender = False
        self._renewed_at: float | None = None  # loop time, under this owner's id
        self._now_ms = 0  # the time of Redis then

    def start(self, on_up: Callable[[], None]) -> None:
        """See WebhookLog."""
        self._commands.on_up = on_up
        self._commands.start()

    async def stop(self) -> None:
        """See WebhookLog."""
        await self._commands.stop()

    @property
    def is_sender(self) -> bool:
        """See WebhookLog."""
        return self._is_sender and self._age_s() < self._timings.ttl_s

    async def exchange(self, changes: Sequence[bytes], *, is_reset: bool = False) -> Exchanged:
        """See WebhookLog."""
        return await self._exchange(changes, b"reset" if is_reset else b"")

    async def held(self) -> list[str]:
        """See WebhookLog."""
        found: list[str] = []
        while True:  # in pages: a very large answer would block Redis
            bounds = b"%d" % len(found), b"%d" % (len(found) + 20 * PAGE - 1)
            (page,) = await self._scripts.run(command(b"ZRANGE", self._held_by(self._owner), *bounds))
            found += [each.decode() for each in page]
            if len(page) < 20 * PAGE:
                return found

    async def head(self, events_max: int) -> list[QueuedEvent]:
        """See WebhookLog."""
        (entries,) = await self._scripts.run(
            command(b"XRANGE", self._key("queue"), b"-", b"+", b"COUNT", b"%d" % events_max)
        )
        now_ms = self._now_ms + self._age_s() * 1000
        found = []
        for entry_id, fields in entries:
            time_ms = int(entry_id.partition(b"-")[0])
            found.append(QueuedEvent(entry_id.decode(), bytes(fields[1]), time_ms, (now_ms - time_ms) / 1000))
        return found

    async def sent(self, last_id: str) -> int:
        """See WebhookLog."""
        keys = [self._key("state"), self._key("queue")]
        (left,) = await self._scripts.run(Call("webhook_sent", keys, [self._owner.encode(), last_id.encode()]))
        if left < 0:
            self._is_sender = False
        return max(0, int(left))

    async def resign(self) -> None:
        """See WebhookLog."""
        await self._exchange([], b"resign")
        self._is_sender = False

    async def _exchange(self, changes: Sequence[bytes], mode: bytes) -> Exchanged:
        while self._dead:  # before the next exchange: an interruption must not repeat one that is confirmed
            with suppress(BrokerUnavailable):  # an exchange names it again
                await self._release(self._dead[-1])
            self._dead.pop()
        owner, number = self._owner, self._number + 1
        may_send = b"1" if b"!" in changes else b""
        facts_changed = [each for each in changes if each[:1] not in (b"#", b"!")]
        arguments = [owner.encode(), b"%d" % number, mode, *self._arguments, may_send, *facts_changed]
        sent_at = asyncio.get_running_loop().time()
        parts = ("owners", "state", "counts", "late", "queue", "fenced", "dead")
        keys = [*map(self._key, parts), self._held_by(owner)]
        calls = [Call("webhook_exchange", keys, arguments)]
        has_numbers = self._has_numbers and not mode
        if has_numbers:
            calls.append(self._call_for_numbers(owner, number, [each for each in changes if each[:1] == b"#"]))
        (status, *facts), *answers = await self._scripts.run(*calls)
        if status != b"ok":
            is_forgotten = self._renewed_at is not None and self._age_s() > FORGET_S
            self._is_sender = False
            if status == b"lost" and not is_forgotten:
                self._serial = -1
                _log.warning("redis has lost the state of webhooks", app=self._app_id, owner=owner)
                return Exchanged("lost")
            _log.warning("fenced: other nodes considered this node dead", app=self._app_id, owner=owner)
            self._owner, self._number, self._renewed_at = self._new_owner(), 0, None
            return Exchanged("fenced")
        if has_numbers and not answers[0]:
            raise BrokerUnavailable("a script ran before the one that it follows")  # Redis had lost only the latter
        is_sender, waiting, dropped, self._now_ms, has_more, *dead = facts
        self._number, self._is_sender, self._renewed_at = number, is_sender == 1, sent_at
        self._dead = [each.decode() for each in dead]
        found = Exchanged("ok", waiting, dropped, bool(has_more or dead))
        return self._with_numbers(found, answers[0]) if has_numbers else found

    def _call_for_numbers(self, owner: str, number: int, changes: Sequence[bytes]) -> Call:
        keys = [*map(self._key, ("state", "counts", "queue", "fenced")), self._held_by(owner)]
        keys += map(self._key, ("due", "told", "changed"))
        arguments = [owner.encode(), b"%d" % number, b"%d" % self._serial, *self._number_arguments, *changes]
        return Call("webhook_numbers", keys, arguments)

    def _with_numbers(self, found: Exchanged, answer: Sequence[Any]) -> Exchanged:
        waiting, dropped, has_more, self._serial, *told = answer
        numbers = tuple((channel.decode(), number) for channel, number in zip(told[::2], told[1::2], strict=True))
        return replace(
            found,
            waiting=waiting,
            dropped=found.dropped + dropped,
            has_more=found.has_more or has_more == 1,
            numbers=numbers,
        )

    async def _release(self, owner: str) -> None:
        """Release the facts of a fenced owner. Several nodes may do it at the same time."""
        keys = [*map(self._key, ("dead", "counts", "late")), self._held_by(owner), self._key("due")]
        late, every = self._timings.late_s, self._timings.number_every_s
        numbers = round(late * 1000), PAGE, round(every * 1000), KEPT_MS
        arguments = [owner.encode(), *(b"%d" % each for each in numbers)]
        has_more = 1
        while has_more:
            (has_more,) = await self._scripts.run(Call("webhook_release", keys, arguments))
        _log.warning("released the facts of a dead node for webhooks", app=self._app_id, owner=owner)

    def _age_s(self) -> float:
        """Return the seconds since the last exchange began that Redis has confirmed."""
        if self._renewed_at is None:
            return float("inf")
        return asyncio.get_running_loop().time() - self._renewed_at

    def _key(self, part: str) -> bytes:
        return webhooks_key(self._prefix, self._app_id, part)

    def _held_by(self, owner: str) -> bytes:
        return self._key(f"facts:{owner}")

    def _new_owner(self) -> str:
        return f"{self._node_id}:{secrets.token_hex(6)}"
