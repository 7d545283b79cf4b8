"""Names of channels: which there are, what their prefixes say, also to the rules; ids of connections."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from snorky.gateway import ChannelRule, Rules
from snorky.gateway.config.pusher import RULES
from snorky.gateway.http.protocols.pusher.names import (
    ChannelKind,
    connection_id_of,
    is_channel,
    kind_of,
    socket_id_of,
)

PREFIXES = ("private-", "presence-", "encrypted-", "cache-", "#server-to-user-", "client-", "pri", "a")
_RULES: Rules[ChannelRule] = Rules.read(RULES)


@pytest.mark.parametrize("name", ["a", "A-b_c=d@e,f.g;0", "x" * 200, "#server-to-user-7", "private-a", "presence-"])
def test_names_of_channels(name: str) -> None:
    assert is_channel(name)


@pytest.mark.parametrize("name", ["", "x" * 201, "a b", "a:b", "a/b", "é", "a\n", "²", 7, None, ["a"]])
def test_what_is_no_name_of_a_channel(name: object) -> None:
    assert not is_channel(name)


@pytest.mark.parametrize("name", ["#a", "a#b", "#server-to-user-", "#server-to-users-a", " #server-to-user-a"])
def test_number_sign_begins_only_the_channels_of_users(name: str) -> None:
    assert not is_channel(name)


@pytest.mark.parametrize("user", ["ann", "auth0|7", "a b", "é", "x" * 200])
def test_channels_of_users_have_their_ids_as_they_are(user: str) -> None:
    assert is_channel(f"#server-to-user-{user}") and kind_of(f"#server-to-user-{user}").user == user
    assert not is_channel(f"#server-to-user-{user}\n") and not is_channel(f"#server-to-user-{user * 201}")


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("news", ChannelKind(False, False, False, False)),
        ("private", ChannelKind(False, False, False, False)),
        ("my-private-a", ChannelKind(False, False, False, False)),
        ("Private-a", ChannelKind(False, False, False, False)),
        ("cache-a", ChannelKind(False, False, False, True)),
        ("private-a", ChannelKind(True, False, False, False)),
        ("private-cache-a", ChannelKind(True, False, False, True)),
        ("private-encrypted-a", ChannelKind(True, False, True, False)),
        ("private-encrypted-cache-a", ChannelKind(True, False, True, True)),
        ("presence-a", ChannelKind(False, True, False, False)),
        ("presence-cache-a", ChannelKind(False, True, False, True)),
        ("presence-encrypted-a", ChannelKind(False, True, False, False)),
        ("private-presence-cache-a", ChannelKind(True, False, False, False)),
        ("presence-private-cache-a", ChannelKind(False, True, False, False)),
        ("#server-to-user-7", ChannelKind(False, False, False, False, user="7")),
        ("#server-to-user-private-a", ChannelKind(False, False, False, False, user="private-a")),
    ],
)
def test_prefixes_say_the_kind(name: str, expected: ChannelKind) -> None:
    assert kind_of(name) == expected


@pytest.mark.parametrize(
    ("name", "needs_signature", "has_client_events"),
    [
        ("news", False, False),
        ("cache-a", False, False),
        ("#server-to-user-7", False, False),
        ("private-a", True, True),
        ("presence-cache-a", True, True),
        ("private-encrypted-a", True, False),
    ],
)
def test_kind_says_what_needs_a_signature_and_has_client_events(
    name: str, needs_signature: bool, has_client_events: bool
) -> None:
    assert (kind_of(name).needs_signature, kind_of(name).has_client_events) == (needs_signature, has_client_events)


@given(st.lists(st.sampled_from(PREFIXES), max_size=4).map("".join))
def test_rules_and_kinds_agree_about_every_name(name: str) -> None:
    kind, rule = kind_of(name), _RULES.find(name)
    assert (rule.history > 0) == kind.is_cache
    assert (rule.presence and rule.join_leave) == kind.is_presence
    assert (rule.words("subscribe") == "token") == (kind.needs_signature or kind.user is not None)
    assert rule.words("publish") == ("nobody" if name.startswith("cache-") else rule.words("subscribe"))


@given(st.integers(0, 2**48 - 1), st.integers(0, 10**18 - 1))
def test_socket_id_has_the_form_that_libraries_check_and_is_reversible(node: int, serial: int) -> None:
    connection_id = f"n{node:012x}.{serial}"
    socket_id = socket_id_of(connection_id)
    assert re.fullmatch(r"\d+\.\d+", socket_id)
    assert connection_id_of(socket_id) == connection_id


@pytest.mark.parametrize(
    "text", ["", "1", "1.", ".1", "a.1", "1.2.3", "-1.2", "1.2\n", "1.²", f"{10**15}.1", None, 1.2]
)
def test_what_is_no_socket_id(text: object) -> None:
    assert connection_id_of(text) is None
