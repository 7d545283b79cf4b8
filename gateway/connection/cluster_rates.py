"""ClusterRates: rates over all nodes together. Each node has its part of a rate, and adapts it to the demand.

Rules:
- A name (an identity, a channel) begins with an equal part for each node. A node reports the demand of its active names
  about once a second, and learns that of the other nodes: its part is then in proportion. No message waits for Redis.
- A bucket holds one second's worth of its part, so all nodes together allow at most one second's worth at once.
- Demand counts refused messages too, up to the limit: a client that ignores refusals gains nothing by it.
- The REMEMBERED buckets used last are kept in memory.
"""

from collections import OrderedDict
from collections.abc import Callable
from math import exp, inf
from time import monotonic
from typing import Final
from weakref import WeakValueDictionary

from snorky.gateway.config.limits import ClusterLimits
from snorky.gateway.connection.rate_limiter import BORROWED_MESSAGES, Bucket, Rates, Share

__all__ = ["ClusterBucket", "ClusterRates", "ClusterShare"]

REMEMBERED: Final = 10_000
BURST_S: Final = 1.0
REFUSED_S: Final = 100.0  # as many refusals as this time's messages are tolerated in a minute
AVERAGE_S: Final = 1.0  # over which demand is averaged
IDLE_PART: Final = 0.001  # of the limit: below it a name is not active
PART_MIN: Final = 0.01  # of a limit; a client that begins to send where others send much must not wait for minutes


class ClusterBucket(Bucket):
    """A node's part of a rate. key: limit and name. limit_per_s: of all nodes. burst_min: of the largest request.

    credit: tokens taken in advance, so that most requests read no clock; for buckets that `borrow` fills.
    """

    __slots__ = (
        "__weakref__",
        "_at_measure_s",
        "_known_tokens",
        "_rates",
        "_wanted",
        "burst_min",
        "credit",
        "demand_per_s",
        "key",
        "limit_per_s",
    )

    def __init__(self, rates: "ClusterRates", key: tuple[str, str], limit_per_s: float, burst_min: float) -> None:
        now_s = monotonic()
        super().__init__(limit_per_s, limit_per_s * BURST_S, now_s)
        self._rates = rates
        self.key = key
        self.limit_per_s = limit_per_s
        self.burst_min = burst_min
        self._wanted = 0.0  # tokens asked for since the last measurement
        self._at_measure_s = now_s
        self.demand_per_s = 0.0
        self.credit = 0.0
        self.allow(1 / rates.nodes)
        self.tokens = self._known_tokens = self.burst

    def refill(self, now_s: float) -> None:
        """See Bucket. Whatever was taken since the last call is demand."""
        taken = self._known_tokens - self.tokens
        super().refill(now_s)
        self._known_tokens = self.tokens
        if taken > 0:
            self._wanted += taken
            self._rates.note(self, is_low=self.tokens < self.burst / 2)

    def borrow(self) -> int:
        """Take tokens in advance, at least one. Returns 0, or the ms to wait until there is one."""
        self.refill(monotonic())
        if self.tokens < 1.0:
            return self.wait_ms(1.0)
        taken = max(1.0, min(BORROWED_MESSAGES, self.tokens / 8))
        self.tokens -= taken
        self.credit += taken
        return 0

    def wait_ms(self, tokens: float) -> int:
        """See Bucket."""
        self._wanted += tokens
        self._rates.note(self, is_low=True)
        return super().wait_ms(tokens)

    def measure(self, now_s: float) -> float:
        """Return the average demand in tokens per second, at most the limit."""
        self.refill(now_s)
        elapsed_s, self._at_measure_s = max(1e-6, now_s - self._at_measure_s), now_s
        wanted, self._wanted = min(self._wanted / elapsed_s, self.limit_per_s), 0.0
        weight = exp(-elapsed_s / AVERAGE_S)
        self.demand_per_s = self.demand_per_s * weight + wanted * (1 - weight)
        return self.demand_per_s

    def allow(self, part: float) -> None:
        """Set this node's part of the limit."""
        per_s = self.limit_per_s * max(part, min(1.0, PART_MIN))
        self._per_s, self.burst = per_s, max(per_s * BURST_S, self.burst_min)
        if self.tokens > self.burst:
            self._known_tokens = self.tokens = self.burst


class ClusterShare(Share):
    """The messages and bytes of one identity over all nodes."""

    __slots__ = ()

    def __init__(self, kind: str, rates: Rates, messages: Bucket, sizes: Bucket) -> None:
        super().__init__(kind, rates)
        self.messages, self.bytes = messages, sizes
        self.refused_max, self.refused_bytes_max = rates.messages_burst, rates.bytes_burst


class ClusterRates:
    """The rates over all nodes, of one node. bytes_min: of the largest message.

    count_nodes: returns how many there are. active: buckets that were asked for tokens. on_low: called when one is
    half empty: this node may need a larger part soon.
    """

    def __init__(self, limits: ClusterLimits, *, bytes_min: int) -> None:
        self._limits = limits
        self._bytes_min = float(bytes_min)
        self.count_nodes: Callable[[], int] = lambda: 1
        self.active: dict[ClusterBucket, None] = {}
        self.on_low: Callable[[], None] = lambda: None
        self._known: WeakValueDictionary[tuple[str, str], ClusterBucket] = WeakValueDictionary()
        self._remembered: OrderedDict[tuple[str, str], ClusterBucket] = OrderedDict()

    @property
    def nodes(self) -> int:
        """How many nodes there are."""
        return self.count_nodes()

    def share_of(self, identity: str) -> ClusterShare | None:
        """Return the share of an identity's connections here; None = no limit."""
        limits = self._limits
        messages_per_s, bytes_per_s = limits.messages_per_s_per_identity, limits.bytes_per_s_per_identity
        if not messages_per_s and not bytes_per_s:
            return None
        messages: Bucket = Bucket(inf, inf, 0.0)
        sizes: Bucket = messages
        if messages_per_s:
            messages = self.bucket("messages_per_s_per_identity", identity, messages_per_s)
        if bytes_per_s:
            sizes = self.bucket("bytes_per_s_per_identity", identity, bytes_per_s, self._bytes_min)
        most = messages_per_s * REFUSED_S or inf, bytes_per_s * REFUSED_S or inf
        return ClusterShare("per_identity_in_cluster", Rates(inf, most[0], inf, most[1]), messages, sizes)

    def bucket(self, limit: str, name: str, per_s: float, burst_min: float = 1.0) -> ClusterBucket:
        """Return this node's part of a rate. limit: for example the setting's name."""
        key = limit, name
        bucket = self._known.get(key)
        if bucket is None:
            bucket = self._known[key] = ClusterBucket(self, key, per_s, burst_min)
        elif bucket.limit_per_s != per_s:  # the rule has changed
            bucket.limit_per_s = per_s
            bucket.allow(1 / self.nodes)
        self._remembered[key] = bucket
        self._remembered.move_to_end(key)
        if len(self._remembered) > REMEMBERED:
            self._remembered.popitem(last=False)
        return bucket

    def note(self, bucket: ClusterBucket, *, is_low: bool) -> None:
        """A bucket was asked for tokens."""
        if bucket not in self.active:
            self.active[bucket] = None
        if is_low:
            self.on_low()
