"""Signatures: those of the protocol's documentation, and everything that is none."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from snorky.gateway.config.pusher import PusherApp
from snorky.gateway.http.protocols.pusher.signatures import is_signed, request_text, sign, signed_query

# the app and the examples of https://pusher.com/docs/channels/library_auth_reference/auth-signatures/
APP = PusherApp(id="3", key="278d425bdf160c739803", secret="7ad3773142a6692b25b8")
PRIVATE = "58df8b0c36d6982b82c3ecf6b4662e34fe8c25bba48f5369f135bf843651c3a4"
PRESENCE = "31935e7d86dba64c2a90aed31fdc61869f9b22ba9d8863bba239c03ca481bc80"
MEMBER = '{"user_id":10,"user_info":{"name":"Mr. Channels"}}'


def test_signatures_of_the_documentation() -> None:
    assert sign(APP, "1234.1234:private-foobar") == PRIVATE
    assert sign(APP, f"1234.1234:presence-foobar:{MEMBER}") == PRESENCE
    assert is_signed(APP, "1234.1234:private-foobar", f"{APP.key}:{PRIVATE}")
    assert is_signed(APP, f"1234.1234:presence-foobar:{MEMBER}", f"{APP.key}:{PRESENCE}")


@pytest.mark.parametrize(
    "auth",
    [
        None,
        "",
        7,
        [f"{APP.key}:{PRIVATE}"],
        PRIVATE,
        f":{PRIVATE}",
        f"{APP.key}{PRIVATE}",
        f"other:{PRIVATE}",
        f"{APP.key}:{PRIVATE} ",
        f"{APP.key}:{PRIVATE.upper()}",
        f"{APP.key}:{PRIVATE[:-1]}",
        f"{APP.key}:{PRESENCE}",
        f"{APP.key}:é",
        f"{APP.key}:\ud800",
    ],
)
def test_what_is_no_signature(auth: object) -> None:
    assert not is_signed(APP, "1234.1234:private-foobar", auth)


@given(st.text(), st.text())
def test_signature_is_of_one_text_and_one_secret(text: str, other: str) -> None:
    auth = f"{APP.key}:{sign(APP, text)}"
    assert is_signed(APP, text, auth)
    assert is_signed(APP, other, auth) == (text == other)
    assert not is_signed(PusherApp(id="3", key=APP.key, secret="another"), text, auth)


def test_request_of_the_documentation() -> None:
    query = {
        "auth_version": "1.0",
        "auth_timestamp": "1353088179",
        "auth_signature": "left out",
        "body_md5": "ec365a775a4cd0599faeb73354201b6f",
        "auth_key": APP.key,
    }
    text = request_text("POST", "/apps/3/events", query)
    assert text == (
        "POST\n/apps/3/events\nauth_key=278d425bdf160c739803&auth_timestamp=1353088179&auth_version=1.0"
        "&body_md5=ec365a775a4cd0599faeb73354201b6f"
    )
    assert sign(APP, text) == "da454824c97ba181a32ccc17a72625ba02771f50b50e1e7430e47a1f3f457e6c"


@given(st.lists(st.tuples(st.text(), st.text()), max_size=4))
def test_query_that_is_accepted_has_one_text_to_sign(pairs: list[tuple[str, str]]) -> None:
    query = signed_query(pairs)
    if query is not None:
        text = request_text("GET", "/a", query).split("\n", 2)[2]
        read = dict(part.split("=", 1) for part in text.split("&")) if text else {}
        assert read == {name: value for name, value in query.items() if name != "auth_signature"}


@pytest.mark.parametrize(
    "pairs", [[("a", "1"), ("a", "1")], [("a", "1"), ("A", "2")], [("a", "1&b=2")], [("a&b", "1")], [("a=b", "1")]]
)
def test_query_whose_text_could_be_that_of_another_one_is_refused(pairs: list[tuple[str, str]]) -> None:
    assert signed_query(pairs) is None


def test_names_of_a_query_are_signed_in_lower_case() -> None:
    assert signed_query([("Auth_Key", "K=")]) == {"auth_key": "K="}
