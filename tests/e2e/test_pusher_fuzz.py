"""A seeded fuzzer of Pusher's protocol and HTTP API against a node in a process of its own.

10,000 connections, each with a few events that are right, nearly right, or no events, before and after the node has
told the client its id; and 2,000 requests of the API that are malformed in one way or another. A canary client gets its
numbered events meanwhile, published through the API. At the end there is no unhandled error, no number is missing, and
nothing of the others is left. SNORKY_FUZZ_SEED repeats a run, SNORKY_FUZZ_CASES changes its length.
"""

import asyncio
import json
import os
import random
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, Final
from urllib.parse import unquote

import pytest
from redis.asyncio import Redis

from snorky.gateway.redis.keys import counts_key, roster_key
from tests.support.clients.pusher import PusherClient, connected, signed
from tests.support.clients.pusher_api import API_ENV, API_KEY, API_SECRET, APP, called, target_of
from tests.support.clients.raw_ws import (
    BINARY,
    CLOSE,
    PING,
    PONG,
    TEXT,
    RawClient,
    close_payload,
    frame,
    handshake_head,
)
from tests.support.processes.counted_node import CountedNode
from tests.support.processes.nodes import RedisProcess
from tests.support.processes.tools import eventually
from tests.support.scenarios.tokens import SECRET

SEED = int(os.environ.get("SNORKY_FUZZ_SEED", "20261130"))
CASES = int(os.environ.get("SNORKY_FUZZ_CASES", "10000"))
REQUESTS: Final = max(1, CASES // 5)
AT_ONCE: Final = 50
REQUESTS_AT_ONCE: Final = 25
WAIT_S: Final = 0.05  # for an answer that may not come
RSS_MAX_GROWTH_BYTES: Final = 48 * 2**20  # the node keeps up to 20 MB of members that it has decoded
PREFIX: Final = "snorky"
ENV: Final = API_ENV | {
    "SNORKY_AUTH__HMAC_SECRET": SECRET,
    "SNORKY_LIMITS__CONNECTIONS_PER_IP": "0",  # a connection counts until it is closed
    f"SNORKY_PUBLIC__PUSHER_APPS__{APP.upper()}__WATCHLISTS": "true",
    "SNORKY_SERVICES__PUBSUB__CLASS": "snorky.services.pubsub:PubSubService",
    "SNORKY_SERVICES__PUBSUB__CHANNELS": json.dumps(
        [{"match": "cache-*", "allow_subscribe": "anyone"}, {"match": "*", "allow_subscribe": "anyone"}]
    ),
}
ROOMS: Final = ("presence-a", "presence-b", "presence-cache-a")
CHANNELS: Final = (
    *ROOMS,
    *("news", "cache-a", "private-a", "private-cache-a", "private-encrypted-a", "#server-to-user-ann"),
    *("#server-to-user-", "presence-", "private-encrypted-cache-a", "a:b", "x" * 200, "x" * 201, "é", ""),
)
USERS: Final = ("ann", "bob", "x" * 255, "x" * 256, "a\x00", "~7", "", "ü/;", 7, -1, True, None, 2**63, 1.5, ["ann"])
ODD: Final[tuple[Any, ...]] = (
    *(None, True, -1, 2**63, 2**70, 1.5, "", "\ud800", "x" * 300, [], {}, {"a": [[]]}, "a\n\x00b", "#ann"),
    *("{", "[]", "null", '{"user_id":1e999}', '{"user_id":"\\ud800"}', "x" * 60_000, "\u2028"),
)
DEEP: Final = "[" * 5_000 + "]" * 5_000


# -- events of clients ------------------------------------------------------------------------------------------------


def some_value(rng: random.Random, usual: Any) -> Any:
    return usual if rng.random() < 0.93 else rng.choice(ODD)


def some_auth(rng: random.Random, text: str) -> Any:
    """A signature, or nearly one."""
    right = signed(text.encode(errors="replace").decode(), API_KEY, API_SECRET)
    cut = right[: rng.randrange(len(right))]
    return rng.choices(
        (right, cut, right.upper(), signed(text[:5] + "é", API_KEY, API_SECRET), None), (90, 4, 2, 2, 2)
    )[0]


def some_event(rng: random.Random, socket_id: str, home: str) -> Any:
    """An event of a client, or nearly one. home: the channel of most of its events."""
    channel = home if rng.random() < 0.7 else rng.choice(CHANNELS)
    user = rng.choice(USERS[:2]) if rng.random() < 0.8 else rng.choice(USERS)
    kind = rng.choices(("subscribe", "unsubscribe", "client", "signin", "other", "odd"), (40, 6, 30, 8, 10, 6))[0]
    data: Any
    if kind == "subscribe":
        described = json.dumps({"user_id": user, "user_info": some_value(rng, {"n": 1})})
        data = {"channel": some_value(rng, channel), "auth": some_auth(rng, f"{socket_id}:{channel}")}
        if channel.startswith("presence-") and rng.random() < 0.9:
            text = some_value(rng, described)
            data |= {"channel_data": text, "auth": some_auth(rng, f"{socket_id}:{channel}:{text}")}
        return {"event": "pusher:subscribe", "data": some_value(rng, data)}
    if kind == "unsubscribe":
        return {"event": "pusher:unsubscribe", "data": some_value(rng, {"channel": some_value(rng, channel)})}
    if kind == "client":
        event = {"event": "client-" + rng.choice(("a", "a", "", "x" * 300)), "channel": some_value(rng, channel)}
        return event | {"data": some_value(rng, {"n": rng.random()})}
    if kind == "signin":
        text = some_value(
            rng, json.dumps({"id": user, "watchlist": some_value(rng, ["bob", "ann", *range(rng.choice((0, 100)))])})
        )
        data = {"user_data": text, "auth": some_auth(rng, f"{socket_id}::user::{text}")}
        return {"event": "pusher:signin", "data": some_value(rng, data)}
    if kind == "other":
        name = rng.choice(
            ("pusher:ping", "pusher:pong", "pusher:", "pusher_internal:member_added", "", "x", "response")
        )
        return {"event": some_value(rng, name), "data": some_value(rng, {}), "channel": some_value(rng, channel)}
    return rng.choice(ODD)


def some_frame(rng: random.Random, socket_id: str, home: str) -> bytes:
    choice = rng.randrange(20)
    if choice == 0:
        return frame(rng.choice((BINARY, PING, PONG, CLOSE)), close_payload(rng.choice((1000, 4000, 1)), b"x"))
    if choice == 1:
        return frame(TEXT, b'{"event":"client-a","channel":"private-a","data":%b}' % DEEP.encode())
    text = json.dumps(some_event(rng, socket_id, home), ensure_ascii=rng.random() < 0.9).encode(errors="surrogatepass")
    if choice == 2:
        changed = bytearray(text)
        for _ in range(rng.randint(1, 6)):
            changed[rng.randrange(len(changed))] = rng.randrange(256)
        text = bytes(changed[: rng.choice((len(changed), rng.randrange(len(changed))))])
    return frame(TEXT, text)


def some_frames(rng: random.Random, socket_id: str, home: str) -> bytes:
    return b"".join(some_frame(rng, socket_id, home) for _ in range(rng.choice((0, 1, 2, 3, 8))))


async def relay_one(client: RawClient, socket_id: str) -> None:
    """Send an event to a channel, and wait until it is processed: on a busy machine other cases end before that."""
    auth = signed(f"{socket_id}:private-a", API_KEY, API_SECRET)
    subscribe = {"event": "pusher:subscribe", "data": {"channel": "private-a", "auth": auth}}
    await client.send(frame(TEXT, json.dumps(subscribe).encode()))
    while json.loads((await client.receive())[1])["event"] != "pusher_internal:subscription_succeeded":
        pass
    event = {"event": "client-a", "channel": "private-a", "data": {}}
    await client.send(frame(TEXT, json.dumps(event).encode()) + frame(PING, b"done"))
    while await client.receive() != (PONG, b"done"):
        pass


async def run_case(number: int, node: CountedNode) -> None:
    """Connect, and send the frames of a case; any reaction of the node is right, but a client always learns its id."""
    rng = random.Random(SEED * 1_000_003 + number)
    key, version = (
        rng.choices((API_KEY, "another", "%C3%A9"), (90, 5, 5))[0],
        rng.choices(("7", "5", "4", ""), (90, 4, 3, 3))[0],
    )
    head = handshake_head({}, path=f"/app/{key}?protocol={version}")
    home = rng.choice(CHANNELS[:9])
    early = some_frames(rng, "1.1", home) if rng.random() < 0.2 else b""
    async with await RawClient.open("127.0.0.1", node.port) as client:
        try:
            await client.send(head + early)
            assert (await client.response()).status == 101
            opcode, payload = await client.receive()
            if key == API_KEY and version in ("5", "7"):
                assert (opcode, json.loads(payload)["event"]) == (TEXT, "pusher:connection_established")
                socket_id = json.loads(json.loads(payload)["data"])["socket_id"]
                if number % 50 == 1 and not early:
                    await relay_one(client, socket_id)
                for _ in range(rng.choice((1, 2, 3))):
                    await client.send(some_frames(rng, socket_id, home))
                    if rng.random() < 0.7:  # also before the answer
                        with suppress(TimeoutError):
                            async with asyncio.timeout(WAIT_S):
                                await client._read()
            if number % 3:
                async with asyncio.timeout(WAIT_S):
                    await client._read()
                    await client._read()
            if number % 5 == 0:
                client.reset()
        except (TimeoutError, ConnectionError):
            pass


# -- requests of backends ---------------------------------------------------------------------------------------------


def some_fields(rng: random.Random) -> Any:
    channel = rng.choice(CHANNELS[:8]) if rng.random() < 0.7 else rng.choice(CHANNELS)
    fields: dict[str, Any] = {
        "name": some_value(rng, "a"),
        "data": some_value(rng, rng.choice(("{}", "{}", "{}", DEEP, "x" * 66_000))),
        "socket_id": some_value(rng, rng.choice(("1.1", "1", "1.1.1", "9" * 20 + ".1", "a.b"))),
        "info": some_value(rng, rng.choice(("user_count", "subscription_count", ",", "x", "user_count,cache"))),
        **rng.choice(({"channel": some_value(rng, channel)}, {"channels": some_value(rng, [channel] * 3)}, {})),
    }
    return {name: value for name, value in fields.items() if rng.random() < 0.9}


def some_request(rng: random.Random) -> bytes:
    """A request: signed rightly in most cases, and wrong in something else."""
    method, channel = "POST", rng.choice([name for name in CHANNELS if "#" not in name and name] or ["a"])
    path = rng.choice(("/events", "/events", "/batch_events", "/channels", "/channel", "/users", "/terminate"))
    query: dict[str, str] = {}
    value: Any = some_value(rng, some_fields(rng))
    if path == "/batch_events":
        value = some_value(
            rng, {"batch": some_value(rng, [some_fields(rng) for _ in range(rng.choice((0, 1, 3, 11)))])}
        )
    body = json.dumps(value).encode()
    if rng.random() < 0.1:
        body = rng.choice((b"", DEEP.encode(), body[:-1], b"\xff", b"x" * 70_000, b"9" * 5_000, b"[" * 70_000))
    if path in ("/channels", "/channel", "/users"):
        method, body = "GET", b"" if rng.random() < 0.9 else b"{}"
        query = {"info": rng.choice(("user_count", "subscription_count", "cache", ",,", "x", "\x00"))}
        if path == "/channels":
            query |= {"filter_by_prefix": rng.choice(("presence-", "a", "a:b", "*", "é", "x" * 300))}
        else:
            path = f"/channels/{channel}" + ("/users" if path == "/users" else "")
    if path == "/terminate":
        user = rng.choice(("ann", "nobody", "x" * 300, "~7", "%00", "%ff", "a%2Fb", ".."))
        path = f"/users/{user}/terminate_connections"
    about: dict[str, Any] = {}
    if rng.random() < 0.1:
        wrong = ("auth_key", "auth_timestamp", "auth_version", "body_md5")
        about = rng.choice(({"secret": "f" * 64}, {"auth": {rng.choice(wrong): rng.choice((None, "", "x" * 99, "1"))}}))
    app = rng.choices((f"/apps/{APP}", "/apps/nothing", ""), (95, 1, 4))[0]
    target = target_of(method, path, body, query=query, app=app, signed_path=unquote(app + path), **about)
    if rng.random() < 0.05:
        target = target.replace(rng.choice(("=", "&", "auth", "%")), rng.choice(("", "%", "&", "%ff", "%F0%9F", ";")))
    head = f"{method} {target} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n".encode()
    return head + body


async def run_request(number: int, node: CountedNode, statuses: Counter[int]) -> None:
    """Send a request, and read its answer. Sometimes the client goes before that."""
    rng = random.Random(SEED * 7_000_003 + number)
    request = some_request(rng)
    async with await RawClient.open("127.0.0.1", node.port) as client:
        try:
            if rng.random() < 0.05:
                await client.send(request[: rng.randrange(len(request))])
                client.reset()
                return
            await client.send(request)
            statuses[(await client.response()).status] += 1
        except ConnectionError:
            pass


# -- the run ----------------------------------------------------------------------------------------------------------


async def run_all(
    count: int, at_once: int, run: Callable[[int], Awaitable[None]], tell: Callable[[str], None], what: str
) -> None:
    waiting: Iterator[int] = iter(range(count))

    async def worker() -> None:
        for number in waiting:
            try:
                await run(number)
            except Exception as error:
                error.add_note(f"{what} {number} of seed {SEED}")
                raise
            if number % 2000 == 1999:
                tell(f"{number + 1} {what}s")

    async with asyncio.TaskGroup() as group:
        for _ in range(at_once):
            group.create_task(worker())


async def follow(canary: PusherClient, seen: list[int]) -> None:
    """Record the numbers that the canary gets."""
    while True:
        await canary._hear()
        assert canary.end is None, canary.end
        heard, canary.heard = canary.heard, []
        seen += [int(each["data"]) for each in heard if each["event"] == "number"]


@pytest.fixture
async def redis_server(tmp_path: Path) -> Any:
    async with RedisProcess.running(tmp_path) as server:
        yield server


@pytest.mark.timeout(600)
async def test_ten_thousand_odd_clients_and_requests_affect_no_other_and_leave_no_state(
    redis_server: RedisProcess, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def tell(text: str) -> None:
        with capsys.disabled():
            print(f"\n  fuzz of pusher, seed {SEED}: {text}", end="", flush=True)

    node = CountedNode(ENV | {"SNORKY_REDIS_URL": redis_server.url}, tmp_path / "node.log")
    seen: list[int] = []
    statuses: Counter[int] = Counter()
    following: asyncio.Task[None] | None = None

    async def publish(number: int) -> None:
        body = {"name": "number", "data": f"{number}", "channel": "canary"}
        assert await called(node.url, "POST", "/events", body) == (200, {})

    async def until_alone() -> dict[str, Any]:
        state: dict[str, Any] = {}

        async def is_alone() -> bool:
            state.update(node.state())
            counts = [state[name] for name in ("connections", "subscriptions", "channels", "ours")]
            return counts == [1, 1, 1, 2]  # the last ones: the connection and its WebSocket

        try:
            await eventually(is_alone, within_s=30, what="the canary alone is left")
        except AssertionError as error:
            error.add_note(f"{state}")
            raise
        return state

    try:
        async with connected(node.url, API_KEY, API_SECRET) as canary, Redis.from_url(redis_server.url) as redis:
            await canary.subscribe("canary")
            following = asyncio.create_task(follow(canary, seen))
            # buffers, caches and the allocator reach their size
            await run_all(min(CASES, 500), AT_ONCE, lambda number: run_case(CASES + number, node), tell, "case")
            before = await until_alone()
            async with asyncio.TaskGroup() as group:
                cases = group.create_task(run_all(CASES, AT_ONCE, lambda number: run_case(number, node), tell, "case"))
                requests = group.create_task(
                    run_all(REQUESTS, REQUESTS_AT_ONCE, lambda n: run_request(n, node, statuses), tell, "request")
                )
                sent = 0
                while not (cases.done() and requests.done()):
                    await publish(sent)
                    sent += 1
                    await asyncio.wait((cases, requests), timeout=0.1, return_when=asyncio.ALL_COMPLETED)

            async def is_heard() -> bool:
                return len(seen) >= sent

            await eventually(is_heard, within_s=10, what="the canary has all its numbers")
            after = await until_alone()
            assert await called(node.url, "GET", "/channels") == (200, {"channels": {"canary": {}}})
            keys = [make(PREFIX, f"pubsub:{room}") for room in ROOMS for make in (roster_key, counts_key)]
            assert await redis.exists(*keys) == 0, "members are left"
            assert not await redis.keys("*{pusher.users:*"), "users are left"
            following.cancel()
    finally:
        if following is not None:
            following.cancel()
        node.close()
    tell(f"{after['calls']}")
    tell(f"{dict(statuses)}, {sent} numbers, memory {before['rss'] / 2**20:.1f} -> {after['rss'] / 2**20:.1f} MiB\n")
    assert seen == list(range(sent))
    assert not node.errors(), node.errors()[:3]
    assert after["tasks"] <= before["tasks"] + 2, "requests have ended"
    assert after["fds"] <= before["fds"] + 2
    assert after["rss"] - before["rss"] < RSS_MAX_GROWTH_BYTES
    assert set(statuses) <= {200, 400, 401, 404, 405, 413, 429, 503}
    assert min(statuses[status] for status in (200, 400, 401, 404, 413)) > 0, "all kinds of answers"
    calls = Counter[str](after["calls"])
    assert calls["subscribe ok"] > CASES / 10 and calls["relay ok"] > CASES / 200, "cases reach what they are for"
