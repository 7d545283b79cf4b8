"""pusher-js of npm over three nodes behind nginx: `pusher:subscription_count`; its webhook, as the library reads it."""

import json
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from tests.support.clients.js_process import JSProcess, running_js
from tests.support.clients.pusher_js import FOLDER, gateway_of, needs_pusher_js
from tests.support.processes.fleet import Fleet, running_fleet
from tests.support.processes.tools import eventually
from tests.support.servers.hook_backend import HookBackend
from tests.support.servers.pusher_backend import APP, KEY, SECRET, PusherBackend
from tests.support.servers.pusher_backend import ENV as APP_ENV

pytestmark = [pytest.mark.needs("redis-server", "nginx", "node"), needs_pusher_js]

NEWS, TALK, ROOM = "news", "private-talk", "presence-room"
SETTINGS = "SNORKY_PUBLIC__PUSHER_APPS__SHOP__"


def env_of(hooks: HookBackend) -> dict[str, str]:
    """Return the settings of nodes."""
    return {
        **APP_ENV,
        f"{SETTINGS}SUBSCRIPTION_COUNTS": "true",
        f"{SETTINGS}WEBHOOK_URL": hooks.url,
        f"{SETTINGS}WEBHOOK_EVENTS": '["subscription_count"]',
    }


def arguments(fleet: Fleet, backend: PusherBackend) -> dict[str, Any]:
    where = urlsplit(gateway_of(fleet))
    return {
        "host": where.hostname,
        "port": where.port,
        "key": KEY,
        "app": APP,
        "secret": SECRET,
        "auth": backend.url,
        "count": 6,
        "channels": [NEWS, TALK, ROOM],
    }


async def until_told(clients: JSProcess, numbers: list[int], channel: str, count: int) -> None:
    """Wait until these clients have been told this number last."""

    async def are_told() -> bool:
        told = [[each for each in clients.of("count", number) if each["channel"] == channel] for number in numbers]
        return all(each and each[-1]["data"] == {"subscription_count": count} for each in told)

    try:
        await eventually(are_told, within_s=60.0, what=f"{numbers} are told {count}")
    except AssertionError as error:
        error.add_note(f"told: {clients.of('count')}")
        raise


async def test_pusher_js_knows_how_many_subscribers_a_channel_has(tmp_path: Path) -> None:
    async with (
        HookBackend() as hooks,
        running_fleet(tmp_path, nodes=3, env=env_of(hooks)) as fleet,
        PusherBackend() as backend,
        running_js(FOLDER, "counts.js", **arguments(fleet, backend)) as clients,
    ):
        await clients.until("subscribed", 18)
        assert len({each["socket"].partition(".")[0] for each in clients.of("connected")}) == 3, "they are on all nodes"
        everyone = list(range(6))
        for channel in (NEWS, TALK):
            await until_told(clients, everyone, channel, 6)
        await clients.call("unsubscribe", client=0, channel=NEWS)
        await until_told(clients, [1, 2, 3, 4, 5], NEWS, 5)
        await clients.call("disconnect", client=1)
        await until_told(clients, [2, 3, 4, 5], NEWS, 4)
        await until_told(clients, [0, 2, 3, 4, 5], TALK, 5)
        await clients.call("connect", client=1)
        await until_told(clients, [1, 2, 3, 4, 5], NEWS, 5)
        await until_told(clients, everyone, TALK, 6)

        fleet.nodes[0].kill()  # its clients come back to the others, and are counted twice for some seconds

        async def are_more() -> bool:
            return any(each["data"]["subscription_count"] > 6 for each in clients.of("count"))

        await eventually(are_more, within_s=10.0, what="its clients are back")
        await until_told(clients, [1, 2, 3, 4, 5], NEWS, 5)
        await until_told(clients, everyone, TALK, 6)
        told = clients.of("count")
        assert all(each["property"] == each["data"]["subscription_count"] for each in told), "channel.subscriptionCount"
        assert {each["channel"] for each in told} == {NEWS, TALK}

        last: dict[str, int] = {}

        async def are_received() -> bool:
            last.clear()
            for request, body in zip(list(hooks.requests), list(hooks.bodies), strict=False):
                headers = {name.lower(): value for name, value in request.headers.items()}
                read = await clients.call("events", headers=headers, body=body.decode())
                assert read["isValid"]
                assert {each["name"] for each in read["events"]} == {"subscription_count"}
                last.update({each["channel"]: each["subscription_count"] for each in read["events"]})
                assert json.loads(body)["events"] == read["events"]
            return last == {NEWS: 5, TALK: 6}

        await eventually(are_received, within_s=60.0, what=f"the backend has the last numbers: {last}")
