"""Subscriptions: a session's topics, and the requests for them on its lines (connections). Pure.

Rules:
- Each line subscribes to a topic once, and again if the gateway says that this helps. The reply to a request that was
  withdrawn meanwhile is ignored.
- A topic that the gateway refuses permanently is removed. If it is unknown whether a line is subscribed, the line is
  closed: the state of a new connection is known.
- A parked topic (its reader is too slow, or it missed too much) is subscribed on no line. It reads history while
  there is room for events, and subscribes again when it has caught up. With a token, or if it is server-side, it stays
  subscribed meanwhile, see `topic`.
- The notification `subscribed` of a channel without a topic begins a server-side one. If the channel has a topic, its
  own `subscribe` brings what it needs.
- The notification `unsubscribed` is the end of a subscription on a line. `expired`: the topic gets a new token and
  subscribes again from its last position. Any other code, and `expired` of a fixed token, ends the topic.
"""

from collections.abc import Callable
from typing import Any, Final

from snorky.client.clock import Clock
from snorky.client.errors import SnorkyError
from snorky.client.realtime.channel_tokens import ChannelTokens
from snorky.client.realtime.line import Done, Line
from snorky.client.realtime.request import MESSAGE_MAX_BYTES, Request
from snorky.client.realtime.topic import Answer, Topic, topic_key

__all__ = ["Subscriptions"]

PAGE_MAX: Final = 300  # messages; the gateway's maximum
RETRY_AFTER_S: Final = 1.0  # if the gateway gives no time


class Subscriptions:
    """Keeps the lines subscribed to the topics. lines: returns the current line and the next one."""

    def __init__(
        self,
        lines: Callable[[], tuple[Line | None, Line | None]],
        clock: Clock,
        *,
        call_timeout_s: float,
        uniform: Callable[[float, float], float],
    ) -> None:
        self.topics: dict[tuple[str, str], Topic] = {}
        self._lines = lines
        self._clock = clock
        self._call_timeout_s = call_timeout_s
        self._uniform = uniform
        self._asked: dict[tuple[Line, Topic], object] = {}  # `subscribe` waits for its reply or for a retry
        self._reading: set[Topic] = set()  # a request for a page of history waits for its reply
        self._tokens = ChannelTokens(
            clock, call=self._call, uniform=uniform, on_refused=self._refuse, on_lost=self._restore
        )

    def add(self, topic: Topic) -> None:
        """Subscribe to a topic. Raises SnorkyError, `already_subscribed`: its channel is subscribed already."""
        if topic.key in self.topics:
            raise SnorkyError("Already subscribed", "already_subscribed")
        self.topics[topic.key] = topic
        self._ask_all(topic)

    def begin(self, line: Line, topic: Topic, notification: dict[str, Any]) -> None:
        """Add the topic of a server-side subscription that has begun on a line."""
        self.topics[topic.key] = topic
        topic.request(line)
        answer = topic.answer(line, notification, is_alone=self._lines()[0] in (None, line))
        if answer is Answer.FAR or topic.is_full:
            self.park(topic)

    def remove(self, topic: Topic) -> None:
        """Unsubscribe from a topic. Idempotent."""
        if self.topics.get(topic.key) is not topic:
            return
        del self.topics[topic.key]
        topic.close()
        for line in self._lines():
            self.give_up(line, topic)

    def close(self, error: Exception) -> None:
        """End all subscriptions."""
        for topic in self.topics.values():
            topic.close(error)
        self.topics.clear()
        self._tokens.close()

    def open(self, line: Line) -> None:
        """Subscribe a line that has opened to every topic."""
        for topic in self.topics.values():
            self.ask(line, topic)

    def lose(self, line: Line) -> None:
        """Handle the end of a line."""
        for topic in self.topics.values():
            topic.lose(line)
        self._tokens.lose(line)
        self._asked = {each: mark for each, mark in self._asked.items() if each[0] is not line}

    def promote(self, line: Line) -> None:
        """Make a line deliver all topics that are ready on it."""
        for topic in list(self.topics.values()):
            topic.adopt(line)
            self.read_on(topic)

    def end_overlaps(self) -> None:
        """Stop comparing messages with those of the old line of a move."""
        for topic in self.topics.values():
            topic.end_overlap()

    def has_settled(self, line: Line) -> bool:
        """True if a line has replied for all topics."""
        return not any(asked is line for asked, _topic in self._asked)

    def drained(self, topic: Topic) -> None:
        """Continue a parked topic after the program has read events of it."""
        if self.topics.get(topic.key) is topic:
            self.read_on(topic)

    def notify(self, line: Line, topic: Topic, notification: dict[str, Any]) -> None:
        """Handle a notification of a topic."""
        if notification.get("type") == "subscribed":
            if topic.is_server_side and not topic.is_on(line):
                self.ask(line, topic)  # ordered on this line too, or again
        elif notification.get("type") == "unsubscribed":
            self._end(line, topic, notification)
        elif not topic.notify(line, notification):
            self.ask_anew(line, topic)
        elif topic.is_full:
            self.park(topic)

    def _end(self, line: Line, topic: Topic, notification: dict[str, Any]) -> None:
        code, reason = notification.get("code"), notification.get("reason")
        is_renewable = code == "expired" and topic.token is not None and topic.token.is_renewable
        is_asked = (line, topic) in self._asked
        if not topic.is_on(line):
            return  # about an earlier subscription
        if not is_asked:  # else the reply to the present request is still to come
            topic.interrupt(line)
        if is_renewable:
            self.ask(line, topic, delay_s=self._tokens.pause_s(line, topic))
        else:
            text = reason if isinstance(reason, str) else "Unsubscribed"
            self._refuse(topic, SnorkyError(text, code if isinstance(code, str) else "unsubscribed"))

    def _restore(self, line: Line, topic: Topic) -> None:
        """Subscribe again; the gateway says that the line is not subscribed."""
        topic.interrupt(line)
        self.ask(line, topic)

    def ask(self, line: Line, topic: Topic, *, delay_s: float = 0.0) -> None:
        """Subscribe a line to a topic, with a token after a delay; retry if the gateway says that this helps."""
        if (topic.is_parked and not topic.stays_parked) or (line, topic) in self._asked:
            return
        mark = self._asked[line, topic] = object()  # identifies this request: the reply to a withdrawn one is ignored

        def done(data: Any, error: Exception | None) -> None:
            if self._asked.get((line, topic)) is not mark:
                return
            if error is None and topic.is_parked:
                del self._asked[line, topic]
                topic.stay(line)
                self._tokens.renew(line, topic, data)
                self.read_on(topic)
            elif error is None:
                del self._asked[line, topic]
                answer = topic.answer(line, data, is_alone=self._lines()[0] in (None, line))
                self._tokens.renew(line, topic, data)
                if answer is Answer.HOLE:
                    self.ask_anew(line, topic)
                if answer is Answer.FAR or topic.is_full:
                    self.park(topic)
            elif isinstance(error, SnorkyError) and error.retry_after_ms is None and error.code != "unavailable":
                if error.code == "already_subscribed":
                    line.abandon("an unsubscribe was not taken")  # the gateway's state is unknown
                elif error.code == "token_expired" and topic.token is not None and topic.token.is_renewable:
                    topic.leave(line)
                    del self._asked[line, topic]
                    self.ask(line, topic, delay_s=topic.token.fail(topic.channel, "the gateway says that it expired"))
                else:
                    self._refuse(topic, error)
            elif isinstance(error, SnorkyError):
                topic.leave(line)
                after_s = RETRY_AFTER_S if error.retry_after_ms is None else error.retry_after_ms / 1000
                self._clock.after(after_s * self._uniform(1.0, 2.0), again)
            else:
                line.abandon("no answer to subscribe")  # it is unknown whether the line is subscribed

        def again() -> None:
            if self._asked.get((line, topic)) is mark:
                del self._asked[line, topic]
                self.ask(line, topic)

        def send(token: str | None) -> None:
            if line in self._lines():
                self._call(line, topic, "subscribe", topic.request(line, token), done)
            else:  # the move has ended while the token was got
                self.give_up(line, topic)

        if topic.token is None:
            send(None)
        else:
            self._tokens.get(line, topic, send, delay_s=delay_s)

    def ask_anew(self, line: Line, topic: Topic) -> None:
        """Unsubscribe and subscribe again from the last position: the gap is filled or reported."""
        self.give_up(line, topic, is_again=True)
        self.ask(line, topic)

    def _refuse(self, topic: Topic, error: Exception) -> None:
        if self.topics.get(topic.key) is not topic:
            return
        del self.topics[topic.key]
        topic.refuse(error)
        for line in self._lines():
            self.give_up(line, topic)

    def give_up(self, line: Line | None, topic: Topic, *, is_again: bool = False) -> None:
        """Unsubscribe a line from a topic, if it is subscribed or has asked to be.

        is_again: it subscribes again. The backend's subscription begins again without being ended first.
        """
        if line is None:
            return
        self._asked.pop((line, topic), None)
        self._tokens.stop(line, topic)
        if not line.is_open or not topic.is_on(line):
            return
        topic.leave(line)
        if is_again and topic.is_server_side:
            return
        params = {"channel": topic.channel}
        # A refusal means that there was no subscription.
        self._call(line, topic, "unsubscribe", params, lambda _data, _error: None)

    def find(self, service: str, channel: Any) -> Topic | None:
        """Return the topic of a channel; None if there is none."""
        try:
            return self.topics.get(topic_key(service, channel))
        except ValueError:
            return None  # not a valid channel, so this client cannot have subscribed to it

    def park(self, topic: Topic) -> None:
        """Let a topic catch up by reading history, unsubscribed unless it `stays_parked`."""
        if topic.position is None or topic.is_parked or self.topics.get(topic.key) is not topic:
            return
        for line in self._lines():
            if not topic.stays_parked:
                self.give_up(line, topic)
            elif line is not None and topic.is_on(line) and (line, topic) not in self._asked:
                topic.stay(line)
        topic.is_parked = True
        self.read_on(topic)

    def read_on(self, topic: Topic) -> None:
        """Read the next page of a parked topic's history, if there is room and a connection."""
        line = self._lines()[0]
        if not topic.is_parked or not topic.has_room or line is None or topic in self._reading:
            return
        if topic.stays_parked and (not topic.is_on(line) or (line, topic) in self._asked):
            return  # the reply to `subscribe` continues
        self._reading.add(topic)
        interruptions = topic.interruptions

        def done(data: Any, error: Exception | None) -> None:
            self._reading.discard(topic)
            if self.topics.get(topic.key) is not topic:
                return
            if isinstance(error, SnorkyError) and (error.retry_after_ms is not None or error.code == "unavailable"):
                after_s = RETRY_AFTER_S if error.retry_after_ms is None else error.retry_after_ms / 1000
                self._clock.after(after_s * self._uniform(1.0, 2.0), lambda: self.read_on(topic))
            elif isinstance(error, SnorkyError) and topic.interruptions != interruptions:
                self.read_on(topic)  # its token had expired
            elif isinstance(error, SnorkyError):
                topic.refuse_history()
                self._unpark(topic)
            elif error is not None:
                self._clock.after(RETRY_AFTER_S, lambda: self.read_on(topic))
            elif topic.page(data):
                self.read_on(topic)
            else:
                self._unpark(topic)

        params = {"channel": topic.channel, "since": str(topic.position), "limit": PAGE_MAX}
        self._call(line, topic, "history", params, done)

    def _call(self, line: Line, topic: Topic, command: str, params: dict[str, Any], done: Done) -> None:
        # A channel and a position have at most some 600 bytes, and are checked when the topic is created.
        request = Request(topic.service, command, params, max_bytes=MESSAGE_MAX_BYTES)
        line.call(request, done, self._call_timeout_s)

    def _unpark(self, topic: Topic) -> None:
        topic.is_parked = False
        for line in self._lines():
            self.give_up(line, topic, is_again=True)
        self._ask_all(topic)

    def _ask_all(self, topic: Topic) -> None:
        for line in self._lines():
            if line is not None and line.is_open:
                self.ask(line, topic)
