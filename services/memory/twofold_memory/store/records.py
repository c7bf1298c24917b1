"""The conversations that records belong to, in Postgres: they must be there, and stay while something is written."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import asyncpg

from twofold_chassis.postgres import Connection
from twofold_memory.store.statements import STATEMENTS
from twofold_memory.threads import ANSWER_BYTES_MAX, ThreadKey, may_see, unknown


class Place(NamedTuple):
    """A conversation that takes records: messages 1 .. next_seq - 1 exist, in this epoch."""

    next_seq: int
    epoch: int


async def hold(connection: Connection, key: ThreadKey, user_id: str | None) -> Place:
    """The conversation, which nobody can delete or erase until the running transaction has ended.

    Raises ConversationUnknown, also for one that is deleted or another user's.
    """
    return _place(key, user_id, await connection.fetchrow(STATEMENTS["hold_conversation"], *key))


async def find(connection: Connection, key: ThreadKey, user_id: str | None) -> Place:
    """The conversation, to read what belongs to it. Raises as `hold` does."""
    return _place(key, user_id, await connection.fetchrow(STATEMENTS["find_conversation"], *key))


def _place(key: ThreadKey, user_id: str | None, row: asyncpg.Record | None) -> Place:
    if row is None or not may_see(row["owner"], user_id):
        raise unknown(key)
    return Place(row["next_seq"], row["epoch"])


def fitting(rows: Sequence[asyncpg.Record], size: int, weigh: Callable[[asyncpg.Record], int]) -> int:
    """How many of the first rows make a page: at most `size`, and not more bytes than an answer holds, but at least one."""
    taken = 0
    for index, row in enumerate(rows[:size]):
        taken += weigh(row)
        if taken > ANSWER_BYTES_MAX and index:
            return index
    return min(size, len(rows))
