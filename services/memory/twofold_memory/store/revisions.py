"""Changed messages and what they were before, in Postgres."""

from collections.abc import Sequence

import asyncpg

from twofold_chassis import call, postgres
from twofold_chassis.postgres import Connection, Pool
from twofold_chassis.refusals import Busy
from twofold_chassis.requests import Attempt, Requests
from twofold_memory.branches import Lineage
from twofold_memory.changes import Changed
from twofold_memory.encoding import encode, stamp
from twofold_memory.purges import Purge
from twofold_memory.revisions import (
    Answer,
    Body,
    Kind,
    PopAnswer,
    Revised,
    Revising,
    Revision,
    RevisionMismatch,
    RevisionPage,
    check_turn,
)
from twofold_memory.store import changes, events, records
from twofold_memory.store.statements import STATEMENTS
from twofold_memory.store.turns import entries
from twofold_memory.threads import ANSWER_BYTES_MAX, ROLE_RESULT, Entry, ThreadKey, TurnUnknown, may_see, unknown

_LOCK_ROUNDS = 5
_EVENTS = {Kind.EDIT: "message.edited", Kind.REDACT: "message.redacted", Kind.DELETE: "message.deleted"}


class PostgresRevisions:
    """The truth about changed messages. Each change holds the conversation and all that share messages of it."""

    def __init__(self, pool: Pool, requests: Requests) -> None:
        self._pool = pool
        self._requests = requests

    async def revise(
        self, attempt: Attempt, key: ThreadKey, user_id: str | None, seq: int, revising: Revising, answer: Answer
    ) -> Changed:
        """Changes one message.

        Raises ConversationUnknown, MessageUnknown, MessageShared, RequestReused, and what `revising` raises.
        """

        async def change(connection: Connection) -> tuple[bytes, list[Purge]]:
            lineage, family = await _locked(connection, key, user_id)
            lineage.check_own(seq)
            body = await _revised(connection, key, seq, revising)
            purges = await _raised(connection, key, seq, family)
            await events.record(connection, key, _EVENTS[revising.kind], {"seq": seq, "revision": body.revision})
            done = Revised(key, _epoch_of(key, purges), lineage.next_seq - 1, revision=body.revision)
            return answer(done), purges

        return await changes.made(self._pool, self._requests, attempt, key, change)

    async def pop(
        self, attempt: Attempt, key: ThreadKey, user_id: str | None, expected: str | None, reason: str, answer: PopAnswer
    ) -> Changed:
        """Takes the last turn back.

        Raises ConversationUnknown, TurnUnknown, RevisionMismatch, MessageShared, RequestReused.
        """

        async def change(connection: Connection) -> tuple[bytes, list[Purge]]:
            lineage, family = await _locked(connection, key, user_id)
            turn = await connection.fetchrow(STATEMENTS["last_turn"], *key)
            if turn is None:
                if lineage.fork_seq > lineage.floor_seq:
                    lineage.check_own(lineage.fork_seq)
                raise TurnUnknown("the conversation has no turn that could be taken back", thread_id=key.thread_id)
            turn_id, first_seq, last_seq = turn
            if expected is not None and expected != turn_id:
                raise RevisionMismatch(f"the last turn is {turn_id!r}, not {expected!r}", version=turn_id)
            actor = call.current().identity.actor
            await connection.execute(STATEMENTS["pop_messages"], *key, first_seq, last_seq, reason, actor)
            await connection.execute(STATEMENTS["pop_turn"], *key, turn_id)
            purges = await _raised(connection, key, first_seq, family)
            numbers = {"turn_id": turn_id, "first_seq": first_seq, "last_seq": last_seq}
            await events.record(connection, key, "turn.popped", numbers)
            done = Revised(key, _epoch_of(key, purges), lineage.next_seq - 1, turn_id=turn_id)
            return answer.kept(done), purges

        async def complete(connection: Connection, kept: bytes) -> bytes:
            rows = await connection.fetch(STATEMENTS["popped_messages"], *key, answer.turn_id(kept))
            return answer.whole(kept, entries(rows))

        return await changes.made(self._pool, self._requests, attempt, key, change, complete)

    async def page(self, key: ThreadKey, user_id: str | None, seq: int, after: int, size: int) -> RevisionPage:
        """Up to `size` changes of a message behind a revision. Raises ConversationUnknown, MessageUnknown."""
        async with postgres.connection(self._pool) as connection:
            lineage = _lineage(key, user_id, await connection.fetchrow(STATEMENTS["lineage"], *key))
            owner = ThreadKey(key.workspace_id, lineage.owner(seq))
            rows = await connection.fetch(STATEMENTS["revisions_after"], *owner, seq, after, size + 1, ANSWER_BYTES_MAX)
        kept = records.fitting(rows, size, lambda row: len(row["rest"] or b"") + len((row["content"] or "").encode()))
        return RevisionPage([_revision(seq, row) for row in rows[:kept]], kept < len(rows))


async def _locked(connection: Connection, key: ThreadKey, user_id: str | None) -> tuple[Lineage, list[str]]:
    """The conversation and the names of all that share messages of it, itself included: nobody else can change them now."""
    locked: set[str] = set()
    for _ in range(_LOCK_ROUNDS):
        rows = {row["thread_id"]: row for row in await connection.fetch(STATEMENTS["lock_family"], *key)}
        lineage = _lineage(key, user_id, rows.get(key.thread_id))
        if rows.keys() <= locked:
            return lineage, sorted(locked)
        locked |= rows.keys()
    raise Busy("the conversation is branched all the time", retry_after_s=0.1)


async def _revised(connection: Connection, key: ThreadKey, seq: int, revising: Revising) -> Body:
    row = await connection.fetchrow(STATEMENTS["message_body"], *key, seq)
    assert row is not None
    *values, turn_id = row
    former = Body(*values)
    body = revising.applied(former)
    if body.bytes > former.bytes:
        check_turn(await connection.fetchval(STATEMENTS["turn_bytes"], *key, turn_id), former, body)
    new = (body.content, body.rest, body.token_count, body.status, body.revision)
    change = (revising.kind.value, revising.reason, call.current().identity.actor)
    await connection.execute(STATEMENTS["revise_message"], *key, seq, *new, *change)
    if revising.kind is Kind.REDACT:
        await connection.execute(STATEMENTS["redact_revisions"], *key, seq)
        await connection.execute(STATEMENTS["redact_search_entry"], *key, seq)
    return body


async def _raised(connection: Connection, key: ThreadKey, seq: int, family: Sequence[str]) -> list[Purge]:
    """Raises the epochs of all that have the message, and asks for the end of their windows."""
    rows = await connection.fetch(STATEMENTS["raise_epochs"], *key, seq, family)
    return [changes.purge(key.workspace_id, row) for row in rows]


def _epoch_of(key: ThreadKey, purges: Sequence[Purge]) -> int:
    return next(purge.epoch for purge in purges if purge.key == key)


def _lineage(key: ThreadKey, user_id: str | None, row: asyncpg.Record | None) -> Lineage:
    if row is None or row["deleted"] or not may_see(row["user_id"], user_id):
        raise unknown(key)
    return Lineage(row["thread_id"], row["ancestors"], row["shared_until"], row["floor_seq"], row["next_seq"])


def _revision(seq: int, row: asyncpg.Record) -> Revision:
    former = None
    if row["rest"] is not None:
        frame = encode(
            row["role"],
            row["content"],
            row["rest"],
            row["token_count"],
            seq,
            row["turn_id"].encode(),
            row["turn_index"],
            stamp(row["said_at"]),
        )
        former = Entry(seq, row["turn_index"] == 0, row["role"] == ROLE_RESULT, frame)
    return Revision(row["revision"], row["kind"], former, row["actor"], row["reason"], row["created_at"])
