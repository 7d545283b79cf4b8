"""A session whose channel `news` needs subscription tokens, on a clock moved by hand."""

from typing import Any

from session_stage import Stage, Tokens

from snorky.client.clock import Backoff
from snorky.client.errors import SnorkyError
from snorky.client.realtime.channel_token import ChannelToken
from snorky.client.realtime.topic import Topic

LIFETIME_S = 100.0


class Scene(Stage):
    """A session whose channel news needs tokens."""

    def __init__(self, lifetime_s: float = LIFETIME_S, **options: Any) -> None:
        super().__init__(**options)
        self.gateway.lifetime_s = lifetime_s
        self.tokens = Tokens()

    def begin(self, **options: Any) -> Topic:
        topic = super().begin(**{"token": self.tokens.source(), "recover": True, **options})
        self.tokens.give()
        self.gateway.pump()
        return topic

    def settle(self, seconds: float = 60.0) -> None:
        """Advance the time; the token function returns at once."""
        for _ in range(int(seconds / 0.25)):
            self.gateway.pump()
            self.tokens.give()
            self.gateway.pump()
            self.clock.advance(0.25)
        self.gateway.pump()

    def sent(self, *commands: str) -> list[tuple[str, str | None]]:
        """Return the commands of these names that the client sent, and their tokens."""
        requests = [each for each in self.gateway.requests if each["command"] in commands]
        return [(each["command"], each["params"].get("token")) for each in requests]


def fixed(text: str) -> ChannelToken:
    return ChannelToken(text, backoff=Backoff(base_s=0.5, max_s=30.0, uniform=lambda _low, high: high))


def error_of(topic: Topic) -> tuple[str, str]:
    assert isinstance(topic.error, SnorkyError) and topic.state == "refused"
    return topic.error.code, str(topic.error)
