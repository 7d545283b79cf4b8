"""snorky.client.aio.Client with functions that return subscription tokens, over real sockets."""

import asyncio
import logging
from typing import Any

import pytest
from realtime_server import RealtimeServer

from snorky.client import SnorkyError
from snorky.client.aio import Client, Message, Recovered

DEADLINE_S = 15


def tokens_of(server: RealtimeServer, command: str = "subscribe") -> list[Any]:
    return [each["params"].get("token") for each in server.requests if each["command"] == command]


@pytest.mark.parametrize("is_coroutine", [True, False])
async def test_function_gets_the_channel_and_its_token_is_sent(is_coroutine: bool) -> None:
    asked: list[Any] = []

    def plain(channel: Any) -> str:
        asked.append(channel)
        return f"token-{len(asked)}"

    async def coroutine(channel: Any) -> str:
        await asyncio.sleep(0)
        return plain(channel)

    async with RealtimeServer.running() as server, Client(server.url, backoff_base_s=0.01) as client:
        server.lifetime_s = 60
        token = coroutine if is_coroutine else plain
        async with asyncio.timeout(DEADLINE_S), client.subscribe("orders:7", recover=True, token=token) as orders:
            await server.publish("orders:7", 1)
            assert await anext(orders) == Message("orders:7", 1, 1, "e:1:t1")
            server.cut()
            assert await anext(orders) == Recovered("orders:7", True, "e:1:t1")
        assert asked == ["orders:7"] * 2 and tokens_of(server) == ["token-1", "token-2"]


async def test_token_is_refreshed_while_messages_arrive() -> None:
    async with RealtimeServer.running() as server, Client(server.url) as client:
        server.lifetime_s = 1
        async with asyncio.timeout(DEADLINE_S), client.subscribe("news", recover=True, token=lambda _: "t") as news:
            await server.publish("news", 1)
            await server.until(lambda: len(tokens_of(server, "refreshSubscription")) >= 2)
            await server.publish("news", 2)
            assert [(await anext(news)).position for _ in range(2)] == ["e:1:t1", "e:2:t2"]
        assert tokens_of(server) == ["t"]


async def test_end_by_the_gateway_is_raised_after_the_last_message() -> None:
    async with RealtimeServer.running() as server, Client(server.url) as client:
        async with asyncio.timeout(DEADLINE_S), client.subscribe("news", recover=True, token="fixed") as news:
            await server.publish("news", 1)
            end = {"type": "unsubscribed", "channel": "news", "code": "revoked", "reason": "Revoked"}
            await server.say(server.live[0], "pubsub", end)
            assert await anext(news) == Message("news", 1, 1, "e:1:t1")
            for _ in range(2):
                with pytest.raises(SnorkyError, match="Revoked") as caught:
                    await anext(news)
                assert caught.value.code == "revoked"
        assert client.is_connected and tokens_of(server) == ["fixed"]


async def hang(_channel: Any) -> str:
    await asyncio.Event().wait()
    raise AssertionError


async def hang_on(_channel: Any) -> str:
    """Ignore cancellation until the test ends."""
    while not released.is_set():
        try:
            await released.wait()
        except asyncio.CancelledError:
            pass
    raise AssertionError


async def fail(_channel: Any) -> str:
    raise ValueError("the backend said: <html>")


released = asyncio.Event()


@pytest.mark.parametrize("wrong", [hang, hang_on, fail])
async def test_function_that_fails_or_hangs_is_called_again_and_jams_nothing(
    wrong: Any, caplog: pytest.LogCaptureFixture
) -> None:
    released.clear()
    calls = 0
    heard, recovered = asyncio.Event(), asyncio.Event()

    async def token(channel: Any) -> str:
        nonlocal calls
        calls += 1
        if calls <= 2 or not heard.is_set():
            return await wrong(channel)  # type: ignore[no-any-return]
        recovered.set()
        return "good"

    async with RealtimeServer.running() as server:
        options: dict[str, Any] = {"connect_timeout_s": 0.3, "backoff_base_s": 0.01}
        async with asyncio.timeout(DEADLINE_S), Client(server.url, **options) as client:
            subscription = client.subscribe("orders", recover=True, token=token)
            async with client.subscribe("news", recover=True, token="fixed") as news:
                await server.publish("news", 1)
                assert (await anext(news)).position == "e:1:t1"
                assert not recovered.is_set()
                heard.set()
                await subscription.ready()
            assert tokens_of(server) == ["fixed", "good"]
            released.set()
    warnings = [each.getMessage() for each in caplog.records if each.levelno == logging.WARNING]
    expected = "ValueError: the backend said" if wrong is fail else "TimeoutError: no result after 0.3 s"
    assert len(warnings) == 1 and expected in warnings[0] and "'orders'" in warnings[0]


@pytest.mark.parametrize("wrong", [7, "", {"token": "secret-of-mine"}, b"abc", "two words"])
async def test_function_that_returns_no_token_ends_the_subscription(wrong: Any) -> None:
    async with RealtimeServer.running() as server, Client(server.url) as client, asyncio.timeout(DEADLINE_S):
        with pytest.raises(ValueError, match="token: ") as caught:
            await client.subscribe("news", token=lambda _channel: wrong).ready()
        assert "secret" not in str(caught.value)
        with pytest.raises(SnorkyError) as refused:
            await client.subscribe("news", token=lambda _channel: None).ready()
        assert refused.value.code == "not_authorized"
        await client.subscribe("news").ready()
        assert tokens_of(server) == [None]


@pytest.mark.parametrize("wrong", [7, "", "two words", b"abc"])
async def test_value_that_is_neither_token_nor_function_is_refused_at_once(wrong: Any) -> None:
    async with RealtimeServer.running() as server, Client(server.url) as client:
        with pytest.raises(ValueError, match="token: "):
            client.subscribe("news", token=wrong)
        await client.subscribe("news", token="good").ready()


async def test_nothing_is_left_of_calls_that_were_running() -> None:
    before = asyncio.all_tasks()
    called = asyncio.Event()

    async def token(channel: Any) -> str:
        called.set()
        return await hang(channel)

    async with RealtimeServer.running() as server, asyncio.timeout(DEADLINE_S):
        async with Client(server.url, connect_timeout_s=60) as client:
            await client.call("test", "echo")
            for close_first in (True, False):
                subscription = client.subscribe(close_first, token=token)
                await called.wait()
                called.clear()
                if close_first:
                    await subscription.close()
    assert asyncio.all_tasks() == before
