"""gateway/config/rules/patterns.py: patterns with asterisks and placeholders."""

import re
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from snorky.gateway.config.rules.patterns import Pattern, pattern_of


@pytest.mark.parametrize(
    ("pattern", "name", "segments"),
    [
        ("news", "news", ()),
        ("news", "newsx", None),
        ("news", "xnews", None),
        ("user:{identity}", "user:ann", ("ann",)),
        ("user:{identity}", "user:", None),  # a segment has at least one character
        ("user:{identity}", "user:ann:inbox", None),
        ("user:{identity}", "user:ann.inbox", None),
        ("user:{identity}", "user:ann/inbox", None),
        ("user:{identity}:*", "user:ann:", ("ann",)),
        ("user:{identity}:*", "user:ann:a:b", ("ann",)),
        ("user:{identity}:*", "user:ann", None),
        ("user:{identity}:*:log", "user:ann:log", None),  # the asterisk and its neighbours share no character
        ("user:{identity}:*:log", "user:ann:a:log", ("ann",)),
        ("shop:{claims.shops}:orders", "shop:7:orders", ("7",)),
        ("shop:{claims.shops}:orders", "shop:7:ordersx", None),
        ("{claims.a}.{identity}/x", "b.ann/x", ("b", "ann")),
        ("{identity}", "ann", ("ann",)),
        ("{identity}", "", None),
        ("{identity}", "a\nb", ("a\nb",)),
        ('~{"room":*}', '~{"room":5}', ()),  # braces of a JSON object are no placeholder
        ("~{}", "~{}", ()),
    ],
)
def test_placeholder_matches_one_segment(pattern: str, name: str, segments: tuple[str, ...] | None) -> None:
    assert Pattern(pattern).segments(name) == segments
    assert Pattern(pattern).matches(name) is (segments is not None)


@pytest.mark.parametrize(
    ("pattern", "advice"),
    [
        ("user:{identty}", "{identty} is unknown; write {identity}, or {claims.NAME}"),
        ("user:{claims}", "{claims} is unknown"),
        ("user:{claims.}", "{claims.} is unknown"),
        ("user:{identity}x", "must end at one of : . /, or at the end"),
        ("user:{identity}*", "must end at one of : . /"),
        ('~["user","{identity}"]', "must end at one of : . /"),
        ("*:{identity}", "follows an asterisk; write the placeholders first"),
        ("{identity}{claims.a}", "must end at one of"),
    ],
)
def test_placeholder_that_would_be_ambiguous_is_refused(pattern: str, advice: str) -> None:
    with pytest.raises(ValueError, match=re.escape(advice)):
        Pattern(pattern)


PIECES = ["a", "b:", "*", "{identity}", "{claims.x}", ".", ":"]


@given(pieces=st.lists(st.sampled_from(PIECES), min_size=1, max_size=7), name=st.text("ab:./", max_size=10))
def test_matching_agrees_with_a_regular_expression(pieces: list[str], name: str) -> None:
    text = "".join(pieces)
    try:
        pattern = Pattern(text)
    except ValueError:
        return
    parts = [
        {"*": ".*", "{identity}": "([^:./]+)", "{claims.x}": "([^:./]+)"}.get(each) or re.escape(each)
        for each in pieces
    ]
    found = re.fullmatch("".join(parts), name, re.DOTALL)
    assert pattern.segments(name) == (None if found is None else found.groups())
    assert found is None or name.startswith(pattern.first)


def test_name_that_is_chosen_to_be_hard_costs_no_more_than_others() -> None:
    pattern = Pattern("{identity}:" * 20 + "*a" * 40 + "*b")
    began_s = time.process_time()
    for _ in range(100):
        assert not pattern.matches("a:" * 20 + "a" * 215)
    assert time.process_time() - began_s < 5.0


def test_pattern_is_parsed_once() -> None:
    assert pattern_of("user:{identity}") is pattern_of("user:{identity}")
