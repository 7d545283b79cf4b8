"""`canonical` and `strict` of the client: test vectors shared by all clients, and agreement with the gateway."""

import json
import struct
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from snorky.client.canonical import canonical, channel_name, redis_channel
from snorky.client.strict import encode
from snorky.gateway.errors import InvalidMessage
from snorky.gateway.protocol.codec import decode_json, encode_json

VECTORS = Path(__file__).resolve().parents[3] / "tests" / "vectors"
CANONICAL = json.loads((VECTORS / "canonical.json").read_text())
NAMES = json.loads((VECTORS / "redis_names.json").read_text())["names"]

LOOSE = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**65), 2**65)
    | st.floats()
    | st.text(st.characters(), max_size=5)
    | st.binary(max_size=2),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3) | st.integers(), inner, max_size=3),
    max_leaves=6,
)


@pytest.mark.parametrize("case", CANONICAL["canonical"], ids=lambda case: str(case["name"]))
def test_canonical_form_is_the_vectors(case: dict[str, str]) -> None:
    assert canonical(json.loads(case["channel"])) == case["canonical"]


@pytest.mark.parametrize(("one", "other"), CANONICAL["equal"])
def test_equal_entities_are_one_channel(one: str, other: str) -> None:
    assert channel_name(json.loads(one)) == channel_name(json.loads(other))


@pytest.mark.parametrize(("one", "other"), CANONICAL["unequal"])
def test_unequal_entities_are_two_channels(one: str, other: str) -> None:
    assert channel_name(json.loads(one)) != channel_name(json.loads(other))


@pytest.mark.parametrize("case", CANONICAL["refused"], ids=lambda case: str(case["name"]))
def test_channel_of_the_refused_vectors_is_refused(case: dict[str, str]) -> None:
    with pytest.raises(ValueError):
        channel_name(json.loads(case["channel"]))


@pytest.mark.parametrize("case", CANONICAL["numbers"], ids=lambda case: str(case["ieee754"]))
def test_doubles_are_written_as_ecmascript_does(case: dict[str, str]) -> None:
    (number,) = struct.unpack(">d", bytes.fromhex(case["ieee754"]))
    try:
        text = canonical(number)
    except ValueError:  # channels must not contain integers that some clients cannot distinguish
        assert 2**53 - 1 < abs(number) < 1e21
    else:
        assert text == case["text"]


@pytest.mark.parametrize("case", NAMES, ids=lambda case: str(case["redis"])[:40])
def test_names_on_redis_are_the_vectors(case: dict[str, str]) -> None:
    assert redis_channel(case["prefix"], case["service"], json.loads(case["channel"])) == case["redis"]


@given(LOOSE)
def test_strict_takes_and_refuses_what_the_gateway_does(value: Any) -> None:
    try:
        ours = encode(value)
    except (ValueError, TypeError):
        with pytest.raises(InvalidMessage):
            encode_json(value)
    else:
        assert decode_json(ours) == decode_json(encode_json(value))


def nested(depth: int) -> Any:
    value: Any = 1
    for _ in range(depth):
        value = [value]
    return value


@pytest.mark.parametrize("value", [nested(32), [0] * 9_999, {str(n): n for n in range(9_999)}, 2**64 - 1, -(2**63)])
def test_the_largest_that_is_taken(value: Any) -> None:
    assert decode_json(encode(value)) == value


@pytest.mark.parametrize("value", [nested(33), [0] * 10_000, 2**64, -(2**63) - 1])
def test_the_smallest_that_is_refused(value: Any) -> None:
    with pytest.raises(ValueError):
        encode(value)


def test_a_value_that_contains_itself_is_refused() -> None:
    value: list[Any] = []
    value.append(value)
    with pytest.raises(ValueError):
        encode(value)
