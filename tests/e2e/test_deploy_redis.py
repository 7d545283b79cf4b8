"""The shipped Redis with its users, and the composed container on it: each has the rights it needs, and no more."""

import asyncio
import hashlib
import json
import re
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import aiohttp
import pytest
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from snorky.gateway import ChannelRule, Rules
from snorky.gateway.redis.target import target_from_url
from tests.support.deploy.files import (
    compose,
    container_argv,
    health_check,
    image_environment,
)
from tests.support.deploy.redis import ShippedRedis
from tests.support.fakes.histories import history_on
from tests.support.processes.nodes import GATEWAY, NodeProcess, clean_environment
from tests.support.processes.tools import eventually, free_port

pytestmark = pytest.mark.needs("redis-server")


TIME_SCRIPT = hashlib.sha1(b"#!lua\nreturn redis.call('TIME')", usedforsecurity=False).hexdigest()


# What each user needs, and rights that would let it out of the prefix or harm the others.
PERMITTED = {
    "node": [
        ["PUBLISH", "snorky:{pubsub:news}", "1"],
        ["SPUBLISH", "snorky:{pubsub:news}", "1"],
        ["PUBSUB", "NUMSUB", "snorky:{pubsub:news}"],
        ["SET", "snorky:nodes:a", "1", "PX", "8000"],
        ["EVAL", "#!lua\nreturn redis.call('GET', KEYS[1])", "1", "snorky:nodes:a"],
        ["SCRIPT", "LOAD", "#!lua\nreturn redis.call('TIME')"],
        ["EVALSHA", TIME_SCRIPT, "0"],
        ["SADD", "snorky:{owned:a:1}", "[]"],
        ["SSCAN", "snorky:{owned:a:1}", "0"],
        ["HSET", "snorky:nodes{chat:lobby}:roster", "a:1:1 ", "[]"],
        ["HINCRBY", "snorky:nodes{chat:lobby}:roster:counts", "v", "1"],
        ["HGETALL", "snorky:nodes{chat:lobby}:roster"],
        ["HLEN", "snorky:nodes{chat:lobby}:roster"],
        ["HSCAN", "snorky:nodes{chat:lobby}:roster", "0"],
        ["ZADD", "snorky:{nodes}::leases", "1", "a:1"],
        ["ZRANGEBYSCORE", "snorky:{nodes}::leases", "-inf", "2"],
        ["GETDEL", "snorky:{token:a}"],
        ["XADD", "snorky:{datasync:Task}:history", "*", "k", "v"],
        ["XRANGE", "snorky:{datasync:Task}:history", "-", "+"],
        ["INFO"],
        ["ROLE"],
        ["TIME"],
        ["PING"],
        ["CLIENT", "SETNAME", "snorky"],
    ],
    "publisher": [
        ["PUBLISH", "snorky:{pubsub:news}", "1"],
        ["SPUBLISH", "snorky:{pubsub:news}", "1"],
        ["HLEN", "snorky:nodes{pubsub:news}:roster"],
        ["PING"],
    ],
    "metrics": [["INFO"], ["SLOWLOG", "LEN"], ["LATENCY", "LATEST"], ["PING"]],
}


FORBIDDEN_TO_ALL = [
    ["HSET", "other", "f", "v"],
    ["HGETALL", "snorky2:nodes{chat:lobby}:roster"],
    ["ZADD", "other", "1", "m"],
    ["XADD", "other", "*", "k", "v"],
    ["XRANGE", "snorky2:{datasync:Task}:history", "-", "+"],
    ["EVAL", "return redis.call('HGETALL', KEYS[1])", "1", "other"],
    ["EVAL", "return redis.call('PUBLISH', 'other', 1)", "0"],
    ["EVAL", "return redis.call('FLUSHALL')", "0"],
    ["PUBLISH", "other:{pubsub:news}", "1"],
    ["PUBLISH", "snorky2", "1"],
    ["SET", "other", "1"],
    ["GET", "other"],
    ["KEYS", "*"],
    ["SCAN", "0"],
    ["RANDOMKEY"],
    ["PUBSUB", "CHANNELS"],
    ["FLUSHALL"],
    ["FLUSHDB"],
    ["SWAPDB", "0", "1"],
    ["CONFIG", "GET", "*"],
    ["CONFIG", "SET", "maxmemory", "0"],
    ["ACL", "LIST"],
    ["ACL", "SETUSER", "node", "allkeys"],
    ["CLIENT", "LIST"],
    ["CLIENT", "KILL", "TYPE", "pubsub"],
    ["CLIENT", "TRACKING", "ON", "BCAST"],
    ["MONITOR"],
    ["SHUTDOWN"],
    ["SAVE"],
    ["REPLICAOF", "NO", "ONE"],
    ["MODULE", "LIST"],
    ["SCRIPT", "FLUSH"],
    ["FUNCTION", "FLUSH"],
    ["EVAL", "return redis.call('SET', 'other', 1)", "0"],
]


FORBIDDEN = {
    "publisher": [
        ["PUBLISH", "snorky:{direct n1}", "as a node does"],
        ["EVAL", "return 1", "0"],
        ["SCRIPT", "LOAD", "return 1"],
        ["PUBLISH", "snorky:nodes{pubsub:news}", "as a node does"],
        ["SPUBLISH", "snorky:nodes{pubsub:news}", "as a node does"],
        ["HSET", "snorky:nodes{pubsub:news}:roster", "f", "v"],
        ["DEL", "snorky:nodes{pubsub:news}:roster"],
        ["HLEN", "snorky:nodes{chat:lobby}:roster"],
        ["HSET", "snorky:nodes{chat:lobby}:roster", "f", "v"],
        ["XADD", "snorky:{datasync:Task}:history", "*", "k", "v"],
        ["SET", "snorky:nodes:a", "1"],
        ["GET", "snorky:nodes:a"],
        ["SET", "snorky:{nodes}::rules", "[]"],
        ["SUBSCRIBE", "snorky:{pubsub:news}"],
        ["INFO"],
    ],
    "metrics": [
        ["PUBLISH", "snorky:{pubsub:news}", "1"],
        ["GET", "snorky:nodes:a"],
        ["SUBSCRIBE", "snorky:a"],
        ["EVAL", "return 1", "0"],
    ],
    "node": [["SUBSCRIBE", "other:a"], ["PSUBSCRIBE", "*"]],
}


async def test_each_redis_user_has_the_rights_it_needs_and_none_beyond_the_prefix(shipped: ShippedRedis) -> None:
    for user, permitted in PERMITTED.items():
        for command in permitted:
            with shipped.client(user) as client:
                client.execute_command(*command)
        for command in FORBIDDEN_TO_ALL + FORBIDDEN[user]:
            with shipped.client(user) as client:
                with pytest.raises(
                    redis.exceptions.ResponseError, match=r"(?i)permission|can't (access|publish|run)|ACL"
                ):
                    client.execute_command(*command)


async def test_a_publisher_publishes_with_history_by_the_function_that_nodes_load(shipped: ShippedRedis) -> None:
    target = target_from_url((shipped.secrets / "redis_url_node").read_text())
    keeper = history_on(target, prefix="snorky", node_id="n1")
    keeper.set_rules("pubsub", Rules([ChannelRule("news", history=2)]))
    await keeper.start()
    try:
        with shipped.client("publisher") as client:

            async def is_loaded() -> bool:
                try:
                    return bool(client.execute_command("FCALL", "snorky_publish", 1, "snorky:{pubsub:news}", "1"))
                except redis.exceptions.ResponseError as error:
                    assert "Function not found" in str(error)
                    return False

            await eventually(is_loaded, within_s=30, what="the function is loaded")
            positions = [
                client.execute_command("FCALL", "snorky_publish", 1, "snorky:{pubsub:news}", "2", "key")
                for _ in range(3)
            ]
            assert len(set(positions)) == 1 and positions[0].split(b":")[1] == b"2"
            with pytest.raises(redis.exceptions.ResponseError, match=r"(?i)permission|can't|ACL"):
                client.execute_command("FCALL", "snorky_publish", 1, "snorky:{chat:lobby}", "1")
        publications = await keeper.recent("pubsub:news", 5)
        assert [each.payload for each in publications[0]] == [b"1", b"2"]
    finally:
        await keeper.stop()
    with shipped.inspector() as client:
        refused = [each["object"] for each in client.acl_log() if each["username"] == "node"]
    assert refused == []


async def test_clients_without_a_user_name_are_refused(shipped: ShippedRedis) -> None:
    with (
        redis.Redis(port=shipped.port, retry=Retry(NoBackoff(), 0)) as stranger,
        pytest.raises(redis.exceptions.AuthenticationError),
    ):
        stranger.ping()


async def test_the_shipped_redis_bounds_memory_and_evicts_nothing(shipped: ShippedRedis) -> None:
    with shipped.inspector() as client:
        config = client.config_get("*")
    assert config["maxmemory-policy"] == "noeviction"
    limits = re.search(r"pubsub (\d+) (\d+) (\d+)", config["client-output-buffer-limit"])
    assert limits is not None
    nodes = [name for name in compose()["services"] if name.startswith("node-")]
    assert len(nodes) * int(limits[1]) < int(config["maxmemory"]) / 2, "stalled nodes alone must not fill it"
    assert config["timeout"] == "0", "subscribers are silent for long"


@asynccontextmanager
async def composed_node(shipped: ShippedRedis) -> AsyncIterator[tuple[NodeProcess, dict[str, str]]]:
    """Run the container's command with the environment of image and compose file. Only ports and folders differ."""
    service = compose()["services"]["node-1"]
    env = {name: value for name, value in image_environment().items() if name.startswith("SNORKY_")}
    env |= {name: value.replace("/run/secrets", str(shipped.secrets)) for name, value in service["environment"].items()}
    env |= {"SNORKY_PUBLIC__PORT": str(free_port()), "SNORKY_PRIVATE__PORT": str(free_port())}
    async with NodeProcess.running(env, argv=container_argv(service["command"])) as node:

        async def is_ready() -> bool:
            return await node.status("/readyz") == 200

        await eventually(is_ready, within_s=30, what=f"/readyz is 200\n{node.log}")
        yield node, env


async def ends_with(argv: Sequence[str], env: dict[str, str]) -> tuple[int, str]:
    """Run a program to its end; returns its exit code and its output."""
    process = await asyncio.create_subprocess_exec(
        *argv, env=clean_environment(env), stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
    )
    async with asyncio.timeout(30):
        output, _ = await process.communicate()
    return process.returncode or 0, output.decode()


async def test_the_composed_container_is_healthy_and_ends_within_its_grace_period(shipped: ShippedRedis) -> None:
    argv = [sys.executable, *health_check()[1:]]
    grace_s = float(compose()["services"]["node-1"]["stop_grace_period"].removesuffix("s"))
    async with composed_node(shipped) as (node, env):
        assert (await ends_with(argv, env))[0] == 0
        node.terminate()
        assert await node.wait(within_s=grace_s) == 0, node.log
        assert (await ends_with(argv, env))[0] == 1


async def test_every_command_works_with_its_users_rights_and_none_asks_for_more(shipped: ShippedRedis) -> None:
    # `check` compares the limit with the descriptors of the machine, which here is no container
    node_url = {"SNORKY_REDIS_URL_FILE": str(shipped.secrets / "redis_url_node"), "SNORKY_LIMITS__CONNECTIONS": "500"}
    publisher_url = {"SNORKY_REDIS_URL_FILE": str(shipped.secrets / "redis_url_publisher")}
    async with composed_node(shipped) as (node, _), aiohttp.ClientSession() as session:
        async with session.ws_connect(node.websocket_url) as socket:
            call = {"command": "subscribe", "params": {"channel": "news"}, "callId": 1}
            await socket.send_json({"service": "pubsub", "message": call})
            assert (await socket.receive_json(timeout=30))["message"]["type"] == "response"
            code, said = await ends_with([*GATEWAY, "publish", "news", '{"from": "a job"}'], publisher_url)
            assert code == 0, said
            assert (await socket.receive_json(timeout=30))["message"]["message"] == {"from": "a job"}
            key = (shipped.secrets / "api_key").read_text()
            post = {"command": "publish", "params": {"channel": "news", "message": 2}, "callId": 1}
            async with session.post(
                f"http://127.0.0.1:{node.private_port}/backend",
                data=json.dumps({"service": "pubsub_backend", "message": post}),
                headers={"X-Backend-Key": key},
            ) as response:
                assert response.status == 200, await response.text()
            assert (await socket.receive_json(timeout=30))["message"]["message"] == 2
        for command in (["check"], ["stats", "--once"]):
            code, said = await ends_with([*GATEWAY, *command], node_url)
            assert code == 0, said
    with shipped.inspector() as client:
        refused = [(each["username"], each["object"]) for each in client.acl_log()]
    assert refused == []
