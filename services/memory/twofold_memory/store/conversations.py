"""Conversations in Postgres."""

import json
from datetime import datetime

import asyncpg

from twofold_chassis import postgres
from twofold_chassis.postgres import Connection, Pool
from twofold_chassis.requests import Attempt, Requests
from twofold_memory.conversations import Answer, Edit, expect
from twofold_memory.store.statements import STATEMENTS
from twofold_memory.threads import Conversation, ConversationExists, ThreadKey, unknown


class PostgresConversations:
    """The truth about which conversations there are."""

    def __init__(self, pool: Pool, requests: Requests) -> None:
        self._pool = pool
        self._requests = requests

    async def create(self, attempt: Attempt, new: Conversation, answer: Answer) -> bytes:
        """Makes a conversation. Raises ConversationExists, RequestReused."""

        async def change() -> bytes:
            row = await connection.fetchrow(
                STATEMENTS["create_conversation"], *new.key, new.user_id, new.title, json.dumps(dict(new.metadata))
            )
            if row is None:
                raise ConversationExists(f"the thread id {new.key.thread_id!r} is taken", thread_id=new.key.thread_id)
            return answer(_conversation(row))

        async with postgres.transaction(self._pool) as connection:
            return await self._requests.once(connection, attempt, change)

    async def get(self, key: ThreadKey) -> Conversation:
        """Raises ConversationUnknown."""
        async with postgres.connection(self._pool) as connection:
            row = await connection.fetchrow(STATEMENTS["conversation"], *key)
        if row is None:
            raise unknown(key)
        return _conversation(row)

    async def update(self, attempt: Attempt, key: ThreadKey, edit: Edit, given_etag: str, answer: Answer) -> bytes:
        """Raises ConversationUnknown, EtagMismatch, RequestReused."""

        async def change() -> bytes:
            new = edit.applied(await _locked(connection, key, given_etag))
            row = await connection.fetchrow(
                STATEMENTS["update_conversation"], *key, new.title, json.dumps(dict(new.metadata))
            )
            assert row is not None
            return answer(_conversation(row))

        async with postgres.transaction(self._pool) as connection:
            return await self._requests.once(connection, attempt, change)

    async def delete(self, attempt: Attempt, key: ThreadKey, given_etag: str, answer: bytes) -> int | None:
        """Hides it; returns the epoch from which on copies are valid, None if it had been done before by the same call.

        Raises ConversationUnknown, EtagMismatch, RequestReused.
        """
        epoch: int | None = None

        async def change() -> bytes:
            nonlocal epoch
            await _locked(connection, key, given_etag)
            epoch = await connection.fetchval(STATEMENTS["delete_conversation"], *key)
            await connection.execute(STATEMENTS["ask_purge"], *key, epoch)
            return answer

        async with postgres.transaction(self._pool) as connection:
            await self._requests.once(connection, attempt, change)
        return epoch

    async def page(
        self, workspace_id: str, user_id: str | None, after: tuple[datetime, str] | None, count: int
    ) -> list[Conversation]:
        """Conversations by newest change, from behind `after` on."""
        behind = after or (None, None)
        async with postgres.connection(self._pool) as connection:
            if user_id is None:
                rows = await connection.fetch(STATEMENTS["conversations_of_workspace"], workspace_id, *behind, count)
            else:
                rows = await connection.fetch(STATEMENTS["conversations_of_user"], workspace_id, user_id, *behind, count)
        return [_conversation(row) for row in rows]


async def _locked(connection: Connection, key: ThreadKey, given_etag: str) -> Conversation:
    row = await connection.fetchrow(STATEMENTS["lock_conversation"], *key)
    if row is None:
        raise unknown(key)
    conversation = _conversation(row)
    expect(conversation, given_etag)
    return conversation


def _conversation(row: asyncpg.Record) -> Conversation:
    return Conversation(
        key=ThreadKey(row["workspace_id"], row["thread_id"]),
        user_id=row["user_id"],
        title=row["title"],
        metadata=json.loads(row["metadata"]),
        message_count=row["next_seq"] - 1,
        version=row["version"],
        created_at=row["created_at"],
        updated_at=row["updated_at"],
        listed_at=row["listed_at"],
    )
