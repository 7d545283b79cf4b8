"""A seeded fuzzer of Centrifuge commands, in both forms, against a node in a process of its own.

10,000 connections a form, each with a few frames of commands that are right, nearly right, or no commands. A canary
client gets its numbered messages meanwhile. At the end there is no unhandled error, no number is missing, and nothing
of the others is left. SNORKY_FUZZ_SEED repeats a run, SNORKY_FUZZ_CASES changes its length.
"""

import asyncio
import base64
import json
import random
from typing import Any

import pytest
from centrifuge.protocol import client_pb2  # type: ignore[import-untyped]  # ships no annotations
from google.protobuf import json_format
from google.protobuf.internal import encoder

from snorky.client.aio import Publisher
from tests.support.clients.centrifuge import CentrifugeClient, connected
from tests.support.clients.raw_ws import BINARY, TEXT, RawClient, frame, handshake_head
from tests.support.processes.nodes import NodeProcess, RedisProcess
from tests.support.processes.tools import eventually
from tests.support.scenarios.fuzz import SEED, WAIT_S, mutated, random_of, run_cases
from tests.support.scenarios.tokens import SECRET, hmac_token

CHANNEL = "kept:a"
ENV = {
    "SNORKY_AUTH__HMAC_SECRET": SECRET,
    "SNORKY_PUBLIC__CENTRIFUGE_PERSONAL_CHANNELS": "true",
    "SNORKY_LIMITS__CONNECTIONS_PER_IP": "0",  # a connection counts until it is closed
    "SNORKY_SERVICES__AUTH__CLASS": "snorky.services.auth:AuthService",
    "SNORKY_SERVICES__CHAT__CLASS": "snorky.services.chat:ChatService",
    "SNORKY_SERVICES__PUBSUB__CLASS": "snorky.services.pubsub:PubSubService",
    "SNORKY_SERVICES__PUBSUB__UNMATCHED": "open",
    "SNORKY_SERVICES__PUBSUB__CHANNELS": json.dumps(
        [{"match": "kept:*", "history": 10, "presence": True, "join_leave": True, "allow_publish": "authenticated"}]
    ),
}
TOKENS = [hmac_token("ann", exp=2**31), hmac_token("ann", channel=CHANNEL, exp=2**31), "x.eyJjaGFubmVsIjo3fQ.y", "", 5]
METHODS = (
    *("connect", "subscribe", "subscribe", "unsubscribe", "publish", "presence", "presence_stats", "history"),
    *("rpc", "refresh", "sub_refresh", "ping", "send", "nothing"),
)
ODD: list[Any] = [None, True, -1, 2**63, 2**70, 1.5, "", "\ud800", "x" * 300, [], {}, {"a": [[]]}, "a\n\x00b", "#ann"]


def some_value(rng: random.Random, usual: Any) -> Any:
    return usual if rng.random() < 0.85 else rng.choice(ODD)


def some_command(rng: random.Random, method: str = "") -> Any:
    """A command, or nearly one."""
    method = method or rng.choice(METHODS)
    fields = {
        "token": lambda: rng.choice(TOKENS),
        "channel": lambda: rng.choice((CHANNEL, CHANNEL, "plain", f"kept:{rng.randrange(5)}")),
        "data": lambda: rng.choice(({"n": rng.random()}, "text", None, [1, 2])),
        "recover": lambda: rng.random() < 0.5,
        "epoch": lambda: rng.choice(("", "abc", "a:b")),
        "offset": lambda: rng.randrange(20),
        "flag": lambda: rng.randrange(4),
        "limit": lambda: rng.choice((-1, 0, 1, 5, 1000)),
        "since": lambda: {"epoch": some_value(rng, ""), "offset": some_value(rng, 1)},
        "reverse": lambda: rng.random() < 0.5,
        "method": lambda: rng.choice(("chat.join", "chat.", ".join", "pubsub.publish", "nothing.x")),
        "subs": lambda: {"a": {}},
    }
    params: Any = {name: some_value(rng, make()) for name, make in fields.items() if rng.random() < 0.6}
    return {"id": some_value(rng, rng.randrange(1, 50)), method: some_value(rng, params)}


def some_text(rng: random.Random) -> bytes:
    commands = [] if rng.random() < 0.1 else [{"id": 1, "connect": {"token": TOKENS[0] if rng.random() < 0.7 else ""}}]
    commands += [some_command(rng) for _ in range(rng.choice((0, 1, 3, 12)))]
    return mutated(rng, "\n".join(map(json.dumps, commands)).encode())


def some_protobuf(rng: random.Random) -> bytes:
    found = []
    for at in range(rng.choice((1, 2, 4, 12))):
        written = client_pb2.Command()
        command = some_command(rng, "connect" if at == 0 and rng.random() < 0.9 else "")
        if at == 0:
            command = {"id": 1, "connect": {"token": TOKENS[0]}}
        for method, params in command.items():
            if isinstance(params, dict) and "data" in params:
                data = json.dumps(params["data"]).encode() if rng.random() < 0.9 else rng.randbytes(9)
                command[method] = params | {"data": base64.b64encode(data).decode()}
        try:
            json_format.ParseDict(command, written, ignore_unknown_fields=True)
            data = written.SerializeToString()
        except (json_format.ParseError, TypeError, ValueError, SystemError):  # some values have no such form
            data = rng.randbytes(rng.randrange(40))
        found.append(encoder._VarintBytes(len(data)) + data)
    return mutated(rng, b"".join(found))


async def run_case(number: int, form: str, port: int) -> None:
    """Send the frames of a case; any reaction of the node is right."""
    rng = random_of(number)
    make, opcode = (some_text, TEXT) if form == "json" else (some_protobuf, BINARY)
    head = handshake_head({}, path=f"/connection/websocket?format={form}")
    frames = b"".join(frame(opcode, make(rng)) for _ in range(rng.choice((1, 1, 2, 4))))
    async with await RawClient.open("127.0.0.1", port) as client:
        try:
            await client.send(head + frames)
            if number % 3:
                async with asyncio.timeout(WAIT_S):
                    await client._read()
                    await client._read()
            if number % 5 == 0:
                client.reset()
        except (TimeoutError, ConnectionError):
            pass


async def follow(canary: CentrifugeClient, seen: list[Any]) -> None:
    """Record the numbers that the canary gets; answer pings."""
    while True:
        await canary._hear()
        assert canary.end is None, canary.end
        heard, canary.heard = canary.heard, []
        for each in heard:
            if each == {}:
                await canary.send_text("{}")
            if "pub" in each.get("push", {}):
                seen.append(each["push"]["pub"]["data"])


@pytest.mark.timeout(300)
@pytest.mark.parametrize("form", ["json", "protobuf"])
async def test_ten_thousand_odd_clients_affect_no_other_and_leave_no_state(
    redis_server: RedisProcess, capsys: pytest.CaptureFixture[str], form: str
) -> None:
    def tell(text: str) -> None:
        with capsys.disabled():
            print(f"\n  fuzz of centrifuge, {form}, seed {SEED}: {text}", end="", flush=True)

    env = ENV | {"SNORKY_REDIS_URL": redis_server.url}
    seen: list[Any] = []
    async with NodeProcess.running(env) as node, connected(f"http://127.0.0.1:{node.public_port}") as canary:
        await canary.call("subscribe", channel="canary")
        following = asyncio.create_task(follow(canary, seen))
        async with Publisher(redis_server.url) as publisher, asyncio.TaskGroup() as group:
            cases = group.create_task(run_cases(lambda number: run_case(number, form, node.public_port), tell))
            sent = 0
            while not cases.done():
                await publisher.publish("canary", sent)
                sent += 1
                await asyncio.wait((cases,), timeout=0.1)

        async def is_heard() -> bool:
            return len(seen) >= sent

        await eventually(is_heard, within_s=10, what="the canary has all its numbers")
        assert seen == list(range(sent))

        async def is_alone() -> bool:
            counts = [await node.metric(name) for name in ("snorky_connections", "snorky_subscriptions")]
            return counts == [1, 1]

        await eventually(is_alone, within_s=30, what="the canary alone is left")
        following.cancel()
        lines = [line for line in node.log.splitlines() if '"level": "error"' in line or "Traceback" in line]
        assert not lines, lines[:3]


@pytest.fixture
async def redis_server(tmp_path: Any) -> Any:
    async with RedisProcess.running(tmp_path) as server:
        yield server
