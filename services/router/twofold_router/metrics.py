"""What the router counts, beside what the chassis counts of every call."""

from prometheus_client import CollectorRegistry, Counter, Gauge


class Metrics:
    """Counters of one router."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._copies = Counter(
            "twofold_router_copies", "Where permissions and routes came from.", ("kind", "source"), registry=registry
        )
        self._turns = Counter("twofold_router_turns", "Turns ended, by how.", ("outcome",), registry=registry)
        self.turns_running = Gauge("twofold_router_turns_running", "Turns under way.", registry=registry)

    def came_from(self, kind: str, source: str) -> None:
        """A permission or a route was had from there."""
        self._copies.labels(kind, source).inc()

    def turn_ended(self, outcome: str) -> None:
        """A turn has ended: completed, cancelled, or the reason of its refusal."""
        self._turns.labels(outcome).inc()
