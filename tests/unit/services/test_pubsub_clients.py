"""Descriptions of connections for backends: pages with the data of entries, which fit into a reply."""

from typing import Any

import pytest

from snorky.gateway import Member, Owner
from snorky.gateway.protocol.codec import MAX_DEPTH, encode_json
from snorky.services.pubsub.clients import client, clients_page


def member(serial: int, data: Any = None, identity: str = "ann") -> Member:
    return Member(identity, Owner("n", "i", serial), "", data)


def test_data_are_shown_only_where_they_are_asked_for() -> None:
    assert client(member(1, {"a": 1}), has_data=False) == {"connection": "n.1", "identity": "ann"}
    assert client(member(1, 0), has_data=True) == {"connection": "n.1", "identity": "ann", "data": 0}
    assert client(member(1, identity="n.1"), has_data=True) == {"connection": "n.1", "identity": None}


def test_pages_are_in_the_order_of_ids_and_end_early_if_the_data_are_large(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("snorky.services.pubsub.clients.PAGE_DATA_MAX_BYTES", 250)
    found = [member(serial, "x" * size) for serial, size in ((5, 1), (1, 100), (2, 100), (3, 1_000), (4, 1))]
    after, pages = "", []
    while after is not None:
        page = clients_page(found, after, 4)
        pages.append([each["connection"] for each in page["connections"]])
        after = page["next"]
    assert pages == [["n.1", "n.2"], ["n.3"], ["n.4", "n.5"]]
    assert clients_page([], "", 4) == {"connections": [], "next": None}


def test_data_that_nest_too_deeply_for_a_reply_are_left_out() -> None:
    deepest: Any = 1
    for _ in range(MAX_DEPTH - 6):
        deepest = [deepest]
    page = clients_page([member(1, deepest), member(2, [deepest]), member(3, "last")], "", 9)
    assert [each.get("data") for each in page["connections"]] == [deepest, None, "last"]
    encode_json({"service": "control", "message": {"type": "response", "callId": 1, "data": page}})
    named = {each["connection"]: {"conn_info": each.get("data")} for each in page["connections"]}
    encode_json({"replies": [{"presence": {"presence": named}}]})
