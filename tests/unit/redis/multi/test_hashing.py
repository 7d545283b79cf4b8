"""Spread: the same server for the same key, on every node; and which keys are written where."""

import json
from collections import Counter
from pathlib import Path

import pytest

from snorky.gateway.errors import ConfigurationError
from snorky.gateway.redis.multi.hashing import Spread, targets_of

VECTORS = Path(__file__).resolve().parents[3] / "vectors" / "spread.json"
KEYS = [f"pubsub:{number}" for number in range(3000)]


def test_keys_lie_on_the_servers_of_the_published_vectors() -> None:
    vectors = json.loads(VECTORS.read_text())
    spread = targets_of(",".join(vectors["urls"]))
    for vector in vectors["keys"]:
        assert spread.of(vector["key"]).identity == vector["server"], vector


def test_each_server_gets_its_share() -> None:
    spread = Spread({f"redis://{host}:6379/0": host for host in "abc"})
    shares = Counter(spread.of(key) for key in KEYS)
    assert all(900 < share < 1100 for share in shares.values()), shares


def test_one_server_more_takes_keys_from_the_others_and_moves_no_other() -> None:
    before = Spread({host: host for host in "abc"})
    after = Spread({host: host for host in "dcba"})
    moved = [key for key in KEYS if before.of(key) != after.of(key)]
    assert 600 < len(moved) < 900
    assert {after.of(key) for key in moved} == {"d"}


def test_logins_options_and_order_do_not_matter_for_where_keys_lie() -> None:
    one = targets_of("redis://a:1,redis://:secret@b:2/0,redis+sentinel://s:1,t:2/main")
    other = targets_of("redis+sentinel://u:p@t:2/main/0,redis://user:other@b:2,redis://a:1/0")
    assert [one.of(key).identity for key in KEYS[:300]] == [other.of(key).identity for key in KEYS[:300]]
    assert "redis+sentinel://main/0" in {one.of(key).identity for key in KEYS[:300]}


@pytest.mark.parametrize("urls", ["redis://a,redis://a:6379/0", "redis+sentinel://a/main,redis+sentinel://b/main"])
def test_a_server_that_is_named_twice_is_refused(urls: str) -> None:
    with pytest.raises(ConfigurationError, match="twice"):
        targets_of(urls)


def test_any_text_has_a_place() -> None:
    assert Spread({"a": 1, "b": 2}).of("\ud800") in (1, 2)
