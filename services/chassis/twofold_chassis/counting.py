"""Counters and histograms of what every call does, for the event loop alone to count.

Those of prometheus_client may be counted by any thread, and take a lock for it; a hot call counts five times or more. These
only add. Whoever scrapes them, in whichever thread, gets them in the form of the others.
"""

from bisect import bisect_left
from collections.abc import Iterable, Sequence
from itertools import accumulate

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, HistogramMetricFamily
from prometheus_client.registry import Collector


class Count:
    """One series of a counter."""

    __slots__ = ("number",)

    def __init__(self) -> None:
        self.number = 0

    def inc(self) -> None:
        """One more."""
        self.number += 1


class Counts(Collector):
    """A counter: its series by their labels. Its name has no `_total`; what is exported has."""

    def __init__(self, name: str, what: str, labels: Sequence[str], *, registry: CollectorRegistry) -> None:
        self._form = (name, what, labels)
        self._series: dict[tuple[str, ...], Count] = {}
        registry.register(self)

    def labels(self, *values: str) -> Count:
        """The series with these labels: to be kept, not to be looked up for each call."""
        return self._series.setdefault(values, Count())

    def collect(self) -> Iterable[CounterMetricFamily]:
        """What is counted, for a scrape."""
        name, what, labels = self._form
        family = CounterMetricFamily(name, what, labels=labels)
        for values, count in list(self._series.items()):
            family.add_metric(values, count.number)
        return (family,)


class Spans:
    """One series of a histogram."""

    __slots__ = ("_bounds", "numbers", "sum_s")

    def __init__(self, bounds: Sequence[float]) -> None:
        self._bounds = bounds
        self.numbers = [0] * (len(bounds) + 1)
        self.sum_s = 0.0

    def observe(self, seconds: float) -> None:
        """One that took so long."""
        self.numbers[bisect_left(self._bounds, seconds)] += 1
        self.sum_s += seconds


class Histogram(Collector):
    """A histogram of seconds: its series by their labels. `bounds` are the upper ends of its buckets, but for the last."""

    def __init__(
        self, name: str, what: str, labels: Sequence[str], bounds: Sequence[float], *, registry: CollectorRegistry
    ) -> None:
        self._form = (name, what, labels)
        self._bounds = bounds
        self._series: dict[tuple[str, ...], Spans] = {}
        registry.register(self)

    def labels(self, *values: str) -> Spans:
        """The series with these labels: to be kept, not to be looked up for each call."""
        return self._series.setdefault(values, Spans(self._bounds))

    def collect(self) -> Iterable[HistogramMetricFamily]:
        """What is counted, for a scrape."""
        name, what, labels = self._form
        family = HistogramMetricFamily(name, what, labels=labels)
        ends = [*(str(float(bound)) for bound in self._bounds), "+Inf"]
        for values, spans in list(self._series.items()):
            family.add_metric(values, list(zip(ends, accumulate(spans.numbers), strict=True)), spans.sum_s)
        return (family,)
