"""A process with one node's directory only: tests freeze and kill it.

    python -m tests.support.processes.directory_node URL NODE_ID MEMBERS TIMINGS_FACTOR ROOM...

Enters the rooms in turn, as NODE_ID-0, NODE_ID-1, ... and claims those names; prints `ready`, and `lost NAME`.
"""

import asyncio
import sys

from snorky.gateway.metrics import Metrics
from snorky.gateway.redis import Timings
from snorky.gateway.redis.backend import parts_of
from snorky.gateway.redis.target import target_from_url
from tests.support.fakes.brokers import PREFIX, Recorder
from tests.support.fakes.directories import FakeNode, scaled


class Speaking(FakeNode):
    """Prints the names that it lost."""

    def on_lost_name(self, names: str, name: str, serial: int) -> None:
        super().on_lost_name(names, name, serial)
        print("lost", name, flush=True)


async def main(url: str, node_id: str, count: int, timings: Timings, rooms: list[str]) -> None:
    """Run until killed."""
    target = target_from_url(url)
    parts = parts_of(target, prefix=PREFIX, node_id=node_id, metrics=Metrics())
    broker = parts.broker()
    await broker.start(Recorder())
    node = Speaking(node_id)
    node.directory = parts.directory(broker, timings=timings)
    await node.directory.start(node)
    for start in range(0, count, 500):
        serials = range(start, min(count, start + 500))
        places = [(rooms[serial % len(rooms)], serial) for serial in serials]
        await asyncio.gather(*(node.enter(room, serial, f"{node_id}-{serial}") for room, serial in places))
        await asyncio.gather(*(node.claim("messaging:names", f"{node_id}-{serial}", serial) for serial in serials))
    print("ready", flush=True)
    await asyncio.Event().wait()


if __name__ == "__main__":
    url, node_id, count, factor, *rooms = sys.argv[1:]
    asyncio.run(main(url, node_id, int(count), scaled(float(factor)), rooms))
