"""Prometheus series that change with every message: increasing one costs a tenth of the client library's.

The library's counters take a lock and check their arguments. These are changed only in the thread of the event loop,
and become samples when they are collected, in any thread.
"""

from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
from itertools import accumulate
from typing import ClassVar

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

__all__ = ["Durations", "DurationsFamily", "Tally", "TallyFamily"]


class Tally:
    """One counter or gauge."""

    __slots__ = ("value",)

    def __init__(self) -> None:
        self.value = 0

    def inc(self, amount: int = 1) -> None:
        """Add to it. amount: >= 0 for a counter."""
        self.value += amount

    def dec(self) -> None:
        """Decrease a gauge by one."""
        self.value -= 1


class Durations:
    """One histogram. bounds: of its buckets, in seconds, ascending."""

    __slots__ = ("_bounds", "counts", "sum_s")

    def __init__(self, bounds: Sequence[float]) -> None:
        self._bounds = bounds
        self.counts = [0] * (len(bounds) + 1)  # of each bucket alone; the last has no bound
        self.sum_s = 0.0

    def observe(self, seconds: float) -> None:
        """Count one duration."""
        self.counts[bisect_left(self._bounds, seconds)] += 1
        self.sum_s += seconds


class TallyFamily(Collector):
    """Counters of one name. name: with `_total`. labels: their names."""

    kind: ClassVar[type[CounterMetricFamily] | type[GaugeMetricFamily]] = CounterMetricFamily

    def __init__(self, name: str, text: str, labels: Iterable[str], registry: CollectorRegistry) -> None:
        self._name, self._text, self._labelnames = name, text, tuple(labels)
        self._tallies: dict[tuple[str, ...], Tally] = {}
        registry.register(self)

    def labels(self, *values: str) -> Tally:
        """Return the counter with these labels."""
        found = self._tallies.get(values)
        if found is None:
            if len(values) != len(self._labelnames):
                raise ValueError(f"{self._name} has the labels {self._labelnames}")
            found = self._tallies[values] = Tally()
        return found

    def describe(self) -> Iterator[Metric]:
        """Return the family without samples."""
        yield self.kind(self._name, self._text, labels=self._labelnames)

    def collect(self) -> Iterator[Metric]:
        """Return the samples."""
        family = self.kind(self._name, self._text, labels=self._labelnames)
        for values, tally in tuple(self._tallies.items()):
            family.add_metric(values, tally.value)
        yield family


class GaugeFamily(TallyFamily):
    """The same for numbers that also decrease."""

    kind = GaugeMetricFamily


class DurationsFamily(Collector):
    """Histograms of one name. name: with `_seconds`. labels: their names. bounds: as for `Durations`."""

    def __init__(
        self, name: str, text: str, labels: Iterable[str], registry: CollectorRegistry, *, bounds: Sequence[float]
    ) -> None:
        self._name, self._text, self._labelnames = name, text, tuple(labels)
        self._bounds = bounds
        self._histograms: dict[tuple[str, ...], Durations] = {}
        registry.register(self)

    def labels(self, *values: str) -> Durations:
        """Return the histogram with these labels."""
        found = self._histograms.get(values)
        if found is None:
            if len(values) != len(self._labelnames):
                raise ValueError(f"{self._name} has the labels {self._labelnames}")
            found = self._histograms[values] = Durations(self._bounds)
        return found

    def describe(self) -> Iterator[HistogramMetricFamily]:
        """Return the family without samples."""
        yield HistogramMetricFamily(self._name, self._text, labels=self._labelnames)

    def collect(self) -> Iterator[HistogramMetricFamily]:
        """Return the samples."""
        family = HistogramMetricFamily(self._name, self._text, labels=self._labelnames)
        names = [*map(repr, self._bounds), "+Inf"]
        for values, found in tuple(self._histograms.items()):
            family.add_metric(values, list(zip(names, accumulate(found.counts), strict=True)), found.sum_s)
        yield family
