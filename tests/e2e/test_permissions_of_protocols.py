"""The tables of docs/permissions.md by the rule, for protocols without such commands: Pusher, raw, SSE.

A signature of a Pusher app is the subscription token of its clients. Their channels have prefixes, and rules for those
say `token` where nothing else is written. What such a client may do with a channel:

    subscribe to a public one          as a client without a subscription token
    subscribe to a private one         as a client with one
    publish to a private one           likewise; it is a client event. To a public one: never
    list the members of a presence one likewise, in the reply to `subscribe`
    read the last event of a cache one likewise, in the reply to `subscribe`
"""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import aiohttp
import pytest

from tests.support.clients.any_protocol import AnyClient, Ended, Refused, opened
from tests.support.clients.protocols.plain import RawClient
from tests.support.clients.pusher import (
    KEY,
    SECRET,
    PusherClient,
    SubscriptionFailed,
    connected,
    member,
)
from tests.support.clients.transports import TransportStage
from tests.support.scenarios.node_stage import node_stage
from tests.support.scenarios.permission_rows import CASES, EVERY_OPERATION, ROWS, WHO, Operation, Row, place, settings
from tests.support.scenarios.permission_tables import ask
from tests.support.scenarios.tokens import hmac_token

PREFIXES: Final = ("", "private-", "presence-", "private-cache-")
IDENTITIES: Final = {"another user": "bob", "owner": "ann", "subscriber": "sue"}
GRANTED: Final = "anonymous, subscription token"
CLOSED: Final = next(row for row in ROWS if row.words == ("token",))  # what the rules of prefixes say
RULES: Final = "SNORKY_SERVICES__PUBSUB__CHANNELS"


def env() -> dict[str, str]:
    """Give a node the rules of all rows, for each prefix."""
    found = settings()
    rules = [rule | {"match": prefix + rule["match"]} for rule in json.loads(found[RULES]) for prefix in PREFIXES]
    app = {"SNORKY_PUBLIC__PUSHER_APPS__SHOP__KEY": KEY, "SNORKY_PUBLIC__PUSHER_APPS__SHOP__SECRET": SECRET}
    return {**found, **app, RULES: json.dumps(rules)}


def token_of(who: str) -> str | None:
    """Return the token of a client of the tables. The owner of each channel is ann."""
    if who == "anonymous":
        return None
    if who == "token that permits it":
        return hmac_token("cap", channels={"*.ann": EVERY_OPERATION})
    return hmac_token(IDENTITIES[who])


def cases(command: str) -> Iterator[tuple[Row, Operation]]:
    return (case for case in CASES if case[1].service == "pubsub" and case[1].command == command)


def owners(row: Row, who: str) -> Sequence[str]:
    """Return the owners of channels that a client tries: another user owns another channel of the same rule."""
    return ("ann", "bob") if who == "another user" and row.has_placeholder else ("ann",)


@dataclass(frozen=True)
class Cell:
    """One attempt of a client. way: how it does the operation."""

    way: str
    row: Row
    operation: Operation
    who: str
    owner: str

    @property
    def is_signed(self) -> bool:
        return self.way not in ("public", "event on a public channel")

    @property
    def channel(self) -> str:
        prefix = {"presence": "presence-", "cache": "private-cache-"}.get(self.way, "private-")
        return f"{prefix if self.is_signed else ''}{place(self.row, self.operation)}.{self.owner}"

    @property
    def is_permitted(self) -> bool:
        """Whether the tables permit it."""
        if self.way == "event on a public channel":
            return False
        row = CLOSED if self.is_signed and self.row.words is None else self.row
        who = "owner" if self.owner == "bob" else self.who
        granted = GRANTED if who == "anonymous" else GRANTED.replace("anonymous", "user")
        return row.permits(self.operation, who) or (self.is_signed and row.permits(self.operation, granted))


WAYS: Final = {  # of each: the command of Snorky that has the same effect
    "public": "subscribe",
    "private": "subscribe",
    "event on a public channel": "publish",
    "event": "publish",
    "presence": "presence",
    "cache": "history",
}


@asynccontextmanager
async def client(url: str, who: str) -> AsyncIterator[PusherClient]:
    """Connect a Pusher client of the tables, and sign it in. Only what a token permits comes with the handshake."""
    token = token_of(who) if who == "token that permits it" else None
    headers = {} if token is None else {"Authorization": f"Bearer {token}"}
    async with connected(url, **headers) as found:
        if who in IDENTITIES:
            await found.signed_in({"id": IDENTITIES[who]})
        yield found


async def first(*waits: Awaitable[Any]) -> int:
    """Wait for one of several; returns which one it was."""
    tasks = [asyncio.ensure_future(each) for each in waits]
    await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    (found, *_) = [number for number, task in enumerate(tasks) if task.done() and task.result()]
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    return found


async def is_subscribed(actor: PusherClient, channel: str) -> bool:
    """Subscribe; returns whether it was permitted."""
    described = member("7", name="Ann") if channel.startswith("presence-") else None
    try:
        found = await actor.subscribe(channel, described)
    except SubscriptionFailed as refused:
        assert refused.status == 401, refused
        return False
    assert described is None or found["presence"]["hash"]["7"] == {"name": "Ann"}, found
    return True


async def try_pusher(cell: Cell, actor: PusherClient, observer: PusherClient) -> bool:
    """Do what a cell is about; returns whether it was permitted. observer: gets the events of clients."""
    if WAYS[cell.way] == "publish":
        await is_subscribed(actor, cell.channel)
        await actor.send("client-typing", {}, cell.channel)
        refused, heard = actor.event("pusher:error"), observer.event("client-typing", cell.channel)
        return bool(await first(refused, heard))
    if cell.way == "cache":
        assert await is_subscribed(actor, cell.channel)
        (behind,) = [each["event"] for each in await actor.fence()]
        assert behind in ("kept", "pusher:cache_miss")
        return bool(behind == "kept")
    return await is_subscribed(actor, cell.channel)


async def publish(stage: TransportStage, channel: str, message: Any) -> None:
    """Publish as the backend does."""
    call = {"command": "publish", "params": {"channel": channel, "message": message}}
    await stage.backend(0, {"service": "pubsub_backend", "message": call})


async def test_every_cell_of_the_table_is_true_for_pusher(tmp_path: Path) -> None:
    cells = [
        Cell(way, row, operation, who, owner)
        for way, command in WAYS.items()
        for row, operation in cases(command)
        for who in WHO
        for owner in owners(row, who)
    ]
    wrong = []
    async with node_stage(tmp_path, 1, env=env()) as nodes:
        stage, url = TransportStage(nodes, ["json"], None), f"http://127.0.0.1:{nodes.nodes[0].public_port}"
        for channel in {cell.channel for cell in cells if cell.way == "cache"}:
            await publish(stage, channel, {"event": "kept", "data": "1"})
        async with client(url, "owner") as observer:
            for channel in {cell.channel for cell in cells if WAYS[cell.way] == "publish"}:
                await is_subscribed(observer, channel)
            for cell in cells:
                async with client(url, cell.who) as actor:
                    if await try_pusher(cell, actor, observer) is not cell.is_permitted:
                        wrong.append((cell.way, cell.row.label, cell.who, cell.owner, "expected", cell.is_permitted))
    assert not wrong, wrong
    assert len(cells) >= 290


async def test_no_rule_permits_what_has_no_valid_signature(tmp_path: Path) -> None:
    async with node_stage(tmp_path, 1, env=env()) as nodes:
        url = f"http://127.0.0.1:{nodes.nodes[0].public_port}"
        for who in WHO:
            async with client(url, who) as actor:
                for row, operation in cases("subscribe"):
                    for prefix in PREFIXES[1:]:
                        channel = f"{prefix}{place(row, operation)}.ann"
                        for auth in (actor.auth("private-another"), f"{KEY}:{'0' * 64}", ""):
                            with pytest.raises(SubscriptionFailed, match="401"):
                                await actor.subscribe(channel, member("7"), auth=auth)


# -- plain WebSockets and event streams -------------------------------------------------------------------------------


class SilentRawClient(RawClient):
    """A plain WebSocket that only publishes."""

    options = "&subscribe=false"


async def has_received(receive: Callable[[], Awaitable[Any]], send: Callable[[], Awaitable[Any]]) -> bool:
    """Send until something is received; False = the connection has ended, because it is not authorized."""
    waiting = asyncio.ensure_future(receive())
    while not waiting.done():
        await send()
        await asyncio.wait((waiting,), timeout=0.1)
    try:
        await waiting
    except Ended as end:
        assert str(end).startswith("1008 not_authorized"), end
        return False
    return True


async def may_subscribe(kind: str, stage: TransportStage, url: str, channel: str, who: str) -> bool:
    """Subscribe by the URL; returns whether it was permitted."""
    try:
        async with opened(kind, url, channel, token=token_of(who)) as actor:
            return await has_received(actor.message, lambda: publish(stage, channel, 1))
    except Refused as refused:
        assert "not_authorized" in str(refused), refused
        return False


async def may_publish(stage: TransportStage, url: str, channel: str, who: str) -> bool:
    """Publish by a plain WebSocket; returns whether it was permitted."""
    token = token_of(who)
    headers = {} if token is None else {"Authorization": f"Bearer {token}"}
    observer = await stage.client(0, "ann")
    await ask(observer, "pubsub", "subscribe", channel=channel)  # refused where no rule matches, and so is the actor
    async with aiohttp.ClientSession() as http:
        actor: AnyClient = SilentRawClient(http, url, channel, since=None, headers=headers)
        await actor.open()
        await actor.publish(1)
        heard = observer.until(lambda: any(each["message"]["type"] == "message" for each in observer.inbox))
        is_permitted = bool(await first(_truly(actor.ended()), _truly(heard)))
        await actor.close()
    await observer.close()
    return is_permitted


async def _truly(wait: Awaitable[Any]) -> bool:
    await wait
    return True


@pytest.mark.parametrize("kind", ["raw", "sse"])
async def test_every_cell_of_the_table_is_true_for_protocols_without_commands(kind: str, tmp_path: Path) -> None:
    tried, wrong = 0, []
    async with node_stage(tmp_path, 1, env=env()) as nodes:
        stage, url = TransportStage(nodes, ["json"], None), f"http://127.0.0.1:{nodes.nodes[0].public_port}"
        for row, operation in (*cases("subscribe"), *(cases("publish") if kind == "raw" else ())):
            for who in set(WHO) - {"subscriber"}:  # such a client has one channel, and no subscription before
                for owner in owners(row, who):
                    tried += 1
                    channel = f"{place(row, operation)}.{owner}"
                    expected = row.permits(operation, "owner" if owner == "bob" else who)
                    if operation.name == "subscribe":
                        found = await may_subscribe(kind, stage, url, channel, who)
                    else:
                        found = await may_publish(stage, url, channel, who)
                    if found is not expected:
                        wrong.append((row.label, operation.name, who, owner, "expected", expected))
    assert not wrong, wrong
    assert tried >= 35
