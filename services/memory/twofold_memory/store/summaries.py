"""Summaries in Postgres."""

import json
from collections.abc import Callable, Sequence
from itertools import groupby

import asyncpg

from twofold_chassis import postgres
from twofold_chassis.postgres import Connection, Pool
from twofold_chassis.requests import Attempt, Requests
from twofold_memory.store import records
from twofold_memory.store.statements import STATEMENTS
from twofold_memory.summaries import (
    NEWEST_MAX,
    NewSummary,
    SeqNotReached,
    Summaries,
    Summary,
    SummaryExists,
    SummaryPage,
    SummaryUnknown,
    useful,
)
from twofold_memory.threads import ANSWER_BYTES_MAX, ThreadKey

Answer = Callable[[Summary], bytes]


class PostgresSummaries:
    """The truth about what was summed up."""

    def __init__(self, pool: Pool, requests: Requests) -> None:
        self._pool = pool
        self._requests = requests

    async def put(
        self, attempt: Attempt, key: ThreadKey, user_id: str | None, new: NewSummary, answer: Answer
    ) -> tuple[bytes, Summaries]:
        """Keeps a summary; returns the answer, and the newest summaries after it.

        Raises ConversationUnknown, SeqNotReached, SummaryExists, RequestReused.
        """

        async def change() -> bytes:
            place = await records.hold(connection, key, user_id)
            if new.last_seq >= place.next_seq:
                raise SeqNotReached(f"the conversation has no message {new.last_seq} yet", last_seq=str(place.next_seq - 1))
            return answer(await _put(connection, key, new, place.epoch))

        async with postgres.transaction(self._pool) as connection:
            kept = await self._requests.once(connection, attempt, change)
            (newest,) = await _newest(connection, [key])
        return kept, newest

    async def delete(
        self, attempt: Attempt, key: ThreadKey, user_id: str | None, summary_id: str, answer: bytes
    ) -> tuple[bytes, Summaries]:
        """Removes a summary; returns the answer, and the newest summaries after it.

        Raises ConversationUnknown, SummaryUnknown, RequestReused.
        """

        async def change() -> bytes:
            await records.hold(connection, key, user_id)
            await connection.fetchval(STATEMENTS["count_summary_change"], *key)
            if await connection.fetchval(STATEMENTS["delete_summary"], *key, summary_id) is None:
                raise _unknown(summary_id)
            return answer

        async with postgres.transaction(self._pool) as connection:
            kept = await self._requests.once(connection, attempt, change)
            (newest,) = await _newest(connection, [key])
        return kept, newest

    async def get(self, key: ThreadKey, user_id: str | None, summary_id: str) -> Summary:
        """Raises ConversationUnknown, SummaryUnknown."""
        async with postgres.connection(self._pool) as connection:
            place = await records.find(connection, key, user_id)
            row = await connection.fetchrow(STATEMENTS["summary"], *key, summary_id)
        if row is None:
            raise _unknown(summary_id)
        return _summary(row, place.epoch)

    async def page(self, key: ThreadKey, user_id: str | None, before: int | None, size: int) -> SummaryPage:
        """Up to `size` summaries, the newest first; fewer if they are very large. Raises ConversationUnknown."""
        async with postgres.connection(self._pool) as connection:
            place = await records.find(connection, key, user_id)
            rows = await connection.fetch(
                STATEMENTS["summaries_before"], *key, before or 2**63 - 1, size + 1, ANSWER_BYTES_MAX
            )
        kept = records.fitting(rows, size, lambda row: len(row["text"].encode()) + len(row["metadata"].encode()))
        return SummaryPage([_summary(row, place.epoch) for row in rows[:kept]], kept < len(rows))

    async def newest(self, keys: Sequence[ThreadKey]) -> list[Summaries]:
        """Of each conversation the newest summaries that a context can make use of."""
        async with postgres.connection(self._pool) as connection:
            return await _newest(connection, keys)


async def _put(connection: Connection, key: ThreadKey, new: NewSummary, epoch: int) -> Summary:
    version = await connection.fetchval(STATEMENTS["count_summary_change"], *key)
    created_at = await connection.fetchval(
        STATEMENTS["put_summary"],
        *key,
        version,
        new.summary_id,
        new.first_seq,
        new.last_seq,
        new.text,
        new.token_count,
        new.model,
        new.author,
        json.dumps(dict(new.metadata)),
        epoch,
    )
    if created_at is None:
        raise SummaryExists(f"the id {new.summary_id!r} is taken", summary_id=new.summary_id)
    return Summary(
        summary_id=new.summary_id,
        version=version,
        first_seq=new.first_seq,
        last_seq=new.last_seq,
        text=new.text,
        token_count=new.token_count,
        model=new.model,
        author=new.author,
        metadata=new.metadata,
        stale=False,
        created_at=created_at,
    )


async def _newest(connection: Connection, keys: Sequence[ThreadKey]) -> list[Summaries]:
    rows = await connection.fetch(
        STATEMENTS["newest_summaries"], [key.workspace_id for key in keys], [key.thread_id for key in keys], NEWEST_MAX
    )
    found: dict[int, Summaries] = {}
    for place, group in groupby(rows, lambda row: row["place"]):
        of_thread = list(group)
        epoch = of_thread[0]["thread_epoch"]
        entries = [_summary(row, epoch) for row in of_thread if row["summary_id"] is not None]
        found[place] = Summaries(useful(entries), of_thread[0]["version_of_all"], epoch)
    return [found.get(place, Summaries()) for place in range(1, len(keys) + 1)]


def _summary(row: asyncpg.Record, epoch: int) -> Summary:
    return Summary(
        summary_id=row["summary_id"],
        version=row["version"],
        first_seq=row["first_seq"],
        last_seq=row["last_seq"],
        text=row["text"],
        token_count=row["token_count"],
        model=row["model"],
        author=row["author"],
        metadata=json.loads(row["metadata"]),
        stale=row["epoch"] != epoch,
        created_at=row["created_at"],
    )


def _unknown(summary_id: str) -> SummaryUnknown:
    return SummaryUnknown(f"the conversation has no summary {summary_id!r}", summary_id=summary_id)
