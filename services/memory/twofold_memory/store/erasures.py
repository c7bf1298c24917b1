"""Erasures in Postgres: receipts, tombstones, and rows that go in small steps."""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import NamedTuple

import asyncpg

from twofold_chassis import fields, postgres
from twofold_chassis.postgres import Connection, Pool
from twofold_chassis.refusals import RequestReused
from twofold_chassis.requests import Attempt, Requests
from twofold_memory.erasures import (
    CopyPurge,
    Erasure,
    ErasureKey,
    ErasureUnknown,
    Kind,
    Remains,
    Step,
    Wish,
)
from twofold_memory.preferences import UserKey
from twofold_memory.purges import Purge
from twofold_memory.store.statements import STATEMENTS
from twofold_memory.threads import ThreadKey, unknown

# Every table with a workspace is in one of these three: a test compares them with the schema, so that none is forgotten.
# Rows of a conversation: memory.erase_rows deletes them by their thread_id, in this order. Who indexes messages holds their
# rows of search_pending meanwhile, so that what comes of that is found behind them.
TABLES_OF_A_THREAD = (
    "messages",
    "message_revisions",
    "dead_letters",
    "events",
    "summaries",
    "tool_runs",
    "checkpoints",
    "checkpoint_lines",
    "record_heads",
    "open_turns",
    "documents",
    "search_pending",
    "search_entries",
    "turn_waiters",
    "requests",
    "turns",
)
# Rows of users and workspaces, each with a statement of its own.
TABLES_OF_A_WORKSPACE = ("preferences", "requests", "tool_runs")
# Without content: tombstones, numbers that copies are compared with, purges, receipts, settings, what is owed.
TABLES_THAT_STAY = (
    "conversations",
    "preference_versions",
    "window_purges",
    "preference_purges",
    "erasures",
    "erasure_threads",
    "retentions",
    "owed_usage",
)

_CONVERSATIONS_AT_ONCE = 50
_THREADS_AT_ONCE = 20
_ROWS_AT_ONCE = 500
_USERS_AT_ONCE = 50


class _Open(NamedTuple):
    """An erasure that is not done, held by the running transaction."""

    key: ErasureKey
    kind: Kind
    row: asyncpg.Record


class PostgresErasures:
    """The truth about what is to be erased. `pool` is for long work.

    `copy_ttl_s`: how long a copy of preferences can live. `look_s`: how often a workspace's retention is looked at.
    """

    def __init__(self, pool: Pool, requests: Requests, *, copy_ttl_s: float, look_s: float) -> None:
        self._pool = pool
        self._requests = requests
        self._copy_ttl = timedelta(seconds=copy_ttl_s)
        self._look_again = timedelta(seconds=look_s)

    async def begin(self, attempt: Attempt, wish: Wish) -> tuple[ErasureKey, Sequence[Purge]]:
        """Writes the wish down, and the tombstone of a single conversation; or finds what a repeat has begun before.

        Raises ConversationUnknown, RequestReused.
        """
        purges: Sequence[Purge] = ()

        async def change() -> bytes:
            nonlocal purges
            if await _keep(connection, wish) and wish.kind is Kind.CONVERSATION:
                assert wish.thread_id is not None
                purges = await _bury_one(connection, wish.key, wish.thread_id)
            return wish.key.erasure_id.encode()

        async with postgres.transaction(self._pool) as connection:
            answer = await self._requests.once(connection, attempt, change)
        return ErasureKey(wish.key.workspace_id, answer.decode()), purges

    async def get(self, key: ErasureKey) -> Erasure:
        """The receipt. Raises ErasureUnknown."""
        async with postgres.connection(self._pool) as connection:
            row = await connection.fetchrow(STATEMENTS["erasure"], *key)
        if row is None:
            raise ErasureUnknown(f"no erasure {key.erasure_id!r}", erasure_id=key.erasure_id)
        return _erasure(row)

    async def page(self, workspace_id: str, before: tuple[datetime, str] | None, count: int) -> list[Erasure]:
        """Receipts, the newest first, from behind `before` on."""
        async with postgres.connection(self._pool) as connection:
            rows = await connection.fetch(STATEMENTS["erasures_before"], workspace_id, *(before or (None, None)), count)
        return [_erasure(row) for row in rows]

    async def due(self) -> ErasureKey | None:
        """One that is due, and from now on for a second no more."""
        async with postgres.connection(self._pool) as connection:
            row = await connection.fetchrow(STATEMENTS["due_erasure"])
        return None if row is None else ErasureKey(row["workspace_id"], row["erasure_id"])

    async def step(self, key: ErasureKey) -> Step | None:
        """Makes the next step of an erasure; None if somebody else is at it, or it is done."""
        async with postgres.transaction(self._pool) as connection:
            row = await connection.fetchrow(STATEMENTS["open_erasure"], *key)
            if row is None:
                return None
            found = _Open(key, Kind(row["kind"]), row)
            if row["swept_at"] is None:
                purges = await _sweep(connection, found)
                return Step(found.key, purges, more=True)
            more = await _erase_rows(connection, found.key)
            if not more and row["records_gone_at"] is None:
                more = await _erase_records(connection, found)
            if more:
                return Step(found.key, more=True)
            await connection.execute(STATEMENTS["forget_erasure_threads"], *found.key, _ROWS_AT_ONCE)
            done = await connection.fetchval(STATEMENTS["settle_erasure"], *found.key)
            return Step(found.key, done=done)

    async def remains(self, key: ErasureKey) -> Sequence[Remains]:
        """Some conversations of an erasure whose windows are gone and whose other copies may be there."""
        async with postgres.connection(self._pool) as connection:
            rows = await connection.fetch(STATEMENTS["windows_that_went"], *key, _ROWS_AT_ONCE)
        # A branch goes on: its copies of this epoch are right, and may have been made since.
        return [
            Remains(ThreadKey(key.workspace_id, row["thread_id"]), row["epoch"] if row["erased"] else row["epoch"] - 1)
            for row in rows
        ]

    async def remains_gone(self, key: ErasureKey, gone: Sequence[Remains]) -> None:
        """Those copies are gone."""
        async with postgres.connection(self._pool) as connection:
            await connection.execute(STATEMENTS["copies_gone"], *key, [remain.key.thread_id for remain in gone])

    async def retire(self) -> bool:
        """Begins an erasure of what one workspace has kept for long enough; whether there was one to look at."""
        async with postgres.transaction(self._pool) as connection:
            row = await connection.fetchrow(STATEMENTS["due_retention"])
            if row is None:
                return False
            workspace_id, unchanged_since = row
            await connection.execute(STATEMENTS["retention_done"], workspace_id, self._look_again)
            if await connection.fetchrow(STATEMENTS["conversations_kept_long_enough"], workspace_id, unchanged_since, 1):
                key = ErasureKey(workspace_id, fields.new_id())
                await connection.execute(
                    STATEMENTS["keep_erasure"], *key, Kind.RETENTION.value, None, None, unchanged_since, "system"
                )
            return True

    async def due_copies(self, count: int) -> Sequence[CopyPurge]:
        """Some copies of preferences that must go, the oldest wish first."""
        async with postgres.connection(self._pool) as connection:
            rows = await connection.fetch(STATEMENTS["due_preference_purges"], count)
        return [_copy_purge(row) for row in rows]

    async def recent_copies(self, behind: UserKey, count: int) -> Sequence[CopyPurge]:
        """Some of all that can matter to a copy that is alive, done or not, by user, from behind one on."""
        async with postgres.connection(self._pool) as connection:
            rows = await connection.fetch(STATEMENTS["recent_preference_purges"], *behind, self._copy_ttl, count)
        return [_copy_purge(row) for row in rows]

    async def copy_gone(self, purge: CopyPurge) -> None:
        """That copy is gone."""
        async with postgres.connection(self._pool) as connection:
            await connection.execute(STATEMENTS["preference_purge_done"], *purge.user, purge.version)

    async def forget_copies(self, count: int) -> None:
        """Drops some that no copy can need any more."""
        async with postgres.connection(self._pool) as connection:
            await connection.execute(STATEMENTS["forget_preference_purges"], self._copy_ttl, count)


async def _keep(connection: Connection, wish: Wish) -> bool:
    """Whether it is new; if not, it must be a repeat."""
    what = (wish.kind.value, wish.thread_id, wish.user_id)
    if await connection.fetchval(STATEMENTS["keep_erasure"], *wish.key, *what, None, wish.actor):
        return True
    row = await connection.fetchrow(STATEMENTS["erasure"], *wish.key)
    if row is None or (row["kind"], row["thread_id"], row["user_id"]) != what:
        raise RequestReused(
            f"the erasure id {wish.key.erasure_id!r} was used for another wish", erasure_id=wish.key.erasure_id
        )
    return False


async def _bury_one(connection: Connection, key: ErasureKey, thread_id: str) -> Sequence[Purge]:
    epochs, purges = await _bury(connection, key, [thread_id], again=True)
    if not epochs:
        raise unknown(ThreadKey(key.workspace_id, thread_id))
    await connection.execute(STATEMENTS["erasure_swept"], *key, epochs[thread_id])
    return purges


async def _sweep(connection: Connection, found: _Open) -> Sequence[Purge]:
    """Makes tombstones of some more; when none is left, and none can come from before, that is written down."""
    row = found.row
    # Asked first: what such a transaction makes, the search that follows its end will find.
    older = found.kind is not Kind.RETENTION and await connection.fetchval(STATEMENTS["older_transaction"], row["asked_at"])
    threads = await _to_bury(connection, found)
    if threads:
        _, purges = await _bury(connection, found.key, threads, unchanged_since=row["unchanged_since"])
        return purges
    if not older:
        await connection.execute(STATEMENTS["erasure_swept"], *found.key, None)
    return ()


async def _to_bury(connection: Connection, found: _Open) -> list[str]:
    workspace_id, row = found.key.workspace_id, found.row
    if found.kind is Kind.RETENTION:
        statement, arguments = STATEMENTS["conversations_kept_long_enough"], [row["unchanged_since"]]
    elif found.kind is Kind.USER:
        statement, arguments = STATEMENTS["conversations_of_a_user_to_erase"], [row["user_id"], row["asked_at"]]
    else:
        statement, arguments = STATEMENTS["conversations_of_a_workspace_to_erase"], [row["asked_at"]]
    rows = await connection.fetch(statement, workspace_id, *arguments, _CONVERSATIONS_AT_ONCE)
    return [row["thread_id"] for row in rows]


async def _bury(
    connection: Connection,
    key: ErasureKey,
    threads: Sequence[str],
    *,
    again: bool = False,
    unchanged_since: object = None,
) -> tuple[Mapping[str, int], Sequence[Purge]]:
    """Makes tombstones, cuts off the branches, asks for the purges: what is erased from now on, by id, with its epoch."""
    workspace_id = key.workspace_id
    branches = await connection.fetch(STATEMENTS["branches_of"], workspace_id, threads)
    # One order for everybody. Each statement behind this one sees what the locks' former holders have done.
    held = sorted({*threads, *(row["thread_id"] for row in branches)})
    await connection.fetch(STATEMENTS["lock_conversations"], workspace_id, held)
    rows = await connection.fetch(STATEMENTS["erase_conversations"], workspace_id, threads, again, unchanged_since)
    erased = {row["thread_id"]: row["epoch"] for row in rows}
    if not erased:
        return {}, ()
    rows = await connection.fetch(STATEMENTS["cut_branches"], workspace_id, list(erased))
    cut = {row["thread_id"]: row["epoch"] for row in rows}
    await connection.execute(STATEMENTS["erase_summaries_of_branches"], workspace_id, list(cut))
    for epochs, is_erased in ((erased, True), (cut, False)):
        names, numbers = list(epochs.keys()), list(epochs.values())
        await connection.execute(STATEMENTS["ask_erasing_purges"], workspace_id, names, numbers, is_erased)
        await connection.execute(STATEMENTS["keep_erasure_threads"], *key, names, numbers, is_erased)
    await connection.execute(STATEMENTS["count_erased"], *key, len(erased), [], [])
    purges = [Purge(ThreadKey(workspace_id, name), epoch, True) for name, epoch in erased.items()]
    purges += [Purge(ThreadKey(workspace_id, name), epoch, False) for name, epoch in cut.items()]
    return erased, purges


async def _erase_rows(connection: Connection, key: ErasureKey) -> bool:
    """Deletes some rows of tombstones; whether there may be more."""
    threads = await connection.fetch(STATEMENTS["threads_with_rows"], *key, _THREADS_AT_ONCE)
    counts: Counter[str] = Counter()
    for (thread_id,) in threads:
        gone = await connection.fetch(
            STATEMENTS["erase_rows"], key.workspace_id, thread_id, TABLES_OF_A_THREAD, _ROWS_AT_ONCE
        )
        for name, count in gone:
            counts[name] += count
        if any(count == _ROWS_AT_ONCE for _, count in gone):
            break  # there may be more
        await connection.execute(STATEMENTS["rows_gone"], *key, thread_id)
        if counts.total() >= _ROWS_AT_ONCE:
            break
    await _count(connection, key, counts)
    return bool(threads)


async def _erase_records(connection: Connection, found: _Open) -> bool:
    """Deletes some of what belongs to a user or a workspace and to no conversation; whether there may be more."""
    workspace_id, asked_at = found.key.workspace_id, found.row["asked_at"]
    counts: Counter[str] = Counter()
    if found.kind is Kind.USER:
        user = UserKey(workspace_id, found.row["user_id"])
        counts["preferences"] = await _erase_preferences(connection, found, user)
        answers = await connection.fetch(STATEMENTS["erase_answers_of_user"], *user, asked_at)
        counts["requests"] = len(answers)
        more = False
    else:
        users = await connection.fetch(
            STATEMENTS["users_with_preferences"], workspace_id, found.row["users_until"], _USERS_AT_ONCE
        )
        for (user_id,) in users:
            counts["preferences"] += await _erase_preferences(connection, found, UserKey(workspace_id, user_id))
        if users:
            await connection.execute(STATEMENTS["users_until"], *found.key, users[-1]["user_id"])
        bounds = (workspace_id, asked_at, _ROWS_AT_ONCE)
        counts["requests"] = len(await connection.fetch(STATEMENTS["erase_answers_of_workspace"], *bounds))
        counts["tool_runs"] = len(await connection.fetch(STATEMENTS["erase_tool_runs_of_no_thread"], *bounds))
        more = bool(users or counts["requests"] or counts["tool_runs"])
    await _count(connection, found.key, counts)
    if not more:
        await connection.execute(STATEMENTS["records_gone"], *found.key)
    return True


async def _erase_preferences(connection: Connection, found: _Open, user: UserKey) -> int:
    version = await connection.fetchval(STATEMENTS["void_preferences"], *user)
    if version is None:
        return 0
    rows = await connection.fetch(STATEMENTS["erase_preferences"], *user, found.row["asked_at"])
    await connection.execute(STATEMENTS["ask_preference_purge"], *user, version)
    await connection.execute(STATEMENTS["count_copies"], *found.key, 1)
    return len(rows)


async def _count(connection: Connection, key: ErasureKey, counts: Mapping[str, int]) -> None:
    await connection.execute(STATEMENTS["count_erased"], *key, 0, list(counts.keys()), list(counts.values()))


def _erasure(row: asyncpg.Record) -> Erasure:
    return Erasure(
        key=ErasureKey(row["workspace_id"], row["erasure_id"]),
        kind=Kind(row["kind"]),
        thread_id=row["thread_id"],
        user_id=row["user_id"],
        actor=row["actor"],
        asked_at=row["asked_at"],
        rows_gone_at=row["rows_gone_at"],
        windows_gone_at=row["windows_gone_at"],
        copies_gone_at=row["copies_gone_at"],
        done_at=row["done_at"],
        epoch=row["epoch"],
        conversations=row["conversation_count"],
        windows=row["window_count"],
        copies=row["copy_count"],
        rows=json.loads(row["row_counts"]),
    )


def _copy_purge(row: asyncpg.Record) -> CopyPurge:
    return CopyPurge(UserKey(row["workspace_id"], row["user_id"]), row["version"])
