"""Events and plain frames: each message arrives as it was published, whatever its text is."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from snorky.gateway.errors import InvalidMessage
from snorky.gateway.http.protocols.raw.rendering import DIALECTS as RAW
from snorky.gateway.http.protocols.raw.rendering import value_of
from snorky.gateway.http.protocols.sse.rendering import ONE, SEVERAL, EventRendering, event, records
from snorky.gateway.protocol.codec import decode_json
from snorky.gateway.protocol.publication import Position

PLACE = Position("6b0c", 7, "a1")
SPACES = st.sampled_from([b" ", b"\n", b"\r", b"\r\n", b"\t"])

texts = st.text(st.characters(exclude_categories=["Cs"]))
values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | texts,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts, inner, max_size=4),
    max_leaves=10,
)


def parse(stream: bytes) -> list[dict[str, str]]:
    """Parse a stream as browsers do (WHATWG HTML 9.2.6): CR, LF and CRLF end a line."""
    found: list[dict[str, str]] = []
    fields: dict[str, str] = {}
    for line in stream.decode().replace("\r\n", "\n").replace("\r", "\n").split("\n"):
        if not line:
            found += [fields] if fields else []
            fields = {}
            continue
        name, _, value = line.partition(":")
        value = value.removeprefix(" ")
        fields[name] = f"{fields[name]}\n{value}" if name == "data" and name in fields else value
    assert not fields, "the last event has its end"
    return found


@given(values, st.lists(SPACES, max_size=3))
def test_any_message_is_one_event(value: Any, spaces: list[bytes]) -> None:
    payload = b"".join(spaces) + json.dumps(value).encode() + b"".join(spaces)
    (found,) = parse(ONE.encoder("news")(payload, PLACE, b""))
    assert found.keys() == {"id", "data"} and found["id"] == "6b0c:7:a1"
    assert decode_json(found["data"].encode()) == value


@given(st.lists(st.tuples(texts, values, st.booleans()), max_size=5))
def test_records_that_are_joined_come_apart_again(sent: list[tuple[str, Any, bool]]) -> None:
    joined = b"".join(
        SEVERAL.encoder(channel)(json.dumps(value, indent=1).encode(), PLACE if has_place else None, b"")
        for channel, value, has_place in sent
    )
    found = list(records(joined))
    assert [(json.loads(each.channel), each.position) for each in found] == [
        (channel, "6b0c:7:a1" if has_place else "") for channel, _, has_place in sent
    ]
    for each, (channel, value, _) in zip(found, sent, strict=True):
        (fields,) = parse(each.event)
        assert decode_json(fields["data"].encode()) == {"channel": channel, "message": value}


@pytest.mark.parametrize("rendering", [ONE, SEVERAL])
def test_notices_that_concern_the_channel_are_sent_and_others_are_not(rendering: EventRendering) -> None:
    gap = {"type": "gap", "channel": "news", "position": "6b0c:7:a1"}
    assert rendering.notice({"service": "pubsub", "message": gap}) is not None
    for message in ({"type": "moving", "graceMs": 1}, {"type": "response", "callId": 1}, {}, "text", None, 7):
        assert rendering.notice({"service": "pubsub", "message": message}) is None


def test_gap_has_the_position_as_its_id() -> None:
    gap = {"type": "gap", "channel": "news", "position": "6b0c:7:a1"}
    (found,) = parse(ONE.notice({"service": "pubsub", "message": gap}) or b"")
    assert found == {"id": "6b0c:7:a1", "event": "gap", "data": '{"channel":"news","position":"6b0c:7:a1"}'}


def test_event_without_a_name_is_a_message() -> None:
    assert event("", b"1") == b"data: 1\n\n"
    assert event("gap", b"1") == b"event: gap\ndata: 1\n\n"


@given(values)
def test_plain_frames_are_the_messages(value: Any) -> None:
    payload = json.dumps(value).encode()
    as_json, as_text = (RAW[form].rendering for form in ("json", "text"))
    assert as_json is not None and as_text is not None
    assert as_json.encoder("news")(payload, PLACE, b"") == payload
    found = as_text.encoder("news")(payload, PLACE, b"")
    assert found == (value.encode() if isinstance(value, str) else payload)
    assert as_json.notice({"service": "pubsub", "message": {}}) is None


@given(texts)
def test_text_comes_in_as_it_is(text: str) -> None:
    assert value_of(text.encode(), "text") == text


@pytest.mark.parametrize(("frame", "form"), [(b"{", "json"), (b"\xff", "json"), (b"\xff", "text"), (b"", "json")])
def test_frame_that_cannot_be_a_message_is_refused(frame: bytes, form: Any) -> None:
    with pytest.raises(InvalidMessage):
        value_of(frame, form)
