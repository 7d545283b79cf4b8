"""What many Pusher clients receive: publications, and the members of presence channels."""

import json
from typing import Any, Literal

import pytest

from snorky.gateway.http.protocols.pusher.rendering import EventRendering, dialect_of
from snorky.gateway.protocol.publication import Change, Position

RENDERING = EventRendering("pubsub")
PLACE = Position("e", 7, "t")


def change(
    kind: Literal["+", "-", "="], *, channel: Any = "presence-a", is_identity: bool = True, data: Any = None
) -> Any:
    """Render a change of ann's membership; returns the event with its data decoded."""
    encoded = RENDERING.change(channel, Change(kind, is_identity, "ann", "n1.2", data=data))
    return None if encoded is None else {**json.loads(encoded), "data": json.loads(json.loads(encoded)["data"])}


def test_publication_is_an_event_on_its_channel_and_says_no_position() -> None:
    for position in (None, PLACE):
        found = RENDERING.encoder("a")(b'{"event":"b","data":"c"}', position, b"")
        assert json.loads(found) == {"event": "b", "channel": "a", "data": "c"}


def test_first_entry_of_a_user_is_added_with_its_data_and_its_last_one_removed() -> None:
    added = {"event": "pusher_internal:member_added", "channel": "presence-a"}
    assert change("+", data={"name": "Ann"}) == added | {"data": {"user_id": "ann", "user_info": {"name": "Ann"}}}
    assert change("+") == added | {"data": {"user_id": "ann", "user_info": None}}
    removed = {"event": "pusher_internal:member_removed", "channel": "presence-a", "data": {"user_id": "ann"}}
    assert change("-", data={"name": "Ann"}) == removed


@pytest.mark.parametrize("kind", ["+", "-"])
def test_further_connections_of_a_user_are_not_told(kind: Literal["+", "-"]) -> None:
    assert change(kind, is_identity=False) is None


def test_changed_data_is_not_told() -> None:
    assert change("=", data={"name": "Ann"}) is None


@pytest.mark.parametrize("channel", ["a", "private-a", ["presence-a"]])
def test_members_of_other_channels_are_not_told(channel: Any) -> None:
    assert change("+", channel=channel) is None


def test_notices_of_services_are_not_for_these_clients() -> None:
    assert EventRendering("pubsub").notice({"service": "pubsub", "message": {"type": "gap"}}) is None  # type: ignore[func-returns-value]


def test_dialect_serves_the_channels_of_its_service_only() -> None:
    dialect = dialect_of("shop")
    assert dialect is dialect_of("shop") and dialect is not dialect_of("pubsub")
    assert dialect.serves("shop") and not dialect.serves("pubsub")
    assert dialect.follows_connections
