"""The rights that deploy/redis gives to nodes are enough for all services, and a publisher cannot forge anything."""

import asyncio
import re
from pathlib import Path

import aiohttp
import pytest
import redis

from tests.support.deploy.redis import INSPECTOR, ShippedRedis
from tests.support.processes.nodes import NodeProcess, RedisProcess
from tests.support.processes.tools import ROOT, eventually, free_port
from tests.support.scenarios.conversation import blocks_of
from tests.support.scenarios.tokens import SECRET, hmac_token

pytestmark = pytest.mark.needs("redis-server")


EVERYTHING = """
[auth]
hmac_secret = "{secret}"
[services]
auth = {{class = "snorky.services.auth:AuthService"}}
chat = {{class = "snorky.services.chat:ChatService", unmatched = "open"}}
cursors = {{class = "snorky.services.cursors:CursorsService", unmatched = "open"}}
messaging = {{class = "snorky.services.messaging:MessagingService", unmatched = "open"}}
[services.pubsub]
class = "snorky.services.pubsub:PubSubService"
channels = [{{match = "*", history = 10, presence = true, allow_subscribe = "anyone", allow_publish = "anyone"}}]
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
            message = (await self._socket.receive_json(timeout=30))["message"]
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

        await eventually(is_ready, within_s=30, what=f"both nodes are ready\n{node.log}")
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

        await eventually(is_ready, within_s=30, what=f"the node is ready\n{node.log}")
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
            true, fence = (
                publisher.execute_command("FCALL", "snorky_publish", 1, "snorky:{pubsub:news}", message).decode()
                for message in ('"true"', '"fence"')
            )
        heard = []
        while not heard or {"true", "fence"} - {each.get("message") for each in heard}:
            message = (await socket.receive_json(timeout=20))["message"]
            if message.get("type") != "presence" or message.get("from") != "ann":
                heard.append(message)
        told = {each.get("message"): each.get("position") for each in heard}
        assert told == {"true": true, "fence": fence}, heard
        assert await ann.ask("pubsub", "presence", channel="news") == {"members": ["ann"]}
        assert await node.metric('snorky_drops_total{reason="forged"}') == 4
        assert await node.metric("snorky_unkept_publications_total") == 0, "no hint is one"

        async def is_logged() -> bool:
            return "a publisher sent data that only nodes may send" in node.log

        await eventually(is_logged, within_s=30, what="the node logs it")
