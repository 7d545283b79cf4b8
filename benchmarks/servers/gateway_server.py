"""A node of this gateway to be measured, assembled as `snorky serve` does it, on uvloop.

    python -m benchmarks.servers.gateway_server PING_INTERVAL_S [REDIS_URL [NATIVE_FANOUT]]

With REDIS_URL "" there is no broker: `pass PASSES BURST GAP_US [CHANNEL]` gives the node BURST publications as one read
from Redis would, through the same method. CHANNEL: the number of the channel. Limits that would only stop the benchmark
are raised (connections per address, messages per second); nothing else differs.
"""

import asyncio
import os
import sys
from urllib.parse import urlsplit

import uvloop

from benchmarks.servers.commands import answer, obey, run_passes
from benchmarks.support.message import PREFIX, channel_name, compact, payload
from snorky.gateway.config.pusher import RULES, PusherApp
from snorky.gateway.config.settings import Limits, Private, Public, Settings
from snorky.gateway.contracts.broker import Listener
from snorky.gateway.logs import configure_logs
from snorky.gateway.protocol.codec import channel_key
from snorky.gateway.runtime.gateway import Gateway
from snorky.gateway.runtime.memory import settle_memory
from snorky.gateway.sdk.registry import ServiceRegistry
from snorky.services.pubsub import PubSubService
from snorky.services.rpc import Request, RPCService, rpc_command

__all__: list[str] = []


class Echo(RPCService):
    """The service that clients flood: the cheapest call."""

    @rpc_command
    def ping(self, request: Request) -> None:
        """Only answer."""


class NoBroker:
    """A Broker without other publishers: subscriptions are confirmed at once."""

    is_redis_unverified = False

    async def start(self, listener: Listener) -> None:
        """There is nothing to connect to."""

    async def stop(self) -> None:
        """Nothing was started."""

    def publish(self, key: str, payload: bytes) -> asyncio.Future[int]:
        """Accept and discard."""
        accepted: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        accepted.set_result(0)
        return accepted

    def is_subscribed(self, key: str) -> bool:
        """Be always subscribed."""
        return True

    async def subscribe(self, key: str) -> None:
        """Be subscribed already."""

    def unsubscribe(self, key: str) -> None:
        """Stay subscribed."""

    def pause(self) -> None:
        """Nothing is read."""

    def resume(self) -> None:
        """Nothing is read."""

    def read_now(self) -> None:
        """Nothing is read."""


async def serve(ping_interval_s: float, redis_url: str = "", native_fanout: str = "auto") -> None:
    settings = Settings(
        redis_url=redis_url,
        prefix=PREFIX,
        public=Public(
            port=0,
            ping_interval_s=ping_interval_s,
            native_fanout=native_fanout,
            pusher_apps={"bench": PusherApp(id="bench", key="bench", secret="a secret of no one")},
        ),
        private=Private(port=0),
        limits=Limits(connections_per_ip=0, messages_per_s=1e9, messages_burst=1_000_000_000),
    )
    rules = [*map(dict, RULES), {"match": "kept-*", "history": 1_000, "history_ttl_s": 3_600}]
    registry = ServiceRegistry([PubSubService(channels=rules), Echo("echo")])
    async with Gateway(settings, public=registry, broker=None if redis_url else NoBroker()) as gateway:
        await gateway.until_ready(10)
        settle_memory()
        answer(port=urlsplit(gateway.public_urls[0]).port or 0)
        data = compact(payload())

        async def passes(count: int, burst: int, gap_us: int, channel: int = 0) -> None:
            key = channel_key("pubsub", channel_name(channel))

            async def one_pass(burst: int) -> None:
                gateway.node.on_publications({key: [data] * burst})

            await run_passes(one_pass, count, burst, gap_us)

        await obey({"pass": passes})
        os._exit(0)  # do not wait for thousands of connections to be closed one by one


def main() -> None:
    ping_interval_s, *others = sys.argv[1:]
    configure_logs()  # as serve does, to stderr: stdout is for answers
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(serve(float(ping_interval_s), *others))


if __name__ == "__main__":
    main()
