"""The programs of the README, executed unchanged."""

import re
import subprocess
import sys
from pathlib import Path

import aiohttp
import pytest

from snorky.gateway.config.rules.channel_rules import ChannelRule
from snorky.gateway.config.settings import load
from snorky.gateway.sdk.loading import load_registries
from tests.support.processes.nodes import GATEWAY, NodeProcess, Process
from tests.support.processes.tools import ROOT, eventually, free_port
from tests.support.scenarios.pages import code_block

README = (ROOT / "README.md").read_text()


def program(containing: str) -> str:
    return code_block(ROOT / "README.md", "python", containing=containing)


async def ask(socket: aiohttp.ClientWebSocketResponse, service: str, command: str, **params: object) -> object:
    """Call, and return the reply's message; notifications that come before it are not expected."""
    await socket.send_json({"service": service, "message": {"command": command, "params": params, "callId": 1}})
    reply = await socket.receive_json(timeout=30)
    assert reply["service"] == service
    return reply["message"]


def test_readme_opens_with_the_two_commands() -> None:
    commands = re.findall(r"^make (\w+)", README.split("```")[1], re.MULTILINE)
    assert commands == ["demo", "test"]


async def test_own_service_of_the_readme_answers_and_notifies(tmp_path: Path) -> None:
    source = program("class Thermometer")
    assert len(source[source.index("class ") : source.index("public =")].strip().splitlines()) <= 20
    path = tmp_path / "thermometer.py"
    path.write_text(source)
    async with (
        NodeProcess.running(argv=(sys.executable, str(path))) as node,
        aiohttp.ClientSession() as session,
        session.ws_connect(node.websocket_url) as watcher,
        session.ws_connect(node.websocket_url) as reporter,
    ):
        done = {"type": "response", "callId": 1, "data": None}
        assert await ask(watcher, "thermometer", "watch", room="attic") == done
        assert await ask(reporter, "thermometer", "report", room="attic", celsius=19.5) == done
        heard = await watcher.receive_json(timeout=30)
        assert heard == {"service": "thermometer", "message": {"room": "attic", "celsius": 19.5}}
        refused = await ask(reporter, "thermometer", "report", room="attic", celsius=-300)
        assert isinstance(refused, dict) and refused["message"] == "celsius must be at least -273.15"
        for wrong in ("19.5", None, True, [19.5]):
            refused = await ask(reporter, "thermometer", "report", room="attic", celsius=wrong)
            assert isinstance(refused, dict) and refused["message"] == "celsius must be a number", wrong
        # and the standard service next to it, fed by the private registry
        assert await ask(watcher, "pubsub", "subscribe", channel="news") == done
        body = {"command": "publish", "params": {"channel": "news", "message": 1}, "callId": 1}
        url = f"http://127.0.0.1:{node.private_port}/backend"
        async with session.post(url, json={"service": "pubsub_backend", "message": body}) as response:
            assert (response.status, (await response.json())["message"]) == (200, done)
        assert (await watcher.receive_json(timeout=30))["message"]["message"] == 1


async def test_own_application_of_the_readme_serves_clients_and_pages(tmp_path: Path) -> None:
    path = tmp_path / "shop.py"
    path.write_text(program("web.run_app"))
    port = free_port()
    process = Process((sys.executable, str(path)), env={"PORT": str(port)}, ready="Running on")
    try:
        await process.wait_ready()
        base = f"http://127.0.0.1:{port}"
        async with aiohttp.ClientSession() as session:
            async with session.get(base) as response:
                assert await response.text() == "Hello, this is the shop\n"
            async with session.ws_connect(f"{base}/ws") as client:

                async def is_subscribed() -> bool:
                    reply = await ask(client, "pubsub", "subscribe", channel={"shop": 1})
                    return isinstance(reply, dict) and reply.get("type") == "response"

                await eventually(is_subscribed, within_s=10, what="the application's node receives from its Redis")
                message = {"command": "publish", "params": {"channel": {"shop": 1}, "message": "open"}}
                await client.send_json({"service": "pubsub", "message": message})
                # reply and notification have no defined order
                heard = [(await client.receive_json(timeout=30))["message"] for _ in range(2)]
                assert {"type": "message", "channel": {"shop": 1}, "message": "open"} in heard
    finally:
        await process.close()


@pytest.mark.parametrize("command", ["serve", "check", "publish", "subscribe", "stats", "token"])
def test_every_command_that_the_readme_names_has_help(command: str) -> None:
    result = subprocess.run([*GATEWAY, command, "--help"], capture_output=True, text=True, timeout=120, check=False)
    assert result.returncode == 0 and "Examples" in result.stdout


def test_links_of_the_readme_lead_somewhere() -> None:
    links = [link for link in re.findall(r"\]\(([^)]+)\)", README) if "://" not in link]
    assert links
    assert [link for link in links if not (ROOT / link.partition("#")[0]).exists()] == []


def test_settings_of_the_readme_work_as_documented(tmp_path: Path) -> None:
    (block,) = re.findall(r"```toml\n(.*?)```", README, re.DOTALL)
    path = tmp_path / "snorky.toml"
    path.write_text(block)
    public, _ = load_registries(load(path, {}))
    rules = public["pubsub"].rules
    assert rules.find("orders:7") == ChannelRule("orders:*", history=1000, history_ttl_s=300, presence=True)
    assert not rules.find("order").history
