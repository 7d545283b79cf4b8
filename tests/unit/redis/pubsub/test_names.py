"""Names of channels in Redis, and the keys that have them."""

import pytest

from snorky.gateway.redis.keys import DIRECT_KEY, canary_name, sharded_canary_name, stream_key
from snorky.gateway.redis.pubsub.names import PubSubNames

NAMES = PubSubNames("snorky")
KEYS = ["pubsub:news", "pubsub:", "pubsub:}", "pubsub:a}:history}", "pubsub:{x}", "chat:\U0001f600 é", "a:nodes{b}"]


@pytest.mark.parametrize("key", KEYS)
def test_each_name_of_a_key_is_read_as_this_key(key: str) -> None:
    opened, of_nodes = NAMES.of(key)
    assert NAMES.read(opened) == (key, False)
    assert NAMES.read(of_nodes) == (key, True)


def test_only_nodes_publish_direct_messages() -> None:
    (name,) = NAMES.of(DIRECT_KEY + "n1")
    assert NAMES.read(name) == (DIRECT_KEY + "n1", True)


@pytest.mark.parametrize(
    "name",
    [
        canary_name("snorky", "n1"),
        sharded_canary_name("snorky", "n1", lambda _: True),
        stream_key("snorky", "pubsub:news"),
        b"other:{pubsub:news}",
        b"snorky:{pubsub:news",
        b"snorky:{pubsub:\xff}",
        b"",
        b"}",
    ],
)
def test_other_names_belong_to_no_key(name: bytes) -> None:
    assert NAMES.read(name) is None
