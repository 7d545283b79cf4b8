"""Lab: nodes, a Redis behind a proxy that can be cut, a balancer, clients and load. Faults are injected from here.

    async with running_lab(plan, directory) as lab: ... lab.nodes[0].kill(); await lab.whole(within_s=15)

The nodes reach Redis through the proxy, the publisher directly: it continues while nodes receive nothing.
"""

import asyncio
import random
import sys
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

from snorky.gateway.protocol.publication import Position
from tests.fault_lab.checker import Verdict, judge
from tests.fault_lab.clock import Clock
from tests.fault_lab.crowd import Crowd
from tests.fault_lab.journal import Acked
from tests.fault_lab.load import Load
from tests.fault_lab.plan import API_KEY, PREFIX, Plan, node_config
from tests.fault_lab.publisher import Order
from tests.fault_lab.source import RedisSource
from tests.support.processes.balancer import Backend, Balancer, running_nginx
from tests.support.processes.nodes import GATEWAY, NodeProcess
from tests.support.processes.proxy import FaultProxy
from tests.support.processes.tools import eventually, free_port
from tests.support.servers.clusters import ClusterLab
from tests.support.servers.redis_servers import RedisServer
from tests.support.servers.sentinels import SentinelLab

__all__ = ["TOPOLOGIES", "Lab", "running_lab"]

TOPOLOGIES: dict[str, Callable[[Path], SentinelLab | ClusterLab]] = {
    "sentinel": lambda directory: SentinelLab("redis", directory),
    "cluster": lambda directory: ClusterLab("redis", directory, replicas=1),
}
LOG_LINES = 30
START_WITHIN_S = 30.0
PAUSE_WITHIN_S = 20.0
FENCE_WITHIN_S = 10.0

PATHS = ("auto", "off", "send")  # of the nodes, in turn: every row runs with the extension module and without


class Lab:
    """A deployment under load. Made by `running_lab`. redis: the only server, if there is only one."""

    def __init__(self, plan: Plan, directory: Path, *, nodes_url: str, publisher_url: str) -> None:
        self.plan = plan
        self.directory = directory
        self.rng = random.Random(plan.seed)
        self.redis: RedisServer | None = None
        self.redis_clock: Clock | None = None
        self.proxy: FaultProxy | None = None
        self.balancer: Balancer | None = None
        self.topology: SentinelLab | ClusterLab | None = None  # for a Redis with several servers
        self.nodes: list[NodeProcess] = []
        self.crowd: Crowd
        self.load: Load
        self._nodes_url = nodes_url
        self._publisher_url = publisher_url
        self._config = node_config(directory, plan)
        self.clocks = [Clock(directory, f"node-{index}") for index in range(plan.nodes)]
        self._ports = [(free_port(), free_port()) for _ in range(plan.nodes)]

    # -- nodes -------------------------------------------------------------------------------------------------

    def make_node(self, index: int) -> NodeProcess:
        """Start the node with that number, always on the same ports."""
        public, private = self._ports[index]
        env = {
            **self.clocks[index].env,
            "SNORKY_REDIS_URL": self._nodes_url,
            "SNORKY_PUBLIC__PORT": str(public),
            "SNORKY_PRIVATE__PORT": str(private),
            "SNORKY_PUBLIC__NATIVE_FANOUT": PATHS[index % len(PATHS)],
        }
        return NodeProcess(env, argv=(*GATEWAY, "serve", "--config", str(self._config), "--log-level", "warning"))

    async def restart_node(self, index: int) -> None:
        """Restart a node that has ended."""
        await self.nodes[index].close()
        self.nodes[index] = self.make_node(index)
        await self.nodes[index].wait_ready(START_WITHIN_S)

    def url(self) -> str:
        """URL for a client's next attempt: the balancer, or any running node."""
        if self.balancer is not None:
            return self.balancer.websocket_url
        return self.rng.choice([node for node in self.nodes if node.is_running] or self.nodes).websocket_url

    async def are_ready(self) -> bool:
        """Return whether every node reports that it is ready."""
        answers = await asyncio.gather(*(node.status("/readyz", timeout_s=1.0) for node in self.nodes))
        return set(answers) == {200}

    async def metric(self, name: str) -> float:
        """Sum a metric over all nodes."""
        return sum(await asyncio.gather(*(node.metric(name) for node in self.nodes)))

    def write_logs(self, name: str) -> None:
        """Print the stderr of all processes: a row has failed."""
        processes = [*self.nodes, *([self.balancer.process] if self.balancer is not None else [])]
        for process in processes:
            lines = process.log.splitlines()[-LOG_LINES:]
            print(f"-- {name}: {process.argv[0]} {process.pid}", *lines, sep="\n", file=sys.stderr, flush=True)

    # -- judgement ---------------------------------------------------------------------------------------------

    async def whole(self, within_s: float) -> None:
        """Wait until all nodes are ready and all clients subscribed. Raises AssertionError."""
        await eventually(self.are_ready, within_s=within_s, what="all nodes are ready")
        await self.crowd.subscribed(within_s=within_s)

    async def more(self, count: int, within_s: float = 30.0) -> None:
        """Wait until this many more numbers were acknowledged on every channel."""
        wanted = {channel: self.load.latest.get(channel, -1) + count for channel in self.plan.channel_names}

        async def are_there() -> bool:
            return all(self.load.latest.get(channel, -1) >= number for channel, number in wanted.items())

        await eventually(are_there, within_s=within_s, what=f"{count} numbers more on every channel")

    def mark(self) -> None:
        """Start a new stretch; the load must be paused."""
        self.load.take()
        self.crowd.mark()

    async def settle(self) -> bool:
        """Pause the load and wait until all clients have its last message; False if they do not get it."""
        fences = await self.load.pause(PAUSE_WITHIN_S)
        return await self.crowd.reached(fences, FENCE_WITHIN_S)

    async def judge(self, *, allows_repeats: bool = False, may_vanish: bool = False) -> tuple[Verdict, list[Acked]]:
        """Check the stretch since the last mark; the load must have settled. may_vanish: Redis may have lost some."""
        acked, uncertain = self.load.take()
        vanished = await self._vanished(acked) if may_vanish and self.plan.history else set()
        verdict = judge(
            acked,
            uncertain,
            self.crowd.journals,
            keeps_history=bool(self.plan.history),
            allows_repeats=allows_repeats,
            vanished=vanished,
        )
        return verdict, acked

    async def _vanished(self, acked: Sequence[Acked]) -> set[Position]:
        """Find positions that were acknowledged or delivered and are in no history."""
        told = {(one.channel, one.position) for one in acked if one.position is not None}
        for journal in self.crowd.journals:
            told |= {(journal.channel, one.position) for one in journal.received() if one.position is not None}
        source = RedisSource(self._publisher_url, keeps_history=True)
        stored: set[tuple[str, str]] = set()
        try:
            for channel in self.plan.channel_names:
                name = f"{PREFIX}:{{pubsub:{channel}}}:history"
                for _, entry in await source.client.xrange(name):
                    stored.add((channel, entry[b"t"].decode()))
        finally:
            await source.close()
        return {position for channel, position in told if (channel, position.tag) not in stored}


@asynccontextmanager
async def running_lab(plan: Plan, directory: Path, topology: str = "single") -> AsyncIterator[Lab]:
    """Run a lab until the block ends; it starts healthy, with its load paused."""
    async with AsyncExitStack() as stack:
        if topology != "single":
            servers = TOPOLOGIES[topology](directory)
            await stack.enter_async_context(servers)
            lab = Lab(plan, directory, nodes_url=servers.url, publisher_url=servers.url)
            lab.topology = servers
            yield await _populate(lab, stack)
            return
        clock = Clock(directory, "redis")
        redis = await stack.enter_async_context(RedisServer("redis", directory, env=clock.env))
        proxy = await stack.enter_async_context(FaultProxy("127.0.0.1", redis.port))
        lab = Lab(plan, directory, nodes_url=proxy.url, publisher_url=redis.url)
        lab.redis, lab.proxy, lab.redis_clock = redis, proxy, clock
        yield await _populate(lab, stack)


async def _populate(lab: Lab, stack: AsyncExitStack) -> Lab:
    plan = lab.plan
    lab.nodes = [lab.make_node(index) for index in range(plan.nodes)]
    stack.push_async_callback(_close_nodes, lab)
    await asyncio.gather(*(node.wait_ready(START_WITHIN_S) for node in lab.nodes))
    await eventually(lab.are_ready, within_s=START_WITHIN_S, what="all nodes are ready")
    if plan.has_balancer:
        backends = [Backend(node.public_port, node.private_port) for node in lab.nodes]
        lab.balancer = await stack.enter_async_context(running_nginx(lab.directory, backends))
    is_recovering = bool(plan.history)
    crowd = Crowd(lab.url, plan.channel_names, seed=plan.seed, is_recovering=is_recovering)
    lab.crowd = await stack.enter_async_context(crowd)
    crowd.add(plan.residents, channels_each=plan.channels_each, name="resident", identities=True)
    crowd.add(plan.clients - plan.residents, channels_each=plan.channels_each)
    await crowd.subscribed(within_s=START_WITHIN_S)
    order = Order(
        redis_url=lab._publisher_url,
        prefix=PREFIX,
        backends=[f"http://127.0.0.1:{private}/backend" for _, private in lab._ports],
        api_key=API_KEY,
        channels=plan.channel_names,
        rate_per_s=plan.rate_per_s,
        keeps_history=is_recovering,
        seed=plan.seed,
    )
    lab.load = await stack.enter_async_context(Load(order))
    await lab.settle()
    return lab


async def _close_nodes(lab: Lab) -> None:
    for node in lab.nodes:
        await node.close()
