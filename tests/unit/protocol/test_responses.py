"""Responses: what they encode is what the whole message would be, or they leave it to that."""

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from snorky.gateway.errors import InvalidMessage
from snorky.gateway.protocol.codec import encode_json
from snorky.gateway.protocol.responses import Responses

RESPONSES = Responses("my-own_service2")


def whole(data: Any, call_id: Any) -> bytes:
    message = {"type": "response", "data": data, "callId": call_id}
    return encode_json({"service": "my-own_service2", "message": message})


_FLOATS = st.floats(allow_nan=False, allow_infinity=False)
_SCALARS = st.one_of(st.none(), st.booleans(), st.integers(-(2**63), 2**64 - 1), _FLOATS, st.text())


@given(_SCALARS, st.one_of(st.integers(0, 2**63 - 1), st.text()))
def test_scalars_are_encoded_as_in_the_whole_message(data: Any, call_id: Any) -> None:
    try:
        expected = whole(data, call_id)
    except InvalidMessage:  # a lone surrogate
        with pytest.raises(InvalidMessage):
            RESPONSES.encode(data, call_id)
    else:
        assert RESPONSES.encode(data, call_id) == expected


@pytest.mark.parametrize(
    ("data", "call_id"),
    [([], 1), ({}, 1), ((), 1), (b"", 1), *((None, call_id) for call_id in (None, True, 1.5, [1], -1, 2**63))],
    ids=repr,
)
def test_all_else_is_left_to_the_whole_message(data: Any, call_id: Any) -> None:
    assert RESPONSES.encode(data, call_id) is None


@pytest.mark.parametrize("data", [math.nan, math.inf, 2**64, -(2**63) - 1, "\ud800"], ids=repr)
def test_what_is_no_json_is_refused(data: Any) -> None:
    with pytest.raises(InvalidMessage):
        RESPONSES.encode(data, 1)
