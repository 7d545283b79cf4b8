"""pusher-js of npm over three nodes behind nginx: `user.watchlist`, also after a node was killed."""

from pathlib import Path
from urllib.parse import urlsplit

import pytest

from tests.support.clients.js_process import JSProcess
from tests.support.clients.pusher_js import gateway_of, needs_pusher_js, pusher_js
from tests.support.processes.fleet import running_fleet
from tests.support.processes.proxy import FaultProxy
from tests.support.processes.tools import eventually
from tests.support.servers.pusher_backend import ENV as APP_ENV
from tests.support.servers.pusher_backend import PusherBackend

pytestmark = [pytest.mark.needs("redis-server", "nginx", "node"), needs_pusher_js]

ENV = {**APP_ENV, "SNORKY_PUBLIC__PUSHER_APPS__SHOP__WATCHLISTS": "true"}
USERS = ["ann", "bob", "bob", "cid"]
ANN = 0


def told(clients: JSProcess, number: int = ANN) -> list[tuple[str, list[str]]]:
    """Return the events of a client's watchlist."""
    assert all(each["event"] == each["name"] for each in clients.of("watchlist"))
    return [(each["name"], each["users"]) for each in clients.of("watchlist", number)]


async def until_told(clients: JSProcess, *expected: tuple[str, list[str]]) -> None:
    """Wait until ann has been told exactly this."""

    async def is_so() -> bool:
        return told(clients) == list(expected)

    try:
        await eventually(is_so, within_s=60.0, what=f"ann is told {expected}")
    except AssertionError as error:
        error.add_note(f"told: {told(clients)}")
        raise


async def test_pusher_js_knows_who_is_online(tmp_path: Path) -> None:
    async with running_fleet(tmp_path, nodes=3, env=ENV) as fleet, PusherBackend() as backend:
        backend.watchlists["ann"] = ["bob", "cid", "dan"]
        async with pusher_js(gateway_of(fleet), backend, count=len(USERS), users=USERS) as clients:
            connected = await clients.until("connected", len(USERS))
            sockets = {each["client"]: each["socket"] for each in connected}
            assert len({each.partition(".")[0] for each in sockets.values()}) == 3, "they are on all nodes"
            for number in (1, 2, ANN):
                await clients.call("signin", client=number)
            await clients.until("signed in", 3)
            events = [("online", ["bob"])]
            await until_told(clients, *events)
            await clients.call("signin", client=3)
            events.append(("online", ["cid"]))
            await until_told(clients, *events)
            await clients.call("disconnect", client=1)
            await clients.call("disconnect", client=3)
            events.append(("offline", ["cid"]))
            await until_told(clients, *events)
            await clients.call("terminate", user="bob")
            events.append(("offline", ["bob"]))
            await until_told(clients, *events)
            await clients.call("connect", client=3)
            events.append(("online", ["cid"]))
            await until_told(clients, *events)
        assert {each["client"] for each in clients.of("watchlist")} == {ANN}


async def test_client_that_comes_back_is_told_who_is_online(tmp_path: Path) -> None:
    async with running_fleet(tmp_path, nodes=3, env=ENV) as fleet, PusherBackend() as backend:
        backend.watchlists["ann"] = ["bob"]
        gateway = gateway_of(fleet)
        async with (
            FaultProxy("127.0.0.1", urlsplit(gateway).port or 0) as proxy,
            pusher_js(f"http://127.0.0.1:{proxy.port}", backend, users=["ann"]) as clients,
            pusher_js(gateway, backend, users=["bob"]) as others,
        ):
            for each in (others, clients):
                await each.until("connected")
                await each.call("signin", client=0)
                await each.until("signed in")
            await until_told(clients, ("online", ["bob"]))
            proxy.cut()
            proxy.heal()
            await clients.until("signed in", 2)
            await until_told(clients, ("online", ["bob"]), ("online", ["bob"]))


async def test_app_without_watchlists_is_an_error_for_pusher_js_and_nothing_else(tmp_path: Path) -> None:
    async with running_fleet(tmp_path, nodes=1, env=APP_ENV) as fleet, PusherBackend() as backend:
        backend.watchlists["ann"] = ["bob"]
        async with pusher_js(gateway_of(fleet), backend, users=["ann"]) as clients:
            await clients.until("connected")
            await clients.call("signin", client=0)
            await clients.until("signed in")
            assert [each["code"] for each in await clients.until("error")] == [4301]
            assert (await clients.call("sendToUser", user="ann", data=1))["status"] == 200
            await clients.until("to user")
            assert [each["state"] for each in clients.of("state")] == ["connected"]
