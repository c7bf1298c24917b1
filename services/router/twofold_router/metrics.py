"""What the router counts, beside what the chassis counts of every call."""

from prometheus_client import CollectorRegistry, Counter, Gauge


class Metrics:
    """Counters of one router."""

    def __init__(self, registry: CollectorRegistry) -> None:
        routes = Counter("twofold_router_routes", "Routes asked of the cache.", ("cache",), registry=registry)
        self._found = routes.labels("hit")
        self._missed = routes.labels("miss")
        self._unanswered = routes.labels("unavailable")
        self._turns = Counter("twofold_router_turns", "Turns ended, by how.", ("outcome",), registry=registry)
        self.turns_running = Gauge("twofold_router_turns_running", "Turns under way.", registry=registry)

    def route_found(self) -> None:
        """A copy of a route was used."""
        self._found.inc()

    def route_missed(self, *, cache_answered: bool) -> None:
        """The registry was asked for a route."""
        (self._missed if cache_answered else self._unanswered).inc()

    def turn_ended(self, outcome: str) -> None:
        """A turn has ended: completed, cancelled, or the reason of its refusal."""
        self._turns.labels(outcome).inc()
