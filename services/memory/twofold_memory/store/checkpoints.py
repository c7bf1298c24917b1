"""Checkpoints in Postgres."""

import json
from collections.abc import Callable

import asyncpg

from twofold_chassis import postgres
from twofold_chassis.postgres import Connection, Pool
from twofold_chassis.requests import Attempt, Requests
from twofold_memory.checkpoints import (
    DELETED_AT_ONCE,
    Checkpoint,
    CheckpointExists,
    CheckpointPage,
    Deleted,
    NewCheckpoint,
    expect,
    unknown,
)
from twofold_memory.store import records
from twofold_memory.store.statements import STATEMENTS
from twofold_memory.threads import ANSWER_BYTES_MAX, ThreadKey

Answer = Callable[[Checkpoint], bytes]


class PostgresCheckpoints:
    """The truth about states of agents."""

    def __init__(self, pool: Pool, requests: Requests) -> None:
        self._pool = pool
        self._requests = requests

    async def put(
        self,
        attempt: Attempt,
        key: ThreadKey,
        user_id: str | None,
        new: NewCheckpoint,
        expected_head_id: str | None,
        answer: Answer,
    ) -> bytes:
        """Adds a checkpoint at the head of its line.

        Raises ConversationUnknown, CheckpointUnknown (of the parent), HeadMoved, CheckpointExists, RequestReused.
        """

        async def change() -> bytes:
            await records.find(connection, key, user_id)
            line = await connection.fetchrow(STATEMENTS["lock_checkpoint_line"], *key, new.line)
            head_id, version = (line["head_id"], line["head_version"] + 1) if line else (None, 1)
            expect(head_id, expected_head_id)
            if line is None:
                await _make_line(connection, key, new.line, new.checkpoint_id)
            else:
                await connection.execute(STATEMENTS["move_checkpoint_line"], *key, new.line, new.checkpoint_id, version)
            parent_id = await _parent_id(connection, key, new, head_id)
            kept = await _put(connection, key, new, version, parent_id)
            # Last: appends of the conversation wait for this lock, and large data takes its time.
            await records.hold(connection, key, user_id)
            return answer(kept)

        async with postgres.transaction(self._pool) as connection:
            return await self._requests.once(connection, attempt, change)

    async def fork(
        self,
        attempt: Attempt,
        key: ThreadKey,
        user_id: str | None,
        checkpoint_id: str,
        new_line: str,
        new_id: str,
        answer: Answer,
    ) -> bytes:
        """Begins a line with the state of a checkpoint.

        Raises ConversationUnknown, CheckpointUnknown, HeadMoved, CheckpointExists, RequestReused.
        """

        async def change() -> bytes:
            await records.find(connection, key, user_id)
            if not await connection.fetchval(STATEMENTS["checkpoint_is_there"], *key, checkpoint_id):
                raise unknown(checkpoint_id)
            await _make_line(connection, key, new_line, new_id)
            row = await connection.fetchrow(STATEMENTS["fork_checkpoint"], *key, checkpoint_id, new_line, new_id)
            if row is not None:
                await records.hold(connection, key, user_id)
                return answer(_checkpoint(row))
            if await connection.fetchval(STATEMENTS["checkpoint_is_there"], *key, checkpoint_id):
                raise _taken(new_id)
            raise unknown(checkpoint_id)  # deleted just now

        async with postgres.transaction(self._pool) as connection:
            return await self._requests.once(connection, attempt, change)

    async def pin(
        self, attempt: Attempt, key: ThreadKey, user_id: str | None, checkpoint_id: str, pinned: bool, answer: Answer
    ) -> bytes:
        """Says whether it is kept. Raises ConversationUnknown, CheckpointUnknown, RequestReused."""

        async def change() -> bytes:
            await records.find(connection, key, user_id)
            row = await connection.fetchrow(STATEMENTS["pin_checkpoint"], *key, checkpoint_id, pinned)
            if row is None:
                raise unknown(checkpoint_id)
            return answer(_checkpoint(row))

        async with postgres.transaction(self._pool) as connection:
            return await self._requests.once(connection, attempt, change)

    async def delete(
        self,
        attempt: Attempt,
        key: ThreadKey,
        user_id: str | None,
        line: str,
        keep_newest: int,
        answer: Callable[[Deleted], bytes],
    ) -> bytes:
        """Deletes some of the older ones of a line. Raises ConversationUnknown, RequestReused."""

        async def change() -> bytes:
            await records.find(connection, key, user_id)
            head = await connection.fetchrow(STATEMENTS["lock_checkpoint_line"], *key, line)
            if head is None:
                return answer(Deleted(0, more=False))
            which = (*key, line, head["head_version"] - keep_newest + 1)
            gone = await connection.fetch(STATEMENTS["delete_checkpoints"], *which, DELETED_AT_ONCE)
            more = await connection.fetchval(STATEMENTS["checkpoints_to_delete"], *which)
            return answer(Deleted(len(gone), more=bool(more)))

        async with postgres.transaction(self._pool) as connection:
            return await self._requests.once(connection, attempt, change)

    async def get(self, key: ThreadKey, user_id: str | None, checkpoint_id: str | None, line: str) -> Checkpoint:
        """One by its id, or the newest of a line. Raises ConversationUnknown, CheckpointUnknown."""
        async with postgres.connection(self._pool) as connection:
            await records.find(connection, key, user_id)
            if checkpoint_id is None:
                row = await connection.fetchrow(STATEMENTS["newest_checkpoint"], *key, line)
            else:
                row = await connection.fetchrow(STATEMENTS["checkpoint"], *key, checkpoint_id)
        if row is None:
            raise unknown(checkpoint_id)
        return _checkpoint(row)

    async def page(
        self, key: ThreadKey, user_id: str | None, line: str, before: int | None, size: int, *, with_data: bool
    ) -> CheckpointPage:
        """Up to `size` of a line, the newest first; fewer if they are very large. Raises ConversationUnknown."""
        place = (before or 2**63 - 1, size + 1, ANSWER_BYTES_MAX)
        async with postgres.connection(self._pool) as connection:
            await records.find(connection, key, user_id)
            rows = await connection.fetch(STATEMENTS["checkpoints_before"], *key, line, *place, with_data)
        kept = records.fitting(rows, size, lambda row: len(row["metadata"].encode()) + len(row["data"] or b""))
        return CheckpointPage([_checkpoint(row) for row in rows[:kept]], kept < len(rows))


async def _make_line(connection: Connection, key: ThreadKey, line: str, checkpoint_id: str) -> None:
    if await connection.fetchval(STATEMENTS["make_checkpoint_line"], *key, line, checkpoint_id) is None:
        head = await connection.fetchrow(STATEMENTS["lock_checkpoint_line"], *key, line)
        expect(head["head_id"] if head else None, None)


async def _parent_id(connection: Connection, key: ThreadKey, new: NewCheckpoint, head_id: str | None) -> str:
    if new.parent_id is None or new.parent_id == head_id:
        return head_id or ""
    if not await connection.fetchval(STATEMENTS["checkpoint_is_there"], *key, new.parent_id):
        raise unknown(new.parent_id)
    return new.parent_id


async def _put(connection: Connection, key: ThreadKey, new: NewCheckpoint, version: int, parent_id: str) -> Checkpoint:
    row = await connection.fetchrow(
        STATEMENTS["put_checkpoint"],
        *key,
        new.line,
        version,
        new.checkpoint_id,
        parent_id,
        new.data,
        new.content_type,
        json.dumps(dict(new.metadata)),
        new.pinned,
    )
    if row is None:
        raise _taken(new.checkpoint_id)
    return _checkpoint(row)


def _checkpoint(row: asyncpg.Record) -> Checkpoint:
    return Checkpoint(
        checkpoint_id=row["checkpoint_id"],
        line=row["line"],
        version=row["version"],
        parent_id=row["parent_id"],
        data=row["data"],
        data_bytes=row["data_bytes"],
        content_type=row["content_type"],
        pinned=row["pinned"],
        metadata=json.loads(row["metadata"]),
        created_at=row["created_at"],
    )


def _taken(checkpoint_id: str) -> CheckpointExists:
    return CheckpointExists(f"the id {checkpoint_id!r} is taken", checkpoint_id=checkpoint_id)
