"""Rule tables: the channel rules of all nodes as stored in Redis, and their merged history settings. Pure.

A table has the rules of one node: service -> ordered rules, each [size, ttl_ms, parts] or, with placeholders in the
pattern, [size, ttl_ms, parts, heads]: the literals of `snorky.gateway.config.rules.patterns`. Who owns a channel is not
in it. A channel keeps the largest size and the longest time of all tables, so no node shortens a history that another
one needs.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any, Final

from snorky.gateway.config.rules.channel_rules import ChannelRule, Rules
from snorky.gateway.contracts.history import History

__all__ = ["RuleTables", "sha1_of", "write_table"]

_NO_TABLES: Final = "[]"


def write_table(rules: Mapping[str, Rules[ChannelRule]]) -> str:
    """Encode one node's table as JSON. Numbers are text, like the arguments of publish.lua."""
    table = {service: [_write(rule) for rule in each] for service, each in sorted(rules.items()) if each}
    return json.dumps(table, ensure_ascii=False, separators=(",", ":"))


def sha1_of(text: str) -> str:
    """Make the digest by which the scripts in Redis compare texts."""
    return hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest()


class RuleTables:
    """The tables of all nodes. text: a JSON list of tables. Raises ValueError: it is not."""

    def __init__(self, text: str = _NO_TABLES) -> None:
        self.text = text
        self.digest = sha1_of(text)
        try:
            self._tables = [_read(table) for table in json.loads(text)]
        except (AttributeError, KeyError, TypeError, IndexError) as error:
            raise ValueError(f"not a list of rule tables: {error!r}") from None

    @property
    def count(self) -> int:
        """The number of different tables."""
        return len(self._tables)

    def promised(self, service: str, name: str, own: History | None) -> History | None:
        """Return a channel's history settings: the maximum of `own` and all tables; None = no history.

        name: made by `codec.channel_name`. own: by this node's own rule.
        """
        size, ttl_s = (own.size, own.ttl_s) if own is not None else (0, 0.0)
        if own is not None and not own.size:
            return own  # 0 = any number of entries, which is the maximum
        for table in self._tables:
            rules = table.get(service)
            rule = rules.find(name) if rules is not None else None
            if rule is not None and rule.history:
                size, ttl_s = max(size, rule.history), max(ttl_s, rule.history_ttl_s)
        return History(ttl_s, size) if size else None


def _write(rule: ChannelRule) -> list[Any]:
    ttl_ms = round(rule.history_ttl_s * 1000) if rule.history else 0
    pattern = rule.pattern
    row: list[Any] = [str(rule.history), str(ttl_ms), pattern.parts]
    return [*row, pattern.heads] if pattern.heads else row


def _read(table: Mapping[str, list[Any]]) -> dict[str, Rules[ChannelRule]]:
    return {service: Rules(_rule(*row) for row in each) for service, each in table.items()}


def _rule(size: str, ttl_ms: str, parts: list[str], heads: Sequence[str] = ()) -> ChannelRule:
    match = "".join(f"{head}{{identity}}" for head in heads) + "*".join(parts)
    return ChannelRule(match, history=int(size), history_ttl_s=int(ttl_ms) / 1000 or 1.0)
