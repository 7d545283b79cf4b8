"""snorky.client.realtime: invalid values, forged replies and failing callbacks affect only their caller."""

import json
import logging
from datetime import date
from typing import Any

import pytest
from fake_gateway import FakeClock, FakeGateway

from snorky.client.errors import TransportError
from snorky.client.realtime.request import CALL_ID_BYTES, Request
from snorky.client.realtime.session import Session, SessionOptions
from snorky.client.realtime.topic import Topic


def nested(depth: int) -> Any:
    value: Any = 0
    for _ in range(depth):
        value = [value]
    return value


BAD_VALUES = {
    "nan": float("nan"),
    "infinity": [float("-inf")],
    "lone surrogate": "nice \ud83d",
    "lone surrogate in a key": {"\udc00": 1},
    "above 64 bits": 2**64,
    "below 64 bits": -(2**63) - 1,
    "depth": nested(30),
    "values": [0] * 10_000,
    "key that is no string": {1: 2},
    "bytes": b"abc",
    "date": date(2020, 1, 1),
    "set": {1},
    "size": "x" * 65_536,
    "size in UTF-8": "é" * 40_000,
}


class Stage:
    """A session, its gateway and its clock."""

    def __init__(self, on_notification: Any = lambda _service, _message: None, **options: Any) -> None:
        self.clock = FakeClock()
        self.gateway = FakeGateway()
        self.session = Session(
            self.gateway, self.clock, SessionOptions(**options), on_notification=on_notification, uniform=max
        )
        self.gateway.session = self.session
        self.answers: list[tuple[Any, Exception | None]] = []

    def done(self, data: Any, error: Exception | None) -> None:
        self.answers.append((data, error))

    def publish(self, message: Any, key: str = "k") -> None:
        self.session.publish("pubsub", {"channel": "news", "message": message, "key": key}, self.done)

    @property
    def line(self) -> Any:
        (line,) = self.gateway.open_lines()
        return line

    def say(self, service: str, **message: Any) -> None:
        text = json.dumps({"service": service, "message": message})
        self.gateway.peers[self.line].to_client.append(text)
        self.gateway.pump()


@pytest.mark.parametrize("name", BAD_VALUES)
@pytest.mark.parametrize("is_connected", [True, False])
def test_value_that_no_node_takes_is_refused_at_the_call_and_takes_no_slot(name: str, is_connected: bool) -> None:
    stage = Stage(publishes_max=64)
    stage.session.start()
    if is_connected:
        stage.gateway.pump()
    for _ in range(70):
        with pytest.raises((ValueError, TypeError)):
            stage.publish(BAD_VALUES[name])
        with pytest.raises((ValueError, TypeError)):
            stage.session.call("test", "echo", {"x": BAD_VALUES[name]}, stage.done)
    stage.publish("good")
    stage.session.call("test", "echo", {"x": 1}, stage.done)
    stage.gateway.pump()
    assert stage.answers == [(None, None), (None, None)]
    assert len(stage.gateway.dials) == 1
    assert [request["command"] for request in stage.gateway.requests] == ["publish", "echo"]


@pytest.mark.parametrize("value", [nested(29), [0] * 9_990, 2**64 - 1, -(2**63), "x" * 65_000, (1, {"a": ()}), 1e300])
def test_value_at_a_bound_is_sent_as_it_is(value: Any) -> None:
    stage = Stage()
    stage.session.start()
    stage.publish(value)
    stage.gateway.pump()
    assert stage.answers == [(None, None)]
    assert stage.gateway.requests[0]["params"]["message"] == json.loads(json.dumps(value))


def test_value_that_is_changed_after_the_call_is_sent_as_it_was() -> None:
    stage = Stage()
    value = ["before"]
    stage.publish(value)
    value.append("after")
    stage.session.start()
    stage.gateway.pump()
    assert stage.gateway.requests[0]["params"]["message"] == ["before"]


def test_size_is_that_of_the_largest_message_with_its_call_id() -> None:
    request = Request("pubsub", "publish", {}, max_bytes=1_000)
    assert len(request.text("f" * CALL_ID_BYTES)) == request.size_bytes
    Request("pubsub", "publish", {}, max_bytes=request.size_bytes)
    with pytest.raises(ValueError, match="max_message_bytes"):
        Request("pubsub", "publish", {}, max_bytes=request.size_bytes - 1)


def test_message_that_ended_a_connection_with_1009_is_refused_and_the_others_are_sent_again() -> None:
    stage = Stage(has_token=True, max_message_bytes=1_000_000)
    stage.session.start()
    stage.gateway.pump()
    stage.gateway.is_silent = True
    for number, message in enumerate(["small", "x" * 70_000, "behind"]):
        stage.publish(message, key=f"k{number}")
    first = len(stage.gateway.requests)
    stage.gateway.cut(stage.line, 1009)
    stage.gateway.is_silent = False
    for _ in range(400):
        stage.gateway.pump()
        stage.clock.advance(0.25)
    (_, refused), *others = stage.answers
    assert isinstance(refused, TransportError)
    assert (refused.code, refused.may_have_happened) == ("too_large", False)
    assert others == [(None, None)] * 2
    assert [request["params"]["message"] for request in stage.gateway.requests[first:]] == ["small", "behind"]
    assert len(stage.gateway.dials) == 2


def test_callback_that_raises_is_logged_and_the_connection_goes_on(caplog: pytest.LogCaptureFixture) -> None:
    told: list[Any] = []

    def callback(_service: str, message: dict[str, Any]) -> None:
        told.append(message["n"])
        raise RuntimeError("a fault of the program")

    stage = Stage(callback)
    stage.session.start()
    stage.gateway.pump()
    with caplog.at_level(logging.ERROR, "snorky.realtime"):
        stage.say("chat", type="presence", n=1)
        stage.say("chat", type="presence", n=2)
    assert told == [1, 2]
    assert "a fault of the program" in caplog.text
    assert len(stage.gateway.dials) == 1


def test_only_a_reply_of_the_service_that_was_called_settles_a_call() -> None:
    stage = Stage()
    stage.session.start()
    stage.gateway.pump()
    stage.gateway.is_silent = True
    stage.session.call("tasks", "get", {}, stage.done)
    call_id = stage.gateway.requests[-1]["callId"]
    for forged in (1, "1", call_id, [call_id], None):
        stage.say("chat", type="response", callId=forged, data="forged")
        stage.say("chat", type="error", callId=forged, message="forged", code="refused")
    for guessed in (1, "1", ".1", call_id.upper() + "x", [call_id], {"id": 1}, None, True):
        stage.say("tasks", type="response", callId=guessed, data="forged")
    assert stage.answers == []
    assert not stage.line.has_answered
    stage.say("tasks", type="response", callId=call_id, data="genuine")
    assert stage.answers == [("genuine", None)]


def test_call_ids_begin_with_64_random_bits_of_each_connection() -> None:
    prefixes = set()
    for _ in range(3):
        stage = Stage()
        stage.session.start()
        stage.session.call("tasks", "get", {}, stage.done)
        stage.session.call("tasks", "get", {}, stage.done)
        stage.gateway.pump()
        ids = [request["callId"] for request in stage.gateway.requests]
        assert len(set(ids)) == 2
        prefixes |= {call_id.partition(".")[0] for call_id in ids}
    assert len(prefixes) == 3
    assert all(len(bytes.fromhex(prefix)) == 8 for prefix in prefixes)


def test_topic_of_a_service_that_cannot_be_named_is_refused_at_the_call() -> None:
    for service in (5, "a\ud800"):
        with pytest.raises((ValueError, TypeError)):
            Topic(service, "news")  # type: ignore[arg-type]
