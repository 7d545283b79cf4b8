"""snorky.client.realtime.session: the events it delivers while connections fail and move."""

import json
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from session_stage import Stage, heard

from snorky.client.errors import SnorkyError
from snorky.client.realtime.events import Gap, Message, Recovered
from snorky.client.realtime.topic import Topic


def test_messages_come_in_order_with_their_positions() -> None:
    stage = Stage()
    topic = stage.begin(recover=True)
    stage.publish(1, 2)
    stage.gateway.pump()
    assert list(topic.events) == [Message("news", 1, 1, "e1:1:t0"), Message("news", 2, 2, "e1:2:t1")]


def test_what_was_missed_while_the_connection_was_lost_is_recovered_in_order() -> None:
    stage = Stage()
    topic = stage.begin(recover=True)
    stage.publish(1, 2)
    stage.gateway.cut(stage.line, kept=1)
    stage.publish(3)
    stage.settle()
    stage.publish(4)
    stage.gateway.pump()
    assert heard(topic) == [1, "Recovered", 2, 3, 4]
    assert stage.gateway.requests[-1]["params"]["recover"] == "e1:1:t0"
    assert topic.events[1] == Recovered("news", True, "e1:3:t2")


def test_what_can_no_longer_be_had_is_said() -> None:
    stage = Stage()
    topic = stage.begin(recover=True)
    stage.publish(1)
    stage.gateway.pump()
    stage.gateway.cut(stage.line)
    stage.gateway.gap("news")
    stage.publish(7)
    stage.settle()
    stage.publish(8)
    stage.gateway.pump()
    assert heard(topic) == [1, "Recovered", 8]
    assert topic.events[1] == Recovered("news", False, "e1+:1:t0")


def test_gap_of_the_node_is_told_and_gone_on_from() -> None:
    stage = Stage()
    topic = stage.begin(recover=True)
    stage.publish(1)
    stage.gateway.gap("news")
    stage.publish(2, 3)
    stage.gateway.pump()
    assert heard(topic) == [1, "Gap", 2, 3]
    assert topic.events[1] == Gap("news", "e1+:0:t")


def test_more_than_an_answer_brings_is_read_from_history_in_pages() -> None:
    stage = Stage()
    topic = stage.begin(recover=True, events_max=5_000)
    stage.publish(1)
    stage.gateway.pump()
    stage.gateway.cut(stage.line)
    stage.publish(*range(2, 1000))
    stage.settle()
    stage.publish(1000)
    stage.settle(5)
    assert heard(topic) == [1, "Recovered", *range(2, 1001)]
    assert topic.events[1].is_recovered  # type: ignore[union-attr]


def test_more_than_an_answer_brings_of_a_history_that_is_gone_is_said() -> None:
    stage = Stage()
    topic = stage.begin(recover=True)
    stage.publish(1)
    stage.gateway.pump()
    stage.gateway.cut(stage.line)
    stage.publish(*range(2, 1000))
    stage.gateway.kept_from["news"] = 500
    stage.settle()
    stage.publish(1000)
    stage.settle(5)
    assert heard(topic) == [1, "Recovered", 1000]
    assert topic.events[1] == Recovered("news", False, "e1:999:t998")


def test_tombstone_is_marked() -> None:
    stage = Stage()
    topic = stage.begin(recover=True)
    dead = {"type": "message", "channel": "news", "message": None, "offset": 1, "position": "e1:1:t", "tombstone": True}
    stage.gateway.peers[stage.line].to_client.append(json.dumps({"service": "pubsub", "message": dead}))
    stage.gateway.pump()
    assert list(topic.events) == [Message("news", None, 1, "e1:1:t", is_tombstone=True)]


def test_program_that_comes_back_with_a_position_gets_what_it_missed() -> None:
    stage = Stage()
    stage.publish(1, 2, 3)
    topic = stage.begin(recover="e1:1:t0")
    assert heard(topic) == [2, 3]


def test_repetitions_are_dropped_and_counted() -> None:
    stage = Stage()
    topic = stage.begin(recover=True)
    stage.publish(1, 2)
    peer = stage.gateway.peers[stage.line]
    peer.to_client.extend(list(peer.to_client))
    stage.gateway.pump()
    assert (heard(topic), topic.duplicates) == ([1, 2], 2)


def test_hole_that_nobody_told_is_filled() -> None:
    stage = Stage()
    topic = stage.begin(recover=True)
    stage.publish(1, 2, 3)
    del stage.gateway.peers[stage.line].to_client[1]
    stage.gateway.pump()
    stage.publish(4)
    stage.gateway.pump()
    assert heard(topic) == [1, 2, 3, 4]


def test_live_messages_before_the_answer_are_neither_lost_nor_doubled() -> None:
    stage = Stage()
    topic = Topic("pubsub", "news", recover=True)
    stage.session.start()
    stage.gateway.open_one()
    stage.session.subscribe(topic)
    stage.publish(1, 2)
    line = stage.gateway.peers[stage.line].to_client
    line.rotate(-1)  # the reply arrives last
    stage.gateway.pump()
    assert heard(topic) == [1, 2]


def test_plain_channel_says_after_a_loss_that_messages_may_be_missing() -> None:
    stage = Stage()
    topic = stage.begin()
    stage.publish(1)
    stage.gateway.pump()
    stage.gateway.cut(stage.line)
    stage.publish(2)
    stage.settle()
    stage.publish(3)
    stage.gateway.pump()
    assert heard(topic) == [1, "Recovered", 3]
    assert topic.events[1] == Recovered("news", False)


def test_channel_without_history_says_so_after_a_loss() -> None:
    stage = Stage()
    stage.gateway.has_history = False
    topic = stage.begin(recover=True)
    stage.publish(1)
    stage.gateway.pump()
    stage.gateway.cut(stage.line)
    stage.settle()
    stage.publish(2)
    stage.gateway.pump()
    assert heard(topic) == [1, "Recovered", 2]
    assert topic.events[1] == Recovered("news", False)


def test_reader_that_does_not_keep_up_recovers_later_what_was_left() -> None:
    stage = Stage()
    topic = stage.begin(recover=True, events_max=10)
    taken = []
    for number in range(1, 101):
        stage.publish(number)
        stage.gateway.pump()
    assert len(topic.events) <= 11
    while topic.events:
        taken.append(heard(topic)[0])
        topic.events.popleft()
        stage.session.drained(topic)
        stage.gateway.pump()
    assert taken == list(range(1, 101))


def test_plain_reader_that_does_not_keep_up_is_told_what_it_lost() -> None:
    stage = Stage()
    topic = stage.begin(events_max=3)
    stage.publish(1, 2, 3, 4, 5)
    stage.gateway.pump()
    assert heard(topic) == [1, 2, 3, "Gap"]
    topic.events.clear()
    stage.publish(6)
    stage.gateway.pump()
    assert heard(topic) == [6]


def test_refused_topic_tells_why_and_is_forgotten() -> None:
    stage = Stage()
    stage.gateway.refusals.append({"message": "Not authorized", "code": "not_authorized"})
    topic = stage.begin(recover=True)
    assert topic.state == "refused"
    assert isinstance(topic.error, SnorkyError) and topic.error.code == "not_authorized"
    assert stage.session.topics == {}


def test_subscribe_that_is_refused_for_a_moment_is_tried_again() -> None:
    stage = Stage()
    stage.gateway.refusals.append({"message": "Too many", "code": "rate_limited", "retryAfterMs": 300})
    topic = stage.begin(recover=True)
    assert topic.state == "wished"
    stage.settle(2)
    stage.publish(1)
    stage.gateway.pump()
    assert heard(topic) == [1]


def test_line_that_is_said_to_be_subscribed_already_is_abandoned_for_a_new_one() -> None:
    stage = Stage()
    stage.gateway.refusals.append({"message": "Already subscribed", "code": "already_subscribed"})
    topic = stage.begin(recover=True)
    stage.settle(5)
    stage.publish(1)
    stage.gateway.pump()
    assert (heard(topic), topic.state) == ([1], "confirmed")
    assert len(stage.gateway.dials) == 2


def test_second_subscription_to_a_channel_is_refused() -> None:
    stage = Stage()
    stage.begin()
    with pytest.raises(SnorkyError, match="Already subscribed"):
        stage.session.subscribe(Topic("pubsub", "news"))


def test_unsubscribed_channel_may_be_subscribed_again_at_once() -> None:
    stage = Stage()
    first = stage.begin(recover=True)
    stage.publish(1)
    stage.session.unsubscribe(first)
    second = Topic("pubsub", "news", recover=True)
    stage.session.subscribe(second)
    stage.publish(2)
    stage.gateway.pump()
    assert (heard(first), heard(second)) == ([], [2])


def test_gap_that_came_before_the_answer_and_is_covered_by_it_is_not_told() -> None:
    stage = Stage()
    topic = Topic("pubsub", "news", recover=True)
    stage.publish(1)
    stage.session.start()
    stage.gateway.open_one()
    stage.session.subscribe(topic)
    gap = {"type": "gap", "channel": "news", "position": "e1:1:t0"}
    stage.gateway.peers[stage.line].to_client.appendleft(json.dumps({"service": "pubsub", "message": gap}))
    stage.publish(2)
    stage.gateway.pump()
    assert heard(topic) == [2]


def test_hole_between_the_answer_and_what_came_before_it_is_filled_at_once() -> None:
    stage = Stage()
    topic = Topic("pubsub", "news", recover=True)
    stage.session.start()
    stage.gateway.open_one()
    stage.session.subscribe(topic)
    stage.publish(1, 2)
    del stage.gateway.peers[stage.line].to_client[1]  # [0] is the reply, [1] is message 2
    stage.gateway.peers[stage.line].to_client.rotate(1)
    stage.gateway.pump()
    assert heard(topic) == [1, 2]


# -- anything --------------------------------------------------------------------------------------------------------

STEPS = st.lists(
    st.sampled_from(
        ["publish"] * 6 + ["deliver"] * 8 + ["open"] * 3 + ["fail", "cut", "cut_late", "move", "gap", "drop"]
    )
    | st.sampled_from(["wait", "wait_long", "repeat", "take", "trim"]),
    max_size=80,
)


@settings(max_examples=400, suppress_health_check=[HealthCheck.too_slow], deadline=None)
@given(STEPS, st.randoms(use_true_random=False), st.sampled_from([1000, 4]), st.sampled_from([300, 2]))
def test_nothing_is_lost_doubled_or_out_of_order_without_a_word(
    steps: list[str], rng: Any, events_max: int, replay_max: int
) -> None:
    stage = Stage(seed=rng.randrange(1000))
    topic = Topic("pubsub", "news", recover=True, events_max=events_max)
    stage.gateway.replay_max, stage.gateway.page_max = replay_max, 3
    stage.session.start()
    stage.session.subscribe(topic)
    stage.settle(1)
    gateway, number, epoch_begins, taken = stage.gateway, 0, [0], []
    for step in steps:
        lines = gateway.open_lines()
        line = rng.choice(lines) if lines else None
        match step:
            case "publish":
                number += 1
                stage.publish(number)
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
            case "gap":
                gateway.gap("news")
                epoch_begins.append(number)
            case "trim":
                gateway.kept_from["news"] = len(gateway.histories["news"]) + 1
            case "drop" if line is not None and gateway.peers[line].to_client:
                _drop_message(gateway.peers[line].to_client)
            case "repeat" if line is not None and gateway.peers[line].to_client:
                first = gateway.peers[line].to_client[0]
                if isinstance(first, str) and '"message", "channel"' in first:
                    gateway.peers[line].to_client.appendleft(first)
            case "wait":
                stage.clock.advance(0.1)
            case "wait_long":
                stage.clock.advance(8)
            case "take" if topic.events:
                taken.append(topic.events.popleft())
                stage.session.drained(topic)
    for _ in range(3):  # let messages in flight arrive
        stage.settle(60)
        while topic.events:
            taken.append(topic.events.popleft())
            stage.session.drained(topic)
            gateway.pump()
        number += 1
        stage.publish(number)
        stage.settle(5)
    taken += topic.events
    _judge(taken, number, may_be_gone="gap" in steps or "trim" in steps)


def _drop_message(queue: Any) -> None:
    first = queue[0]
    if isinstance(first, str) and '"type": "message"' in first:
        queue.popleft()


def _judge(events: list[Any], last: int, *, may_be_gone: bool) -> None:
    """Check that each message comes once and in order; where some are missing, the event before reports it."""
    expected, is_hole_told = 1, False
    assert may_be_gone or all(not isinstance(event, Gap) and getattr(event, "is_recovered", True) for event in events)
    for event in events:
        if isinstance(event, Message):
            assert event.data == expected or (is_hole_told and event.data > expected), events
            expected, is_hole_told = event.data + 1, False
        elif isinstance(event, Gap) or not event.is_recovered:
            is_hole_told = True
    assert expected == last + 1, (expected, last, events)
