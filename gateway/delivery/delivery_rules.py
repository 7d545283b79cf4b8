"""DeliveryRules: what channel rules say about delivery to clients: `flush_ms`, `conflate` and `compression`."""

from collections.abc import Callable
from functools import lru_cache
from hashlib import blake2b
from typing import Final

from snorky.gateway.config.rules.channel_rules import ChannelRule, Rules
from snorky.gateway.protocol.codec import Json

__all__ = ["DeliveryRules"]

KNOWN_MAX: Final = 4096  # channels whose rule is remembered
_NOTHING: Final = ChannelRule("*")


class DeliveryRules:
    """The rules of all services that have such rules. Keys: SERVICE:NAME."""

    def __init__(self) -> None:
        self._rules: dict[str, Rules[ChannelRule]] = {}
        self._find = lru_cache(maxsize=KNOWN_MAX)(self._look_up)

    def __bool__(self) -> bool:
        return bool(self._rules)

    def set_rules(self, service: str, rules: Rules[ChannelRule]) -> None:
        """Replace the rules of a service."""
        self._rules.pop(service, None)
        if any(map(_concerns_delivery, rules)):
            self._rules[service] = rules
        self._find.cache_clear()

    def interval_s(self, key: str) -> float:
        """Return the least time between two writes to a channel; 0 = none."""
        return self._find(key).flush_ms / 1000 if self._rules else 0.0

    def subject_of(self, key: str) -> Callable[[Json], bytes | None] | None:
        """Return a function of a channel's messages: a hash of the message's subject; None = it replaces no other.

        None instead of a function = the channel has no `conflate`. Subjects of different channels differ.
        """
        conflate = self._find(key).conflate if self._rules else ""
        if not conflate:
            return None
        prefix = key.encode("utf-8", "surrogatepass") + b"\0"
        if conflate == "*":
            whole = _hash(prefix)
            return lambda _message: whole

        def subject(message: Json) -> bytes | None:
            value = message.get(conflate) if isinstance(message, dict) else None
            if not isinstance(value, str | int | float):
                return None
            if isinstance(value, float) and value.is_integer():
                value = int(value)  # the same number of JSON
            return _hash(prefix + repr(value).encode("utf-8", "surrogatepass"))

        return subject

    def compresses(self, key: str) -> bool:
        """Return True if a channel's publications are compressed for clients that have negotiated it."""
        return self._find(key).compression if self._rules else True

    def _look_up(self, key: str) -> ChannelRule:
        service, _, name = key.partition(":")
        rules = self._rules.get(service)
        return _NOTHING if rules is None else rules.find(name)


def _hash(data: bytes) -> bytes:
    return blake2b(data, digest_size=16).digest()


def _concerns_delivery(rule: ChannelRule) -> bool:
    # services may have rules of another class
    return isinstance(rule, ChannelRule) and bool(rule.flush_ms or rule.conflate or not rule.compression)
