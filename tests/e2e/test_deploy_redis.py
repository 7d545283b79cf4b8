"""The shipped Redis with its users, and the composed container on it: each has the rights it needs, and no more."""

import asyncio
import hashlib
import json
import re
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

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
    make_secrets,
    redis_conf,
)
from tests.support.fakes.histories import history_on
from tests.support.processes.nodes import GATEWAY, NodeProcess, RedisProcess, clean_environment
from tests.support.processes.tools import ROOT, eventually, free_port
from tests.support.scenarios.conversation import blocks_of
from tests.support.scenarios.tokens import SECRET, hmac_token

pytestmark = pytest.mark.needs("redis-server")

# Only for checks: refusals, and the settings of Redis. It is not shipped.
INSPECTOR = "user inspector on nopass +acl|log +config|get\n"


@dataclass
class ShippedRedis:
    """The shipped redis.conf and users.acl, running."""

    port: int
    secrets: Path

    def password(self, user: str) -> str:
        if user == "metrics":
            return (self.secrets / "redis_password_metrics").read_text()
        url = (self.secrets / f"redis_url_{user}").read_text()
        return url.removeprefix(f"redis://{user}:").partition("@")[0]

    def client(self, user: str) -> redis.Redis:
        return redis.Redis(port=self.port, username=user, password=self.password(user))

    def inspector(self) -> redis.Redis:
        return redis.Redis(port=self.port, username="inspector", password="any", decode_responses=True)


@pytest.fixture
async def shipped(tmp_path: Path) -> AsyncIterator[ShippedRedis]:
    port = free_port()
    secrets = make_secrets(tmp_path / "secrets", port)
    (secrets / "users.acl").chmod(0o600)
    with (secrets / "users.acl").open("a") as acl:
        acl.write(INSPECTOR)
    async with RedisProcess.running(tmp_path, conf=redis_conf(tmp_path, secrets, port), port=port):
        yield ShippedRedis(port, secrets)


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

            await eventually(is_loaded, within_s=5, what="the function is loaded")
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

        await eventually(is_ready, within_s=6, what=f"/readyz is 200\n{node.log}")
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
            assert (await socket.receive_json(timeout=5))["message"]["type"] == "response"
            code, said = await ends_with([*GATEWAY, "publish", "news", '{"from": "a job"}'], publisher_url)
            assert code == 0, said
            assert (await socket.receive_json(timeout=5))["message"]["message"] == {"from": "a job"}
            key = (shipped.secrets / "api_key").read_text()
            post = {"command": "publish", "params": {"channel": "news", "message": 2}, "callId": 1}
            async with session.post(
                f"http://127.0.0.1:{node.private_port}/backend",
                data=json.dumps({"service": "pubsub_backend", "message": post}),
                headers={"X-Backend-Key": key},
            ) as response:
                assert response.status == 200, await response.text()
            assert (await socket.receive_json(timeout=5))["message"]["message"] == 2
        for command in (["check"], ["stats", "--once"]):
            code, said = await ends_with([*GATEWAY, *command], node_url)
            assert code == 0, said
    with shipped.inspector() as client:
        refused = [(each["username"], each["object"]) for each in client.acl_log()]
    assert refused == []


EVERYTHING = """
[auth]
hmac_secret = "{secret}"
[services]
auth = {{class = "snorky.services.auth:AuthService"}}
chat = {{class = "snorky.services.chat:ChatService"}}
cursors = {{class = "snorky.services.cursors:CursorsService"}}
messaging = {{class = "snorky.services.messaging:MessagingService"}}
pubsub = {{class = "snorky.services.pubsub:PubSubService", channels = [{{match = "*", history = 10, presence = true}}]}}
[services.datasync]
class = "snorky.services.datasync:DataSyncService"
dealers = ["tests.support.scenarios.dealers:AllTasks"]
"""
# Commands with which redis-py identifies itself; refusals do not disturb it.
COURTESIES = {"client|setname", "client|setinfo"}


class Client:
    """An authenticated client."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        self._socket = socket

    async def ask(self, service: str, command: str, **params: object) -> object:
        """Call, and return the answer; notifications before it are skipped."""
        await self._socket.send_json(
            {"service": service, "message": {"command": command, "params": params, "callId": 1}}
        )
        while True:
            message = (await self._socket.receive_json(timeout=5))["message"]
            if "callId" in message:
                assert message["type"] == "response", (service, command, message)
                return message["data"]

    async def until(self, **expected: object) -> None:
        """Wait for a notification."""
        async with asyncio.timeout(20):
            while True:
                message = (await self._socket.receive_json(timeout=20))["message"]
                if expected.items() <= message.items():
                    return


async def use_everything(env: dict[str, str]) -> None:
    """Use all services over two nodes, and kill one of them."""
    async with NodeProcess.running(env) as node, NodeProcess.running(env) as mortal, aiohttp.ClientSession() as session:

        async def client(of: NodeProcess, identity: str) -> Client:
            headers = {"Authorization": f"Bearer {hmac_token(identity, jti=identity)}"}
            return Client(await session.ws_connect(of.websocket_url, headers=headers))

        async def backend(service: str, command: str, **params: object) -> object:
            request = {"service": service, "message": {"command": command, "params": params, "callId": 1}}
            async with session.post(f"http://127.0.0.1:{node.private_port}/backend", json=request) as response:
                message = (await response.json())["message"]
                assert message["type"] == "response", (command, message)
                return message["data"]

        async def is_ready() -> bool:
            return await node.status("/readyz") == 200 == await mortal.status("/readyz")

        await eventually(is_ready, within_s=6, what=f"both nodes are ready\n{node.log}")
        ann, bob = await client(node, "ann"), await client(mortal, "bob")
        for each in (ann, bob):
            await each.ask("chat", "join", channel="lobby")
            await each.ask("cursors", "join", document=1)
            await each.ask("cursors", "createCursor", privateHandle=1, document=1, position=0, status=None)
            await each.ask("cursors", "updateCursor", privateHandle=1, newData={"position": 1})
        await ann.ask("chat", "send", channel="lobby", body="Hi")
        await ann.ask("pubsub", "subscribe", channel="news", recover=True)
        await bob.ask("pubsub", "publish", channel="news", message=1, key="k")
        assert len((await bob.ask("pubsub", "history", channel="news"))["messages"]) == 1
        assert await bob.ask("pubsub", "presence", channel="news") == {"members": ["ann"]}
        await bob.ask("messaging", "registerParticipant", name="bob")
        await ann.ask("messaging", "registerParticipant", name="ann")
        assert await ann.ask("messaging", "listParticipants") == ["ann", "bob"]
        await ann.ask("messaging", "send", sender="ann", dest="bob", body="Hi")
        await ann.ask("messaging", "unregisterParticipant", name="ann")
        await ann.ask("cursors", "removeCursor", privateHandle=1)
        token = await backend(
            "datasync_backend", "authorizeSubscription", items=[{"dealer": "AllTasks", "query": None}]
        )
        await backend("datasync_backend", "publishDeltas", deltas=[{"type": "insert", "model": "Task", "data": 1}])
        await bob.ask("datasync", "acquireSubscription", token=token)
        await backend("auth_backend", "revokeToken", jti="nobody")
        async with session.post(f"http://127.0.0.1:{node.public_port}/sockjs/1/a/xhr") as response:
            assert await response.text() == "o\n"
        mortal.kill()
        await ann.until(type="presence", status="left", **{"from": "bob"})


async def test_all_services_work_with_the_shipped_rights_of_a_node(shipped: ShippedRedis, tmp_path: Path) -> None:
    config = tmp_path / "snorky.toml"
    config.write_text(EVERYTHING.format(secret=SECRET))
    url = (shipped.secrets / "redis_url_node").read_text()
    await use_everything({"SNORKY_CONFIG": str(config), "SNORKY_REDIS_URL": url, "PYTHONPATH": str(ROOT)})
    with shipped.inspector() as client:
        assert [(each["username"], each["object"]) for each in client.acl_log()] == []


async def test_the_rights_that_operations_lists_are_enough_and_each_is_asked_for(tmp_path: Path) -> None:
    (block,) = blocks_of(ROOT / "docs" / "operations.md", "acl")
    rights = " ".join(block.text.split()).replace("PREFIX", "snorky")
    acl, port = tmp_path / "users.acl", free_port()
    acl.write_text(f"user default off\nuser node on >secret {rights}\n{INSPECTOR}")
    conf = tmp_path / "redis.conf"
    conf.write_text(f'bind 127.0.0.1\nport {port}\nsave ""\naclfile {acl}\ndir {tmp_path}\n')
    config = tmp_path / "snorky.toml"
    config.write_text(EVERYTHING.format(secret=SECRET))
    url = f"redis://node:secret@127.0.0.1:{port}/0"
    async with RedisProcess.running(tmp_path, conf=conf, port=port):
        await use_everything({"SNORKY_CONFIG": str(config), "SNORKY_REDIS_URL": url, "PYTHONPATH": str(ROOT)})
        with redis.Redis(port=port, username="inspector", password="any", decode_responses=True) as client:
            refused = {each["object"] for each in client.acl_log(count=100)}
    assert refused <= COURTESIES
    granted = set(re.findall(r"\+(\S+)", rights))
    sources = "".join(
        path.read_text().lower() for path in (ROOT / "gateway" / "redis").rglob("*.*") if path.suffix in (".py", ".lua")
    )
    assert {right for right in granted if right.partition("|")[0] not in sources} == set(), "no program needs these"


FORGED = {
    "joined": b'\xc13 99 0 j ["+",true,"mallory","n1.1",""]\n\xc12 j {"whole":"true"}\n{"forged":"joined"}',
    "a reply": b'\xc12 j {"whole":"true"}\n{"type":"response","callId":2,"data":"forged"}',
    "a message for some": b'\xc12 j {"not":"n1.1"}\n"forged"',
    "a hint": b'\xc1h %b j\n"forged"',
    "the next position": b'\xc11 %b j\n"forged"',
}


async def test_a_publisher_forges_neither_presence_nor_positions_nor_replies(
    shipped: ShippedRedis, tmp_path: Path
) -> None:
    config = tmp_path / "snorky.toml"
    config.write_text(EVERYTHING.format(secret=SECRET))
    url = (shipped.secrets / "redis_url_node").read_text()
    env = {"SNORKY_CONFIG": str(config), "SNORKY_REDIS_URL": url, "PYTHONPATH": str(ROOT)}
    async with NodeProcess.running(env) as node, aiohttp.ClientSession() as session:

        async def is_ready() -> bool:
            return await node.status("/readyz") == 200

        await eventually(is_ready, within_s=20, what=f"the node is ready\n{node.log}")
        headers = {"Authorization": f"Bearer {hmac_token('ann', jti='ann')}"}
        socket = await session.ws_connect(node.websocket_url, headers=headers)
        ann = Client(socket)
        begun = await ann.ask("pubsub", "subscribe", channel="news", recover=True)
        assert isinstance(begun, dict)
        epoch, offset, tag = begun["position"].split(":")
        following = f"{epoch}:{int(offset) + 1}:0123456789abcdef {tag}".encode()
        with shipped.client("publisher") as publisher:
            for said in FORGED.values():
                publisher.publish("snorky:{pubsub:news}", said % following if b"%b" in said else said)
            position = publisher.execute_command(
                "FCALL", "snorky_publish", 1, "snorky:{pubsub:news}", '"true"'
            ).decode()
            publisher.publish("snorky:{pubsub:news}", '"fence"')
        heard = []
        while not heard or {"true", "fence"} - {each.get("message") for each in heard}:
            message = (await socket.receive_json(timeout=20))["message"]
            if message.get("type") != "presence" or message.get("from") != "ann":
                heard.append(message)
        told = {each["message"]: each.get("position") for each in heard}
        assert told == {"true": position, "fence": None}, heard
        assert await ann.ask("pubsub", "presence", channel="news") == {"members": ["ann"]}
        assert await node.metric('snorky_drops_total{reason="forged"}') == 4
        assert await node.metric("snorky_unkept_publications_total") == 1, "the fence, and no hint"
        assert "a publisher sent data that only nodes may send" in node.log
