"""The configuration, the options and the commands in docs/migrate-from-pusher.md, with clients and Pusher's library."""

import asyncio
import json
import os
import re
import shlex
import tomllib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pusher
import pytest
from typer.testing import CliRunner

from snorky.client.aio import Publisher
from snorky.gateway import ChannelRule, Rules
from snorky.gateway.cli import app
from snorky.gateway.config.pusher import RULES, with_rules
from snorky.gateway.config.settings import Settings, load
from snorky.gateway.runtime.gateway import Gateway
from tests.support.clients.pusher import SubscriptionFailed, connected, member
from tests.support.processes.tools import ROOT
from tests.support.scenarios.documented_changes import changed_lines, replaced
from tests.support.scenarios.pages import code_block
from tests.support.scenarios.protocol_nodes import Nodes
from tests.support.scenarios.tokens import SECRET as AUTH_SECRET

PAGE = ROOT / "docs" / "migrate-from-pusher.md"
APP, KEY = "1234567", "a1b2c3d4e5f6a7b8c9d0"
STAGING_KEY = "b2c3d4e5f6a7b8c9d0e1"
SECRET = "7e5a91d2c4b8f036" * 3
STAGING_SECRET = SECRET[::-1]
SECRETS = {"made by: openssl rand -hex 32, again": STAGING_SECRET, "made by: openssl rand -hex 32": SECRET}


def block(kind: str, containing: str = "") -> str:
    """Return a block of the page, with secrets."""
    text = code_block(PAGE, kind, containing=containing)
    for placeholder, secret in SECRETS.items():
        text = text.replace(placeholder, secret)
    return text


def settings_of(tmp_path: Path, text: str, nodes: Nodes, **env: str) -> Settings:
    path = tmp_path / "snorky.toml"
    path.write_text(text)
    ports = {"SNORKY_PUBLIC__PORT": "0", "SNORKY_PRIVATE__PORT": "0"}
    return load(path, {"SNORKY_REDIS_URL": nodes.redis_url, **ports, **env})


async def started(nodes: Nodes, settings: Settings) -> str:
    gateway = await nodes.stack.enter_async_context(Gateway(settings))
    await gateway.until_ready(30)
    nodes.gateways.append(gateway)
    return gateway.public_urls[0]


def local(text: str, url: str) -> str:
    """Replace the addresses of the backend's options."""
    port = url.rpartition(":")[2]
    return replaced(text, **{"rt.example.org": "127.0.0.1", "443": port, "ssl=True": "ssl=False"})


def library(url: str) -> pusher.Pusher:
    """Make the backend's object with the options of the page."""
    _, after = changed_lines(PAGE, "pusher-python")
    found: dict[str, Any] = {"pusher": pusher, "os": type("", (), {"environ": {"PUSHER_SECRET": SECRET}})}
    exec(local("\n".join([*after, ")"]), url), found)
    channels: pusher.Pusher = found["channels"]
    return channels


@asynccontextmanager
async def native(url: str) -> AsyncIterator[aiohttp.ClientWebSocketResponse]:
    """Connect to a node with Snorky's own protocol."""
    async with aiohttp.ClientSession() as http, http.ws_connect(f"{url}/ws") as socket:
        yield socket


async def called(socket: aiohttp.ClientWebSocketResponse, command: str, **params: Any) -> Any:
    """Call a command of pub/sub; returns the reply."""
    await socket.send_json({"service": "pubsub", "message": {"command": command, "params": params, "callId": 1}})
    return await message(socket)


async def message(socket: aiohttp.ClientWebSocketResponse) -> Any:
    """Wait for the next message."""
    return (await socket.receive_json(timeout=30))["message"]


def about(user: str) -> dict[str, Any]:
    return {"user_id": user, "user_info": {"name": user.title()}}


async def test_backend_and_clients_work_with_the_configuration_of_the_page(nodes: Nodes, tmp_path: Path) -> None:
    settings = settings_of(tmp_path, block("toml pusher", "[services.pubsub]"), nodes)
    assert settings.problems(insecure=False) == []
    url = await started(nodes, settings)
    backend = library(url)
    async with connected(url, KEY, SECRET) as ann, connected(url, KEY, SECRET) as bob:
        await ann.subscribe("news")
        await asyncio.to_thread(backend.trigger, "news", "announcement", {"text": "Lunch"})
        assert await ann.data("announcement", "news") == {"text": "Lunch"}
        for client, user in ((ann, "ann"), (bob, "bob")):
            signed = backend.authenticate("presence-chat", client.socket_id, about(user))
            await client.ask("presence-chat", signed["channel_data"], auth=signed["auth"])
            members = (await client.subscribed("presence-chat"))["presence"]["hash"]
        assert members == {"ann": {"name": "Ann"}, "bob": {"name": "Bob"}}
        assert (await ann.data("pusher_internal:member_added"))["user_id"] == "bob"
        await bob.send("client-typing", {"state": 1}, "presence-chat")
        typing = await ann.event("client-typing")
        assert (typing["user_id"], json.loads(typing["data"])) == ("bob", {"state": 1})
        await asyncio.to_thread(backend.trigger, "presence-chat", "message", "hi", ann.socket_id)
        assert (await bob.event("message"))["data"] == "hi"
        assert not [each for each in await ann.fence() if each["event"] == "message"], "ann is the sender"
        users = await asyncio.to_thread(backend.users_info, "presence-chat")
        assert users == {"users": [{"id": "ann"}, {"id": "bob"}]}
        user = backend.authenticate_user(bob.socket_id, {"id": "bob"})
        await bob.sign_in(user["user_data"], auth=user["auth"])
        await bob.event("pusher:signin_success")
        await bob.subscribe("#server-to-user-bob")
        await asyncio.to_thread(backend.send_to_user, "bob", "notice", {"text": "for you"})
        assert await bob.data("notice") == {"text": "for you"}
        await asyncio.to_thread(backend.terminate_user_connections, "bob")
        assert (await bob.ended())[0] == 4009


async def test_clients_of_other_protocols_cannot_do_more_than_the_page_says(nodes: Nodes, tmp_path: Path) -> None:
    url = await started(nodes, settings_of(tmp_path, block("toml pusher", "[services.pubsub]"), nodes))
    async with native(url) as socket:
        for channel in ("private-a", "presence-a", "private-cache-a", "#server-to-user-ann"):
            assert (await called(socket, "subscribe", channel=channel))["code"] == "not_authorized"
        for channel in ("news", "cache-a", "private-a"):
            assert (await called(socket, "publish", channel=channel, message=1))["code"] == "not_authorized"


async def test_events_are_objects_for_other_protocols_and_their_messages_are_events(
    nodes: Nodes, tmp_path: Path
) -> None:
    url = await started(nodes, settings_of(tmp_path, block("toml pusher", "[services.pubsub]"), nodes))
    async with (
        native(url) as socket,
        connected(url, KEY, SECRET) as client,
        Publisher(nodes.redis_url) as publisher,
    ):
        await called(socket, "subscribe", channel="orders.7")
        await client.subscribe("orders.7")
        await asyncio.to_thread(library(url).trigger, "orders.7", "shipped", {"id": 7})
        assert (await message(socket))["message"] == {"event": "shipped", "data": '{"id": 7}'}
        assert (await client.event("shipped"))["data"] == '{"id": 7}'
        await publisher.publish("orders.7", {"event": "paid", "data": {"id": 7}})
        assert await client.data("paid") == {"id": 7}
        await publisher.publish("orders.7", {"state": "paid"})
        assert await client.data("message") == {"state": "paid"}


async def test_environment_of_laravel_reaches_the_app(nodes: Nodes, tmp_path: Path) -> None:
    url = await started(nodes, settings_of(tmp_path, block("toml pusher", "[services.pubsub]"), nodes))
    env = dict(each.split("=", 1) for each in shlex.split(block("ini laravel")))
    assert (env["PUSHER_HOST"], env["PUSHER_PORT"], env["PUSHER_SCHEME"]) == ("rt.example.org", "443", "https")
    backend = pusher.Pusher(
        env["PUSHER_APP_ID"],
        env["PUSHER_APP_KEY"],
        env["PUSHER_APP_SECRET"],
        ssl=False,
        host="127.0.0.1",
        port=int(url.rpartition(":")[2]),
    )
    async with connected(url, KEY, SECRET) as client:
        await client.subscribe("news")
        await asyncio.to_thread(backend.trigger, "news", "announcement", "from Laravel")
        assert (await client.event("announcement"))["data"] == "from Laravel"


def test_rules_of_the_page_are_those_of_the_code() -> None:
    rows = re.findall(r"^\| (`.+-\*`) \| (.+?) \| (.*?) ?\|$", PAGE.read_text(), re.MULTILINE)
    documented = {name: (who, has) for names, who, has in rows for name in names.split("`")[1::2]}
    assert documented.keys() == {each["match"] for each in RULES}
    found: Rules[ChannelRule] = Rules.read(RULES)
    for rule in found:
        who, has = documented[rule.match]
        assert ("`token`" in who) == (rule.allow_subscribe == rule.allow_publish == "token")
        assert ("publish: nobody" in who) == (rule.allow_publish == "nobody")
        assert ("members" in has) == rule.presence == rule.join_leave
        assert ("last event" in has or "the same" in has) == (rule.history > 0)
        assert rule.history_ttl_s == 1800 or not rule.history


async def test_own_rules_come_first_and_stay_closed(nodes: Nodes, tmp_path: Path) -> None:
    text = block("toml pusher", "[services.pubsub]").replace("[[services.pubsub.channels]]", "[[X]]")
    text = text.replace("[[X]]", block("toml pusher rules") + "\n[[services.pubsub.channels]]")
    settings = settings_of(tmp_path, text, nodes)
    table = with_rules("pubsub", settings.services["pubsub"], settings.public.pusher_apps or {})
    rules: Rules[ChannelRule] = Rules.read(table.options["channels"])
    orders, room = rules.find("private-orders.7"), rules.find("presence-room.1")
    assert (orders.history, orders.allow_subscribe, orders.allow_publish) == (100, "token", "token")
    assert (room.subscribers_max, room.presence, room.join_leave, room.allow_subscribe) == (500, True, True, "token")
    url = await started(nodes, settings)
    async with connected(url, KEY, SECRET) as client:
        await client.subscribe("private-orders.7")
        with pytest.raises(SubscriptionFailed) as failed:
            await client.subscribe("private-orders.8", auth="wrong")
        assert failed.value.status == 401
        await client.subscribe("presence-room.1", member("ann"))


async def test_where_an_identity_is_required_public_channels_are_for_users_who_signed_in(
    nodes: Nodes, tmp_path: Path
) -> None:
    auth = {
        "SNORKY_AUTH__HMAC_SECRET": AUTH_SECRET,
        "SNORKY_AUTH__REQUIRED": "true",
        "SNORKY_AUTH__TIMEOUT_S": "0.2",
        "SNORKY_SERVICES__AUTH__CLASS": "snorky.services.auth:AuthService",
    }
    text = block("toml pusher", "[services.pubsub]")
    url = await started(nodes, settings_of(tmp_path, text, nodes, **auth))
    async with connected(url, KEY, SECRET) as client, connected(url, KEY, SECRET) as other:
        await other.subscribe("private-a")
        await other.subscribe("presence-a", member("bob"))
        with pytest.raises(SubscriptionFailed) as failed:
            await client.subscribe("news")
        assert failed.value.status == 401
        await client.signed_in({"id": "ann"})
        await client.subscribe("news")
        async with native(url) as socket:
            assert (await socket.receive(timeout=30)).data == 4502  # too late to log in; but not for Pusher's clients
        await other.fence()


async def test_apps_with_services_of_their_own_share_only_users(nodes: Nodes, tmp_path: Path) -> None:
    text = block("toml pusher apps")
    assert tomllib.loads(text)["public"]["pusher_apps"].keys() == {APP, "2345678"}
    url = await started(nodes, settings_of(tmp_path, text, nodes))
    backend = library(url)
    async with connected(url, KEY, SECRET) as client, connected(url, STAGING_KEY, STAGING_SECRET) as staging:
        for each in (client, staging):
            await each.subscribe("news")
            await each.signed_in({"id": "42"})
        await asyncio.to_thread(backend.trigger, "news", "announcement", "x")
        await client.event("announcement")
        assert await staging.fence() == []
        await asyncio.to_thread(backend.terminate_user_connections, "42")
        assert [(await each.ended())[0] for each in (client, staging)] == [4009, 4009]


def test_check_shows_the_app_and_who_may_do_what(tmp_path: Path) -> None:
    path = tmp_path / "snorky.toml"
    path.write_text(block("toml pusher", "[services.pubsub]"))
    done = CliRunner().invoke(app, ["check", "--config", str(path)])
    lines = [" ".join(line.split()) for line in done.stdout.splitlines()]
    assert done.exit_code == 0, done.stdout
    assert f"pusher apps {APP} key {KEY}, channels of pubsub" in lines
    assert "private-* subscribe token; publish token; history token; presence token" in lines
    assert "* subscribe anyone; publish nobody; history anyone; presence anyone" in lines
    assert SECRET not in done.stdout
    path.write_text(path.read_text().replace(SECRET, "app-secret"))
    done = CliRunner().invoke(app, ["check", "--config", str(path)])
    assert done.exit_code == 1 and "has a wrong secret: it is too easy to guess" in " ".join(done.stdout.split())


@pytest.mark.needs("curl")
async def test_commands_of_the_page_show_that_a_node_answers(nodes: Nodes, tmp_path: Path) -> None:
    url = await started(nodes, settings_of(tmp_path, block("toml pusher", "[services.pubsub]"), nodes))

    async def ran(containing: str, **changed: str) -> str:
        command = replaced(block("sh pusher", containing), **{"http://127.0.0.1:8002": url}, **changed)
        process = await asyncio.create_subprocess_shell(command, stdout=-1, stderr=-3, env=dict(os.environ))
        async with asyncio.timeout(30):
            return (await process.communicate())[0].decode(errors="replace")  # frames

    found = await ran("/apps/")
    assert "401 Unauthorized" in found and "Invalid signature" in found
    assert "404 Not Found" in await ran("/apps/", **{APP: "7654321"})
    found = await ran("/app/")
    assert "101 Switching Protocols" in found and "pusher:connection_established" in found
    assert "pusher:error" in await ran("/app/", **{KEY: "unknown"})
