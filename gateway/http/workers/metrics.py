"""Totals: sums the metrics of several processes. Text in, text out.

Rules:
- Counters and histograms never decrease: the counts of an ended worker are kept. Otherwise every restart
  would look like a reset, and Prometheus would count all other workers' counts again.
- Gauges cover living workers: the sum, or the maximum where a sum is meaningless.
"""

from collections.abc import Iterator

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.metrics_core import Metric
from prometheus_client.parser import text_string_to_metric_families

__all__ = ["Totals"]

_WORST = frozenset(
    {
        "process_max_fds",
        "process_open_fds",  # compared with its maximum: each worker has its own descriptors
        "process_start_time_seconds",
        "python_info",
        "snorky_build_info",
        "snorky_draining",
        "snorky_redis_delivery_unverified",
        "snorky_redis_full",
        "snorky_redis_refusing",
        "snorky_redis_memory_used_ratio",
    }
)

# family name, sample name, labels
_Key = tuple[str, str, tuple[tuple[str, str], ...]]


class Totals:
    """Sums the exposition texts of workers, each with a unique name."""

    def __init__(self) -> None:
        self._families: dict[str, Metric] = {}  # name, help and type; no samples
        self._workers: dict[str, dict[_Key, float]] = {}
        self._ended: dict[_Key, float] = {}

    def take(self, worker: str, text: str) -> None:
        """Replace the metrics of a worker. Raises ValueError: not an exposition text; nothing changes then."""
        samples: dict[_Key, float] = {}
        for family in text_string_to_metric_families(text):
            self._families.setdefault(family.name, Metric(family.name, family.documentation, family.type))
            for sample in family.samples:
                samples[family.name, sample.name, tuple(sorted(sample.labels.items()))] = sample.value
        self._workers[worker] = samples

    def end(self, worker: str) -> None:
        """Keep the counters of an ended worker, drop its gauges."""
        for key, value in self._workers.pop(worker, {}).items():
            if self._families[key[0]].type != "gauge":
                self._ended[key] = self._ended.get(key, 0.0) + value

    def render(self) -> bytes:
        """Return the sums as exposition text (version 0.0.4)."""
        registry = CollectorRegistry()
        registry.register(self)  # a collector needs only `collect`
        return generate_latest(registry)

    def collect(self) -> Iterator[Metric]:
        """Yield the sums, family by family."""
        sums = dict(self._ended)
        for samples in self._workers.values():
            for key, value in samples.items():
                if key[0] in _WORST:
                    sums[key] = max(sums.get(key, 0.0), value)
                else:
                    sums[key] = sums.get(key, 0.0) + value
        families = {
            name: Metric(name, known.documentation, known.type) for name, known in sorted(self._families.items())
        }
        for (family, name, labels), value in sums.items():
            families[family].add_sample(name, dict(labels), value)
        yield from families.values()
