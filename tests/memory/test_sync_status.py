"""The status of a worker, on real servers: it answers whatever is away, and what nobody can know is absent."""

import json
import math
import uuid
from collections.abc import AsyncIterator
from datetime import timedelta

import asyncpg
import pytest
import redis.asyncio
from prometheus_client import CollectorRegistry

from tests.memory.rooms import CALL_S, Memory, database_of, redis_of, serving, thread
from tests.waiting import until
from twofold.memory.v1.sync_pb2 import GetSyncStatusRequest, GetSyncStatusResponse
from twofold_chassis.refusals import StoreUnavailable
from twofold_chassis.settings import DatabaseSettings
from twofold_cli.embedded.postgres import DatabaseUrls, EmbeddedPostgres
from twofold_cli.embedded.redis import EmbeddedRedis
from twofold_memory import keys
from twofold_memory.sync_status import INDEXED_MAX, Backlog, BacklogGauges, Backlogs

HASTY = {"commit_ms": 100, "journal_ms": 5000, "confirm_ms": 200}


@pytest.fixture
async def urls(postgres_server: EmbeddedPostgres) -> DatabaseUrls:
    """A database of the test's own on the session's Postgres, so that what is left there can be counted."""
    return await postgres_server.create_database(f"sync_{uuid.uuid4().hex[:8]}")


@pytest.fixture
async def worker(urls: DatabaseUrls, own_redis: EmbeddedRedis) -> AsyncIterator[Memory]:
    async with serving(database_of(urls), redis_of(own_redis)) as memory:
        yield memory


@pytest.fixture
async def frail_worker(own_postgres: EmbeddedPostgres, own_redis: EmbeddedRedis) -> AsyncIterator[Memory]:
    """On a Postgres that can be killed."""
    urls = await own_postgres.create_database("memory")
    database = database_of(urls, command_timeout_s=1, connect_timeout_s=1)
    async with serving(database, redis_of(own_redis), **HASTY) as memory:
        yield memory


def client_of(server: EmbeddedRedis) -> redis.asyncio.Redis:
    return redis.asyncio.Redis(host=server.host, port=server.port, password=server.password)


async def status(memory: Memory) -> GetSyncStatusResponse:
    return await memory.sync.GetSyncStatus(GetSyncStatusRequest(), timeout=CALL_S)


async def plant_backlog(urls: DatabaseUrls, workspace_id: str) -> None:
    """Two dead letters, one of them dealt with, and a window that must go."""
    connection = await asyncpg.connect(urls.superuser)
    try:
        for turn_id, resolved in (("t1", None), ("t2", "DISCARDED")):
            await connection.execute(
                "INSERT INTO memory.dead_letters (workspace_id, thread_id, turn_id, payload_hash, reason, payload,"
                " created_at, resolution, resolved_at) VALUES ($1, 't', $2, '', 'INVALID', '', now() - interval '1 hour',"
                " $3, CASE WHEN $3::text IS NULL THEN NULL ELSE now() END)",
                workspace_id,
                turn_id,
                resolved,
            )
        await connection.execute(
            "INSERT INTO memory.window_purges (workspace_id, thread_id, epoch, asked_at)"
            " VALUES ($1, 't', 2, now() - interval '2 hours')",
            workspace_id,
        )
    finally:
        await connection.close()


async def test_with_both_stores_everything_is_known(worker: Memory, workspace_id: str) -> None:
    await worker.append(thread(workspace_id), "q", "a")

    async def settled() -> bool:
        return (await status(worker)).windows_answer_alone

    await until(settled)
    found = await status(worker)
    assert found.worker_id
    assert found.postgres_answers
    assert (found.redis.answers, found.redis.may_evict, found.redis.circuit_open) == (True, False, False)
    assert (found.journal.turn_count, found.journal.HasField("oldest_age")) == (0, False)
    for backlog in (found.dead_letters, found.window_purges):
        assert (backlog.count, backlog.HasField("oldest_age")) == (0, False)
    assert found.HasField("dead_letters")
    assert found.HasField("window_purges")
    assert (found.HasField("index"), found.index.waiting_turn_count, found.index.truncated) == (True, 0, False)


async def test_with_postgres_killed_what_waits_is_told_and_with_both_killed_there_still_is_a_status(
    frail_worker: Memory, own_postgres: EmbeddedPostgres, own_redis: EmbeddedRedis, workspace_id: str
) -> None:
    worker = frail_worker
    await own_postgres.kill()
    one, other = thread(workspace_id), thread(workspace_id)
    for key, count in ((one, 2), (other, 1)):
        for _ in range(count):
            await worker.append(key, "q")
    found = await status(worker)
    assert not found.postgres_answers
    assert not found.HasField("dead_letters")
    assert not found.HasField("window_purges")
    assert found.journal.turn_count == 3
    assert found.journal.oldest_age.ToTimedelta() > timedelta()
    assert (found.index.thread_count, found.index.waiting_thread_count, found.index.waiting_turn_count) == (2, 2, 3)
    assert found.redis.answers
    await own_redis.kill()
    found = await status(worker)
    assert (found.postgres_answers, found.redis.answers, found.windows_answer_alone) == (False, False, False)
    assert not found.HasField("index")
    assert not found.HasField("dead_letters")
    assert not found.HasField("window_purges")
    assert (found.worker_id != "", found.journal.turn_count) == (True, 3)
    await own_redis.start()
    await own_postgres.start()

    async def drained() -> bool:
        now = await status(worker)
        return now.postgres_answers and now.journal.turn_count == 0 and now.index.waiting_turn_count == 0

    await until(drained)


async def test_a_postgres_that_is_silent_is_not_waited_for_for_long(
    frail_worker: Memory, own_postgres: EmbeddedPostgres
) -> None:
    own_postgres.pause()
    try:
        found = await frail_worker.sync.GetSyncStatus(GetSyncStatusRequest(), timeout=30)
    finally:
        own_postgres.resume()
    assert not found.postgres_answers
    assert found.redis.answers


async def test_with_redis_killed_what_is_left_in_postgres_is_told_and_no_window_answers_alone(
    worker: Memory, own_redis: EmbeddedRedis, urls: DatabaseUrls, workspace_id: str
) -> None:
    await own_redis.kill()
    await plant_backlog(urls, workspace_id)
    found = await status(worker)
    assert not found.redis.answers
    assert not found.HasField("index")
    assert not found.windows_answer_alone
    assert found.postgres_answers
    assert (found.dead_letters.count, found.window_purges.count) == (1, 1)
    assert timedelta(hours=1) <= found.dead_letters.oldest_age.ToTimedelta() < timedelta(hours=2)
    assert found.window_purges.oldest_age.ToTimedelta() >= timedelta(hours=2)

    async def believed_gone() -> bool:
        return (await status(worker)).redis.circuit_open

    await until(believed_gone)
    await own_redis.start()

    async def purged() -> bool:
        now = await status(worker)
        return now.redis.answers and not now.redis.circuit_open and now.window_purges.count == 0 and now.windows_answer_alone

    await until(purged)


async def test_of_a_long_index_some_threads_are_counted_and_it_says_so(
    worker: Memory, own_redis: EmbeddedRedis, workspace_id: str
) -> None:
    many = [thread(workspace_id) for _ in range(INDEXED_MAX + 500)]
    async with client_of(own_redis) as client, client.pipeline(transaction=False) as pipeline:
        for key in many:
            name = json.dumps(key, ensure_ascii=False, separators=(",", ":"))
            pipeline.hset(keys.journal(keys.journal_shard(key)), name, "token")
        await pipeline.execute()
    found = (await status(worker)).index
    assert (found.thread_count, found.counted_thread_count, found.truncated) == (len(many), INDEXED_MAX, True)


async def test_a_redis_that_may_evict_what_waits_is_told(
    memory_database: DatabaseSettings, own_redis: EmbeddedRedis
) -> None:
    async with client_of(own_redis) as client:
        await client.config_set("maxmemory-policy", "allkeys-lru")
        await client.config_set("maxmemory", "100mb")
    weak = redis_of(own_redis).model_copy(update={"allow_eviction": True})
    async with serving(memory_database, weak) as memory:
        found = await status(memory)
    assert (found.redis.answers, found.redis.may_evict) == (True, True)


async def test_the_gauges_of_what_is_left_are_no_numbers_while_nobody_can_know() -> None:
    class Store:
        found: Backlogs | None = Backlogs(Backlog(2, timedelta(seconds=90)), Backlog(0, None), Backlog(7, None), 3)

        async def backlogs(self) -> Backlogs:
            if self.found is None:
                raise StoreUnavailable("gone")
            return self.found

    store, metrics = Store(), CollectorRegistry()
    gauges = BacklogGauges(store, metrics)

    def told(kind: str) -> tuple[float, float]:
        names = ("twofold_memory_backlog", "twofold_memory_backlog_age_seconds")
        values = [metrics.get_sample_value(name, {"kind": kind}) for name in names]
        assert None not in values
        return values[0] or 0.0, values[1] or 0.0

    assert all(map(math.isnan, told("dead_letters")))
    assert await gauges.refresh(500) == 0
    assert (told("dead_letters"), told("window_purges")) == ((2, 90), (0, 0))
    others = [("twofold_memory_backlog", {"kind": "search"}), ("twofold_memory_open_turns", {})]
    assert [metrics.get_sample_value(*other) for other in others] == [7, 3]
    store.found = None
    with pytest.raises(StoreUnavailable):
        await gauges.refresh(500)
    assert all(map(math.isnan, (*told("dead_letters"), *told("window_purges"))))
    assert all(math.isnan(metrics.get_sample_value(*other) or 0) for other in others)
