"""What is measured of usage: events recorded in batches, with dedupe and sums, against the bare insertion of their rows."""

import asyncio
import statistics
import time
from collections.abc import Awaitable, Callable, Sequence
from datetime import UTC, datetime, timedelta
from typing import TypeVar

import asyncpg
import grpc

from benchmarks import threads
from benchmarks.comparing import Operation
from benchmarks.places import Place
from benchmarks.rows import ROUNDS, Figure, Json
from twofold.ids import new_id
from twofold.registry.v1 import usage_pb2

EVENTS = 50_000
BATCH = 500
CALLERS = 4
GOAL = 0.4
_USERS, _AGENTS = 20, 5
_RECORD = "/twofold.registry.v1.UsageService/RecordUsage"
_TABLE = """
    CREATE TABLE public.plain_events (
        workspace_id text COLLATE "C", event_id text COLLATE "C", user_id text COLLATE "C", agent_id text COLLATE "C",
        event_time timestamptz, messages bigint, input_tokens bigint, output_tokens bigint,
        PRIMARY KEY (workspace_id, event_id)
    );
    CREATE INDEX ON public.plain_events (workspace_id, event_time)
"""
_INSERT = """
    INSERT INTO public.plain_events SELECT $1, *
    FROM unnest($2::text[], $3::text[], $4::text[], $5::timestamptz[], $6::bigint[], $7::bigint[], $8::bigint[])
"""

Item = TypeVar("Item")
Batch = Sequence[usage_pb2.UsageEvent]


async def _record(place: Place) -> Figure:
    """In rounds, each with new events: ours, then the bare rows of as many others."""
    pool = await asyncpg.create_pool(place.stack.postgres.owner_url, min_size=CALLERS, max_size=CALLERS)
    await pool.execute(_TABLE)
    ours, plain = [], []
    async with grpc.aio.insecure_channel(place.stack.registry.target) as channel:
        record: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(_RECORD)
        for number in range(-1, ROUNDS):  # the first is to warm up
            mine, theirs = (_batches() for _ in range(2))
            requests = [
                usage_pb2.RecordUsageRequest(workspace_id=threads.WORKSPACE, events=batch).SerializeToString()
                for batch in mine
            ]
            rows = [_columns(batch) for batch in theirs]
            rates = await _rate(requests, record), await _rate(rows, lambda row: pool.execute(_INSERT, *row))
            if number >= 0:
                ours.append(rates[0])
                plain.append(rates[1])
    await pool.close()
    ratio = statistics.median(mine / theirs for mine, theirs in zip(ours, plain, strict=True))
    values: Json = {
        "over_plain": round(ratio, 3),
        "goal": GOAL,
        "events_per_s": round(statistics.median(ours)),
        "plain_events_per_s": round(statistics.median(plain)),
        "plain_spread": round(max(plain) / min(plain), 2),
        "callers": CALLERS,
    }
    what = f"{EVENTS:,} usage events in batches of {BATCH}, with dedupe, prices and sums"
    note = "over gRPC, against a plain unnest insert of as many rows into one table with a key and an index; same run"
    return Figure("U1", what, values, note, ratio >= GOAL)


async def _rate(items: Sequence[Item], send: Callable[[Item], Awaitable[object]]) -> float:
    """Events per second, with all callers."""
    waiting = iter(items)

    async def caller() -> None:
        for item in waiting:
            await send(item)

    began = time.perf_counter()
    await asyncio.gather(*(caller() for _ in range(CALLERS)))
    return len(items) * BATCH / (time.perf_counter() - began)


def _batches() -> list[Batch]:
    """Those of one round."""
    now = datetime.now(UTC)
    return [[_event(number, now) for number in range(BATCH)] for _ in range(EVENTS // BATCH // ROUNDS)]


def _event(number: int, now: datetime) -> usage_pb2.UsageEvent:
    event = usage_pb2.UsageEvent(
        event_id=f"{new_id()}/0",
        user_id=f"user-{number % _USERS}",
        agent_id=f"agent-{number % _AGENTS}",
        messages=2,
        input_tokens=1000 + number,
        output_tokens=number,
    )
    event.event_time.FromDatetime(now - timedelta(seconds=number))
    return event


def _columns(batch: Batch) -> tuple[object, ...]:
    return (
        threads.WORKSPACE,
        [event.event_id for event in batch],
        [event.user_id for event in batch],
        [event.agent_id for event in batch],
        [event.event_time.ToDatetime(tzinfo=UTC) for event in batch],
        [event.messages for event in batch],
        [event.input_tokens for event in batch],
        [event.output_tokens for event in batch],
    )


OPERATIONS: Sequence[Operation] = (Operation("U1", _record),)
