"""snorky.client.aio.Client on a real node: any value that a program sends arrives equal or raises at once."""

import asyncio
import datetime
import decimal
import enum
import json
import math
import random
import uuid
from pathlib import Path
from typing import Any

import pytest

from snorky.client import SnorkyError
from snorky.client.aio import Client, Message
from tests.support.processes.fleet import running_fleet

pytestmark = pytest.mark.needs("redis-server", "nginx")

VALUES = 2_000
AT_ONCE_S = 5.0  # a deadlock would last at least publish_timeout_s (30) or call_timeout_s (10)
LIMITS = {"SNORKY_LIMITS__MESSAGES_PER_S": "100000", "SNORKY_LIMITS__MESSAGES_BURST": "100000"}

TEXTS = (
    "",
    "nice 😀",
    "nice \ud83d",
    "\udc00",
    "\x00",
    "\u2028",
    "é" * 100,
    '"\\',
    "x" * 65_000,
    "é" * 33_000,
    "~a",
    "NaN",
)
NUMBERS = (
    0,
    -1,
    2**53,
    2**63,
    2**64 - 1,
    2**64,
    -(2**63),
    -(2**63) - 1,
    10**400,
    0.0,
    -0.0,
    5e-324,
    1.7e308,
    0.1,
    1e16,
)
ODD = (
    math.nan,
    math.inf,
    -math.inf,
    b"abc",
    bytearray(b"x"),
    {1, 2},
    object(),
    uuid.UUID(int=1),
    decimal.Decimal("1.5"),
    1j,
)
KEYS = (1, None, True, 1.5, ("a",), "a\ud800")


class Colour(enum.IntEnum):
    """An integer of a subclass or another type."""

    RED = 1


class Text(str):
    """A string of a subclass."""


def nested(depth: int, value: Any) -> Any:
    for number in range(depth):
        value = [value] if number % 2 else {"k": value}
    return value


def cycle() -> list[Any]:
    value: list[Any] = []
    value.append(value)
    return value


def draw(source: random.Random, depth: int = 0) -> Any:
    """Draw a value: most are valid, each kind of invalid one occurs."""
    kind = source.random()
    if kind < 0.3 and depth < 4:
        return [draw(source, depth + 1) for _ in range(source.randrange(4))]
    if kind < 0.55 and depth < 4:
        value = {f"k{number}": draw(source, depth + 1) for number in range(source.randrange(4))}
        return {**value, source.choice(KEYS): 1} if source.random() < 0.05 else value
    if kind < 0.7:
        return source.choice(NUMBERS)
    if kind < 0.85:
        return source.choice(TEXTS)
    if kind < 0.88:
        return source.choice(ODD)
    if kind < 0.90:
        return nested(source.choice((26, 27, 28, 29, 30, 31, 32, 33, 2_000)), source.choice(NUMBERS))
    if kind < 0.91:
        return [0] * source.choice((9_980, 9_999, 10_000, 20_000))
    return source.choice((True, False, None, (1, "a"), Colour.RED, Text("t"), cycle(), datetime.datetime(2020, 1, 1)))


async def test_value_arrives_equal_or_raises_at_once_and_never_costs_the_connection(tmp_path: Path) -> None:
    source = random.Random(7)
    raised = 0
    async with running_fleet(tmp_path, nodes=1, env=LIMITS) as fleet:
        async with Client(f"ws://127.0.0.1:{fleet.nodes[0].public_port}/ws") as client:
            async with client.subscribe("fuzz") as heard:
                connection = (await client.call("gateway", "info"))["connection"]
                for number in range(VALUES):
                    value = draw(source)
                    sending = (
                        client.publish("fuzz", value)
                        if number % 2
                        else client.call("pubsub", "publish", channel="fuzz", message=value)
                    )
                    async with asyncio.timeout(AT_ONCE_S):
                        try:
                            await sending
                        except (ValueError, TypeError):
                            raised += 1
                            continue
                        except SnorkyError as error:
                            raise AssertionError(f"left to the node: {error.code}") from error
                        event = await anext(heard)
                    assert isinstance(event, Message)
                    assert json.dumps(event.data) == json.dumps(value), number
                assert (await client.call("gateway", "info"))["connection"] == connection
    assert VALUES // 10 < raised < VALUES // 2
