"""Moves to another node, before the connection breaks, and subscriptions during them."""

from session_stage import Stage, heard, publish

from snorky.client.realtime.events import Message
from snorky.client.realtime.topic import Topic


def test_move_is_made_before_the_old_connection_breaks_and_nobody_notices() -> None:
    stage = Stage()
    topic = stage.begin(recover=True)
    old = stage.line
    stage.publish(1)
    stage.gateway.move(old)
    stage.gateway.pump()
    stage.clock.advance(0.5)
    stage.publish(2)
    stage.gateway.open_one()
    assert len(stage.gateway.open_lines()) == 2
    stage.publish(3)  # arrives on both lines
    stage.gateway.pump()
    stage.publish(4)
    stage.settle(2)
    stage.publish(5)
    stage.gateway.pump()
    assert heard(topic) == [1, 2, 3, 4, 5]
    assert stage.line is not old
    assert len(stage.gateway.dials) == 2


def test_move_without_positions_compares_contents() -> None:
    stage = Stage()
    topic = stage.begin()
    stage.gateway.move(stage.line)
    stage.gateway.pump()
    stage.clock.advance(0.5)
    stage.gateway.open_one()
    stage.publish(1, 2)
    stage.gateway.pump()
    stage.settle(2)
    stage.publish(3)
    stage.gateway.pump()
    assert heard(topic) == [1, 2, 3]
    assert topic.duplicates == 2


def test_old_connection_that_breaks_during_a_move_loses_nothing() -> None:
    stage = Stage()
    topic = stage.begin(recover=True)
    old = stage.line
    stage.gateway.move(old)
    stage.gateway.pump()
    stage.clock.advance(0.5)
    stage.gateway.open_one()
    stage.publish(1, 2)
    stage.gateway.cut(old, 1001)
    stage.settle()
    stage.publish(3)
    stage.gateway.pump()
    assert [each for each in heard(topic) if each != "Recovered"] == [1, 2, 3]


def test_topic_that_is_asked_for_during_a_move_stays_with_the_next_connection() -> None:
    stage = Stage()
    stage.session.start()
    stage.gateway.open_one()
    old = stage.line
    stage.gateway.move(old)
    stage.gateway.pump()
    stage.clock.advance(0.5)
    stage.session.subscribe(topic := Topic("pubsub", "news", recover=True))
    (new,) = stage.gateway.dialled
    stage.gateway.open_one()
    assert stage.gateway.deliver(new)  # the old line's reply is slower
    stage.settle(5)
    stage.publish(1)
    stage.gateway.pump()
    assert stage.line is new
    assert heard(topic) == [1]


def test_answer_to_a_subscribe_that_was_given_up_is_nobodys() -> None:
    stage = Stage()
    topic = stage.begin(recover=True, events_max=2)
    stage.gateway.move(stage.line)
    stage.gateway.pump()
    stage.clock.advance(0.5)
    old = stage.line
    stage.publish(1, 2, 3)
    stage.gateway.open_one()  # subscribes there; the reply is in flight while the reader falls behind here
    while stage.gateway.deliver(old):
        pass
    assert topic.is_parked
    stage.gateway.pump()
    assert topic.is_parked and len(topic.events) == 2
    taken = []
    while topic.events:
        taken.append(topic.events.popleft())
        stage.session.drained(topic)
        stage.settle(2)
    assert [event.data for event in taken if isinstance(event, Message)] == [1, 2, 3]


def test_parked_topic_is_not_asked_for_on_a_new_connection() -> None:
    stage = Stage()
    topic = stage.begin(recover=True, events_max=1)
    stage.publish(1)
    stage.gateway.pump()
    assert topic.is_parked
    stage.gateway.cut(stage.line)
    before = len(stage.gateway.requests)
    stage.settle(5)
    assert stage.gateway.requests[before:] == []


def test_old_connection_that_breaks_while_the_next_is_ready_needs_no_third() -> None:
    stage = Stage()
    stage.begin(recover=True)
    old = stage.line
    stage.gateway.move(old)
    stage.gateway.pump()
    stage.clock.advance(0.5)
    stage.gateway.open_one()
    stage.gateway.cut(old)
    stage.gateway.deliver(old)
    assert stage.session.is_open
    stage.session.call("gateway", "info", {}, stage.done)
    stage.gateway.pump()
    assert stage.answers == [(None, None)]


def test_publishes_keep_their_order_over_a_move() -> None:
    stage = Stage(has_token=True)
    stage.begin()
    for number in range(100):
        publish(stage, number)
        if number == 20:
            stage.gateway.move(stage.line)
        if number % 3 == 0:
            stage.gateway.settle(stage.clock, 0.25)
    stage.settle(5)
    assert len(stage.gateway.dials) == 2
    assert [message for message, _tag in stage.gateway.histories["news"]] == list(range(100))


def test_no_publish_goes_to_the_next_line_before_the_old_one_has_answered_all() -> None:
    stage = Stage(has_token=True)
    stage.begin()
    old = stage.line
    stage.gateway.move(old)
    stage.gateway.pump()
    stage.clock.advance(0.5)
    publish(stage, 1)  # its reply is delayed
    answer = stage.gateway.peers[old].to_client.pop()
    while answer != stage.gateway.last_answer:
        answer = stage.gateway.peers[old].to_client.pop()
    stage.gateway.pump()
    publish(stage, 2)
    stage.settle(3)
    assert [message for message, _tag in stage.gateway.histories["news"]] == [1]
    stage.gateway.peers[old].to_client.append(answer)
    stage.settle(3)
    assert [message for message, _tag in stage.gateway.histories["news"]] == [1, 2]
