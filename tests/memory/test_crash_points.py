"""M4, M5, M6: a worker that dies at any step of its way into either store, and another one that goes on."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Coroutine, Sequence
from typing import Any

import asyncpg
import pytest
from prometheus_client import CollectorRegistry

from tests.memory.rooms import Memory
from twofold_chassis import postgres
from twofold_chassis.breaker import Breaker
from twofold_chassis.redis import RedisLink, RedisUnavailable, Script
from twofold_chassis.redis_wire import Argument, Reply
from twofold_chassis.settings import DatabaseSettings, RedisSettings
from twofold_memory.appends import Appends
from twofold_memory.cache.journal import RedisJournal
from twofold_memory.cache.threads import RedisThreads
from twofold_memory.journal import Journal
from twofold_memory.store.journal import PostgresJournal
from twofold_memory.store.turns import PostgresTurns
from twofold_memory.threads import JournaledTurn, NewMessage, NewTurn, ThreadKey, Wanted

# What a client does, one after the other: turns, and how each is wanted.
STORY = [
    ("t0", Wanted.COMMITTED_IN_TIME),
    ("t1", Wanted.JOURNALED),
    ("t2", Wanted.JOURNALED),
    ("t3", Wanted.COMMITTED_IN_TIME),
    ("t4", Wanted.COMMITTED_IN_TIME),
    ("t5", Wanted.JOURNALED),
    ("t6", Wanted.COMMITTED),
]


class Crashed(BaseException):
    """The process is no more. Not an Exception: nothing may handle it."""


class Fate:
    """Counts the steps of a worker's way into the stores, and ends it before or after one of them."""

    def __init__(self, step: int | None, *, after: bool) -> None:
        self._left = step
        self._after = after
        self._crash = asyncio.Event()
        self.steps = 0

    @property
    def crashed(self) -> bool:
        """Whether the end has come."""
        return self._crash.is_set()

    async def meet(self, story: Coroutine[Any, Any, None]) -> None:
        """Returns when the story or the worker has come to its end: a dead one answers nobody."""
        telling, crash = asyncio.create_task(story), asyncio.create_task(self._crash.wait())
        await asyncio.wait([telling, crash], return_when=asyncio.FIRST_COMPLETED)
        for task in (telling, crash):
            task.cancel()
        results = await asyncio.gather(telling, crash, return_exceptions=True)
        if not self.crashed and isinstance(results[0], Exception):
            raise results[0]

    async def step(self, work: Any) -> Any:
        """One command or statement."""
        if self.crashed:
            work.close()
            raise Crashed
        self.steps += 1
        if self.steps != self._left:
            return await work
        if self._after:
            with contextlib.suppress(Exception):
                await work
        else:
            work.close()
        self._crash.set()
        raise Crashed


class MortalLink(RedisLink):
    """The way to Redis of a worker that may die."""

    fate: Fate

    async def run(self, script: Script, keys: Sequence[str], arguments: Sequence[Argument]) -> Reply:
        return await self.fate.step(super().run(script, keys, arguments))

    async def call(self, *command: Argument) -> Reply:
        return await self.fate.step(super().call(*command))


def mortal_connection(fate: Fate) -> "type[asyncpg.Connection[Any]]":
    """The way to Postgres of a worker that may die."""

    class Mortal(asyncpg.Connection):
        async def fetch(self, *arguments: Any, **options: Any) -> Any:
            return await fate.step(super().fetch(*arguments, **options))

        async def fetchrow(self, *arguments: Any, **options: Any) -> Any:
            return await fate.step(super().fetchrow(*arguments, **options))

        async def execute(self, *arguments: Any, **options: Any) -> Any:
            return await fate.step(super().execute(*arguments, **options))

    return Mortal


@contextlib.asynccontextmanager
async def worker(database: DatabaseSettings, redis: RedisSettings, fate: Fate) -> AsyncIterator[tuple[Appends, Journal]]:
    """The rooms between a call and the stores, without anything that drains by itself."""
    link = MortalLink(redis)
    link.fate = fate
    pool = postgres.Pool(database, "test", size_min=0, connection_class=mortal_connection(fate))
    await pool
    metrics, breaker = CollectorRegistry(), Breaker()
    windows = RedisThreads(link, ttl_s=3600, messages_max=100, metrics=metrics)
    journal = Journal(
        PostgresJournal(pool),
        RedisJournal(link, ttl_s=3600, messages_max=100),
        breaker=breaker,
        put_s=60,
        metrics=metrics,
        unreachable=RedisUnavailable,
    )
    turns = PostgresTurns(pool)
    appends = Appends(turns, windows, journal, breaker=breaker, lanes=1, commit_s=60, metrics=metrics)
    try:
        yield appends, journal
    finally:
        if not fate.crashed:
            await appends.drain()
            await turns.close()
        pool.terminate()
        await link.close()


async def tell(appends: Appends, key: ThreadKey, told: dict[str, bool]) -> None:
    """The story, from where no acknowledgement came; notes what was acknowledged, and whether as journaled."""
    for turn_id, wanted in STORY[len(told) :]:
        message = NewMessage(2, f"text of {turn_id}", b"", None)
        turn = NewTurn(key, None, turn_id, turn_id.encode(), [message], 1)
        answer = await appends.append(turn, wanted)
        told[turn_id] = isinstance(answer, JournaledTurn)


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
async def test_a_worker_may_die_at_any_step_and_every_turn_is_stored_once_and_in_order(
    room: Memory,
    memory_database: DatabaseSettings,
    redis_settings: RedisSettings,
    sql: "asyncpg.Pool[Any]",
    workspace_id: str,
    after: bool,
) -> None:
    steps = 0
    crashed = True
    while crashed:
        steps += 1
        key = ThreadKey(workspace_id, f"thread-{steps}")
        fate, told = Fate(steps, after=after), dict[str, bool]()
        async with worker(memory_database, redis_settings, fate) as (appends, _):
            await fate.meet(tell(appends, key, told))
        crashed = fate.crashed
        async with worker(memory_database, redis_settings, Fate(None, after=False)) as (appends, journal):
            await tell(appends, key, told)
            async with asyncio.timeout(30):
                while not await journal.none_before(key):
                    pass
        rows = await sql.fetch(
            "SELECT seq, turn_id, content FROM memory.messages WHERE workspace_id = $1 AND thread_id = $2 ORDER BY seq", *key
        )
        assert [tuple(row) for row in rows] == [
            (seq, turn_id, f"text of {turn_id}") for seq, (turn_id, _) in enumerate(STORY, 1)
        ], f"died at step {steps}, told {told}"
        dead = await sql.fetchval("SELECT count(*) FROM memory.dead_letters WHERE workspace_id = $1", workspace_id)
        assert dead == 0
    assert steps > 30, "the story has fewer steps than it should: nothing was tested"
