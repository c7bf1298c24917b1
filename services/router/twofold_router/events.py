"""Events of agents: a bounded log each, that may be lost, and never loses anything in silence.

Within an epoch of a log its events are numbered 1, 2, 3 …; a new epoch begins whenever what is there may be older than what
was told. So whoever knows an epoch and an offset can be told what follows, or that it cannot be told.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import NamedTuple, Protocol

from twofold_chassis.refusals import OutOfRange, Reason, Unavailable


class LogKey(NamedTuple):
    """Whose log."""

    workspace_id: str
    agent_id: str


class Place(NamedTuple):
    """Behind an event of a log. The epoch is empty where there is no log."""

    epoch: str
    offset: int


class NewEvent(NamedTuple):
    """What somebody publishes."""

    type: str
    payload: bytes = b""
    content_type: str = ""


class Appended(NamedTuple):
    """Where events went. `duplicate`: an earlier call had done it."""

    epoch: str
    first: int
    last: int
    duplicate: bool


class Entry(NamedTuple):
    """An event as the log holds it, in the form of the wire but for its offset."""

    offset: int
    form: bytes


class Reading(NamedTuple):
    """What a log holds behind a place, or from its beginning if it is of another epoch.

    `first` is the oldest entry that it holds, last + 1 if it holds none (0 for who follows it and has it all); `last` the
    newest that was ever appended. `is_all`: no more than `entries` is there.
    """

    epoch: str
    first: int
    last: int
    entries: Sequence[Entry]
    is_all: bool

    @property
    def head(self) -> Place:
        """Behind the newest event."""
        return Place(self.epoch, self.last)


@dataclass(slots=True)
class Batch:
    """Events that are told, without a hole between them. `encoded` is for the face: made once for all who are told them."""

    epoch: str
    entries: Sequence[Entry]
    encoded: bytes | None = field(default=None, compare=False, repr=False)


class Gap(NamedTuple):
    """Events that the log has dropped before they were told."""

    epoch: str
    first: int
    last: int


class Reset(NamedTuple):
    """The log begins anew: what was behind the last event told may be missing."""

    epoch: str


class LogUnavailable(Unavailable):
    """Redis does not answer. `outcome` says of a write whether it can have been kept."""

    reason = Reason.REASON_REDIS_UNAVAILABLE


class OffsetOutOfRange(OutOfRange):
    """What follows a place cannot be told without a hole."""

    reason = Reason.REASON_OFFSET_OUT_OF_RANGE

    def __init__(self, wanted: Place, there: Reading) -> None:
        super().__init__(
            f"what follows offset {wanted.offset} of log_epoch {wanted.epoch!r} is not there (any more)",
            log_epoch=there.epoch,
            first_offset=str(there.first),
            last_offset=str(there.last),
        )
        self.there = there


class Publisher(Protocol):
    """Who tells of what happens at an agent."""

    async def publish(self, log: LogKey, events: Sequence[NewEvent], *, request_id: str | None = None) -> Appended:
        """Appends events, all or none, and tells those who listen. Waits for Redis's budget at most (REDIS__BUDGET_MS).

        With the same request_id it happens once. Raises LogUnavailable, and RequestReused if it was used for other events.
        """
        ...


class Logs(Protocol):
    """The logs of all agents."""

    async def append(self, log: LogKey, events: Sequence[NewEvent], request_id: str | None) -> Appended:
        """Appends events and gives listeners a nudge. Raises LogUnavailable, RequestReused."""
        ...

    async def follow(self, log: LogKey, place: Place) -> Reading:
        """What is there behind the place. Begins the log, or a new epoch of it, if need be. Raises LogUnavailable."""
        ...

    async def head(self, log: LogKey, *, begin: bool) -> Reading:
        """What there is, without entries. With `begin` there is a log. Raises LogUnavailable."""
        ...

    async def read(self, log: LogKey, place: Place, count: int) -> Reading:
        """What is there behind the place; nothing is begun. Raises LogUnavailable."""
        ...


Nudged = Callable[[Place], None]
Missed = Callable[[], None]


class Nudges(Protocol):
    """What tells that a log has grown; it may be late, lost, or tell of what is long known."""

    async def listen(self, log: LogKey, nudged: Nudged, missed: Missed) -> None:
        """Nudges from some moment before this returns. Raises LogUnavailable."""
        ...

    def leave(self, log: LogKey, nudged: Nudged) -> None:
        """No nudges any more."""
        ...


class Events:
    """What can be done with the log of an agent at once; following it is for streams (event_streams.py)."""

    def __init__(self, logs: Logs, *, published: Callable[[int, int], None]) -> None:
        """`published` counts the events that were, and the bytes of their payloads."""
        self._logs = logs
        self._published = published

    async def publish(self, log: LogKey, events: Sequence[NewEvent], *, request_id: str | None = None) -> Appended:
        """As Publisher says."""
        appended = await self._logs.append(log, events, request_id)
        if not appended.duplicate:
            self._published(len(events), sum(len(event.payload) for event in events))
        return appended

    async def list(self, log: LogKey, after: Place | None, count: int) -> Reading:
        """Up to `count` events behind a place, or the oldest ones. Raises OffsetOutOfRange, LogUnavailable."""
        reading = await self._logs.read(log, after or Place("", 0), count)
        if after is not None:
            check_within(after, reading)
        return reading


def check_within(wanted: Place, there: Reading) -> None:
    """Raises OffsetOutOfRange if not all that ever followed the place can be told."""
    if wanted.epoch != there.epoch or not there.first - 1 <= wanted.offset <= there.last:
        raise OffsetOutOfRange(wanted, there)


def told_of(place: Place, reading: Reading) -> tuple[list[Batch | Gap | Reset], Place]:
    """What whoever stands at `place` is told of what was read behind it, and where he stands then.

    Every offset between the two places is in a batch or in a gap.
    """
    told: list[Batch | Gap | Reset] = []
    epoch, offset = place
    if reading.epoch != epoch:
        epoch, offset = reading.epoch, 0
        told.append(Reset(epoch))
    for run in _runs(reading.entries):
        if run[0].offset > offset + 1:
            told.append(Gap(epoch, offset + 1, run[0].offset - 1))
        told.append(Batch(epoch, run))
        offset = run[-1].offset
    if reading.is_all and offset < reading.last:
        told.append(Gap(epoch, offset + 1, reading.last))
        offset = reading.last
    return told, Place(epoch, offset)


def _runs(entries: Sequence[Entry]) -> list[Sequence[Entry]]:
    """The entries cut where one is missing in between. As a rule they are one piece."""
    if not entries:
        return []
    if entries[-1].offset - entries[0].offset == len(entries) - 1:
        return [entries]
    cuts = [index for index, (one, other) in enumerate(pairwise(entries), 1) if other.offset != one.offset + 1]
    return [entries[begin:end] for begin, end in pairwise((0, *cuts, len(entries)))]
