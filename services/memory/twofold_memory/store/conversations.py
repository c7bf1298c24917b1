"""Conversations in Postgres."""

import json
from datetime import datetime

import asyncpg

from twofold_chassis import postgres
from twofold_chassis.postgres import Connection, Pool
from twofold_chassis.refusals import Busy
from twofold_chassis.requests import Attempt, Requests
from twofold_memory.changes import Changed
from twofold_memory.conversations import Answer, Edit, Filter, expect
from twofold_memory.purges import Purge
from twofold_memory.store import changes, events
from twofold_memory.store.statements import STATEMENTS
from twofold_memory.threads import Conversation, ConversationErased, ConversationExists, ThreadKey, may_see, unknown


class PostgresConversations:
    """The truth about which conversations there are."""

    def __init__(self, pool: Pool, requests: Requests) -> None:
        self._pool = pool
        self._requests = requests

    async def create(self, attempt: Attempt, new: Conversation, erased_epoch: int, answer: Answer) -> Changed:
        """Makes a conversation, also anew under the id of one that was erased, if its epoch is named.

        Raises ConversationExists, ConversationErased, Busy, RequestReused.
        """

        async def change(connection: Connection) -> tuple[bytes, list[Purge]]:
            what = (*new.key, new.user_id, new.title, json.dumps(dict(new.metadata)))
            row = await connection.fetchrow(STATEMENTS["create_conversation"], *what)
            if row is not None:
                return answer(conversation(row)), []
            row = await connection.fetchrow(STATEMENTS["begin_erased_anew"], *what, erased_epoch)
            if row is None:
                await _refuse_taken(connection, new.key, erased_epoch)
            assert row is not None
            purges = [Purge(new.key, row["epoch"])]
            await changes.ask_purges(connection, new.key.workspace_id, purges)
            return answer(conversation(row)), purges

        return await changes.made(self._pool, self._requests, attempt, new.key, change)

    async def make(self, new: Conversation) -> None:
        """Makes a conversation. Raises ConversationExists, ConversationErased."""
        await self.create(Attempt(new.key.workspace_id, "", None, b""), new, 0, lambda _: b"")

    async def get(self, key: ThreadKey, user_id: str | None = None) -> Conversation:
        """Raises ConversationUnknown."""
        async with postgres.connection(self._pool) as connection:
            row = await connection.fetchrow(STATEMENTS["conversation"], *key)
        if row is None or not may_see(row["user_id"], user_id):
            raise unknown(key)
        return conversation(row)

    async def update(self, attempt: Attempt, key: ThreadKey, edit: Edit, given_etag: str, answer: Answer) -> bytes:
        """Raises ConversationUnknown, EtagMismatch, RequestReused."""

        async def change() -> bytes:
            new = edit.applied(await _locked(connection, key, given_etag))
            row = await connection.fetchrow(
                STATEMENTS["update_conversation"], *key, new.title, json.dumps(dict(new.metadata))
            )
            assert row is not None
            return answer(conversation(row))

        async with postgres.transaction(self._pool) as connection:
            return await self._requests.once(connection, attempt, change)

    async def delete(self, attempt: Attempt, key: ThreadKey, given_etag: str) -> Changed:
        """Hides it. Raises ConversationUnknown, EtagMismatch, RequestReused."""

        async def change(connection: Connection) -> tuple[bytes, list[Purge]]:
            await _locked(connection, key, given_etag)
            purges = [Purge(key, await connection.fetchval(STATEMENTS["delete_conversation"], *key))]
            await changes.ask_purges(connection, key.workspace_id, purges)
            await events.record(connection, key, "conversation.deleted", {})
            return b"", purges

        return await changes.made(self._pool, self._requests, attempt, key, change)

    async def undelete(self, attempt: Attempt, key: ThreadKey, answer: Answer) -> Changed:
        """Shows it again. Raises ConversationUnknown, ConversationErased, RequestReused."""

        async def change(connection: Connection) -> tuple[bytes, list[Purge]]:
            row = await connection.fetchrow(STATEMENTS["lock_deleted_conversation"], *key)
            if row is None:
                raise unknown(key)
            if row["erased"]:
                raise ConversationErased("the conversation is erased", thread_id=key.thread_id)
            if not row["deleted"]:
                return answer(conversation(row)), []
            shown = await connection.fetchrow(STATEMENTS["undelete_conversation"], *key)
            assert shown is not None
            purges = [Purge(key, shown["epoch"])]
            await changes.ask_purges(connection, key.workspace_id, purges)
            await events.record(connection, key, "conversation.undeleted", {})
            return answer(conversation(shown)), purges

        return await changes.made(self._pool, self._requests, attempt, key, change)

    async def page(
        self, workspace_id: str, asked: Filter, after: tuple[datetime, str] | None, count: int
    ) -> list[Conversation]:
        """Conversations by newest change, from behind `after` on."""
        arguments: list[object] = [workspace_id, *(after or (None, None)), count, asked.updated_from, asked.updated_before]
        if asked.metadata:
            statement = STATEMENTS["conversations_with_labels"]
            arguments += [asked.user_id, json.dumps(dict(asked.metadata))]
        elif asked.user_id is not None:
            statement = STATEMENTS["conversations_of_user"]
            arguments += [asked.user_id]
        else:
            statement = STATEMENTS["conversations_of_workspace"]
        async with postgres.connection(self._pool) as connection:
            return [conversation(row) for row in await connection.fetch(statement, *arguments)]


async def _refuse_taken(connection: Connection, key: ThreadKey, erased_epoch: int) -> None:
    row = await connection.fetchrow(STATEMENTS["tombstone"], *key)
    if row is None:
        raise ConversationExists(f"the thread id {key.thread_id!r} is taken", thread_id=key.thread_id)
    if row["epoch"] == erased_epoch and row["being_erased"]:
        raise Busy("the erasure of the conversation is not done", retry_after_s=1.0)
    raise ConversationErased("the conversation is erased", thread_id=key.thread_id, epoch=str(row["epoch"]))


async def _locked(connection: Connection, key: ThreadKey, given_etag: str) -> Conversation:
    row = await connection.fetchrow(STATEMENTS["lock_conversation"], *key)
    if row is None:
        raise unknown(key)
    found = conversation(row)
    expect(found, given_etag)
    return found


def conversation(row: asyncpg.Record) -> Conversation:
    """A conversation out of its row."""
    return Conversation(
        key=ThreadKey(row["workspace_id"], row["thread_id"]),
        user_id=row["user_id"],
        title=row["title"],
        metadata=json.loads(row["metadata"]),
        message_count=row["next_seq"] - 1,
        first_seq=row["floor_seq"] + 1,
        parent_thread_id=row["parent_thread_id"],
        fork_seq=row["shared_until"][-1] if row["shared_until"] else 0,
        version=row["version"],
        created_at=row["created_at"],
        updated_at=row["updated_at"],
        listed_at=row["listed_at"],
    )
