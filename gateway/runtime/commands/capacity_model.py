"""How many nodes and Redis servers a load needs, computed from measured costs.

A node is one process, which uses one core. A publication goes from Redis to each node that has a subscriber of its
channel, and from there to each of these subscribers. Channels are alike, and their subscribers are spread evenly over
the nodes. docs/capacity.md explains the model and compares it with measured loads.
"""

from collections.abc import Callable
from dataclasses import dataclass
from math import ceil
from typing import Final

__all__ = ["Figures", "Load", "Plan", "node_cpu", "plan"]

BUSY: Final = 0.6  # of whatever a server has: the rest is for peaks, and for the clients of a server that died
CONNECTIONS_MAX: Final = 50_000  # the default of [limits] connections
NODES_MAX: Final = 1_000_000
NODE_BYTES: Final = 96 << 20  # a node without clients
FRAME_BYTES: Final = 60  # envelope, channel and position of a publication, and the WebSocket frame's head
PACKET_BYTES: Final = 66  # the heads of Ethernet, IP and TCP with timestamps
PUBSUB_BYTES: Final = 90  # of a message from Redis to a node, without the payload
IDLE_COMMANDS_PER_S: Final = 3.0  # of a node, whatever its load
COMMAND_US: Final = 3.0  # of Redis, for one of these


@dataclass(frozen=True, slots=True)
class Figures:
    """Measured costs; `make bench ARGS="--only capacity --json"` prints those of another machine.

    The names end in the unit: _us are microseconds of one core. idle_cpu: of one core, whatever the load.
    """

    idle_cpu: float = 0.017
    delivery_us: float = 5.08  # a node's, for each subscriber, one publication in a read
    joined_delivery_us: float = 0.585  # the same while a core is busy: ten publications in a read
    publication_us: float = 12.5  # a node's, for each publication that it receives
    connect_us: float = 676.0  # a node's: handshake and a subscription
    publish_redis_us: float = 1.01  # Redis', for each publication
    receiver_redis_us: float = 0.361  # Redis', for each node that receives it
    kept_node_us: float = 13.0  # of the node that publishes, in addition, if the channel has a history
    kept_redis_us: float = 11.0  # Redis', in addition
    connection_bytes: float = 1_910.0
    subscription_bytes: float = 979.0  # to a channel that has other subscribers on the node
    channel_bytes: float = 1_000.0  # of a node, for its first subscriber of a channel


@dataclass(frozen=True, slots=True)
class Load:
    """What clients and publishers do.

    fanout: subscribers of a channel. kept: the part of the publications that a history keeps.
    """

    connections: float
    channels: float
    publishes_per_s: float
    fanout: float
    payload_bytes: float = 100.0
    kept: float = 0.0
    connects_per_s: float = 0.0

    @property
    def deliveries_per_s(self) -> float:
        """Messages to clients."""
        return self.publishes_per_s * self.fanout


@dataclass(frozen=True, slots=True)
class Plan:
    """The servers for a load.

    nodes_by: the least number of nodes by what each must have enough of. node_cpu: of one core; joined_cpu: while the
    node joins messages. receivers: the nodes that receive a publication. redis_cpu: of one core, all servers together.
    _bps: bits per second.
    """

    nodes: int
    nodes_by: dict[str, int]
    node_cpu: float
    joined_cpu: float
    node_bytes: float
    receivers: float
    redis: int
    redis_cpu: float
    redis_bps: float
    client_bps: float


def node_cpu(load: Load, figures: Figures, nodes: int) -> float:
    """Return how busy each node's core is; 1 is full.

    A node that falls behind reads several publications at once and joins what it writes. So its core is full long
    before it can do no more. Above 1 it is overloaded even so.
    """
    busy = _cpu(load, figures, nodes, figures.delivery_us)
    return busy if busy < 1 else max(1.0, _cpu(load, figures, nodes, figures.joined_delivery_us))


def plan(
    load: Load, figures: Figures, *, memory_bytes: float, interface_bps: float, connections_max: int = CONNECTIONS_MAX
) -> Plan:
    """Compute the servers that a load needs.

    memory_bytes: for each node. interface_bps: of each machine of Redis, and for each node. Raises ValueError: no
    number of nodes can carry the load; the text names what each lacks.
    """
    enough: dict[str, Callable[[int], bool]] = {
        "CPU": lambda nodes: _cpu(load, figures, nodes, figures.joined_delivery_us) <= BUSY,
        "memory": lambda nodes: node_memory(load, figures, nodes) <= BUSY * memory_bytes,
        "connections": lambda nodes: load.connections / nodes <= BUSY * connections_max,
        "network": lambda nodes: client_bps(load) / nodes <= BUSY * interface_bps,
    }
    nodes_by = {}
    for what, is_enough in enough.items():
        if not is_enough(NODES_MAX):
            raise ValueError(f"no number of nodes is enough: each would still lack {what}")
        nodes_by[what] = _least(is_enough)
    nodes = max(nodes_by.values())
    receivers = nodes * _part(load, nodes)
    published_us = figures.publish_redis_us + receivers * figures.receiver_redis_us + load.kept * figures.kept_redis_us
    redis_cpu = (load.publishes_per_s * published_us + nodes * IDLE_COMMANDS_PER_S * COMMAND_US) / 1e6
    redis_bps = 8 * load.publishes_per_s * receivers * (load.payload_bytes + PUBSUB_BYTES)
    redis = max(_whole(redis_cpu / BUSY), _whole(redis_bps / (BUSY * interface_bps)))
    return Plan(
        nodes=nodes,
        nodes_by=nodes_by,
        node_cpu=node_cpu(load, figures, nodes),
        joined_cpu=_cpu(load, figures, nodes, figures.joined_delivery_us),
        node_bytes=node_memory(load, figures, nodes),
        receivers=receivers,
        redis=redis,
        redis_cpu=redis_cpu,
        redis_bps=redis_bps,
        client_bps=client_bps(load),
    )


def node_memory(load: Load, figures: Figures, nodes: int) -> float:
    """Return the bytes of a node."""
    channels = load.channels * _part(load, nodes)
    subscriptions = load.channels * load.fanout / nodes
    of_clients = load.connections / nodes * figures.connection_bytes + subscriptions * figures.subscription_bytes
    return NODE_BYTES + of_clients + channels * figures.channel_bytes


def client_bps(load: Load) -> float:
    """Return the bits per second to all clients, each message in a packet of its own."""
    return 8 * load.deliveries_per_s * (load.payload_bytes + FRAME_BYTES + PACKET_BYTES)


def _cpu(load: Load, figures: Figures, nodes: int, delivery_us: float) -> float:
    received = load.publishes_per_s * _part(load, nodes)
    published = load.kept * load.publishes_per_s / nodes
    used_us = (
        received * figures.publication_us
        + published * figures.kept_node_us
        + load.deliveries_per_s / nodes * delivery_us
        + load.connects_per_s / nodes * figures.connect_us
    )
    return figures.idle_cpu + used_us / 1e6


def _part(load: Load, nodes: int) -> float:
    """Return the part of the nodes that has a subscriber of a channel."""
    return 1 - (1 - 1 / nodes) ** load.fanout if nodes > 1 else min(1.0, load.fanout)


def _least(is_enough: Callable[[int], bool]) -> int:
    """Return the smallest number of nodes that is enough, given that NODES_MAX is."""
    high = 1
    while not is_enough(high):
        high *= 2
    low = high // 2  # is not enough
    while high - low > 1:
        middle = (low + high) // 2
        if is_enough(middle):
            high = middle
        else:
            low = middle
    return high


def _whole(number: float) -> int:
    return max(1, ceil(number))
