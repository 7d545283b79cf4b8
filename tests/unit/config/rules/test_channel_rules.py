"""gateway/config/rules/channel_rules.py: which rule applies to a channel, and valid settings."""

import re
import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from snorky.gateway.config.rules.channel_rules import ChannelRule, Rules
from snorky.gateway.errors import ConfigurationError


def test_first_match_counts_alone() -> None:
    rules = Rules.read([{"match": "chat:*", "history": 10}, {"match": "chat:a", "presence": True}, {"match": "*"}])
    found = rules.find("chat:a")
    assert (found.match, found.history, found.presence) == ("chat:*", 10, False)
    assert rules.find("news").match == "*"


def test_channel_without_a_rule_has_the_defaults() -> None:
    found = Rules().find("anything")
    assert (found.history, found.presence, found.join_leave, found.allow_publish) == (0, False, False, None)
    assert not Rules()


@pytest.mark.parametrize(
    ("pattern", "name", "expected"),
    [
        ("news", "news", True),
        ("news", "news2", False),
        ("news", "new", False),
        ("*", "", True),
        ("chat:*", "chat:", True),
        ("chat:*", "chat:a\nb", True),
        ("*:log", "a:log", True),
        ("*:log", "log", False),
        ("a*a", "a", False),  # the ends do not share a letter
        ("a*a", "aa", True),
        ("a*b*c", "a-b-c", True),
        ("a*b*c", "acb", False),
        ("a*bc*c", "abc", False),
        ("a**c", "ac", True),
        ("[ab]?", "a1", False),  # nothing else is special
        ("[ab]?", "[ab]?", True),
        ("~*", '~{"room":5}', True),
    ],
)
def test_asterisk_is_any_run_and_nothing_else_is_special(pattern: str, name: str, expected: bool) -> None:
    assert ChannelRule(pattern).matches(name) is expected


@given(pattern=st.text("ab*.", min_size=1, max_size=8), name=st.text("ab.", max_size=8))
def test_matching_agrees_with_a_regular_expression(pattern: str, name: str) -> None:
    expression = ".*".join(map(re.escape, pattern.split("*")))
    expected = bool(re.fullmatch(expression, name, re.DOTALL))
    assert ChannelRule(pattern).matches(name) is expected
    assert (Rules([ChannelRule(pattern)]).find(name).match == pattern) is (expected or pattern == "*")


def test_name_that_is_chosen_to_be_hard_costs_no_more_than_others() -> None:
    rule = ChannelRule("*a" * 100 + "*b")  # backtracking would practically never end
    began_s = time.process_time()
    for _ in range(100):
        assert not rule.matches("a" * 255)
    assert time.process_time() - began_s < 5.0


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        ({"match": "*"}, 'channels must be a list of tables: write [[channels]] with match = "chat:*"'),
        (["chat:*"], 'channels, rule 1: must be a table: match = "chat:*"'),
        ([{"history": 5}], 'channels, rule 1: needs match = "chat:*"'),
        ([{"match": "a", "histroy": 5}], "channels, rule 1: unknown key 'histroy'; did you mean history?"),
        ([{"match": "a", "zzz": 5}], "unknown key 'zzz'; known are match, history, history_ttl_s, recovery"),
        ([{"match": "a", "history": "5"}], "rule 1: history: expected `int`, got `str`; write history = 1000"),
        ([{"match": "a", "history": -1}], "rule 1: history: expected `int` >= 0; write history = 1000"),
        ([{"match": "a", "history": 1, "history_ttl_s": 0}], "history_ttl_s: expected `float` > 0.0; write"),
        ([{"match": "a", "presence": 1}], "presence: expected `bool`, got `int`; write presence = true"),
        ([{"match": ""}], "match: expected `str` of length >= 1"),
        ([{"match": "a\n"}], "match: expected `str` matching regex"),
        ([{"match": "a", "join_leave": True}], "add presence = true"),
        ([{"match": "a", "history_ttl_s": 5.0}], "history_ttl_s means nothing without history"),
        ([{"match": "*"}, {"match": "a"}], "rule 1: matches everything, so later rules never apply"),
    ],
)
def test_errors_name_the_rule_and_the_key(written: Any, expected: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        Rules.read(written)
    assert expected in str(caught.value)


def test_every_problem_is_reported_at_once() -> None:
    with pytest.raises(ConfigurationError) as caught:
        Rules.read([{"match": ""}, {"match": "b"}, {"history": 1}])
    assert str(caught.value).count("rule ") == 2


def test_rules_of_a_program_are_taken_as_they_are() -> None:
    rules = Rules([ChannelRule("a", history=3)])
    assert Rules.read(rules) is rules
    assert Rules.read([ChannelRule("a", history=3)]) == rules
