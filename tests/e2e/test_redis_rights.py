"""`snorky check` names the rights that a Redis user lacks: each documented right is removed in turn."""

import re
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import redis.asyncio as redis

from snorky.gateway.redis.admin.inspect import inspect_redis
from snorky.gateway.redis.target import target_from_url
from tests.support.processes.nodes import RedisProcess
from tests.support.processes.tools import ROOT

pytestmark = pytest.mark.needs("redis-server")

_SEEN_BY_PUBLISHING = {"publish", "subscribe", "unsubscribe"}  # the check publishes and receives


def documented_rights() -> list[str]:
    text = (ROOT / "docs/operations.md").read_text()
    (block,) = re.findall(r"ACL of a node, no more than it needs:\n\n```acl\n(.*?)```", text, re.DOTALL)
    return [word.removeprefix("+") for word in block.split() if word.startswith("+")]


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[RedisProcess]:
    async with RedisProcess.running(tmp_path) as process:
        yield process


async def test_check_names_each_documented_right_that_is_missing(server: RedisProcess) -> None:
    rights = documented_rights()
    url = server.url.replace("redis://", "redis://node:secret@")
    rules = ["resetchannels", "&snorky:*", "resetkeys", "~snorky:*", "-@all", "+ping"]
    async with redis.from_url(server.url) as admin:
        await admin.config_set("maxmemory", "256mb")  # otherwise there is a note
        for missing in [None, *rights]:
            granted = [f"+{right}" for right in rights if right != missing]
            await admin.execute_command("ACL", "SETUSER", "node", "reset", "on", ">secret", *rules, *granted)
            report = await inspect_redis(target_from_url(url), "snorky")
            told = " ".join(report.problems + report.notes)
            if missing is None:
                assert not told
            elif missing not in _SEEN_BY_PUBLISHING:
                assert f"+{missing}" in told.split(), (missing, told)
                assert bool(report.problems) is not missing.startswith("function|")
            elif missing != "unsubscribe":
                assert "publish and subscribe" in told
            for key in await admin.keys():
                assert missing == "del" and await admin.pttl(key) > 0, f"{key} stays without +{missing}"
                await admin.delete(key)
