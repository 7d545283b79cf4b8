"""Subscriptions: grants (what a token allows), the subscriptions that clients acquired with them, and their items."""

import math
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from snorky.gateway import Connection, Position

__all__ = ["NEVER", "TOKEN_TTL_S", "Grant", "Holdings", "Subscription", "SubscriptionItem"]

TOKEN_TTL_S: Final = 120.0
NEVER: Final = math.inf  # an offset that no live delta exceeds
ATTEMPTS_MAX: Final = 64  # per client; beyond it the oldest attempt is forgotten


@dataclass(frozen=True, slots=True)
class Grant:
    """The content of a token: the authorized items, and the positions of their models' histories at that time.

    identity: the only one that may acquire it; None = any client that has the token.
    """

    items: list[dict[str, Any]]
    positions: Mapping[str, Position]
    identity: str | None = None

    @property
    def value(self) -> dict[str, Any]:
        """The grant as a JSON entity."""
        positions = {model: str(position) for model, position in self.positions.items()}
        bound = {} if self.identity is None else {"identity": self.identity}
        return {"items": self.items, "positions": positions, **bound}

    @classmethod
    def read(cls, value: Any) -> "Grant":
        """Parse the JSON entity that `value` returned."""
        positions = {model: Position.parse(text) for model, text in value["positions"].items()}
        return cls(value["items"], positions, value.get("identity"))


class SubscriptionItem:
    """One dealer and query of a subscription.

    extra: fields to add to its deltas: {"tag": ENTITY}, or none. after: it gets only live deltas above this offset.
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
        self.is_dealt = False  # True while it is added to its dealer


class Subscription:
    """A subscription of one client, acquired with one token. items: by model. models: those whose feeds it uses."""

    __slots__ = ("connection", "items", "models")

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self.items: dict[str, list[SubscriptionItem]] = {}
        self.models: list[str] = []

    @property
    def is_live(self) -> bool:
        """True once at least one item gets live deltas."""
        return any(item.after != NEVER for items in self.items.values() for item in items)


@dataclass(slots=True)
class Holdings:
    """The subscriptions and pending acquisitions of one client on this node, by token.

    attempts: the taker name with which the client tries to consume a token, until the outcome is known.
    """

    subscriptions: dict[str, Subscription] = field(default_factory=dict)
    attempts: dict[str, str] = field(default_factory=dict)

    def attempt(self, token: str) -> str:
        """Start or repeat an attempt to consume a token; returns its taker name."""
        if token not in self.attempts:
            while len(self.attempts) >= ATTEMPTS_MAX:
                del self.attempts[next(iter(self.attempts))]
            self.attempts[token] = secrets.token_hex()
        return self.attempts[token]
