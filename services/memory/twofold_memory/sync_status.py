"""Sync, as an operator sees it: what is on its way between the two memories, and whether either of them answers."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Protocol

from prometheus_client import CollectorRegistry, Gauge

from twofold_chassis.refusals import Overloaded, Refusal, StoreUnavailable

BACKLOG_MAX = 10_000
INDEXED_MAX = 1_000


@dataclass(frozen=True, slots=True)
class Backlog:
    """Work that is left: how much (BACKLOG_MAX stands for that much or more), and the age of the oldest, if there is any."""

    count: int
    oldest_age: timedelta | None


@dataclass(frozen=True, slots=True)
class Backlogs:
    """What is left in Postgres, and how many turns are open there. The search's has no age."""

    dead_letters: Backlog
    window_purges: Backlog
    search: Backlog
    open_turns_count: int


@dataclass(frozen=True, slots=True)
class Index:
    """The threads of the journal's index, and what waits in those of them that were counted."""

    thread_count: int
    counted_thread_count: int
    waiting_thread_count: int
    waiting_turn_count: int

    @property
    def truncated(self) -> bool:
        """Whether there are more than were counted."""
        return self.counted_thread_count < self.thread_count


@dataclass(frozen=True, slots=True)
class RedisState:
    """How this worker sees Redis."""

    answers: bool
    may_evict: bool
    circuit_open: bool


@dataclass(frozen=True, slots=True)
class SyncStatus:
    """Everything; None is what nobody can know now."""

    worker_id: str
    copies_count: int
    copies_age_s: float
    index: Index | None
    backlogs: Backlogs | None
    redis: RedisState
    postgres_answers: bool
    windows_answer_alone: bool


class Copies(Protocol):
    """This worker's part in the journal."""

    worker: str

    @property
    def depth(self) -> int:
        """Turns of which it holds copies."""
        ...

    @property
    def lag_s(self) -> float:
        """How long the oldest of these has waited."""
        ...


class Store(Protocol):
    """Postgres."""

    async def backlogs(self) -> Backlogs:
        """What is left."""
        ...


class Cache(Protocol):
    """Redis."""

    async def index(self) -> Index | None:
        """What the journal's index tells; None if nobody can know."""
        ...

    async def state(self) -> RedisState:
        """Whether it answers, and what is believed of it."""
        ...


class Sync:
    """Sees to both stores at once, and waits for neither for long."""

    def __init__(self, copies: Copies, store: Store, cache: Cache, settled: Callable[[], bool]) -> None:
        """`settled`: whether windows may answer without Postgres."""
        self._copies = copies
        self._store = store
        self._cache = cache
        self._settled = settled

    async def status(self) -> SyncStatus:
        """As it is now. Never refuses."""
        (answers, backlogs), index = await asyncio.gather(self._postgres(), self._cache.index())
        return SyncStatus(
            worker_id=self._copies.worker,
            copies_count=self._copies.depth,
            copies_age_s=self._copies.lag_s,
            index=index,
            backlogs=backlogs,
            redis=await self._cache.state(),
            postgres_answers=answers,
            windows_answer_alone=self._settled(),
        )

    async def _postgres(self) -> tuple[bool, Backlogs | None]:
        try:
            return True, await self._store.backlogs()
        except Overloaded:
            return True, None  # those who hold all connections are being served
        except StoreUnavailable:
            return False, None


class BacklogGauges:
    """What is left in Postgres, as metrics: not a number while nobody can know."""

    def __init__(self, store: Store, metrics: CollectorRegistry) -> None:
        self._store = store
        self._count = Gauge(
            "twofold_memory_backlog", "Work that is left in Postgres, counted to 10,000.", ("kind",), registry=metrics
        )
        self._age = Gauge(
            "twofold_memory_backlog_age_seconds", "Age of the oldest of it; 0 without any.", ("kind",), registry=metrics
        )
        self._open_turns = Gauge(
            "twofold_memory_open_turns", "Turns that are open, or left behind, counted to 10,000.", registry=metrics
        )
        self._forget()

    async def refresh(self, _: int) -> int:
        """Looks; a sweep that never has anything left. Raises StoreUnavailable and its like."""
        try:
            found = await self._store.backlogs()
        except Refusal:
            self._forget()
            raise
        for kind, backlog in (("dead_letters", found.dead_letters), ("window_purges", found.window_purges)):
            self._count.labels(kind).set(backlog.count)
            self._age.labels(kind).set(backlog.oldest_age.total_seconds() if backlog.oldest_age else 0)
        self._count.labels("search").set(found.search.count)
        self._open_turns.set(found.open_turns_count)
        return 0

    def _forget(self) -> None:
        for kind in ("dead_letters", "window_purges"):
            self._count.labels(kind).set(float("nan"))
            self._age.labels(kind).set(float("nan"))
        self._count.labels("search").set(float("nan"))
        self._open_turns.set(float("nan"))


def gauge_lasting_calls(watchers: Callable[[], int], turn_waiters: Callable[[], int], metrics: CollectorRegistry) -> None:
    """How many calls of this worker last, as metrics, asked each time they are read."""
    for name, told, count in (
        ("twofold_memory_watchers", "Calls of this worker that watch a conversation.", watchers),
        ("twofold_memory_turn_waiters", "Calls of this worker that wait to open a turn.", turn_waiters),
    ):
        Gauge(name, told, registry=metrics).set_function(count)
