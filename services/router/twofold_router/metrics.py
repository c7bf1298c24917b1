"""What the router counts, beside what the chassis counts of every call."""

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge

from twofold_chassis.counting import Counts
from twofold_router.copies import Source
from twofold_router.outcomes import Outcome


class Metrics:
    """Counters of one router."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._copies = Counts(
            "twofold_router_copies",
            "Permissions and routes that were answered from, by where they came from.",
            ("kind", "source"),
            registry=registry,
        )
        self._outcomes = Counter(
            "twofold_router_outcomes",
            "Messages to targets that were heard of, by what became of them.",
            ("outcome",),
            registry=registry,
        )
        self.targets_failing = Gauge(
            "twofold_router_targets_failing",
            "Targets that could not be dialled when that was tried last.",
            registry=registry,
        )
        self._turns = Counter("twofold_router_turns", "Turns ended, by how.", ("outcome",), registry=registry)
        self.turns_running = Gauge("twofold_router_turns_running", "Turns under way.", registry=registry)

    def copies(self, kind: str) -> Callable[[Source], None]:
        """What counts answers of this kind by where they came from; their series are looked up now, not for each answer."""
        counts = {source: self._copies.labels(kind, source.value) for source in Source}
        return lambda source: counts[source].inc()

    def heard(self, outcome: Outcome) -> None:
        """What became of a message was heard."""
        self._outcomes.labels(outcome.value).inc()

    def turn_ended(self, outcome: str) -> None:
        """A turn has ended: completed, cancelled, or the reason of its refusal."""
        self._turns.labels(outcome).inc()
