"""gateway/protocol/splicing.py: payloads inside a message, unchanged."""

import json
from typing import Any

import pytest
from msgpack import packb, unpackb  # type: ignore[import-untyped]  # ships no annotations

from snorky.gateway.errors import InvalidMessage
from snorky.gateway.protocol.codec import MAX_DEPTH, Encoding, decode, encode
from snorky.gateway.protocol.splicing import PAYLOAD, Compound, Template

READERS = {Encoding.JSON: json.loads, Encoding.MSGPACK: unpackb}


@pytest.mark.parametrize("encoding", Encoding)
def test_payloads_keep_their_place_in_the_message(encoding: Encoding) -> None:
    compound = Compound()
    payloads: list[Any] = [{"x": [1.5, None]}, "text", 0, [], "\\1 \\g<0>"]
    signs = [compound.enclose(json.dumps(each).encode()) for each in payloads]
    compound.value = {"last": signs[4], "all": signs}
    read = READERS[encoding](compound.encode({"around": compound.value, "0": "00000000"}, encoding))
    assert read == {"around": {"last": payloads[4], "all": payloads}, "0": "00000000"}


def test_json_is_inserted_unchanged() -> None:
    compound = Compound()
    sign = compound.enclose(b'{"a" : 1.0}')
    assert compound.encode([sign], Encoding.JSON) == b'[{"a" : 1.0}]'


@pytest.mark.parametrize("encoding", Encoding)
def test_without_payloads_it_is_the_message(encoding: Encoding) -> None:
    assert Compound().encode({"a": [1]}, encoding) == encode({"a": [1]}, encoding)


@pytest.mark.parametrize("payload", [b"", b"NaN", b"{", b'"\xff"', b"[" * 33 + b"]" * 33])
def test_payload_that_is_not_strict_json_is_refused(payload: bytes) -> None:
    with pytest.raises(InvalidMessage):
        Compound().enclose(payload)


@pytest.mark.parametrize("encoding", Encoding)
def test_message_around_the_payload_is_checked(encoding: Encoding) -> None:
    with pytest.raises(InvalidMessage):
        Compound().encode({"a": float("nan")}, encoding)


# --- templates

DEEPEST: Any = None
for _ in range(MAX_DEPTH):
    DEEPEST = [DEEPEST]


@pytest.mark.parametrize("encoding", Encoding)
@pytest.mark.parametrize(
    "shape",
    [
        lambda hole: hole,
        lambda hole: [hole],
        lambda hole: {"type": "message", "channel": {"room": 5}, "message": hole},
        lambda hole: {"message": hole, "after": [1, "é", None]},
        lambda hole: ({"a": ({"b": hole},)}, 2),
    ],
    ids=["alone", "list", "pubsub", "before others", "tuples"],
)
@pytest.mark.parametrize("payload", [None, {"x": [1, 2.5, "ü"]}, "", "text", [], DEEPEST], ids=lambda v: repr(v)[:20])
def test_rendered_template_is_the_encoded_message(encoding: Encoding, shape: Any, payload: Any) -> None:
    rendered = Template("pubsub", shape(PAYLOAD)).render(encode(payload, encoding), encoding)
    whole = {"service": "pubsub", "message": shape(payload)}
    expected = json.dumps(whole, ensure_ascii=False, separators=(",", ":")).encode()
    assert rendered == (expected if encoding is Encoding.JSON else packb(whole))


@pytest.mark.parametrize("encoding", Encoding)
def test_template_survives_strings_that_look_like_its_hole(encoding: Encoding, monkeypatch: pytest.MonkeyPatch) -> None:
    message = {"channel": "PAYLOAD payload", "payload": PAYLOAD, "more": ["payload", "Payload.PAYLOAD", '"', "\xd9 "]}
    rendered = Template("s", message).render(encode(1, encoding), encoding)
    assert decode(rendered, encoding) == {"service": "s", "message": {**message, "payload": 1}}
    monkeypatch.setattr("snorky.gateway.protocol.splicing.secrets.token_hex", lambda size: "guessed")
    with pytest.raises(ValueError, match="exactly once"):  # instead of a wrong split
        Template("s", ["guessed", PAYLOAD])


@pytest.mark.parametrize("encoding", Encoding)
def test_second_shape_has_the_position_at_its_end(encoding: Encoding) -> None:
    template = Template("pubsub", {"type": "message", "message": PAYLOAD, "channel": ["c"]})
    assert template.has_place_for_position
    message: dict[str, Any] = {"type": "message", "message": {"x": [1, "é"]}, "channel": ["c"]}
    for offset, position in ((1, "e:1:t"), (2**53, '"\\:é:\n')):
        payload = encode(message["message"], encoding)
        rendered = template.render_at(payload, encoding, offset=offset, position=position)
        expected = {**message, "offset": offset, "position": position}
        assert decode(rendered, encoding) == {"service": "pubsub", "message": expected}
    rendered = template.render_at(encode(None, encoding), encoding, offset=1, position="p", is_tombstone=True)
    assert decode(rendered, encoding) == {
        "service": "pubsub",
        "message": {**message, "message": None, "tombstone": True, "offset": 1, "position": "p"},
    }


@pytest.mark.parametrize("message", [PAYLOAD, [PAYLOAD], {"position": PAYLOAD}, {"a": PAYLOAD, "offset": 1}], ids=repr)
def test_message_that_is_no_object_or_has_such_keys_has_no_second_shape(message: Any) -> None:
    assert not Template("pubsub", message).has_place_for_position


@pytest.mark.parametrize("message", [None, {}, [PAYLOAD, PAYLOAD], {"a": PAYLOAD, "b": [PAYLOAD]}], ids=repr)
def test_template_needs_exactly_one_hole(message: Any) -> None:
    with pytest.raises(ValueError, match="exactly once"):
        Template("pubsub", message)


def test_template_refuses_what_encode_refuses() -> None:
    cycle: list[Any] = [PAYLOAD]
    cycle.append(cycle)
    for message in ({"a": b"bytes", "b": PAYLOAD}, {PAYLOAD: 1}, [float("nan"), PAYLOAD], cycle):
        with pytest.raises(InvalidMessage):
            Template("pubsub", message)  # type: ignore[arg-type]
