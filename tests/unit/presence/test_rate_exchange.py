"""Rates over all nodes: three nodes on a manual clock, which exchange their demand as real ones do."""

from collections.abc import Callable, Sequence

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from snorky.gateway.config.limits import ClusterLimits
from snorky.gateway.connection import cluster_rates, rate_limiter
from snorky.gateway.connection.cluster_rates import ClusterRates
from snorky.gateway.connection.rate_limiter import Limiter, Rates
from snorky.gateway.contracts.limits import LocalLimitStore, SharedUnits
from snorky.gateway.presence import rate_exchange
from snorky.gateway.presence.rate_exchange import GAP_S, INTERVAL_S, RateExchange
from tests.unit.connection.test_rate_limiter import Clock

LIMIT = 100.0
STEP_S = 0.02
PERIOD_S = 30.0
SETTINGS = ClusterLimits(messages_per_s_per_identity=LIMIT)
NO_LIMIT = Rates(1e9, 1e9, 1e12, 1e12)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    for module in (rate_limiter, cluster_rates, rate_exchange):
        monkeypatch.setattr(module, "monotonic", clock)
    return clock


class SimulatedNode:
    """A node with connections of one identity. granted: messages it accepted."""

    def __init__(self, clock: Clock, units: SharedUnits, name: str, connections: int = 1) -> None:
        self.granted = 0
        self.waits: list[int] = []
        self._clock = clock
        self._owed = 0.0
        self._exchanged_s = clock.now_s
        self._is_low = False
        self.store = LocalLimitStore(units, name)
        self.store.start(lambda _limit, _name, _units: None)
        self.rates = ClusterRates(SETTINGS, bytes_min=65_536)
        self.exchange = RateExchange(self.rates, self.store)
        self.rates.on_low = self._on_low
        self.rates.count_nodes = lambda: self.store.nodes
        self._connections = connections
        self.limiters: list[Limiter] = []

    def connect(self) -> None:
        for _ in range(self._connections):
            share = self.rates.share_of("ann")
            assert share is not None
            self.limiters.append(Limiter(NO_LIMIT, 10, [share], identity="ann"))

    def _on_low(self) -> None:
        self._is_low = True

    async def step(self, per_s: float) -> None:
        """Let the clients send for one step, in turn, and exchange if it is due."""
        self._owed += per_s * STEP_S
        while self._owed >= 1.0:
            self._owed -= 1.0
            limiter = self.limiters[0]
            self.limiters.append(self.limiters.pop(0))
            wait_ms = limiter.take(100)
            self.granted += not wait_ms
            if wait_ms:
                self.waits.append(wait_ms)
        since_s = self._clock.now_s - self._exchanged_s
        if since_s >= INTERVAL_S + GAP_S or (self._is_low and since_s >= GAP_S):
            self._is_low, self._exchanged_s = False, self._clock.now_s
            await self.exchange.exchange()


Demand = Callable[[int, float], float]  # node, time -> messages per second


async def run(clock: Clock, demand: Demand, *, nodes: int = 3, connections: int = 1) -> Sequence[SimulatedNode]:
    """Run for 30 s."""
    units = SharedUnits()
    made = [SimulatedNode(clock, units, f"n{number}", connections) for number in range(nodes)]
    for node in made:
        node.connect()
    for step in range(int(PERIOD_S / STEP_S)):
        clock.now_s += STEP_S
        for number, node in enumerate(made):
            await node.step(demand(number, step * STEP_S))
    return made


def total(nodes: Sequence[SimulatedNode]) -> float:
    """Return the messages that all nodes accepted, as a fraction of the limit."""
    return sum(node.granted for node in nodes) / (LIMIT * PERIOD_S)


@pytest.mark.parametrize("nodes", [1, 2, 3, 10])
@pytest.mark.parametrize("connections", [1, 5])
async def test_a_constant_demand_above_the_limit_gets_the_limit(clock: Clock, nodes: int, connections: int) -> None:
    ran = await run(clock, lambda _number, _at_s: 300.0, nodes=nodes, connections=connections)
    assert 0.9 <= total(ran) <= 1.1


async def test_a_node_gets_what_it_asks_for(clock: Clock) -> None:
    ran = await run(clock, lambda number, _at_s: (300.0, 30.0, 0.0)[number])
    assert 0.9 <= total(ran) <= 1.1
    assert ran[0].granted > 2 * ran[1].granted > 0
    assert ran[1].granted >= 0.6 * 30 * PERIOD_S / 1.3, "a greedy node leaves the other one its part"


async def test_demand_below_the_limit_is_not_refused(clock: Clock) -> None:
    ran = await run(clock, lambda number, _at_s: (50.0, 20.0, 10.0)[number])
    assert total(ran) >= 0.79
    assert sum(len(node.waits) for node in ran) <= 20


async def test_demand_that_moves_from_node_to_node_is_not_granted_anew(clock: Clock) -> None:
    ran = await run(clock, lambda number, at_s: 300.0 if int(at_s / 3) % 3 == number else 0.0)
    assert 0.7 <= total(ran) <= 1.1


async def test_without_redis_each_node_has_an_equal_part(clock: Clock) -> None:
    units = SharedUnits()
    made = [SimulatedNode(clock, units, f"n{number}") for number in range(3)]
    for node in made:
        node.connect()
    units.is_failing = True
    for _ in range(int(PERIOD_S / STEP_S)):
        clock.now_s += STEP_S
        for node in made:
            await node.step(300.0)
    assert 0.9 <= total(made) <= 1.1
    assert max(node.granted for node in made) <= 1.1 * min(node.granted for node in made)


async def test_without_redis_a_name_returns_to_an_equal_part(clock: Clock) -> None:
    units = SharedUnits()
    a, b = (SimulatedNode(clock, units, f"n{number}") for number in range(2))
    for node in (a, b):
        node.connect()
    for step in range(int(10 / STEP_S)):
        clock.now_s += STEP_S
        units.is_failing = step * STEP_S >= 5
        before = a.granted
        await a.step(300.0)
    bucket = a.rates.bucket("messages_per_s_per_identity", "ann", LIMIT)
    assert bucket.burst == LIMIT / 2 and a.granted - before <= 2
    units.is_failing = False
    for _ in range(int(3 / STEP_S)):
        clock.now_s += STEP_S
        await a.step(300.0)
    assert bucket.burst == LIMIT, "no other node asks for it"


async def test_a_client_is_told_a_wait_that_suffices(clock: Clock) -> None:
    ran = await run(clock, lambda number, _at_s: (1000.0, 1.0, 1.0)[number])
    assert all(node.granted > 0 for node in ran)


async def test_many_names_are_not_all_reported(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rate_exchange, "NAMES_MAX", 3)
    units = SharedUnits()
    LocalLimitStore(units, "other").start(lambda _limit, _name, _units: None)
    node = SimulatedNode(clock, units, "a")
    buckets = [node.rates.bucket("messages_per_s_per_identity", f"user {number}", LIMIT) for number in range(10)]
    clock.now_s += 1.0
    for number, bucket in enumerate(buckets):
        bucket.tokens -= 5.0 * number
        bucket.refill(clock.now_s)
    clock.now_s += 1.0
    await node.exchange.exchange()
    assert [name for _, name in units.demands["a"]] == ["user 9", "user 8", "user 7"]
    assert len(node.rates.active) == 9
    clock.now_s += 60.0
    await node.exchange.exchange()
    await node.exchange.exchange()
    assert not node.rates.active and not units.demands["a"], "what is not asked for any more is forgotten"


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(*[st.sampled_from([0.0, 3.0, 30.0, 90.0, 300.0, 3000.0])] * 3), min_size=1, max_size=6))
async def test_no_pattern_of_demand_exceeds_the_limit(clock: Clock, phases: list[tuple[float, float, float]]) -> None:
    def demand(number: int, at_s: float) -> float:
        return phases[int(at_s / PERIOD_S * len(phases))][number]

    assert total(await run(clock, demand)) <= 1.1
