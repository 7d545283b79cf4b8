"""Subscriber: subscribes to channels over one connection, reads in bulk, and subscribes again after a reconnect.

Rules:
- Redis answers in the order of the commands. Each SUBSCRIBE and UNSUBSCRIBE is in `_unanswered` until its answer, so an
  answer is matched by its order and not only by its name: in "subscribe, unsubscribe, subscribe" the first confirmation
  does not confirm the last command, and an error belongs to a known command.
- A channel has up to two names in Redis (`names.py`), in one SUBSCRIBE command. Redis confirms each name, or rejects
  the whole command.
- A channel has one record from its SUBSCRIBE to its UNSUBSCRIBE; a later subscription gets a new record.
- A channel is wanted while it is held (a `subscribe` has returned, and no `unsubscribe` was called since), or while a
  `subscribe` is waiting.
- After a reconnect all wanted channels are subscribed to again, the canary's channel last. Its confirmation proves that
  all others are confirmed: the connection is *whole*. Publications in between are lost; `on_whole(True)` reports that.
- In a Cluster the commands begin with S, and a channel's slot may move to another server. If Redis rejects a channel
  with MOVED, or ends its subscription, `on_moved` (`sharding.py`) is called, and this Subscriber does not subscribe to
  it again.
- Memory is bounded: at most `WINDOW` commands are unanswered (100,000 channels would otherwise put 6 MB of answers into
  the output buffer of Redis, which closes the connection at 32 MB).
"""

import asyncio
from collections import OrderedDict, defaultdict, deque
from collections.abc import Callable, Mapping, Sequence

import hiredis
import structlog

from snorky.gateway.errors import BrokerUnavailable
from snorky.gateway.metrics import Metrics
from snorky.gateway.redis.connection.address import RedisTarget
from snorky.gateway.redis.connection.reconnect import ReconnectingConnection
from snorky.gateway.redis.connection.refusals import Refusal, refusal_of
from snorky.gateway.redis.connection.resp import ConnectionLost, Gets, RespConnection, command
from snorky.gateway.redis.connection.timeouts import RedisTimeouts
from snorky.gateway.redis.pubsub.heard import HeardChannel, by_channel
from snorky.gateway.redis.pubsub.linger import Linger
from snorky.gateway.redis.pubsub.names import NamesOfKeys
from snorky.gateway.redis.pubsub.sharding import ChannelMoved, Sharding

__all__ = ["Subscriber"]

WINDOW = 5_000
RECENT_MAX = 1_024  # names: finding one takes a third of the time; 0.2 MB
COMPLAIN_EVERY_S = 1.0  # at most one log line on forged publications; the metric counts all

_log = structlog.get_logger("snorky.redis")


class Subscriber:
    """The receiving half of a broker.

    names: of the channels in Redis, by key. canary_name: always subscribed to; its payloads go to
    on_canary. on_batch: called with all publications of one read, per key, in order; only of wanted channels.
    on_whole: called when all wanted channels are confirmed; True if publications may have been missed before.
    on_lost: called when the connection is lost. sharding: for a shard of a Cluster; its canary names replace
    canary_name.
    """

    def __init__(
        self,
        target: RedisTarget,
        *,
        client_name: str,
        names: NamesOfKeys,
        canary_name: bytes,
        on_batch: Callable[[Mapping[str, Sequence[bytes]]], None],
        on_canary: Callable[[Sequence[bytes]], None],
        on_whole: Callable[[bool], None],
        on_lost: Callable[[], None],
        metrics: Metrics,
        timeouts: RedisTimeouts,
        sharding: Sharding | None = None,
    ) -> None:
        self._names = names
        self._on_batch = on_batch
        self._on_canary = on_canary
        self._on_whole = on_whole
        self._on_lost = on_lost
        self._sharding = sharding
        letter = b"" if sharding is None else b"s"
        self._subscribe_word, self._unsubscribe_word = letter + b"subscribe", letter + b"unsubscribe"
        self._message_word = letter + b"message"
        self._confirm_timeout_s = timeouts.confirm_timeout_s
        self._progress_timeout_s = timeouts.dial_timeout_s
        self._link = ReconnectingConnection(
            target,
            role="subscriber",
            name=client_name,
            on_up=self._on_up,
            on_down=self._on_down,
            metrics=metrics,
            dial_timeout_s=timeouts.dial_timeout_s,
        )
        self._metrics = metrics
        self._complained_s = -COMPLAIN_EVERY_S
        self.canary_name = canary_name
        self._canary = HeardChannel("")
        self._canary.is_held = True
        self._by_key: dict[str, HeardChannel] = {}
        self._recent: dict[bytes, tuple[HeardChannel, bool]] = {}  # what `_find` returned; none that is forgotten
        # OrderedDict, not dict: after removals from the front of a dict, each next access skips the removed entries.
        # Subscribing to 100,000 channels again: dict 5-8 s, OrderedDict 1.1-1.6 s, under load
        # (benchmarks.scenarios.subscriber).
        self._to_send: OrderedDict[HeardChannel, None] = OrderedDict()  # may need a SUBSCRIBE or UNSUBSCRIBE; in order
        self._unanswered: deque[tuple[HeardChannel, bool, tuple[bytes, ...]]] = deque()  # True: SUBSCRIBE; its names
        self._confirmed_names = 0  # how many names of the first of these are confirmed
        self._linger = Linger(timeouts.linger_s, on_end=self._on_linger_end)
        self._progress_timer: asyncio.TimerHandle | None = None
        self._is_flush_due = False
        self._is_paused = False
        self._is_stopped = False
        self._is_interrupted = False  # the connection was lost, and is not whole since
        self._answer_count = 0
        self.is_whole = False

    # -- commands ----------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Start to connect. Call once, on the event loop of all other calls."""
        self._link.start()

    async def stop(self) -> None:
        """Close the connection and stop all timers; waiting `subscribe` calls raise BrokerUnavailable. Idempotent."""
        self._is_stopped = True
        await self._link.stop()
        self._linger.stop()
        if self._progress_timer is not None:
            self._progress_timer.cancel()
        for channel in list(self._by_key.values()):
            channel.settle(BrokerUnavailable("the broker is stopped"))

    def is_subscribed(self, key: str) -> bool:
        """True while the channel is wanted and confirmed on the present connection."""
        channel = self._by_key.get(key)
        return channel is not None and channel.is_confirmed and channel.is_wanted

    async def subscribe(self, key: str) -> None:
        """Subscribe; returns when Redis has confirmed. Raises BrokerUnavailable: rejected, or not confirmed in time."""
        if self._is_stopped:
            raise BrokerUnavailable("the broker is stopped")
        channel = self._by_key.get(key) or self._by_key.setdefault(key, HeardChannel(key))
        self._linger.cancel(channel)
        if channel.is_confirmed:
            channel.is_held = True
            return
        channel.waiters += 1
        self._touch(channel)
        try:
            async with asyncio.timeout(self._confirm_timeout_s):
                while not channel.is_confirmed:  # it may be confirmed and lost again before we run
                    if channel.confirmation is None:
                        channel.confirmation = asyncio.get_running_loop().create_future()
                    await asyncio.shield(channel.confirmation)
            channel.is_held = True
        except TimeoutError as error:
            raise BrokerUnavailable(f"not confirmed within {self._confirm_timeout_s:g} s: {key!r}") from error
        finally:
            channel.waiters -= 1
            self._on_less_wanted(channel)

    def unsubscribe(self, key: str) -> None:
        """Give the channel up; UNSUBSCRIBE is sent after linger_s. Does nothing if not subscribed."""
        if (channel := self._by_key.get(key)) is not None:
            channel.is_held = False
            self._on_less_wanted(channel)

    def pause(self) -> None:
        """Stop reading; a connection made meanwhile stops once it is whole."""
        self._is_paused = True
        if self._link.wire is not None and self.is_whole:
            self._link.wire.pause()

    def resume(self) -> None:
        """Read again."""
        self._is_paused = False
        if self._link.wire is not None:
            self._link.wire.resume()

    def read_now(self) -> None:
        """Process what has arrived already, as the event loop would."""
        if self._link.wire is not None:
            self._link.wire.read_now()

    def redial(self, reason: str) -> None:
        """Close the connection and connect again."""
        self._link.redial(reason)

    # -- sending -----------------------------------------------------------------------------------------------

    def _touch(self, channel: HeardChannel) -> None:
        self._to_send[channel] = None
        if not self._is_flush_due and self._link.wire is not None:
            self._is_flush_due = True
            asyncio.get_running_loop().call_soon(self._flush)  # one write for all commands of a loop tick

    def _flush(self) -> None:
        self._is_flush_due = False
        if (wire := self._link.wire) is None:
            return  # the next connection subscribes to all wanted channels
        commands = []
        while self._to_send and len(self._unanswered) < WINDOW:
            channel, _ = self._to_send.popitem(last=False)
            if channel.is_wanted and not channel.is_asked:
                channel.is_asked = True
                commands.append(self._ask(channel, is_subscribe=True))
            elif not channel.is_wanted and channel not in self._linger:
                self._forget(channel)
                if channel.is_asked:
                    commands.append(self._ask(channel, is_subscribe=False))
        if commands:
            wire.write(b"".join(commands))

    def _ask(self, channel: HeardChannel, *, is_subscribe: bool) -> bytes:
        """Make a command, whose answer is expected after those of all before."""
        names = (self.canary_name,) if channel is self._canary else self._names.of(channel.key)
        self._unanswered.append((channel, is_subscribe, names))
        return command((self._subscribe_word if is_subscribe else self._unsubscribe_word).upper(), *names)

    def _on_less_wanted(self, channel: HeardChannel) -> None:
        if not channel.is_wanted and self._by_key.get(channel.key) is channel:
            self._linger.begin(channel)

    def _on_linger_end(self, channel: HeardChannel) -> None:
        if self._link.wire is None:
            self._forget(channel)
        else:
            self._touch(channel)

    def _forget(self, channel: HeardChannel) -> None:
        if self._by_key.get(channel.key) is channel:
            del self._by_key[channel.key]
            self._recent.clear()

    def _find(self, name: bytes) -> tuple[HeardChannel, bool] | None:
        """See FindChannel."""
        recent = self._recent.get(name)
        if recent is None and (recent := self._look_up(name)) is not None:
            if len(self._recent) >= RECENT_MAX:
                self._recent.clear()
            self._recent[name] = recent
        return recent

    def _look_up(self, name: bytes) -> tuple[HeardChannel, bool] | None:
        found = self._names.read(name)
        if found is not None and (channel := self._by_key.get(found[0])) is not None:
            return channel, found[1]
        return (self._canary, True) if name == self.canary_name else None

    # -- the wire ----------------------------------------------------------------------------------------------

    def _on_up(self, wire: RespConnection) -> None:
        wire.consume = self._consume
        if self._sharding is not None:
            self.canary_name = self._sharding.new_canary_name()
            self._recent.clear()
        self._to_send = OrderedDict.fromkeys(channel for channel in self._by_key.values() if channel.is_wanted)
        self._to_send[self._canary] = None
        self._flush()
        self._progress_timer = asyncio.get_running_loop().call_later(
            self._progress_timeout_s, self._watch_progress, self._answer_count
        )

    def _on_down(self, error: ConnectionLost) -> None:
        self.is_whole = False
        self._is_interrupted = True
        if self._progress_timer is not None:
            self._progress_timer.cancel()
        self._unanswered.clear()
        self._confirmed_names = 0
        self._to_send.clear()
        self._linger.clear()
        for channel in [*self._by_key.values(), self._canary]:
            channel.is_asked = channel.is_confirmed = False
            if not channel.is_wanted:
                self._forget(channel)
        self._on_lost()

    def _watch_progress(self, answered_before: int) -> None:
        """Close the connection if no answer came since the last check. Runs until it is whole; then the canary does."""
        wire = self._link.wire
        if self.is_whole or wire is None:
            return
        if self._answer_count == answered_before:
            wire.close(ConnectionLost(f"no answer within {self._progress_timeout_s:g} s"))
            return
        loop = asyncio.get_running_loop()
        self._progress_timer = loop.call_later(self._progress_timeout_s, self._watch_progress, self._answer_count)

    def _consume(self, gets: Gets) -> None:
        """Process one read. The hot path: each message is only appended to the list of its Redis name."""
        payloads: defaultdict[bytes, list[bytes]] = defaultdict(list)
        names: list[bytes] = []
        message = self._message_word
        was_whole = self.is_whole
        try:
            while (reply := gets()) is not False:
                if type(reply) is list and len(reply) == 3 and reply[0] == message:
                    name = reply[1]
                    payloads[name].append(reply[2])
                    names.append(name)
                else:
                    self._on_answer(reply)
            if payloads:
                self._hand_out(by_channel(payloads, names, self._find, self._on_forged))
        except TypeError as error:  # for example a list as a name: not sent by a Redis
            raise ConnectionLost(f"not a Redis: {error}") from error
        if self.is_whole and not was_whole:
            self._become_whole()

    def _hand_out(self, read: Mapping[HeardChannel, list[bytes]]) -> None:
        batch: dict[str, list[bytes]] = {}
        for channel, payloads in read.items():
            if channel is self._canary:
                self._on_canary(payloads)
            elif channel.is_wanted and payloads:  # otherwise it lingers, or its UNSUBSCRIBE is not answered yet
                batch[channel.key] = payloads
        if batch:
            self._on_batch(batch)

    def _on_forged(self, channel: HeardChannel) -> None:
        self._metrics.drops.labels("forged").inc()
        now_s = asyncio.get_running_loop().time()
        if now_s - self._complained_s >= COMPLAIN_EVERY_S:
            self._complained_s = now_s
            _log.warning(
                "a publisher sent data that only nodes may send: publish JSON, which never begins with byte 0xC1",
                channel=channel.key[:300],
            )

    def _on_answer(self, reply: object) -> None:
        self._answer_count += 1
        if self._sharding is not None and self._is_taken(reply):
            return
        if not self._unanswered:
            raise ConnectionLost(f"unexpected answer: {str(reply)[:200]}")
        channel, is_subscribe, names = self._unanswered[0]
        word = self._subscribe_word if is_subscribe else self._unsubscribe_word
        if isinstance(reply, hiredis.ReplyError) and not self._confirmed_names:
            self._unanswered.popleft()
            self._on_refusal(channel, is_subscribe, str(reply))
        elif type(reply) is not list or reply[:2] != [word, names[self._confirmed_names]]:
            raise ConnectionLost(f"unexpected answer: {str(reply)[:200]}")
        elif self._confirmed_names + 1 < len(names):
            self._confirmed_names += 1
            return
        else:
            self._confirmed_names = 0
            self._unanswered.popleft()
            if is_subscribe:
                self._confirm(channel)
        if self._to_send and len(self._unanswered) <= WINDOW // 2:
            self._flush()

    def _confirm(self, channel: HeardChannel) -> None:
        channel.is_confirmed = True
        channel.settle(None)
        if channel is self._canary:
            self.is_whole = True

    def _is_taken(self, reply: object) -> bool:
        """Handle an unsolicited unsubscription (the channel's slot moved to another server). True: it was one."""
        if type(reply) is not list or reply[:1] != [self._unsubscribe_word]:
            return False
        if self._unanswered:
            _, is_subscribe, names = self._unanswered[0]
            if not is_subscribe and names[self._confirmed_names] == reply[1]:
                return False  # it answers our UNSUBSCRIBE
        found = self._find(reply[1])
        if found is not None and found[0].is_asked:
            self._hand_back(found[0])
        return True

    def _hand_back(self, channel: HeardChannel) -> None:
        channel.is_asked = channel.is_confirmed = False
        if channel is self._canary:
            raise ConnectionLost("the canary's slot has moved")  # the next connection uses another canary name
        channel.settle(ChannelMoved("the slot has moved"))
        if channel.is_wanted and self._sharding is not None:
            self._sharding.on_moved(channel.key)

    def _on_refusal(self, channel: HeardChannel, is_subscribe: bool, text: str) -> None:
        if self._sharding is not None and refusal_of(text) is Refusal.MOVED:
            if is_subscribe:
                self._hand_back(channel)
            return
        if channel.is_held or not is_subscribe:
            # Subscribers rely on this channel and cannot be notified. A lost connection makes the problem visible.
            raise ConnectionLost(f"Redis now refuses a right that it granted before: {text}")
        _log.error("subscribe refused", channel=channel.key[:300], error=text)
        channel.is_asked = False
        channel.settle(BrokerUnavailable(f"subscribe refused: {text}"))

    def _become_whole(self) -> None:
        if self._progress_timer is not None:
            self._progress_timer.cancel()
        self._link.settle()
        if self._is_paused and self._link.wire is not None:
            self._link.wire.pause()
        was_interrupted, self._is_interrupted = self._is_interrupted, False
        self._on_whole(was_interrupted)
