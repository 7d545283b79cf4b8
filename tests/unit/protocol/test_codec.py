"""snorky.gateway.protocol.codec: envelopes, and encoding of a service's own Python objects.

Hostile bytes are in test_bad_input.py and test_random_input.py.
"""

import datetime
import decimal
import json
import uuid
from collections import Counter, OrderedDict, namedtuple
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum, IntEnum, StrEnum
from typing import Any

import msgpack  # type: ignore[import-untyped]  # ships no annotations
import pytest
from hypothesis import given
from hypothesis import strategies as st

from snorky.gateway.errors import InvalidEnvelope, InvalidInput, InvalidMessage
from snorky.gateway.protocol import codec
from snorky.gateway.protocol.codec import MAX_DEPTH, MAX_VALUES, Encoding, Envelope
from snorky.gateway.protocol.splicing import PAYLOAD

ENCODINGS = pytest.mark.parametrize("encoding", list(Encoding), ids=lambda encoding: encoding.value)


def nested(depth: int, inner: Any = None) -> Any:
    """`depth` containers inside each other, lists and dicts alternating."""
    value = inner
    for level in range(depth):
        value = [value] if level % 2 else {"k": value}
    return value


def test_encode_json_is_compact_utf8() -> None:
    assert codec.encode_json({"a": [1, 1.5, None, True, "é\n"]}) == '{"a":[1,1.5,null,true,"é\\n"]}'.encode()


@ENCODINGS
@pytest.mark.parametrize("buffer", [bytes, memoryview, bytearray])
def test_decode_takes_any_buffer(encoding: Encoding, buffer: Any) -> None:
    assert codec.decode(buffer(codec.encode({"a": [1]}, encoding)), encoding) == {"a": [1]}


# --- values from a service


class Colour(StrEnum):
    RED = "red"


class Level(IntEnum):
    HIGH = 3


class Mood(str, Enum):  # noqa: UP042 - what services wrote before StrEnum
    GOOD = "good"


class Text(str):
    def __str__(self) -> str:
        return "something else"


class Real(float):
    pass


class Whole(int):
    pass


class Row(list[Any]):
    pass


Point = namedtuple("Point", "x y")


@ENCODINGS
@pytest.mark.parametrize(
    ("value", "plain"),
    [
        ((1, (2,)), [1, [2]]),
        (Point(1, 2), [1, 2]),
        (Colour.RED, "red"),
        (Level.HIGH, 3),
        (Mood.GOOD, "good"),
        (Text("text"), "text"),
        (Real(1.5), 1.5),
        (Whole(7), 7),
        (Row([Row(), 1]), [[], 1]),
        (OrderedDict(b=1, a=Counter("aa")), {"b": 1, "a": {"a": 2}}),
        ({Colour.RED: 1, Text("t"): 2}, {"red": 1, "t": 2}),
        ([None, True, Level.HIGH], [None, True, 3]),
    ],
    ids=repr,
)
def test_subclasses_are_written_as_the_plain_type_below_them(encoding: Encoding, value: Any, plain: Any) -> None:
    decoded = codec.decode(codec.encode(value, encoding), encoding)
    assert decoded == plain
    assert json.dumps(decoded) == json.dumps(plain)


@dataclass
class Data:
    a: int = 1


@ENCODINGS
@pytest.mark.parametrize(
    "value",
    [
        float("nan"),
        float("inf"),
        float("-inf"),
        Real("nan"),
        2**64,
        -(2**63) - 1,
        Whole(2**64),
        10**5000,
        "\ud800",
        "a\udc00b",
        b"bytes",
        b"",
        bytearray(b"a"),
        memoryview(b"a"),
        {1, 2},
        frozenset(),
        object(),
        Data(),
        1j,
        PAYLOAD,
        Encoding.JSON,
        decimal.Decimal(1),
        uuid.UUID(int=0),
        datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC),
        datetime.date(2026, 1, 1),
        datetime.timedelta(1),
        range(3),
    ],
    ids=lambda value: f"{type(value).__name__}-{str(value)[:12]!a}" if not isinstance(value, int) else "int",
)
@pytest.mark.parametrize(
    "place", [lambda v: v, lambda v: [0, v], lambda v: {"a": {"b": v}}], ids=["root", "list", "dict"]
)
def test_values_that_a_strict_reader_refuses_are_refused_everywhere(encoding: Encoding, value: Any, place: Any) -> None:
    with pytest.raises(InvalidMessage):
        codec.encode(place(value), encoding)


@ENCODINGS
@pytest.mark.parametrize("key", [1, None, True, 1.5, b"a", (1,), "\ud800", Level.HIGH], ids=repr)
def test_keys_that_are_no_strings_are_refused(encoding: Encoding, key: Any) -> None:
    for value in ({key: 1}, {"a": 1, key: 1}, [{"a": {key: 1}}]):
        with pytest.raises(InvalidMessage):
            codec.encode(value, encoding)


@ENCODINGS
@pytest.mark.parametrize("inner", [None, 1, "x", [], {}], ids=repr)
def test_depth_is_the_same_limit_in_and_out(encoding: Encoding, inner: Any) -> None:
    containers = MAX_DEPTH - isinstance(inner, list | dict)
    value = nested(containers, inner)
    assert codec.decode(codec.encode(value, encoding), encoding) == value
    too_deep = nested(containers + 1, inner)
    with pytest.raises(InvalidMessage, match="deep"):
        codec.encode(too_deep, encoding)
    with pytest.raises(InvalidMessage, match="deep"):
        codec.decode(json.dumps(too_deep).encode() if encoding is Encoding.JSON else msgpack.packb(too_deep), encoding)


@ENCODINGS
def test_number_of_values_is_the_same_limit_in_and_out(encoding: Encoding) -> None:
    write = {
        Encoding.JSON: lambda value: json.dumps(value, separators=(",", ":")).encode(),
        Encoding.MSGPACK: msgpack.packb,
    }
    for most in ([0] * (MAX_VALUES - 1), {str(n): 0 for n in range(MAX_VALUES - 1)}, [[0] * 4999, [0] * 4998]):
        assert codec.decode(codec.encode(most, encoding), encoding) == most
    for more in ([0] * MAX_VALUES, {str(n): 0 for n in range(MAX_VALUES)}, [[0] * 4999, [0] * 4999]):
        with pytest.raises(InvalidMessage, match="many"):
            codec.encode(more, encoding)
        with pytest.raises(InvalidMessage, match="many"):
            codec.encode(more, encoding, max_values=MAX_VALUES)
        assert codec.encode(more, encoding, max_values=MAX_VALUES + 1) == write[encoding](more)
        with pytest.raises(InvalidMessage):
            codec.decode(write[encoding](more), encoding)


@ENCODINGS
def test_cycles_and_shared_branches_end_in_an_error(encoding: Encoding) -> None:
    cycle: list[Any] = []
    cycle += [cycle, cycle]
    doubling: Any = 0
    for _ in range(30):  # 2^30 values in 30 objects
        doubling = [doubling, doubling]
    for value in (cycle, doubling):
        with pytest.raises(InvalidMessage):
            codec.encode(value, encoding)


# --- envelopes


@ENCODINGS
def test_envelope_has_service_and_message_and_ignores_other_keys(encoding: Encoding) -> None:
    data = codec.encode({"service": "my-own_service2", "message": [1], "extra": {"a": 1}}, encoding)
    assert codec.decode_envelope(data, encoding) == Envelope("my-own_service2", [1])


@ENCODINGS
def test_message_of_an_envelope_may_be_null(encoding: Encoding) -> None:
    assert codec.decode_envelope(codec.encode({"service": "a", "message": None}, encoding), encoding).message is None


@pytest.mark.parametrize(
    ("value", "service"),
    [
        (None, None),
        ([], None),
        ("service", None),
        ({}, None),
        ({"message": 1}, None),
        ({"service": "pubsub"}, "pubsub"),
        ({"service": None, "message": 1}, None),
        ({"service": 1, "message": 1}, None),
        ({"service": ["a"], "message": 1}, None),
        ({"service": "", "message": 1}, None),
        ({"service": "Pubsub", "message": 1}, None),
        ({"service": "pub sub", "message": 1}, None),
        ({"service": "pubsub\n", "message": 1}, None),
        ({"service": "pub:sub", "message": 1}, None),
        ({"service": "púbsub", "message": 1}, None),
        ({"service": "pub٣", "message": 1}, None),
    ],
    ids=repr,
)
def test_invalid_envelope_is_an_error_with_the_service_if_known(value: Any, service: str | None) -> None:
    for encoding in Encoding:
        with pytest.raises(InvalidEnvelope) as caught:
            codec.decode_envelope(codec.encode(value, encoding), encoding)
        assert caught.value.service == service
        assert '"service"' in str(caught.value) or '"message"' in str(caught.value)


def test_authorised_and_forwarded_value_of_a_duplicate_key_are_the_same() -> None:
    data = b'{"service":"x","service":"pubsub","message":{"channel":"a","channel":"b"}}'
    envelope = codec.decode_envelope(data, Encoding.JSON)
    assert envelope == Envelope("pubsub", {"channel": "b"})
    assert codec.encode_json(envelope.message) == b'{"channel":"b"}'


@pytest.mark.parametrize("other", [b"1e999", b"18446744073709551616", b'"\xff"', b"nul", b'"\\ud800"'])
def test_other_keys_of_an_envelope_are_strict(other: bytes) -> None:
    with pytest.raises(InvalidMessage):
        codec.decode_envelope(b'{"service":"a","message":1,"x":%s}' % other, Encoding.JSON)


@given(
    st.lists(
        st.tuples(
            st.sampled_from([b'"service"', b'"message"', b'"x"', b'"\xff"', b"1", b'"Service"', b'"s\\u0065rvice"']),
            st.sampled_from(
                [b'"a"', b'"A"', b"1", b"null", b"{}", b"[1,{}]", b"1e999", b'"\xff"', b"-", b"[" * 80 + b"]" * 80]
            ),
        ),
        max_size=4,
    ),
    st.sampled_from([b"", b" ", b"x", b","]),
)
def test_an_envelope_is_decoded_as_the_value_would_be(pairs: list[tuple[bytes, bytes]], rest: bytes) -> None:
    data = b"{" + b",".join(b"%s:%s" % pair for pair in pairs) + b"}" + rest

    def outcome(decode: Callable[[], Envelope]) -> object:
        try:
            return decode()
        except InvalidInput as error:
            return type(error), str(error), getattr(error, "service", None)

    assert outcome(lambda: codec.decode_envelope(data, Encoding.JSON)) == outcome(
        lambda: codec.envelope_of(codec.decode_json(data))
    )
