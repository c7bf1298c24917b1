"""Records and the end of their conversation: nothing is written into a conversation that has been deleted meanwhile."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import asyncpg
import grpc
import pytest

from tests.memory import test_checkpoints as checkpoints
from tests.memory import test_events as events
from tests.memory import test_summaries as summaries
from tests.memory import test_tool_runs as runs
from tests.memory.rooms import Memory, reason
from tests.waiting import until
from twofold_memory.threads import ThreadKey

Write = Callable[[Memory, ThreadKey], Awaitable[object]]
WRITES: dict[str, tuple[Write, str]] = {
    "events": (lambda room, key: events.append(room, key, "a"), "events"),
    "summaries": (lambda room, key: summaries.put(room, key, 1), "summaries"),
    "checkpoints": (lambda room, key: checkpoints.put(room, key), "checkpoints"),
    "forks": (lambda room, key: checkpoints.fork(room, key, "there", "new"), "checkpoints"),
    "tool runs": (lambda room, key: runs.create(room, key.workspace_id, thread_id=key.thread_id), "tool_runs"),
}


@pytest.mark.parametrize("name", sorted(WRITES))
async def test_a_record_is_not_committed_behind_the_deletion_of_its_conversation(
    room: Memory, key: ThreadKey, sql: "asyncpg.Pool[Any]", name: str
) -> None:
    """M11: whoever erases deletes rows after the tombstone; what came later would stay for ever."""
    write, table = WRITES[name]
    await room.append(key, "q")
    if name == "forks":
        await checkpoints.put(room, key, checkpoint_id="there")
    count = f"SELECT count(*) FROM memory.{table} WHERE workspace_id = $1"
    before = await sql.fetchval(count, key.workspace_id)
    async with sql.acquire() as connection:
        deleting = connection.transaction()
        await deleting.start()
        await connection.execute(
            "UPDATE memory.conversations SET deleted_at = now() WHERE workspace_id = $1", key.workspace_id
        )
        pid = await connection.fetchval("SELECT pg_backend_pid()")
        written = asyncio.ensure_future(write(room, key))

        async def waits() -> bool:
            blocked = "SELECT count(*) FROM pg_stat_activity WHERE $1 = ANY (pg_blocking_pids(pid))"
            return written.done() or bool(await sql.fetchval(blocked, pid))

        await until(waits)
        assert not written.done(), "it must wait for the deletion"
        await deleting.commit()
    with pytest.raises(grpc.aio.AioRpcError) as told:
        await written
    assert reason(told.value) == "REASON_CONVERSATION_UNKNOWN"
    assert await sql.fetchval(count, key.workspace_id) == before


@pytest.mark.parametrize("name", sorted(WRITES))
async def test_a_conversation_that_is_busy_for_too_long_is_said_to_be(
    room: Memory, key: ThreadKey, sql: "asyncpg.Pool[Any]", name: str
) -> None:
    """M18: waiting is bounded and ends in ABORTED; the same call succeeds later."""
    write, _ = WRITES[name]
    await room.append(key, "q")
    if name == "forks":
        await checkpoints.put(room, key, checkpoint_id="there")
    async with sql.acquire() as connection, connection.transaction():
        await connection.execute("SELECT FROM memory.conversations WHERE workspace_id = $1 FOR UPDATE", key.workspace_id)
        with pytest.raises(grpc.aio.AioRpcError) as told:
            await write(room, key)
    assert (told.value.code(), reason(told.value)) == (grpc.StatusCode.ABORTED, "REASON_BUSY")
    await write(room, key)
