"""P12, what it takes in memory and on disk: the service's own, Redis per cached message, Postgres per message."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Mapping
from typing import Any

import asyncpg
import redis.asyncio

from benchmarks import load, threads
from benchmarks.comparing import MANY
from benchmarks.load import Load
from benchmarks.operations import THREADS
from benchmarks.places import Place
from benchmarks.rows import Figure, Json, resident_mib
from benchmarks.words import WINDOW
from twofold.memory.v1 import message_pb2

_LOAD_S = 3
_SAMPLE_S = 0.1
_KEPT = 16
_KEPT_MESSAGES = 500
_KIB = 1024
_TABLES = ("memory.messages", "memory.turns", "memory.conversations")
_BOUND = (
    "bounded however long it runs: 64 MiB of turns that wait for a commit, 64 MiB of commands that wait for Redis (what "
    "arrives beyond is refused), and the names of the last 100,000 threads"
)


async def figures(place: Place) -> list[Figure]:
    """All of P12, measured with data of its own."""
    return [await _service(place), *await _stores(place)]


async def _service(place: Place) -> Figure:
    """A new worker, so that what other rows left behind is not counted."""
    async with place.another_worker() as worker:
        start = resident_mib(worker.pid)
        names = [f"size-{number}" for number in range(THREADS)]
        tokens = await threads.make_threads(place.twofold, names, 2 * WINDOW)
        appends = [threads.append(name).SerializeToString() for name in names]
        reads = [threads.window(name, token).SerializeToString() for name, token in zip(names, tokens, strict=True)]
        method = "/twofold.memory.v1.ConversationService"
        async with _highest(worker.pid) as highest:
            await load.run(Load(worker.target, f"{method}/AppendTurn", appends, MANY), _LOAD_S)
            first = highest[0]
            await load.run(Load(worker.target, f"{method}/ReadWindow", reads, MANY), _LOAD_S)
            await load.run(Load(worker.target, f"{method}/AppendTurn", appends, MANY), _LOAD_S)
        values: Json = {
            "start_mib": start,
            "under_load_mib": highest[0],
            "under_load_at_first_mib": first,
            "after_mib": resident_mib(worker.pid),
        }
    return Figure("P12-service", f"resident memory of a memory worker, {MANY} callers", values, _BOUND)


async def _stores(place: Place) -> list[Figure]:
    """Of new threads that grow exchange by exchange, as conversations do."""
    names = [f"kept-{number}" for number in range(_KEPT)]
    before = await _table_bytes(place)
    await threads.make_threads(place.twofold, names, _KEPT_MESSAGES)
    grown = {table: size - before[table] for table, size in (await _table_bytes(place)).items()}
    for name in names:
        await threads.check_window(place.twofold, threads.window(name), message_pb2.READ_SOURCE_L1)
    exchange = threads.append("").messages
    payload = sum(message.ByteSize() for message in exchange) / len(exchange)
    return [await _redis(place, payload), _postgres(grown, payload)]


async def _redis(place: Place, payload: float) -> Figure:
    async with redis.asyncio.Redis.from_url(place.redis_url) as client:
        used = cached = 0
        async for key in client.scan_iter(match=f"thread:{{{threads.WORKSPACE}/kept-*:messages", count=1000):
            head = key.removesuffix(b":messages") + b":head"
            cached += await client.llen(key)
            for name in (key, head):
                used += await client.memory_usage(name, samples=0) or 0
    values: Json = {
        "bytes_per_message": round(used / cached, 1),
        "message_bytes": round(payload, 1),
        "messages": cached,
        "bytes_per_thread": round(used / _KEPT),
    }
    note = "window and head, by MEMORY USAGE; a thread has at most 100 messages and 4 MiB there, until its time to live ends"
    return Figure("P12-redis", "Redis bytes per cached message", values, note)


def _postgres(grown: Mapping[str, int], payload: float) -> Figure:
    messages = _KEPT * _KEPT_MESSAGES
    values: Json = {
        "bytes_per_message": round(sum(grown.values()) / messages, 1),
        "message_bytes": round(payload, 1),
        "messages": messages,
        **{f"{table.removeprefix('memory.')}_bytes_per_message": round(size / messages, 1) for table, size in grown.items()},
    }
    note = "what tables, their indexes and TOAST grew by, not vacuumed, by pg_total_relation_size; turns of two messages"
    return Figure("P12-postgres", "Postgres bytes per message", values, note)


async def _table_bytes(place: Place) -> dict[str, int]:
    connection: asyncpg.Connection[Any] = await asyncpg.connect(place.stack.postgres.superuser_url)
    try:
        return {table: await connection.fetchval("SELECT pg_total_relation_size($1::regclass)", table) for table in _TABLES}
    finally:
        await connection.close()


@contextlib.asynccontextmanager
async def _highest(pid: int) -> AsyncIterator[list[float]]:
    """The highest resident memory so far, looked at all the time while the block runs."""
    highest = [resident_mib(pid)]

    async def look() -> None:
        while True:
            highest[0] = max(highest[0], resident_mib(pid))
            await asyncio.sleep(_SAMPLE_S)

    looking = asyncio.create_task(look())
    try:
        yield highest
    finally:
        looking.cancel()
