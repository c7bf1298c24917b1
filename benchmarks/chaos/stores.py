"""What the stores hold of the threads of chaos, read around the service: no mistake of its own can hide there."""

import asyncio
import random
from collections.abc import Iterable, Sequence
from typing import Any

import asyncpg
from redis.exceptions import RedisError

from benchmarks.chaos.clients import WORKSPACE
from benchmarks.chaos.history import History, Kept, Row, Sample, Shown, Texts, Thread
from benchmarks.chaos.stack import Stack, connected
from twofold.memory.v1.conversation_pb2 import ReadWindowResponse

_POSTGRES_S = 5.0
_TTL_MS_MAX = 24 * 3600 * 1000
_PAUSE_S = 0.02
_GONE = (OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError)

_CONVERSATIONS = """
    SELECT thread_id, epoch, next_seq, deleted_at IS NOT NULL AS deleted FROM memory.conversations
    WHERE workspace_id = $1 AND thread_id = ANY ($2::text[])
"""
_MESSAGES = """
    SELECT thread_id, seq, turn_id, turn_index, content FROM memory.messages
    WHERE workspace_id = $1 AND thread_id = ANY ($2::text[]) ORDER BY thread_id, seq
"""
_TURNS = """
    SELECT thread_id, turn_id, first_seq, last_seq, order_unverified FROM memory.turns
    WHERE workspace_id = $1 AND thread_id = ANY ($2::text[]) AND NOT dead
"""
_DEAD_LETTERS = """
    SELECT thread_id, turn_id, payload_hash, reason FROM memory.dead_letters
    WHERE workspace_id = $1 AND thread_id = ANY ($2::text[])
"""


def name_of(thread: str, part: str) -> str:
    """The key of Redis that holds this part of a thread."""
    return f"thread:{{{WORKSPACE}/{thread}}}:{part}"


async def looked_up(stack: Stack) -> "asyncpg.Connection[Any]":
    """A connection to Postgres around all proxies."""
    return await asyncpg.connect(stack.urls.superuser, timeout=_POSTGRES_S, command_timeout=_POSTGRES_S)


async def stored(stack: Stack, threads: Iterable[str], payloads: dict[tuple[str, bytes], Texts]) -> dict[str, Thread]:
    """All that is kept of these threads; `payloads` says what was sent under which turn id and hash."""
    names = sorted(threads)
    # Redis first: what is brought in between is then seen in both, and not in neither.
    still_waiting = {name: frozenset(await waiting(stack, name)) for name in names}
    connection = await looked_up(stack)
    try:
        async with connection.transaction(isolation="repeatable_read", readonly=True):
            conversations = await connection.fetch(_CONVERSATIONS, WORKSPACE, names)
            messages = await connection.fetch(_MESSAGES, WORKSPACE, names)
            turns = await connection.fetch(_TURNS, WORKSPACE, names)
            dead_letters = await connection.fetch(_DEAD_LETTERS, WORKSPACE, names)
    finally:
        await connection.close()
    known = {row["thread_id"]: row for row in conversations}
    rows: dict[str, list[Row]] = {name: [] for name in names}
    for row in messages:
        rows[row["thread_id"]].append(Row(row["seq"], row["turn_id"], row["turn_index"], row["content"]))
    kept: dict[str, dict[str, Kept]] = {name: {} for name in names}
    for row in turns:
        kept[row["thread_id"]][row["turn_id"]] = Kept(row["first_seq"], row["last_seq"], row["order_unverified"])
    dead: dict[str, set[tuple[str, Texts]]] = {name: set() for name in names}
    for row in dead_letters:
        dead[row["thread_id"]].add((row["turn_id"], payloads.get((row["turn_id"], row["payload_hash"]), ())))
    found = {}
    for name in names:
        about = known.get(name)
        found[name] = Thread(
            rows[name],
            kept[name],
            frozenset(dead[name]),
            still_waiting[name],
            epoch=about["epoch"] if about else 1,
            next_seq=about["next_seq"] if about else 1,
            deleted=about["deleted"] if about else False,
        )
    return found


async def settled(stack: Stack, threads: Sequence[str]) -> set[tuple[str, str]]:
    """The turns (thread, id) of which Postgres knows what has become."""
    connection = await looked_up(stack)
    try:
        turns = await connection.fetch(_TURNS, WORKSPACE, threads)
        dead_letters = await connection.fetch(_DEAD_LETTERS, WORKSPACE, threads)
    finally:
        await connection.close()
    return {(row["thread_id"], row["turn_id"]) for row in (*turns, *dead_letters)}


async def waiting(stack: Stack, thread: str) -> list[str]:
    """The ids of the turns of a thread that wait in Redis."""
    ids = await stack.redis.command("LRANGE", name_of(thread, "waiting"), 0, -1)
    return [turn_id.decode() for turn_id in ids or ()]


async def watch(
    stack: Stack, threads: Sequence[str], history: History, chance: random.Random, enough: asyncio.Event
) -> None:
    """Samples windows until it is enough: what Redis holds of a thread at one moment, against Postgres right after."""
    postgres: asyncpg.Connection[Any] | None = None
    try:
        while not enough.is_set():
            await asyncio.sleep(_PAUSE_S)
            thread = chance.choice(threads)
            found = await sample(stack, thread)
            if found is None:
                continue
            try:
                if postgres is None or postgres.is_closed():
                    postgres = await looked_up(stack)
                history.samples.append(await _ahead(postgres, found))
            except _GONE:
                history.samples.append(found)  # compared with what is stored in the end
    finally:
        if postgres is not None:
            postgres.terminate()


async def sample(stack: Stack, thread: str) -> Sample | None:
    """What Redis holds of a thread; None if there is no window, or no Redis."""
    messages, head, waits = (name_of(thread, part) for part in ("messages", "head", "waiting"))
    try:
        async with connected(stack.redis.master) as client, client.pipeline(transaction=True) as pipeline:
            pipeline.lrange(messages, 0, -1)
            pipeline.hgetall(head)
            for name in (messages, head, waits):
                pipeline.pttl(name)
            elements, about, *ttls = await pipeline.execute()
    except (RedisError, OSError):
        return None
    at = asyncio.get_running_loop().time()
    if any(ttl != -2 and not 0 <= ttl <= _TTL_MS_MAX for ttl in ttls[:2]):
        return Sample(thread, at, 0, 0, (), f"a window lives for {ttls[:2]} ms")
    if ttls[2] >= 0:
        return Sample(thread, at, 0, 0, (), f"what waits expires in {ttls[2]} ms")
    if not about or int(about[b"next"]) == 0 or len(elements) != int(about[b"next"]) - int(about[b"first"]):
        return None  # cold, or one of the two was evicted: nobody takes that for a window
    shown = ReadWindowResponse.FromString(b"".join(element[1:] for element in elements)).messages
    return Sample(
        thread,
        at,
        int(about[b"epoch"]),
        int(about[b"first"]),
        tuple(Shown(message.seq, message.turn_id, message.content) for message in shown),
    )


async def _ahead(postgres: "asyncpg.Connection[Any]", found: Sample) -> Sample:
    """The sample, with a problem if it knows more than Postgres does."""
    rows = await postgres.fetch(_CONVERSATIONS, WORKSPACE, [found.thread])
    next_seq = rows[0]["next_seq"] if rows else 1
    if found.first_seq + len(found.messages) <= next_seq:
        return found
    problem = f"the copy ends at {found.first_seq + len(found.messages) - 1}, Postgres at {next_seq - 1}"
    return Sample(found.thread, found.at, found.epoch, found.first_seq, found.messages, problem)
