"""What the router counts, beside what the chassis counts of every call."""

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge

from twofold_chassis.counting import Counts
from twofold_router.copies import Source
from twofold_router.outcomes import Outcome
from twofold_router.sessions import CloseReason
from twofold_router.terms import LimitKind


class EventMetrics:
    """What is counted of events."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._published = Counter("twofold_router_events_published", "Events appended to logs.", registry=registry)
        self._published_bytes = Counter(
            "twofold_router_event_bytes_published", "Bytes of the payloads of events appended to logs.", registry=registry
        )
        self._delivered = Counter("twofold_router_events_delivered", "Events told to subscribers.", registry=registry)
        self._gaps = Counter(
            "twofold_router_event_gaps", "Times a subscriber was told that events are missing.", registry=registry
        )
        self._resets = Counter(
            "twofold_router_event_resets", "Times a subscriber was told that a log begins anew.", registry=registry
        )
        self._probes = Counter(
            "twofold_router_event_probes",
            "Trials whether channels of Redis are heard, by what came of them.",
            ("outcome",),
            registry=registry,
        )
        self.subscribers = Gauge("twofold_router_event_subscribers", "Streams of events.", registry=registry)
        self.followed = Gauge("twofold_router_event_logs_followed", "Logs that somebody follows.", registry=registry)
        self.deaf = Gauge(
            "twofold_router_event_deaf", "1 while channels of Redis are open and not heard, else 0.", registry=registry
        )

    def published(self, events: int, size: int) -> None:
        """Events were appended."""
        self._published.inc(events)
        self._published_bytes.inc(size)

    def delivered(self, events: int) -> None:
        """Events were handed out to a subscriber."""
        self._delivered.inc(events)

    def gap(self) -> None:
        """Events were announced as missing."""
        self._gaps.inc()

    def reset(self) -> None:
        """A log was announced to begin anew."""
        self._resets.inc()

    def probed(self, outcome: str) -> None:
        """A probe was heard or missed, or could not be sent."""
        self._probes.labels(outcome).inc()


class SessionMetrics:
    """What is counted of pods and sessions."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._links = Gauge("twofold_router_pod_links", "Pods that have their link here.", registry=registry)
        self._sessions = Gauge("twofold_router_sessions", "Sessions of pods that have their link here.", registry=registry)
        self._opened = Counter(
            "twofold_router_sessions_opened",
            "Sessions opened, by whether the table in Redis has them at once.",
            ("listed",),
            registry=registry,
        )
        self._closed = Counter("twofold_router_sessions_closed", "Sessions closed, by why.", ("reason",), registry=registry)
        self._died = Counter("twofold_router_pods_died", "Pods that this router found to be dead.", registry=registry)
        self._dropped = Counter(
            "twofold_router_session_history_dropped",
            "Openings and closings of sessions that the registry was not told of.",
            registry=registry,
        )

    def links_changed(self, count: int) -> None:
        """So many pods have their link here."""
        self._links.set(count)

    def sessions_changed(self, count: int) -> None:
        """They hold so many sessions."""
        self._sessions.set(count)

    def session_opened(self, *, listed: bool) -> None:
        """A pod here has opened a session."""
        self._opened.labels(str(listed).lower()).inc()

    def session_closed(self, reason: CloseReason) -> None:
        """This router has closed a session, or was told by its pod that it is."""
        self._closed.labels(reason.value).inc()

    def pod_died(self) -> None:
        """A pod's lease has run out."""
        self._died.inc()

    def history_dropped(self, count: int) -> None:
        """So many openings and closings are not told any more."""
        self._dropped.inc(count)


class LimitMetrics:
    """What is counted of limits."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._limits = Counts(
            "twofold_router_limits",
            "Limits that operations were held against, by what they decided.",
            ("kind", "decision"),
            registry=registry,
        )
        self._rebuilds = Counter(
            "twofold_router_limit_rebuilds", "Lost counters set up anew, by how that ended.", ("outcome",), registry=registry
        )
        self._shares = Counter(
            "twofold_router_limit_shares",
            "Operations held against this router's share while Redis could not tell, by what became of them.",
            ("decision",),
            registry=registry,
        )
        decisions = ("passed", "refused", "shadow_refused")
        self._decided = {
            (kind, decision): self._limits.labels(kind.value, decision) for kind in LimitKind for decision in decisions
        }

    def decided(self, kind: LimitKind, decision: str) -> None:
        """A limit let an operation pass, refused it, or would have: it is a shadow."""
        self._decided[kind, decision].inc()

    def rebuilt(self, outcome: str) -> None:
        """Counters were set up anew, or could not be."""
        self._rebuilds.labels(outcome).inc()

    def share_asked(self, decision: str) -> None:
        """An operation was held against this router's share."""
        self._shares.labels(decision).inc()


class TurnMetrics:
    """What is counted of turns."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._turns = Counter("twofold_router_turns", "Turns ended, by how.", ("outcome",), registry=registry)
        self.running = Gauge("twofold_router_turns_running", "Turns under way.", registry=registry)
        self._delivered = Counter(
            "twofold_router_usage_delivered",
            "Usage events told to the registry later than with their turn, of any router's turns.",
            registry=registry,
        )
        self.usage_waiting = Gauge(
            "twofold_router_usage_waiting",
            "Usage events that wait for the registry in this process alone.",
            registry=registry,
        )

    def ended(self, outcome: str) -> None:
        """A turn has ended: completed, or the reason of its refusal."""
        self._turns.labels(outcome).inc()

    def usage_delivered(self, events: int) -> None:
        """So many events were told late."""
        self._delivered.inc(events)


class Metrics:
    """Counters of one router."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._copies = Counts(
            "twofold_router_copies",
            "Permissions, routes and terms that were answered from, by where they came from.",
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
        self.events = EventMetrics(registry)
        self.sessions = SessionMetrics(registry)
        self.limits = LimitMetrics(registry)
        self.turns = TurnMetrics(registry)

    def copies(self, kind: str) -> Callable[[Source], None]:
        """What counts answers of this kind by where they came from; their series are looked up now, not for each answer."""
        counts = {source: self._copies.labels(kind, source.value) for source in Source}
        return lambda source: counts[source].inc()

    def heard(self, outcome: Outcome) -> None:
        """What became of a message was heard."""
        self._outcomes.labels(outcome.value).inc()
