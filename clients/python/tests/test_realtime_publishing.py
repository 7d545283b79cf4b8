"""Calls and publishes over connections that break, and the end of a client."""

import pytest
from session_stage import Stage, heard, publish

from snorky.client.errors import TransportError

# -- calls and publishes ---------------------------------------------------------------------------------------------


def test_call_waits_for_a_connection_and_is_never_sent_twice() -> None:
    stage = Stage()
    stage.session.call("gateway", "info", {}, stage.done)
    stage.session.start()
    stage.gateway.is_silent = True
    stage.gateway.open_one()
    stage.gateway.cut(stage.line)
    stage.settle(30)
    ((_data, error),) = stage.answers
    assert isinstance(error, TransportError) and error.may_have_happened
    assert len(stage.gateway.requests) == 1


def test_call_without_a_connection_in_time_was_not_sent() -> None:
    stage = Stage()
    stage.session.start()
    stage.session.call("gateway", "info", {}, stage.done)
    stage.clock.advance(11)
    ((_data, error),) = stage.answers
    assert isinstance(error, TransportError) and not error.may_have_happened


def test_publishes_wait_for_a_connection_and_go_out_in_order() -> None:
    stage = Stage()
    for number in range(200):
        publish(stage, number)
    stage.session.start()
    stage.settle(1)
    assert [message for message, _tag in stage.gateway.histories["news"]] == list(range(200))
    assert stage.answers == [(None, None)] * 200


def test_publish_under_way_is_sent_again_under_its_key_and_taken_once() -> None:
    stage = Stage(has_token=True)
    stage.session.start()
    stage.gateway.open_one()
    stage.gateway.is_silent = True
    publish(stage, 1)
    stage.gateway.cut(stage.line)
    stage.gateway.is_silent = False
    stage.settle(10)
    assert stage.answers == [(None, None)]
    assert len(stage.gateway.histories["news"]) == 1
    assert [request["params"]["key"] for request in stage.gateway.requests] == ["k1", "k1"]


def test_publish_of_nobody_under_way_is_not_sent_again_and_that_is_told() -> None:
    stage = Stage(has_token=False)
    stage.session.start()
    stage.gateway.open_one()
    stage.gateway.is_silent = True
    publish(stage, 1)
    stage.gateway.cut(stage.line)
    stage.settle(10)
    ((_data, error),) = stage.answers
    assert isinstance(error, TransportError) and error.may_have_happened
    assert len(stage.gateway.requests) == 1


def test_publishes_are_bounded_and_one_too_many_is_refused() -> None:
    stage = Stage(publishes_max=2)
    publish(stage, 1)
    publish(stage, 2)
    with pytest.raises(TransportError) as caught:
        publish(stage, 3)
    assert (caught.value.code, caught.value.may_have_happened) == ("queue_full", False)


def test_publish_that_is_not_answered_in_time_is_told() -> None:
    stage = Stage(publish_timeout_s=5)
    publish(stage, 1)
    stage.clock.advance(6)
    ((_data, error),) = stage.answers
    assert isinstance(error, TransportError) and not error.may_have_happened


# -- the end ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("code", [4500, 4501, 4502, 4503, 4509, 4510, 4999])
def test_terminal_close_code_ends_everything(code: int) -> None:
    stage = Stage()
    topic = stage.begin(recover=True)
    publish(stage, 1)
    stage.gateway.cut(stage.line, code)
    stage.settle()
    (error,) = stage.ended
    assert error.close_code == code
    assert (topic.state, topic.error) == ("closed", error)
    assert len(stage.gateway.dials) == 1
    assert len(stage.answers) == 1 and stage.answers[0][1] is not None


@pytest.mark.parametrize("code", [1001, 1006, 1011, 4000, 4008, 4010, 4499])
def test_other_close_codes_are_come_back_from(code: int) -> None:
    stage = Stage()
    topic = stage.begin(recover=True)
    stage.gateway.cut(stage.line, code)
    stage.publish(1)
    stage.settle()
    assert heard(topic) == ["Recovered", 1]


def test_refused_token_is_asked_for_anew_once() -> None:
    stage = Stage(has_token=True, is_token_renewable=True)
    stage.session.start()
    stage.gateway.open_one()
    stage.gateway.cut(stage.line, 4501)
    stage.gateway.deliver(stage.line)
    stage.clock.advance(0)
    assert stage.gateway.dials == [False, True]
    stage.gateway.open_one()
    stage.gateway.cut(stage.line, 4501)
    stage.settle()
    assert stage.ended[0].close_code == 4501


def test_token_that_was_good_for_a_while_is_asked_for_anew_again() -> None:
    stage = Stage(has_token=True, is_token_renewable=True)
    topic = stage.begin(recover=True)
    for _ in range(3):
        stage.gateway.cut(stage.line, 4501)
        stage.settle(10)
    assert (stage.ended, topic.state) == ([], "confirmed")


def test_failed_dials_back_off_up_to_the_bound() -> None:
    stage = Stage(backoff_max_s=4.0)
    stage.session.start()
    waits = []
    for _ in range(50):
        stage.gateway.fail_one()
        before_s = stage.clock.now_s()
        while not stage.gateway.dialled:
            stage.clock.advance(0.01)
        waits.append(stage.clock.now_s() - before_s)
    assert waits[0] <= 0.51 and max(waits) <= 4.01
    assert max(waits[10:]) > 2.0 and min(waits[10:]) < 1.0  # full jitter
