"""Dead letters: turns that were journaled and cannot be stored, until an operator replays or discards them."""

from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from typing import Any, NamedTuple, Protocol

from twofold_chassis.outliving import Outliving
from twofold_chassis.refusals import FailedPrecondition, InvalidField, NotFound, Reason, Refusal, RequestReused
from twofold_memory.encoding import entries_of
from twofold_memory.threads import (
    ConversationDeleted,
    ConversationErased,
    Entry,
    KeptTurn,
    NewTurn,
    Outcome,
    ThreadKey,
    TurnDead,
    unknown,
)

REPLAYED, DISCARDED = "REPLAYED", "DISCARDED"
BECAUSE_BYTES_MAX = 1024
_UNDER_WAY_MAX = 64


class DeadLetterUnknown(NotFound):
    """No such dead letter."""

    reason = Reason.REASON_DEAD_LETTER_UNKNOWN


class DeadLetterResolved(FailedPrecondition):
    """Somebody has dealt with it."""

    reason = Reason.REASON_DEAD_LETTER_RESOLVED


class Name(NamedTuple):
    """Which dead letter. Without a hash it is the only one of its turn id."""

    key: ThreadKey
    turn_id: str
    payload_hash: bytes | None

    def unknown(self) -> DeadLetterUnknown:
        """That there is none."""
        return DeadLetterUnknown(f"no dead letter of the turn {self.turn_id!r}", turn_id=self.turn_id)

    def one_of(self, count: int) -> None:
        """Refuses if this names none, or more than one. Raises DeadLetterUnknown, InvalidField."""
        if not count:
            raise self.unknown()
        if count > 1:
            raise InvalidField("payload_hash", "is needed: several dead letters have this turn's id")


class Place(NamedTuple):
    """Where a dead letter stands in lists: they are ordered by age."""

    created_at: datetime
    workspace_id: str
    thread_id: str
    turn_id: str
    payload_hash: bytes


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """One without what was said in it. `reason` is what the journal wrote; `resolution` is empty until it is dealt with."""

    key: ThreadKey
    turn_id: str
    payload_hash: bytes
    reason: str
    sqlstate: str
    payload_bytes: int
    created_at: datetime
    resolution: str = ""
    resolved_at: datetime | None = None
    resolved_by: str = ""
    resolved_because: str = ""

    @property
    def place(self) -> Place:
        """Where it stands in lists."""
        return Place(self.created_at, *self.key, self.turn_id, self.payload_hash)

    def expect_open(self) -> None:
        """Raises DeadLetterResolved if somebody has dealt with it."""
        if self.resolution:
            raise DeadLetterResolved(f"the dead letter was {self.resolution.lower()} before", resolution=self.resolution)


class Opened(NamedTuple):
    """A dead letter with its turn; None if what is kept of it cannot be read."""

    letter: DeadLetter
    turn: NewTurn | None


class Replayed(NamedTuple):
    """The answer of a replay, and what was stored; None if that was the call before this one, which this is a repeat of."""

    answer: bytes
    stored: tuple[NewTurn, KeptTurn] | None


Answer = Callable[[NewTurn, KeptTurn], bytes]
"""Writes the answer of a replay down, so that a repeat of the call gets the very same bytes."""


def refusal(turn: NewTurn, outcome: Outcome) -> Refusal:
    """Why a replay is refused, as an append of this turn would be."""
    match outcome:
        case "CONFLICT":
            return RequestReused(
                f"the turn id {turn.turn_id!r} was used for another turn of this conversation", request_id=turn.turn_id
            )
        case "DELETED":
            return ConversationDeleted("the conversation is deleted", thread_id=turn.key.thread_id)
        case "ERASED":
            return ConversationErased("the conversation is erased", thread_id=turn.key.thread_id)
        case "DEAD":
            return unstorable(turn.turn_id)
        case _:
            return unknown(turn.key)


def unstorable(turn_id: str) -> TurnDead:
    """The refusal for a turn that cannot be stored this time either."""
    return TurnDead("the turn cannot be stored this time either", turn_id=turn_id)


Replay = Callable[[bool], Coroutine[Any, Any, Replayed]]
"""Replays one dead letter; is told whether its order is unsure, because turns that were accepted before it may wait."""


class Cache(Protocol):
    """The copy of the newest messages. Never raises: what it cannot do, it leaves to the next read."""

    async def extend(self, key: ThreadKey, turns: Sequence[tuple[KeptTurn, Sequence[Entry]]]) -> None:
        """Appends committed turns to the thread's window."""
        ...


class Waiting(Protocol):
    """The turns that wait in the journal for Postgres."""

    async def none_before(self, key: ThreadKey) -> bool | None:
        """Whether no turn of the thread waits (any more); None if nobody can know."""
        ...


class Replays:
    """Brings replays to their end. Cancelling a call changes nothing about what happens to its turn."""

    def __init__(self, cache: Cache, waiting: Waiting, told: Callable[[ThreadKey], None]) -> None:
        """`told` hears of each thread that has got a turn."""
        self._cache = cache
        self._waiting = waiting
        self._told = told
        self._outliving = Outliving("dead letters are replayed", most=_UNDER_WAY_MAX)

    async def make(self, key: ThreadKey, replay: Replay) -> bytes:
        """The answer of a replay. Raises Overloaded."""
        return await self._outliving.do(partial(self._made, key, replay))

    async def drain(self) -> None:
        """Returns when no replay is under way."""
        await self._outliving.drain()

    async def _made(self, key: ThreadKey, replay: Replay) -> bytes:
        replayed = await replay(not await self._waiting.none_before(key))
        if replayed.stored is not None:
            turn, kept = replayed.stored
            # One that was found may have been edited since: the window is only told of it.
            entries = [] if kept.duplicate else entries_of(turn.messages, kept.first_seq, turn.turn_id, kept.created_at)
            await self._cache.extend(key, [(kept, entries)])
            self._told(key)
        return replayed.answer
