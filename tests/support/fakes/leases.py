"""A node of which only the lease exists, which reports its state.

async with reporting(target, "a", lambda: {"connections": 3}) as lease: ...
"""

from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager

from snorky.gateway.metrics import Metrics
from snorky.gateway.redis import RedisTarget, Timings
from snorky.gateway.redis.backend import parts_of
from snorky.gateway.redis.connection.scripts import Scripts
from snorky.gateway.redis.directory.lease import Lease
from snorky.gateway.redis.directory.node_states import NodeState

__all__ = ["reporting"]


@asynccontextmanager
async def reporting(
    target: RedisTarget,
    node_id: str,
    state: Callable[[], Mapping[str, object]],
    *,
    prefix: str = "test",
    renew_s: float = 0.05,
    on_nodes: Callable[[Sequence[NodeState]], None] | None = None,
) -> AsyncIterator[Lease]:
    """Renew a lease during the context, with a state."""
    commands = parts_of(target, prefix=prefix, node_id=node_id, metrics=Metrics()).commands("lease", 2.0)
    lease = Lease(Scripts(commands), prefix=prefix, node_id=node_id, timings=Timings(renew_s=renew_s))
    commands.on_up = lease.renew_now
    commands.start()
    lease.start()
    lease.report.begin(state, on_nodes=on_nodes)
    try:
        yield lease
    finally:
        await lease.stop(is_clean=True)
        await commands.stop()
