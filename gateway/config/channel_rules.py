"""Channel rules: history, presence and permissions of a service's channels, by patterns of their names. Pure.

    [[services.pubsub.channels]]         Rules.read([{"match": "chat:*", "history": 1000}])
    match = "chat:*"
    history = 1000

Rules:
- The first rule whose pattern matches applies; later ones are ignored. A channel that matches no rule has the defaults.
- A pattern is compared with the channel's name as `codec.channel_name` returns it. `*` matches any run of characters,
  including none; nothing else is special. Matching takes linear time in the length of the name: clients choose names.
"""

import difflib
import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from snorky.gateway.config.old_names import CHANNEL_RULE as OLD_NAMES
from snorky.gateway.errors import ConfigurationError

__all__ = ["ChannelRule", "Rules", "digest_of"]

Match = Annotated[str, Meta(min_length=1, max_length=255, pattern=r"\A[^\x00-\x1f]+\Z")]
Size = Annotated[int, Meta(ge=0, le=1_000_000)]
Seconds = Annotated[float, Meta(gt=0, le=2_592_000)]


class ChannelRule(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The settings of all channels whose names match."""

    match: Match
    history: Size = 0  # publications to retain; 0: none
    history_ttl_s: Seconds = 300.0
    recovery: bool = True  # clients that reconnect with a position receive the publications they missed
    presence: bool = False  # clients may request the list of subscribers
    join_leave: bool = False  # subscribers receive join and leave events
    client_publish: bool = True  # clients may publish; the backend always may
    client_keys: bool = True  # clients may publish with an idempotency key, which Redis stores

    @property
    def parts(self) -> list[str]:
        """The literal parts of the pattern, between the asterisks."""
        return self.match.split("*")

    def matches(self, name: str) -> bool:
        """Return True if this rule matches a channel. name: from `codec.channel_name`."""
        return _matches(self.parts, name)

    def problems(self) -> list[str]:
        """Return one text for each contradiction, with the remedy."""
        found = []
        if self.join_leave and not self.presence:
            found.append("join_leave = true needs the list of subscribers: add presence = true")
        if self.history_ttl_s != _DEFAULT.history_ttl_s and not self.history:
            found.append("history_ttl_s means nothing without history: write history = 1000, or leave it out")
        return found


_DEFAULT = ChannelRule("*")
_EXAMPLES = {"match": '"chat:*"', "history": "1000", "history_ttl_s": "300"}  # for all other keys: true


class Rules:
    """The rules of one service, in order. Without rules, all channels have the defaults."""

    __slots__ = ("_parts", "_rules")

    def __init__(self, rules: Iterable[ChannelRule] = ()) -> None:
        self._rules = tuple(rules)
        self._parts = [(rule.parts, rule) for rule in self._rules]  # split once: each publication needs them

    @classmethod
    def read(cls, written: object) -> "Rules":
        """Parse a list of tables or rules, from settings or code. Raises ConfigurationError: all problems."""
        if isinstance(written, Rules):
            return written
        if not isinstance(written, list | tuple):
            raise ConfigurationError(
                f"channels must be a list of tables: write [[channels]] with match = {_EXAMPLES['match']}"
            )
        rules, problems = [], []
        for number, each in enumerate(written, 1):
            try:
                rule = each if isinstance(each, ChannelRule) else _read(each)
                found = rule.problems()
            except ValueError as error:
                found = [str(error)]
            else:
                rules.append(rule)
            problems += [f"channels, rule {number}: {problem}" for problem in found]
        for number, rule in enumerate(rules[:-1], 1):
            if rule.match == "*":
                problems.append(f"channels, rule {number}: matches everything, so later rules never apply: put it last")
        if problems:
            raise ConfigurationError("; ".join(problems))
        return cls(rules)

    def __iter__(self) -> Iterator[ChannelRule]:
        return iter(self._rules)

    def __len__(self) -> int:
        return len(self._rules)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Rules) and other._rules == self._rules

    def __hash__(self) -> int:
        return hash(self._rules)

    def find(self, name: str) -> ChannelRule:
        """Return the rule of a channel. name: from `codec.channel_name`."""
        for parts, rule in self._parts:
            if name.startswith(parts[0]) and _matches(parts, name):
                return rule
        return _DEFAULT


def _matches(parts: list[str], name: str) -> bool:
    """Return True if the name consists of these parts with any characters between them."""
    first, last = parts[0], parts[-1]
    if len(parts) == 1:
        return name == first
    if len(name) < len(first) + len(last) or not (name.startswith(first) and name.endswith(last)):
        return False
    at, end = len(first), len(name) - len(last)
    for part in parts[1:-1]:
        at = name.find(part, at, end)
        if at < 0:
            return False
        at += len(part)
    return True


def digest_of(rules: Mapping[str, Rules]) -> str:
    """Hash rules to 16 characters, equal for equal rules. rules: by the names of their services."""
    written = {service: msgspec.to_builtins(list(each)) for service, each in rules.items() if each}
    return hashlib.sha256(json.dumps(written, sort_keys=True).encode()).hexdigest()[:16]


def _read(written: Any) -> ChannelRule:
    """Convert a table to a rule. Raises ValueError: what is wrong, and what to write."""
    if not isinstance(written, Mapping):
        raise ValueError(f"must be a table: match = {_EXAMPLES['match']}")
    known = ChannelRule.__struct_fields__
    for key in written:
        if key in OLD_NAMES:
            raise ValueError(f"{key} is now called {OLD_NAMES[key]}; write {OLD_NAMES[key]} = true")
        if key not in known:
            near = difflib.get_close_matches(str(key), known, n=1, cutoff=0.6)
            hint = f"did you mean {near[0]}?" if near else f"known are {', '.join(known)}"
            raise ValueError(f"unknown key {key!r:.60}; {hint}")
    if "match" not in written:
        raise ValueError(f"needs match = {_EXAMPLES['match']}")
    try:
        return msgspec.convert(dict(written), ChannelRule)
    except msgspec.ValidationError as error:  # "Expected `int`, got `str` - at `$.history`"
        text, _, place = str(error).partition(" - at ")
        key = place.strip("`").removeprefix("$.")
        raise ValueError(f"{key}: {text[:1].lower()}{text[1:]}; write {key} = {_EXAMPLES.get(key, 'true')}") from None
