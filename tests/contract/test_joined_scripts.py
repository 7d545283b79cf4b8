"""Scripts that are joined, on every supported server: one command, an answer for each."""

from collections.abc import AsyncIterator

import hiredis
import pytest

from snorky.gateway.metrics import Metrics
from snorky.gateway.redis.backend import parts_of
from snorky.gateway.redis.connection.resp import command
from snorky.gateway.redis.connection.scripts import Call, Joined, Scripts
from snorky.gateway.redis.keys import claim_key, leases_key, node_key, nodes_key, reaped_key
from snorky.gateway.redis.multi.hashing import targets_of
from tests.support.servers.redis_servers import KINDS
from tests.support.servers.shared import SharedServers

LEASES, REAPED, NODES = leases_key("test"), reaped_key("test"), nodes_key("test").encode()
LOOK = Call("look", [LEASES, REAPED], [b"100", b"9000"])


def renew(owner: str) -> Call:
    keys = [LEASES, claim_key("test", owner), REAPED, NODES, node_key("test", owner).encode()]
    return Call("renew", keys, [owner.encode(), b"8000", b"60000", owner.encode(), b'{"a b": "\xc3\xa9"}'])


@pytest.fixture(params=[*KINDS, "cluster"])
async def scripts(request: pytest.FixtureRequest, shared: SharedServers) -> AsyncIterator[Scripts]:
    async with shared.lend(request.param) as running:
        (target,) = targets_of(running.url)
        commands = parts_of(target, prefix="test", node_id="n", metrics=Metrics()).commands("lease", 2.0)
        commands.start()
        yield Scripts(commands)
        await commands.stop()


async def test_each_script_gets_its_keys_and_arguments_and_has_its_answer(scripts: Scripts) -> None:
    steps = Joined([LOOK, renew("a"), renew("b"), LOOK, renew("a")])
    ((before, a, b, after, again),) = await scripts.run(steps)
    assert before == [[], []] and a == b == [b"new", b""] and again == [b"held", b""]
    leases, sweeps = after
    assert (leases[::2], sweeps) == ([b"a", b"b"], []) and all(-8000 <= ms <= -7000 for ms in leases[1::2])
    assert await scripts.run(command(b"GET", node_key("test", "b").encode())) == ['{"a b": "é"}'.encode()]


async def test_an_error_of_one_script_is_only_its_own(scripts: Scripts) -> None:
    swept = Call("swept", [LEASES, claim_key("test", "a")], [b"a", b"1"])
    _, answers = await scripts.run(command(b"SET", REAPED, b"not a sorted set"), Joined([swept, LOOK, swept]))
    assert answers[::2] == [0, 0]
    assert isinstance(answers[1], hiredis.ReplyError) and "WRONGTYPE" in str(answers[1])


async def test_only_scripts_that_need_no_memory_can_be_joined(scripts: Scripts) -> None:
    with pytest.raises(ValueError, match="enter is not allowed when memory is short"):
        await scripts.run(Joined([LOOK, Call("enter", [], [])]))
