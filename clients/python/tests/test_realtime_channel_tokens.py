"""snorky.client.realtime: how a client gets subscription tokens, and renews them."""

import logging
from typing import Any

import pytest
from session_stage import Stage, heard
from token_scene import Scene, error_of, fixed

from snorky.client.realtime.channel_token import UnusableToken, check_channel_token
from snorky.client.realtime.topic import Topic


def test_each_subscribe_has_a_token_of_its_own() -> None:
    scene = Scene()
    topic = scene.begin()
    scene.publish(1)
    scene.gateway.cut(scene.line)
    scene.settle(30)
    assert scene.sent("subscribe") == [("subscribe", "t1"), ("subscribe", "t2")]
    assert heard(topic) == [1, "Recovered"] or heard(topic) == ["Recovered", 1]


def test_other_channels_do_not_wait_for_a_token() -> None:
    scene = Scene()
    topic = Stage.begin(scene, token=scene.tokens.source(), recover=True)
    scene.gateway.lifetime_s = None
    other = Topic("pubsub", "other", recover=True)
    scene.session.subscribe(other)
    scene.gateway.publish("other", 1)
    scene.gateway.pump()
    assert heard(other) == [1] and topic.state == "wished"
    assert [each["params"]["channel"] for each in scene.gateway.requests] == ["other"]


def test_token_is_refreshed_in_place_before_it_expires() -> None:
    scene = Scene()
    topic = scene.begin()
    asked_at_s = []
    for second in range(300):
        scene.publish(second)
        scene.settle(1)
        if scene.tokens.calls > 1 + len(asked_at_s):
            asked_at_s.append(second)
    assert heard(topic) == list(range(300))
    assert 3 <= len(asked_at_s) <= 4 and 64 <= asked_at_s[0] <= 81
    assert scene.sent("subscribe", "unsubscribe") == [("subscribe", "t1")]
    refreshes = [("refreshSubscription", f"t{number}") for number in range(2, 2 + len(asked_at_s))]
    assert scene.sent("refreshSubscription") == refreshes


def test_refreshes_of_a_short_token_are_a_second_apart() -> None:
    scene = Scene(lifetime_s=0)
    scene.begin()
    scene.settle(60)
    assert 50 <= scene.tokens.calls <= 61


def test_function_that_fails_is_called_again_less_and_less_often(caplog: pytest.LogCaptureFixture) -> None:
    scene = Scene()
    topic = Stage.begin(scene, token=scene.tokens.source(), recover=True)
    for _ in range(600):
        while scene.tokens.waiting:
            scene.tokens.settle(error=OSError("backend is down"))
        scene.clock.advance(1)
    assert 20 <= scene.tokens.calls <= 30 and topic.state == "wished"
    warnings = [each for each in caplog.records if each.levelno == logging.WARNING]
    assert ["OSError: backend is down" in each.getMessage() for each in warnings] == [True]
    scene.settle(32)
    assert topic.state == "confirmed"


def test_failed_refresh_is_tried_again_until_the_token_has_expired() -> None:
    scene = Scene()
    topic = scene.begin()
    for _ in range(95):
        while scene.tokens.waiting:
            scene.tokens.settle(error=OSError("backend is down"))
        scene.clock.advance(1)
    scene.publish(1)
    scene.gateway.end("news")
    scene.publish(2)
    scene.settle(5)
    assert scene.tokens.calls >= 5
    assert heard(topic) == [1, 2] and topic.error is None
    assert scene.sent("subscribe", "unsubscribe", "refreshSubscription") == [("subscribe", "t1"), ("subscribe", "t2")]


@pytest.mark.parametrize("code", ["unavailable", "token_expired", "invalid_token", "revoked", "not_authorized"])
def test_refused_refresh_is_tried_again_with_another_token(code: str) -> None:
    scene = Scene()
    topic = scene.begin()
    scene.gateway.refused_tokens = {"t2": {"message": "No", "code": code}, "t3": {"message": "No", "code": code}}
    for number in range(90):
        scene.publish(number)
        scene.settle(1)
    assert heard(topic) == list(range(90)) and topic.state == "confirmed"
    assert [token for _command, token in scene.sent("refreshSubscription")] == ["t2", "t3", "t4"]
    assert len(scene.sent("subscribe")) == 1


def test_time_of_a_refused_refresh_is_kept() -> None:
    scene = Scene()
    scene.begin()
    scene.gateway.refused_tokens = {"t2": {"message": "Busy", "code": "limit_exceeded", "retryAfterMs": 15_000}}
    scene.settle(81)
    assert len(scene.sent("refreshSubscription")) == 1
    scene.settle(16)
    assert len(scene.sent("refreshSubscription")) == 2


def test_refresh_without_a_subscription_subscribes_again() -> None:
    scene = Scene()
    topic = scene.begin()
    scene.publish(1)
    scene.gateway.pump()
    scene.gateway.peers[scene.line].channels.clear()  # the node lost it without a word
    scene.publish(2)
    scene.settle(90)
    assert heard(topic) == [1, 2]


def test_expired_token_in_reply_to_subscribe_is_replaced() -> None:
    scene = Scene()
    scene.gateway.refused_tokens = {f"t{n}": {"message": "Old", "code": "token_expired"} for n in range(1, 9)}
    topic = scene.begin()
    scene.settle(10)
    assert 3 <= len(scene.sent("subscribe")) <= 5, "the delays grow"
    assert topic.state == "wished" and topic.error is None
    scene.settle(150)
    assert topic.state == "confirmed" and scene.sent("subscribe")[-1] == ("subscribe", "t9")
    assert not scene.sent("unsubscribe")


@pytest.mark.parametrize("code", ["invalid_token", "not_authorized", "revoked", "not_configured"])
def test_refused_subscribe_ends_the_subscription_with_the_reason(code: str) -> None:
    scene = Scene()
    scene.gateway.refused_tokens = {"t1": {"message": "No", "code": code}}
    topic = scene.begin()
    scene.gateway.cut(scene.line)
    scene.settle()
    assert error_of(topic) == (code, "No")
    assert scene.tokens.calls == 1 and len(scene.sent("subscribe")) == 1


def test_client_that_may_not_have_a_token_is_refused() -> None:
    scene = Scene()
    topic = Stage.begin(scene, token=scene.tokens.source())
    scene.tokens.settle(None)
    assert error_of(topic)[0] == "not_authorized"
    scene.settle()
    assert not scene.gateway.requests


def test_client_that_may_no_longer_have_a_token_unsubscribes() -> None:
    scene = Scene()
    topic = scene.begin()
    scene.publish(1)
    scene.gateway.pump()
    while not scene.tokens.waiting:
        scene.clock.advance(1)
    scene.tokens.settle(None)
    scene.publish(2)
    scene.settle()
    assert error_of(topic)[0] == "not_authorized" and heard(topic) == [1]
    assert scene.sent("subscribe", "unsubscribe") == [("subscribe", "t1"), ("unsubscribe", None)]


def test_what_is_no_token_ends_the_subscription() -> None:
    scene = Scene()
    topic = Stage.begin(scene, token=scene.tokens.source())
    scene.tokens.settle(error=UnusableToken("token: a text is expected"))
    assert isinstance(topic.error, ValueError) and topic.state == "refused"


@pytest.mark.parametrize("wrong", [7, b"abc", "", "two words", "a\nb", "\ud800", "x" * 8193])
def test_values_that_are_no_token(wrong: Any) -> None:
    with pytest.raises(UnusableToken) as caught:
        check_channel_token(wrong)
    assert not wrong or str(wrong) not in str(caught.value)
    assert check_channel_token("a.b-c_d.e") == "a.b-c_d.e"


def test_fixed_token_is_the_only_one() -> None:
    scene = Scene(lifetime_s=1)
    topic = scene.begin(token=fixed("only"))
    scene.gateway.cut(scene.line)
    scene.settle(30)
    assert scene.sent("subscribe", "refreshSubscription") == [("subscribe", "only"), ("subscribe", "only")]
    scene.publish(1)
    scene.gateway.end("news")
    scene.publish(2)
    scene.settle()
    assert heard(topic) == ["Recovered", 1] and error_of(topic) == ("expired", "It is expired")
    assert len(scene.sent("subscribe")) == 2


def test_fixed_token_that_has_expired_is_refused() -> None:
    scene = Scene()
    scene.gateway.refused_tokens = {"only": {"message": "Old", "code": "token_expired"}}
    topic = scene.begin(token=fixed("only"))
    assert error_of(topic) == ("token_expired", "Old")
