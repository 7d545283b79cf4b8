"""The publisher and the gateway's nodes agree on which of several Redis has a channel."""

import pytest
from scripted_redis import answer_each, commands, redis_url, text
from scripted_server import ScriptedServer

from snorky.client import Publication, Publisher
from snorky.client.redis.pool import Pools
from snorky.gateway.redis.multi.hashing import targets_of


def test_several_redis_share_the_channels_as_the_nodes_have_them() -> None:
    taking = answer_each(lambda _words: text(""))
    with ScriptedServer([taking]) as one, ScriptedServer([taking]) as other:
        urls = f"{redis_url(one)}, {redis_url(other)}"
        spread = targets_of(urls)
        with Publisher(urls) as publisher:
            publisher.publish_many(Publication(f"room {number}", number) for number in range(50))
        for server in (one, other):
            names = [command[3] for command in commands(server)]
            keys = [name.removeprefix("snorky:{").removesuffix("}") for name in names]
            assert len(keys) > 10
            assert {spread.of(key).safe_url for key in keys} == {redis_url(server)}
    with pytest.raises(ValueError, match="twice"):
        Publisher("redis://h:1/0,redis://h:1/0")


@pytest.mark.parametrize(
    "url",
    [
        "redis://h",
        "redis://:pw@h:1/2",
        "rediss://h:7/0",
        "redis://[::1]:7/0",
        "unix:///tmp/x.sock?db=3",
        "redis+sentinel://h:1,h:2/main/4",
        "rediss+sentinel://u:p@h:1/main",
    ],
)
def test_a_redis_has_the_identity_that_nodes_give_it(url: str) -> None:
    (target,) = targets_of(url)
    assert Pools(url, timeout_s=1).identities == {target.identity}
