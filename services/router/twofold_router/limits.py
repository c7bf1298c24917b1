"""Limits: how much users, agents and workspaces may use in a span of time, counted in all of them at once or in none.

A span is cut into cells, and the oldest cell that reaches into it counts in full. So never more than the limit is used in
any span; and who is refused finds that more than limit − cost was used in a span that is longer by one cell.
"""

from collections.abc import Mapping, Sequence
from enum import Enum, StrEnum
from typing import NamedTuple, Protocol

from twofold_chassis.refusals import Quota, QuotaExhausted, Reason, Unavailable
from twofold_router.permissions import PairKey
from twofold_router.terms import Limit, LimitKind

_HOUR_S, _MINUTE_S, _DAY_S = 3600, 60, 86_400


class Subject(Enum):
    """Of whom."""

    USER = "user"
    AGENT = "agent"
    WORKSPACE = "workspace"


class Cost(NamedTuple):
    """What an operation uses: at least what is known beforehand. Money is in micro-units."""

    messages: int = 1
    tokens: int = 0
    micros: int = 0


NOTHING = Cost(0, 0, 0)


class Meter(NamedTuple):
    """How a kind of limit is counted: `unit` is a field of Cost, `name` tells the meters of a subject apart."""

    subject: Subject
    name: str
    span_s: int
    unit: str


METERS: Mapping[LimitKind, Meter] = {
    LimitKind.USER_HOUR_MESSAGES: Meter(Subject.USER, "hour", _HOUR_S, "messages"),
    LimitKind.USER_MINUTE_MESSAGES: Meter(Subject.USER, "minute", _MINUTE_S, "messages"),
    LimitKind.AGENT_HOUR_MESSAGES: Meter(Subject.AGENT, "hour", _HOUR_S, "messages"),
    LimitKind.WORKSPACE_DAY_MESSAGES: Meter(Subject.WORKSPACE, "messages", _DAY_S, "messages"),
    LimitKind.WORKSPACE_DAY_TOKENS: Meter(Subject.WORKSPACE, "tokens", _DAY_S, "tokens"),
    LimitKind.WORKSPACE_DAY_MICROS: Meter(Subject.WORKSPACE, "micros", _DAY_S, "micros"),
}
"""All of them are counted whenever anything is: a limit that is set later knows what was used before."""


class Operation(NamedTuple):
    """Something that is counted once, however often it is asked for. Only its id and whose it is name it."""

    pair: PairKey
    operation_id: str
    cost: Cost = Cost()


class Claim(NamedTuple):
    """What a question asks of the limits. Without an id one is made where there is a limit; `peeks`: only to look."""

    operation_id: str | None = None
    cost: Cost = Cost()
    peeks: bool = False


class LimitsSource(StrEnum):
    """What the limits were held against: everything that is counted, this router's share of them, or nothing."""

    COUNTED = "counted"
    LOCAL_SHARE = "local_share"
    NONE = "none"


class LimitStatus(NamedTuple):
    """How a limit stands. An amount of 0: there is none. `retry_s` is None where it does not refuse, or for ever."""

    kind: LimitKind
    subject: str
    amount: int
    used: int
    reset_s: float
    is_shadow: bool
    would_refuse: bool
    retry_s: float | None

    @property
    def remaining(self) -> int:
        """What may still be used."""
        return max(0, self.amount - self.used)


class Counted(NamedTuple):
    """It may pass. `at_s` is when it was counted first: the time that its usage event must carry, too."""

    operation_id: str
    is_duplicate: bool
    at_s: float | None
    limits: tuple[LimitStatus, ...]
    source: LimitsSource


UNCOUNTED = Counted("", False, None, (), LimitsSource.NONE)


class Settled(NamedTuple):
    """What became of settling: whether it had been done before, and the time of the operation."""

    is_duplicate: bool
    at_s: float


class LimitReached(QuotaExhausted):
    """A limit is reached, and nothing was counted."""

    reason = Reason.REASON_LIMIT_REACHED

    def __init__(self, limits: Sequence[LimitStatus]) -> None:
        """Of these, those that refuse and are no shadows."""
        refusing = [limit for limit in limits if limit.would_refuse and not limit.is_shadow]
        retries = [limit.retry_s for limit in refusing if limit.retry_s is not None]
        named = ", ".join(f"{limit.kind.value} ({_words(limit)})" for limit in refusing)
        super().__init__(
            f"limits are reached: {named}",
            [Quota(limit.subject, f"{limit.kind.value}: {_words(limit)}") for limit in refusing],
            retry_after_s=max(retries) if len(retries) == len(refusing) else None,
        )
        self.limits = tuple(limits)


def _words(limit: LimitStatus) -> str:
    used = f"{limit.used} of {limit.amount} used"
    return used if limit.retry_s is not None else f"{used}, and this operation costs more than {limit.amount}"


class LimitsUnknown(Unavailable):
    """How the limits stand cannot be told, and this router's own share of them is used up."""

    reason = Reason.REASON_REDIS_UNAVAILABLE


class Mark(NamedTuple):
    """How one meter stands, in milliseconds since 1970: a retry of 0 is now, of −1 never."""

    used: int
    retry_ms: int
    reset_ms: int


class Outcome(Enum):
    """What became of counting."""

    COUNTED = "counted"
    DUPLICATE = "duplicate"
    REFUSED = "refused"
    PEEKED = "peeked"


class Tally(NamedTuple):
    """The answer of who counts: how each meter stands, in the order of METERS; of a duplicate as it stood at first."""

    outcome: Outcome
    at_ms: int
    marks: Sequence[Mark]


class CountersLost(Exception):  # noqa: N818  (a state, not an error)
    """The workspace's counters are not complete: nothing was counted."""


class CountersAway(Exception):  # noqa: N818  (a state, not an error)
    """Who counts does not answer. Unless it was never asked, it may have counted."""

    def __init__(self, *, asked: bool) -> None:
        super().__init__("the counters do not answer")
        self.asked = asked


class Counters(Protocol):
    """Where all routers count. Every method raises CountersLost and CountersAway."""

    async def count(self, operation: Operation, limits: Sequence[Limit], *, peeks: bool = False) -> Tally:
        """Counts in all meters, or, if one of the limits refuses, in none. Raises RequestReused."""
        ...

    async def settle(self, operation: Operation, at_s: float | None) -> Settled:
        """Puts the cost in the place of what was counted; of what was not, at this time. Raises RequestReused."""
        ...

    async def add(self, operation: Operation, at_s: float) -> None:
        """Counts one that passed elsewhere, at this time, unless it is known. Raises RequestReused."""
        ...

    async def release(self, operation: Operation) -> None:
        """Takes back what was counted, if it is not settled. Raises RequestReused."""
        ...


_PREFIXES = {subject: f"{subject.value}:" for subject in Subject}
# Of each kind: its place among the meters, what stands before the id of its subject, and where that is in a pair.
_PLACES = {
    kind: (place, _PREFIXES[meter.subject], PairKey._fields.index(f"{meter.subject.value}_id"))
    for place, (kind, meter) in enumerate(METERS.items())
}


def subject_id(kind: LimitKind, pair: PairKey) -> str:
    """Of whom a limit is, e.g. "user:ada"."""
    _, prefix, field = _PLACES[kind]
    return prefix + pair[field]


def statuses(tally: Tally, operation: Operation, limits: Sequence[Limit]) -> tuple[LimitStatus, ...]:
    """How these limits stand."""
    (_, at_ms, marks), pair = tally, operation.pair
    found = []
    for kind, amount, is_shadow in limits:
        place, prefix, field = _PLACES[kind]
        used, retry_ms, reset_ms = marks[place]
        retry_s = (retry_ms - at_ms) / 1000 if retry_ms > 0 else None
        reset_s = (reset_ms - at_ms) / 1000 if reset_ms > at_ms else 0.0
        found.append(LimitStatus(kind, prefix + pair[field], amount, used, reset_s, is_shadow, retry_ms != 0, retry_s))
    return tuple(found)
