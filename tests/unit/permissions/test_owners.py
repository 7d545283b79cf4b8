"""gateway/permissions/owners.py: only clients whose identity or claim is the segment itself own a channel."""

import unicodedata
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from snorky.gateway.config.rules.patterns import Pattern
from snorky.gateway.permissions.owners import owns
from snorky.gateway.protocol.codec import channel_name
from snorky.gateway.protocol.identities import identity_text

MINE, SHOPS = Pattern("user:{identity}"), Pattern("shop:{claims.shops}:orders")


@pytest.mark.parametrize(
    ("name", "identity", "expected"),
    [
        ("user:ann", "ann", True),
        ("user:ann", "Ann", False),
        ("user:ann", "bob", False),
        ("user:ann", None, False),
        ("user:*", "*", True),  # an asterisk in an identity is only a character
        ("user:ann", "*", False),
        ("user:a:b", "a:b", False),
        ("user:a.b", "a.b", False),
        ("user:a/b", "a/b", False),
        ("user:", "", False),
        ("user:~7", "~7", True),
        ("user:~x", "~x", False),
        ("user:7", "~7", False),  # the integer 7 is not the text 7
        ("user:{identity}", "{identity}", True),
        ("user:{identity}", "ann", False),
    ],
)
def test_identity_owns_the_channel_with_exactly_its_text(name: str, identity: str | None, expected: bool) -> None:
    assert owns(MINE, name, identity, {}) is expected


@pytest.mark.parametrize(
    ("shops", "expected"),
    [
        ("7", True),
        (7, True),
        (["3", "7"], True),
        ([3, 7], True),
        ([], False),
        ("", False),
        (None, False),
        (True, False),
        (7.0, False),
        ({"7": True}, False),
        ([["7"]], False),
        ([{"id": 7}], False),
        ("7:orders", False),
        ("*", False),
        ("7 ", False),
        ("\uff17", False),  # a wide digit 7
        (["7" * 5000], False),
    ],
)
def test_claim_owns_the_channel_if_it_is_or_contains_the_segment(shops: Any, expected: bool) -> None:
    assert owns(SHOPS, "shop:7:orders", "ann", {"shops": shops}) is expected


def test_true_is_no_text() -> None:
    for name in ("True", "true", "1"):
        assert not owns(SHOPS, f"shop:{name}:orders", "ann", {"shops": True})


def test_anonymous_clients_own_nothing_whatever_their_claims() -> None:
    assert not owns(SHOPS, "shop:7:orders", None, {"shops": [7]})


def test_claims_in_claims_are_named_by_their_path() -> None:
    nested = Pattern("org:{claims.org.id}")
    assert owns(nested, "org:7", "ann", {"org": {"id": 7}})
    assert not owns(nested, "org:7", "ann", {"org": [{"id": 7}]})
    assert not owns(nested, "org:7", "ann", {"org.id": 7})
    assert not owns(nested, "org:7", "ann", {"org": 7})


def test_every_placeholder_counts() -> None:
    both = Pattern("shop:{claims.shops}:{identity}")
    assert owns(both, "shop:7:ann", "ann", {"shops": [7]})
    assert not owns(both, "shop:8:ann", "ann", {"shops": [7]})
    assert not owns(both, "shop:7:bob", "ann", {"shops": [7]})


@pytest.mark.parametrize("channel", [["user", "ann"], {"user": "ann"}, 7, None, True, "~7", '~["ann"]'])
@pytest.mark.parametrize("identity", ["ann", "~7", '~["ann"]', '~{"user":"ann"}', "~null", "~true", '~"~7"'])
def test_channels_that_are_no_texts_belong_to_nobody_but_the_integer_of_that_name(channel: Any, identity: str) -> None:
    expected = channel == 7 and channel is not True and identity == "~7"
    assert owns(Pattern("{identity}"), channel_name(channel), identity, {}) is expected


LOOK_ALIKES = [("\u00e9", "e\u0301"), ("\u212b", "\u00c5"), ("\ufb01", "fi"), ("a", "\u0430"), ("K", "\u212a")]


@pytest.mark.parametrize(("one", "other"), LOOK_ALIKES)
def test_look_alikes_own_nothing_of_each_other(one: str, other: str) -> None:
    assert unicodedata.normalize("NFKC", one) == unicodedata.normalize("NFKC", other) or one == "a"
    for name, identity in ((one, other), (other, one)):
        assert not owns(MINE, f"user:{name}", identity, {})
        assert owns(MINE, f"user:{name}", name, {})


TEXTS = st.text(st.sampled_from("ab~7:./*{}\u00e9\u0301\u0000 "), max_size=6)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 9) | st.floats(allow_nan=False) | TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=2),
    max_leaves=6,
)


def model(segment: str, value: Any) -> bool:
    """Decide in another way: by the name that a channel of the value would have."""
    if isinstance(value, list):
        return any(model(segment, each) for each in value if not isinstance(each, list | dict))
    if isinstance(value, bool) or not isinstance(value, int | str):
        return False
    text = str(value)
    return text == segment and not set(text) & set(":./") and not text.startswith("~") and text != ""


@given(name=TEXTS, value=VALUES)
@example(name="~7", value="~7")
@example(name="7", value=[True, 7])
def test_claims_own_what_a_model_says(name: str, value: Any) -> None:
    assert owns(Pattern("x:{claims.c}"), f"x:{name}", "ann", {"c": value}) is model(name, value)


@given(name=TEXTS, identity=st.integers(-99, 99) | TEXTS)
@example(name="~7", identity=7)
@example(name="7", identity=7)
def test_identities_own_what_a_model_says(name: str, identity: int | str) -> None:
    try:
        text = identity_text(identity)
    except ValueError:
        return  # no client can have it
    expected = name == f"~{identity}" if isinstance(identity, int) else model(name, identity)
    assert owns(Pattern("x:{identity}"), f"x:{name}", text, {}) is expected
