"""gateway/permissions/access.py: what rules say and do not say. docs/permissions.md has the table of words."""

from collections.abc import Mapping
from typing import Any

import pytest

from snorky.gateway import Access, ChannelRule, ConfigurationError, Rules
from snorky.gateway.connection.connection import Connection
from snorky.gateway.testing.transport import JSON, FakeTransport


def client(identity: str | None = None, claims: Mapping[str, Any] | None = None) -> Connection:
    connection = Connection(FakeTransport(), JSON, node_id="n0", serial=1)
    connection.identity, connection.claims = identity, claims or {}
    return connection


def allows(access: Access[ChannelRule], operation: str, name: str, who: Connection) -> bool:
    return access.allows(operation, access.rules.find(name), name, who)


def access_of(*rules: ChannelRule, unmatched: Any = None, is_authenticating: bool = True) -> Access[ChannelRule]:
    access = Access("pubsub", Rules(rules), unmatched)
    access.bind(is_authenticating=is_authenticating)
    return access


@pytest.mark.parametrize(
    ("unmatched", "is_authenticating", "expected"),
    [(None, False, True), (None, True, False), ("open", True, True), ("closed", False, False)],
)
@pytest.mark.parametrize("operation", ChannelRule.operations)
def test_channels_without_a_rule(unmatched: Any, is_authenticating: bool, expected: bool, operation: str) -> None:
    access = access_of(ChannelRule("other"), unmatched=unmatched, is_authenticating=is_authenticating)
    assert allows(access, operation, "news", client()) is expected
    assert allows(access, operation, "news", client("ann")) is expected


def test_placeholders_mean_owners_also_without_authentication() -> None:
    access = access_of(ChannelRule("user:{identity}"), is_authenticating=False)
    assert not allows(access, "subscribe", "user:ann", client())
    assert not allows(access, "publish", "user:ann", client("ann"))
    assert allows(access, "subscribe", "user:ann", client("ann"))  # a service has set its identity


def test_the_first_rule_that_matches_decides_alone() -> None:
    access = access_of(ChannelRule("a:closed", allow_subscribe="nobody"), ChannelRule("a:*", allow_subscribe="anyone"))
    assert not allows(access, "subscribe", "a:closed", client("ann"))
    assert allows(access, "subscribe", "a:open", client())


def test_history_has_words_of_its_own() -> None:
    rule = ChannelRule("*", allow_subscribe="anyone", allow_history="owner")
    assert rule.problems()
    access = access_of(ChannelRule("x:{identity}", allow_subscribe="anyone", allow_history=("owner", "subscriber")))
    assert not allows(access, "history", "x:ann", client("bob"))
    assert allows(access, "history", "x:ann", client("ann"))
    subscribed = client("bob")
    subscribed.channels = {"pubsub:x:ann"}
    assert allows(access, "history", "x:ann", subscribed)
    subscribed.channels = {"chat:x:ann", "pubsub:x:an"}
    assert not allows(access, "history", "x:ann", subscribed)


def test_client_that_subscribes_by_the_same_call_counts_as_a_subscriber() -> None:
    rule = ChannelRule("x", allow_subscribe="anyone", allow_history="subscriber", allow_presence="authenticated")
    access = access_of(rule)
    assert access.allows("history", rule, "x", client(), is_subscribing=True)
    assert not access.allows("presence", rule, "x", client(), is_subscribing=True)


def test_sentences_say_all_of_it() -> None:
    access = access_of(ChannelRule("user:{identity}", allow_publish="nobody"), ChannelRule("a*"))
    assert list(access.sentences()) == [
        "user:{identity}: subscribe owner or token; publish nobody; history owner or token; presence owner or token",
        "a*: subscribe authenticated; publish token; history authenticated; presence authenticated",
        "all others: subscribe nobody; publish nobody; history nobody; presence nobody",
    ]


def test_unmatched_has_two_values() -> None:
    with pytest.raises(ConfigurationError, match='write unmatched = "open" or unmatched = "closed"'):
        Access("pubsub", Rules(), "yes")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("rule", "advice"),
    [
        ({"allow_subscribe": "owner"}, 'needs a placeholder in match, as in match = "user:{identity}"'),
        ({"allow_subscribe": []}, 'allow_subscribe is an empty list: write allow_subscribe = "nobody"'),
        ({"allow_publish": ["anyone", "token"]}, '"anyone" and "nobody" stand alone'),
        ({"allow_publish": ["nobody", "token"]}, '"anyone" and "nobody" stand alone'),
        ({"allow_subscribe": ["subscriber"]}, 'use other words than "subscriber"'),
        ({"allow_subscribe": "everyone"}, "allow_subscribe: expected one of the words anyone, authenticated, owner"),
        ({"allow_subscribe": ["everyone"]}, 'write allow_subscribe = "authenticated"'),
        ({"allow_subscribe": True}, "allow_subscribe: expected one of the words"),
        ({"match": "user:{idnt}"}, "match: {idnt} is unknown"),
        ({"client_publish": False}, 'client_publish is now called allow_publish; write allow_publish = "nobody"'),
    ],
)
def test_contradictions_are_refused_with_a_remedy(rule: dict[str, Any], advice: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        Rules.read([{"match": "news", **rule}])
    assert advice in str(caught.value)
