"""`python -m benchmarks.scenarios.limits`: cost of checking the limits of one message, without and with cluster limits.

Each variant sends the same messages in turn, for several rounds; prints the median in microseconds per message.
"""

import statistics
from collections.abc import Callable
from time import process_time

from snorky.gateway.config.limits import ClusterLimits
from snorky.gateway.config.rules.channel_rules import ChannelRule
from snorky.gateway.config.settings import Limits
from snorky.gateway.connection.cluster_rates import ClusterRates
from snorky.gateway.connection.connection import Connection
from snorky.gateway.connection.publish_limits import PublishLimits
from snorky.gateway.connection.rate_limiter import Limiter
from snorky.gateway.connection.refusals import Refusals
from snorky.gateway.connection.shared_limits import Shares, rates_of
from snorky.gateway.metrics import Metrics
from snorky.gateway.protocol.codec import Encoding
from snorky.gateway.protocol.ws_frames import dialect_for
from snorky.gateway.testing.transport import FakeTransport

__all__ = ["main"]

ROUNDS = 9
MESSAGES = 50_000
SIZE = 100
MANY = Limits(messages_per_s=1e7, messages_burst=1_000_000, bytes_per_s=1e9, bytes_burst=1_000_000_000)


def sending(limits: ClusterLimits | None, *, nodes: int = 1) -> Callable[[], None]:
    """Make a client with a token; each call is one message."""
    rates = None if limits is None else ClusterRates(limits, bytes_min=65_536)
    if rates is not None:
        rates.count_nodes = lambda: nodes
    limiter = Limiter(rates_of(MANY), 20, Shares(MANY, rates).of("192.0.2.1", "ann"), identity="ann")

    def send() -> None:
        assert limiter.take(SIZE) == 0

    return send


def publishing(limits: ClusterLimits, rule: ChannelRule) -> Callable[[], None]:
    """Make a client that publishes; each call is one publication."""
    metrics, rates = Metrics(), ClusterRates(limits, bytes_min=65_536)
    checks = PublishLimits(limits, rates, metrics, Refusals(metrics))
    client = Connection(FakeTransport(), dialect_for(Encoding.JSON), node_id="n0", serial=1)
    client.identity = "ann"
    are_set = checks.are_set

    def publish() -> None:
        if rule.publishes_per_s or rule.message_max_bytes or are_set:
            checks.check(client, "pubsub:news", "x", rule)

    return publish


def main() -> None:
    both = ClusterLimits(messages_per_s_per_identity=1e7, bytes_per_s_per_identity=1e9)
    publishes = ClusterLimits(publishes_per_s_per_identity=1e7)
    variants = {
        "limits of one node": sending(None),
        "and messages and bytes of an identity over all nodes": sending(both),
        "the same, on one of three nodes": sending(both, nodes=3),
        "publication without limits": publishing(ClusterLimits(), ChannelRule("*")),
        "publications of an identity over all nodes": publishing(publishes, ChannelRule("*")),
        "and of a channel": publishing(publishes, ChannelRule("*", publishes_per_s=1e7)),
    }
    figures: dict[str, list[float]] = {}
    for _ in range(ROUNDS):
        for name, once in variants.items():
            began_s = process_time()
            for _ in range(MESSAGES):
                once()
            figures.setdefault(name, []).append((process_time() - began_s) / MESSAGES * 1e6)
    for name, samples in figures.items():
        print(f"{name:56}{statistics.median(samples):8.2f} us per message")


if __name__ == "__main__":
    main()
