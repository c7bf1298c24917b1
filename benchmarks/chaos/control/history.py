"""What was written, what callers were told, and what was done to the servers: nouns, without servers.

All times are of the clock that leases are counted by (seconds since the machine started).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import NamedTuple

FOREVER = float("inf")


class Pair(NamedTuple):
    """A user and an agent of the one workspace of a schedule."""

    user: str
    agent: str


class Told(Enum):
    """What a router said of a pair."""

    ALLOWED = "allowed"
    DENIED = "denied"
    UNKNOWN = "no such agent"
    GONE = "gone"
    UNPUBLISHED = "not published"
    # The router cannot tell, and says when to ask again.
    UNAVAILABLE = "unavailable"
    # The token is of another history.
    HISTORY = "history changed"
    OVERLOADED = "overloaded"
    # Nobody said anything: the router is down, or stopped, or the caller had no more time.
    NOTHING = "no answer"
    # None of those that the contract names.
    WRONG = "a wrong code"


@dataclass(frozen=True, slots=True)
class Token:
    """A place in the registry's history that a caller carries."""

    epoch: int
    revision: int


@dataclass(frozen=True, slots=True)
class Answer:
    """One pair of one call. `only_permission`: a Check, which says nothing of the route.

    `relied`: it came while it could be relied on, counted from when the call was sent.
    """

    router: int
    pair: Pair
    sent: float
    came: float
    told: Told
    only_permission: bool = False
    url: str = ""
    relied: bool = False
    token: Token | None = None
    source: str = ""
    detail: str = ""


@dataclass(frozen=True, slots=True)
class Write:
    """A change that was acknowledged: at which revision. `waited`: when this was said, no router answered from before it."""

    token: Token
    sent: float
    came: float
    waited: bool = False


class Verdict(Enum):
    """What the registry says of a pair's permission."""

    GRANT = "grant"
    ROLE = "role"
    DENIED = "denied"
    AGENT_UNKNOWN = "no such agent"
    AGENT_GONE = "gone"


class Route(NamedTuple):
    """What the registry says of an agent: where it is, and whether it takes messages. None stands for no such agent."""

    url: str
    published: bool
    gone: bool


class State(NamedTuple):
    """All that an answer about a pair may say. `ends` is when the grant ends by itself."""

    verdict: Verdict
    ends: float
    route: Route | None


@dataclass(frozen=True, slots=True)
class Change:
    """One revision: when its commit was at the earliest, and what it made of the pairs that it touched."""

    revision: int
    earliest: float
    states: Mapping[Pair, State]


@dataclass(frozen=True, slots=True)
class Era:
    """A stretch of history: the first, or one that began when an older copy of Postgres was put in its place.

    At its begin, some time between `since` and `begun`, everything was as in `states`. `read`: when the changes were read,
    after the last of them. `epoch_max`: epochs up to this one, and above that of the era before, are of this era.
    """

    since: float
    begun: float
    revision: int
    states: Mapping[Pair, State]
    changes: Sequence[Change] = ()
    read: float = FOREVER
    epoch_max: float = FOREVER


class Away(NamedTuple):
    """For how long a router could surely hear nothing of Postgres."""

    router: int
    since: float
    until: float


@dataclass
class History:
    """Everything that one schedule saw. `restarts` of Postgres, each of which ends an epoch: from when to when."""

    eras: list[Era] = field(default_factory=list)
    writes: list[Write] = field(default_factory=list)
    answers: list[Answer] = field(default_factory=list)
    aways: list[Away] = field(default_factory=list)
    restarts: list[tuple[float, float]] = field(default_factory=list)
    # When Redis lost data, and how often a router lost what only it knew.
    losses: list[tuple[float, float]] = field(default_factory=list)
    kills: int = 0
    stuck: list[str] = field(default_factory=list)
    # When the last fault had been healed.
    calm: float = FOREVER


@dataclass(frozen=True, slots=True)
class Violation:
    """Something that must never happen, and where it did."""

    kind: str
    router: int
    at: float
    detail: str
