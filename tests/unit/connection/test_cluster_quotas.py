"""Quotas of stored bytes over all nodes, on a manual clock."""

import asyncio
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from snorky.gateway.config.settings import Limits
from snorky.gateway.connection import cluster_quotas, rate_limiter, storage_quotas
from snorky.gateway.connection.cluster_quotas import PER_IDENTITY, PER_IP, SLOT_S, STORED_S, ClusterQuotas
from snorky.gateway.connection.refusals import Refusals
from snorky.gateway.connection.storage_quotas import Charge, Quotas
from snorky.gateway.contracts.limits import LocalLimitStore, SharedUnits
from snorky.gateway.errors import BrokerUnavailable, LimitExceeded
from snorky.gateway.metrics import Metrics
from tests.unit.connection.test_rate_limiter import Clock

QUOTA = 32_000
NO_LIMIT = Limits(stored_bytes_per_identity=0, stored_bytes_per_ip=0)


@dataclass(eq=False)
class Client:
    identity: str | None = "ann"
    remote_ip: str = "192.0.2.1"


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    for module in (cluster_quotas, rate_limiter, storage_quotas):
        monkeypatch.setattr(module, "monotonic", clock)
    return clock


class Storing:
    """One node's quotas."""

    def __init__(self, units: SharedUnits, name: str, *, limits: Limits = NO_LIMIT, per_ip: int = 0) -> None:
        self.store = LocalLimitStore(units, name)
        self.metrics = Metrics()
        self.of_all = ClusterQuotas(self.store, per_identity=QUOTA, per_ip=per_ip)
        self.store.start(lambda limit, name, units: None)
        self.quotas = Quotas(limits, self.metrics, Refusals(self.metrics), self.of_all)

    async def connect(self, client: Client | None = None) -> Any:
        found: Any = client or Client()
        self.of_all.prepare(found)
        await settled()
        return found

    async def write(self, client: Any, size: int) -> Charge | None:
        """Count a write, again as soon as a portion may be here; None: it is refused."""
        for _ in range(3):
            try:
                return self.quotas.charge(client, size)
            except LimitExceeded as error:
                assert error.code == "rate_limited"
                wait_ms = error.retry_after_ms or 0
                await settled()
                if wait_ms > cluster_quotas.SOON_MS:
                    break
        return None


async def settled() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


async def written(node: Storing, client: Any, size: int) -> int:
    """Write as often as it is allowed; returns the bytes."""
    total = 0
    while total <= 2 * QUOTA and await node.write(client, size) is not None:
        total += size
    return total


async def test_all_nodes_together_store_no_more_than_the_quota(clock: Clock) -> None:
    units = SharedUnits()
    nodes = [Storing(units, name) for name in "abc"]
    clients = [await node.connect() for node in nodes]
    assert (await nodes[0].write(clients[0], 500)) is not None, "the first portion is there before the first write"
    totals = [await written(node, client, 500) for node, client in zip(nodes, clients, strict=True)]
    assert 0.8 * QUOTA <= sum(totals) + 500 <= QUOTA
    assert units.total(PER_IDENTITY, "ann") <= QUOTA
    assert (await nodes[1].write(await nodes[1].connect(Client("bob")), 500)) is not None
    labels = {"limit": PER_IDENTITY}
    assert nodes[2].metrics.registry.get_sample_value("snorky_limit_hits_total", labels)


async def test_spent_bytes_are_free_after_300_s(clock: Clock) -> None:
    node = Storing(SharedUnits(), "a")
    client = await node.connect()
    assert await written(node, client, 1000) >= 0.9 * QUOTA
    clock.now_s += STORED_S - 1.0
    node.of_all.give_back_old()
    assert await node.write(client, 1000) is None
    clock.now_s += SLOT_S + 1.0
    node.of_all.give_back_old()
    assert await written(node, client, 1000) >= 0.9 * QUOTA


async def test_what_was_not_stored_is_refunded(clock: Clock) -> None:
    node = Storing(SharedUnits(), "a")
    client = await node.connect()
    charge = await node.write(client, 20_000)
    assert charge is not None and await node.write(client, 20_000) is None
    charge.give_back()
    charge.give_back()
    assert await node.write(client, 20_000) is not None
    assert await node.write(client, 20_000) is None


async def test_a_write_that_one_node_refuses_counts_on_no_other(clock: Clock) -> None:
    units = SharedUnits()
    node = Storing(units, "a", limits=Limits(stored_bytes_per_identity=2000))
    client = await node.connect()
    assert await written(node, client, 1000) == 2000
    taken = node.of_all._taken[PER_IDENTITY, "ann"]
    assert sum(size for _, size in taken.spent) == 2000


async def test_a_message_larger_than_a_portion_is_stored(clock: Clock) -> None:
    node = Storing(SharedUnits(), "a")
    client = await node.connect()
    assert await node.write(client, QUOTA * 2) is not None, "a full quota admits it"
    assert await node.write(client, 1) is None


async def test_room_is_given_back_with_the_last_connection(clock: Clock) -> None:
    units = SharedUnits()
    node = Storing(units, "a")
    first, second = await node.connect(), await node.connect()
    await node.write(first, 10)
    node.of_all.forget(first)
    assert units.total(PER_IDENTITY, "ann") > 10
    node.of_all.forget(second)
    node.of_all.forget(second)
    assert units.total(PER_IDENTITY, "ann") == 10
    clock.now_s += STORED_S + SLOT_S
    node.of_all.give_back_old()
    assert units.total(PER_IDENTITY, "ann") == 0 and not node.of_all._taken


async def test_anonymous_clients_share_the_quota_of_their_address(clock: Clock) -> None:
    units = SharedUnits()
    node = Storing(units, "a", per_ip=QUOTA)
    first, second = await node.connect(Client(None, "2001:db8::1")), await node.connect(Client(None, "2001:db8::2"))
    assert await written(node, first, 1000) >= 0.9 * QUOTA
    assert await node.write(second, 1000) is None
    assert await node.write(await node.connect(Client(None, "192.0.2.9")), 1000) is not None
    assert units.total(PER_IP, "2001:db8::/64") <= QUOTA


async def test_a_client_that_logs_in_uses_its_identitys_quota(clock: Clock) -> None:
    units = SharedUnits()
    node = Storing(units, "a", per_ip=QUOTA)
    client = await node.connect(Client(None))
    client.identity = "ann"
    assert await node.write(client, 1000) is not None
    assert units.total(PER_IDENTITY, "ann") >= 1000
    assert units.total(PER_IP, "192.0.2.1") == 0, "the address has no other client here"


async def test_a_node_that_was_cut_off_stores_nothing(clock: Clock) -> None:
    units = SharedUnits()
    node = Storing(units, "a")
    client = await node.connect()
    units.is_failing = True
    with pytest.raises(BrokerUnavailable):
        node.quotas.charge(client, 10)
    units.is_failing = False
    assert await node.write(client, 10) is not None


async def test_what_other_nodes_took_meanwhile_cannot_be_spent(clock: Clock) -> None:
    node = Storing(SharedUnits(), "a")
    client = await node.connect()
    await node.write(client, 300)
    taken = node.of_all._taken[PER_IDENTITY, "ann"]
    room = taken.room
    assert node.of_all.on_lost(PER_IDENTITY, "ann", 100)
    assert (taken.room, taken.spent[0][1]) == (room, 200)
    assert node.of_all.on_lost(PER_IDENTITY, "ann", 200 + room - 50)
    assert (taken.room, list(taken.spent)) == (50, [])
    assert not node.of_all.on_lost("cluster_connections_per_identity", "ann", 1)


STEP = st.one_of(
    st.tuples(st.just("write"), st.integers(0, 2), st.sampled_from([1, 100, 900, 5000, 40_000])),
    st.tuples(st.just("connect"), st.integers(0, 2), st.just(0)),
    st.tuples(st.just("leave"), st.integers(0, 2), st.just(0)),
    st.tuples(st.just("die"), st.integers(0, 2), st.just(0)),
    st.tuples(st.just("wait"), st.just(0), st.sampled_from([1, 60, 299, 301])),
)


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=st.lists(STEP, max_size=40))
async def test_no_sequence_of_writes_exceeds_the_quota(clock: Clock, steps: list[tuple[str, int, int]]) -> None:
    units = SharedUnits()
    nodes = [Storing(units, f"n{number}") for number in range(3)]
    clients: list[list[Any]] = [[], [], []]
    writes: list[tuple[float, int, int]] = []  # time, node, bytes
    for what, number, value in steps:
        node = nodes[number]
        if what == "connect":
            clients[number].append(await node.connect())
        elif what == "leave" and clients[number]:
            node.of_all.forget(clients[number].pop())
        elif what == "write" and clients[number] and await node.write(clients[number][0], value) is not None:
            writes.append((clock.now_s, number, min(value, QUOTA)))
        elif what == "die":
            node.store.die()
            nodes[number], clients[number] = Storing(units, f"n{number}"), []
            writes = [write for write in writes if write[1] != number]
        elif what == "wait":
            clock.now_s += value
            for each in nodes:
                each.of_all.give_back_old()
        await settled()
        assert sum(size for at_s, _, size in writes if clock.now_s - at_s < STORED_S) <= QUOTA
        assert units.total(PER_IDENTITY, "ann") <= QUOTA
