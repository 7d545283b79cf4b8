"""`protocol.channel_names`: the vectors that all clients share, and errors that only Python objects can cause."""

import json
import struct
from collections import OrderedDict, namedtuple
from enum import IntEnum, StrEnum
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from snorky.gateway.errors import InvalidChannel
from snorky.gateway.protocol.channel_names import (
    CHANNEL_MAX_BYTES,
    MAX_DEPTH,
    canonical,
    channel_key,
    channel_name,
    channel_of,
    es6_number,
)

VECTORS = Path(__file__).parents[2] / "vectors"
CANONICAL = json.loads((VECTORS / "canonical.json").read_text())
NAMES = json.loads((VECTORS / "redis_names.json").read_text())["names"]

CHANNELS = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**53) + 1, 2**53 - 1)
    | st.floats(-1e15, 1e15)
    | st.floats(min_value=1e21, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
    | st.text("~[]{}\"'a1", max_size=6),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.text(st.characters(exclude_categories=["Cs"]), max_size=5), inner, max_size=3)
    ),
    max_leaves=4,
)


@pytest.mark.parametrize("case", CANONICAL["canonical"], ids=lambda case: str(case["name"]))
def test_canonical_form_is_the_vectors_and_stays_when_read_again(case: dict[str, str]) -> None:
    assert canonical(json.loads(case["channel"])) == case["canonical"]
    assert canonical(json.loads(case["canonical"])) == case["canonical"]
    channel_name(json.loads(case["channel"]))  # short enough, too


@pytest.mark.parametrize(("one", "other"), CANONICAL["equal"])
def test_equal_entities_are_one_channel(one: str, other: str) -> None:
    assert channel_name(json.loads(one)) == channel_name(json.loads(other))


@pytest.mark.parametrize(("one", "other"), CANONICAL["unequal"])
def test_unequal_entities_are_two_channels(one: str, other: str) -> None:
    assert canonical(json.loads(one)) != canonical(json.loads(other))
    assert channel_name(json.loads(one)) != channel_name(json.loads(other))


@pytest.mark.parametrize("case", CANONICAL["refused"], ids=lambda case: str(case["name"]))
def test_channel_of_the_refused_vectors_is_refused(case: dict[str, str]) -> None:
    with pytest.raises(InvalidChannel):
        channel_name(json.loads(case["channel"]))


@pytest.mark.parametrize("case", CANONICAL["numbers"], ids=lambda case: str(case["ieee754"]))
def test_doubles_are_written_as_ecmascript_does(case: dict[str, str]) -> None:
    (number,) = struct.unpack(">d", bytes.fromhex(case["ieee754"]))
    assert es6_number(number) == case["text"]


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_every_finite_double_reads_back_as_itself(number: float) -> None:
    assert float(es6_number(number)) == number


@pytest.mark.parametrize("number", [float("nan"), float("inf"), float("-inf")])
def test_non_finite_numbers_have_no_text(number: float) -> None:
    with pytest.raises(InvalidChannel):
        es6_number(number)
    with pytest.raises(InvalidChannel):
        channel_name([number])


@pytest.mark.parametrize("case", NAMES, ids=lambda case: str(case["redis"])[:40])
def test_names_on_redis_are_the_vectors_and_lead_back(case: dict[str, str]) -> None:
    channel = json.loads(case["channel"])
    key = channel_key(case["service"], channel)
    assert f"{case['prefix']}:{{{key}}}" == case["redis"]
    name = key.partition(":")[2]
    assert channel_name(channel_of(name)) == name
    assert canonical(channel_of(name)) == canonical(channel)


@given(CHANNELS)
def test_channel_of_undoes_channel_name(channel: Any) -> None:
    try:
        name = channel_name(channel)
    except InvalidChannel:
        assert len(canonical(channel).encode()) > CHANNEL_MAX_BYTES  # the strategy makes no other invalid values
        return
    back = channel_of(name)
    assert back == channel and canonical(back) == canonical(channel)


@given(CHANNELS, CHANNELS)
def test_two_channels_share_a_name_iff_they_share_the_canonical_form(one: Any, other: Any) -> None:
    try:
        is_same_name = channel_name(one) == channel_name(other)
    except InvalidChannel:
        return
    assert is_same_name == (canonical(one) == canonical(other))


@given(st.text(max_size=300))
def test_a_string_is_a_channel_iff_it_has_utf8_of_255_bytes_in_canonical_form(text: str) -> None:
    try:
        fits = len(json.dumps(text, ensure_ascii=False).encode()) <= CHANNEL_MAX_BYTES
    except UnicodeEncodeError:
        fits = False
    if fits:
        assert channel_of(channel_name(text)) == text
    else:
        with pytest.raises(InvalidChannel):
            channel_name(text)


@pytest.mark.parametrize(
    "name",
    [
        "~",
        "~{bad",
        "~ 1",
        "~1.0",
        '~"a"',
        '~{"b":1,"a":2}',
        "~[1, 2]",
        "~1e999",
        "~9007199254740993",
        "~1 2",
        "~\ud800",
        "\ud800",
        '~"~\\u0041"',
        "~" + "[" * 100_000,
        "~" + "[" * 33 + "]" * 33,
        "a" * 254,
        '~"~' + "a" * 253 + '"',
    ],
    ids=lambda name: ascii(name)[:20],
)
def test_a_name_that_no_channel_has_is_refused(name: str) -> None:
    with pytest.raises(InvalidChannel):
        channel_of(name)


def test_python_values_are_taken_for_the_json_they_are() -> None:
    class Room(StrEnum):
        LOBBY = "lobby"

    class Floor(IntEnum):
        FIRST = 1

    class Money(float):
        def __repr__(self) -> str:
            return "lots"

    point = namedtuple("point", "x y")
    assert channel_name(Room.LOBBY) == "lobby" and type(channel_name(Room.LOBBY)) is str
    assert canonical([Room.LOBBY, Floor.FIRST, Money(1.5), (1, 2)]) == '["lobby",1,1.5,[1,2]]'
    assert canonical(point(1, 2)) == "[1,2]"  # type: ignore[arg-type]
    assert canonical(OrderedDict([(Room.LOBBY, 1), ("a", 2)])) == '{"a":2,"lobby":1}'


@pytest.mark.parametrize(
    "value", [b"a", {1: 2}, {None: 1}, {"a": b""}, {1, 2}, object(), 1j], ids=lambda value: type(value).__name__
)
def test_a_value_outside_json_is_no_channel(value: Any) -> None:
    with pytest.raises(InvalidChannel):
        channel_name(value)


def test_a_cycle_is_refused_without_recursion_error() -> None:
    cycle: list[Any] = []
    cycle.append(cycle)
    with pytest.raises(InvalidChannel):
        canonical(cycle)


def test_depth_is_allowed_up_to_the_limit_and_not_beyond() -> None:
    value: list[Any] = []
    for _ in range(MAX_DEPTH - 1):
        value = [value]
    assert canonical(value) == "[" * MAX_DEPTH + "]" * MAX_DEPTH
    with pytest.raises(InvalidChannel):
        canonical([value])
