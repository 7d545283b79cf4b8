"""Events: what clients send is read or refused; what was published becomes an event, whatever it is."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from snorky.gateway.errors import InvalidMessage
from snorky.gateway.http.protocols.pusher.codes import ErrorCode
from snorky.gateway.http.protocols.pusher.events import (
    Event,
    encode_event,
    publication_encoder,
    read_event,
    text_of,
)
from snorky.gateway.protocol.codec import Verbatim

texts = st.text(st.characters(exclude_categories=["Cs"]))
values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | texts,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts, inner, max_size=4),
    max_leaves=10,
)


def published(value: Any) -> Any:
    """Return the event that clients receive for a message on the channel "a"."""
    found = json.loads(publication_encoder("a")(json.dumps(value).encode(), None, b""))
    assert found.pop("channel") == "a"
    return found


# -- of clients -------------------------------------------------------------------------------------------------------


def test_event_of_a_client_is_read() -> None:
    frame = b'{"event":"client-a","channel":"private-b","data":{"x":[1]},"more":1}'
    assert read_event(frame) == Event("client-a", "private-b", {"x": [1]})
    assert read_event(b'{"event":"pusher:ping"}') == Event("pusher:ping", None, None)


@pytest.mark.parametrize(
    "frame",
    [b"", b"no json", b"[]", b'"text"', b"null", b"{}", b'{"event":7}', b'{"event":null}', b"\xff", b'{"event":"a"'],
)
def test_frame_that_is_no_event_is_refused(frame: bytes) -> None:
    with pytest.raises(InvalidMessage):
        read_event(frame)


@given(st.binary())
def test_any_frame_is_read_or_refused(frame: bytes) -> None:
    try:
        assert isinstance(read_event(frame).name, str)
    except InvalidMessage:
        pass


# -- of the server ----------------------------------------------------------------------------------------------------


def test_data_of_the_server_is_a_text() -> None:
    assert json.loads(encode_event("a", {"b": 1}, "c")) == {"event": "a", "channel": "c", "data": '{"b":1}'}
    assert json.loads(encode_event("a", "text")) == {"event": "a", "data": "text"}
    told = json.loads(json.loads(encode_event("pusher:error", {"code": ErrorCode.NO_SUCH_APP}))["data"])
    assert told == {"code": 4001}


@given(values)
def test_data_that_is_no_text_becomes_its_json(value: Any) -> None:
    text = text_of(value)
    assert text == value if isinstance(value, str) else json.loads(text) == value
    assert text_of(Verbatim(value, b"as it came")) == "as it came"


# -- of a channel -----------------------------------------------------------------------------------------------------


@given(texts.filter(lambda name: not name.startswith("pusher")), texts)
def test_event_on_a_channel_keeps_its_name_and_its_text(name: str, data: str) -> None:
    assert published({"event": name, "data": data}) == {"event": name, "data": data}


@given(texts, st.none() | st.booleans() | st.integers() | st.lists(texts) | st.dictionaries(texts, texts))
def test_data_of_an_event_that_is_no_text_is_encoded(name: str, data: Any) -> None:
    assert json.loads(published({"event": f"x{name}", "data": data})["data"]) == data


def test_user_of_an_event_is_named() -> None:
    event = {"event": "client-a", "data": "{}", "user_id": "ann"}
    assert published(event) == event
    assert published({**event, "more": 1}) == event, "other fields are not for these clients"


@pytest.mark.parametrize(
    "value", [{"event": 7}, {"event": None, "data": "x"}, {"event": "a", "data": "x", "user_id": 7}, {}, {"data": "x"}]
)
def test_object_that_is_no_event_is_the_event_message(value: Any) -> None:
    found = published(value)
    assert found["event"] == "message" and json.loads(found["data"]) == value


@given(values.filter(lambda value: not (isinstance(value, dict) and "event" in value)))
def test_any_other_message_is_the_event_message(value: Any) -> None:
    found = published(value)
    assert found.keys() == {"event", "data"} and found["event"] == "message"
    assert found["data"] == value if isinstance(value, str) else json.loads(found["data"]) == value


@pytest.mark.parametrize(
    "name", ["pusher:error", "pusher_internal:subscription_succeeded", "pusher_internal:member_added"]
)
def test_publication_cannot_pass_for_an_event_of_the_server(name: str) -> None:
    """Clients that may publish to a channel must not be able to add members or end a subscription at other clients."""
    value = {"event": name, "data": "{}"}
    found = published(value)
    assert found["event"] == "message" and json.loads(found["data"]) == value


def test_event_without_data_has_null() -> None:
    assert published({"event": "a"}) == {"event": "a", "data": "null"}


def test_spaces_around_a_message_change_nothing() -> None:
    found = json.loads(publication_encoder("a")(b' \n{ "event" : "b" , "data" : "c" }\r\n', None, b""))
    assert found == {"event": "b", "channel": "a", "data": "c"}
    assert json.loads(publication_encoder("a")(b' \t"text" ', None, b""))["data"] == "text"


@pytest.mark.parametrize("key", [b'"event"', b'"\\u0065vent"', b'"ev\\u0065nt"'])
def test_key_of_an_event_may_have_escaped_characters(key: bytes) -> None:
    found = json.loads(publication_encoder("a")(b'{"data":"d",%b:"b"}' % key, None, b""))
    assert found == {"event": "b", "channel": "a", "data": "d"}


@pytest.mark.parametrize("payload", [b'{"a":{"event":"b"}}', b'{"a":"event"}', b'["event"]', b'"\\"event\\""'])
def test_event_that_is_not_a_key_of_the_message_is_none(payload: bytes) -> None:
    found = json.loads(publication_encoder("a")(payload, None, b""))
    text = json.loads(payload)
    assert found == {"event": "message", "channel": "a", "data": text if isinstance(text, str) else payload.decode()}


def test_fields_of_an_event_have_an_order() -> None:
    encode = publication_encoder('a"b')
    assert encode(b'{"a": "\xe2\x82\xac"}', None, b"") == (
        b'{"event":"message","channel":"a\\"b","data":"{\\"a\\": \\"\xe2\x82\xac\\"}"}'
    )
    assert encode(b'{"user_id":"u","data":[1],"event":"e\\n"}', None, b"") == (
        b'{"event":"e\\n","channel":"a\\"b","data":"[1]","user_id":"u"}'
    )
