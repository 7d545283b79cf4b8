"""Laravel Echo of npm over pusher-js, in Node, through nginx over three nodes: what Laravel's documentation shows."""

from pathlib import Path
from typing import Any

import pytest

from tests.support.clients.js_process import JSProcess
from tests.support.clients.pusher_js import gateway_of, laravel_echo, needs_pusher_js
from tests.support.processes.fleet import running_fleet
from tests.support.servers.pusher_backend import ENV, PusherBackend

pytestmark = [pytest.mark.needs("redis-server", "nginx", "node"), needs_pusher_js]

EVENTS = "App\\Events\\"  # Echo puts it before the names of events
NOTIFICATION = "Illuminate\\Notifications\\Events\\BroadcastNotificationCreated"


@pytest.mark.parametrize("broadcaster", ["pusher", "reverb"])
async def test_echo_has_channels_rooms_whispers_and_notifications(tmp_path: Path, broadcaster: str) -> None:
    async with running_fleet(tmp_path, nodes=3, env=ENV) as fleet, PusherBackend() as backend:
        gateway = gateway_of(fleet)

        async def publish(event: str, data: Any, channel: str, **others: Any) -> None:
            assert await backend.publish(gateway, event, data, [channel], **others) == 200

        async with laravel_echo(gateway, backend, broadcaster) as echo:
            for number, user in enumerate(("ann", "bob")):
                await echo.call("enter", user=user)
                await echo.until("subscribed", 2, client=number)
                await echo.until("here", 1, client=number)
            assert [each["members"] for each in echo.of("here")] == [
                [{"name": "Ann"}],
                [{"name": "Ann"}, {"name": "Bob"}],
            ]
            assert [each["member"] for each in await echo.until("joining")] == [{"name": "Bob"}]
            assert {each["Authorization"] for each in backend.headers} == {"Bearer token-of-a-session"}

            await publish(f"{EVENTS}OrderShipped", {"id": 7}, "orders")
            await publish("order.paid", {"id": 8}, "orders")
            await publish(f"{EVENTS}Orders\\Cancelled", {"id": 9}, "private-orders")
            await publish(NOTIFICATION, {"type": "App\\Paid", "id": 10}, "private-orders")
            for kind, number in (("shipped", 7), ("paid", 8), ("cancelled", 9), ("notification", 10)):
                assert [each["data"]["id"] for each in await echo.until(kind, 2)] == [number, number]
            await echo.until("any", 4)
            assert [each["event"] for each in echo.of("any", 0)] == ["OrderShipped", ".order.paid"]

            own = await echo.call("socketId", client=0)
            await publish(f"{EVENTS}OrderShipped", {"id": 11}, "orders", socket_id=own)
            await publish(f"{EVENTS}OrderShipped", {"id": 12}, "orders")
            await echo.until("shipped", 5)
            assert ids_of(echo, "shipped", 0) == [7, 12] and ids_of(echo, "shipped", 1) == [7, 11, 12]

            await echo.call("whisper", client=0, data={"by": "ann"})
            await echo.call("whisperInRoom", client=1, data={"by": "bob"})
            assert [(each["client"], each["data"]) for each in await echo.until("whisper")] == [(1, {"by": "ann"})]
            in_room = await echo.until("whisper in the room")
            assert [(each["client"], each["data"]) for each in in_room] == [(0, {"by": "bob"})]

            await echo.call("forbidden", client=0)
            assert (await echo.until("refused"))[0]["status"] == 403
            await echo.call("leave", client=1)
            assert [each["member"] for each in await echo.until("leaving")] == [{"name": "Bob"}]
            await publish(f"{EVENTS}OrderShipped", {"id": 13}, "orders")
            await echo.until("shipped", 6)
            assert ids_of(echo, "shipped", 0)[-1] == 13 and ids_of(echo, "shipped", 1)[-1] == 12
            assert await echo.call("status", client=1) == "connected"
            assert len(echo.of("whisper")) == len(echo.of("whisper in the room")) == 1


def ids_of(echo: JSProcess, kind: str, client: int) -> list[int]:
    return [each["data"]["id"] for each in echo.of(kind, client)]
