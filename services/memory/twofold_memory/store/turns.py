"""Turns and messages in Postgres."""

from collections.abc import Sequence

import asyncpg

from twofold_chassis import postgres
from twofold_chassis.postgres import Connection, Lane, Pool
from twofold_chassis.refusals import InvalidField
from twofold_memory.encoding import encode, stamp
from twofold_memory.store.statements import STATEMENTS
from twofold_memory.threads import (
    ANSWER_BYTES_MAX,
    ROLE_RESULT,
    Appended,
    Candidate,
    Entry,
    Head,
    KeptTurn,
    Snapshot,
    StoredTurn,
    ThreadKey,
    Usage,
)

# What is wrong with a value that Postgres refuses to hold.
UNFIT = (asyncpg.DataError, asyncpg.CheckViolationError)


class PostgresTurns:
    """The truth about what was said."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        # Most of the work goes through these two, a few at a time.
        self._commits = Lane(pool)
        self._confirmations = Lane(pool)

    async def close(self) -> None:
        """Gives kept connections back to the pool."""
        await self._commits.close()
        await self._confirmations.close()

    async def append(self, turns: Sequence[Candidate]) -> list[Appended]:
        """Stores a batch of turns in one transaction and one round trip.

        Raises Busy if another writer holds one of the threads, InvalidField if Postgres refuses a value (both: nothing was
        stored), StoreUnavailable with outcome NOT_STORED or UNKNOWN.
        """
        async with self._commits.connection() as connection:
            try:
                with postgres.refusals(outcome="UNKNOWN"):
                    return await append(connection, turns)
            except UNFIT:
                raise InvalidField("messages", "hold a value that cannot be stored") from None

    async def heads(self, keys: Sequence[ThreadKey]) -> list[Head | None]:
        """What is known of each thread; None for one that does not exist."""
        async with self._confirmations.connection() as connection:
            rows = await connection.fetch(
                STATEMENTS["heads"], [key.workspace_id for key in keys], [key.thread_id for key in keys]
            )
        found = {row["place"]: _head(row) for row in rows}
        return [found.get(place) for place in range(1, len(keys) + 1)]

    async def newest(self, key: ThreadKey, count: int) -> Snapshot | None:
        """The thread and its newest messages, in one snapshot; None if it does not exist."""
        async with postgres.connection(self._pool) as connection:
            rows = await connection.fetch(STATEMENTS["newest"], *key, count, ANSWER_BYTES_MAX)
        if not rows:
            return None
        return Snapshot(_head(rows[0]), [] if rows[0]["seq"] is None else entries(rows))

    async def page(self, key: ThreadKey, *, after: int | None, before: int | None, count: int) -> list[Entry]:
        """Up to `count` messages after a seq in order, or before one in reverse order; fewer if they are very large."""
        statement = STATEMENTS["messages_after"] if before is None else STATEMENTS["messages_before"]
        async with postgres.connection(self._pool) as connection:
            seq = after if before is None else before
            return entries(await connection.fetch(statement, *key, seq, count, ANSWER_BYTES_MAX))

    async def message(self, key: ThreadKey, seq: int) -> Entry | None:
        """One message; None if the thread has none of this number."""
        async with postgres.connection(self._pool) as connection:
            found = entries(await connection.fetch(STATEMENTS["messages_between"], *key, seq, seq))
        return found[0] if found else None

    async def turn(self, key: ThreadKey, turn_id: str) -> StoredTurn | None:
        """One turn; None if the thread has none of this id."""
        async with postgres.connection(self._pool) as connection:
            row = await connection.fetchrow(STATEMENTS["turn"], *key, turn_id)
            if row is None:
                return None
            messages = await connection.fetch(STATEMENTS["messages_between"], *key, row["first_seq"], row["last_seq"])
        usage = None if row["input_tokens"] is None else Usage(row["input_tokens"], row["output_tokens"])
        return StoredTurn(entries(messages), row["epoch"], row["last_seq"], usage)


async def append(connection: Connection, turns: Sequence[Candidate]) -> list[Appended]:
    """Stores turns in the running transaction, or in one of its own: what became of each, in order."""
    return [_appended(row) for row in await connection.fetch(STATEMENTS["append_turns"], *_arguments(turns))]


def _arguments(candidates: Sequence[Candidate]) -> list[list[object]]:
    turns = [candidate.turn for candidate in candidates]
    messages = [
        (place, index, message) for place, turn in enumerate(turns, 1) for index, message in enumerate(turn.messages)
    ]
    return [
        [turn.key.workspace_id for turn in turns],
        [turn.key.thread_id for turn in turns],
        [turn.user_id for turn in turns],
        [turn.turn_id for turn in turns],
        [turn.payload_hash for turn in turns],
        [len(turn.messages) for turn in turns],
        [candidate.is_new for candidate in candidates],
        [turn.usage.input_tokens if turn.usage else None for turn in turns],
        [turn.usage.output_tokens if turn.usage else None for turn in turns],
        [turn.after for turn in turns],
        [candidate.order_unverified for candidate in candidates],
        [turn.status for turn in turns],
        [place for place, _, _ in messages],
        [index for _, index, _ in messages],
        [message.role for _, _, message in messages],
        [message.content for _, _, message in messages],
        [message.rest for _, _, message in messages],
        [message.token_count for _, _, message in messages],
        [message.status for _, _, message in messages],
    ]


def _appended(row: asyncpg.Record) -> Appended:
    _, outcome, first_seq, last_seq, epoch, created_at, owner, order_unverified = row
    if outcome not in ("STORED", "DUPLICATE"):
        return Appended(outcome, None)
    kept = KeptTurn(first_seq, last_seq, epoch, created_at, owner, outcome == "DUPLICATE", order_unverified)
    return Appended(outcome, kept)


def _head(row: asyncpg.Record) -> Head:
    return Head(row["next_seq"], row["epoch"], row["owner"], row["deleted"], row["erased"])


def entries(rows: Sequence[asyncpg.Record]) -> list[Entry]:
    """Stored messages as they stand in answers; the last ten columns of a row are the message."""
    found = []
    turn_id, name, created_at, created = None, b"", None, b""
    for seq, turn, index, role, content, rest, token_count, at, status, revision in (tuple(row)[-10:] for row in rows):
        if turn != turn_id:  # neighbours mostly share these two: encode them once
            turn_id, name = turn, turn.encode()
        if at != created_at:
            created_at, created = at, stamp(at)
        frame = encode(role, content, rest, token_count, seq, name, index, created, status, revision)
        found.append(Entry(seq, index == 0, role == ROLE_RESULT, frame))
    return found
