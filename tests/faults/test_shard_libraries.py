"""The function library of one shard of a Cluster is wrong or lost: nodes repair it from the other shards."""

import asyncio
from collections.abc import AsyncIterator

import pytest

from snorky.gateway.config.rules.channel_rules import ChannelRule, Rules
from snorky.gateway.protocol.publication import Position
from snorky.gateway.redis import RedisHistory
from snorky.gateway.redis.history.library_instance import Doubt
from snorky.gateway.redis.history.library_text import FORMAT, Found, judge, lines_in, write_library
from snorky.gateway.redis.keys import channel_name
from tests.support.fakes.brokers import PREFIX
from tests.support.processes.tools import eventually
from tests.support.servers.clusters import ClusterLab
from tests.support.servers.shards import keepers_of, key_on, shard_of
from tests.support.servers.shared import SharedServers

pytestmark = pytest.mark.needs("redis-server")

HOUR_US = 3_600_000_000
MORE_RULES = Rules([ChannelRule("*", history=2000)])
OLDER = "#!lua name=snorky\n-- format 1\nredis.register_function('snorky_publish', function() return '' end)\n"
FOREIGN = OLDER.replace("-- format 1\n", "")
REPAIRED_S = 6.0  # a look, and the repair


@pytest.fixture
async def lab(shared: SharedServers) -> AsyncIterator[ClusterLab]:
    async with asyncio.timeout(90.0), shared.lend("cluster") as running:
        assert isinstance(running, ClusterLab)
        yield running


async def library_on(lab: ClusterLab, at: int) -> str | None:
    found = await lab.ask(at, "FUNCTION", "LIST", "LIBRARYNAME", "snorky", "WITHCODE")
    if not found:
        return None
    fields = dict(zip(found[0][::2], found[0][1::2], strict=True))
    return str(fields[b"library_code"].decode())


async def until_loaded(lab: ClusterLab, *prefixes: str) -> None:
    async def are_ours() -> bool:
        libraries = [await library_on(lab, at) for at in range(len(lab.servers))]
        return all(
            judge(each) is Found.OURS and all(f"\n['{prefix}']=" in (each or "") for prefix in prefixes)
            for each in libraries
        )

    await eventually(are_ours, within_s=REPAIRED_S, what="each shard has the library")


async def fcall(lab: ClusterLab, key: str, payload: str) -> str:
    name = channel_name(PREFIX, key)
    return str(await lab.ask(shard_of(name), "FCALL", "snorky_publish", 1, name, payload))


def doubted(keeper: RedisHistory) -> bytes:
    return keeper.functions.doubt


async def has_another_doubt(keeper: RedisHistory, than: bytes) -> bool:
    return doubted(keeper) != than


async def is_doubted(keeper: RedisHistory, mark: bytes) -> bool:
    return doubted(keeper) == mark


async def test_a_library_that_is_wrong_on_one_shard_is_repaired_there(lab: ClusterLab) -> None:
    async with keepers_of(lab.url) as (keeper,), keepers_of(lab.url, prefix="other"):
        await until_loaded(lab, PREFIX, "other")
        for at in range(3):
            for words in (("FLUSH",), ("DELETE", "snorky"), ("LOAD", "REPLACE", OLDER), ("LOAD", "REPLACE", FOREIGN)):
                before = doubted(keeper)
                await lab.ask(at, "FUNCTION", *words)
                await until_loaded(lab, PREFIX, "other")
                if words[0] == "LOAD":  # it may have published without keeping; perhaps the other node has found it
                    await eventually(
                        lambda than=before: has_another_doubt(keeper, than), within_s=30.0, what="the node has the mark"
                    )
                for shard in range(3):
                    assert await fcall(lab, key_on(shard), "1") != ""


async def rules_on(lab: ClusterLab) -> list[dict[str, str]]:
    return [lines_in(await library_on(lab, at)) for at in range(len(lab.servers))]


async def until_all_have(lab: ClusterLab, expected: dict[str, str]) -> None:
    async def have() -> bool:
        return await rules_on(lab) == [expected] * len(lab.servers)

    await eventually(have, within_s=REPAIRED_S, what="each shard has the rules of all prefixes")


async def break_library(lab: ClusterLab, at: int, how: str, former: str) -> None:
    """Remove or replace the library of one shard. former: an older copy, which the shard has saved too."""
    if how == "new shard":
        await lab.move_slot(0, 0, await lab.add())
    elif how == "empty":
        lab.servers[at].dump.unlink()
        await lab.restart(at)
    elif how == "went back":
        await lab.restart(at)
    elif how in ("FLUSH", "DELETE snorky"):
        await lab.ask(at, "FUNCTION", *how.split())
    else:
        text = {"older": OLDER, "foreign": FOREIGN, "old copy": former}[how]
        await lab.ask(at, "FUNCTION", "LOAD", "REPLACE", text)


@pytest.mark.parametrize(
    "how", ["FLUSH", "DELETE snorky", "older", "foreign", "old copy", "went back", "empty", "new shard"]
)
async def test_a_shard_gets_the_rules_of_stopped_nodes_from_other_shards(lab: ClusterLab, how: str) -> None:
    at = 2
    async with keepers_of(lab.url):
        await until_loaded(lab, PREFIX)
    async with keepers_of(lab.url, prefix="other"):
        await until_loaded(lab, PREFIX, "other")
    former = await library_on(lab, at) or ""
    await lab.ask(at, "SAVE")
    async with keepers_of(lab.url, prefix="other", rules=MORE_RULES), keepers_of(lab.url, prefix="third"):
        await until_loaded(lab, PREFIX, "other", "third")

        async def have_new_rules() -> bool:  # each of the two nodes loads its own
            found = await rules_on(lab)
            return found[0]["other"] != lines_in(former)["other"] and found == [found[0]] * len(lab.servers)

        await eventually(have_new_rules, within_s=30.0, what="each shard has the new rules of all prefixes")
    (expected, *_) = await rules_on(lab)
    await until_all_have(lab, expected)
    await break_library(lab, at, how, former)  # all nodes have stopped, and their rules still apply
    async with keepers_of(lab.url):
        await until_all_have(lab, expected)


async def test_a_node_remembers_the_rules_of_stopped_nodes(lab: ClusterLab) -> None:
    async with keepers_of(lab.url, prefix="other"):
        await until_loaded(lab, "other")
    async with keepers_of(lab.url):
        await until_loaded(lab, PREFIX, "other")
        await asyncio.gather(*(lab.ask(at, "FUNCTION", "FLUSH") for at in range(3)))
        await until_loaded(lab, PREFIX, "other")


async def test_an_upgrade_keeps_the_rules_of_stopped_nodes(lab: ClusterLab) -> None:
    async with keepers_of(lab.url, prefix="other"):
        await until_loaded(lab, "other")
    for at in range(3):
        text = (await library_on(lab, at) or "").replace(f"-- format {FORMAT}\n", f"-- format {FORMAT - 1}\n")
        await lab.ask(at, "FUNCTION", "LOAD", "REPLACE", text)
    async with keepers_of(lab.url):
        await until_loaded(lab, PREFIX, "other")


@pytest.mark.parametrize("at", [0, 2])
async def test_a_doubt_on_one_shard_is_copied_to_all_before_that_shard_is_lost(lab: ClusterLab, at: int) -> None:
    """The node that began to write it died."""
    async with keepers_of(lab.url):
        await until_loaded(lab, PREFIX)
    seconds, micros = await lab.ask(at, "TIME")
    now_us = int(seconds) * 1_000_000 + int(micros)
    text = write_library(lines_in(await library_on(lab, at)), doubt=Doubt(now_us + HOUR_US, "mark"), loaded_us=now_us)
    await lab.ask(at, "FUNCTION", "LOAD", "REPLACE", text)
    async with keepers_of(lab.url) as (keeper,):
        await eventually(lambda: is_doubted(keeper, b"mark"), within_s=REPAIRED_S, what="the node found it")
    await lab.restart(at)
    async with keepers_of(lab.url) as (keeper,):
        await until_loaded(lab, PREFIX)
        await eventually(lambda: is_doubted(keeper, b"mark"), within_s=REPAIRED_S, what="another node finds it")


async def test_publications_that_a_foreign_library_of_one_shard_did_not_store_are_a_gap(lab: ClusterLab) -> None:
    at = 2
    keys = [key_on(shard) for shard in range(3)]
    async with keepers_of(lab.url, 2) as keepers:
        await until_loaded(lab, PREFIX)
        before = [Position.parse(await fcall(lab, key, "1")) for key in keys]
        for _ in range(20):
            await lab.ask(at, "FUNCTION", "LOAD", "REPLACE", FOREIGN)
            if await fcall(lab, keys[at], "2") == "":
                break
        else:
            pytest.fail("nodes replaced it each time before it was called")
        await until_loaded(lab, PREFIX)

        async def are_gaps() -> bool:
            return not [k for k in keepers if await k.read(keys[at], before[at], is_away=True) is not None]

        await eventually(are_gaps, within_s=REPAIRED_S, what="earlier positions are refused")

        async def is_good() -> bool:  # a mark is received twice
            after = Position.parse(await fcall(lab, keys[at], "3"))
            await fcall(lab, keys[at], "4")
            found = [await keeper.read(keys[at], after, is_away=True) for keeper in keepers]
            return all(each is not None and each[-1].payload == b"4" for each in found)

        await eventually(is_good, within_s=REPAIRED_S, what="positions after the repair are valid")
