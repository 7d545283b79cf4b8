"""Rule tables: the channel rules of nodes as they stand in Redis, and what all of them promise together. Pure.

A table is one node's: service -> rules in their order, each [size, ttl_ms, literal parts of the pattern]. A channel
keeps the largest size and the longest time that any table promises, so that no node weakens another one's promise.
"""

import hashlib
import json
from collections.abc import Mapping
from typing import Any, Final

from gateway.history import History
from gateway.rules import ChannelRule, Rules

__all__ = ["RuleTables", "sha1_of", "write_table"]

_NO_TABLES: Final = "[]"


def write_table(rules: Mapping[str, Rules]) -> str:
    """Write one node's table, JSON. Numbers are text, as the arguments of publish.lua."""
    table = {service: [_write(rule) for rule in each] for service, each in sorted(rules.items()) if each}
    return json.dumps(table, ensure_ascii=False, separators=(",", ":"))


def sha1_of(text: str) -> str:
    """Make the digest by which Redis compares texts."""
    return hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest()


class RuleTables:
    """All nodes' tables. text: a JSON list of tables. Raises ValueError: it is none."""

    def __init__(self, text: str = _NO_TABLES) -> None:
        self.text = text
        self.digest = sha1_of(text)
        try:
            self._tables = [_read(table) for table in json.loads(text)]
        except (AttributeError, KeyError, TypeError, IndexError) as error:
            raise ValueError(f"not a list of rule tables: {error!r}") from None

    @property
    def count(self) -> int:
        """How many different tables nodes have."""
        return len(self._tables)

    def promised(self, service: str, name: str, own: History | None) -> History | None:
        """Tell what a channel keeps: the most of what its own node's rule and all tables promise; None = nothing.

        name: by `codec.channel_name`.
        """
        size, ttl_s = (own.size, own.ttl_s) if own is not None else (0, 0.0)
        if own is not None and not own.size:
            return own  # any number
        for table in self._tables:
            rules = table.get(service)
            rule = rules.find(name) if rules is not None else None
            if rule is not None and rule.history:
                size, ttl_s = max(size, rule.history), max(ttl_s, rule.history_ttl_s)
        return History(ttl_s, size) if size else None


def _write(rule: ChannelRule) -> list[Any]:
    ttl_ms = round(rule.history_ttl_s * 1000) if rule.history else 0
    return [str(rule.history), str(ttl_ms), rule.parts]


def _read(table: Mapping[str, list[Any]]) -> dict[str, Rules]:
    return {
        service: Rules(
            ChannelRule("*".join(parts), history=int(size), history_ttl_s=int(ttl_ms) / 1000 or 1.0)
            for size, ttl_ms, parts in each
        )
        for service, each in table.items()
    }
