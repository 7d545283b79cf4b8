"""Publications on the Redis wire: encoding and decoding; invalid bytes raise nothing else."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from snorky.gateway.errors import InvalidMessage
from snorky.gateway.protocol.publication import (
    MARK,
    Change,
    Position,
    Publication,
    Selector,
    UnknownVersion,
    read_publication,
    write_addressed,
    write_change,
    write_version,
)
from snorky.gateway.testing.history import write_sequenced

connection_ids = st.none() | st.from_regex(r"\A[0-9a-z]{1,20}\.[0-9]{1,9}\Z")
identities = st.none() | st.text(st.characters(exclude_categories=["Cs"]), max_size=50)


class Subscriber:
    def __init__(self, identity: str | None, connection_id: str = "n.1") -> None:
        self.identity = identity
        self.id = connection_id


# -- bare and sequenced -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("data", [b"", b"1", b'{"a":\n1}', b"not JSON", b"\xff"])
def test_bytes_without_a_mark_are_a_payload(data: bytes) -> None:
    assert read_publication(data) == Publication(data)


def test_sequenced_publication_has_its_position() -> None:
    data = MARK + b'1 e1:42:t7 t6 j\n{"a":\n1}'
    assert read_publication(data) == Publication(b'{"a":\n1}', Position("e1", 42, "t7"), "t6")


def test_unknown_field_of_this_version_is_accepted() -> None:
    """TRACEPARENT, and fields that a later minor version appends."""
    data = MARK + b"1 e1:42:t7 t6 j 00-abc-def-01 more\n1"
    assert read_publication(data).position == Position("e1", 42, "t7")


def test_messagepack_with_a_position_is_json_from_here_on() -> None:
    publication = read_publication(MARK + b"1 e:1:t t0 m\n\x82\xa1a\x01\xa1b\x93\x01\xc0\xc3")
    assert publication == Publication(b'{"a":1,"b":[1,null,true]}', Position("e", 1, "t"), "t0")


@pytest.mark.parametrize(
    "payload", [b"", b"\xc1", b"\x01\x02", b"\xc4\x01x", b"\x81\x01\x02", b"\xcb\x7f\xf8" + bytes(6)]
)
def test_malformed_messagepack_keeps_its_place_as_a_tombstone(payload: bytes) -> None:
    publication = read_publication(MARK + b"1 e:1:t t0 m\n" + payload)
    assert publication == Publication(b"null", Position("e", 1, "t"), "t0", fault="invalid")


@pytest.mark.parametrize("text", ["", "e:1", "e:1:t:x", "e:-1:t", "e:+1:t", "e: 1:t", "e:x:t", ":1:t", "e:1:", "e:²:t"])
def test_an_invalid_position_is_refused(text: str) -> None:
    with pytest.raises(ValueError):
        Position.parse(text)


def test_position_is_read_as_it_is_written() -> None:
    assert Position.parse(str(Position("e", 0, "t"))) == Position("e", 0, "t")


@pytest.mark.parametrize(
    "header", [b"4 x", b"", b"0", b'3 7 6 m ["+",true,"a","n.1",""]', b"11 e:1:t t j", b"1 e:1:t t x", b"2 m {}", b"x"]
)
def test_unknown_version_or_encoding_is_an_error_of_its_own(header: bytes) -> None:
    with pytest.raises(UnknownVersion):
        read_publication(MARK + header + b"\n1")


@pytest.mark.parametrize(
    "header",
    [
        *(b"1", b"1 e:1:t", b"1 e:1:t t", b"1 e:x:t t j", b"1 \xff:1:t t j", b"\xff"),
        *(b"3", b"3 j", b"3 7", b"3 7 6", b"3 7 6 j", b"3 x 6 j []", b"3 7 x j []", b"3 7 6 j [", b"3 7 6 j {}"),
        *(
            b'3 7 6 j ["*",true,"a","n.1",""]',
            b'3 7 6 j ["+",true,"a","n",""]',
            b'3 7 6 j ["+",true,"a","n.1\\n",""]',
            b'3 7 6 j ["+",1,"a","n.1",""]',
            b'3 7 6 j ["+",true,"a","n.1"]',
        ),
        *(b"2", b"2 j", b"2 j [", b"2 j []", b"2 j 1", b'2 j {"only":1}', b'2 j {"only":null}', b"2 j \xff"),
    ],
)
def test_header_that_cannot_be_read_is_an_invalid_message(header: bytes) -> None:
    with pytest.raises(InvalidMessage):
        read_publication(MARK + header + b"\n1")


@given(st.binary(max_size=60))
def test_no_bytes_raise_anything_else(data: bytes) -> None:
    for version in (b"", b"1 ", b"1 e:1:t t m\n", b"2 j ", b"3 ", b'3 7 6 j ["+",true,"a","n.1",""]\n'):
        try:
            read_publication(MARK + version + data)
        except InvalidMessage:
            pass


# -- addressed --------------------------------------------------------------------------------------------------------


@given(identities, identities, connection_ids, st.binary(max_size=20))
def test_selector_is_read_as_it_is_written(only: str | None, not_: str | None, id_: str | None, payload: bytes) -> None:
    selector = Selector(only, not_, id_)
    assert read_publication(write_addressed(payload, selector)) == Publication(payload, selector=selector)


def test_selector_of_a_newer_node_selects_no_subscriber() -> None:
    """The selector was meant for fewer subscribers than this version would deliver to."""
    with pytest.raises(UnknownVersion):
        read_publication(MARK + b'2 j {"not":"n.1","only_team":"red"}\n1')


@pytest.mark.parametrize(
    ("selector", "chosen"),
    [
        (Selector(), {"bob 1", "bob 2", "ann 3", "anonymous 4"}),
        (Selector(only_identity="bob"), {"bob 1", "bob 2"}),
        (Selector(not_identity="bob"), {"ann 3", "anonymous 4"}),
        (Selector(not_connection="n.2"), {"bob 1", "ann 3", "anonymous 4"}),
        (Selector(only_identity="bob", not_connection="n.2"), {"bob 1"}),
        (Selector(only_identity="bob", not_identity="bob"), set()),
    ],
)
def test_selector_selects_by_identity_and_connection(selector: Selector, chosen: set[str]) -> None:
    everybody = {
        "bob 1": Subscriber("bob", "n.1"),
        "bob 2": Subscriber("bob", "n.2"),
        "ann 3": Subscriber("ann", "n.3"),
        "anonymous 4": Subscriber(None, "n.4"),
    }
    assert {name for name, each in everybody.items() if selector.selects(each)} == chosen


# -- sequenced and addressed ------------------------------------------------------------------------------------------


@given(identities, identities, connection_ids, st.booleans(), st.binary(max_size=20))
def test_publication_with_a_position_has_its_selector(
    only: str | None, not_: str | None, id_: str | None, is_whole: bool, payload: bytes
) -> None:
    publication = Publication(payload, Position("e1", 42, "t7"), "t6")
    selector = Selector(only, not_, id_, is_whole)
    assert read_publication(write_sequenced(publication, selector)) == replace(publication, selector=selector)
    assert read_publication(write_sequenced(publication)) == publication


def test_selector_follows_fields_of_a_later_version_and_messagepack() -> None:
    data = MARK + b'1 e:1:t t0 m 00-abc-01 more {"not":"n.1"}\n\x01'
    assert read_publication(data) == Publication(b"1", Position("e", 1, "t"), "t0", Selector(not_connection="n.1"))


@pytest.mark.parametrize(
    "selector", [b"{", b'{"not":1}', b'{"not":null}', b'{"not":"n.1"} more', b"{\xff}", b'{"a" :}']
)
def test_selector_of_a_position_that_cannot_be_read_is_an_invalid_message(selector: bytes) -> None:
    """Delivered to all, it would reach who must not get it."""
    with pytest.raises(InvalidMessage):
        read_publication(MARK + b"1 e:1:t t0 j " + selector + b"\n1")


def test_selector_of_a_newer_node_with_a_position_selects_no_subscriber() -> None:
    with pytest.raises(UnknownVersion):
        read_publication(MARK + b'1 e:1:t t0 j {"not":"n.1","only_team":"red"}\n1')


# -- changes of a roster ----------------------------------------------------------------------------------------------


@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=20), st.booleans(), st.booleans(), st.binary())
def test_change_is_decoded_as_it_was_encoded_around_the_notice(
    identity: str, has_joined: bool, is_identity: bool, payload: bytes
) -> None:
    data = {"any": [1, identity]} if has_joined else None
    change = Change("+" if has_joined else "-", is_identity, identity, "n.1", "a b\nc", 2**53, 2**52, data)
    selector = Selector(not_identity=identity)
    notice = write_addressed(payload, selector)
    written = write_version(write_change(notice, change), change.version, change.previous)
    assert read_publication(written) == Publication(payload, selector=selector, change=change)


@pytest.mark.parametrize("inner", [b"1 e:1:t t j\n1", b'3 7 6 j ["+",true,"a","n.1",""]\n1', b"3 " * 5_000, b"x"])
def test_only_bare_or_addressed_publications_carry_roster_changes(inner: bytes) -> None:
    with pytest.raises(InvalidMessage):
        read_publication(MARK + b'3 7 6 j ["+",true,"a","n.1",""]\n' + MARK + inner)
