"""Session: a client's connections, one after the other, with their calls, publishes and subscriptions. Pure: no I/O, no
await.

Theory of operation. A line is one connection. `_current` is the line that sends calls; `_next` is the one that is
connecting. A line that opens subscribes to every topic. Without a current line it becomes current at once. With one (a
move: the node announced that it leaves), topics with positions switch to the new line one by one, each with its reply
to `subscribe`, and offsets identify duplicates. The other topics switch together after the old line has replied to a
last call, so that no message is lost in between. Then the new line sends calls, and the old one is closed when its
calls have settled.

Rules:
- A call is never sent twice. A publish may be, under its key (outbox).
- Close codes 4500 to 4999 end the session, except that after a refused token (4501, or HTTP 401) a new one is tried
  once.
- A permanent refusal ends a session that was never connected. Once connected, the URL is known to be right, and a
  refusal may be temporary: a load balancer replies 404 while its servers are replaced.
"""

import logging
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from snorky.client.clock import Backoff, Clock
from snorky.client.errors import ConnectionEnded, TransportError
from snorky.client.realtime.line import Done, Io, Line, lost
from snorky.client.realtime.outbox import Outbox
from snorky.client.realtime.refusal import Refusal
from snorky.client.realtime.request import MESSAGE_MAX_BYTES, Request
from snorky.client.realtime.subscriptions import Subscriptions
from snorky.client.realtime.topic import Topic

__all__ = ["Session", "SessionOptions"]

STABLE_S: Final = 5.0  # a shorter connection does not reset the backoff
FENCE_TIMEOUT_S: Final = 1.0  # how long to wait for the old line's reply to its last call
OVERLAP_S: Final = 0.5  # how long after a move the new line may repeat messages that the old one delivered
LOOK_S: Final = 0.05  # how often to check whether an old line still waits for replies
GOING_AWAY: Final = 1001
ABNORMAL: Final = 1006
BAD_TOKEN: Final = 4501
UNAUTHORIZED: Final = 401  # from a proxy that checks tokens, never from a gateway

_log = logging.getLogger("snorky.realtime")


@dataclass(frozen=True, slots=True)
class SessionOptions:
    """Timeouts and limits of a session."""

    call_timeout_s: float = 10.0
    publish_timeout_s: float = 30.0
    publishes_max: int = 1_000
    max_message_bytes: int = MESSAGE_MAX_BYTES
    backoff_base_s: float = 0.5
    backoff_max_s: float = 30.0
    has_token: bool = False  # an identity, so the gateway recognizes the keys of repeated publishes
    is_token_renewable: bool = False


class Session:
    """The logic of a client: when to connect, what to send, which events to deliver.

    on_notification: called with a service and its notification if that belongs to no topic. on_subscribed: called with
    a service, a channel and whether it has positions when a server-side subscription begins; returns its topic, or
    None: the program does not want it. on_reconnecting: called with the reason for the lost connection and the delay in
    seconds until the next attempt.
    """

    def __init__(
        self,
        io: Io,
        clock: Clock,
        options: SessionOptions,
        *,
        on_notification: Callable[[str, dict[str, Any]], None] = lambda _service, _message: None,
        on_reconnecting: Callable[[TransportError, float], None] = lambda _error, _delay_s: None,
        on_subscribed: Callable[[str, Any, bool], Topic | None] = lambda _service, _channel, _has_positions: None,
        on_end: Callable[[ConnectionEnded], None] = lambda _error: None,
        uniform: Callable[[float, float], float] = random.uniform,
    ) -> None:
        self._io = io
        self._clock = clock
        self._options = options
        self._on_notification = on_notification
        self._on_reconnecting = on_reconnecting
        self._on_subscribed = on_subscribed
        self._on_end = on_end
        self._uniform = uniform
        self._backoff = Backoff(base_s=options.backoff_base_s, max_s=options.backoff_max_s, uniform=uniform)
        self._outbox = Outbox(
            clock,
            entries_max=options.publishes_max,
            timeout_s=options.publish_timeout_s,
            is_resend_safe=options.has_token,
        )
        self._subscriptions = Subscriptions(
            lambda: (self._current, self._next), clock, call_timeout_s=options.call_timeout_s, uniform=uniform
        )
        self.error: ConnectionEnded | None = None  # set when it has ended
        self._current: Line | None = None
        self._next: Line | None = None
        self._leaving: set[Line] = set()
        self._waiting: dict[int, tuple[Callable[[Line], None], Callable[[], None], Done]] = {}
        self._numbers = 0
        self._cancel_dial: Callable[[], None] = lambda: None
        self._is_token_new = False  # the next connection needs a new token
        self._was_token_renewed = False
        self._was_connected = False
        self._refusal: Refusal | None = None  # of the last attempt

    @property
    def topics(self) -> Mapping[tuple[str, str], Topic]:
        """The subscribed topics, by service and channel name."""
        return self._subscriptions.topics

    @property
    def is_open(self) -> bool:
        """True while the client is connected."""
        return self._current is not None

    # -- the program's requests ----------------------------------------------------------------------------------

    def start(self) -> None:
        """Start connecting."""
        self._dial()

    def call(self, service: str, command: str, params: dict[str, Any], done: Done) -> None:
        """Call a command; without a connection the call waits for one. Raises ValueError, TypeError: see Request."""
        request = Request(service, command, params, max_bytes=self._options.max_message_bytes)
        if self.error is not None:
            return done(None, self.error)
        if self._current is not None:
            return self._current.call(request, done, self._options.call_timeout_s)
        self._numbers += 1
        number, until_s = self._numbers, self._clock.now_s() + self._options.call_timeout_s

        def go(line: Line) -> None:
            del self._waiting[number]
            cancel()
            line.call(request, done, until_s - self._clock.now_s())

        def expire() -> None:
            del self._waiting[number]
            text = "There was no connection in time"
            done(None, lost(text, was_sent=False) if self._refusal is None else self._refusal.error(text))

        cancel = self._clock.after(self._options.call_timeout_s, expire)
        self._waiting[number] = (go, cancel, done)

    def publish(self, service: str, params: dict[str, Any], done: Done) -> None:
        """Publish on this connection or a later one.

        Raises TransportError: too many wait; ValueError, TypeError: see Request.
        """
        request = Request(service, "publish", params, max_bytes=self._options.max_message_bytes)
        if self.error is not None:
            return done(None, self.error)
        self._outbox.put(request, done)

    def subscribe(self, topic: Topic) -> None:
        """Subscribe to a topic. Raises SnorkyError, `already_subscribed`: its channel is subscribed already."""
        if self.error is not None:
            return topic.close(self.error)
        self._subscriptions.add(topic)

    def unsubscribe(self, topic: Topic) -> None:
        """Unsubscribe from a topic. Idempotent."""
        self._subscriptions.remove(topic)

    def drained(self, topic: Topic) -> None:
        """Continue after the program has read events of a topic: there may be room for more."""
        self._subscriptions.drained(topic)

    def close(self, code: int = 1000, reason: str = "closed by the client", status: int | None = None) -> None:
        """Close all connections and fail all calls, publishes and subscriptions. Idempotent."""
        if self.error is not None:
            return
        self.error = error = ConnectionEnded(code, reason, status)
        self._cancel_dial()
        for line in (self._current, self._next, *self._leaving):
            if line is not None:
                self._io.close(line, 1000, "")
                line.end()
        self._current = self._next = None
        for _go, cancel, done in list(self._waiting.values()):
            cancel()
            done(None, error)
        self._waiting.clear()
        self._outbox.fail(error)
        self._subscriptions.close(error)
        self._on_end(error)

    # -- events of connections -----------------------------------------------------------------------------------

    def on_open(self, line: Line) -> None:
        """Handle a line that has opened."""
        if line is not self._next or self.error is not None:
            return self._io.close(line, 1000, "")
        line.is_open = self._was_connected = True
        self._refuse(None)
        line.opened_at_s = self._clock.now_s()
        self._subscriptions.open(line)
        if self._current is None:
            self._promote(line)
        else:
            self._look_at_move()

    def on_text(self, line: Line, text: str | bytes) -> None:
        """Handle a message from a line."""
        if line.has_ended or self.error is not None:
            return
        heard = line.receive(text)
        if line.has_answered:
            self._was_token_renewed = False
        if heard is not None:
            self._notify(line, *heard)
        self._look_at_move()

    def on_end(self, line: Line, code: int, reason: str, refusal: Refusal | None = None) -> None:
        """Handle the end of a line. code: RFC 6455 7.1.5; 1006 = no close frame. refusal: why it could not open."""
        if line.has_ended:
            return
        line.end(code)
        self._leaving.discard(line)
        self._subscriptions.lose(line)
        if self.error is not None or line not in (self._current, self._next):
            return
        if 4500 <= code <= 4999 and not self._renews_token(code):
            return self.close(code, reason)
        if refusal is not None and self._is_hopeless(refusal):
            return self.close(ABNORMAL, refusal.text, refusal.status)
        self._refuse(refusal)
        was_stable = line.has_answered and self._clock.now_s() - line.opened_at_s >= STABLE_S
        if was_stable:
            self._backoff.reset()
        if line is self._next:
            self._next = None
        else:
            self._current = None
            self._outbox.use(None)
            if self._next is not None and self._next.is_open:
                return self._promote(self._next)
        if self._next is None:
            is_at_once = self._is_token_new or (code == GOING_AWAY and line.grace_s is not None and was_stable)
            delay_s = 0.0 if is_at_once else self._backoff.next_s()
            if refusal is not None:
                delay_s = max(delay_s, refusal.retry_after_s)
            self._dial_after(delay_s)
            if refusal is None:
                text = f"The connection ended: {code} {reason}".rstrip()
                error = TransportError(text, "unreachable", may_have_happened=False)
            else:
                error = refusal.error("No connection")
            self._tell(self._on_reconnecting, error, delay_s)

    def _notify(self, line: Line, service: str, message: dict[str, Any]) -> None:
        if service == "gateway" and message.get("type") == "moving":
            return self._move(line, message.get("graceMs"))
        topic = None
        if message.get("type") in ("message", "gap", "subscribed", "unsubscribed") and "channel" in message:
            topic = self._subscriptions.find(service, message["channel"])
            if topic is None and message["type"] == "subscribed" and self._begin(line, service, message):
                return
        if topic is None:
            if line is self._current:
                self._tell(self._on_notification, service, message)
        else:
            self._subscriptions.notify(line, topic, message)

    def _begin(self, line: Line, service: str, message: dict[str, Any]) -> bool:
        """Begin a server-side subscription. False: the program does not want it."""
        has_positions = isinstance(message.get("position"), str)
        topic = self._on_subscribed(service, message["channel"], has_positions)
        if topic is not None:
            self._subscriptions.begin(line, topic, message)
        return topic is not None

    def _tell(self, function: Callable[..., None], *arguments: object) -> None:
        """Call a function of the program. An exception is logged and does not affect the session."""
        try:
            function(*arguments)
        except Exception:
            name = "on_notification" if function is self._on_notification else "on_reconnecting"
            _log.exception("%s failed for %r", name, arguments[0])

    # -- moves ---------------------------------------------------------------------------------------------------

    def _move(self, line: Line, grace_ms: object) -> None:
        """Open the next connection at a random time within half of the grace period, so that clients spread out."""
        if line.grace_s is not None:
            return
        line.grace_s = grace_ms / 1000 if isinstance(grace_ms, (int, float)) and grace_ms >= 0 else 0.0
        if line is self._current and self._next is None:
            self._dial_after(self._uniform(0.0, line.grace_s / 2))

    def _look_at_move(self) -> None:
        """Continue a move if the new line is ready."""
        old, new = self._current, self._next
        if old is None or new is None or not new.is_open or old.is_leaving:
            return
        if not self._subscriptions.has_settled(new):
            return
        old.is_leaving = True
        self._outbox.use(None)  # new publishes wait: else they could overtake those in flight on the old line
        # The reply arrives after every message that the old node sent before it.
        fence = Request("gateway", "info", {}, max_bytes=MESSAGE_MAX_BYTES)
        old.call(fence, lambda _data, _error: self._finish_move(old), FENCE_TIMEOUT_S)

    def _finish_move(self, old: Line) -> None:
        new = self._next
        if old.has_ended or old is not self._current or new is None or not new.is_open:
            old.is_leaving = False
            self._outbox.use(self._current)
            return
        if self._outbox.in_flight:
            self._clock.after(LOOK_S, lambda: self._finish_move(old))
            return
        self._promote(new)

    def _promote(self, line: Line) -> None:
        """Make the next line the current one."""
        old, self._current, self._next = self._current, line, None
        self._subscriptions.promote(line)
        self._clock.after(OVERLAP_S, self._subscriptions.end_overlaps)
        if old is not None:
            self._leaving.add(old)
            self._release(old)
        self._outbox.use(line)
        for go, _cancel, _done in list(self._waiting.values()):
            go(line)
        if line.grace_s is not None and self._next is None:  # its node leaves too
            self._dial_after(self._uniform(0.0, line.grace_s / 2))

    def _release(self, old: Line) -> None:
        """Close the old line of a move once its calls have settled."""
        if old.has_ended:
            return
        if old.is_idle:
            self._io.close(old, 1000, "moved")
        else:
            self._clock.after(LOOK_S, lambda: self._release(old))

    # -- dialling ------------------------------------------------------------------------------------------------

    def _dial_after(self, delay_s: float) -> None:
        self._cancel_dial()
        self._cancel_dial = self._clock.after(delay_s, self._dial)

    def _dial(self) -> None:
        if self.error is not None or self._next is not None:
            return
        self._numbers += 1
        self._next = Line(self._numbers, self._io, self._clock)
        is_token_new, self._is_token_new = self._is_token_new, False
        self._io.dial(self._next, is_token_new=is_token_new)

    def _is_hopeless(self, refusal: Refusal) -> bool:
        if refusal.status == UNAUTHORIZED and self._renews_token(BAD_TOKEN):
            return False
        return not refusal.can_heal and not self._was_connected

    def _refuse(self, refusal: Refusal | None) -> None:
        self._refusal = self._outbox.refusal = refusal

    def _renews_token(self, code: int) -> bool:
        if code != BAD_TOKEN or not self._options.is_token_renewable or self._was_token_renewed:
            return False
        self._is_token_new = self._was_token_renewed = True
        return True
