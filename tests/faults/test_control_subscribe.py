"""Orders to subscribe while a node is paused, killed, cut off or drained: carried out once, by all, and restored."""

import asyncio
from pathlib import Path
from typing import Final

import pytest

from tests.support.processes.nodes import NodeProcess
from tests.support.scenarios.order_house import CHANNEL, NODES, Guest, House, house

pytestmark = pytest.mark.needs("redis-server")

GUESTS: Final = 1_000  # connections of one identity, over all nodes
RUNS: Final = 3
BACK_WITHIN_S: Final = 5.0
BEGUN: Final = {"type": "subscribed", "channel": CHANNEL, "position": None, "recovered": False, "messages": []}


async def all_begun_once(built: House, guests: list[Guest]) -> None:
    """Wait until guests are subscribed; check that each was subscribed once and received each message once."""
    await built.until(lambda: all(guest.begun for guest in guests), "guests are subscribed", BACK_WITHIN_S)
    await asyncio.sleep(1.0)  # four reads of the orders by each node
    await built.all_hear(guests)
    assert [guest.begun for guest in guests] == [[BEGUN]] * len(guests)
    assert all(guest.heard == guests[0].heard for guest in guests)


@pytest.mark.alone
async def test_a_thousand_connections_are_subscribed_unsubscribed_and_disconnected_within_a_second(
    tmp_path: Path,
) -> None:
    async with house(tmp_path) as built:
        await built.ids()
        for run in range(RUNS):
            guests = await built.join(GUESTS, range(NODES), subscribes=False)
            figures = []
            for command, by in (("subscribe", 0), ("unsubscribe", 1), ("disconnect", 2)):
                reply = await built.order(command, by=by, **({} if command == "disconnect" else {"channel": CHANNEL}))
                assert (reply["missing"], reply["connections"]) == ([], GUESTS), command
                figures.append(f"{command} {built.took_s:.3f} s")
                if command == "subscribe":
                    await built.all_hear(guests)
                elif command == "unsubscribe":
                    await built.until(lambda guests=guests: all(guest.notices for guest in guests), "notified")
            await built.until(lambda guests=guests: all(guest.close_code == 4500 for guest in guests), "closed")
            assert [guest.begun for guest in guests] == [[BEGUN]] * GUESTS
            print(f"run {run + 1}: {GUESTS} connections on {NODES} nodes: {', '.join(figures)}")
            built.guests.clear()


async def test_a_paused_node_is_named_and_subscribes_its_guests_when_it_is_back(tmp_path: Path) -> None:
    async with house(tmp_path) as built:
        ids = await built.ids()
        await built.join(60, range(NODES), subscribes=False)
        built.nodes[2].freeze()
        reply = await built.order("subscribe", channel=CHANNEL)
        assert (reply["missing"], reply["connections"]) == ([ids[2]], 40)
        assert not any(guest.begun for guest in built.on(2))
        built.nodes[2].thaw()
        await all_begun_once(built, built.guests)
        reply = await built.order("subscribe", channel=CHANNEL)
        assert (reply["missing"], reply["connections"]) == ([], 60)
        assert [guest.begun for guest in built.guests] == [[BEGUN]] * 60, "those who are subscribed are not notified"


async def test_a_paused_node_carries_out_orders_in_their_order(tmp_path: Path) -> None:
    async with house(tmp_path) as built:
        await built.join(60, range(NODES), subscribes=False)
        built.nodes[2].freeze()
        await built.order("subscribe", channel=CHANNEL)
        await built.order("unsubscribe", channel=CHANNEL)
        built.nodes[2].thaw()
        await built.until(lambda: all(guest.notices for guest in built.on(0, 1)), "guests are unsubscribed")
        await asyncio.sleep(1.0)
        newcomers = await built.join(3, range(NODES))
        await built.all_hear(newcomers)
        assert not any(guest.heard for guest in built.guests[:60])


async def test_connections_to_the_successor_of_a_killed_node_are_subscribed(tmp_path: Path) -> None:
    async with house(tmp_path) as built:
        ids = await built.ids()
        await built.join(60, range(NODES), subscribes=False)
        built.nodes[2].kill()
        reply = await built.order("subscribe", channel=CHANNEL)
        assert (reply["missing"], reply["connections"]) == ([ids[2]], 40)
        await built.until(lambda: all(guest.close_code for guest in built.on(2)), "its guests see the end")
        await built.nodes[2].close()
        argv, env = built.nodes[2].argv, {"SNORKY_REDIS_URL": built.proxies[2].url}
        async with NodeProcess.running(env, argv=argv) as successor:
            built.nodes[2] = successor
            newcomers = await built.join(20, [2], subscribes=False)
            await all_begun_once(built, [*built.on(0, 1), *newcomers])
            await built.order("unsubscribe", channel=CHANNEL)
            strangers = await built.join(20, [1, 2], subscribes=False)
            await asyncio.sleep(1.0)
            assert not any(guest.begun for guest in strangers)


async def test_nodes_whose_pubsub_connections_are_killed_subscribe_in_the_end(tmp_path: Path) -> None:
    async with house(tmp_path) as built:
        await built.join(60, range(NODES), subscribes=False)
        async with built.redis.client() as redis:
            assert await redis.execute_command("CLIENT", "KILL", "TYPE", "pubsub") >= NODES
            await built.order("subscribe", channel=CHANNEL)
        await all_begun_once(built, built.guests)


async def test_nodes_whose_connections_to_redis_are_all_cut_subscribe_in_the_end(tmp_path: Path) -> None:
    async with house(tmp_path) as built:
        await built.join(60, range(NODES), subscribes=False)
        for proxy in built.proxies[1:]:
            proxy.cut()
        await built.order("subscribe", channel=CHANNEL)
        await all_begun_once(built, built.guests)


async def test_a_node_with_half_open_connections_subscribes_when_it_is_back(tmp_path: Path) -> None:
    async with house(tmp_path) as built:
        ids = await built.ids()
        await built.join(60, range(NODES), subscribes=False)
        built.proxies[2].swallow()
        reply = await built.order("subscribe", channel=CHANNEL)
        assert (reply["missing"], reply["connections"]) == ([ids[2]], 40)
        late = await built.join(5, [0], subscribes=False)
        await built.until(lambda: all(guest.begun for guest in late), "newcomers are subscribed")
        built.proxies[2].heal()
        await all_begun_once(built, built.guests)


async def test_guests_of_a_node_that_drains_are_subscribed_where_they_go(tmp_path: Path) -> None:
    async with house(tmp_path) as built:
        await built.ids()
        await built.join(60, range(NODES), subscribes=False)
        built.nodes[2].terminate()
        reply = await built.order("subscribe", channel=CHANNEL)
        assert reply["missing"] == [] and reply["connections"] >= 40
        await built.until(lambda: all(guest.close_code for guest in built.on(2)), "its guests see the end", 10.0)
        moved = await built.join(20, [0, 1], subscribes=False)
        await all_begun_once(built, [*built.on(0, 1), *moved])
