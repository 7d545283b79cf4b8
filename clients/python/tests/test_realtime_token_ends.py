"""snorky.client.realtime: subscriptions whose token expires, moves with tokens, and slow readers."""

from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from session_stage import Stage, heard
from token_scene import Scene, error_of

from snorky.client.realtime.events import Message
from snorky.client.realtime.topic import Topic


def test_expired_subscription_is_made_again_from_its_last_position() -> None:
    scene = Scene()
    topic = scene.begin()
    scene.publish(1)
    scene.gateway.end("news")
    scene.publish(2, 3)
    scene.settle(2)
    scene.publish(4)
    scene.gateway.pump()
    assert heard(topic) == [1, 2, 3, 4]
    assert scene.sent("subscribe", "unsubscribe") == [("subscribe", "t1"), ("subscribe", "t2")]


def test_expired_subscriptions_are_made_again_once_a_second() -> None:
    scene = Scene(lifetime_s=0)
    topic = scene.begin()
    for _ in range(40):
        scene.gateway.end("news")
        scene.settle(0.25)
    assert len(scene.sent("subscribe")) <= 12 and topic.error is None


def test_expired_subscription_without_positions_says_that_messages_may_be_missing() -> None:
    scene = Scene()
    topic = scene.begin(recover=False)
    scene.publish(1)
    scene.gateway.end("news")
    scene.publish(2)
    scene.settle(3)
    scene.publish(3)
    scene.gateway.pump()
    assert heard(topic) == [1, "Recovered", 3] and not topic.events[1].is_recovered  # type: ignore[union-attr]


@pytest.mark.parametrize("code", ["revoked", "not_authorized", "unsubscribed", "another"])
@pytest.mark.parametrize("has_token", [True, False])
def test_other_ends_are_final_and_told(code: str, has_token: bool) -> None:
    scene = Scene()
    if not has_token:
        scene.gateway.lifetime_s = None
    topic = scene.begin(**({} if has_token else {"token": None}))
    scene.publish(1)
    scene.gateway.end("news", code)
    scene.publish(2)
    scene.gateway.pump()
    scene.gateway.cut(scene.line)
    scene.settle(200)
    scene.publish(3)
    scene.gateway.pump()
    assert heard(topic) == [1] and error_of(topic) == (code, f"It is {code}")
    assert len(scene.sent("subscribe")) == 1 and not scene.sent("unsubscribe")
    again = Topic("pubsub", "news", recover=True, token=scene.tokens.source() if has_token else None)
    scene.session.subscribe(again)
    scene.settle(1)
    assert again.state == "confirmed"


def test_channel_that_expires_without_a_token_of_its_own_ends() -> None:
    stage = Stage()
    topic = stage.begin(recover=True)
    stage.gateway.end("news")
    stage.settle()
    assert error_of(topic)[0] == "expired"


def test_end_of_an_earlier_subscription_does_not_end_the_next_one() -> None:
    scene = Scene()
    topic = scene.begin()
    scene.publish(1)
    scene.gateway.pump()
    scene.publish(2, 3)
    queue = scene.gateway.peers[scene.line].to_client
    del queue[0]  # a hole: the client unsubscribes and subscribes again
    scene.gateway.end("news")  # before the node has read that
    scene.gateway.deliver(scene.line)
    scene.tokens.give()
    answer = queue.pop()
    scene.publish(4)  # live messages may arrive before the reply
    queue.append(answer)
    scene.gateway.pump()
    assert heard(topic) == [1, 2, 3, 4]
    assert scene.sent("subscribe") == [("subscribe", "t1"), ("subscribe", "t2")]


def test_withdrawn_subscription_asks_for_no_token_and_sends_nothing() -> None:
    scene = Scene()
    topic = Stage.begin(scene, token=scene.tokens.source())
    scene.session.unsubscribe(topic)
    assert scene.tokens.calls == 1 and not scene.tokens.waiting
    scene.settle()
    assert not scene.gateway.requests


def test_jobs_end_with_their_connections_and_with_the_session() -> None:
    scene = Scene()
    scene.begin()
    tokens = scene.session._subscriptions._tokens
    for _ in range(5):
        scene.gateway.cut(scene.line)
        scene.settle(10)
    assert len(tokens) == 1
    scene.gateway.move(scene.line)
    scene.settle(10)
    assert len(tokens) == 1
    scene.session.close()
    assert len(tokens) == 0


def test_move_waits_for_the_token_and_loses_nothing() -> None:
    for recover in (True, False):
        scene = Scene()
        topic = scene.begin(recover=recover)
        old = scene.line
        scene.gateway.move(old)
        scene.gateway.pump()
        scene.clock.advance(1)
        scene.gateway.pump()
        scene.publish(1)
        scene.gateway.pump()
        assert scene.tokens.waiting and not old.has_ended
        scene.publish(2)
        scene.settle(5)
        scene.publish(3)
        scene.gateway.pump()
        assert heard(topic) == [1, 2, 3] and old.has_ended


@pytest.mark.parametrize("is_ready", [True, False])
def test_plain_channel_whose_token_expires_during_a_move_continues_on_the_new_connection(is_ready: bool) -> None:
    scene = Scene()
    other = Topic("pubsub", "other", token=scene.tokens.source())
    topic = scene.begin(recover=False)
    scene.session.subscribe(other)
    scene.tokens.give()
    scene.gateway.pump()
    old = scene.line
    scene.gateway.move(old)
    scene.gateway.pump()
    scene.clock.advance(1)
    scene.gateway.pump()
    (for_topic, _for_other) = scene.tokens.waiting  # the move waits for the other one
    if is_ready:
        for_topic("t2", None)
        scene.gateway.pump()
    scene.publish(1)
    scene.gateway.pump()
    scene.gateway.end("news", line=old)
    scene.publish(2)
    scene.gateway.pump()
    if not is_ready:
        for_topic("t2", None)
        scene.gateway.pump()
    scene.clock.advance(1)
    scene.publish(3)
    for_old = scene.tokens.waiting.pop()
    for_old("t3", None)
    scene.gateway.pump()
    scene.publish(4)
    scene.settle(5)
    scene.publish(5)
    scene.gateway.pump()
    assert old.has_ended
    assert heard(topic) == ([1, 2, 3, 4, 5] if is_ready else [1, "Recovered", 3, 4, 5])


def test_token_for_a_connection_that_a_move_has_replaced_is_not_sent() -> None:
    scene = Scene()
    topic = scene.begin()
    old = scene.line
    scene.gateway.is_silent = True
    scene.session.call("test", "slow", {}, scene.done)  # keeps the old connection open after the move
    scene.gateway.is_silent = False
    scene.gateway.move(old)
    scene.gateway.pump()
    scene.clock.advance(1)
    while scene.gateway.dialled:
        scene.gateway.open_one()
    scene.gateway.end("news", line=old)
    scene.gateway.deliver(old)
    scene.clock.advance(1)
    (newer, older) = scene.tokens.waiting
    newer("t2", None)
    scene.gateway.pump()
    scene.clock.advance(2)
    assert len(scene.gateway.open_lines()) == 2 and old.is_leaving
    older("t3", None)
    scene.publish(1)
    scene.gateway.pump()
    assert heard(topic) == [1]
    assert scene.sent("subscribe") == [("subscribe", "t1"), ("subscribe", "t2")]


def test_slow_reader_reads_the_history_that_its_token_permits() -> None:
    scene = Scene()
    topic = scene.begin(events_max=4)
    taken: list[Any] = []
    for number in range(1, 41):
        scene.publish(number)
        scene.gateway.pump()
    scene.gateway.end("news")  # while it catches up
    scene.gateway.page_max = 3
    scene.publish(41)
    for _ in range(60):
        scene.settle(1)
        while topic.events:
            taken.append(topic.events.popleft())
            scene.session.drained(topic)
    scene.publish(42)
    scene.gateway.pump()
    assert [event.data for event in [*taken, *topic.events]] == list(range(1, 43))


def test_history_that_is_refused_because_the_token_has_expired_is_read_later() -> None:
    scene = Scene()
    scene.gateway.replay_max = scene.gateway.page_max = 2
    topic = scene.begin(events_max=4)
    scene.publish(*range(1, 11))
    scene.gateway.pump()
    scene.gateway.end("news")
    taken = []
    while topic.events:
        taken.append(topic.events.popleft())
        scene.session.drained(topic)  # asks for history before it hears of the end
    assert scene.sent("history")
    for _ in range(10):
        scene.settle(1)
        while topic.events:
            taken.append(topic.events.popleft())
            scene.session.drained(topic)
    assert [event.data for event in taken] == list(range(1, 11))


STEPS = st.lists(
    st.sampled_from(
        [
            *["publish", "publish", "publish", "deliver", "deliver", "deliver", "open", "fail", "cut", "cut_late"],
            *["move", "expire", "expire", "token", "token", "token", "token_fails", "token_refused"],
            *["wait", "wait_long", "take"],
        ]
    ),
    max_size=150,
)


@settings(max_examples=500, suppress_health_check=[HealthCheck.too_slow], deadline=None)
@given(STEPS, st.randoms(use_true_random=False), st.sampled_from([1000, 4]), st.sampled_from([300, 2]), st.booleans())
def test_nothing_is_lost_or_doubled_while_tokens_expire(
    steps: list[str], rng: Any, events_max: int, replay_max: int, is_plain: bool
) -> None:
    scene = Scene(lifetime_s=rng.choice([0, 3, 20, 1000]), seed=rng.randrange(1000))
    gateway, tokens = scene.gateway, scene.tokens
    topic = Topic("pubsub", "news", recover=not is_plain, events_max=events_max, token=tokens.source())
    gateway.replay_max, gateway.page_max = replay_max, 3
    scene.session.start()
    scene.session.subscribe(topic)
    scene.settle(1)
    number, taken = 0, []
    for step in steps:
        lines = gateway.open_lines()
        line = rng.choice(lines) if lines else None
        match step:
            case "publish":
                number += 1
                scene.publish(number)
            case "deliver" if line is not None:
                gateway.deliver(line)
            case "open" if gateway.dialled:
                gateway.open_one()
            case "fail" if gateway.dialled:
                gateway.fail_one()
            case "cut" if line is not None:
                gateway.cut(line)
            case "cut_late" if line is not None:
                gateway.cut(line, 1001, kept=rng.randrange(5))
            case "move" if line is not None:
                gateway.move(line)
            case "expire" if line is not None:
                gateway.end("news", line=line)
            case "token" if tokens.waiting:
                tokens.given += 1
                tokens.settle(f"t{tokens.given}")
            case "token_fails" if tokens.waiting:
                tokens.settle(error=OSError())
            case "token_refused" if tokens.waiting:
                code = rng.choice(["token_expired", "unavailable"])
                gateway.refused_tokens["old"] = {"message": "No", "code": code}
                tokens.settle("old")
            case "wait":
                scene.clock.advance(0.1)
            case "wait_long":
                scene.clock.advance(8)
            case "take" if topic.events:
                taken.append(topic.events.popleft())
                scene.session.drained(topic)
    for _ in range(3):  # let messages in flight arrive
        scene.settle(60)
        while topic.events:
            taken.append(topic.events.popleft())
            scene.session.drained(topic)
            gateway.pump()
            tokens.give()
            gateway.pump()
        number += 1
        scene.publish(number)
        scene.settle(5)
    taken += topic.events
    assert topic.error is None
    if is_plain:  # messages may be missing, but it does not stay that way
        assert isinstance(taken[-1], Message) and taken[-1].data == number
        return
    assert [event.data for event in taken if isinstance(event, Message)] == list(range(1, number + 1))
    assert all(event.is_recovered for event in taken if not isinstance(event, Message))
