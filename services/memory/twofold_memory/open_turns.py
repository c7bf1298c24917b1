"""Open turns: a conversation is held for the length of a turn, by a lease that a fence proves, and closed once.

The user's words are in Postgres from the beginning. Closing stores them and what there is of the answer as one turn, in the
transaction that forgets the open one: so there is no moment at which both or neither exist, whoever closes it.
"""

import asyncio
import contextlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from enum import Enum
from functools import partial
from typing import Protocol

from twofold_chassis import call, fields
from twofold_chassis.outliving import Outliving
from twofold_chassis.refusals import Aborted, InvalidField, Reason, Refusal, ResourceExhausted
from twofold_memory.encoding import entries_of
from twofold_memory.threads import (
    AS_SAID,
    INTERRUPTED,
    TURN_BYTES_MAX,
    TURN_MESSAGES_MAX,
    Entry,
    KeptTurn,
    NewMessage,
    NewTurn,
    ThreadKey,
    TurnOnItsWay,
    TurnUnknown,
    Usage,
)
from twofold_memory.turn_queue import Ticket, TurnQueue

# The user's words and a partial answer together are never more than a turn can be.
BEGUN_MESSAGES_MAX = 250
BEGUN_BYTES_MAX = 2 * 1024 * 1024
PARTIAL_MESSAGES_MAX = TURN_MESSAGES_MAX - BEGUN_MESSAGES_MAX
PARTIAL_BYTES_MAX = TURN_BYTES_MAX - BEGUN_BYTES_MAX
LEASE_DEFAULT = timedelta(seconds=60)
LEASE_MAX = timedelta(minutes=15)
OWED_AGE_DEFAULT = timedelta(seconds=10)
OWED_AGE_MAX = timedelta(hours=1)
ACKNOWLEDGED_MAX = 500
WAIT_DEFAULT = timedelta(seconds=30)
WAIT_MAX = timedelta(minutes=15)
WAITERS_MAX = 16
# The caller is told that its wait is over, instead of running into its deadline.
_SPARE_S = 0.2
HASH_BYTES = 32
_UNDER_WAY_MAX = 4096


class TurnHeld(Aborted):
    """Another turn is open on the conversation."""

    reason = Reason.REASON_TURN_HELD


class TurnSuperseded(Aborted):
    """The turn is not open under this fence any more."""

    reason = Reason.REASON_TURN_SUPERSEDED


class TooManyWaiters(ResourceExhausted):
    """Nobody else can wait for this conversation."""

    reason = Reason.REASON_TOO_MANY


class Policy(Enum):
    """What becomes of a turn that is to be opened while another one is; see TurnPolicy in the contract."""

    REJECT = 1
    QUEUE = 2
    TAKE_OVER = 3


class Cause(Enum):
    """Why a turn was interrupted."""

    ABORTED = "aborted"
    SUPERSEDED = "superseded"
    LEASE_ENDED = "lease ended"


@dataclass(frozen=True, slots=True)
class Opening:
    """A turn that is to be opened: what the user said, by whom it will be held, and what to do if another one is open.

    The payload hash of `turn` is of what it is opened with.
    """

    turn: NewTurn
    holder: str
    lease: timedelta
    policy: Policy
    wait: timedelta


@dataclass(frozen=True, slots=True)
class OpenTurn:
    """A turn that is open. `alive`: its lease had not ended when it was read."""

    turn: NewTurn
    fence: int
    holder: str
    lease_until: datetime
    began_at: datetime
    partial: Sequence[NewMessage]
    partial_bytes: int
    alive: bool
    waiting: int = 0


@dataclass(frozen=True, slots=True)
class Owed:
    """How a turn's usage is to stand in the ledger."""

    event_id: str
    user_id: str
    agent_id: str
    event_time: datetime


@dataclass(frozen=True, slots=True)
class TurnName:
    """Which turn."""

    key: ThreadKey
    turn_id: str


@dataclass(frozen=True, slots=True)
class OwedUsage:
    """What a turn consumed, of which the ledger may not know yet."""

    turn: TurnName
    owed: Owed
    usage: Usage


@dataclass(frozen=True, slots=True)
class Answer:
    """What a turn is closed with. `messages` None: what the last heartbeat brought. The hash tells a repeat.

    `owed` is kept with it, as not yet recorded.
    """

    key: ThreadKey
    turn_id: str
    fence: int
    messages: Sequence[NewMessage] | None
    payload_hash: bytes
    bytes: int
    usage: Usage | None
    interrupted: bool
    reason: str = ""
    owed: Owed | None = None


@dataclass(frozen=True, slots=True)
class Heartbeat:
    """A sign of life of a turn's holder."""

    key: ThreadKey
    turn_id: str
    fence: int
    lease: timedelta | None
    partial: Sequence[NewMessage] | None
    bytes: int


@dataclass(frozen=True, slots=True)
class Closed:
    """A turn that is closed now, as it was stored, or that was closed before (then `turn` is None)."""

    kept: KeptTurn
    turn: NewTurn | None


@dataclass(frozen=True, slots=True)
class Begun:
    """A turn that is open: the thread's state before it, and the turn that was closed for it, if any."""

    open: OpenTurn
    epoch: int
    last_seq: int
    duplicate: bool
    closed: Closed | None = None


@dataclass(frozen=True, slots=True)
class Ended:
    """The turn was opened before, and has been closed since."""

    turn_id: str
    kept: KeptTurn
    interrupted: bool


@dataclass(frozen=True, slots=True)
class Held:
    """The conversation is not free: by whom it is held; the fields are empty if only others wait in front."""

    turn_id: str = ""
    holder: str = ""
    lease_until: datetime | None = None

    def refusal(self) -> TurnHeld:
        """What a caller is told who does not wait (any more)."""
        lease_end = "" if self.lease_until is None else self.lease_until.astimezone(UTC).isoformat().replace("+00:00", "Z")
        return TurnHeld(
            "another turn is open on the conversation, or others wait for it",
            retry_after_s=1.0,
            turn_id=self.turn_id,
            holder=self.holder,
            lease_end=lease_end,
        )


@dataclass(frozen=True, slots=True)
class Unsettled:
    """A turn has to be closed first, and it is not sure that nothing stands before it in the journal."""


Beginning = Begun | Ended | Held | Unsettled


class Store(Protocol):
    """The truth."""

    async def begin(self, opening: Opening, ticket: str, *, settled: bool, order_unverified: bool = False) -> Beginning:
        """Opens a turn, or says why not. Without `settled` it closes none."""
        ...

    async def heartbeat(self, heartbeat: Heartbeat) -> datetime:
        """Extends a lease; returns its end."""
        ...

    async def close(self, answer: Answer, *, order_unverified: bool) -> Closed:
        """Stores a turn as it is closed by its holder."""
        ...

    async def current(self, key: ThreadKey, user_id: str | None) -> OpenTurn | None:
        """The turn that is open."""
        ...

    async def owed(self, min_age: timedelta, after: TurnName | None, count: int) -> Sequence[OwedUsage]:
        """What has been owed for so long, in order, from behind a turn on."""
        ...

    async def acknowledge(self, turns: Sequence[TurnName]) -> None:
        """It is not owed any more."""
        ...

    async def left_behind(self, count: int) -> Sequence[ThreadKey]:
        """Threads with a turn whose lease has ended a while ago, to be seen to by this worker for now."""
        ...

    async def sweep(self, key: ThreadKey, *, order_unverified: bool) -> Closed | None:
        """Closes such a turn, if it still is one and nobody else is at work there."""
        ...


class Cache(Protocol):
    """The copy of the newest messages. Never raises: what it cannot do, it leaves to the next read."""

    async def extend(self, key: ThreadKey, turns: Sequence[tuple[KeptTurn, Sequence[Entry]]]) -> None:
        """Appends committed turns to the thread's window."""
        ...


class Waiting(Protocol):
    """The turns that wait in the journal for Postgres: whatever is numbered has to stand behind them."""

    async def none_before(self, key: ThreadKey) -> bool | None:
        """Whether no turn of the thread waits (any more), or None; called before each transaction that closes a turn.

        None means that nobody can know.
        """
        ...


class OpenTurns:
    """The one way of turns that are opened first. Cancelling a call changes nothing about what happens to its turn."""

    def __init__(
        self, store: Store, cache: Cache, waiting: Waiting, queue: TurnQueue, told: Callable[[ThreadKey], None]
    ) -> None:
        """`told` is called with each thread that has got a turn."""
        self._store = store
        self._cache = cache
        self._waiting = waiting
        self._queue = queue
        self._told = told
        self._outliving = Outliving("turns are opened and closed", most=_UNDER_WAY_MAX)

    async def begin(self, opening: Opening) -> Begun | Ended:
        """Opens the turn, or returns it as it is if that was done before. Raises TurnHeld, TooManyWaiters, TurnOnItsWay."""
        ticket = Ticket(opening.turn.key, opening.turn.turn_id, fields.new_id())
        until = time.monotonic() + min(opening.wait.total_seconds(), call.current().left_s() - _SPARE_S)
        answer = await self._outliving.do(partial(self._begun, opening, ticket))
        if isinstance(answer, Held) and opening.policy is Policy.QUEUE:
            return await self._queued(opening, ticket, answer, until)
        if isinstance(answer, Held):
            raise answer.refusal()
        return answer

    async def heartbeat(self, heartbeat: Heartbeat) -> datetime:
        """Extends the lease; returns its end.

        Raises TurnSuperseded, TurnUnknown, ConversationUnknown, ConversationDeleted, ConversationErased.
        """
        return await self._outliving.do(partial(self._store.heartbeat, heartbeat))

    async def close(self, answer: Answer) -> KeptTurn:
        """Stores the turn with its answer. Raises TurnSuperseded, TurnUnknown, TurnOnItsWay, RequestReused."""
        return (await self._outliving.do(partial(self._close, answer))).kept

    async def current(self, key: ThreadKey, user_id: str | None) -> OpenTurn:
        """The turn that is open. Raises TurnUnknown, ConversationUnknown."""
        found = await self._store.current(key, user_id)
        if found is None:
            raise TurnUnknown("no turn is open on the conversation", thread_id=key.thread_id)
        return found

    async def owed(self, min_age: timedelta, after: TurnName | None, count: int) -> Sequence[OwedUsage]:
        """What has been owed for so long, by workspace, conversation and turn, from behind one on."""
        return await self._store.owed(min_age, after, count)

    async def acknowledge(self, turns: Sequence[TurnName]) -> None:
        """The ledger has it, or will never take it."""
        await self._store.acknowledge(turns)

    async def sweep(self, count: int) -> int:
        """Closes turns whose holders are gone, `count` at most; returns how many it has seen to."""
        keys = await self._store.left_behind(count)
        for key in keys:
            await self._outliving.do(partial(self._swept, key))
        return len(keys)

    async def drain(self) -> None:
        """Returns when nothing is under way."""
        await self._outliving.drain()

    async def _begun(self, opening: Opening, ticket: Ticket) -> Begun | Ended | Held:
        key = opening.turn.key
        answer = await self._store.begin(opening, ticket.id, settled=False)
        if isinstance(answer, Unsettled):
            order_unverified = await self._settled(key)
            answer = await self._store.begin(opening, ticket.id, settled=True, order_unverified=order_unverified)
            assert not isinstance(answer, Unsettled)
        if isinstance(answer, Begun) and answer.closed is not None:
            await self._tell(key, answer.closed)
        return answer

    async def _queued(self, opening: Opening, ticket: Ticket, answer: Held, until: float) -> Begun | Ended:
        served = False
        try:
            while True:
                async with asyncio.timeout(max(0.0, until - time.monotonic())):
                    await call.unless_draining(self._queue.called(ticket))
                # Not within the time limit: what has begun to be opened is opened, and its caller is told.
                found = await self._outliving.do(partial(self._begun, opening, ticket))
                if not isinstance(found, Held):
                    served = True
                    return found
                answer = found
        except TimeoutError:
            raise answer.refusal() from None
        finally:
            if not served:
                self._queue.leave(ticket)

    async def _close(self, answer: Answer) -> Closed:
        order_unverified = await self._settled(answer.key)
        closed = await self._store.close(answer, order_unverified=order_unverified)
        await self._tell(answer.key, closed)
        self._queue.wake()
        return closed

    async def _swept(self, key: ThreadKey) -> None:
        with contextlib.suppress(TurnOnItsWay):
            order_unverified = await self._settled(key)
            closed = await self._store.sweep(key, order_unverified=order_unverified)
            if closed is not None:
                await self._tell(key, closed)

    async def _settled(self, key: ThreadKey) -> bool:
        """Sees to it that nothing waits that must come before; returns whether that cannot be known. Raises TurnOnItsWay."""
        none_before = await self._waiting.none_before(key)
        if none_before is False:
            raise TurnOnItsWay("turns that were journaled before are still on their way", retry_after_s=0.2)
        return none_before is None

    async def _tell(self, key: ThreadKey, closed: Closed) -> None:
        if closed.turn is None:
            return
        kept, turn = closed.kept, closed.turn
        entries = entries_of(turn.messages, kept.first_seq, turn.turn_id, kept.created_at)
        await self._cache.extend(key, [(kept, entries)])
        self._told(key)


def whole_turn(
    begun: NewTurn,
    said: Sequence[NewMessage],
    bytes_said: int,
    payload_hash: bytes,
    usage: Usage | None,
    *,
    interrupted: bool,
) -> NewTurn:
    """What the user said and what was answered, as the one turn that they become. Raises InvalidField: too much."""
    messages = [*begun.messages, *(_interrupted(message) if interrupted else message for message in said)]
    if len(messages) > TURN_MESSAGES_MAX:
        raise InvalidField(
            "response_messages", f"with those of the user are {len(messages)}, at most {TURN_MESSAGES_MAX} are allowed"
        )
    size = begun.bytes + bytes_said
    if size > TURN_BYTES_MAX:
        raise InvalidField(
            "response_messages", f"with those of the user have {size} bytes, at most {TURN_BYTES_MAX} are allowed"
        )
    return replace(
        begun,
        user_id=None,  # was looked at when it was opened
        payload_hash=begun.payload_hash + payload_hash,
        messages=messages,
        bytes=size,
        usage=usage,
        status=INTERRUPTED if interrupted else AS_SAID,
    )


def _interrupted(message: NewMessage) -> NewMessage:
    return replace(message, status=INTERRUPTED)


def refuse_closing(turn_id: str) -> Refusal:
    """The refusal for who is not the holder any more."""
    return TurnSuperseded("the turn is not open under this fence any more", turn_id=turn_id)


def split(payload_hash: bytes) -> tuple[bytes, bytes]:
    """Of a turn that was opened first: the hash of its beginning, and of what its holder closed it with, if that was it."""
    return payload_hash[:HASH_BYTES], payload_hash[HASH_BYTES:]
