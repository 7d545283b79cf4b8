"""snorky.client.aio.Client over real sockets: connections, tokens, moves, ends."""

import asyncio
import base64
import json
import time
from typing import Any

import pytest
from realtime_server import RealtimeServer
from websockets.asyncio.server import ServerConnection, serve

from snorky.client import SnorkyError, TransportError
from snorky.client.aio import Client, Message, Recovered, Subscription
from snorky.client.errors import ConnectionEnded
from snorky.client.realtime.token import TokenSource, lifetime_s


async def take(subscription: Subscription, count: int) -> list[Any]:
    """Read events; return the data of messages, and the class names of other events."""
    events = []
    async with asyncio.timeout(30.0):
        while len(events) < count:
            event = await anext(subscription)
            events.append(event.data if isinstance(event, Message) else event)
    return events


def jwt(**claims: Any) -> str:
    body = base64.urlsafe_b64encode(json.dumps(claims).encode()).decode().rstrip("=")
    return f"x.{body}.y"


async def test_messages_of_a_channel_are_iterated_with_their_positions() -> None:
    async with RealtimeServer.running() as server, Client(server.url) as client:
        async with client.subscribe("news", recover=True) as news:
            await server.publish("news", {"title": "Hello"})
            event = await anext(news)
            assert event == Message("news", {"title": "Hello"}, 1, "e:1:t1")
            assert news.position == "e:1:t1"
        with pytest.raises(StopAsyncIteration):
            await anext(news)


async def test_cut_connection_is_made_again_and_what_was_missed_is_recovered() -> None:
    async with RealtimeServer.running() as server, Client(server.url, backoff_base_s=0.01) as client:
        async with client.subscribe("news", recover=True) as news:
            await server.publish("news", 1)
            assert await take(news, 1) == [1]
            for number in (2, 3, 4):
                server.cut()
                await server.until(lambda: not server.live)
                await server.publish("news", number)
                assert await take(news, 2) == [Recovered("news", True, f"e:{number}:t{number}"), number]


async def test_gateway_that_comes_back_on_its_port_is_found() -> None:
    async with RealtimeServer.running() as server:
        port = server.port
    async with Client(f"ws://127.0.0.1:{port}/ws", backoff_base_s=0.01, backoff_max_s=0.1) as client:
        call = asyncio.ensure_future(client.call("test", "echo", x=1))
        await asyncio.sleep(0)
        async with RealtimeServer.running(port):
            assert await call == {"x": 1}


async def test_calls_have_answers_and_errors() -> None:
    async with RealtimeServer.running() as server, Client(server.url) as client:
        assert await client.call("test", "echo", command="yes", service=1) == {"command": "yes", "service": 1}
        with pytest.raises(SnorkyError, match="No"):
            await client.call("test", "fail")
        with pytest.raises((ValueError, TypeError)):
            await client.call("test", "echo", x=float("nan"))


async def test_publishes_reach_subscribers_of_the_same_client() -> None:
    async with RealtimeServer.running() as server, Client(server.url) as client:
        async with client.subscribe("news", recover=True) as news:
            await asyncio.gather(*[client.publish("news", number) for number in range(300)])
            assert await take(news, 300) == list(range(300))


async def test_moving_node_is_left_for_the_next_one_without_a_word() -> None:
    async with RealtimeServer.running() as server, Client(server.url) as client:
        async with client.subscribe("news", recover=True) as news:
            (old,) = server.live
            await server.publish("news", 1)
            await server.say(old, "gateway", {"type": "moving", "graceMs": 100})
            await server.until(lambda: len(server.live) == 2)
            await server.publish("news", 2)
            await server.until(lambda: old not in server.live)
            await server.publish("news", 3)
            assert await take(news, 3) == [1, 2, 3]
            assert old.close_code == 1000
            assert len(server.connections) == 2


@pytest.mark.parametrize("bearer", ["header", "subprotocol"])
async def test_token_comes_with_the_handshake(bearer: Any) -> None:
    async with RealtimeServer.running() as server, Client(server.url, token="abc", bearer=bearer) as client:
        await client.call("test", "echo")
        if bearer == "header":
            assert server.handshakes == [{"authorization": "Bearer abc", "protocols": "snorky.json"}]
        else:
            assert server.handshakes == [{"authorization": None, "protocols": "snorky.json, bearer.abc"}]


async def test_refused_token_is_asked_for_anew_once_and_then_that_is_the_end() -> None:
    given = iter(["old", "new", "newer"])

    async def token() -> str:
        return next(given)

    async with RealtimeServer.running() as server:
        server.good_tokens = {"new"}
        async with Client(server.url, token=token) as client, client.subscribe("news", recover=True) as news:
            assert [handshake["authorization"] for handshake in server.handshakes] == ["Bearer old", "Bearer new"]
            server.good_tokens = set()
            await server.live[0].close(4501)
            async with asyncio.timeout(30.0):
                assert (await client.wait_ended()).close_code == 4501
            assert server.handshakes[2]["authorization"] == "Bearer newer"
            with pytest.raises(ConnectionEnded):
                await anext(news)


async def test_token_is_refreshed_before_it_ends() -> None:
    numbers = iter(range(10))

    def token() -> str:
        return jwt(exp=time.time() + 1.2, iat=time.time(), jti=next(numbers))

    async with RealtimeServer.running() as server, Client(server.url, token=token):
        await server.until(lambda: any(request["command"] == "refresh" for request in server.requests))
        refresh = next(request for request in server.requests if request["command"] == "refresh")
        assert refresh["params"]["token"] != server.handshakes[0]["authorization"].removeprefix("Bearer ")
        assert len(server.connections) == 1


def test_lifetime_of_a_token_is_by_the_clock_of_its_issuer() -> None:
    assert lifetime_s(jwt(exp=5_000, iat=4_000), now_s=9_000_000) == 1_000
    assert lifetime_s(jwt(exp=5_000), now_s=4_900) == 100
    assert lifetime_s(jwt(sub="x"), now_s=0) is None
    for text in ("", "abc", "a.b.c", "a.é.c", "a.bnVsbA.c"):
        assert lifetime_s(text, now_s=0) is None


async def test_token_is_kept_until_most_of_its_lifetime_is_over() -> None:
    clock = [1_000.0]
    given: list[str] = []

    def make() -> str:
        given.append(jwt(exp=clock[0] + 100, iat=clock[0], jti=len(given)))
        return given[-1]

    source = TokenSource(make, wall_clock_s=lambda: clock[0])
    first = await source.get(is_new=False)
    clock[0] += 79
    assert await source.get(is_new=False) == first
    assert source.refresh_after_s() == pytest.approx(1.0)
    clock[0] += 2
    assert await source.get(is_new=False) != first


async def test_terminal_close_ends_the_client_and_tells_every_waiter() -> None:
    async with RealtimeServer.running() as server, Client(server.url) as client:
        async with client.subscribe("news", recover=True) as news:
            await server.live[0].close(4503, "revoked")
            with pytest.raises(ConnectionEnded, match="4503"):
                async with asyncio.timeout(30.0):
                    await anext(news)
            with pytest.raises(ConnectionEnded):
                await client.call("test", "echo")
            with pytest.raises(ConnectionEnded):
                await client.publish("news", 1)
            assert len(server.connections) == 1


async def test_nobody_there_is_told_in_time_as_not_sent() -> None:
    async with RealtimeServer.running() as server:
        port = server.port
    async with Client(f"ws://127.0.0.1:{port}/ws", call_timeout_s=0.3, publish_timeout_s=0.3) as client:
        for attempt in (client.call("test", "echo"), client.publish("news", 1)):
            with pytest.raises(TransportError) as caught:
                await attempt
            assert (caught.value.code, caught.value.may_have_happened) == ("unreachable", False)


async def test_cancelled_reader_loses_nothing() -> None:
    async with RealtimeServer.running() as server, Client(server.url) as client:
        async with client.subscribe("news", recover=True) as news:
            reader = asyncio.ensure_future(anext(news))
            await asyncio.sleep(0)
            reader.cancel()
            await asyncio.wait([reader])
            await server.publish("news", 1)
            assert await take(news, 1) == [1]


async def test_notifications_of_other_services_are_told() -> None:
    heard: asyncio.Queue[Any] = asyncio.Queue()
    async with RealtimeServer.running() as server:
        async with Client(server.url, on_notification=lambda *told: heard.put_nowait(told)) as client:
            await client.call("test", "echo")
            await server.say(server.live[0], "chat", {"type": "presence", "from": "ann"})
            async with asyncio.timeout(30.0):
                assert await heard.get() == ("chat", {"type": "presence", "from": "ann"})


@pytest.mark.parametrize("token", ["", "two words", "line\r\nX-More: 1", "schl\u00fcssel"])
async def test_token_that_fits_in_no_handshake_is_refused_and_not_repeated(token: str) -> None:
    with pytest.raises(ValueError) as caught:
        Client("ws://127.0.0.1:1/ws", token=token)
    assert not token or token not in str(caught.value)
    with pytest.raises(ValueError):
        Client("ws://127.0.0.1:1/ws", token="a/b=", bearer="subprotocol")


async def test_redirect_is_not_followed_for_the_token_would_go_there() -> None:
    async with RealtimeServer.running() as thief:

        def redirect(connection: ServerConnection, _request: Any) -> Any:
            response = connection.respond(302, "")
            response.headers["Location"] = thief.url
            return response

        async with serve(lambda _connection: asyncio.sleep(0), "127.0.0.1", 0, process_request=redirect) as server:
            port = server.sockets[0].getsockname()[1]
            async with Client(
                f"ws://127.0.0.1:{port}/ws", token="abc", call_timeout_s=0.5, backoff_base_s=0.1
            ) as client:
                with pytest.raises(TransportError):
                    await client.call("test", "echo")
        assert thief.handshakes == []


async def test_token_function_that_fails_is_asked_again(caplog: pytest.LogCaptureFixture) -> None:
    given = iter(["not fit for a header", "good"])
    async with RealtimeServer.running() as server:
        async with Client(server.url, token=lambda: next(given), backoff_base_s=0.01) as client:
            await client.call("test", "echo")
        assert [handshake["authorization"] for handshake in server.handshakes] == ["Bearer good"]
    assert "not fit" not in caplog.text


@pytest.mark.parametrize("url", ["http://h/ws", "ws://", "ws://user:pw@h/ws", ""])
def test_url_that_cannot_work_is_refused(url: str) -> None:
    with pytest.raises(ValueError):
        Client(url)


async def test_nothing_is_left_behind() -> None:
    before = asyncio.all_tasks()
    async with RealtimeServer.running() as server:
        running = asyncio.all_tasks()
        async with Client(server.url, token=lambda: "t") as client, client.subscribe("news"):
            assert asyncio.all_tasks() > running
        await server.until(lambda: not server.live)
    assert asyncio.all_tasks() == before
