"""Appending turns: acknowledged when Postgres has committed them, exactly once, in the order of their numbers.

Group commit: while one batch is in flight, what arrives joins the next. An append runs in a task of the service's own: a
caller that goes away changes nothing, and its retry with the same turn id learns what became of it.
"""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Protocol

import cachetools
from prometheus_client import CollectorRegistry, Histogram

from twofold_chassis.breaker import Breaker
from twofold_chassis.gathering import Gathering
from twofold_chassis.refusals import Busy, InvalidField, Overloaded, Refusal, RequestReused, StoreUnavailable
from twofold_memory.draining import Drained
from twofold_memory.encoding import entries_of
from twofold_memory.journaled import EntryKey
from twofold_memory.threads import (
    Appended,
    Candidate,
    ConversationDeleted,
    ConversationErased,
    Entry,
    JournaledTurn,
    KeptTurn,
    NewTurn,
    Refused,
    ThreadKey,
    TurnDead,
    TurnOnItsWay,
    Wanted,
    unknown,
)

_BATCH_TURNS_MAX = 256
_BATCH_BYTES_MAX = 1024 * 1024
_WAITING_MAX = 2048
_WAITING_BYTES_MAX = 64 * 1024 * 1024
_UNDER_WAY_MAX = 8192
_THREADS_AT_ONCE = 4
_KNOWN_THREADS_MAX = 100_000


class Store(Protocol):
    """The truth."""

    async def append(self, turns: Sequence[Candidate]) -> list[Appended]:
        """Stores a batch."""
        ...


class Cache(Protocol):
    """The copy of the newest messages. Never raises: what it cannot do, it leaves to the next read."""

    async def extend(self, key: ThreadKey, turn: KeptTurn, entries: list[Entry]) -> None:
        """Appends a committed turn to the thread's window."""
        ...


class Journal(Protocol):
    """Where turns wait while the truth does not answer."""

    def holds(self, key: ThreadKey) -> bool:
        """Whether this worker has copies of turns of the thread that wait."""
        ...

    async def count(self, key: ThreadKey) -> int | None:
        """How many turns of the thread wait; None if nobody can know."""
        ...

    async def put(self, turn: NewTurn, *, unknown: bool) -> JournaledTurn:
        """Lets a turn wait."""
        ...

    async def drain(self, key: ThreadKey) -> Drained:
        """Brings what may go of a thread's waiting turns into the store."""
        ...


class Appends:
    """The one way of turns into the store, and into the journal where that does not answer in time."""

    def __init__(
        self,
        store: Store,
        cache: Cache,
        journal: Journal,
        *,
        breaker: Breaker,
        lanes: int,
        commit_s: float,
        metrics: CollectorRegistry,
        told: Callable[[ThreadKey], None] = lambda key: None,
    ) -> None:
        """`breaker`: whether Postgres is believed to be too slow or gone; while it is, nobody waits for it, but for one now and
        then. `commit_s`: how long an append waits for the store before it is journaled. `told` hears of each stored turn."""
        self._store = store
        self._cache = cache
        self._journal = journal
        self._commit_s = commit_s
        self._told = told
        self._gathering: Gathering[Candidate, Appended] = Gathering(
            self._commit,
            batch_max=_BATCH_TURNS_MAX,
            waiting_max=_WAITING_MAX,
            lanes=lanes,
            weigh=lambda candidate: candidate.turn.bytes,
            weight_max=_BATCH_BYTES_MAX,
            waiting_weight_max=_WAITING_BYTES_MAX,
        )
        self._breaker = breaker
        self._under_way: dict[tuple[ThreadKey, str], asyncio.Task[KeptTurn | JournaledTurn]] = {}
        # Threads that exist for sure (rows are never removed): their batches need no attempt to make them.
        self._known: cachetools.LRUCache[ThreadKey, None] = cachetools.LRUCache(_KNOWN_THREADS_MAX)
        self._batch_sizes = Histogram(
            "twofold_memory_commit_turns",
            "Turns stored by one commit.",
            registry=metrics,
            buckets=(1, 2, 4, 8, 16, 32, 64, 128, 256),
        )

    async def append(self, turn: NewTurn, wanted: Wanted = Wanted.COMMITTED_IN_TIME) -> KeptTurn | JournaledTurn:
        """Stores the turn, or finds it stored, or lets it wait. Cancelling changes nothing about what happens to the turn.

        Raises ConversationUnknown, ConversationDeleted, ConversationErased, RequestReused, TurnDead, TurnOnItsWay, Busy,
        Overloaded, JournalFull, StoreUnavailable.
        """
        if len(self._under_way) >= _UNDER_WAY_MAX:
            raise Overloaded("too many appends are under way", retry_after_s=0.2)
        name = (turn.key, turn.turn_id)
        while (twin := self._under_way.get(name)) is not None:
            # Never two of one id in a batch: the second looks when the first has ended, however that was.
            await asyncio.wait([twin])
        task = asyncio.create_task(self._append(turn, wanted))
        self._under_way[name] = task
        task.add_done_callback(lambda ended: self._ended(name, ended))
        return await asyncio.shield(task)

    async def drain(self) -> None:
        """Returns when every append that was accepted has ended."""
        while self._under_way:
            await asyncio.wait(self._under_way.values())
        await self._gathering.drain()

    async def _append(self, turn: NewTurn, wanted: Wanted) -> KeptTurn | JournaledTurn:
        waiting = await self._journal.count(turn.key)
        blind = waiting is None
        if self._journal.holds(turn.key) if blind else (waiting or self._journal.holds(turn.key)):
            return await self._behind_others(turn, wanted, blind=blind)
        if wanted is Wanted.JOURNALED and not blind:
            return await self._journal.put(turn, unknown=False)
        candidate = Candidate(turn, turn.key not in self._known, order_unverified=blind)
        if wanted is Wanted.COMMITTED:
            return await self._kept(candidate, await self._gathering.ask(candidate))
        return await self._in_time(candidate, blind=blind)

    async def _in_time(self, candidate: Candidate, *, blind: bool) -> KeptTurn | JournaledTurn:
        """Commits if the store answers in time, else lets the turn wait in the journal."""
        if not self._breaker.admits():
            return await self._journal.put(candidate.turn, unknown=False)
        asked = self._gathering.ask(candidate)
        # Without Redis there is no other way: then it may take twice as long.
        await asyncio.wait([asked], timeout=self._commit_s * (2 if blind else 1))
        if not asked.done():
            self._breaker.failed()
            return await self._journal.put(candidate.turn, unknown=not self._gathering.withdraw(asked))
        try:
            answer = asked.result()
        except StoreUnavailable as refusal:
            self._breaker.failed()
            return await self._journal.put(candidate.turn, unknown=refusal.metadata.get("outcome") != "NOT_STORED")
        self._breaker.succeeded()
        return await self._kept(candidate, answer)

    async def _behind_others(self, turn: NewTurn, wanted: Wanted, *, blind: bool) -> KeptTurn | JournaledTurn:
        """A turn of a thread of which others wait: it must not overtake them."""
        name = EntryKey(turn.turn_id, turn.payload_hash)
        if blind or wanted is Wanted.COMMITTED:
            try:
                drained = await self._journal.drain(turn.key)
            except StoreUnavailable as refusal:
                # This very turn may be among those that wait.
                raise StoreUnavailable(refusal.message, retry_after_s=1.0, outcome="UNKNOWN") from None
            if drained.held or self._journal.holds(turn.key):
                raise TurnOnItsWay("turns before this one are still on their way", retry_after_s=0.2)
            if name in drained.stored:
                return replace(drained.stored[name], duplicate=True)
            candidate = Candidate(turn, False, order_unverified=blind)
            return await self._kept(candidate, await self._gathering.ask(candidate))
        journaled = await self._journal.put(turn, unknown=False)
        if wanted is Wanted.JOURNALED or not self._breaker.admits():
            return journaled
        try:
            async with asyncio.timeout(self._commit_s):
                drained = await self._journal.drain(turn.key)
        except (TimeoutError, StoreUnavailable):
            self._breaker.failed()
            return journaled
        except (Overloaded, Busy):
            return journaled
        self._breaker.succeeded()
        if name in drained.refused:
            raise _refusal(turn, drained.refused[name])
        kept = drained.stored.get(name)
        return journaled if kept is None else replace(kept, duplicate=name not in drained.inserted)

    async def _kept(self, candidate: Candidate, answer: Appended) -> KeptTurn:
        turn = candidate.turn
        if answer.outcome == "MISSING":
            self._known.pop(turn.key, None)
            answer = await self._gathering.ask(replace(candidate, is_new=True))
        kept = _judged(turn, answer)
        self._known[turn.key] = None
        # A turn that was found is not put into the window again: its content may have been edited since.
        entries = [] if kept.duplicate else entries_of(turn.messages, kept.first_seq, turn.turn_id, kept.created_at)
        await self._cache.extend(turn.key, kept, entries)
        self._told(turn.key)
        return kept

    async def _commit(self, turns: Sequence[Candidate]) -> Sequence[Appended | BaseException]:
        self._batch_sizes.observe(len(turns))
        try:
            return await self._store.append(turns)
        except (Busy, InvalidField) as refusal:
            # Nothing of the batch was stored. One thread or one value is to blame: nobody else shall suffer for it.
            if len(turns) == 1:
                return [refusal]
        of_threads: dict[ThreadKey, list[int]] = {}
        for place, candidate in enumerate(turns):
            of_threads.setdefault(candidate.turn.key, []).append(place)
        threads_at_once = asyncio.Semaphore(_THREADS_AT_ONCE)
        answers: dict[int, Appended | BaseException] = {}

        async def apart(places: Sequence[int]) -> Sequence[Appended | BaseException]:
            async with threads_at_once:
                return await self._apart([turns[place] for place in places])

        told = await asyncio.gather(*map(apart, of_threads.values()), return_exceptions=True)
        for places, answer in zip(of_threads.values(), told, strict=True):
            # Whatever befell one thread, the others' turns may be stored by now, and are told so.
            answers.update(zip(places, [answer] * len(places) if isinstance(answer, BaseException) else answer, strict=True))
        return [answers[place] for place in range(len(turns))]

    async def _apart(self, turns: Sequence[Candidate]) -> Sequence[Appended | BaseException]:
        """The turns of one thread, apart from all others: whatever becomes of them is told to them alone."""
        try:
            return await self._store.append(turns)
        except InvalidField as refusal:
            if len(turns) == 1:
                return [refusal]
            return [(await self._apart([turn]))[0] for turn in turns]
        except Refusal as refusal:
            return [refusal] * len(turns)

    def _ended(self, name: tuple[ThreadKey, str], task: "asyncio.Task[KeptTurn | JournaledTurn]") -> None:
        del self._under_way[name]
        if not task.cancelled():
            task.exception()  # its caller may be gone: then nobody else looks at it


def _judged(turn: NewTurn, answer: Appended) -> KeptTurn:
    if answer.turn is not None:
        return answer.turn
    match answer.outcome:
        case "CONFLICT":
            raise _refusal(turn, "KEY_CONFLICT")
        case "DELETED":
            raise _refusal(turn, "DELETED")
        case "ERASED":
            raise _refusal(turn, "ERASED")
        case "DEAD":
            raise _refusal(turn, "INVALID")
        case "AFTER_MISSING":
            raise TurnOnItsWay("the turn before this one is still on its way", retry_after_s=0.2, turn_id=turn.after or "")
        case _:
            raise unknown(turn.key)


def _refusal(turn: NewTurn, why: Refused) -> Refusal:
    match why:
        case "KEY_CONFLICT":
            return RequestReused(
                f"the request id {turn.turn_id!r} was used for another turn of this conversation", request_id=turn.turn_id
            )
        case "DELETED":
            return ConversationDeleted("the conversation is deleted", thread_id=turn.key.thread_id)
        case "ERASED":
            return ConversationErased("the conversation is erased", thread_id=turn.key.thread_id)
        case "INVALID":
            return TurnDead("the turn was journaled and could not be stored", turn_id=turn.turn_id)
        case "FOREIGN":
            return unknown(turn.key)
