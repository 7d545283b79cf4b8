"""Orders of the backend to three nodes while one of them is paused, killed, cut off or drained: obeyed once, by all."""

import asyncio
import json
from pathlib import Path
from typing import Final

import pytest

from tests.support.processes.nodes import NodeProcess
from tests.support.processes.tools import eventually
from tests.support.scenarios.order_house import CHANNEL, IDENTITY, NODES, Guest, house

pytestmark = pytest.mark.needs("redis-server")

GUESTS: Final = 1_000  # connections of one identity, over all nodes
HEARD: Final = "messages are received through Redis"  # a log line of nodes


async def test_a_thousand_connections_on_three_nodes_are_reached_within_a_second(tmp_path: Path) -> None:
    async with house(tmp_path) as built:
        ids = await built.ids()
        await built.join(GUESTS, range(NODES))
        reply = await built.order(channel=CHANNEL, by=1)
        shares = {node: len(built.on(at)) for at, node in enumerate(ids)}
        assert {each["node"]: each["connections"] for each in reply["nodes"]} == shares
        assert (reply["missing"], reply["connections"]) == ([], GUESTS)
        await built.all_notified_once(built.guests)
        reply = await built.order("disconnect", by=2)
        assert (reply["missing"], reply["connections"]) == ([], GUESTS)
        await built.until(lambda: all(guest.close_code == 4500 for guest in built.guests), "guests are closed")
        lines = [line for line in built.nodes[1].log.splitlines() if '"snorky.audit"' in line]
        (line,) = [json.loads(line) for line in lines if '"unsubscribe"' in line]
        told = {"by": "shop", "identity": IDENTITY, "channel": CHANNEL, "outcome": "ok", "connections": GUESTS}
        assert told.items() <= line.items()
        assert await built.nodes[1].metric("snorky_control_calls_total") == 1


async def test_guests_that_reconnect_at_once_are_closed_once(tmp_path: Path) -> None:
    async with house(tmp_path) as built:
        guests = await built.join(60, range(NODES))

        async def come_back(guest: Guest) -> Guest:
            await guest.task
            (again,) = await built.join(1, [(guest.node + 1) % NODES])
            return again

        coming = [asyncio.create_task(come_back(guest)) for guest in guests]
        reply = await built.order("disconnect", reconnect=True, by=1)
        assert (reply["missing"], reply["connections"]) == ([], 60)
        back = await asyncio.gather(*coming)
        assert {guest.close_code for guest in guests} == {4000}
        await asyncio.sleep(1.0)  # four reads of the orders by each node
        await built.all_hear(back)
        assert not any(guest.close_code for guest in back)


async def test_a_paused_node_is_named_and_obeys_when_it_is_back(tmp_path: Path) -> None:
    async with house(tmp_path) as built:
        ids = await built.ids()
        await built.join(60, range(NODES))
        built.nodes[2].freeze()
        reply = await built.order()
        assert (reply["missing"], reply["connections"]) == ([ids[2]], 40)
        reply = await built.order()  # a second one meanwhile
        assert (reply["missing"], reply["connections"]) == ([ids[2]], 0)
        assert not any(guest.notices for guest in built.on(2))
        built.nodes[2].thaw()
        await built.all_notified_once(built.guests)
        assert (await built.order())["missing"] == []


async def test_a_killed_node_is_named_until_it_is_cleaned_up_and_its_successor_obeys_only_new_orders(
    tmp_path: Path,
) -> None:
    async with house(tmp_path) as built:
        ids = await built.ids()
        await built.join(60, range(NODES))
        built.nodes[2].kill()
        reply = await built.order()
        assert (reply["missing"], reply["connections"]) == ([ids[2]], 40)
        await built.until(lambda: all(guest.close_code for guest in built.on(2)), "its guests see the end")
        await built.nodes[2].close()
        argv, env = built.nodes[2].argv, {"SNORKY_REDIS_URL": built.proxies[2].url}
        async with NodeProcess.running(env, argv=argv) as successor:
            built.nodes[2] = successor
            newcomers = await built.join(10, [2])
            await built.all_notified_once(built.on(0, 1))
            await built.all_hear(newcomers)
            assert not any(guest.notices for guest in newcomers)

            async def is_forgotten() -> bool:
                return (await built.order("disconnect", connection="x.1"))["missing"] == []

            await eventually(is_forgotten, within_s=20, what="the dead node is not expected any more")
            assert (await built.order())["connections"] == 50


async def test_nodes_whose_pubsub_connections_are_killed_obey_in_time(tmp_path: Path) -> None:
    async with house(tmp_path) as built:
        await built.join(60, range(NODES))
        async with built.redis.client() as redis:

            async def are_connected() -> bool:
                return len(await redis.client_list(_type="pubsub")) >= NODES

            for command, connections in (("disconnect", 0), ("unsubscribe", 60)):
                await eventually(are_connected, within_s=10, what="every node is subscribed in Redis")
                assert await redis.execute_command("CLIENT", "KILL", "TYPE", "pubsub") >= NODES
                reply = await built.order(command, **({} if connections else {"connection": "x.1"}))
                assert (reply["missing"], reply["connections"]) == ([], connections)
        await built.all_notified_once(built.guests)


async def test_nodes_whose_connections_to_redis_are_all_cut_obey(tmp_path: Path) -> None:
    async with house(tmp_path) as built:
        await built.join(60, range(NODES))
        for proxy in built.proxies[1:]:
            proxy.cut()
        reply = await built.order()
        late = 20 * len(reply["missing"])
        assert reply["connections"] == 60 - late
        await built.all_notified_once(built.guests)


async def test_a_node_with_half_open_connections_is_named_and_obeys_when_it_is_back(tmp_path: Path) -> None:
    async with house(tmp_path) as built:
        ids = await built.ids()
        await built.join(60, range(NODES))
        built.proxies[2].swallow()
        reply = await built.order()
        assert (reply["missing"], reply["connections"]) == ([ids[2]], 40)
        answer = await built.call("unsubscribe", by=2, identity=IDENTITY)
        assert answer["code"] == "unavailable", "the node that is cut off cannot give orders"
        built.proxies[2].heal()
        # it obeys before it notices that its connection for publications is half-open too
        await built.until(lambda: built.nodes[2].log.count(HEARD) == 2, "publications reach it again")
        await built.all_notified_once(built.guests)


async def test_a_node_that_drains_obeys_until_its_end(tmp_path: Path) -> None:
    async with house(tmp_path) as built:
        ids = await built.ids()
        await built.join(60, range(NODES))
        built.nodes[2].terminate()
        reply = await built.order()
        assert reply["missing"] == []
        open_ = [guest for guest in built.on(2) if not guest.close_code]
        await built.until(lambda: all(guest.notices or guest.close_code for guest in open_), "they are notified")
        assert reply["connections"] >= 40
        await built.all_notified_once(built.on(0, 1))
        assert await built.nodes[2].wait(20.0) == 0
        reply = await built.order()
        assert reply["missing"] == [] and ids[2] not in [each["node"] for each in reply["nodes"]]
