"""Appending turns: acknowledged when Postgres has committed them, exactly once, in the order of their numbers.

Group commit: while one batch is in flight, what arrives joins the next. An append runs in a task of the service's own: a
caller that goes away changes nothing, and its retry with the same turn id learns what became of it.
"""

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import replace
from typing import Any, Protocol

import cachetools
from prometheus_client import CollectorRegistry, Histogram

from twofold_chassis.breaker import Breaker
from twofold_chassis.gathering import Gathering, Late
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

    async def extend(self, key: ThreadKey, turns: Sequence[tuple[KeptTurn, Sequence[Entry]]]) -> None:
        """Appends committed turns to the thread's window."""
        ...


class Journal(Protocol):
    """Where turns wait while the truth does not answer."""

    def holds(self, key: ThreadKey) -> bool:
        """Whether this worker has copies of turns of the thread that wait."""
        ...

    async def counts(self, threads: Sequence[ThreadKey]) -> list[int | None]:
        """How many turns of each thread wait; None if nobody can know."""
        ...

    async def put(self, turn: NewTurn, *, unknown: bool) -> JournaledTurn:
        """Lets a turn wait."""
        ...

    async def drain(self, key: ThreadKey) -> Drained:
        """Brings what may go of a thread's waiting turns into the store."""
        ...


class _Behind(Exception):  # noqa: N818  (a state, not an error)
    """Turns of the thread wait in the journal: this one must not overtake them. `blind`: only this worker knows of them."""

    def __init__(self, *, blind: bool) -> None:
        super().__init__("others wait")
        self.blind = blind


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
        """`commit_s`: how long the store may take before appends are journaled instead. `breaker`: whether it is believed to
        be gone; while it is, nobody asks it, but for one now and then. `told` hears of each thread that has got messages.
        """
        self._store = store
        self._cache = cache
        self._journal = journal
        self._breaker = breaker
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
            patience_s=commit_s,
            patient=lambda candidate: candidate.wanted is Wanted.COMMITTED,
        )
        # Turns in a batch or on the longer way, by name: never two of one id at a time.
        self._under_way: dict[tuple[ThreadKey, str], asyncio.Future[Any]] = {}
        self._tellings: set[asyncio.Task[None]] = set()
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
        if wanted is Wanted.JOURNALED or (wanted is Wanted.COMMITTED_IN_TIME and not self._breaker.admits()):
            return await self._outliving(name, self._waiting(turn, wanted))
        asked = self._ask(turn, wanted)
        self._note(name, asked)
        try:
            # Shielded: its end is that of the batch, not of the caller.
            answer = await asyncio.shield(asked)
        except asyncio.CancelledError:
            self._note(name, asyncio.create_task(self._without_caller(turn, wanted, asked)))
            raise
        except (_Behind, StoreUnavailable, Late) as trouble:
            return await self._outliving(name, self._otherwise(turn, wanted, trouble))
        self._breaker.succeeded()
        if answer.outcome == "MISSING":
            self._known.pop(turn.key, None)
            return await self.append(turn, wanted)
        return _judged(turn, answer)

    async def drain(self) -> None:
        """Returns when every append that was accepted has ended."""
        while self._under_way:
            await asyncio.wait(self._under_way.values())
        await self._gathering.drain()
        while self._tellings:
            await asyncio.wait(self._tellings)

    def _note(self, name: tuple[ThreadKey, str], work: "asyncio.Future[Any]") -> None:
        self._under_way[name] = work
        work.add_done_callback(lambda ended: self._ended(name, ended))

    async def _outliving(
        self, name: tuple[ThreadKey, str], work: Coroutine[Any, Any, KeptTurn | JournaledTurn]
    ) -> KeptTurn | JournaledTurn:
        """Does the work in a task of its own, so that it ends as it would have if its caller goes away."""
        task = asyncio.create_task(work)
        self._note(name, task)
        return await asyncio.shield(task)

    def _ask(self, turn: NewTurn, wanted: Wanted) -> "asyncio.Future[Appended]":
        return self._gathering.ask(Candidate(turn, turn.key not in self._known, wanted=wanted))

    async def _without_caller(self, turn: NewTurn, wanted: Wanted, asked: "asyncio.Future[Appended]") -> None:
        """Goes on where a caller was waiting for a batch, and has gone away."""
        try:
            await asked
        except (_Behind, StoreUnavailable, Late) as trouble:
            await self._otherwise(turn, wanted, trouble)

    async def _otherwise(
        self, turn: NewTurn, wanted: Wanted, trouble: _Behind | StoreUnavailable | Late
    ) -> KeptTurn | JournaledTurn:
        """The longer way of a turn that its batch could not take, or not in time."""
        if isinstance(trouble, _Behind):
            return await self._behind_others(turn, wanted, blind=trouble.blind)
        self._breaker.failed()
        if wanted is Wanted.COMMITTED:
            raise trouble
        unknown = trouble.sent if isinstance(trouble, Late) else _may_be_stored(trouble)
        return await self._journal.put(turn, unknown=unknown)

    async def _waiting(self, turn: NewTurn, wanted: Wanted) -> KeptTurn | JournaledTurn:
        """A turn that is not to wait for the store, or for which it cannot be asked now."""
        try:
            return await self._journal.put(turn, unknown=False)
        except StoreUnavailable as refusal:
            if wanted is not Wanted.JOURNALED:
                raise
            unknown = _may_be_stored(refusal)
        # There is no journal: then nothing less than a commit will do.
        try:
            return _judged(turn, await self._ask(turn, wanted))
        except (_Behind, Late, StoreUnavailable) as trouble:
            if isinstance(trouble, StoreUnavailable) and not unknown:
                raise
            raise StoreUnavailable(
                "neither the durable store nor the journal answers", retry_after_s=1.0, outcome="UNKNOWN"
            ) from None

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
            try:
                return _judged(turn, await self._ask(turn, wanted))
            except (_Behind, Late):
                raise TurnOnItsWay("turns before this one are still on their way", retry_after_s=0.2) from None
        journaled = await self._journal.put(turn, unknown=False)
        try:
            async with asyncio.timeout(self._commit_s):
                drained = await self._journal.drain(turn.key)
        except (TimeoutError, StoreUnavailable):
            self._breaker.failed()
            return journaled
        except (Overloaded, Busy):
            return journaled
        if name in drained.refused:
            raise _refusal(turn, drained.refused[name])
        kept = drained.stored.get(name)
        return journaled if kept is None else replace(kept, duplicate=name not in drained.inserted)

    async def _commit(self, batch: Sequence[Candidate]) -> Sequence[Appended | BaseException]:
        """Stores a batch, but for turns of threads of which others wait in the journal."""
        threads = list(dict.fromkeys(candidate.turn.key for candidate in batch))
        waiting = dict(zip(threads, await self._journal.counts(threads), strict=True))
        answers: dict[int, Appended | BaseException] = {}
        chosen: list[tuple[int, Candidate]] = []
        for place, candidate in enumerate(batch):
            key = candidate.turn.key
            count = waiting[key]
            if count or (count is None and self._journal.holds(key)):
                answers[place] = _Behind(blind=count is None)
            elif count is None:
                chosen.append((place, replace(candidate, order_unverified=True)))
            else:
                chosen.append((place, candidate))
        if chosen:
            candidates = [candidate for _, candidate in chosen]
            told = await self._committed(candidates)
            answers.update(zip((place for place, _ in chosen), told, strict=True))
            self._tell(candidates, told)
        return [answers[place] for place in range(len(batch))]

    def _tell(self, candidates: Sequence[Candidate], answers: Sequence[Appended | BaseException]) -> None:
        """Lets the windows and those who follow know what is stored. Nobody waits for it: a window that lags is no harm."""
        stored: dict[ThreadKey, list[tuple[KeptTurn, Sequence[Entry]]]] = {}
        for candidate, answer in zip(candidates, answers, strict=True):
            if isinstance(answer, BaseException) or answer.turn is None:
                continue
            turn, kept = candidate.turn, answer.turn
            # A turn that was found is not put into the window again: its content may have been edited since.
            entries = [] if kept.duplicate else entries_of(turn.messages, kept.first_seq, turn.turn_id, kept.created_at)
            stored.setdefault(turn.key, []).append((kept, entries))
            self._known[turn.key] = None
        for key, turns in stored.items():
            task = asyncio.create_task(self._cache.extend(key, sorted(turns, key=_first_seq)))
            self._tellings.add(task)
            task.add_done_callback(self._tellings.discard)
            self._told(key)

    async def _committed(self, turns: Sequence[Candidate]) -> Sequence[Appended | BaseException]:
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

    def _ended(self, name: tuple[ThreadKey, str], work: "asyncio.Future[Any]") -> None:
        if self._under_way.get(name) is work:
            del self._under_way[name]
        if not work.cancelled():
            work.exception()  # its caller may be gone: then nobody else looks at it


def _first_seq(stored: tuple[KeptTurn, Sequence[Entry]]) -> int:
    return stored[0].first_seq


def _may_be_stored(refusal: StoreUnavailable) -> bool:
    return refusal.metadata.get("outcome") != "NOT_STORED"


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
