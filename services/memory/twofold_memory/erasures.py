"""Erasures: nothing of the content is left, in any store that the receipt calls done.

The tombstone is committed first: from then on no reader sees and no late writer reaches what was there. Rows and copies
follow in small steps, each one transaction that any worker may make, so that whoever is killed in the middle is no loss. A
store that does not answer is asked again each second.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import Enum
from functools import partial
from typing import NamedTuple, Protocol

import structlog

from twofold_chassis.alongside import alongside
from twofold_chassis.outliving import Outliving
from twofold_chassis.refusals import NotFound, Overloaded, Reason, Refusal
from twofold_chassis.requests import Attempt
from twofold_memory.keys import JOURNAL_SHARDS
from twofold_memory.preferences import UserKey
from twofold_memory.purges import Purge, Purges
from twofold_memory.threads import ThreadKey

_PERIOD_S = 1.0
_STEPS_A_ROUND = 50
_POLL_S = 0.02
_IDLE_MAX = 2
_AT_ONCE = 8
_COPIES_AT_ONCE = 256
_UNDER_WAY_MAX = 256


class ErasureUnknown(NotFound):
    """No such erasure in the workspace."""

    reason = Reason.REASON_ERASURE_UNKNOWN


class Kind(Enum):
    """What is erased; the numbers are those of the contract and of the table."""

    CONVERSATION = 1
    USER = 2
    WORKSPACE = 3
    RETENTION = 4


class ErasureKey(NamedTuple):
    """Which erasure."""

    workspace_id: str
    erasure_id: str


@dataclass(frozen=True, slots=True)
class Wish:
    """Something to be erased: a conversation, all of a user, or all of a workspace. `actor` asks for it."""

    key: ErasureKey
    kind: Kind
    actor: str
    thread_id: str | None = None
    user_id: str | None = None


@dataclass(frozen=True, slots=True)
class Erasure:
    """The receipt. Times are None until nothing is left there; counts are of what has gone so far."""

    key: ErasureKey
    kind: Kind
    thread_id: str | None
    user_id: str | None
    actor: str
    asked_at: datetime
    rows_gone_at: datetime | None
    windows_gone_at: datetime | None
    copies_gone_at: datetime | None
    done_at: datetime | None
    epoch: int | None
    conversations: int
    windows: int
    copies: int
    rows: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class Retention:
    """How many days a workspace's conversations are kept after their last change; 0: for ever. Version 0: never set."""

    workspace_id: str
    days: int = 0
    version: int = 0
    updated_at: datetime | None = None


@dataclass(frozen=True, slots=True)
class Step:
    """A step that was made: windows that must go because of it, whether more can be done now, whether all is done."""

    key: ErasureKey
    purges: Sequence[Purge] = ()
    more: bool = False
    done: bool = False


class Remains(NamedTuple):
    """A conversation whose window is gone, and whose other copies up to this epoch must go, too."""

    key: ThreadKey
    epoch: int


class CopyPurge(NamedTuple):
    """A user whose copies of preferences before this version must go."""

    user: UserKey
    version: int


class Store(Protocol):
    """The truth about what is to be erased, and the rows that are."""

    async def begin(self, attempt: Attempt, wish: Wish) -> tuple[ErasureKey, Sequence[Purge]]:
        """Writes the wish down, and the tombstone of a single conversation; or finds what a repeat has begun before."""
        ...

    async def get(self, key: ErasureKey) -> Erasure:
        """The receipt."""
        ...

    async def due(self) -> ErasureKey | None:
        """One that is due, and from now on for a second no more."""
        ...

    async def step(self, key: ErasureKey) -> Step | None:
        """Makes the next step of an erasure; None if somebody else is at it, or it is done."""
        ...

    async def remains(self, key: ErasureKey) -> Sequence[Remains]:
        """Some conversations of an erasure whose windows are gone and whose other copies may be there."""
        ...

    async def remains_gone(self, key: ErasureKey, gone: Sequence[Remains]) -> None:
        """Those copies are gone."""
        ...

    async def retire(self) -> bool:
        """Begins an erasure of what one workspace has kept for long enough; whether there was one to look at."""
        ...

    async def due_copies(self, count: int) -> Sequence[CopyPurge]:
        """Some copies of preferences that must go."""
        ...

    async def recent_copies(self, behind: UserKey, count: int) -> Sequence[CopyPurge]:
        """Some of all that can matter to a copy that is alive, done or not."""
        ...

    async def copy_gone(self, purge: CopyPurge) -> None:
        """That copy is gone."""
        ...

    async def forget_copies(self, count: int) -> None:
        """Drops some that no copy can need any more."""
        ...


class Connection(Protocol):
    """The way to the copies."""

    async def connected(self) -> int | None:
        """A number of the connection, if Redis answers."""
        ...


class Journal(Protocol):
    """Turns that wait for the store."""

    async def counts(self, threads: Sequence[ThreadKey]) -> list[int | None]:
        """How many turns of each wait; None where nobody can know."""
        ...

    async def drain(self, key: ThreadKey) -> object:
        """Brings what may go of a conversation's waiting turns into the store."""
        ...


class Index(Protocol):
    """Where conversations are found of which turns may wait."""

    async def indexed(self, shard: int) -> Mapping[ThreadKey, str]:
        """Those in a part of it."""
        ...


class Summaries(Protocol):
    """The copies of summaries."""

    async def drop(self, key: ThreadKey, epoch: int) -> bool:
        """Drops a copy of this epoch or an older one, and keeps late ones out; whether that is sure."""
        ...


class Preferences(Protocol):
    """The copies of preferences."""

    async def drop(self, user: UserKey, version: int) -> bool:
        """Drops a copy that is older than this version, and keeps late ones out; whether that is sure."""
        ...


class Erasures:
    """Does what is due."""

    def __init__(
        self,
        store: Store,
        purges: Purges,
        summaries: Summaries,
        preferences: Preferences,
        connection: Connection,
        journal: Journal,
        index: Index,
        *,
        unreachable: type[Exception],
        wait_s: float = 2.0,
    ) -> None:
        """`unreachable`: what is raised where the index cannot be read. `wait_s`: how long a call waits for DONE."""
        self._store = store
        self._purges = purges
        self._summaries = summaries
        self._preferences = preferences
        self._connection = connection
        self._journal = journal
        self._index = index
        self._unreachable = unreachable
        self._wait_s = wait_s
        self._repeated_for: int | None = None
        self._outliving = Outliving("erasures are asked for", most=_UNDER_WAY_MAX)
        self._logger = structlog.get_logger("twofold.erasures")

    async def erase(self, attempt: Attempt, wish: Wish) -> Erasure:
        """Erases; the receipt says what is left to do, if it cannot be done soon. Cancelling changes nothing.

        Raises ConversationUnknown, RequestReused.
        """
        key = await self._outliving.do(partial(self._begin, attempt, wish))
        with contextlib.suppress(Overloaded):  # then rounds do what is left, and the receipt says so
            await self._outliving.do(partial(self._follow, key))
        return await self._store.get(key)

    async def drain(self) -> None:
        """Returns when nothing is under way; what is left to do is found by others."""
        await self._outliving.drain()

    async def round(self) -> bool:
        """Does some of what is due; whether there is more. Raises StoreUnavailable and its like."""
        more = await self._store.retire()
        for _ in range(_STEPS_A_ROUND):
            key = await self._store.due()
            if key is None:
                break
            more = await self._went_on(key) or more
        await self._copies()
        return more

    async def _went_on(self, key: ErasureKey) -> bool:
        try:
            step = await self._store.step(key)
            if step is not None:
                await self._behind(step)
        except Refusal:
            raise
        except Exception as error:
            # A defect: it may not keep the others from what is due to them, and is seen again in a second.
            self._logger.error("an erasure failed", erasure_id=key.erasure_id, exc_info=error)
            return False
        return step is not None and step.more

    @contextlib.asynccontextmanager
    async def repeated(self) -> AsyncIterator[None]:
        """A round each second for as long as the block runs."""
        async with alongside(self._repeat()):
            yield

    async def _begin(self, attempt: Attempt, wish: Wish) -> ErasureKey:
        await self._brought_in(wish)
        key, purges = await self._store.begin(attempt, wish)
        await self._purged(purges)
        return key

    async def _brought_in(self, wish: Wish) -> None:
        """What waits in the journal comes into the store first, so that it is found there."""
        # Without Redis nobody can know; whether the store is there, it says itself next.
        with contextlib.suppress(Refusal, TimeoutError, self._unreachable):
            async with asyncio.timeout(self._wait_s):
                threads = await self._threads_of(wish)
                counts = await self._journal.counts(threads) if threads else []
                for key, count in zip(threads, counts, strict=True):
                    if count:
                        await self._journal.drain(key)

    async def _threads_of(self, wish: Wish) -> list[ThreadKey]:
        """Those of which turns may wait."""
        if wish.thread_id is not None:
            return [ThreadKey(wish.key.workspace_id, wish.thread_id)]
        shards = await asyncio.gather(*map(self._index.indexed, range(JOURNAL_SHARDS)))
        return [key for shard in shards for key in shard if key.workspace_id == wish.key.workspace_id]

    async def _follow(self, key: ErasureKey) -> None:
        """Works on one erasure until it is done, must wait, or takes too long: then rounds go on, here or elsewhere."""
        now = asyncio.get_running_loop().time
        until, idle = now() + self._wait_s, 0
        with contextlib.suppress(Refusal):
            while idle < _IDLE_MAX and now() < until:
                step = await self._store.step(key)
                if step is None:  # another worker has it, or it is done
                    if (await self._store.get(key)).done_at is not None:
                        return
                    await asyncio.sleep(_POLL_S)
                    continue
                await self._behind(step)
                if step.done:
                    return
                if not step.more:
                    await self._copies()
                    idle += 1  # what this leaves to be settled, the next step finds

    async def _behind(self, step: Step) -> None:
        """What follows a step's commit: its windows, and other copies of what has no window any more."""
        await self._purged(step.purges)
        if step.done:
            return
        remains = await self._store.remains(step.key)
        sure = await asyncio.gather(*(self._summaries.drop(key, epoch) for key, epoch in remains))
        gone = [remain for remain, done in zip(remains, sure, strict=True) if done]
        if gone:
            await self._store.remains_gone(step.key, gone)

    async def _purged(self, purges: Sequence[Purge]) -> None:
        places = asyncio.Semaphore(_AT_ONCE)

        async def one(purge: Purge) -> None:
            async with places:
                await self._purges.do(purge)

        await asyncio.gather(*map(one, purges))

    async def _copies(self) -> None:
        """Copies of preferences, and once more behind each new connection to Redis: an older state may have come back."""
        generation = await self._connection.connected()
        if generation is None:
            return
        if generation != self._repeated_for and await self._repeated():
            self._repeated_for = generation
        while due := await self._store.due_copies(_COPIES_AT_ONCE):
            if not await self._dropped(due):
                return
            for purge in due:
                await self._store.copy_gone(purge)
        await self._store.forget_copies(_COPIES_AT_ONCE)

    async def _repeated(self) -> bool:
        behind = UserKey("", "")
        while recent := await self._store.recent_copies(behind, _COPIES_AT_ONCE):
            if not await self._dropped(recent):
                return False
            behind = recent[-1].user
        return True

    async def _dropped(self, purges: Sequence[CopyPurge]) -> bool:
        return all(await asyncio.gather(*(self._preferences.drop(*purge) for purge in purges)))

    async def _repeat(self) -> None:
        while True:
            more = False
            try:
                more = await self.round()
            except Refusal as refusal:
                # Postgres is away or busy: what is not done stays due.
                self._logger.debug("erasures wait", reason=refusal.message)
            except Exception as error:
                # Whatever it was, the next round must come: what is asked to be erased may not lie there for ever.
                self._logger.error("erasures failed", exc_info=error)
            await asyncio.sleep(0 if more else _PERIOD_S)
