"""Dead letters in Postgres."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import UTC, datetime

import asyncpg

from twofold_chassis import call, postgres
from twofold_chassis.postgres import Connection, Pool
from twofold_chassis.requests import Attempt, Requests
from twofold_memory.dead_letters import (
    DISCARDED,
    REPLAYED,
    Answer,
    DeadLetter,
    Name,
    Opened,
    Place,
    Replayed,
    refusal,
    unstorable,
)
from twofold_memory.journaled import turn_of
from twofold_memory.store import events
from twofold_memory.store.statements import STATEMENTS
from twofold_memory.store.turns import UNFIT, append
from twofold_memory.threads import Candidate, KeptTurn, NewTurn, ThreadKey

_BEFORE_ALL = Place(datetime(1970, 1, 1, tzinfo=UTC), "", "", "", b"")


class PostgresDeadLetters:
    """The truth about turns that could not be stored."""

    def __init__(self, pool: Pool, requests: Requests) -> None:
        self._pool = pool
        self._requests = requests

    async def page(
        self, workspace_id: str | None, after: Place | None, count: int, *, with_resolved: bool
    ) -> list[DeadLetter]:
        """Those of a workspace, or of all, the oldest first, from behind a place on."""
        statement = STATEMENTS["all_dead_letters"] if with_resolved else STATEMENTS["unresolved_dead_letters"]
        async with postgres.connection(self._pool) as connection:
            rows = await connection.fetch(statement, workspace_id, *(after or _BEFORE_ALL), count)
        return [_letter(row) for row in rows]

    async def get(self, name: Name) -> Opened:
        """One with its turn. Raises DeadLetterUnknown, InvalidField (several have this turn id)."""
        async with postgres.connection(self._pool) as connection:
            rows = await connection.fetch(STATEMENTS["dead_letter"], *name.key, name.turn_id, name.payload_hash)
        name.one_of(len(rows))
        return _opened(rows[0])

    async def replay(
        self, attempt: Attempt, name: Name, new_turn_id: str, because: str, answer: Answer, order_unverified: bool
    ) -> Replayed:
        """Stores the turn under another id, and ends the dead letter.

        Raises DeadLetterUnknown, DeadLetterResolved, InvalidField, ConversationUnknown, ConversationDeleted,
        ConversationErased, TurnDead, RequestReused: then nothing is changed.
        """
        stored: tuple[NewTurn, KeptTurn] | None = None

        async def change() -> bytes:
            nonlocal stored
            letter, turn = await _locked(connection, name)
            if turn is None:
                raise unstorable(name.turn_id)
            turn = replace(turn, turn_id=new_turn_id)
            kept = await _stored(connection, Candidate(turn, False, order_unverified))
            await _resolve(connection, letter, REPLAYED, because)
            ids = {"turn_id": letter.turn_id, "new_turn_id": new_turn_id}
            await events.record(connection, letter.key, "dead_letter.replayed", ids)
            stored = (turn, kept)
            return answer(turn, kept)

        async with postgres.transaction(self._pool) as connection:
            told = await self._requests.once(connection, attempt, change)
        return Replayed(told, stored)

    async def discard(self, attempt: Attempt, name: Name, because: str, answer: Callable[[DeadLetter], bytes]) -> bytes:
        """Ends a dead letter without its turn. Raises DeadLetterUnknown, DeadLetterResolved, InvalidField, RequestReused."""

        async def change() -> bytes:
            letter, _ = await _locked(connection, name)
            discarded = await _resolve(connection, letter, DISCARDED, because)
            await events.record(connection, letter.key, "dead_letter.discarded", {"turn_id": letter.turn_id})
            return answer(discarded)

        async with postgres.transaction(self._pool) as connection:
            return await self._requests.once(connection, attempt, change)


async def _locked(connection: Connection, name: Name) -> Opened:
    # First the conversation, as everybody does: who erases it holds its row while the dead letters go.
    await connection.execute(STATEMENTS["lock_for_drain"], *name.key)
    rows = await connection.fetch(STATEMENTS["lock_dead_letter"], *name.key, name.turn_id, name.payload_hash)
    name.one_of(len(rows))
    opened = _opened(rows[0])
    opened.letter.expect_open()
    return opened


async def _stored(connection: Connection, candidate: Candidate) -> KeptTurn:
    try:
        [appended] = await append(connection, [candidate])
    except UNFIT:
        raise unstorable(candidate.turn.turn_id) from None
    if appended.turn is None:
        raise refusal(candidate.turn, appended.outcome)
    return appended.turn


async def _resolve(connection: Connection, letter: DeadLetter, resolution: str, because: str) -> DeadLetter:
    who = call.current().identity.actor
    name: Sequence[object] = (*letter.key, letter.turn_id, letter.payload_hash)
    row = await connection.fetchrow(STATEMENTS["resolve_dead_letter"], *name, resolution, who, because)
    assert row is not None
    return _letter(row)


def _letter(row: asyncpg.Record) -> DeadLetter:
    return DeadLetter(
        key=ThreadKey(row["workspace_id"], row["thread_id"]),
        turn_id=row["turn_id"],
        payload_hash=row["payload_hash"],
        reason=row["reason"],
        sqlstate=row["sqlstate"],
        payload_bytes=row["payload_bytes"],
        created_at=row["created_at"],
        resolution=row["resolution"] or "",
        resolved_at=row["resolved_at"],
        resolved_by=row["resolved_by"] or "",
        resolved_because=row["resolved_because"] or "",
    )


def _opened(row: asyncpg.Record) -> Opened:
    letter = _letter(row)
    try:
        turn = turn_of(letter.key, letter.turn_id, letter.payload_hash, row["payload"])
    except ValueError:  # written by another version, or by hand
        turn = None
    return Opened(letter, turn)
