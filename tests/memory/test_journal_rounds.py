"""The rounds of the journal by themselves, over a store and a cache that are told what to do."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from datetime import UTC, datetime

import pytest
from prometheus_client import CollectorRegistry

from tests.waiting import until
from twofold_chassis.breaker import Breaker
from twofold_chassis.refusals import Busy, StoreUnavailable
from twofold_memory import journal as rounds
from twofold_memory.cache.journal import Put
from twofold_memory.draining import Drained, Waiter
from twofold_memory.journal import Journal
from twofold_memory.journaled import EntryKey, Journaled
from twofold_memory.keys import journal_shard
from twofold_memory.threads import KeptTurn, Known, NewMessage, NewTurn, ThreadKey

NOW = datetime(2030, 1, 1, tzinfo=UTC)


class AwayError(Exception):
    """Redis is."""


class Store:
    """Stores all that may go in, after `judge` has had its say."""

    def __init__(self, judge: Callable[[ThreadKey], None] = lambda key: None) -> None:
        self.judge = judge
        self.stored: set[ThreadKey] = set()
        self.gate = asyncio.Event()
        self.gate.set()

    async def known(self, key: ThreadKey, turn_ids: Sequence[str]) -> dict[str, Known]:
        return {}

    async def drain(self, key: ThreadKey, waiters: Sequence[Waiter]) -> Drained:
        if key.thread_id == "slow":
            await self.gate.wait()
        self.judge(key)
        held = {waiter.journaled.key for waiter in waiters if waiter.journaled.prevs}
        kept = {waiter.journaled.key: KeptTurn(1, 1, 1, NOW, None, False) for waiter in waiters}
        if kept.keys() - held:
            self.stored.add(key)
        return Drained({name: turn for name, turn in kept.items() if name not in held}, held=held)


class Redis:
    """What waits, and the index."""

    weak = False

    def __init__(self) -> None:
        self.lists: dict[ThreadKey, dict[EntryKey, Journaled]] = {}
        self.index_of: dict[ThreadKey, str] = {}
        self.away: set[int] = set()

    async def counts(self, threads: Sequence[ThreadKey]) -> list[int | None]:
        return [len(self.lists.get(key, ())) for key in threads]

    async def waiting(self, key: ThreadKey) -> list[Journaled] | None:
        return list(self.lists.get(key, {}).values())

    async def index(self, key: ThreadKey, token: str) -> bool:
        self.index_of[key] = token
        return True

    async def put(self, journaled: Journaled, *, after: str | None, again: bool) -> Put | None:
        self.lists.setdefault(journaled.turn.key, {})[journaled.key] = journaled
        return Put(frozenset([after] if after else []), False)

    async def settle(
        self,
        key: ThreadKey,
        done: Sequence[EntryKey],
        stored: Mapping[EntryKey, KeptTurn],
        inserted: Mapping[EntryKey, Journaled],
    ) -> None:
        for name in done:
            self.lists.get(key, {}).pop(name, None)

    async def indexed(self, shard: int) -> dict[ThreadKey, str]:
        if shard in self.away:
            raise AwayError
        return {key: token for key, token in self.index_of.items() if journal_shard(key) == shard}

    async def unindex(self, key: ThreadKey, token: str) -> None:
        self.index_of.pop(key, None)


@pytest.fixture(autouse=True)
def short_periods(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("_OWN_PERIOD_S", "_OTHERS_PERIOD_S", "_OTHERS_AGE_S"):
        monkeypatch.setattr(rounds, name, 0.01)


def turn(thread_id: str, *, after: str | None = None) -> NewTurn:
    message = NewMessage(2, "text", b"", None)
    return NewTurn(ThreadKey("w", thread_id), None, f"turn of {thread_id}", b"hash", [message], 4, after=after)


def journal_on(store: Store, redis: Redis) -> Journal:
    return Journal(store, redis, breaker=Breaker(), put_s=60, metrics=CollectorRegistry(), unreachable=AwayError)


@contextlib.asynccontextmanager
async def draining(store: Store, redis: Redis) -> AsyncIterator[Journal]:
    journal = journal_on(store, redis)
    async with journal.drained():
        yield journal


@pytest.mark.parametrize("whose", ["own", "another's"])
async def test_m18_a_thread_with_a_defect_or_one_that_is_held_is_no_hindrance_to_the_others(whose: str) -> None:
    """M18, M6."""

    def judge(key: ThreadKey) -> None:
        if key.thread_id == "broken":
            raise ValueError("a defect")

    store, redis = Store(judge), Redis()
    store.gate.clear()
    threads = ["slow", "broken", *(f"t{index}" for index in range(30))]
    worker = journal_on(store, redis)
    for thread_id in threads:
        await worker.put(turn(thread_id), unknown=False)
    async with worker.drained() if whose == "own" else draining(store, redis):
        await until(lambda: len(store.stored) == 30)
        store.gate.set()
        await until(lambda: len(store.stored) == 31)


async def test_what_a_dead_worker_left_is_found_although_a_part_of_the_index_is_away() -> None:
    """M6: one node of a cluster costs what it has, and nothing else."""
    store, redis = Store(), Redis()
    worker = journal_on(store, redis)
    there, away = turn("there"), turn("away")
    for left in (there, away):
        await worker.put(left, unknown=False)
    redis.away = {journal_shard(away.key)}
    async with draining(store, redis):
        await until(lambda: there.key in store.stored)
        redis.away.clear()
        await until(lambda: away.key in store.stored)


async def test_a_turn_that_must_wait_for_another_is_put_back_where_redis_has_lost_it() -> None:
    """M6: Postgres answers, and the one before it is not there yet."""
    store, redis = Store(), Redis()
    async with draining(store, redis) as journal:
        await journal.put(turn("t", after="another"), unknown=False)
        redis.lists.clear()
        redis.index_of.clear()
        await until(lambda: bool(redis.lists))
        assert redis.index_of


@pytest.mark.parametrize("trouble", [RuntimeError("a defect"), Busy("held"), StoreUnavailable("gone")], ids=repr)
async def test_whatever_keeps_a_turn_out_of_postgres_it_is_put_back_where_redis_has_lost_it(trouble: Exception) -> None:
    """M6."""

    def judge(key: ThreadKey) -> None:
        raise trouble

    redis = Redis()
    async with draining(Store(judge), redis) as journal:
        await journal.put(turn("t"), unknown=False)
        redis.lists.clear()
        redis.index_of.clear()
        await until(lambda: bool(redis.lists))
        assert redis.index_of


async def test_nothing_is_kept_of_threads_that_others_have_seen_to() -> None:
    """They were seen with turns, and without, and then another worker took them out of the index."""
    store, redis = Store(), Redis()
    await journal_on(store, redis).put(turn("waits"), unknown=False)
    redis.index_of[ThreadKey("w", "empty")] = "token"

    def judge(key: ThreadKey) -> None:
        raise StoreUnavailable("gone")

    store.judge = judge
    async with draining(store, redis) as journal:
        await until(lambda: journal.remembered == 2)
        redis.lists.clear()
        redis.index_of.clear()
        store.judge = lambda key: None
        await until(lambda: journal.remembered == 0)


async def test_turns_of_others_do_not_take_all_the_room(monkeypatch: pytest.MonkeyPatch) -> None:
    """Copies of them are taken while Postgres is away; this worker's own callers must still find some."""
    monkeypatch.setattr(rounds, "_COPIES_MAX", 10)
    redis = Redis()
    for number in range(3):
        other = journal_on(Store(), redis)
        for index in range(8):
            await other.put(turn(f"t{number}-{index}"), unknown=False)

    def judge(key: ThreadKey) -> None:
        raise StoreUnavailable("gone")

    store = Store(judge)
    async with draining(store, redis) as journal:
        await until(lambda: journal.depth == 5)
        for index in range(5):
            await journal.put(turn(f"own{index}"), unknown=False)
        store.judge = lambda key: None
