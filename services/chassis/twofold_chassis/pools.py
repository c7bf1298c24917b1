"""What Prometheus is told of the pools of connections of one service."""

from collections.abc import Iterator
from typing import Protocol

from prometheus_client import CollectorRegistry, Histogram
from prometheus_client.metrics_core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

_BUCKETS = (0.0001, 0.0005, 0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1.0)


class Sized(Protocol):
    """A pool, as far as its numbers go."""

    waiting: int

    def get_size(self) -> int:
        """Open connections."""
        ...

    def get_idle_size(self) -> int:
        """Those of them that nobody uses."""
        ...


class PoolMetrics(Collector):
    """Connections in use and idle, callers that wait for one, and how long getting one took."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._pools: dict[str, Sized] = {}
        self._acquired = Histogram(
            "twofold_postgres_acquire_seconds",
            "How long getting a connection to Postgres took, of those that got one",
            ["pool"],
            buckets=_BUCKETS,
            registry=registry,
        )
        registry.register(self)

    def watch(self, name: str, pool: Sized) -> Histogram:
        """Tells of this pool from now on; what is returned is to be told how long each acquisition took."""
        self._pools[name] = pool
        return self._acquired.labels(name)

    def collect(self) -> Iterator[Metric]:
        """The numbers of now; called by each scrape."""
        connections = GaugeMetricFamily(
            "twofold_postgres_connections", "Connections to Postgres, by pool and state", labels=["pool", "state"]
        )
        waiting = GaugeMetricFamily(
            "twofold_postgres_waiting", "Callers that wait for a connection to Postgres, by pool", labels=["pool"]
        )
        for name, pool in self._pools.items():
            idle = pool.get_idle_size()
            connections.add_metric([name, "in_use"], pool.get_size() - idle)
            connections.add_metric([name, "idle"], idle)
            waiting.add_metric([name], pool.waiting)
        yield connections
        yield waiting
