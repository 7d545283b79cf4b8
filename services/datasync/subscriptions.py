"""Subscriptions: what a client acquired, item by item, and what a node keeps of it."""

import math
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from gateway import Connection, Position

__all__ = ["NEVER", "TOKEN_TTL_S", "Grant", "Holdings", "Subscription", "SubscriptionItem"]

TOKEN_TTL_S: Final = 120.0
NEVER: Final = math.inf  # an offset: nothing live is behind it
ATTEMPTS_MAX: Final = 64  # per client: one that retries more tokens than that at once loses the oldest


@dataclass(frozen=True, slots=True)
class Grant:
    """What a token stands for: items as they were authorized, and where the histories of their models stood."""

    items: list[dict[str, Any]]
    positions: Mapping[str, Position]

    @property
    def value(self) -> dict[str, Any]:
        """As a JSON entity."""
        return {"items": self.items, "positions": {model: str(position) for model, position in self.positions.items()}}

    @classmethod
    def read(cls, value: Any) -> "Grant":
        """Read what `value` wrote."""
        return cls(value["items"], {model: Position.parse(text) for model, text in value["positions"].items()})


class SubscriptionItem:
    """A dealer and a query to it, of one subscription.

    extra: what its deltas carry beside their own: {"tag": ENTITY}, or nothing. after: it is shown live deltas behind
    this offset only.
    """

    __slots__ = ("after", "dealer_name", "extra", "is_dealt", "query", "subscription")

    def __init__(
        self, subscription: "Subscription | None", dealer_name: str, query: Any, extra: dict[str, Any] | None = None
    ) -> None:
        self.subscription = subscription
        self.dealer_name = dealer_name
        self.query = query
        self.extra = extra or {}
        self.after: float = NEVER
        self.is_dealt = False  # its dealer knows it


class Subscription:
    """What one token gives to one client. items: by model. models: those whose feeds it uses."""

    __slots__ = ("connection", "items", "models")

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self.items: dict[str, list[SubscriptionItem]] = {}
        self.models: list[str] = []

    @property
    def is_live(self) -> bool:
        """True once it is shown something as it comes."""
        return any(item.after != NEVER for items in self.items.values() for item in items)


@dataclass(slots=True)
class Holdings:
    """What a node keeps of one client, by token.

    attempts: by which taker's name this client tries to take a token, until it is known whether that succeeded.
    """

    subscriptions: dict[str, Subscription] = field(default_factory=dict)
    attempts: dict[str, str] = field(default_factory=dict)

    def attempt(self, token: str) -> str:
        """Begin or repeat an attempt to take a token; returns the name of its taker."""
        if token not in self.attempts:
            while len(self.attempts) >= ATTEMPTS_MAX:
                del self.attempts[next(iter(self.attempts))]
            self.attempts[token] = secrets.token_hex()
        return self.attempts[token]
