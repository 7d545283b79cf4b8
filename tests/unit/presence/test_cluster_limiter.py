"""ClusterLimiter: counts begin with the first limit, once."""

from snorky.gateway.auth.authenticator import Authenticator
from snorky.gateway.config.limits import ClusterLimits
from snorky.gateway.config.rules.channel_rules import ChannelRule
from snorky.gateway.contracts.limits import LocalLimitStore, OnLost
from snorky.gateway.metrics import Metrics
from snorky.gateway.presence.cluster_limiter import ClusterLimiter


class Store(LocalLimitStore):
    """Counts how often it is started."""

    starts = 0

    def start(self, on_lost: OnLost) -> None:
        self.starts += 1
        super().start(on_lost)


async def test_the_first_limit_of_a_rule_starts_the_counts_once() -> None:
    store, metrics = Store(), Metrics()
    limiter = ClusterLimiter(ClusterLimits(), store, Authenticator(metrics=metrics), metrics, bytes_min=1)
    limiter.add_rules([ChannelRule("a")])
    limiter.start()
    assert store.starts == 0
    for _ in range(2):
        limiter.add_rules([ChannelRule("a", subscribers_max=1)])
    assert store.starts == 1
    await limiter.stop()
