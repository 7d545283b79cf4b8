"""gateway/permissions/capabilities.py: what the claims `channels` and `services` of a token permit."""

from typing import Any

import pytest

from snorky.gateway.permissions.capabilities import permits

CLAIMS = {
    "channels": {"orders:7": ["subscribe", "history"], "news:*": ["publish"]},
    "services": {"chat": {"room:*": ["join"]}, "pubsub": {"extra": ["subscribe"]}},
}


@pytest.mark.parametrize(
    ("service", "operation", "name", "expected"),
    [
        ("pubsub", "subscribe", "orders:7", True),
        ("pubsub", "history", "orders:7", True),
        ("pubsub", "publish", "orders:7", False),
        ("pubsub", "subscribe", "orders:77", False),
        ("pubsub", "publish", "news:a", True),
        ("pubsub", "subscribe", "extra", True),
        ("prices", "subscribe", "orders:7", False),  # `channels` is about the service pubsub
        ("chat", "join", "room:1", True),
        ("chat", "join", "orders:7", False),
        ("chat", "subscribe", "orders:7", False),
    ],
)
def test_claims_permit_what_they_say(service: str, operation: str, name: str, expected: bool) -> None:
    assert permits(CLAIMS, service, operation, name) is expected


@pytest.mark.parametrize(
    "channels",
    [
        None,
        [],
        ["orders:7"],
        "orders:7",
        {"orders:7": "subscribe"},  # a text contains the word, but is no list
        {"orders:7": {"subscribe": True}},
        {"orders:7": None},
        {"orders:{identity}": ["subscribe"]},
        {"{identity": ["subscribe"]},
        {"{wrong}": ["subscribe"]},
        {"": ["subscribe"]},
    ],
)
def test_claims_of_another_shape_permit_nothing(channels: Any) -> None:
    assert not permits({"channels": channels}, "pubsub", "subscribe", "orders:7")
    assert not permits({"services": channels}, "pubsub", "subscribe", "orders:7")
    assert not permits({"services": {"pubsub": channels}}, "pubsub", "subscribe", "orders:7")
