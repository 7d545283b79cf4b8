"""Access: which clients may do what on the channels (rooms, documents, names) of one service.

The first rule that matches a channel decides, by one or several words (`snorky.gateway.config.rules.access_words`).
Defaults, for operations that the rule does not mention:

                                         without [auth]     with [auth]
    subscribe, join, register, acquire   anyone             authenticated
    the same, pattern with placeholders  owner or token     owner or token
    publish                              anyone             token
    publish, pattern with placeholders   token              token
    history, presence                    as subscribe       as subscribe
    a channel that no rule matches       anyone             nobody; "anyone" with unmatched = "open"
"""

from collections.abc import Container, Iterator, Mapping
from typing import Final, Generic, Literal, get_args

from snorky.gateway.config.rules.access_words import Words
from snorky.gateway.config.rules.channel_rules import AnyRule, Rule, Rules
from snorky.gateway.connection.connection import SERVER_SIDE, Connection
from snorky.gateway.errors import ConfigurationError
from snorky.gateway.permissions.capabilities import permits
from snorky.gateway.permissions.owners import owns

__all__ = ["Access", "Unmatched"]

Unmatched = Literal["open", "closed"]

_AS_FIRST: Final = ("history", "presence")  # not written: as the first operation of the rule


class Access(Generic[AnyRule]):
    """The rules of one service, and the operations that they permit to a client.

    unmatched: whether channels without a rule are open to anyone; None = only without authentication. Raises
    ConfigurationError: another value.
    """

    def __init__(self, service: str, rules: Rules[AnyRule], unmatched: Unmatched | None = None) -> None:
        if unmatched is not None and unmatched not in get_args(Unmatched):
            raise ConfigurationError('unmatched: write unmatched = "open" or unmatched = "closed"')
        self.rules = rules
        self._service = service
        self._unmatched = unmatched
        self._words: Mapping[int, Mapping[str, tuple[str, ...]]] = {}  # by the id of the rule, which `rules` keeps
        self.bind(is_authenticating=False)

    def bind(self, *, is_authenticating: bool) -> None:
        """Set whether clients can have identities, before the first client connects."""
        table = {id(rule): _words_of(rule, is_authenticating) for rule in self.rules}
        is_open = self._unmatched == "open" or (self._unmatched is None and not is_authenticating)
        word = ("anyone",) if is_open else ("nobody",)
        table[id(self.rules.default)] = dict.fromkeys(self.rules.default.operations, word)
        self._words = table

    def opened(self) -> str:
        """Say what is open to clients without an identity, for operators: PATTERN (OPERATIONS), ...; "" = nothing."""
        found = []
        for rule in (*self.rules, self.rules.default):
            open_to_all = [each for each in rule.operations if self.is_open(rule, each)]
            if open_to_all:
                subject = "what no rule matches" if rule is self.rules.default else rule.match
                found.append(f"{subject} ({', '.join(open_to_all)})")
        return ", ".join(found)

    def is_open(self, rule: Rule, operation: str) -> bool:
        """Return True if a rule permits an operation to any client."""
        return self._words[id(rule)][operation] == ("anyone",)

    def allows(
        self,
        operation: str,
        rule: AnyRule,
        name: str,
        client: Connection,
        granted: Container[str] | None = None,
        *,
        is_subscribing: bool = False,
    ) -> bool:
        """Return True if a client may do this. rule, name: of the channel, by `Rules.find` and `codec.channel_name`.

        A client that the backend has subscribed to the channel may receive and read it, whatever the rule says.
        granted: the operations that a subscription token of this call permits; None = those of the present one count.
        is_subscribing: the client counts as a subscriber, because this call subscribes it.
        """
        if operation in SERVER_SIDE and client.grants is not None:
            if client.grants.get(f"{self._service}:{name}") is SERVER_SIDE:
                return True
        for word in self._words[id(rule)][operation]:
            if word == "anyone":
                return True
            if word == "authenticated" and client.identity is not None:
                return True
            if word == "owner" and owns(rule.pattern, name, client.identity, client.claims):
                return True
            if word == "subscriber" and f"{self._service}:{name}" in client.channels:
                return True
            if word == "subscriber" and is_subscribing:
                return True
            if word == "token" and self._has_token(operation, name, client, granted):
                return True
        return False

    def _has_token(self, operation: str, name: str, client: Connection, granted: Container[str] | None) -> bool:
        if granted is None:
            granted = () if client.grants is None else client.grants.get(f"{self._service}:{name}", ())
        return operation in granted or permits(client.claims, self._service, operation, name)

    def sentences(self) -> Iterator[str]:
        """Yield who may do what, in one sentence for each rule, for operators."""
        for rule in (*self.rules, self.rules.default):
            is_default = rule is self.rules.default
            subject = "all others" if is_default and len(self.rules) else rule.match
            words = self._words[id(rule)]
            said = [f"{operation} {' or '.join(words[operation])}" for operation in rule.operations]
            yield f"{subject}: {'; '.join(said)}"


def _words_of(rule: Rule, is_authenticating: bool) -> dict[str, tuple[str, ...]]:
    found: dict[str, tuple[str, ...]] = {}
    first = rule.operations[0]
    for operation in rule.operations:
        written: Words = rule.words(operation)
        if written is not None:
            found[operation] = (written,) if isinstance(written, str) else written
        elif operation in _AS_FIRST:
            found[operation] = found[first]
        else:
            found[operation] = _unwritten(operation, rule, is_authenticating)
    return found


def _unwritten(operation: str, rule: Rule, is_authenticating: bool) -> tuple[str, ...]:
    if not (is_authenticating or rule.pattern.sources):
        return ("anyone",)
    if operation == "publish":
        return ("token",)
    return ("owner", "token") if rule.pattern.sources else ("authenticated",)
