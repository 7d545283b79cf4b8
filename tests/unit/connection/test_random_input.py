"""Arbitrary bytes and values: accepted values round-trip, everything else is one of our errors."""

import json
import re
import tracemalloc
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from snorky.gateway.errors import InvalidEnvelope, InvalidMessage
from snorky.gateway.protocol.codec import Encoding, decode, decode_envelope
from tests.support.scenarios.round_trips import TEXTS, assert_goes_round, same

VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: (
        st.lists(inner, max_size=5)
        | st.dictionaries(st.text(st.characters(exclude_categories=["Cs"])), inner, max_size=5)
    ),
)


@given(VALUES)
def test_every_value_of_the_model_round_trips_in_both_encodings(value: Any) -> None:
    assert_goes_round(value)


@given(VALUES, st.integers(0, 3), st.booleans())
def test_json_written_by_others_is_read_alike(value: Any, indent: int, is_ascii: bool) -> None:
    text = json.dumps(value, ensure_ascii=is_ascii, indent=indent or None)
    assert same(decode(text.encode(), Encoding.JSON), value)


# Random combinations of these pieces are closer to the edge cases than random bytes.
JSON_PIECES = st.lists(
    st.sampled_from(
        [
            *rb"""[ ] { } , : " "a" "a": \ \ud800 \u0000 null true NaN 0 - . 1e 1e999 18446744073709551616""".split(),
            *(b"\xff", b"\xed\xa0\x80", b" ", b"9" * 19, b"[" * 20),
        ]
    )
).map(b"".join)


MSGPACK_PIECES = st.lists(
    st.sampled_from(
        [
            bytes.fromhex(piece)
            for piece in (
                "90 91 92 80 81 82 a0 a161 a1ff c0 c1 c3 01 ff c400 c46161 c70005 d6ff00000000 d4 dc0001 dd00000002"
                " de0001 df cb7ff8000000000000 ca3f800000 cfffffffffffffffff d38000000000000000"
            ).split()
        ]
        + [b"\x91" * 20, b"\x81\xa1a" * 20]
    )
).map(b"".join)


@given(st.binary() | JSON_PIECES | MSGPACK_PIECES, st.sampled_from(Encoding))
@example(b"\xc4\x00", Encoding.MSGPACK)
@example(b"[" * 100_000, Encoding.JSON)
def test_arbitrary_bytes_raise_only_invalid_message_and_accepted_values_round_trip(
    data: bytes, encoding: Encoding
) -> None:
    try:
        value = decode(data, encoding)
    except InvalidMessage as error:
        assert TEXTS.fullmatch(str(error))
        return
    assert_goes_round(value)


@given(st.binary() | JSON_PIECES | VALUES.map(lambda value: json.dumps(value).encode()), st.sampled_from(Encoding))
def test_arbitrary_bytes_are_an_envelope_or_one_of_two_errors(data: bytes, encoding: Encoding) -> None:
    try:
        envelope = decode_envelope(data, encoding)
    except (InvalidMessage, InvalidEnvelope):
        return
    assert re.fullmatch("[a-z0-9_-]+", envelope.service)


@pytest.mark.parametrize(
    "data",
    [
        b"\xdd\xff\xff\xff\xff",
        b"\xdb\xff\xff\xff\xff",
        b"\xdc\x27\x10" * 1000 + b"\x00" * 60_000,  # 1,000 levels that declare 10,000 items each: 80 MB of lists
        b"\x81\xa1a" + b"\xdc\x27\x10" * 1000 + b"\x00" * 60_000,
        b"\xdd\x00\x00\x27\x10" * 31 + b"\x00" * 60_000,  # the same within the maximum depth
        b"\xdc\xea\x60" * 31 + b"\x00" * 60_000,  # 60,000 items in each
    ],
    ids=["array", "string", "nested", "nested in a map", "nested within depth", "long within depth"],
)
def test_declared_sizes_are_refused_without_allocating_them(data: bytes) -> None:
    tracemalloc.start()
    try:
        with pytest.raises(InvalidMessage):
            decode(data, Encoding.MSGPACK)
        peak_bytes = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak_bytes < 4 * 2**20
