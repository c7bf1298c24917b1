"""What clients saw, what was done to the servers, and what was found in the stores afterwards: nouns, without servers.

All times are of one clock.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum

Texts = tuple[str, ...]


class Told(Enum):
    """What the answer to one attempt of an append said of the turn."""

    COMMITTED = "committed"
    JOURNALED = "journaled"
    # Of this attempt nothing was kept, for sure.
    NOT_STORED = "not stored"
    # Stored or not: there was no answer, or one that says so.
    UNKNOWN = "unknown"


class Level(Enum):
    """What was asked of a read."""

    VERIFIED = "verified"
    AT_LEAST = "at least"
    ANY = "any"


class Promise(Enum):
    """What the answer to a read said of itself."""

    COMPLETE = "complete"
    # Complete for turns that are committed; journaled ones may be missing.
    COMMITTED_ONLY = "committed only"
    # A state up to some number: as of, unverified, partial.
    SOME = "some"
    # There is no such conversation (any more).
    MISSING = "missing"


# What stands between the text of a message as it was first said and what an edit added.
_EDITED = " | "


def edited(text: str, by: str) -> str:
    """The text of a message after an edit."""
    return f"{said(text)}{_EDITED}{by}"


def said(text: str) -> str:
    """The text of a message as it was first said, whatever it says by now."""
    return text.partition(_EDITED)[0]


@dataclass(frozen=True, slots=True)
class Attempt:
    """One call of an append. `after` is the turn whose token it carried."""

    thread: str
    turn_id: str
    texts: Texts
    worker: int
    sent: float
    answered: float | None = None
    told: Told = Told.UNKNOWN
    seqs: tuple[int, int] | None = None
    unverified: bool = False
    after: str = ""

    @property
    def acknowledged(self) -> bool:
        """Whether the caller was promised that the turn is kept."""
        return self.told in (Told.COMMITTED, Told.JOURNALED)


@dataclass(frozen=True, slots=True)
class Shown:
    """A message of an answer. `seq` is 0 if the turn was waiting and had no number yet."""

    seq: int
    turn_id: str
    text: str


@dataclass(frozen=True, slots=True)
class Token:
    """What a read's token promised: this turn, and this number."""

    turn_id: str
    seq: int


@dataclass(frozen=True, slots=True)
class Read:
    """One window that was read."""

    thread: str
    worker: int
    sent: float
    answered: float
    promise: Promise
    asked: int
    messages: tuple[Shown, ...]
    token: Token | None = None
    # The newest number that the answer knows of; the message itself may be cut off by what waits behind it.
    as_of_seq: int = 0


@dataclass(frozen=True, slots=True)
class Deletion:
    """A conversation that was asked to be deleted; `answered` is None if nobody knows whether it is."""

    thread: str
    sent: float
    answered: float | None


@dataclass(frozen=True, slots=True)
class Edit:
    """A message that was asked to say `text` from now on; `answered` is None if nobody knows whether it does."""

    thread: str
    seq: int
    text: str
    sent: float
    answered: float | None


@dataclass(frozen=True, slots=True)
class Sample:
    """What Redis held of a thread at one moment, taken in one step; `problem` says what could not even be read."""

    thread: str
    at: float
    epoch: int
    first_seq: int
    messages: tuple[Shown, ...]
    problem: str = ""


@dataclass(frozen=True, slots=True)
class Span:
    """From when to when."""

    since: float
    until: float

    def meets(self, since: float, until: float) -> bool:
        """Whether any moment is in both."""
        return self.since <= until and since <= self.until


@dataclass(frozen=True, slots=True)
class Death:
    """A worker that was killed."""

    worker: int
    at: float


@dataclass
class History:
    """Everything that one schedule saw. `losses` are when Redis lost data."""

    attempts: list[Attempt] = field(default_factory=list)
    reads: list[Read] = field(default_factory=list)
    deletions: list[Deletion] = field(default_factory=list)
    edits: list[Edit] = field(default_factory=list)
    samples: list[Sample] = field(default_factory=list)
    losses: list[Span] = field(default_factory=list)
    deaths: list[Death] = field(default_factory=list)
    # Journaled turns (thread, id) that still waited when that had been given up.
    overdue: list[tuple[str, str]] = field(default_factory=list)
    # Calls that were neither answered nor refused in time, and calls that were refused for what no fault explains.
    stuck: list[tuple[str, str]] = field(default_factory=list)
    refused: list[tuple[str, str]] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Row:
    """One message as Postgres holds it."""

    seq: int
    turn_id: str
    index: int
    text: str


@dataclass(frozen=True, slots=True)
class Kept:
    """One turn as Postgres knows it."""

    first_seq: int
    last_seq: int
    unverified: bool = False


@dataclass(frozen=True, slots=True)
class Thread:
    """A thread at the end: what Postgres holds, what was given up with its reason, and what waits in Redis even now."""

    rows: Sequence[Row] = ()
    turns: Mapping[str, Kept] = field(default_factory=dict)
    dead: frozenset[tuple[str, Texts]] = frozenset()
    waiting: frozenset[str] = frozenset()
    epoch: int = 1
    next_seq: int = 1
    deleted: bool = False


@dataclass(frozen=True, slots=True)
class Violation:
    """Something that must never happen, and where it did."""

    kind: str
    thread: str
    turns: tuple[str, ...]
    detail: str
