"""Attributes of publications, and data of roster entries: encoding and decoding; malformed ones are none."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from snorky.gateway.errors import InvalidMessage
from snorky.gateway.protocol.attributes import entry_data, infos_in, read_attributes, write_attributes
from snorky.gateway.protocol.publication import (
    MARK,
    Position,
    Publication,
    Selector,
    as_hint,
    read_publication,
    write_described,
)
from snorky.gateway.testing.history import write_sequenced

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=10,
)
infos = st.fixed_dictionaries({"user": texts, "client": texts}, optional={"conn_info": values, "chan_info": values})
tags = st.dictionaries(texts, texts, min_size=1, max_size=5)
PLACE = Position("e", 7, "t")
ANN: dict[str, Any] = {"user": "ann {\n", "client": "n.1", "conn_info": {"name": "Ann € {", "n": [1, None]}}
WRITTEN = write_attributes(info=ANN, tags={"a b": "{c} {"})


def deep(depth: int) -> Any:
    value: Any = 1
    for _ in range(depth):
        value = [value]
    return value


@given(infos, tags)
def test_attributes_are_one_word_and_are_read_as_written(info: dict[str, Any], tags: dict[str, str]) -> None:
    for given_ in ({"info": info}, {"tags": tags}, {"info": info, "tags": tags}):
        written = write_attributes(**given_)
        assert written.isascii() and not set(written) & set(b" \t\r\n\v\f")
        assert read_attributes(written) == given_


def test_infos_may_nest_24_levels_deep() -> None:
    info = {"user": "ann", "client": "n.1", "conn_info": deep(24)}
    assert read_attributes(write_attributes(info=info)) == {"info": info}


def test_without_attributes_nothing_is_written() -> None:
    assert write_attributes() == write_attributes(tags={}) == b""
    assert read_attributes(b"") == {}


@pytest.mark.parametrize("conn_info", [float("nan"), 2**64, "\ud800", deep(40), deep(25)])
def test_attributes_that_no_reply_can_have_are_refused(conn_info: Any) -> None:
    with pytest.raises(InvalidMessage):
        write_attributes(info={"user": "ann", "client": "n.1", "conn_info": conn_info})


@pytest.mark.parametrize(
    "written",
    [
        b"x",
        b"\xff",
        b"[]",
        b'{"tags":{"a":1}}',
        b'{"tags":null}',
        b'{"info":{"user":"ann"}}',
        b'{"info":{"user":1,"client":"n.1"}}',
        b'{"info":{"user":"ann","client":"n.1","conn_info":%b}}' % (b"[" * 30 + b"]" * 30),
        b'{"info":{"user":"ann","client":"n.1","conn_info":%b}}' % (b"9" * 30),
        b'{"tags":{"a":"\\ud800"}}',
    ],
)
def test_malformed_attributes_are_none(written: bytes) -> None:
    assert read_attributes(written) == {}


def test_attributes_of_later_nodes_are_ignored() -> None:
    written = b'{"later":1,"tags":{"a":"b"},"info":{"user":"","client":"n.1","later":[]}}'
    assert read_attributes(written) == {"info": {"user": "", "client": "n.1"}, "tags": {"a": "b"}}


@pytest.mark.parametrize("payload", [b"1", b'{"a":\n1}', b'" {"'])
def test_headers_have_attributes(payload: bytes) -> None:
    described = Publication(payload, attributes=WRITTEN)
    assert read_publication(write_described(payload, WRITTEN)) == described
    kept = Publication(payload, PLACE, "before", attributes=WRITTEN)
    assert read_publication(write_sequenced(kept)) == kept
    to = Selector(not_connection="n.1")
    addressed = Publication(payload, PLACE, "before", attributes=WRITTEN, selector=to)
    assert read_publication(write_sequenced(kept, to)) == addressed
    assert described.size == len(payload) + len(WRITTEN)


def test_position_that_a_publisher_claims_has_no_attributes() -> None:
    hint = as_hint(write_sequenced(Publication(b"1", PLACE, "before", attributes=WRITTEN)))
    assert hint is not None and read_publication(hint) == Publication(b"1", hint=PLACE)


def test_nodes_of_earlier_versions_deliver_publications_without_attributes() -> None:
    """They take the first three words of the header of a sequenced publication, and a selector behind a blank."""
    header = write_sequenced(Publication(b"1", PLACE, "before", attributes=WRITTEN))[1:].split(b"\n")[0]
    fields, is_addressed, _ = header.partition(b" {")
    assert not is_addressed and fields.split(b" ")[:4] == [b"1", b"e:7:t", b"before", b"j"]
    # they read a selector, of which they know all keys, and which selects every connection: ids have a dot and a number
    header = write_described(b"1", WRITTEN)[1:].split(b"\n")[0]
    version, encoding, selector = header.split(b" ", 2)
    ((key, value),) = json.loads(selector).items()
    assert (version, encoding, key) == (b"2", b"j", "not") and value[0] == "=" and not value[-1].isdigit()


def test_further_words_of_later_nodes_are_ignored() -> None:
    assert read_publication(MARK + b"1 e:7:t before j later =x\n1") == Publication(b"1", PLACE, "before")
    assert read_publication(MARK + b'1 e:7:t before j =x later {"not":"n.1"}\n1') == Publication(
        b"1", PLACE, "before", attributes=b"x", selector=Selector(not_connection="n.1")
    )


@given(values, values)
def test_both_infos_of_a_roster_entry_are_read_as_written(conn_info: Any, chan_info: Any) -> None:
    assert infos_in(entry_data(conn_info, chan_info)) == (conn_info, chan_info)


def test_data_without_chan_info_are_the_conn_info() -> None:
    for info in (None, False, {"name": "Ann"}, {"conn_info": 1}, {"conn_info": 1, "chan_info": 2, "x": 3}):
        assert entry_data(info) == info
        assert infos_in(info) == (info, None)
    pair = {"conn_info": 1, "chan_info": 2}
    assert infos_in(entry_data(pair)) == (pair, None), "a claim that looks like both"
