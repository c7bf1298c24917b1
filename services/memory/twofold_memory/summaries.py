"""Summaries: what callers have written of a conversation's past, and which one belongs before its newest messages."""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from functools import partial
from typing import Any, Protocol

from twofold_chassis.gathering import Gathering
from twofold_chassis.outliving import Outliving
from twofold_chassis.refusals import AlreadyExists, FailedPrecondition, NotFound, Overloaded, Reason, StoreUnavailable
from twofold_memory.threads import Completeness, Level, Source, ThreadKey, Window

TEXT_BYTES_MAX = 256 * 1024
# Of how many of the newest a context can make use.
NEWEST_MAX = 4
_BATCH_MAX = 16
_WAITING_MAX = 4096
_FILLS_MAX = 256
_CHANGES_MAX = 1024
_POSTGRES_IS_SILENT = (Completeness.UNVERIFIED, Completeness.PARTIAL)


class SummaryUnknown(NotFound):
    """The conversation has no summary with this id."""

    reason = Reason.REASON_SUMMARY_UNKNOWN


class SummaryExists(AlreadyExists):
    """The conversation has a summary with this id."""

    reason = Reason.REASON_RECORD_EXISTS


class SeqNotReached(FailedPrecondition):
    """The conversation has no message with this number yet."""

    reason = Reason.REASON_SEQ_NOT_REACHED


@dataclass(frozen=True, slots=True)
class NewSummary:
    """A summary to be kept."""

    summary_id: str
    first_seq: int
    last_seq: int
    text: str
    token_count: int | None
    model: str
    author: str
    metadata: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Summary:
    """A summary as it is stored. `version` orders those of a conversation; `stale`: the past has changed since."""

    summary_id: str
    version: int
    first_seq: int
    last_seq: int
    text: str
    token_count: int | None
    model: str
    author: str
    metadata: Mapping[str, str]
    stale: bool
    created_at: datetime

    def joins(self, window_first_seq: int) -> bool:
        """Whether it and messages from this number on leave nothing out."""
        return self.first_seq == 1 and self.last_seq >= window_first_seq - 1


@dataclass(frozen=True, slots=True)
class Summaries:
    """The newest summaries of a conversation, the newest first, at a version, in an epoch of the conversation."""

    entries: Sequence[Summary] = ()
    version: int = 0
    epoch: int = 0


@dataclass(frozen=True, slots=True)
class Recalled:
    """Summaries for a context. No completeness: nobody could say whether there are any."""

    entries: Sequence[Summary]
    completeness: Completeness | None


NO_ANSWER = Recalled((), None)


@dataclass(frozen=True, slots=True)
class SummaryPage:
    """Some summaries, and whether there are more behind the last one."""

    entries: Sequence[Summary]
    more: bool


def newest_joining(summaries: Sequence[Summary], window_first_seq: Callable[[Summary], int]) -> Summary | None:
    """The newest summary that leaves no gap before the window, else the newest one of all; they come newest first.

    `window_first_seq` tells where the messages begin with that summary before them, for it takes of their room.
    """
    for summary in summaries:
        if summary.joins(window_first_seq(summary)):
            return summary
    return summaries[0] if summaries else None


def gap(summary: Summary | None, window_first_seq: int) -> tuple[int, int]:
    """The first and the last message that neither the summary nor the messages from this number on tell of; (0, 0): none."""
    before = window_first_seq - 1
    if summary is None:
        return (1, before) if before else (0, 0)
    missing = [(1, min(summary.first_seq - 1, before)), (summary.last_seq + 1, before)]
    gaps = [(first, last) for first, last in missing if first <= last]
    return (gaps[0][0], gaps[-1][1]) if gaps else (0, 0)


def useful(entries: Sequence[Summary]) -> list[Summary]:
    """Those that `newest_joining` may ever choose: the newest, and older ones that reach further."""
    chosen: list[Summary] = []
    reached = 0
    for entry in entries:
        if not chosen or (entry.first_seq == 1 and entry.last_seq > reached):
            chosen.append(entry)
        if entry.first_seq == 1:
            reached = max(reached, entry.last_seq)
    return chosen


class Store(Protocol):
    """The truth."""

    async def newest(self, keys: Sequence[ThreadKey]) -> list[Summaries]:
        """The newest summaries of each conversation; of one that does not exist, none at version 0 and epoch 0."""
        ...


class Cache(Protocol):
    """The copy. Never raises."""

    async def look(self, key: ThreadKey) -> Summaries | None:
        """The copy; None if there is none."""
        ...

    async def put(self, key: ThreadKey, summaries: Summaries) -> None:
        """Replaces the copy, unless it is as new."""
        ...


class SummaryRecall:
    """The one way from summaries to contexts, and of changes to the copy."""

    def __init__(self, store: Store, cache: Cache) -> None:
        self._cache = cache
        self._newest: Gathering[ThreadKey, Summaries] = Gathering(
            store.newest, batch_max=_BATCH_MAX, waiting_max=_WAITING_MAX, lanes=2
        )
        self._changes = Outliving("summaries are changed", most=_CHANGES_MAX)
        self._fills: set[asyncio.Task[None]] = set()

    async def beside(self, key: ThreadKey, level: Level, window: Coroutine[Any, Any, Window]) -> tuple[Window, Recalled]:
        """The window, and the summaries that were asked for at the same time. Raises what the window raises.

        A copy alone answers only where a window's copy does, and only if it is of the same epoch: an older one may tell of
        what was taken out of the conversation since.
        """
        if level is Level.VERIFIED:
            asked = self._newest.ask(key)
            seen = await window
            if seen.completeness in _POSTGRES_IS_SILENT and not asked.done():
                return seen, await self._standing_in(key, seen)  # not waited for any longer
            return seen, await self._told(key, seen, asked, fill=seen.source is not Source.L1)
        copy, seen = await asyncio.gather(self._cache.look(key), window)
        if seen.completeness is Completeness.AS_OF and copy is not None and copy.epoch == seen.epoch:
            return seen, Recalled(copy.entries, Completeness.AS_OF)
        return seen, await self._told(key, seen, self._newest.ask(key), fill=True)

    async def changing(self, key: ThreadKey, change: Coroutine[Any, Any, tuple[bytes, Summaries]]) -> bytes:
        """Makes a change and tells the copy of it; returns the change's answer. Cancelling changes nothing about either."""
        try:
            return await self._changes.do(partial(self._changing, key, change))
        except Overloaded:
            change.close()  # it may not have begun
            raise

    async def drain(self) -> None:
        """Returns when no change, no fill and no question is under way."""
        await self._changes.drain()
        while self._fills:
            await asyncio.wait(self._fills)
        await self._newest.drain()

    async def _told(self, key: ThreadKey, seen: Window, asked: Awaitable[Summaries], *, fill: bool) -> Recalled:
        try:
            summaries = await asked
        except (StoreUnavailable, Overloaded):
            return await self._standing_in(key, seen)
        if fill and summaries.epoch and len(self._fills) < _FILLS_MAX:
            task = asyncio.create_task(self._cache.put(key, summaries))
            self._fills.add(task)
            task.add_done_callback(self._fills.discard)
        return Recalled(summaries.entries, Completeness.COMPLETE)

    async def _standing_in(self, key: ThreadKey, seen: Window) -> Recalled:
        copy = await self._cache.look(key)
        if copy is None or copy.epoch != seen.epoch:
            return NO_ANSWER
        return Recalled(copy.entries, Completeness.UNVERIFIED)

    async def _changing(self, key: ThreadKey, change: Coroutine[Any, Any, tuple[bytes, Summaries]]) -> bytes:
        answer, summaries = await change
        if summaries.epoch:  # else it was the repeat of a change to a conversation that is deleted by now
            await self._cache.put(key, summaries)
        return answer
