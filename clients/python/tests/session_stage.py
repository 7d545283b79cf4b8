"""A session over connections that the test plays."""

import random
from typing import Any

from fake_gateway import FakeClock, FakeGateway

from snorky.client.errors import ConnectionEnded
from snorky.client.realtime.events import Message
from snorky.client.realtime.session import Session, SessionOptions
from snorky.client.realtime.topic import Topic


class Stage:
    """A session, its gateway and its clock."""

    def __init__(self, *, seed: int = 1, **options: Any) -> None:
        self.clock = FakeClock()
        self.gateway = FakeGateway()
        self.ended: list[ConnectionEnded] = []
        self.session = Session(
            self.gateway,
            self.clock,
            SessionOptions(**options),
            on_end=self.ended.append,
            uniform=random.Random(seed).uniform,
        )
        self.gateway.session = self.session
        self.answers: list[tuple[Any, Exception | None]] = []

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


def heard(topic: Topic) -> list[Any]:
    """Return the events: the data of messages, other events unchanged."""
    return [event.data if isinstance(event, Message) else type(event).__name__ for event in topic.events]


def publish(stage: Stage, number: int) -> None:
    params = {"channel": "news", "message": number, "key": f"k{number}"}
    stage.session.publish("pubsub", params, stage.done)
