"""Searching what was said: exactly what is there now, whether or not some worker has put it into the index yet."""

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import Enum
from typing import NamedTuple, Protocol

from twofold_chassis.refusals import Overloaded, Reason, ResourceExhausted
from twofold_memory.threads import Entry

AROUND_MAX = 10
SEARCHES_AT_ONCE = 2
_WAITING_MAX = 32
_INDEXED_AT_ONCE = 64
# The index is a convenience, and those who append come first: so many times as long as a step took, nothing is done.
_PAUSE = 5.0


class SearchTooBroad(ResourceExhausted):
    """The search finds too much to be done in its time."""

    reason = Reason.REASON_SEARCH_TOO_BROAD


class Order(Enum):
    """Which hits come first."""

    NEWEST = 1
    RELEVANCE = 2


class Place(NamedTuple):
    """Where a hit stands in its order: the rank in millionths, if that comes first, then its time and its name."""

    micros: int
    created_at: datetime
    thread_id: str
    seq: int


@dataclass(frozen=True, slots=True)
class Search:
    """What is looked for, and how much is to be shown."""

    workspace_id: str
    user_id: str | None
    thread_id: str | None
    words: str
    start: datetime | None
    end: datetime | None
    around: int
    order: Order
    behind: Place | None
    count: int


@dataclass(frozen=True, slots=True)
class Hit:
    """A message that was found, and those around it."""

    place: Place
    owner: str | None
    rank: float
    snippet: str
    entry: Entry
    before: Sequence[Entry]
    after: Sequence[Entry]
    truncated: bool


@dataclass(frozen=True, slots=True)
class Found:
    """A page of hits; `behind` is where the next one begins."""

    hits: Sequence[Hit]
    behind: Place | None


class Store(Protocol):
    """The truth, and the index to it."""

    async def search(self, search: Search) -> Found:
        """One page."""
        ...

    async def index(self, count: int) -> int:
        """Puts what some turns have said into the index, at most so many; returns how many it were."""
        ...


class Searches:
    """A few searches at a time: each may take long, and nobody else shall wait for them."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._running = asyncio.Semaphore(SEARCHES_AT_ONCE)
        self._waiting = 0

    async def search(self, search: Search) -> Found:
        """One page. Raises InvalidField (no words), ConversationUnknown, SearchTooBroad, Overloaded."""
        if self._waiting >= _WAITING_MAX:
            raise Overloaded("too many searches wait", retry_after_s=1.0)
        self._waiting += 1
        try:
            await self._running.acquire()
        finally:
            self._waiting -= 1
        try:
            return await self._store.search(search)
        finally:
            self._running.release()


class Indexing:
    """Puts what is said into the index, behind everything else."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._at_once = _INDEXED_AT_ONCE

    async def sweep(self, count: int) -> int:
        """A small step, and a pause as befits it; returns `count` if there may be more to do."""
        began = time.monotonic()
        try:
            done = await self._store.index(self._at_once)
        except SearchTooBroad:
            # These are large: fewer of them at a time.
            self._at_once = max(1, self._at_once // 2)
            return 0
        if done < self._at_once:
            self._at_once = _INDEXED_AT_ONCE
            return 0
        await asyncio.sleep((time.monotonic() - began) * _PAUSE)
        return count
