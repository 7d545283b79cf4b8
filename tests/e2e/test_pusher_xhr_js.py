"""pusher-js of npm without WebSockets, unmodified, in Chromium and in Node, by nginx round robin over three nodes."""

import asyncio
import json
import re
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from playwright.async_api import Browser as ChromiumBrowser

from tests.e2e.test_sockjs import NODES, House, Running, house
from tests.support.clients.js_process import JSProcess
from tests.support.clients.pusher_js import FOLDER, needs_pusher_js, pusher_js
from tests.support.processes.balancer import running_haproxy
from tests.support.processes.chromium import closing_pages
from tests.support.processes.nodes import NodeProcess
from tests.support.processes.tools import eventually
from tests.support.servers.pusher_backend import ENV, KEY, PusherBackend

pytestmark = [pytest.mark.needs("redis-server", "nginx", "node"), needs_pusher_js]

TRANSPORTS = ("xhr_streaming", "xhr_polling")
DEADLINE_S = 60.0
CLIENTS = 10
TEXT = 'é\u2028\u200d😀"\\ </script> %41'
SCRIPT = FOLDER / "node_modules" / "pusher-js" / "dist" / "web" / "pusher.min.js"
PAGE = """<!DOCTYPE html><title>Pusher</title><body><script src="/pusher.js"></script><script>
  function connect(key, options, user) {
    window.pusher = new Pusher(key, {
      cluster: "", forceTLS: false, unavailableTimeout: 2000,
      channelAuthorization: {endpoint: "/channel", transport: "ajax", params: {user}}, ...options,
    });
    pusher.connection.bind("state_change", ({current}) => tell({kind: "state", data: current}));
    pusher.connection.bind("error", (error) => tell({kind: "error", data: (error.error ?? error).data?.code}));
  }
  function subscribe(name) {
    const channel = pusher.subscribe(name);
    channel.bind("pusher:subscription_succeeded", () =>
      tell({kind: "subscribed", data: channel.members ? channel.members.count : null}));
    channel.bind("pusher:member_added", ({id}) => tell({kind: "added", data: id}));
    channel.bind("pusher:member_removed", ({id}) => tell({kind: "removed", data: id}));
    channel.bind("number", (data) => tell({kind: "number", data}));
    channel.bind("client-typing", (data, {user_id}) => tell({kind: "typing", data: [data, user_id]}));
  }
</script>"""

each_transport = pytest.mark.parametrize("transport", TRANSPORTS)


def options_of(there: House, transport: str) -> dict[str, Any]:
    assert there.balancer is not None
    return {"httpHost": "127.0.0.1", "httpPort": there.balancer.port, "enabledTransports": [transport]}


def gateway_of(there: House) -> str:
    return there.url.removesuffix("/sockjs")


def asked(there: House, request: str) -> set[str]:
    """Return the nodes that got such requests."""
    assert there.balancer is not None
    return set(re.findall(rf"/pusher/app/{KEY}/\d+/_/{request}\" \d+ (127\.0\.0\.1:\d+) ", there.balancer.process.log))


async def owner_of(there: House) -> NodeProcess:
    """Return the node with the only connection."""
    (found,) = [node for node in there.nodes if node.is_running and await node.metric("snorky_connections")]
    return found


# -- in Chromium ------------------------------------------------------------------------------------------------------


class Tab:
    """pusher-js in a page. events: those that the page has reported and no test has waited for."""

    def __init__(self, events: "asyncio.Queue[dict[str, Any]]", evaluate: Any) -> None:
        self._events = events
        self.evaluate = evaluate

    async def next(self, *kinds: str) -> Any:
        """Wait for the next event of these kinds; returns its data. Other kinds are skipped."""
        async with asyncio.timeout(DEADLINE_S):
            while True:
                event = await self._events.get()
                if event["kind"] in kinds:
                    return event["data"]

    async def subscribe(self, channel: str) -> Any:
        """Subscribe; returns the number of members of a presence channel."""
        await self.evaluate("name => subscribe(name)", channel)
        return await self.next("subscribed")

    async def connected(self) -> None:
        while await self.next("state") != "connected":
            pass

    async def trigger(self, channel: str, data: Any) -> None:
        await self.evaluate("([name, data]) => pusher.channel(name).trigger('client-typing', data)", [channel, data])


@dataclass
class Stage:
    """Nodes, the app's backend with its page, and Chromium."""

    there: House
    backend: PusherBackend
    chromium: ChromiumBrowser

    async def tab(self, transport: str, user: str = "", *, key: str = KEY, origin: str | None = None) -> Tab:
        """Open a page, in a context of its own, and let it connect. origin: of the page, if not the allowed one."""
        page = await (await self.chromium.new_context()).new_page()
        events: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        await page.expose_function("tell", events.put_nowait)
        await page.goto(origin or self.backend.url)
        await page.evaluate("args => connect(...args)", [key, options_of(self.there, transport), user])
        return Tab(events, page.evaluate)

    async def publish(self, *numbers: Any, channel: str = "orders") -> None:
        for each in numbers:
            assert await self.backend.publish(gateway_of(self.there), "number", each, [channel]) == 200


@asynccontextmanager
async def stage(directory: Path, chromium: ChromiumBrowser) -> AsyncIterator[Stage]:
    """Run all of them until the block ends."""
    async with AsyncExitStack() as stack:
        backend = await stack.enter_async_context(PusherBackend(page=PAGE, script=SCRIPT))
        settings = ENV | {"SNORKY_PUBLIC__ALLOWED_ORIGINS": json.dumps([backend.url])}
        there = await stack.enter_async_context(house(directory, NODES, settings))
        await stack.enter_async_context(closing_pages(chromium))
        yield Stage(there, backend, chromium)


@pytest.mark.needs("chromium")
@pytest.mark.asyncio(loop_scope="module")
@each_transport
async def test_page_without_websockets_gets_all_events_in_order(
    tmp_path: Path, chromium: ChromiumBrowser, transport: str
) -> None:
    async with stage(tmp_path, chromium) as running:
        tab = await running.tab(transport)
        await tab.connected()
        await tab.subscribe("orders")
        sent = [[number, TEXT * (number % 300)] for number in range(400)]  # several times what one response may have
        for at in range(0, len(sent), 40):  # not more than may wait for a client of a busy machine
            portion = sent[at : at + 40]
            publishing = asyncio.create_task(running.publish(*portion))
            assert [await tab.next("number", "state", "error") for _ in portion] == portion
            await publishing

        async def all_were_asked() -> bool:
            return len(asked(running.there, r"xhr(?:_streaming)?")) == NODES

        await eventually(all_were_asked, within_s=DEADLINE_S, what="requests reach all nodes")


@pytest.mark.needs("chromium")
@pytest.mark.asyncio(loop_scope="module")
async def test_pages_without_websockets_see_and_hear_each_other(tmp_path: Path, chromium: ChromiumBrowser) -> None:
    async with stage(tmp_path, chromium) as running:
        ann, bob = [
            await running.tab(transport, user) for transport, user in zip(TRANSPORTS, ("ann", "bob"), strict=True)
        ]
        assert await ann.subscribe("presence-room") == 1
        assert await bob.subscribe("presence-room") == 2
        assert await ann.next("added") == "bob"
        for number in range(9):
            await ann.trigger("presence-room", {"number": number, "text": TEXT})
            assert await bob.next("typing") == [{"number": number, "text": TEXT}, "ann"]
            await bob.trigger("presence-room", {"number": number})
            assert await ann.next("typing") == [{"number": number}, "bob"]
        await bob.evaluate("pusher.disconnect()")
        assert await ann.next("removed") == "bob"


@pytest.mark.needs("chromium")
@pytest.mark.asyncio(loop_scope="module")
@each_transport
async def test_page_is_told_when_it_must_not_come_back(
    tmp_path: Path, chromium: ChromiumBrowser, transport: str
) -> None:
    async with stage(tmp_path, chromium) as running:
        tab = await running.tab(transport, key="unknown")
        assert await tab.next("error") == 4001
        assert await tab.next("state") == "disconnected"
        other = running.backend.url.replace("127.0.0.1", "localhost")
        tab = await running.tab(transport, origin=other)
        assert await tab.next("state", "error") == "unavailable", "a page of an origin that is not allowed"


@pytest.mark.needs("chromium")
@pytest.mark.asyncio(loop_scope="module")
@each_transport
async def test_page_comes_back_after_its_node_has_gone(
    tmp_path: Path, chromium: ChromiumBrowser, transport: str
) -> None:
    async with stage(tmp_path, chromium) as running:
        tab = await running.tab(transport)
        await tab.connected()
        await tab.subscribe("orders")
        owner = await owner_of(running.there)
        owner.terminate()
        assert await tab.next("error") == 4200
        await tab.next("subscribed")
        await running.publish(1)
        assert await tab.next("number") == 1
        assert await owner.wait(DEADLINE_S) == 0
        (await owner_of(running.there)).kill()
        await tab.next("subscribed")
        await running.publish(2)
        assert await tab.next("number") == 2


# -- many clients, in Node --------------------------------------------------------------------------------------------


def sessions_of(clients: JSProcess, client: int) -> list[list[int]]:
    """Return what a client received, from one `subscription_succeeded` to the next."""
    found: list[list[int]] = []
    for event in clients.events:
        if event.get("client") == client and event["kind"] == "subscribed":
            found.append([])
        elif event.get("client") == client and event["kind"] == "event":
            found[-1].append(event["data"])
    return found


FAULTS = [
    pytest.param("kill", None, id="kill"),
    pytest.param("drain", None, id="drain"),
    pytest.param("drain", running_haproxy, id="drain behind HAProxy", marks=pytest.mark.needs("haproxy")),
]


@each_transport
@pytest.mark.parametrize(("fault", "running"), FAULTS)
async def test_clients_miss_nothing_while_they_are_subscribed(
    tmp_path: Path, transport: str, fault: str, running: Running | None
) -> None:
    async with house(tmp_path, NODES, ENV, running=running) as there, PusherBackend() as backend:
        about = {"count": CLIENTS, "channels": ["orders"], "options": options_of(there, transport)}
        async with pusher_js(gateway_of(there), backend, **about) as clients:
            await clients.until("subscribed", CLIENTS)
            numbers, published = count(), list[int]()

            async def publish() -> None:
                number = next(numbers)
                if await backend.publish(gateway_of(there), "number", number, ["orders"]) == 200:
                    published.append(number)

            for _ in range(100):
                await publish()
            there.nodes[0].kill() if fault == "kill" else there.nodes[0].terminate()
            await there.nodes[0].wait(DEADLINE_S)
            since = next(numbers)

            async def all_hear_again() -> bool:
                await publish()
                return all(max(sessions_of(clients, each)[-1], default=0) > since for each in range(CLIENTS))

            await eventually(all_hear_again, within_s=DEADLINE_S, what="all clients hear what is published now")
            assert len(clients.of("subscribed")) > CLIENTS, "the fault had its effect"
            for heard in [session for each in range(CLIENTS) for session in sessions_of(clients, each) if session]:
                expected = [number for number in published if heard[0] <= number <= heard[-1]]
                assert [number for number in heard if number in published] == expected, "lost, twice, or out of order"
