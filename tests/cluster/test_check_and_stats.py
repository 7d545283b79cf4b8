"""`snorky check` and `snorky stats`: problems of Redis and of nodes, and their figures."""

import asyncio
import json
import re

import pytest

from snorky.gateway.redis.admin.redis_py import client_of
from snorky.gateway.redis.keys import node_key, nodes_key
from snorky.gateway.redis.target import target_from_url
from tests.support.processes.nodes import GATEWAY, NodeProcess, Process, RedisProcess
from tests.support.processes.tools import eventually
from tests.support.scenarios.command_line import RULED, snorky

pytestmark = pytest.mark.needs("redis-server")


async def test_check_reports_different_rules_in_redis_and_on_nodes(redis, tmp_path):
    old, new = tmp_path / "old.toml", tmp_path / "new.toml"
    old.write_text(RULED.format(size=10))
    new.write_text(RULED.format(size=20))
    env = {"SNORKY_REDIS_URL": redis.url, "SNORKY_LIMITS__CONNECTIONS": "10"}
    code, output = await snorky("check", "--config", str(old), env=env)
    assert code == 0 and "not loaded: no node with this prefix has been here" in output
    async with NodeProcess.running({**env, "SNORKY_CONFIG": str(old)}):

        async def says(config, *, differs):
            code, output = await snorky("check", "--config", str(config), env=env)
            told = ("the nodes promise other channel rules" in output, "nodes with other channel rules" in output)
            return code == 0 and told == (differs, differs) and "not loaded" not in output

        await eventually(lambda: says(old, differs=False), within_s=30, what="the same rules are found to be the same")
        await eventually(lambda: says(new, differs=True), within_s=30, what="other rules are reported")


async def test_check_is_content_with_a_good_redis(redis):
    env = {"SNORKY_REDIS_URL": redis.url, "SNORKY_LIMITS__CONNECTIONS": "100"}
    code, output = await snorky("check", env=env)
    assert code == 0, output
    for fact in ("aiohttp", "redis 7", "messages received on snorky:*", "file descriptors", "ok  a node can start"):
        assert fact in output
    code, output = await snorky("check", env={**env, "SNORKY_PUBLIC__NATIVE_FANOUT": "off"})
    assert code == 0 and re.search(r'fan-out +python \(native_fanout = "off"\)', output), output


async def test_commands_know_all_of_several_redis(redis, tmp_path):
    other = RedisProcess(tmp_path)
    try:
        await other.wait_ready()
        env = {"SNORKY_REDIS_URL": f"{redis.url},{other.url}"}
        code, output = await snorky("check", env=env)
        assert code == 0, output
        assert "redis 1 of 2" in output and "redis 2 of 2" in output
        channels = [f"news{number}" for number in range(8)]  # very likely on both
        async with NodeProcess.running(env) as node:
            watching = Process(
                [*GATEWAY, "subscribe", "--url", node.websocket_url, *channels], ready="subscribed to .*news7"
            )
            try:
                await watching.wait_ready()
                for channel in channels:
                    assert await snorky("publish", channel, "1", env=env) == (0, "1 node received it\n")
            finally:
                await watching.close()
            code, output = await snorky("stats", "--once", "--interval", "0.5", env=env)
            assert code == 0 and "1 nodes" in output, output
    finally:
        await other.close()


async def test_check_reports_all_problems_at_once(redis, tmp_path):
    config = tmp_path / "snorky.toml"
    config.write_text(
        """
        [public]
        host = "0.0.0.0"
        [private]
        host = "0.0.0.0"
        [limits]
        connections = 2_000_000_000
        [services.own]
        class = "no_such_module:Service"
        """
    )
    admin = await snorky(
        "check", "--config", str(config), env={"SNORKY_REDIS_URL": f"redis://x:y@127.0.0.1:{redis.port}"}
    )
    code, output = admin
    assert code == 1
    for problem in (
        "--insecure",
        "api_key",
        "file descriptors and the hard limit",
        "and this machine has",
        "no_such_module",
        "user or password",
    ):
        assert problem in output
    assert output.count("problem  ") == 4
    assert output.count("note  ") == 2, "it would start, and serve fewer"


async def test_check_names_the_permission_that_is_missing(redis):
    command = Process(
        [
            "redis-cli",
            "-p",
            str(redis.port),
            "ACL",
            "SETUSER",
            "node",
            "on",
            "nopass",
            "resetchannels",
            "&other:*",
            "+@all",
        ]
    )
    assert await command.wait() == 0
    await command.close()
    code, output = await snorky("check", env={"SNORKY_REDIS_URL": f"redis://node:any@127.0.0.1:{redis.port}"})
    assert code == 1
    assert "&snorky:* +publish +subscribe" in output


async def test_stats_show_every_node(redis):
    env = {"SNORKY_REDIS_URL": redis.url}
    async with NodeProcess.running(env) as one, NodeProcess.running(env) as two:
        code, output = await snorky("stats", "--once", "--interval", "0.2", env=env)
    assert code == 0
    assert "2 nodes" in output
    assert str(one.public_port) in output
    assert str(two.public_port) in output
    assert output.count("ready") == 2


async def test_stats_divide_by_the_clock_that_took_the_samples(redis):
    """A node with a steady rate by its own clock, whose writes are late and irregular."""

    async def write():
        for step in range(1_000_000):
            await client.sadd(nodes_key("snorky"), "one")
            await client.set(node_key("snorky", "one"), json.dumps(state), px=8_000)
            state["deliveries_total"] += 1753 * 2
            state["sampled_s"] += 2.0
            await asyncio.sleep((0.3, 2.6, 1.1)[step % 3])  # the fault: write times that do not show the rate

    state = {"deliveries_total": 0, "sampled_s": 0.0}
    client = client_of(target_from_url(redis.url))
    writing = asyncio.create_task(write())
    try:
        for _ in range(3):
            code, output = await snorky("stats", "--once", "--interval", "0.2", env={"SNORKY_REDIS_URL": redis.url})
            assert code == 0 and "1,753" in output, output
    finally:
        writing.cancel()
        await asyncio.gather(writing, return_exceptions=True)
        await client.aclose()


async def test_check_shows_hooks_and_services_that_would_not_ask():
    env = {
        "SNORKY_LIMITS__CONNECTIONS": "10",
        "SNORKY_HOOKS__CONNECT__URL": "http://127.0.0.1:1/connect",
        "SNORKY_HOOKS__SUBSCRIBE__URL": "http://127.0.0.1:1/subscribe",
        "SNORKY_HOOKS__SUBSCRIBE__SERVICES": '["pubsub", "chat"]',
        "SNORKY_HOOKS__SUBSCRIBE__CACHE_S": "10",
    }
    code, output = await snorky("check", env=env)
    assert code == 0, output
    for fact in (
        "http://127.0.0.1:1/connect, 2 s, not cached, closed if the backend fails",
        "http://127.0.0.1:1/subscribe, for pubsub, chat, 2 s, cached 10 s, closed if the backend fails",
        "not signed",
    ):
        assert fact in output, output
    code, output = await snorky("check", env={**env, "SNORKY_HOOKS__SUBSCRIBE__SERVICES": '["pubsbu"]'})
    assert code == 1 and "[hooks.subscribe] services: pubsbu is not among the services" in " ".join(output.split())


async def test_check_lists_keys_with_their_services(tmp_path):
    config = tmp_path / "snorky.toml"
    text = (
        '[limits]\nconnections = 10\n[private.api_keys]\nweb = "of the web, 32 random bytes"\n[private.api_keys.jobs]\n'
    )
    text += 'key = "of the jobs, 32 random bytes"\nservices = ["pubsub_backend", "control"]\n'
    config.write_text(text)
    code, output = await snorky("check", "--config", str(config))
    assert code == 0 and "keys: web (all services), jobs (control, pubsub_backend)" in output, output
    config.write_text(text.replace('"control"', '"contrl"'))
    code, output = await snorky("check", "--config", str(config))
    problem = "[private.api_keys.jobs] services: contrl is not among the services for backends; write names of these: "
    assert code == 1 and f"{problem}auth_backend, control," in " ".join(output.split()), output
