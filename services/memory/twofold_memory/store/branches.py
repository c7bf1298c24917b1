"""Branches in Postgres."""

import json

import asyncpg

from twofold_chassis import postgres
from twofold_chassis.postgres import Connection, Pool
from twofold_chassis.requests import Attempt, Requests
from twofold_memory.branches import BRANCHES_MAX, Lineage, NewBranch, TooManyBranches
from twofold_memory.conversations import Answer
from twofold_memory.store import events, records
from twofold_memory.store.conversations import conversation
from twofold_memory.store.statements import STATEMENTS
from twofold_memory.threads import Conversation, ConversationErased, ConversationExists, ThreadKey, may_see, unknown


class PostgresBranches:
    """The truth about which conversations began as another one did."""

    def __init__(self, pool: Pool, requests: Requests) -> None:
        self._pool = pool
        self._requests = requests

    async def fork(self, attempt: Attempt, new: NewBranch, answer: Answer) -> bytes:
        """Makes a branch: one row, whatever it shares.

        Raises ConversationUnknown, ConversationErased, MessageUnknown, TooManyBranches, ConversationExists, RequestReused.
        """

        async def change() -> bytes:
            parent = await _locked(connection, new)
            lineage = _lineage(parent).forked(new.key.thread_id, new.at_seq)
            await _check_room(connection, new.key.workspace_id, lineage)
            row = await _created(connection, new, parent, lineage)
            if row is None:
                raise ConversationExists(f"the thread id {new.key.thread_id!r} is taken", thread_id=new.key.thread_id)
            told = {"branch_thread_id": new.key.thread_id, "fork_seq": lineage.fork_seq}
            await events.record(connection, new.parent, "conversation.forked", told)
            return answer(conversation(row))

        async with postgres.transaction(self._pool) as connection:
            return await self._requests.once(connection, attempt, change)

    async def page(self, key: ThreadKey, user_id: str | None, after: str, count: int) -> list[Conversation]:
        """Those that were branched off directly and that the user may see, by id, from behind one on.

        Raises ConversationUnknown.
        """
        async with postgres.connection(self._pool) as connection:
            await records.find(connection, key, user_id)
            rows = await connection.fetch(STATEMENTS["branches"], *key, after, count, user_id)
        return [conversation(row) for row in rows]


async def _locked(connection: Connection, new: NewBranch) -> asyncpg.Record:
    row = await connection.fetchrow(STATEMENTS["lock_parent"], *new.parent)
    if row is not None and row["erased"]:
        raise ConversationErased("the conversation is erased", thread_id=new.parent.thread_id)
    if row is None or row["deleted"] or not may_see(row["user_id"], new.user_id):
        raise unknown(new.parent)
    return row


async def _check_room(connection: Connection, workspace_id: str, lineage: Lineage) -> None:
    """Of all that a branch shares with, the oldest is shared by most."""
    for oldest in lineage.ancestors[:1]:
        count = await connection.fetchval(STATEMENTS["count_descendants"], workspace_id, oldest, BRANCHES_MAX)
        if count >= BRANCHES_MAX:
            raise TooManyBranches(f"{BRANCHES_MAX} branches share messages of the conversation {oldest!r}, more cannot")


async def _created(
    connection: Connection, new: NewBranch, parent: asyncpg.Record, lineage: Lineage
) -> asyncpg.Record | None:
    return await connection.fetchrow(
        STATEMENTS["create_branch"],
        *new.key,
        parent["user_id"] or new.user_id,
        new.title or parent["title"],
        json.dumps(dict(new.metadata)),
        lineage.next_seq,
        lineage.floor_seq,
        new.parent.thread_id,
        lineage.ancestors,
        lineage.shared_until,
    )


def _lineage(row: asyncpg.Record) -> Lineage:
    return Lineage(row["thread_id"], row["ancestors"], row["shared_until"], row["floor_seq"], row["next_seq"])
