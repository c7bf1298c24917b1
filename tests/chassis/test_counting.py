"""Counters of the event loop: scraped, they read like those of the library."""

import prometheus_client
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, generate_latest

from twofold_chassis.counting import Counts, Histogram

BOUNDS = (0.0005, 0.01, 1, 30)
LABELS = ("grpc_type", "grpc_method")


def read(registry: CollectorRegistry) -> list[str]:
    """All lines but those of when a series began."""
    return [line for line in generate_latest(registry).decode().splitlines() if "_created" not in line]


@given(st.lists(st.tuples(st.sampled_from("ab"), st.floats(0, 100) | st.sampled_from(BOUNDS)), max_size=20))
def test_what_is_counted_reads_as_if_the_library_had_counted_it(seen: list[tuple[str, float]]) -> None:
    ours, theirs = CollectorRegistry(), CollectorRegistry()
    counts = Counts("calls", "Calls begun.", LABELS, registry=ours)
    spans = Histogram("seconds", "Until their end.", LABELS, BOUNDS, registry=ours)
    library_counts = prometheus_client.Counter("calls", "Calls begun.", LABELS, registry=theirs)
    library_spans = prometheus_client.Histogram("seconds", "Until their end.", LABELS, buckets=BOUNDS, registry=theirs)
    for name, seconds in seen:
        counts.labels("unary", name).inc()
        spans.labels("unary", name).observe(seconds)
        library_counts.labels("unary", name).inc()
        library_spans.labels("unary", name).observe(seconds)
    assert read(ours) == read(theirs)
