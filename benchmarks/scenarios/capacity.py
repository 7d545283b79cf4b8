"""The costs that `snorky capacity` computes with, and loads to compare its model with."""

import socket
import time
from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks.receivers.receiver import Receiver
from benchmarks.scenarios.connections import connect
from benchmarks.scenarios.fanout import measure
from benchmarks.scenarios.sustained import Sustained, sustain
from benchmarks.servers.redis_server import RedisServer, request
from benchmarks.servers.variants import GATEWAY, THROUGH_REDIS, gateway, variants
from benchmarks.support.child import ChildFailed
from benchmarks.support.machine import receiver_cpu
from benchmarks.support.message import compact, payload, subscribe

__all__ = ["Costs", "costs", "loads"]

FEW, MANY = 10, 1_000  # clients: the difference shows the cost of a publication without its deliveries
RECEIVERS = (0, 16)  # nodes that receive a publication: the same for Redis
BATCH = 10  # publications in one write to Redis
LOADS = ((20, 1_000), (200, 100), (50, 1_000), (100, 1_000))  # publications a second, clients
LOAD_S = 8
CHANNEL = b"bench:capacity"


@dataclass(frozen=True, slots=True)
class Costs:
    """Microseconds of one core (_us) and bytes, named as in `Figures` of `snorky capacity`. idle_cpu: of one core."""

    idle_cpu: float
    delivery_us: float
    joined_delivery_us: float
    publication_us: float
    connect_us: float
    publish_redis_us: float
    receiver_redis_us: float
    connection_bytes: float
    subscription_bytes: float
    channel_bytes: float


def costs(*, connections: int, repetitions: int) -> Costs:
    """Measure them. connections: idle ones, for memory. Raises ChildFailed."""
    compared = [each for each in variants(has_redis=True) if each.name == GATEWAY + THROUGH_REDIS]
    us = {}
    for clients, deliveries in ((FEW, 5_000), (MANY, 20_000)):
        for cell in measure(compared, clients, repetitions=repetitions, deliveries=deliveries):
            if cell.fault:
                raise ChildFailed(cell.fault)
            us[clients, cell.burst] = cell.median_us
    idle = connect(GATEWAY, gateway, connections)
    shared = connect(GATEWAY, gateway, connections, send=subscribe())
    own = connect(GATEWAY, gateway, connections, send=subscribe("bench%d"))
    alone_us, received_us = [_redis_us(receivers) for receivers in RECEIVERS]
    return Costs(
        idle_cpu=_idle_cpu(),
        delivery_us=us[MANY, 1],
        joined_delivery_us=us[MANY, 10],
        publication_us=max(0.0, FEW * (us[FEW, 10] - us[MANY, 10])),
        connect_us=shared.connect_ms * 1e3,
        publish_redis_us=alone_us,
        receiver_redis_us=(received_us - alone_us) / RECEIVERS[1],
        connection_bytes=idle.bytes_each,
        subscription_bytes=shared.bytes_each - idle.bytes_each,
        channel_bytes=own.bytes_each - shared.bytes_each,
    )


def loads(redis: RedisServer, seconds: int = LOAD_S) -> list[Sustained]:
    """Measure one node under loads that fill a part of its core. Raises ChildFailed."""
    return [sustain(redis, per_s=per_s, connections=clients, seconds=seconds) for per_s, clients in LOADS]


def _idle_cpu() -> float:
    """Return the part of a core that a node with subscribers uses while nothing happens."""
    with RedisServer() as redis, gateway(redis.url) as server:
        with Receiver(int(server.answer()["port"]), MANY, cpu=receiver_cpu(), send=subscribe()):
            time.sleep(1.0)  # until what connecting began is done
            before_s = server.cpu_s()
            time.sleep(LOAD_S)
            return (server.cpu_s() - before_s) / LOAD_S


def _redis_us(receivers: int, batches: int = 2_000) -> float:
    """Return what a publication costs Redis that goes to so many subscribed connections."""
    with RedisServer() as redis, redis.connect() as publisher:
        subscribers = [redis.connect() for _ in range(receivers)]
        try:
            for each in subscribers:
                each.sendall(request(b"SUBSCRIBE", CHANNEL))
                _receive([each], len(b"*3\r\n$9\r\nsubscribe\r\n$%d\r\n\r\n:1\r\n" % len(CHANNEL)) + len(CHANNEL))
            message = request(b"message", CHANNEL, compact(payload()))
            publications = request(b"PUBLISH", CHANNEL, compact(payload())) * BATCH
            for batch in range(-1, batches):  # the first warms up and does not count
                if batch == 0:
                    before_s = _cpu_s(publisher)
                publisher.sendall(publications)
                _receive([publisher], BATCH * len(b":%d\r\n" % receivers))
                _receive(subscribers, BATCH * len(message))
            return (_cpu_s(publisher) - before_s) * 1e6 / (batches * BATCH)
        finally:
            for each in subscribers:
                each.close()


def _receive(connections: Sequence[socket.socket], size: int) -> None:
    for each in connections:
        rest = size
        while rest:
            found = each.recv(min(rest, 1 << 16))
            if not found:
                raise ChildFailed("Redis closed a connection")
            rest -= len(found)


def _cpu_s(redis: socket.socket) -> float:
    redis.sendall(request(b"INFO", b"cpu"))
    text = b""
    while b"used_cpu_user:" not in text or not text.endswith(b"\r\n"):
        text += redis.recv(65536)
    found = dict(line.split(":") for line in text.decode().splitlines() if ":" in line)
    return float(found["used_cpu_user"]) + float(found["used_cpu_sys"])
