"""Logging in: ACL users, passwords, TLS. Deployments may copy these rules."""

import asyncio
from pathlib import Path
from typing import Any

import pytest
import structlog

from snorky.gateway.errors import BrokerUnavailable, ConfigurationError
from snorky.gateway.metrics import Metrics
from snorky.gateway.redis import RedisBroker
from snorky.gateway.redis.admin.nodes import read_nodes
from snorky.gateway.redis.admin.redis_py import client_of
from snorky.gateway.redis.connection.timeouts import RedisTimeouts
from snorky.gateway.redis.target import target_from_url
from tests.support.fakes.brokers import PREFIX, Recorder, hears, open_broker
from tests.support.fakes.leases import reporting
from tests.support.processes.tools import eventually
from tests.support.servers.redis_servers import REAL_KINDS, RedisServer, make_tls

PASSWORD = "p@ss:w/rd#%é"
IN_URL = "p%40ss%3Aw%2Frd%23%25%C3%A9"
# All that a node needs: its channels, and the keys of its lease. Without CLIENT SETNAME only its name is missing.
BROKER_RULES = f"resetchannels &{PREFIX}:* +publish +subscribe +unsubscribe"
LEASE_RULES = (
    f"~{PREFIX}:{{nodes}}* +eval +evalsha +time +exists +zadd +zrem +zrangebyscore"
    " +sadd +srem +smembers +set +mget +del"
)


def acl(rules: str) -> list[str]:
    return ["user default off", f"user node on >{PASSWORD} resetkeys -@all {rules}"]


@pytest.mark.parametrize("kind", REAL_KINDS)
async def test_a_user_limited_to_the_prefix_is_all_that_a_node_needs(kind: str, tmp_path: Path) -> None:
    async with RedisServer(kind, tmp_path, conf=acl(f"{BROKER_RULES} {LEASE_RULES}")) as server:
        url = f"redis://node:{IN_URL}@127.0.0.1:{server.port}/0"
        target = target_from_url(url)
        async with (
            open_broker(url) as (broker, heard),
            reporting(target, "node-1", lambda: {"connections": 3}, prefix=PREFIX),
        ):
            await broker.subscribe("pubsub:news")
            assert await broker.publish("pubsub:news", b"1") == 1
            await heard.until(lambda: heard.publications == [("pubsub:news", b"1")])
            client = client_of(target)

            async def states() -> list[Any]:
                return await read_nodes(client, PREFIX)

            (node,) = await eventually(states, within_s=30, what="a state")
            assert (node.node_id, node.state) == ("node-1", {"connections": 3})
            await client.aclose()


async def test_another_prefix_is_refused_and_the_node_receives_nothing(tmp_path: Path) -> None:
    async with RedisServer("redis", tmp_path, conf=acl(BROKER_RULES)) as server:
        target = target_from_url(f"redis://node:{IN_URL}@127.0.0.1:{server.port}/0")
        broker = RedisBroker(target, prefix="else", node_id="n", metrics=Metrics())
        await broker.start(Recorder())
        with pytest.raises(BrokerUnavailable) as refusal:
            await broker.publish("pubsub:news", b"1")
        assert "NOPERM" in refusal.value.what
        with pytest.raises(BrokerUnavailable) as refusal:
            await broker.subscribe("pubsub:news")
        assert "NOPERM" in refusal.value.what
        assert broker.is_redis_unverified
        await broker.stop()


async def test_one_refused_channel_leaves_the_others_alone(tmp_path: Path) -> None:
    channels = f"&{PREFIX}:{{pubsub* &{PREFIX}:nodes{{pubsub* &{PREFIX}:{{nodes*"
    rules = f"resetchannels {channels} +publish +subscribe +unsubscribe"
    async with RedisServer("redis", tmp_path, conf=acl(rules)) as server:
        async with open_broker(f"redis://node:{IN_URL}@127.0.0.1:{server.port}/0") as (broker, heard):
            results = await asyncio.gather(
                *(broker.subscribe(key) for key in ("pubsub:a", "secret:b", "pubsub:c")), return_exceptions=True
            )
            assert results[0] is None and results[2] is None
            assert isinstance(results[1], BrokerUnavailable)
            assert await broker.publish("pubsub:c", b"1") == 1
            await heard.until(lambda: heard.publications)
            assert not broker.is_redis_unverified and heard.interruptions == 0


async def has_logged(logs: list[Any]) -> bool:
    return any(each["event"] == "redis not reached" for each in logs)


@pytest.mark.parametrize("login", ["", "wrong:login@", f"node:{IN_URL}x@"])
async def test_with_wrong_credentials_the_node_receives_nothing_and_logs_no_secret(login: str, tmp_path: Path) -> None:
    async with RedisServer("redis", tmp_path, conf=acl(BROKER_RULES)) as server:
        target = target_from_url(f"redis://{login}127.0.0.1:{server.port}/0")
        with structlog.testing.capture_logs() as logs:
            broker = RedisBroker(
                target, prefix=PREFIX, node_id="n", metrics=Metrics(), timeouts=RedisTimeouts(confirm_timeout_s=0.5)
            )
            await broker.start(Recorder())
            with pytest.raises(BrokerUnavailable):
                await broker.subscribe("pubsub:news")
            assert broker.is_redis_unverified
            await eventually(lambda: has_logged(logs), within_s=30, what="an attempt to connect has failed")
            await broker.stop()
        refusals = [str(each["error"]) for each in logs if each["event"] == "redis not reached"]
        assert refusals and all(text.startswith(("NOAUTH", "WRONGPASS")) for text in refusals), refusals
        assert PASSWORD not in repr(logs) + repr(target) and IN_URL not in repr(logs) + repr(target)


async def test_a_password_without_a_user_logs_in(tmp_path: Path) -> None:
    async with RedisServer("redis", tmp_path, conf=[f"requirepass {PASSWORD}"]) as server:
        async with open_broker(f"redis://:{IN_URL}@127.0.0.1:{server.port}/0") as (broker, _):
            await broker.subscribe("pubsub:news")
            assert await broker.publish("pubsub:news", b"1") == 1


@pytest.mark.needs("openssl")
async def test_tls_works_with_its_authority_and_with_no_other(tmp_path: Path) -> None:
    async with RedisServer("redis", tmp_path, tls=make_tls(tmp_path)) as server:
        async with open_broker(server.url) as (broker, heard):
            await broker.subscribe("pubsub:news")
            futures = [broker.publish("pubsub:news", b"x" * 10_000) for _ in range(500)]
            assert await asyncio.gather(*futures) == [1] * 500
            await heard.until(lambda: len(heard.publications) == 500)
            broker.pause()
            assert await broker.publish("pubsub:news", b"while paused") == 1
            broker.resume()
            await heard.until(lambda: heard.of("pubsub:news")[-1] == b"while paused")
        client = server.client()
        assert await client.ping()  # by the library, with the same options
        await client.aclose()
        for url in (
            f"rediss://127.0.0.1:{server.port}/0",  # unknown authority
            server.url.replace("127.0.0.1", "localhost"),  # not the name in the certificate
        ):
            broker = RedisBroker(
                target_from_url(url),
                prefix=PREFIX,
                node_id="n",
                metrics=Metrics(),
                timeouts=RedisTimeouts(confirm_timeout_s=0.5),
            )
            with structlog.testing.capture_logs() as logs:
                await broker.start(Recorder())
                with pytest.raises(BrokerUnavailable):
                    await broker.subscribe("pubsub:news")
                await eventually(lambda logs=logs: has_logged(logs), within_s=30, what="an attempt has failed")
                await broker.stop()
            assert any("CERTIFICATE_VERIFY_FAILED" in str(each.get("error")) for each in logs), logs


@pytest.mark.needs("openssl")
async def test_tls_connections_heal_too(tmp_path: Path) -> None:
    async with RedisServer("redis", tmp_path, tls=make_tls(tmp_path)) as server:
        async with open_broker(server.url) as (broker, heard):
            await broker.subscribe("pubsub:news")
            await server.restart()
            await heard.until(lambda: heard.interruptions == 1, within_s=3.0)
            await hears(broker)
            assert await broker.publish("pubsub:news", b"1") == 1


def test_a_certificate_that_is_not_there_is_an_error_of_the_settings(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="ssl_ca_certs"):
        target_from_url(f"rediss://127.0.0.1/0?ssl_ca_certs={tmp_path}/none.crt")
