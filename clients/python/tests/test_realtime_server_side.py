"""snorky.client.realtime: subscriptions that the backend begins and ends."""

import random
from typing import Any

from session_stage import Stage, heard

from snorky.client.errors import SnorkyError


def started(**options: Any) -> Stage:
    stage = Stage(**options)
    stage.session.start()
    stage.gateway.pump()
    return stage


def sent(stage: Stage, *commands: str) -> list[Any]:
    return [each["params"] for each in stage.gateway.requests if each["command"] in (commands or ("subscribe",))]


def test_messages_follow_the_notification_without_a_request() -> None:
    stage = started()
    stage.publish(1)
    stage.gateway.order("news", recover="e1:0:t")
    stage.publish(2)
    stage.gateway.pump()
    (news,) = stage.begun
    assert (heard(news), news.state, str(news.position)) == ([1, 2], "confirmed", "e1:2:t1")
    assert stage.gateway.requests == []


def test_missed_messages_are_recovered_on_the_next_connection() -> None:
    stage = started()
    stage.gateway.order("news")
    stage.publish(1)
    stage.gateway.pump()
    stage.gateway.cut(stage.line)
    stage.publish(2, 3)
    stage.gateway.pump()
    while not stage.gateway.open_lines():
        stage.clock.advance(0.25)
        if stage.gateway.dialled:
            stage.gateway.open_one()
    stage.gateway.restore(stage.line)
    stage.publish(4)
    stage.settle(5)
    (news,) = stage.begun
    assert heard(news) == [1, "Recovered", 2, 3, 4]
    assert sent(stage) == [{"channel": "news", "serverSide": True, "recover": "e1:1:t0"}]


def test_end_that_was_missed_ends_the_topic_and_the_backend_may_begin_again() -> None:
    stage = started()
    stage.gateway.order("news")
    stage.gateway.pump()
    stage.gateway.server_side.clear()
    stage.gateway.cut(stage.line)
    stage.settle(30)
    (news,) = stage.begun
    assert isinstance(news.error, SnorkyError) and news.error.code == "not_subscribed"
    stage.gateway.order("news")
    stage.gateway.pump()
    assert len(stage.begun) == 2 and stage.begun[1].state == "confirmed"


def test_backend_ends_it() -> None:
    stage = started()
    stage.gateway.order("news")
    stage.gateway.pump()
    stage.gateway.server_side.clear()
    stage.gateway.end("news", "unsubscribed")
    stage.gateway.pump()
    (news,) = stage.begun
    assert isinstance(news.error, SnorkyError) and news.error.code == "unsubscribed"
    assert not stage.session.topics


def test_slow_reader_reads_history_and_stays_subscribed_meanwhile() -> None:
    stage = started()
    stage.events_max = 10
    stage.gateway.order("news")
    stage.gateway.pump()
    (news,) = stage.begun
    stage.publish(*range(100))
    stage.gateway.pump()
    read: list[Any] = []
    for _ in range(60):
        stage.settle(1)
        read += heard(news)
        news.events.clear()
        stage.session.drained(news)
    assert read == list(range(100))
    assert sent(stage, "unsubscribe") == []
    assert sent(stage, "history")


def test_program_closes_it() -> None:
    stage = started()
    stage.gateway.order("news")
    stage.gateway.pump()
    (news,) = stage.begun
    stage.session.unsubscribe(news)
    assert sent(stage, "unsubscribe") == [{"channel": "news"}]
    assert news.state == "closed" and not stage.session.topics


def test_own_subscription_is_left_as_it_is_and_unwanted_orders_are_notifications() -> None:
    stage = Stage()
    news = stage.begin(recover=True)
    stage.gateway._say(stage.gateway.peers[stage.line], "pubsub", {"type": "subscribed", "channel": "news"})
    stage.publish(1)
    stage.gateway.pump()
    assert (heard(news), stage.begun) == ([1], [])
    told: list[Any] = []
    stage.session._on_notification = lambda service, message: told.append((service, message["type"]))
    stage.wants_orders = False
    stage.gateway.order("other")
    stage.gateway.publish("other", 1)
    stage.gateway.pump()
    assert told == [("pubsub", "subscribed"), ("pubsub", "message")]


def test_move_loses_and_repeats_nothing() -> None:
    stage = started()
    stage.gateway.order("news")
    stage.gateway.pump()
    old = stage.line
    stage.gateway.move(old)
    for number in range(60):
        stage.publish(number)
        stage.settle(0.25)
        for line in stage.gateway.open_lines():
            stage.gateway.restore(line)
    stage.settle(5)
    (news,) = stage.begun
    assert stage.line is not old
    assert [each for each in heard(news) if each != "Recovered"] == list(range(60))


def test_messages_are_delivered_once_and_in_order_over_a_bad_network() -> None:
    for seed in range(60):
        stage, chance = started(seed=seed), random.Random(seed)
        stage.gateway.order("news")
        stage.gateway.pump()
        for number in range(120):
            stage.publish(number)
            lines = stage.gateway.open_lines()
            match chance.randrange(8):
                case 0 if lines:
                    stage.gateway.cut(chance.choice(lines), kept=chance.randrange(3))
                case 1 if stage.gateway.dialled:
                    stage.gateway.open_one()
                case 2 if lines:
                    stage.gateway.restore(chance.choice(lines))
                case 3 if lines:
                    stage.gateway.move(chance.choice(lines))
                case _:
                    stage.clock.advance(chance.random())
            for line in stage.gateway.open_lines():
                for _ in range(chance.randrange(4)):
                    stage.gateway.deliver(line)
        stage.settle(60)
        (news,) = stage.begun
        assert [each for each in heard(news) if each != "Recovered"] == list(range(120)), seed
