"""The commands of `snorky`, with a real Redis and real nodes."""

import re
import signal

import pytest

from tests.support.processes.nodes import GATEWAY, NodeProcess, Process
from tests.support.processes.tools import eventually, free_port
from tests.support.scenarios.command_line import RULED, snorky
from tests.support.scenarios.tokens import TOKENS_AND_OPEN_PUBSUB, hmac_token

pytestmark = pytest.mark.needs("redis-server")


async def run(*arguments: str, env: dict[str, str] | None = None) -> tuple[int, str]:
    """Run one command as a process of its own."""
    command = Process([*GATEWAY, *arguments], env=env)
    try:
        code = await command.wait()
    finally:
        await command.close()
    return code, command.log


async def test_version_is_printed():
    code, output = await run("--version")
    assert (code, output.split()[0]) == (0, "snorky")


async def test_every_command_shows_examples():
    for command in ("serve", "check", "publish", "subscribe", "stats", "token"):
        code, output = await snorky(command, "--help")
        assert code == 0
        assert f"snorky {command}" in output


async def test_publication_reaches_subscribers(redis):
    async with NodeProcess.running({"SNORKY_REDIS_URL": redis.url}) as node:
        watching = Process(
            [*GATEWAY, "subscribe", "--count", "2", "--url", node.websocket_url, "news"], ready="subscribed to news"
        )
        try:
            await watching.wait_ready()
            env = {"SNORKY_REDIS_URL": redis.url}
            code, output = await snorky("publish", "news", '{"x": [1, "\u00fc\\u001b"]}', env=env)
            assert (code, output) == (0, "1 node received it\n")
            assert (await snorky("publish", "elsewhere", "1", env=env))[1].startswith("0 nodes received it: no node")
            assert (await snorky("publish", "news", '"plain"', env=env))[0] == 0
            assert await watching.wait() == 0
        finally:
            await watching.close()
    messages = [line.split(" ", 1)[1] for line in watching.log.splitlines() if " news " in line]
    assert messages == ['news {"x":[1,"\u00fc\\u001b"]}', 'news "plain"']
    assert re.search(r"^\d\d:\d\d:\d\d\.\d{3} news ", watching.log, re.MULTILINE)


async def test_publication_is_stored_if_the_nodes_have_a_history_rule(redis, tmp_path):
    config = tmp_path / "snorky.toml"
    config.write_text(RULED.format(size=10))
    env = {"SNORKY_REDIS_URL": redis.url}  # and no rules: those of the nodes count
    async with NodeProcess.running({**env, "SNORKY_CONFIG": str(config)}) as node:
        await node.wait_ready()

        async def is_loaded():
            return "not loaded" not in (await snorky("check", "--config", str(config), env=env))[1]

        await eventually(is_loaded, within_s=30, what="the node has loaded the function")
        code, output = await snorky("publish", "kept:a", "1", env=env)
        assert code == 0
        assert re.fullmatch(r"kept at \w+:1:\w+; 0 nodes received it\n", output), output
        code, output = await snorky("publish", "kept:a", "-", env=env, lines=b"2\n3\n")
        assert code == 0
        assert re.fullmatch(r"2 published, the last one kept at \w+:3:\w+\n", output), output
        assert (await snorky("publish", "bare", "1", env=env))[1].startswith("0 nodes received it: no node")


async def test_channel_may_be_any_json(redis):
    async with NodeProcess.running({"SNORKY_REDIS_URL": redis.url}) as node:
        arguments = ["subscribe", "--count", "1", "--json-channel", "--url", node.websocket_url, '["room", 5]']
        watching = Process([*GATEWAY, *arguments], ready="subscribed to")
        try:
            await watching.wait_ready()
            env = {"SNORKY_REDIS_URL": redis.url}
            assert (await snorky("publish", "--json-channel", '[ "room",5.0 ]', "1", env=env))[0] == 0
            assert await watching.wait() == 0
        finally:
            await watching.close()


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        ("hello", "snorky publish news '\"hello\"'"),
        ("it's", "snorky publish news '\"it'\"'\"'s\"'"),
        ("{'a': 1}", "double quotes"),
        ("NaN", "no JSON"),
        ('{"a": 1e999}', "no JSON"),
    ],
)
async def test_invalid_json_is_refused_with_a_hint_about_quoting(message, expected):
    code, output = await snorky("publish", "news", message)
    assert code == 2
    assert expected in output


async def test_publication_without_redis_uses_the_nodes_backend(tmp_path):
    async with NodeProcess.running() as node:  # with a Redis of its own
        env = {"SNORKY_PRIVATE__PORT": str(node.private_port)}
        listener = Process(
            (*GATEWAY, "subscribe", "news", "--url", node.websocket_url, "--count", "1"), ready="subscribed"
        )
        try:
            await listener.wait_ready()
            code, output = await snorky("publish", "news", '{"title": "Hello"}', env=env)
            assert (code, output) == (0, "1 published, by the node's backend\n")
            assert await listener.wait() == 0
            assert '{"title":"Hello"}' in listener.log.replace(": ", ":")
        finally:
            await listener.close()
        code, output = await snorky("publish", "news", "1", "--service", "nobody", env=env)
        assert code == 1 and "Unknown service" in output


async def test_publish_needs_a_redis_or_a_node():
    code, output = await snorky("publish", "news", "1", env={"SNORKY_PRIVATE__PORT": str(free_port())})
    assert code == 1
    assert "snorky serve" in output
    code, output = await snorky("publish", "news", "1", env={"SNORKY_PRIVATE__API_KEY": "a key of the backend"})
    assert code == 1
    assert "set redis_url" in output


async def test_publish_sends_the_nodes_key(tmp_path):
    key = "the key of the backend, of this test"
    (tmp_path / "key").write_text(f"\ufeff{key}\n")
    async with NodeProcess.running({"SNORKY_PRIVATE__API_KEY": key}) as node:
        env = {"SNORKY_PRIVATE__PORT": str(node.private_port), "SNORKY_PRIVATE__API_KEY": key}
        for given in (key, f"@{tmp_path / 'key'}"):
            assert await snorky("publish", "--key", given, "news", "1", env=env) == (
                0,
                "1 published, by the node's backend\n",
            )
        given_by_input = await snorky("publish", "--key", "-", "news", "1", env=env, lines=f"{key}\n".encode())
        assert given_by_input == (0, "1 published, by the node's backend\n")
        code, output = await snorky("publish", "--key", "wrong", "news", "1", env=env)
        assert code == 1 and "401" in output
    code, output = await snorky("publish", "--key", "-", "news", "-")
    assert code == 2 and "either the messages or the key" in output


@pytest.mark.parametrize(
    ("given", "lines", "why"),
    [
        ("@/nowhere/s3cret", b"", "--token: the file cannot be read: No such file or directory"),
        ("-", b"\n", "--token is empty"),
        ("", b"", "--token is empty"),
        ("s3cret\u200b", b"", "--token has an invisible character, U+200B, at position 7"),
    ],
)
async def test_token_that_cannot_be_sent_is_refused_without_being_shown(given, lines, why):
    code, output = await snorky("subscribe", "--token", given, "news", lines=lines)
    assert code == 2 and why in output and "s3cret" not in output


async def test_subscribe_authenticates_and_finds_the_node_by_the_settings(tmp_path):
    (tmp_path / "token").write_text(hmac_token() + "\n")
    env = {**TOKENS_AND_OPEN_PUBSUB, "SNORKY_AUTH__REQUIRED": "true"}
    async with NodeProcess.running(env) as node:
        settings = {"SNORKY_PUBLIC__PORT": str(node.public_port)}
        watching = Process(
            [*GATEWAY, "subscribe", "--count", "1", "--token", f"@{tmp_path / 'token'}", "news"],
            env=settings,
            ready="subscribed to news",
        )
        try:
            await watching.wait_ready()
            there = {"SNORKY_PRIVATE__PORT": str(node.private_port)}
            assert (await snorky("publish", "news", "1", env=there))[0] == 0
            assert await watching.wait() == 0
        finally:
            await watching.close()
        code, output = await run("subscribe", "--token", "made-up", "news", env=settings)
        assert code == 1 and "the token is bad" in output


async def test_serve_takes_host_and_port_of_the_command_line():
    port = free_port()
    env = {"SNORKY_PUBLIC__PORT": "1", "SNORKY_PUBLIC__HOST": "192.0.2.1", "SNORKY_PRIVATE__PORT": "0"}
    for more in ([], ["--workers", "2"]):
        serving = Process(
            [*GATEWAY, "serve", "--host", "127.0.0.1", "--port", str(port), *more], env=env, ready="ready in"
        )
        try:
            await serving.wait_ready()
            assert f"127.0.0.1:{port}" in serving.log
        finally:
            await serving.close()


async def test_unreachable_redis_is_reported_without_its_password():
    url = f"redis://node:swordfish@127.0.0.1:{free_port()}/0"
    for arguments in (("publish", "news", "1"), ("check",), ("stats", "--once")):
        code, output = await snorky(*arguments, env={"SNORKY_REDIS_URL": url})
        assert code == 1
        assert "cannot be reached" in output
        assert "swordfish" not in output


async def test_unreachable_gateway_is_reported():
    code, output = await snorky("subscribe", "--url", f"ws://127.0.0.1:{free_port()}/ws", "news")
    assert code == 1
    assert "cannot be reached" in output


async def test_serve_refuses_to_be_open_to_others():
    code, output = await run("serve", env={"SNORKY_PUBLIC__HOST": "0.0.0.0"})
    assert code == 1
    assert "--insecure" in output


async def test_serve_reports_every_invalid_setting():
    code, output = await run("serve", env={"SNORKY_PUBLIC__PROT": "1", "SNORKY_PRIVATE__PORT": "x"})
    assert code == 1
    assert output.count("error:") == 2
    assert "Traceback" not in output


async def test_serve_ends_with_0_on_a_signal(redis):
    for number in (signal.SIGTERM, signal.SIGINT):
        async with NodeProcess.running({"SNORKY_REDIS_URL": redis.url}) as node:
            node.signal(number)
            assert await node.wait() == 0, node.log


async def test_taken_port_is_one_line_not_a_traceback(redis):
    async with NodeProcess.running({"SNORKY_REDIS_URL": redis.url}) as node:
        env = {"SNORKY_REDIS_URL": redis.url, "SNORKY_PUBLIC__PORT": str(node.public_port)}
        code, output = await run("serve", env=env)
    assert code == 1
    assert "cannot listen on 127.0.0.1" in output
    assert "Traceback" not in output
