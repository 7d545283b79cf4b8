"""Channel rules: history, presence and permissions of a service's channels, by patterns of their names. Pure.

    [[services.pubsub.channels]]         Rules.read([{"match": "chat:*", "history": 1000}])
    match = "chat:*"
    history = 1000

Rules:
- The first rule whose pattern matches applies; later ones are ignored. A channel that matches no rule has the defaults.
- `snorky.gateway.config.rules.patterns` describes the patterns.
"""

import difflib
import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from typing import Annotated, Any, ClassVar, Generic, TypeVar

import msgspec
from msgspec import Meta

from snorky.gateway.config.old_names import CHANNEL_RULE as OLD_NAMES
from snorky.gateway.config.rules.access_words import WORD_LIST, Words, problems_of
from snorky.gateway.config.rules.patterns import Pattern, pattern_of
from snorky.gateway.errors import ConfigurationError

__all__ = ["ChannelRule", "Rule", "Rules", "digest_of"]

Match = Annotated[str, Meta(min_length=1, max_length=255, pattern=r"\A[^\x00-\x1f]+\Z")]
Size = Annotated[int, Meta(ge=0, le=1_000_000)]
Seconds = Annotated[float, Meta(gt=0, le=2_592_000)]
Bytes = Annotated[int, Meta(ge=0, le=16_777_216)]
Rate = Annotated[float, Meta(ge=0)]
Field = Annotated[str, Meta(max_length=255)]
Milliseconds = Annotated[int, Meta(ge=0, le=1000)]


class Rule(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The settings of all channels (rooms, documents, names) whose names match."""

    operations: ClassVar[tuple[str, ...]] = ()  # each has a field `allow_OPERATION`

    match: Match

    @property
    def pattern(self) -> Pattern:
        """The pattern that `match` contains. Raises ValueError."""
        return pattern_of(self.match)

    def matches(self, name: str) -> bool:
        """Return True if this rule matches a channel. name: from `codec.channel_name`."""
        return self.pattern.matches(name)

    def words(self, operation: str) -> Words:
        """Return who may do this, as the rule says; None = it does not say."""
        words: Words = getattr(self, f"allow_{operation}")
        return words

    def problems(self) -> list[str]:
        """Return one text for each contradiction, with the remedy."""
        try:
            pattern = self.pattern
        except ValueError as error:
            return [f"match: {error}"]
        return [text for each in self.operations for text in problems_of(each, self.words(each), pattern)]


class ChannelRule(Rule, frozen=True, forbid_unknown_fields=True):
    """The settings of all channels of a PubSubService whose names match."""

    operations: ClassVar[tuple[str, ...]] = ("subscribe", "publish", "history", "presence")

    history: Size = 0  # publications to retain; 0: none
    history_ttl_s: Seconds = 300.0
    recovery: bool = True  # clients that reconnect with a position receive the publications they missed
    presence: bool = False  # clients may request the list of subscribers
    join_leave: bool = False  # subscribers receive join and leave events
    subscribers_max: Size = 0  # on all nodes; 0: no limit
    publishes_per_s: Rate = 0.0  # of all clients on all nodes; 0: no limit
    message_max_bytes: Bytes = 0  # of a client's message as JSON; 0: no limit but that of [limits]
    client_keys: bool = True  # clients may publish with an idempotency key, which Redis stores
    flush_ms: Milliseconds = 0  # between two writes to its subscribers on a node; 0: none
    conflate: Field = ""  # of messages about the same, slow clients get only the newest: a message's field, or "*"
    compression: bool = True  # of publications, for clients that have negotiated it
    allow_subscribe: Words = None  # which clients may subscribe; None: see `snorky.gateway.permissions.access`
    allow_publish: Words = None  # which clients may publish; the backend always may
    allow_history: Words = None  # which clients may read the history; None: as allow_subscribe
    allow_presence: Words = None  # which clients may list the subscribers; None: as allow_subscribe

    def problems(self) -> list[str]:
        """Return one text for each contradiction, with the remedy."""
        found = super().problems()
        if self.join_leave and not self.presence:
            found.append("join_leave = true needs the list of subscribers: add presence = true")
        if self.history_ttl_s != _DEFAULT.history_ttl_s and not self.history:
            found.append("history_ttl_s means nothing without history: write history = 1000, or leave it out")
        return found


_DEFAULT = ChannelRule("*")
_EXAMPLES = {
    "match": '"chat:*"',
    "history": "1000",
    "history_ttl_s": "300",
    "subscribers_max": "1000",
    "publishes_per_s": "100",
    "message_max_bytes": "4096",
    "flush_ms": "100",
    "conflate": '"symbol"',
}  # for all other keys: true

AnyRule = TypeVar("AnyRule", bound=Rule)


class Rules(Generic[AnyRule]):
    """The rules of one service, in order. default: of channels that match no rule."""

    __slots__ = ("_firsts", "_rules", "default")

    def __init__(self, rules: Iterable[AnyRule] = (), default: AnyRule = _DEFAULT) -> None:  # type: ignore[assignment]
        self._rules = tuple(rules)
        self._firsts = [(rule.pattern.first, rule.pattern.matches, rule) for rule in self._rules]
        self.default = default

    @classmethod
    def read(cls, written: object, default: AnyRule = _DEFAULT, table: str = "channels") -> "Rules[AnyRule]":  # type: ignore[assignment]
        """Parse a list of tables or rules, from settings or code. Raises ConfigurationError: all problems.

        default: of channels that match no rule; its class is that of all rules. table: the list's name, for errors.
        """
        if isinstance(written, Rules):
            return written
        if not isinstance(written, list | tuple):
            raise ConfigurationError(
                f"{table} must be a list of tables: write [[{table}]] with match = {_EXAMPLES['match']}"
            )
        kind = type(default)
        rules, problems = [], []
        for number, each in enumerate(written, 1):
            try:
                rule = each if isinstance(each, kind) else _read(each, kind)
                found = rule.problems()
            except ValueError as error:
                found = [str(error)]
            else:
                rules.append(rule)
            problems += [f"{table}, rule {number}: {problem}" for problem in found]
        for number, rule in enumerate(rules[:-1], 1):
            if rule.match == "*":
                problems.append(f"{table}, rule {number}: matches everything, so later rules never apply: put it last")
        if problems:
            raise ConfigurationError("; ".join(problems))
        return cls(rules, default)

    def __iter__(self) -> Iterator[AnyRule]:
        return iter(self._rules)

    def __len__(self) -> int:
        return len(self._rules)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Rules) and other._rules == self._rules

    def __hash__(self) -> int:
        return hash(self._rules)

    def find(self, name: str) -> AnyRule:
        """Return the rule of a channel. name: from `codec.channel_name`."""
        for first, matches, rule in self._firsts:
            if name.startswith(first) and matches(name):
                return rule
        return self.default


def digest_of(rules: Mapping[str, Rules[Any]]) -> str:
    """Hash rules to 16 characters, equal for equal rules. rules: by the names of their services."""
    written = {service: msgspec.to_builtins(list(each)) for service, each in rules.items() if each}
    return hashlib.sha256(json.dumps(written, sort_keys=True).encode()).hexdigest()[:16]


def _read(written: Any, kind: type[AnyRule]) -> AnyRule:
    """Convert a table to a rule. Raises ValueError: what is wrong, and what to write."""
    if not isinstance(written, Mapping):
        raise ValueError(f"must be a table: match = {_EXAMPLES['match']}")
    known = kind.__struct_fields__
    for key in written:
        if key in OLD_NAMES:
            raise ValueError(
                f"{key} is now called {OLD_NAMES[key][0]}; write {OLD_NAMES[key][0]} = {OLD_NAMES[key][1]}"
            )
        if key not in known:
            near = difflib.get_close_matches(str(key), known, n=1, cutoff=0.6)
            hint = f"did you mean {near[0]}?" if near else f"known are {', '.join(known)}"
            raise ValueError(f"unknown key {key!r:.60}; {hint}")
    if "match" not in written:
        raise ValueError(f"needs match = {_EXAMPLES['match']}")
    try:
        return msgspec.convert(dict(written), kind)
    except msgspec.ValidationError as error:  # "Expected `int`, got `str` - at `$.history`"
        text, _, place = str(error).partition(" - at ")
        key = place.strip("`").removeprefix("$.").partition("[")[0]
        raise ValueError(f"{key}: {_said(key, text)}; write {key} = {_example(key)}") from None


def _said(key: str, text: str) -> str:
    return "expected one of the words " + WORD_LIST if key.startswith("allow_") else f"{text[:1].lower()}{text[1:]}"


def _example(key: str) -> str:
    return '"authenticated"' if key.startswith("allow_") else _EXAMPLES.get(key, "true")
