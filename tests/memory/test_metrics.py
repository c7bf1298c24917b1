"""Metrics: each look at a window is counted by what it came to, and every metric is explained to operators."""

import asyncio
import re
import urllib.request
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
import redis.asyncio
from google.protobuf.duration_pb2 import Duration
from prometheus_client.parser import text_string_to_metric_families

from tests.memory.rooms import CALL_S, Memory, connected, redis_of, said
from tests.waiting import until
from twofold.memory.v1.turn_pb2 import BeginTurnRequest, TurnPolicy
from twofold.memory.v1.watch_pb2 import WatchConversationRequest
from twofold_chassis.settings import DatabaseSettings, LogSettings
from twofold_cli.embedded.redis import EmbeddedRedis
from twofold_memory import keys
from twofold_memory.app import memory
from twofold_memory.settings import MemorySettings, Settings
from twofold_memory.threads import ThreadKey

OPERATIONS = Path(__file__).parents[2] / "docs/operations.md"
Scrape = Callable[[], Awaitable[str]]


@pytest.fixture
async def measured(memory_database: DatabaseSettings, own_redis: EmbeddedRedis) -> AsyncIterator[tuple[Memory, Scrape]]:
    """A worker, and its metrics as they are scraped."""
    room = MemorySettings(port=0, metrics_port=0, drain_s=0, confirm_ms=5000, commit_ms=5000)
    chosen = Settings(database=memory_database, redis=redis_of(own_redis), memory=room, log=LogSettings(level="error"))
    async with memory(chosen) as running, connected(running.port) as client:

        def scrape() -> str:
            with urllib.request.urlopen(f"http://127.0.0.1:{running.metrics_port}/metrics", timeout=30) as answer:
                return str(answer.read().decode())

        yield client, lambda: asyncio.to_thread(scrape)


async def looks(scrape: Scrape) -> dict[str, float]:
    """How many looks came to what."""
    samples = [sample for family in text_string_to_metric_families(await scrape()) for sample in family.samples]
    return {
        sample.labels["outcome"]: sample.value for sample in samples if sample.name == "twofold_memory_window_looks_total"
    }


async def test_each_look_at_a_window_is_counted_by_what_it_came_to(
    measured: tuple[Memory, Scrape], own_redis: EmbeddedRedis, key: ThreadKey
) -> None:
    room, scrape = measured
    raw = redis.asyncio.Redis(host=own_redis.host, port=own_redis.port, password=own_redis.password)
    expected = dict.fromkeys(("HIT", "COLD", "SHORT", "STALE", "AWAY"), 0.0)
    assert await looks(scrape) == expected

    async def read_as(outcome: str, count: int = 0) -> None:
        await room.read(key, count)
        expected[outcome] += 1
        assert await looks(scrape) == expected

    async def warm() -> bool:
        return bool(await raw.exists(keys.thread_messages(key)))

    async with raw:
        for index in range(60):  # more messages than a window holds
            await room.append(key, f"q{index}", f"a{index}")
        await read_as("HIT")
        await read_as("SHORT", 110)
        await raw.delete(keys.thread_messages(key))
        await read_as("COLD")
        await until(warm)
        await raw.hset(keys.thread_head(key), "epoch", "0")
        await read_as("STALE")
        await own_redis.kill()
        await read_as("AWAY")


async def test_calls_that_last_are_counted_while_they_do(measured: tuple[Memory, Scrape], key: ThreadKey) -> None:
    room, scrape = measured
    named: dict[str, Any] = {"workspace_id": key.workspace_id, "thread_id": key.thread_id}
    first = BeginTurnRequest(**named, request_id="t1", messages=said("a"))
    await room.turns.BeginTurn(first, timeout=CALL_S)

    async def counts() -> list[float]:
        samples = [sample for family in text_string_to_metric_families(await scrape()) for sample in family.samples]
        names = ("twofold_memory_watchers", "twofold_memory_turn_waiters")
        return [sample.value for name in names for sample in samples if sample.name == name]

    async def are(*expected: float) -> None:
        async def as_expected() -> bool:
            return await counts() == list(expected)

        await until(as_expected)

    watch = room.watches.WatchConversation(WatchConversationRequest(**named), timeout=CALL_S)
    assert await watch.read()
    await are(1, 0)
    second = BeginTurnRequest(
        **named, request_id="t2", messages=said("b"), policy=TurnPolicy.TURN_POLICY_QUEUE, queue_wait=Duration(seconds=60)
    )
    waiting = room.turns.BeginTurn(second, timeout=CALL_S)
    await are(1, 1)
    watch.cancel()
    waiting.cancel()
    await are(0, 0)


async def test_every_metric_of_the_room_is_explained_to_operators(measured: tuple[Memory, Scrape]) -> None:
    _, scrape = measured
    told = set(re.findall(r"^# TYPE (twofold_(?:memory|postgres)_\w+) ", await scrape(), re.MULTILINE))
    told = {name for name in told if not name.endswith("_created")}
    explained = set(
        re.findall(r"^\| `(twofold_(?:memory|postgres)_\w+)", OPERATIONS.read_text(encoding="utf-8"), re.MULTILINE)
    )
    assert told == explained
