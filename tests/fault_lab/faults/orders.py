"""Orders of the backend to all nodes while one of them stalls, dies, or loses its subscriptions in Redis."""

import asyncio

from tests.fault_lab.guests import Guests
from tests.fault_lab.trial import Fault, Trial
from tests.fault_lab.visitors import pick

__all__ = ["ORDER_FAULTS"]

REPLY_WITHIN_S = 2.0  # the documented second, and the way of the reply on a busy machine
BACK_WITHIN_S = 3.0
REPEATS_S = 1.5  # in which an order that is carried out again would end subscriptions again


async def stalled(trial: Trial) -> None:
    """SIGSTOP one node: the reply names it, and it obeys once it runs again."""
    guests, index = await Guests.of(trial.lab), pick(trial.lab)
    others = [node for node in range(len(trial.lab.nodes)) if node != index]
    try:
        trial.lab.nodes[index].freeze()
        try:
            reply, took_s = await guests.unsubscribe(trial.lab.nodes[others[0]])
            _expect(trial, guests, reply, took_s, others)
            trial.expect(len(reply["missing"]) == 1, f"named as missing: {reply['missing']}")
            trial.expect(guests.times_ended(index) == {0}, "the stalled node obeyed")
        finally:
            trial.lab.nodes[index].thaw()
        trial.ended()
        took_s = await guests.until_ended(*others, index, within_s=BACK_WITHIN_S + 5)
        trial.expect_within(took_s, BACK_WITHIN_S, "obeyed after it was back")
        await _expect_once(trial, guests, [*others, index])
    finally:
        await guests.dismiss()


async def killed(trial: Trial) -> None:
    """SIGKILL one node: the reply names it, and its successor does not obey an order from before its start."""
    lab = trial.lab
    guests, index = await Guests.of(lab), pick(lab)
    trial.expected_lefts.update(member.identity for member in lab.crowd.residents if member.identity)
    others = [node for node in range(len(lab.nodes)) if node != index]
    try:
        lab.nodes[index].kill()
        reply, took_s = await guests.unsubscribe(lab.nodes[others[0]])
        _expect(trial, guests, reply, took_s, others)
        trial.expect(len(reply["missing"]) == 1, f"named as missing: {reply['missing']}")
        trial.ended()
        await guests.until_ended(*others, within_s=BACK_WITHIN_S)
        await _expect_once(trial, guests, others)
    finally:
        await guests.dismiss()
        await lab.restart_node(index)


async def subscribing(trial: Trial) -> None:
    """SIGSTOP one node during an order to subscribe: the reply names it, and it subscribes its clients once it runs."""
    guests, index = await Guests.of(trial.lab), pick(trial.lab)
    others = [node for node in range(len(trial.lab.nodes)) if node != index]
    try:
        trial.lab.nodes[index].freeze()
        try:
            reply, took_s = await guests.subscribe(trial.lab.nodes[others[0]])
            _expect(trial, guests, reply, took_s, others)
            trial.expect(len(reply["missing"]) == 1, f"named as missing: {reply['missing']}")
            trial.expect(guests.times_begun(index) == {0}, "the stalled node obeyed")
        finally:
            trial.lab.nodes[index].thaw()
        trial.ended()
        took_s = await guests.until_begun(*others, index, within_s=BACK_WITHIN_S + 5)
        trial.expect_within(took_s, BACK_WITHIN_S, "obeyed after it was back")
        await guests.subscribe(trial.lab.nodes[others[0]])
        await asyncio.sleep(REPEATS_S)
        times = guests.times_begun(*others, index)
        trial.expect(times == {1}, f"subscribed {sorted(times)} times")
    finally:
        await guests.dismiss()


async def without_pubsub(trial: Trial) -> None:
    """CLIENT KILL TYPE pubsub just before the order: it reaches all nodes as before."""
    assert trial.lab.redis is not None
    guests = await Guests.of(trial.lab)
    nodes = list(range(len(trial.lab.nodes)))
    try:
        async with trial.lab.redis.client() as redis:
            await redis.execute_command("CLIENT", "KILL", "TYPE", "pubsub")
        reply, took_s = await guests.unsubscribe(trial.lab.nodes[0])
        trial.ended()
        _expect(trial, guests, reply, took_s, nodes)
        trial.expect(reply["missing"] == [], f"named as missing: {reply['missing']}")
        await guests.until_ended(*nodes, within_s=BACK_WITHIN_S)
        await _expect_once(trial, guests, nodes)
    finally:
        await guests.dismiss()


def _expect(trial: Trial, guests: Guests, reply: dict[str, object], took_s: float, nodes: list[int]) -> None:
    reached = sum(len(guests.by_node[node]) for node in nodes)
    trial.expect_within(took_s, REPLY_WITHIN_S, f"reply of {len(nodes)} nodes, {reached} connections")
    trial.expect(reply["connections"] == reached, f"{reply['connections']} connections reached")


async def _expect_once(trial: Trial, guests: Guests, nodes: list[int]) -> None:
    await asyncio.sleep(REPEATS_S)
    times = guests.times_ended(*nodes)
    trial.expect(times == {1}, f"subscriptions ended {sorted(times)} times")


ORDER_FAULTS = (
    Fault(
        key="order-stalled",
        name="order to a stalled node",
        users_see="unsubscribed, once it is back",
        inject=stalled,
    ),
    Fault(
        key="order-killed",
        name="order to a killed node",
        users_see="unsubscribed, or reconnect",
        inject=killed,
        disconnects=True,
        is_random=False,
    ),
    Fault(
        key="order-subscribe",
        name="order to subscribe, a node stalled",
        users_see="subscribed, once it is back",
        inject=subscribing,
    ),
    Fault(
        key="order-pubsub",
        name="order without pub/sub",
        users_see="unsubscribed",
        inject=without_pubsub,
    ),
)
