"""A session over connections that the test plays."""

import random
from collections.abc import Callable
from typing import Any

from fake_gateway import FakeClock, FakeGateway

from snorky.client.clock import Backoff
from snorky.client.errors import ConnectionEnded
from snorky.client.realtime.channel_token import ChannelToken, TokenDone
from snorky.client.realtime.events import Message
from snorky.client.realtime.session import Session, SessionOptions
from snorky.client.realtime.topic import Topic


class Stage:
    """A session, its gateway and its clock."""

    def __init__(self, *, seed: int = 1, **options: Any) -> None:
        self.clock = FakeClock()
        self.gateway = FakeGateway()
        self.ended: list[ConnectionEnded] = []
        self.begun: list[Topic] = []  # server-side subscriptions
        self.wants_orders = True
        self.events_max = 1_000
        self.session = Session(
            self.gateway,
            self.clock,
            SessionOptions(**options),
            on_subscribed=self._begin,
            on_end=self.ended.append,
            uniform=random.Random(seed).uniform,
        )
        self.gateway.session = self.session
        self.answers: list[tuple[Any, Exception | None]] = []

    def _begin(self, service: str, channel: Any, has_positions: bool) -> Topic | None:
        if not self.wants_orders:
            return None
        topic = Topic(service, channel, recover=has_positions, is_server_side=True, events_max=self.events_max)
        self.begun.append(topic)
        return topic

    def done(self, data: Any, error: Exception | None) -> None:
        self.answers.append((data, error))

    def begin(self, **options: Any) -> Topic:
        """Connect, and subscribe to news."""
        topic = Topic("pubsub", "news", **options)
        self.session.start()
        self.session.subscribe(topic)
        self.gateway.pump()
        return topic

    @property
    def line(self) -> Any:
        (line,) = self.gateway.open_lines()
        return line

    def settle(self, seconds: float = 60.0) -> None:
        self.gateway.settle(self.clock, seconds)

    def publish(self, *numbers: int) -> None:
        for number in numbers:
            self.gateway.publish("news", number)


class Tokens:
    """A token function that the test plays. waiting: its calls; the tokens that it gives are t1, t2, ..."""

    def __init__(self) -> None:
        self.waiting: list[TokenDone] = []
        self.calls = 0
        self.given = 0

    def source(self) -> ChannelToken:
        """Return a source with the longest delays that are possible."""
        return ChannelToken(ask=self.ask, backoff=Backoff(base_s=0.5, max_s=30.0, uniform=lambda _low, high: high))

    def ask(self, done: TokenDone) -> Callable[[], None]:
        self.calls += 1
        self.waiting.append(done)
        return lambda: self.waiting.remove(done) if done in self.waiting else None

    def give(self) -> None:
        """Return a new token from all calls."""
        while self.waiting:
            self.given += 1
            self.settle(f"t{self.given}")

    def settle(self, text: str | None = None, error: Exception | None = None) -> None:
        """End the oldest call."""
        self.waiting.pop(0)(text, error)


def heard(topic: Topic) -> list[Any]:
    """Return the events: the data of messages, other events unchanged."""
    return [event.data if isinstance(event, Message) else type(event).__name__ for event in topic.events]


def publish(stage: Stage, number: int) -> None:
    params = {"channel": "news", "message": number, "key": f"k{number}"}
    stage.session.publish("pubsub", params, stage.done)
