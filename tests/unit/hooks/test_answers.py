"""Meaning of a backend's answers, and which answers contradict themselves."""

import json
import math
from typing import Any

import pytest

from snorky.gateway.contracts.hooks import Answer, Question
from snorky.gateway.hooks.answers import CallFailed, read_verdict

ANONYMOUS = Question(operation="connect", identity=None, claims={}, address="")
ANN = Question(operation="connect", identity="ann", claims={}, address="")
SUBSCRIBE = Question(operation="subscribe", identity="ann", claims={}, address="", service="pubsub", channel="news")


def read(question: Question, **answer: Any) -> Answer | None:
    return read_verdict(question, 200, json.dumps(answer).encode(), asked_at_s=100.0).allowed


def test_an_answer_may_say_who_an_anonymous_client_is() -> None:
    assert read(ANONYMOUS, allow=True) == Answer(asked_at_s=100.0)
    assert read(ANONYMOUS, allow=True, identity=None, claims=None, expires_in_s=None) == Answer(asked_at_s=100.0)
    assert read(ANONYMOUS, allow=True, identity=7) == Answer("~7", {}, math.inf, 100.0)
    found = read(ANONYMOUS, allow=True, identity="ann", claims={"shops": [1]}, expires_in_s=0.5)
    assert found == Answer("ann", {"shops": [1]}, 100.5, 100.0)


def test_no_is_no_whatever_else_is_said() -> None:
    assert read(ANONYMOUS, allow=False, identity="ann") is None
    assert read_verdict(ANN, 403, b'{"allow": true}', asked_at_s=0.0).allowed is None


@pytest.mark.parametrize(
    "answer",
    [
        {"identity": ""},
        {"identity": "a\n"},
        {"identity": "~7"},
        {"identity": True},
        {"identity": ["ann"]},
        {"identity": "x" * 256},
        {"claims": {"a": 1}},
        {"expires_in_s": 5},
        {"identity": "ann", "claims": [1]},
        {"identity": "ann", "expires_in_s": 0},
        {"identity": "ann", "expires_in_s": -1},
        {"identity": "ann", "expires_in_s": True},
        {"identity": "ann", "expires_in_s": "5"},
    ],
)
def test_contradictions_are_failures(answer: dict[str, Any]) -> None:
    with pytest.raises(CallFailed):
        read(ANONYMOUS, allow=True, **answer)


def test_an_answer_changes_nothing_of_a_token() -> None:
    assert read(ANN, allow=True, identity="ann") == Answer(asked_at_s=100.0)
    for answer in ({"identity": "bob"}, {"identity": "ann", "claims": {}}, {"identity": "ann", "expires_in_s": 5}):
        with pytest.raises(CallFailed):
            read(ANN, allow=True, **answer)


def test_only_connect_says_who() -> None:
    assert read(SUBSCRIBE, allow=True, identity="bob", claims=1) == Answer(asked_at_s=100.0)
