"""Conversations to be exported, from Postgres."""

import json
from collections.abc import Sequence

import asyncpg

from twofold_chassis import postgres
from twofold_chassis.postgres import Pool
from twofold_memory.exports import Found, Selection
from twofold_memory.store.statements import STATEMENTS


class PostgresExports:
    """Finds what is to be exported. `pool` is for long work."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool

    async def conversations(self, selection: Selection, behind: str, count: int) -> Sequence[Found]:
        """The next ones by thread id, behind one; times and deletion are not looked at."""
        arguments: list[object] = [selection.workspace_id, behind, count]
        if selection.thread_ids:
            statement = STATEMENTS["these_conversations_to_export"]
            arguments.append(list(selection.thread_ids))
        elif selection.user_id is not None:
            statement = STATEMENTS["conversations_of_a_user_to_export"]
            arguments.append(selection.user_id)
        else:
            statement = STATEMENTS["conversations_to_export"]
        async with postgres.connection(self._pool) as connection:
            return [_found(row) for row in await connection.fetch(statement, *arguments)]


def _found(row: asyncpg.Record) -> Found:
    return Found(
        thread_id=row["thread_id"],
        user_id=row["user_id"],
        title=row["title"],
        metadata=json.loads(row["metadata"]),
        next_seq=row["next_seq"],
        epoch=row["epoch"],
        created_at=row["created_at"],
        updated_at=row["updated_at"],
        deleted_at=row["deleted_at"],
    )
