"""pusher-js of npm, in Node and in Chromium, through nginx over three nodes: faults, kinds of channels, users, states.

Pusher's protocol has no recovery: a client that has lost its connection misses what is published until it is subscribed
again. That, and nothing else.
"""

import asyncio
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any
from urllib.parse import urlsplit

import pytest
from playwright.async_api import Browser
from redis.asyncio import Redis

from tests.support.clients.js_process import JSProcess
from tests.support.clients.pusher_js import SCRIPT, gateway_of, needs_pusher_js, pusher_js
from tests.support.processes.chromium import closing_pages
from tests.support.processes.fleet import Fleet, running_fleet
from tests.support.processes.proxy import FaultProxy
from tests.support.processes.tools import eventually
from tests.support.servers.pusher_backend import ENV as APP
from tests.support.servers.pusher_backend import KEY, PusherBackend

pytestmark = [pytest.mark.needs("redis-server", "nginx", "node"), needs_pusher_js]

DEADLINE_S = 60.0
COUNT = 1_000
CLIENTS = 20
KEPT, PLAIN = "kept-orders", "orders"  # with a history, and without
ENV = APP | {"SNORKY_SERVICES__PUBSUB__CHANNELS": json.dumps([{"match": "kept-*", "history": 5_000}])}
ROOM = "presence-room"
ANN, BOB, CID, DAN = ({"name": name} for name in ("Ann", "Bob", "Cid", "Dan"))


async def until_subscribed(fleet: Fleet, count: int) -> None:
    """Wait until the nodes that run have this many subscriptions."""

    async def is_so() -> bool:
        return await fleet.metric("snorky_subscriptions") == count

    await eventually(is_so, within_s=DEADLINE_S, what=f"{count} subscriptions")


# -- faults -----------------------------------------------------------------------------------------------------------


@dataclass
class Numbers:
    """Numbers that were published, one after another. began: when. acknowledged: those with an answer of the API."""

    began: list[float] = field(default_factory=list)
    acknowledged: set[int] = field(default_factory=set)

    async def publish(self, backend: PusherBackend, gateway: str) -> None:
        number = len(self.began)
        self.began.append(time.time())
        if await backend.publish(gateway, "number", number, [KEPT, PLAIN]) == 200:
            self.acknowledged.add(number)


@dataclass
class Session:
    """The events of a channel that a client received from one `subscription_succeeded`, at `since`, to the next."""

    since: float
    numbers: list[int] = field(default_factory=list)


def sessions_of(clients: JSProcess, channel: str) -> list[list[Session]]:
    found: list[list[Session]] = [[] for _ in range(CLIENTS)]
    for event in clients.events:
        if event.get("channel") == channel:
            sessions = found[event["client"]]
            if event["kind"] == "subscribed":
                sessions.append(Session(event["at"]))
            else:
                sessions[-1].numbers.append(event["data"])
    return found


def check(sessions: Sequence[Session], numbers: Sequence[int], began: Sequence[float]) -> int:
    """Assert that a client received every number once, in order, while subscribed; returns how many it missed."""
    received = [number for session in sessions for number in session.numbers]
    assert all(first < second for first, second in pairwise(received)), "twice, or out of order"
    for session in sessions:
        is_first, is_last = session is sessions[0], session is sessions[-1]
        start = 0 if is_first else min([*session.numbers, *(each for each in numbers if began[each] > session.since)])
        end = numbers[-1] if is_last else max(session.numbers, default=-1)
        assert session.numbers == [each for each in numbers if start <= each <= end], "lost while it was subscribed"
    return len(numbers) - len(received)


async def publish_with_faults(fault: str, fleet: Fleet, backend: PusherBackend, numbers: Numbers) -> None:
    """Publish COUNT numbers through the HTTP API, and inject the fault twice."""
    gateway = gateway_of(fleet)
    async with Redis.from_url(fleet.redis.url) as redis:
        for number in range(COUNT):
            if number in (200, 400):
                node = fleet.nodes[0 if number == 200 else 1]
                if fault == "pubsub":
                    await redis.client_kill_filter(_type="pubsub")
                else:
                    (node.kill if fault == "kill" else node.terminate)()
            await numbers.publish(backend, gateway)
    if fault != "pubsub":
        await asyncio.gather(*(node.wait() for node in fleet.nodes[:2]))


@pytest.mark.parametrize("fault", ["kill", "drain", "pubsub"])
async def test_clients_miss_only_what_is_published_while_they_reconnect(tmp_path: Path, fault: str) -> None:
    numbers = Numbers()
    async with (
        running_fleet(tmp_path, nodes=3, env=ENV) as fleet,
        PusherBackend() as backend,
        pusher_js(gateway_of(fleet), backend, count=CLIENTS, channels=[KEPT, PLAIN]) as clients,
    ):
        await clients.until("subscribed", 2 * CLIENTS)
        await publish_with_faults(fault, fleet, backend, numbers)
        await until_subscribed(fleet, 2 * CLIENTS)
        await numbers.publish(backend, gateway_of(fleet))  # the last one, which all receive

        async def have_all_the_last() -> bool:
            return len([each for each in clients.of("event") if each["data"] == COUNT]) == 2 * CLIENTS

        await eventually(have_all_the_last, within_s=DEADLINE_S, what="all clients have the last number")
        # a request whose answer was lost may have been carried out or not
        heard = {each["data"] for each in clients.of("event")}
        published = sorted(numbers.acknowledged | heard)
        missed = [check(each, published, numbers.began) for each in sessions_of(clients, KEPT)]
        if fault == "pubsub":  # what has no history is lost while a node does not hear Redis
            for number in range(CLIENTS):
                plain = [each["data"] for each in clients.of("event", number) if each["channel"] == PLAIN]
                assert all(first < second for first, second in pairwise(plain))
        else:
            assert len([check(each, published, numbers.began) for each in sessions_of(clients, PLAIN)]) == CLIENTS

    again = clients.of("connected")[CLIENTS:]
    back_s = [each["at"] - ended_before(clients, each) for each in again]
    unanswered = COUNT + 1 - len(numbers.acknowledged)
    told = f"back after {median(back_s):.3f} s, at most {max(back_s):.3f} s" if again else "none reconnected"
    print(f"{fault}: {len(again)} connections more, {sum(missed)} numbers missed, {unanswered} unanswered; {told}")
    moved = {each["client"] for each in again}
    assert bool(again) == (fault != "pubsub"), "the fault had its effect"
    assert not [count for number, count in enumerate(missed) if count and number not in moved]
    codes: dict[str, set[int]] = {"kill": {1006}, "drain": {4200}, "pubsub": set()}
    assert {each["code"] for each in clients.of("error")} == codes[fault]
    assert {each["state"] for each in clients.of("state")} <= {"connecting", "connected"}
    assert unanswered <= (4 if fault == "kill" else 0)  # nodes that drain answer all requests
    if fault == "drain":
        assert median(back_s) < 1.0, "they reconnected without the second that pusher-js waits otherwise"
    if fault == "kill":
        assert median(back_s) < 3.0, "they reconnected after the second that pusher-js waits"


def ended_before(clients: JSProcess, connected: dict[str, Any]) -> float:
    """Return when the connection before this one ended."""
    errors = clients.of("error", connected["client"])
    return float(max(each["at"] for each in errors if each["at"] <= connected["at"]))


# -- kinds of channels ------------------------------------------------------------------------------------------------


async def test_members_of_a_room_on_three_nodes_see_each_other(tmp_path: Path) -> None:
    users = ["ann", "ann", "bob", "bob", "cid", "dan"]
    async with (
        running_fleet(tmp_path, nodes=3, env=ENV) as fleet,
        PusherBackend() as backend,
        pusher_js(gateway_of(fleet), backend, count=len(users), users=users) as clients,
    ):
        sockets = [each["socket"] for each in await clients.until("connected", len(users))]
        assert len({each.partition(".")[0] for each in sockets}) == 3, "they are on all nodes"
        for number in range(len(users)):
            await clients.call("subscribe", client=number, channel=ROOM)
            await clients.until("subscribed", number + 1)
        seen = [each["members"] for each in clients.of("subscribed")]
        assert seen[0] == {"count": 1, "me": {"id": "ann", "info": ANN}, "each": {"ann": ANN}}
        assert seen[5]["me"] == {"id": "dan", "info": DAN}
        assert seen[5]["count"] == 4 and seen[5]["each"] == {"ann": ANN, "bob": BOB, "cid": CID, "dan": DAN}
        await clients.until("added", 3 + 3 + 2 + 2 + 1)
        for number, added in enumerate(("bob cid dan", "bob cid dan", "cid dan", "cid dan", "dan", "")):
            assert [each["id"] for each in clients.of("added", number)] == added.split()
        assert clients.of("added", 0)[0]["info"] == BOB
        await clients.call("unsubscribe", client=0, channel=ROOM)  # ann has another connection
        await clients.call("disconnect", client=4)
        await clients.until("removed", 4)
        await clients.call("unsubscribe", client=1, channel=ROOM)
        await clients.until("removed", 7)
        for number, removed in enumerate(("", "cid", "cid ann", "cid ann", "", "cid ann")):
            assert [each["id"] for each in clients.of("removed", number)] == removed.split()
        assert await clients.call("members", client=5, channel=ROOM) == seen[5] | {
            "count": 2,
            "each": {"bob": BOB, "dan": DAN},
        }
        asked = await clients.call("get", path=f"/channels/{ROOM}/users")
        assert asked == {"status": 200, "body": {"users": [{"id": "bob"}, {"id": "dan"}]}}


async def test_private_encrypted_and_cache_channels(tmp_path: Path) -> None:
    talk, room, safe = "private-talk", "presence-talk", "private-encrypted-safe"
    async with (
        running_fleet(tmp_path, nodes=3, env=ENV) as fleet,
        PusherBackend() as backend,
        pusher_js(gateway_of(fleet), backend, count=3, users=["ann", "bob", "cid"]) as clients,
    ):
        sockets = {each["client"]: each["socket"] for each in await clients.until("connected", 3)}
        for number in range(3):
            for channel in (PLAIN, talk, room, safe):
                await clients.call("subscribe", client=number, channel=channel)
        await clients.until("subscribed", 12)

        def heard(client: int, channel: str) -> list[Any]:
            told = [each for each in clients.of("event", client) if each["channel"] == channel]
            return [(each["event"], each["data"], each.get("user")) for each in told]

        for channel, user in ((talk, None), (room, "ann")):
            await clients.call("trigger", client=0, channel=channel, data={"is": "typing"})
            await clients.until("event", 2)
            answer = await clients.call("publish", channels=[channel], data="last", params={})
            assert answer == {"status": 200, "body": {}}
            await clients.until("event", 5)
            own, others = [("news", "last", None)], [("client-typing", {"is": "typing"}, user), ("news", "last", None)]
            assert [heard(number, channel) for number in range(3)] == [own, others, others]
            clients.events.clear()
        secret = {"é": [1, "two"]}
        await clients.call("publish", channels=[safe], data=secret)
        await clients.until("event", 3)
        assert [heard(number, safe) for number in range(3)] == [[("news", secret, None)]] * 3
        await clients.call("publish", channels=[PLAIN], data="to others", params={"socket_id": sockets[0]})
        await clients.call("batch", batch=[{"channel": PLAIN, "name": "news", "data": "to all"}])
        await clients.until("event", 3 + 2 + 3)
        assert [len(heard(number, PLAIN)) for number in range(3)] == [1, 2, 2]

        clients.events.clear()
        caches = ["cache-price", "private-cache-price", "presence-cache-price", "private-encrypted-cache-price"]
        for channel in caches:
            await clients.call("subscribe", client=0, channel=channel)
        missing = await clients.until("event", 4)
        assert {(each["channel"], each["event"]) for each in missing} == {
            (each, "pusher:cache_miss") for each in caches
        }
        for price in (1, 2):
            for channel in caches:
                await clients.call("publish", channels=[channel], data={"price": price})
        await clients.until("event", 4 + 8, client=0)
        for channel in caches:
            await clients.call("subscribe", client=1, channel=channel)
        await clients.until("event", 4, client=1)
        for channel in caches:
            kinds = [each["kind"] for each in clients.events if each.get("client") == 1 and each["channel"] == channel]
            assert kinds == ["subscribed", "event"] and heard(1, channel) == [("news", {"price": 2}, None)]

        for channel in ("private-forbidden", "private-forged"):
            await clients.call("subscribe", client=2, channel=channel)
        refused = {each["channel"]: (each["type"], each["status"]) for each in await clients.until("refused", 2)}
        assert refused == {"private-forbidden": ("AuthError", 403), "private-forged": ("AuthError", 401)}


# -- users and states -------------------------------------------------------------------------------------------------


async def test_users_who_signed_in_are_reached_and_disconnected_on_all_nodes(tmp_path: Path) -> None:
    room = "presence-by-sign-in"
    async with (
        running_fleet(tmp_path, nodes=3, env=ENV) as fleet,
        PusherBackend() as backend,
        pusher_js(gateway_of(fleet), backend, count=3, users=["ann", "ann", "bob"]) as clients,
    ):
        await clients.until("connected", 3)
        for number in range(3):
            await clients.call("signin", client=number)
        signed_in = await clients.until("signed in", 3)
        assert sorted(each["user"]["id"] for each in signed_in) == ["ann", "ann", "bob"]
        await until_subscribed(fleet, 3)  # each to the channel of its user
        for user in ("ann", "bob"):
            assert (await clients.call("sendToUser", user=user, data={"to": user}))["status"] == 200
        await clients.until("to user", 3)
        assert [clients.of("to user", number)[0]["data"]["to"] for number in range(3)] == ["ann", "ann", "bob"]
        for number in (0, 2):
            await clients.call("subscribe", client=number, channel=room)
        await clients.until("subscribed", 2)
        assert (await clients.call("members", client=2, channel=room))["each"] == {"ann": ANN, "bob": BOB}

        assert (await clients.call("terminate", user="ann"))["status"] == 200
        await clients.until("state", 3 + 2)
        assert [each["state"] for each in clients.of("state")[3:]] == ["disconnected", "disconnected"]
        assert {(each["client"], each["code"]) for each in clients.of("error")} == {(0, 4009), (1, 4009)}
        await clients.call("sendToUser", user="bob", data={"to": "bob again"})
        assert (await clients.until("to user", 4))[3]["data"] == {"to": "bob again"}


async def test_states_of_a_connection_and_pings(tmp_path: Path) -> None:
    # a node that pauses for a second is neither taken for dead nor for unavailable
    options = {"activityTimeout": 200, "pongTimeout": 4_000, "unavailableTimeout": 2_500}
    async with running_fleet(tmp_path, nodes=3, env=ENV) as fleet, PusherBackend() as backend:
        async with pusher_js(gateway_of(fleet), backend, key="unknown") as clients:
            await clients.until("state")
            assert {each["code"] for each in clients.of("error")} == {4001}
            assert [each["state"] for each in clients.of("state")] == ["disconnected"]
        async with (
            FaultProxy("127.0.0.1", urlsplit(gateway_of(fleet)).port or 0) as proxy,
            pusher_js(f"http://127.0.0.1:{proxy.port}", backend, channels=[PLAIN], options=options) as clients,
        ):

            async def is_connected(times: int) -> list[str]:
                await clients.until("connected", times)
                await clients.until("subscribed", times)
                return [each["state"] for each in clients.of("state")]

            await clients.until("pong", 3)
            assert await is_connected(1) == ["connected"]
            await clients.call("disconnect", client=0)
            proxy.delay_s = 3.0
            await clients.call("connect", client=0)
            states = ["connected", "disconnected", "connecting", "unavailable"]
            assert [each["state"] for each in await clients.until("state", 4)] == states
            proxy.delay_s = 0.0
            states += ["connected"]
            assert await is_connected(2) == states and not clients.of("error")
            proxy.swallow()  # the present connection only
            proxy.heal()
            assert await is_connected(3) == [*states, "connecting", "connected"], "no pong came"
            assert len({each["socket"] for each in clients.of("connected")}) == 3


# -- in a browser -----------------------------------------------------------------------------------------------------


@pytest.mark.needs("chromium")
@pytest.mark.asyncio(loop_scope="module")
async def test_page_is_in_its_room_again_after_its_node_was_killed(tmp_path: Path, chromium: Browser) -> None:
    seen = list[dict[str, Any]]()

    async def have_come(kind: str, count: int) -> None:
        async def is_so() -> bool:
            return len([each for each in seen if each["kind"] == kind]) >= count

        await eventually(is_so, within_s=DEADLINE_S, what=f"{count} times {kind} in {seen}")

    async with PusherBackend(script=SCRIPT) as backend, closing_pages(chromium):
        env = ENV | {"SNORKY_PUBLIC__ALLOWED_ORIGINS": json.dumps([backend.url])}
        async with running_fleet(tmp_path, nodes=3, env=env) as fleet:
            gateway = gateway_of(fleet)
            backend.page = page_of(gateway)
            page = await chromium.new_page()
            page.on("console", lambda line: seen.append(json.loads(line.text)) if line.type == "log" else None)
            await page.goto(backend.url)
            await have_come("subscribed", 1)
            (node,) = [each for each in fleet.nodes if await each.metric("snorky_subscriptions")]
            async with pusher_js(gateway, backend, channels=[ROOM], users=["bob"]) as other:
                assert (await other.until("subscribed"))[0]["members"]["each"] == {"ann": ANN, "bob": BOB}
                await have_come("added", 1)
                node.kill()
                await have_come("subscribed", 2)
                await backend.publish(gateway, "news", "after", [ROOM])
                await have_come("news", 1)
                await other.until("event")
                assert not other.of("removed") and not other.of("added"), "for bob, ann has never left"
    states = [each["state"] for each in seen if each["kind"] == "state"]
    assert states[-3:] == ["connected", "connecting", "connected"] and states.count("connected") == 2
    last = [each for each in seen if each["kind"] == "subscribed"][1]
    assert (last["me"], last["count"]) == ({"id": "ann", "info": ANN}, 2)


def page_of(gateway: str) -> str:
    """Write a page of ann, which logs what happens."""
    where = urlsplit(gateway)
    return f"""<!DOCTYPE html><link rel="icon" href="data:,"><script src="/pusher.js"></script><script>
        const tell = (kind, about) => console.log(JSON.stringify({{ kind, ...about }}));
        const pusher = new Pusher("{KEY}", {{
            cluster: "", wsHost: "{where.hostname}", wsPort: {where.port}, forceTLS: false, enabledTransports: ["ws"],
            channelAuthorization: {{ endpoint: "/channel", params: {{ user: "ann" }} }},
        }});
        pusher.connection.bind("state_change", ({{ current }}) => tell("state", {{ state: current }}));
        const room = pusher.subscribe("{ROOM}");
        room.bind("pusher:subscription_succeeded", ({{ me, count }}) => tell("subscribed", {{ me, count }}));
        room.bind("pusher:member_added", ({{ id }}) => tell("added", {{ id }}));
        room.bind("news", (data) => tell("news", {{ data }}));
    </script>"""
