"""Tokens over real nodes: required, verified by keys of an issuer, revoked everywhere, and never logged."""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from tests.support.processes.nodes import GATEWAY, NodeProcess, RedisProcess
from tests.support.processes.tools import eventually
from tests.support.scenarios.tokens import OPEN_PUBSUB, TOKENS_AND_OPEN_PUBSUB, Issuer, KeyServer, hmac_token

HMAC = {**TOKENS_AND_OPEN_PUBSUB, "SNORKY_AUTH__LEEWAY_S": "0"}
WITHIN_S = 5.0  # RELIABILITY: revocable <= 5 s


class House:
    """Nodes on one Redis, and an HTTP session to reach them."""

    def __init__(self, nodes: list[NodeProcess], session: aiohttp.ClientSession, env: Mapping[str, str]) -> None:
        self.env = env  # of its nodes
        self.nodes = nodes
        self.session = session

    async def connect(self, node: int = 0, token: str | None = None, **others: Any) -> aiohttp.ClientWebSocketResponse:
        headers = {"Authorization": f"Bearer {token}"} if token is not None else {}
        return await self.session.ws_connect(self.nodes[node].websocket_url, headers=headers, **others)

    async def backend(self, node: int, command: str, **params: Any) -> None:
        """Call the AuthBackend of a node."""
        message = {"service": "auth_backend", "message": {"command": command, "params": params, "callId": 1}}
        url = f"http://127.0.0.1:{self.nodes[node].private_port}/backend"
        async with self.session.post(url, json=message) as response:
            answer = await response.json()
        assert answer["message"] == {"type": "response", "callId": 1, "data": None}, answer


@asynccontextmanager
async def house(directory: Path, env: Mapping[str, str] = HMAC, *, count: int = 2) -> AsyncIterator[House]:
    async with AsyncExitStack() as stack:
        redis = await stack.enter_async_context(RedisProcess.running(directory))
        env = {"SNORKY_REDIS_URL": redis.url, **OPEN_PUBSUB, **env}
        nodes = [await stack.enter_async_context(NodeProcess.running(env)) for _ in range(count)]
        yield House(
            nodes, await stack.enter_async_context(aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0))), env
        )


async def close_code(socket: aiohttp.ClientWebSocketResponse, *, within_s: float = 30.0) -> int | None:
    """Read to the end of a connection."""
    async with asyncio.timeout(within_s):
        async for _ in socket:
            pass
    return socket.close_code


async def call(socket: aiohttp.ClientWebSocketResponse, command: str, *, service: str = "pubsub", **params: Any) -> Any:
    """Call a command and return its answer."""
    await socket.send_json({"service": service, "message": {"command": command, "params": params, "callId": command}})
    while True:
        message = (await socket.receive_json(timeout=30))["message"]
        if message.get("callId") == command:
            return message


async def is_served(socket: aiohttp.ClientWebSocketResponse) -> bool:
    return bool((await call(socket, "publish", channel="a", message=1))["type"] == "response")


async def test_a_user_and_a_token_are_revoked_on_every_node_and_stay_so(tmp_path: Path) -> None:
    async with house(tmp_path) as at:
        token, phone, bob = hmac_token(jti="a-1"), hmac_token(jti="a-2"), hmac_token("bob", jti="b-1")
        here, there = await at.connect(0, phone), await at.connect(1, phone)
        await at.backend(0, "revokeToken", jti="a-2")
        for socket in (here, there):
            assert await close_code(socket, within_s=WITHIN_S) == 4503
        here, there, other = await at.connect(0, token), await at.connect(1, token), await at.connect(1, bob)
        assert await is_served(here) and await is_served(there)
        await at.backend(1, "revoke", identity="alice")
        for socket in (here, there):
            assert await close_code(socket, within_s=WITHIN_S) == 4503
        assert await is_served(other)
        for node in (0, 1):
            for replayed in (token, phone):
                assert await close_code(await at.connect(node, replayed)) == 4503
                socket = await at.connect(node)
                answer = await call(socket, "authenticate", service="auth", token=replayed)
                assert (answer["type"], answer["message"], answer["code"]) == ("error", "Revoked", "revoked")
                assert await close_code(socket) == 4503
        async with NodeProcess.running(at.env) as late:
            at.nodes.append(late)
            assert await close_code(await at.connect(2, token)) == 4503, "a node that was not there"


async def test_an_identity_is_disconnected_on_every_node_and_may_reconnect(tmp_path: Path) -> None:
    async with house(tmp_path) as at:
        for reconnect, code in ((True, 4000), (False, 4500)):
            sockets = [await at.connect(node, hmac_token()) for node in (0, 1)]
            await at.backend(0, "disconnect", identity="alice", reconnect=reconnect)
            assert [await close_code(socket) for socket in sockets] == [code, code]
        assert await is_served(await at.connect(1, hmac_token()))


async def test_clients_without_identity_are_refused_where_one_is_required(tmp_path: Path) -> None:
    env = {**HMAC, "SNORKY_AUTH__REQUIRED": "true", "SNORKY_PUBLIC__HOST": "0.0.0.0", "SNORKY_AUTH__TIMEOUT_S": "4"}
    async with house(tmp_path, env, count=1) as at:  # 0.0.0.0 without --insecure
        silent, known = await at.connect(), await at.connect(0, hmac_token())
        assert (await call(silent, "subscribe", channel="a"))["message"] == "Not authenticated"
        assert await is_served(known)
        assert await close_code(silent) == 4502
        late = await at.connect()
        answer = await call(late, "authenticate", service="auth", token=hmac_token())
        assert answer["data"]["identity"] == "alice"
        assert await is_served(late)


async def test_a_connection_ends_with_its_token(tmp_path: Path) -> None:
    async with house(tmp_path, count=1) as at:
        socket = await at.connect(0, hmac_token(exp=time.time() + 5))
        assert await is_served(socket)
        assert await close_code(socket) == 4501


async def test_a_thousand_logins_at_once_ask_the_issuer_once(tmp_path: Path) -> None:
    issuer = Issuer("ES256", "key-1")
    async with KeyServer(issuer) as keys, house(tmp_path, {"SNORKY_AUTH__JWKS_URL": keys.url}, count=1) as at:
        sockets = [await at.connect() for _ in range(1000)]
        token = issuer.token()
        keys.gate.clear()
        logins = [asyncio.create_task(call(each, "authenticate", service="auth", token=token)) for each in sockets]

        async def is_asked() -> bool:
            return keys.requests > 0

        await eventually(is_asked, within_s=30, what="the issuer is asked")
        keys.gate.set()
        answers = await asyncio.gather(*logins)
        assert {answer["data"]["identity"] for answer in answers} == {"alice"}
        assert keys.requests == 1


async def test_keys_rotate_and_unknown_ones_are_refused(tmp_path: Path) -> None:
    old, new, strange = Issuer("RS256", "old"), Issuer("ES256", "new"), Issuer("ES256", "new")
    async with KeyServer(old) as keys, house(tmp_path, {"SNORKY_AUTH__JWKS_URL": keys.url}, count=2) as at:
        assert await is_served(await at.connect(0, old.token()))
        assert await close_code(await at.connect(0, new.token())) == 4501, "not announced"
        keys.issuers = [old, new]
        assert await is_served(await at.connect(1, new.token())), "this node has not asked before"
        assert await is_served(await at.connect(1, old.token()))
        assert await close_code(await at.connect(1, strange.token())) == 4501, "another key under a known id"
        assert keys.requests == 2


async def test_no_token_is_written_down_anywhere(tmp_path: Path) -> None:
    """Whatever a client does with it: used correctly, in the wrong place, in a broken message."""
    (tmp_path / "hook.py").write_text("async def who(request):\n    raise RuntimeError(str(request.headers))\n")
    env = {**HMAC, "PYTHONPATH": str(tmp_path), "SNORKY_AUTH__IDENTIFY_HOOK": "hook:who"}
    argv = (*GATEWAY, "serve", "--log-level", "debug")
    async with AsyncExitStack() as stack:
        redis = await stack.enter_async_context(RedisProcess.running(tmp_path))
        node = await stack.enter_async_context(NodeProcess.running({"SNORKY_REDIS_URL": redis.url, **env}, argv=argv))
        at = House(
            [node], await stack.enter_async_context(aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0))), env
        )
        good, bad = hmac_token(jti="a-1"), hmac_token(secret="another secret, of thirty-two bytes")
        marks = [part for token in (good, bad) for part in token.split(".")[1:]]
        assert await is_served(await at.connect(0, good))
        assert await close_code(await at.connect(0, bad)) == 4501
        await at.connect(0, protocols=[f"bearer.{good}", "snorky.json"])
        assert await close_code(await at.connect(0, f"{good}, Bearer {bad}")) == 4501
        socket = await at.connect(0, good)
        await call(socket, "refresh", service="auth", token=good)
        await call(socket, "refresh", service="auth", token={"token": bad})
        await call(socket, "refresh", service="auth", tokens=bad)
        await call(socket, "nothing", service="auth", token=bad)
        await socket.send_str(f'{{"service": "auth", "message": "{bad}')
        await socket.send_str(json.dumps({"service": bad, "message": 1}))
        await call(socket, "refresh", service="auth", token=bad)
        assert await close_code(socket) == 4501
        for headers in (
            {"Authorization": f"Basic {bad}", "Cookie": f"session={bad}"},
            {"Authorization": f"Bearer {good}", "Sec-WebSocket-Protocol": f"bearer.{bad}"},
            {"Origin": f"https://{bad}"},
        ):
            with pytest.raises(aiohttp.WSServerHandshakeError):
                await at.session.ws_connect(node.websocket_url, headers=headers)
        for request in (
            f"GET /ws HTTP/1.1\r\nAuthorization Bearer {bad}\r\n\r\n",
            f"GET /{bad} HTTP/9\r\n\r\n",
            f"{bad}\r\n\r\n",
        ):
            reader, writer = await asyncio.open_connection("127.0.0.1", node.public_port)
            writer.write(request.encode())
            await reader.read()
            writer.close()
        await at.backend(0, "revokeToken", jti="a-1")

        async def is_logged() -> bool:
            return "identify failed" in node.log

        await eventually(is_logged, within_s=30, what="the hook was asked, or this proves nothing")
        _, metrics = await node.ask("/metrics")
        for text in (node.log, metrics):
            assert not [mark for mark in marks if mark[:24] in text]
