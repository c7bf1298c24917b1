"""Appending turns: acknowledged when Postgres has committed them, exactly once, in the order of their numbers.

Group commit: while one batch is in flight, what arrives joins the next. An append runs in a task of the service's own: a
caller that goes away changes nothing, and its retry with the same turn id learns what became of it.
"""

import asyncio
from collections.abc import Sequence
from typing import Protocol

import cachetools
from prometheus_client import CollectorRegistry, Histogram

from twofold_chassis.gathering import Gathering
from twofold_chassis.refusals import Busy, InvalidField, Overloaded, Refusal, RequestReused
from twofold_memory.encoding import entries_of
from twofold_memory.threads import (
    Appended,
    Candidate,
    ConversationDeleted,
    ConversationErased,
    Entry,
    KeptTurn,
    NewTurn,
    ThreadKey,
    TurnDead,
    TurnOnItsWay,
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


class Appends:
    """The one way of turns into the store."""

    def __init__(self, store: Store, cache: Cache, *, lanes: int, metrics: CollectorRegistry) -> None:
        self._store = store
        self._cache = cache
        self._gathering: Gathering[NewTurn, Appended] = Gathering(
            self._commit,
            batch_max=_BATCH_TURNS_MAX,
            waiting_max=_WAITING_MAX,
            lanes=lanes,
            weigh=lambda turn: turn.bytes,
            weight_max=_BATCH_BYTES_MAX,
            waiting_weight_max=_WAITING_BYTES_MAX,
        )
        self._under_way: dict[tuple[ThreadKey, str], asyncio.Task[KeptTurn]] = {}
        # Threads that exist for sure (rows are never removed): their batches need no attempt to make them.
        self._known: cachetools.LRUCache[ThreadKey, None] = cachetools.LRUCache(_KNOWN_THREADS_MAX)
        self._batch_sizes = Histogram(
            "twofold_memory_commit_turns",
            "Turns stored by one commit.",
            registry=metrics,
            buckets=(1, 2, 4, 8, 16, 32, 64, 128, 256),
        )

    async def append(self, turn: NewTurn) -> KeptTurn:
        """Stores the turn, or finds it stored. Cancelling changes nothing about what happens to the turn.

        Raises ConversationUnknown, ConversationDeleted, RequestReused, Busy, Overloaded, StoreUnavailable.
        """
        if len(self._under_way) >= _UNDER_WAY_MAX:
            raise Overloaded("too many appends are under way", retry_after_s=0.2)
        name = (turn.key, turn.turn_id)
        while (twin := self._under_way.get(name)) is not None:
            # Never two of one id in a batch: the second looks when the first has ended, however that was.
            await asyncio.wait([twin])
        task = asyncio.create_task(self._append(turn))
        self._under_way[name] = task
        task.add_done_callback(lambda ended: self._ended(name, ended))
        return await asyncio.shield(task)

    async def drain(self) -> None:
        """Returns when every append that was accepted has ended."""
        while self._under_way:
            await asyncio.wait(self._under_way.values())

    async def _append(self, turn: NewTurn) -> KeptTurn:
        answer = await self._gathering.ask(turn)
        if answer.outcome == "MISSING":
            self._known.pop(turn.key, None)
            answer = await self._gathering.ask(turn)
        kept = _judged(turn, answer)
        self._known[turn.key] = None
        # A turn that was found is not put into the window again: its content may have been edited since.
        entries = [] if kept.duplicate else entries_of(turn.messages, kept.first_seq, turn.turn_id, kept.created_at)
        await self._cache.extend(turn.key, kept, entries)
        return kept

    async def _commit(self, turns: Sequence[NewTurn]) -> Sequence[Appended | BaseException]:
        self._batch_sizes.observe(len(turns))
        try:
            return await self._stored(turns)
        except (Busy, InvalidField) as refusal:
            # Nothing of the batch was stored. One thread or one value is to blame: nobody else shall suffer for it.
            if len(turns) == 1:
                return [refusal]
        of_threads: dict[ThreadKey, list[int]] = {}
        for place, turn in enumerate(turns):
            of_threads.setdefault(turn.key, []).append(place)
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

    async def _apart(self, turns: Sequence[NewTurn]) -> Sequence[Appended | BaseException]:
        """The turns of one thread, apart from all others: whatever becomes of them is told to them alone."""
        try:
            return await self._stored(turns)
        except InvalidField as refusal:
            if len(turns) == 1:
                return [refusal]
            return [(await self._apart([turn]))[0] for turn in turns]
        except Refusal as refusal:
            return [refusal] * len(turns)

    async def _stored(self, turns: Sequence[NewTurn]) -> list[Appended]:
        return await self._store.append([Candidate(turn, turn.key not in self._known) for turn in turns])

    def _ended(self, name: tuple[ThreadKey, str], task: asyncio.Task[KeptTurn]) -> None:
        del self._under_way[name]
        if not task.cancelled():
            task.exception()  # its caller may be gone: then nobody else looks at it


def _judged(turn: NewTurn, answer: Appended) -> KeptTurn:
    if answer.turn is not None:
        return answer.turn
    match answer.outcome:
        case "CONFLICT":
            raise RequestReused(
                f"the request id {turn.turn_id!r} was used for another turn of this conversation", request_id=turn.turn_id
            )
        case "DELETED":
            raise ConversationDeleted("the conversation is deleted", thread_id=turn.key.thread_id)
        case "ERASED":
            raise ConversationErased("the conversation is erased", thread_id=turn.key.thread_id)
        case "DEAD":
            raise TurnDead("the turn was journaled and could not be stored", turn_id=turn.turn_id)
        case "AFTER_MISSING":
            raise TurnOnItsWay("the turn before this one is still on its way", retry_after_s=0.2, turn_id=turn.after or "")
        case _:
            raise unknown(turn.key)
