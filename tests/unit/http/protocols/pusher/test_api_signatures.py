"""Signatures of Pusher's HTTP API: the worked example of its documents, and queries that have one meaning."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from snorky.gateway.config.pusher import PusherApp
from snorky.gateway.http.protocols.pusher.signatures import request_text, sign, signed_query

EXAMPLE = {
    "auth_key": "278d425bdf160c739803",
    "auth_timestamp": "1353088179",
    "auth_version": "1.0",
    "body_md5": "ec365a775a4cd0599faeb73354201b6f",
}


def test_signature_of_the_documented_example() -> None:
    app = PusherApp("3", EXAMPLE["auth_key"], "7ad3773142a6692b25b8")
    given_signature = "da454824c97ba181a32ccc17a72625ba02771f50b50e1e7430e47a1f3f457e6c"
    query = signed_query([("auth_signature", given_signature), *reversed(EXAMPLE.items())])
    assert query is not None
    assert sign(app, request_text("POST", "/apps/3/events", query)) == given_signature


def test_names_are_signed_in_lower_case_and_sorted() -> None:
    query = signed_query([("Name", "Something else"), ("auth_key", "foo"), ("INFO", "")])
    assert query is not None
    assert request_text("GET", "/a", query) == "GET\n/a\nauth_key=foo&info=&name=Something else"


@pytest.mark.parametrize(
    "query",
    [
        [("info", "a"), ("info", "a")],
        [("info", "a"), ("INFO", "b")],
        [("auth_key", "k&info=a")],
        [("a&b", "1")],
        [("a=b", "1")],
    ],
)
def test_query_with_two_meanings_is_refused(query: list[tuple[str, str]]) -> None:
    assert signed_query(query) is None


pairs = st.lists(st.tuples(st.text(alphabet="ab=&A", max_size=4), st.text(alphabet="ab=&A", max_size=4)), max_size=4)


@given(pairs, pairs)
def test_queries_with_the_same_signed_text_are_the_same(
    one: list[tuple[str, str]], other: list[tuple[str, str]]
) -> None:
    first, second = signed_query(one), signed_query(other)
    if first is not None and second is not None and (first and second):
        assert (request_text("GET", "/", first) == request_text("GET", "/", second)) == (first == second)
