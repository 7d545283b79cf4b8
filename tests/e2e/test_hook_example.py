"""The backend of docs/permissions.md, executed unchanged, asked by a node with the settings of that page."""

import json
import re
import sys
import time
import tomllib
from pathlib import Path

import aiohttp

from snorky.gateway.config.hooks import Hooks
from snorky.gateway.config.settings import load
from snorky.gateway.hooks.signature import SIGNATURE_HEADER, signature
from tests.support.processes.nodes import NodeProcess, Process
from tests.support.processes.tools import ROOT, free_port
from tests.support.scenarios.tokens import SECRET, hmac_token

PAGE = (ROOT / "docs" / "permissions.md").read_text()


def block(kind: str) -> str:
    (found,) = re.findall(rf"```{kind}\n(.*?)```", PAGE, re.DOTALL)
    return str(found)


def test_settings_of_the_page_are_valid(tmp_path: Path) -> None:
    (tmp_path / "snorky.toml").write_text(block("toml hooks"))
    hooks = load(tmp_path / "snorky.toml", {}).hooks
    assert isinstance(hooks, Hooks) and list(hooks.written) == ["connect", "subscribe", "publish"]
    assert hooks.written["subscribe"].cache_s == tomllib.loads(block("toml hooks"))["hooks"]["subscribe"]["cache_s"]


async def test_backend_of_the_page_decides_and_verifies_the_signature(tmp_path: Path) -> None:
    (tmp_path / "backend.py").write_text(block("python"))
    port = free_port()
    url = f"http://127.0.0.1:{port}/snorky/subscribe"
    program = [sys.executable, str(tmp_path / "backend.py")]
    backend = Process(program, env={"HOOK_SECRET": SECRET, "PORT": str(port)}, ready="Running on")
    settings = {
        "SNORKY_HOOKS__SECRET": SECRET,
        "SNORKY_HOOKS__SUBSCRIBE__URL": url,
        "SNORKY_AUTH__HMAC_SECRET": SECRET,
        "SNORKY_SERVICES__PUBSUB__CLASS": "snorky.services.pubsub:PubSubService",
        "SNORKY_SERVICES__PUBSUB__UNMATCHED": "open",
    }
    try:
        await backend.wait_ready()
        async with aiohttp.ClientSession() as session:
            for secret, expected in ((SECRET, ["ok", "not_authorized"]), (SECRET[::-1], ["unavailable"] * 2)):
                async with NodeProcess.running({**settings, "SNORKY_HOOKS__SECRET": secret}) as node:
                    headers = {"Authorization": f"Bearer {hmac_token('ann', shops=[7])}"}
                    async with session.ws_connect(node.websocket_url, headers=headers) as client:
                        assert [await subscribe(client, f"orders:{shop}") for shop in (7, 8)] == expected
            await only_fresh_signatures_of_this_body_count(session, url)
    finally:
        await backend.close()


async def subscribe(client: aiohttp.ClientWebSocketResponse, channel: str) -> str:
    """Subscribe; return "ok" or the error's code."""
    message = {"command": "subscribe", "params": {"channel": channel}, "callId": 1}
    await client.send_json({"service": "pubsub", "message": message})
    reply = (await client.receive_json(timeout=30))["message"]
    return str(reply.get("code", "ok"))


async def only_fresh_signatures_of_this_body_count(session: aiohttp.ClientSession, url: str) -> None:
    """Ask the backend by hand."""
    body, now_s = json.dumps({"claims": {"shops": [7]}, "channel": "orders:7"}).encode(), int(time.time())
    good = signature(SECRET.encode(), body, now_s)
    old, other = signature(SECRET.encode(), body, now_s - 100), signature(SECRET.encode(), body + b" ", now_s)
    for header, status in ((good, 200), (old, 401), (other, 401), ("", 401), ("t=x,v1=y", 401), (good[:-1], 401)):
        async with session.post(url, data=body, headers={SIGNATURE_HEADER: header}) as response:
            assert response.status == status, header
