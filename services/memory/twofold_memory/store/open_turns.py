"""Open turns in Postgres."""

from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime, timedelta

import asyncpg

from twofold_chassis import fields, postgres
from twofold_chassis.postgres import Connection, Pool
from twofold_chassis.refusals import InvalidField, RequestReused
from twofold_memory.open_turns import (
    WAITERS_MAX,
    Answer,
    Beginning,
    Begun,
    Cause,
    Closed,
    Ended,
    Heartbeat,
    Held,
    Opening,
    OpenTurn,
    Owed,
    OwedUsage,
    Policy,
    TooManyWaiters,
    TurnName,
    Unsettled,
    refuse_closing,
    split,
    whole_turn,
)
from twofold_memory.store import events, records
from twofold_memory.store.statements import STATEMENTS
from twofold_memory.store.turns import UNFIT, append
from twofold_memory.threads import (
    INTERRUPTED,
    Appended,
    Candidate,
    ConversationDeleted,
    ConversationErased,
    KeptTurn,
    NewMessage,
    NewTurn,
    ThreadKey,
    TurnUnknown,
    Usage,
    may_see,
    unknown,
)
from twofold_memory.turn_queue import Ticket

# How long a turn is left to its holder after its lease, if nobody else wants the conversation.
_GRACE = timedelta(seconds=10)
# When a turn is looked at again that could not be closed; and if its conversation is deleted, which may come back.
_CLAIMED_FOR = timedelta(seconds=30)
_DELETED_FOR = timedelta(hours=1)
# A place that was not renewed for so long is lost.
_LOST_AFTER = timedelta(seconds=3)


class PostgresOpenTurns:
    """The truth about which turns are open, and who waits."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool

    async def begin(self, opening: Opening, ticket: str, *, settled: bool, order_unverified: bool = False) -> Beginning:
        """Opens a turn, or says why not. Without `settled` it closes none: it says Unsettled where one has to be.

        Raises ConversationUnknown, ConversationDeleted, ConversationErased, RequestReused, TooManyWaiters.
        """
        turn = opening.turn
        async with postgres.transaction(self._pool) as connection:
            await connection.execute(STATEMENTS["make_thread"], *turn.key, turn.user_id)
            thread = await connection.fetchrow(STATEMENTS["lock_thread"], *turn.key)
            _check(turn.key, thread, turn.user_id)
            assert thread is not None
            ended = await _ended(connection, turn)
            if ended is not None:
                return ended
            row = await connection.fetchrow(STATEMENTS["lock_open_turn"], *turn.key, _GRACE)
            current = None if row is None else _open_turn(turn.key, row)
            if current is not None and current.turn.turn_id == turn.turn_id:
                _check_repeat(turn, current.turn.payload_hash)
                if not current.alive:  # of several that go on with it, one gets each fence
                    current = await _opened_anew(connection, opening)
                return Begun(current, thread["epoch"], thread["next_seq"] - 1, duplicate=True)
            held = await _held(connection, opening, current, ticket)
            if held is not None:
                return held
            closed = None
            if current is not None:
                if not settled:
                    return Unsettled()
                cause = Cause.SUPERSEDED if current.alive else Cause.LEASE_ENDED
                closed = await _close_for_holder(connection, current, cause, order_unverified=order_unverified)
            last_seq = thread["next_seq"] - 1
            if closed is not None and closed.turn is not None:
                last_seq = closed.kept.last_seq
            return Begun(await _opened(connection, opening), thread["epoch"], last_seq, duplicate=False, closed=closed)

    async def heartbeat(self, heartbeat: Heartbeat) -> datetime:
        """Extends a lease; returns its end.

        Raises ConversationUnknown, ConversationDeleted, ConversationErased, TurnSuperseded, TurnUnknown.
        """
        name = (*heartbeat.key, heartbeat.turn_id, heartbeat.fence)
        async with postgres.transaction(self._pool) as connection:
            if heartbeat.partial is None:
                until = await connection.fetchval(STATEMENTS["extend_lease"], *name, heartbeat.lease, _GRACE)
            else:
                until = await connection.fetchval(
                    STATEMENTS["extend_lease_with_partial"],
                    *name,
                    heartbeat.lease,
                    _GRACE,
                    *_columns(heartbeat.partial),
                    heartbeat.bytes,
                )
            if until is None:
                _check(heartbeat.key, await connection.fetchrow(STATEMENTS["lock_thread"], *heartbeat.key), None)
                await _refuse(connection, heartbeat.key, heartbeat.turn_id)
        end: datetime = until
        return end

    async def close(self, answer: Answer, *, order_unverified: bool) -> Closed:
        """Stores a turn as it is closed by its holder, and forgets the open one; or finds that done.

        Raises ConversationUnknown, ConversationDeleted, ConversationErased, TurnSuperseded, TurnUnknown, RequestReused.
        """
        async with postgres.transaction(self._pool) as connection:
            _check(answer.key, await connection.fetchrow(STATEMENTS["lock_thread"], *answer.key), None)
            row = await connection.fetchrow(STATEMENTS["lock_open_turn"], *answer.key, _GRACE)
            if row is None or (row["turn_id"], row["fence"]) != (answer.turn_id, answer.fence):
                return await _closed_before(connection, answer)
            current = _open_turn(answer.key, row)
            said, size = (
                (current.partial, current.partial_bytes) if answer.messages is None else (answer.messages, answer.bytes)
            )
            turn = whole_turn(current.turn, said, size, answer.payload_hash, answer.usage, interrupted=answer.interrupted)
            appended = await _append(connection, turn, order_unverified=order_unverified)
            if appended.turn is None or appended.turn.duplicate:
                raise _reused(answer.turn_id)
            await _forget(connection, current)
            await _owe(connection, answer)
            if answer.interrupted:
                await _record(connection, turn, appended.turn, Cause.ABORTED, answer.reason)
            return Closed(appended.turn, turn)

    async def current(self, key: ThreadKey, user_id: str | None) -> OpenTurn | None:
        """The turn that is open, and how many wait behind it. Raises ConversationUnknown."""
        async with postgres.connection(self._pool) as connection:
            await records.find(connection, key, user_id)
            row = await connection.fetchrow(STATEMENTS["open_turn"], *key)
            if row is None:
                return None
            waiters = await connection.fetch(STATEMENTS["waiters"], *key)
        return replace(_open_turn(key, row), waiting=len(waiters))

    async def owed(self, min_age: timedelta, after: TurnName | None, count: int) -> Sequence[OwedUsage]:
        """What has been owed for so long, by workspace, conversation and turn, from behind one on."""
        place = ("", "", "") if after is None else (*after.key, after.turn_id)
        async with postgres.connection(self._pool) as connection:
            rows = await connection.fetch(STATEMENTS["owed_usage_after"], min_age, *place, count)
        return [_owed_usage(row) for row in rows]

    async def acknowledge(self, turns: Sequence[TurnName]) -> None:
        """It is not owed any more."""
        async with postgres.connection(self._pool) as connection:
            await connection.execute(
                STATEMENTS["acknowledge_usage"],
                [turn.key.workspace_id for turn in turns],
                [turn.key.thread_id for turn in turns],
                [turn.turn_id for turn in turns],
            )

    async def left_behind(self, count: int) -> Sequence[ThreadKey]:
        """Threads with a turn whose lease has ended a while ago: for half a minute they are this caller's to sweep."""
        async with postgres.connection(self._pool) as connection:
            rows = await connection.fetch(STATEMENTS["claim_open_turns_left_behind"], count, _CLAIMED_FOR)
        return [ThreadKey(*row) for row in rows]

    async def sweep(self, key: ThreadKey, *, order_unverified: bool) -> Closed | None:
        """Closes such a turn, if it still is one and nobody else is at work there."""
        async with postgres.transaction(self._pool) as connection:
            thread = await connection.fetchrow(STATEMENTS["lock_free_thread"], *key)
            if thread is None:
                return None
            row = await connection.fetchrow(STATEMENTS["lock_open_turn"], *key, _GRACE)
            if row is None or not row["left_behind"]:
                return None
            current = _open_turn(key, row)
            if thread["erased"]:
                await _forget(connection, current)
                return None
            if thread["deleted"]:
                await connection.execute(STATEMENTS["sweep_later"], *key, _DELETED_FOR)
                return None
            return await _close_for_holder(connection, current, Cause.LEASE_ENDED, order_unverified=order_unverified)

    async def waiters_are_here(self, tickets: Sequence[Ticket]) -> Sequence[bool]:
        """Renews their places; for each whether it may try: also if its place is lost, so that it gets another one."""
        async with postgres.connection(self._pool) as connection:
            rows = await connection.fetch(
                STATEMENTS["waiters_are_here"],
                [ticket.key.workspace_id for ticket in tickets],
                [ticket.key.thread_id for ticket in tickets],
                [ticket.turn_id for ticket in tickets],
                _LOST_AFTER,
            )
        told = {row["asked"]: row["may_try"] for row in rows}
        return [told.get(asked, True) for asked in range(1, len(tickets) + 1)]

    async def leave(self, ticket: Ticket) -> None:
        """Gives a place up."""
        async with postgres.connection(self._pool) as connection:
            await connection.execute(STATEMENTS["leave_queue"], *ticket.key, ticket.turn_id, ticket.id)


def _check(key: ThreadKey, thread: asyncpg.Record | None, user_id: str | None) -> None:
    """Refuses as an append does."""
    if thread is None:
        raise unknown(key)
    if thread["erased"]:
        raise ConversationErased("the conversation is erased", thread_id=key.thread_id)
    if not may_see(thread["owner"], user_id):
        raise unknown(key)
    if thread["deleted"]:
        raise ConversationDeleted("the conversation is deleted", thread_id=key.thread_id)


def _check_repeat(turn: NewTurn, body_hash: bytes) -> None:
    if turn.payload_hash != body_hash:
        raise _reused(turn.turn_id)


def _reused(turn_id: str) -> RequestReused:
    return RequestReused(f"the id {turn_id!r} was used for another turn of this conversation", request_id=turn_id)


async def _ended(connection: Connection, turn: NewTurn) -> Ended | None:
    row = await connection.fetchrow(STATEMENTS["closed_turn"], *turn.key, turn.turn_id)
    if row is None:
        return None
    _check_repeat(turn, split(row["payload_hash"])[0])
    return Ended(turn.turn_id, _kept(row), row["status"] == INTERRUPTED)


async def _held(connection: Connection, opening: Opening, current: OpenTurn | None, ticket: str) -> Held | None:
    """None if the turn can be opened now; with the policy QUEUE its place is kept otherwise."""
    if opening.policy is Policy.TAKE_OVER:
        return None
    turn = opening.turn
    await connection.execute(STATEMENTS["forget_lost_waiters"], *turn.key, _LOST_AFTER)
    waiters = [row["turn_id"] for row in await connection.fetch(STATEMENTS["waiters"], *turn.key)]
    is_next = not waiters or waiters[0] == turn.turn_id
    alive = current is not None and current.alive
    if is_next and not alive:
        return None
    if opening.policy is Policy.QUEUE:
        if turn.turn_id not in waiters and len(waiters) >= WAITERS_MAX:
            raise TooManyWaiters(f"{WAITERS_MAX} turns wait for this conversation already", retry_after_s=1.0)
        await connection.execute(STATEMENTS["wait_for_turn"], *turn.key, turn.turn_id, ticket)
    return Held(current.turn.turn_id, current.holder, current.lease_until) if current is not None and alive else Held()


async def _opened(connection: Connection, opening: Opening) -> OpenTurn:
    turn = opening.turn
    await connection.execute(STATEMENTS["waiter_is_served"], *turn.key, turn.turn_id)
    fence = await connection.fetchval(STATEMENTS["next_fence"], *turn.key)
    try:
        await connection.execute(
            STATEMENTS["keep_open_turn"],
            *turn.key,
            turn.turn_id,
            turn.user_id,
            turn.payload_hash,
            fence,
            opening.lease,
            _GRACE,
            opening.holder,
            *_columns(turn.messages),
            turn.bytes,
        )
    except UNFIT:
        raise InvalidField("messages", "hold a value that cannot be stored") from None
    row = await connection.fetchrow(STATEMENTS["open_turn"], *turn.key)
    assert row is not None
    return _open_turn(turn.key, row)


async def _opened_anew(connection: Connection, opening: Opening) -> OpenTurn:
    """The same turn under the next fence: whoever held it before can change nothing any more."""
    key = opening.turn.key
    fence = await connection.fetchval(STATEMENTS["next_fence"], *key)
    await connection.execute(STATEMENTS["hold_open_turn"], *key, fence, opening.lease, _GRACE, opening.holder)
    row = await connection.fetchrow(STATEMENTS["open_turn"], *key)
    assert row is not None
    return _open_turn(key, row)


async def _owe(connection: Connection, answer: Answer) -> None:
    owed, usage = answer.owed, answer.usage
    if owed is None or usage is None:
        return
    try:
        await connection.execute(
            STATEMENTS["owe_usage"],
            *answer.key,
            answer.turn_id,
            owed.event_id,
            owed.user_id,
            owed.agent_id,
            owed.event_time,
            usage.input_tokens,
            usage.output_tokens,
        )
    except UNFIT:
        raise InvalidField("owed_usage", "holds a value that cannot be stored") from None


async def _close_for_holder(connection: Connection, current: OpenTurn, cause: Cause, *, order_unverified: bool) -> Closed:
    """Closes a turn without its holder, as far as it came."""
    turn = whole_turn(current.turn, current.partial, current.partial_bytes, b"", None, interrupted=True)
    appended = await _append(connection, turn, order_unverified=order_unverified)
    if appended.turn is None or appended.turn.duplicate:
        stored = await _said_already(connection, current)
        if stored is not None:
            await _forget(connection, current)
            return Closed(stored, None)
        # Its id was used for an append meanwhile. What the user said is kept all the same.
        turn = replace(turn, turn_id=fields.new_id())
        appended = await _append(connection, turn, order_unverified=order_unverified)
    assert appended.turn is not None
    await _forget(connection, current)
    await _record(connection, turn, appended.turn, cause, "")
    return Closed(appended.turn, turn)


async def _said_already(connection: Connection, current: OpenTurn) -> KeptTurn | None:
    """Where the user's words stand, if the turn of this id begins with them.

    Whoever opened it could not know that it had, and appended the whole turn instead (Postgres was away meanwhile).
    """
    key, begun = current.turn.key, current.turn.messages
    row = await connection.fetchrow(STATEMENTS["closed_turn"], *key, current.turn.turn_id)
    if row is None:
        return None
    stored = await connection.fetch(STATEMENTS["messages_between"], *key, row["first_seq"], row["last_seq"])
    words = [(message["role"], message["content"], message["rest"]) for message in stored[: len(begun)]]
    return _kept(row) if words == [(said.role, said.content, said.rest) for said in begun] else None


async def _append(connection: Connection, turn: NewTurn, *, order_unverified: bool) -> Appended:
    try:
        (appended,) = await append(connection, [Candidate(turn, is_new=False, order_unverified=order_unverified)])
    except UNFIT:
        raise InvalidField("response_messages", "hold a value that cannot be stored") from None
    return appended


async def _forget(connection: Connection, current: OpenTurn) -> None:
    await connection.execute(STATEMENTS["forget_open_turn"], *current.turn.key, current.fence)


async def _record(connection: Connection, turn: NewTurn, kept: KeptTurn, cause: Cause, reason: str) -> None:
    told = {"turn_id": turn.turn_id, "first_seq": kept.first_seq, "last_seq": kept.last_seq, "cause": cause.value}
    await events.record(connection, turn.key, "turn.interrupted", told | ({"reason": reason} if reason else {}))


async def _closed_before(connection: Connection, answer: Answer) -> Closed:
    """The turn is not open: what its holder is told, for whom it may be a repeat."""
    row = await connection.fetchrow(STATEMENTS["closed_turn"], *answer.key, answer.turn_id)
    if row is None:
        await _refuse(connection, answer.key, answer.turn_id)
    assert row is not None
    _, closed_with = split(row["payload_hash"])
    if not closed_with:
        raise refuse_closing(answer.turn_id)
    if closed_with != answer.payload_hash:
        raise _reused(answer.turn_id)
    return Closed(_kept(row), None)


async def _refuse(connection: Connection, key: ThreadKey, turn_id: str) -> None:
    """Says why nothing can be done to a turn that is not open under the given fence."""
    row = await connection.fetchrow(STATEMENTS["open_turn"], *key)
    closed = await connection.fetchrow(STATEMENTS["closed_turn"], *key, turn_id)
    if closed is None and (row is None or row["turn_id"] != turn_id):
        raise TurnUnknown(f"the conversation has no turn {turn_id!r}", turn_id=turn_id)
    raise refuse_closing(turn_id)


def _kept(row: asyncpg.Record) -> KeptTurn:
    return KeptTurn(row["first_seq"], row["last_seq"], row["epoch"], row["created_at"], None, True, row["order_unverified"])


def _owed_usage(row: asyncpg.Record) -> OwedUsage:
    return OwedUsage(
        TurnName(ThreadKey(row["workspace_id"], row["thread_id"]), row["turn_id"]),
        Owed(row["event_id"], row["user_id"], row["agent_id"], row["event_time"]),
        Usage(row["input_tokens"], row["output_tokens"]),
    )


def _columns(messages: Sequence[NewMessage]) -> list[list[object]]:
    return [
        [message.role for message in messages],
        [message.content for message in messages],
        [message.rest for message in messages],
        [message.token_count for message in messages],
    ]


def _messages(row: asyncpg.Record, which: str) -> list[NewMessage]:
    names = ("roles", "contents", "rests", "token_counts")
    return [NewMessage(*values) for values in zip(*(row[f"{which}{name}"] for name in names), strict=True)]


def _open_turn(key: ThreadKey, row: asyncpg.Record) -> OpenTurn:
    turn = NewTurn(key, row["user_id"], row["turn_id"], row["body_hash"], _messages(row, ""), row["bytes"])
    return OpenTurn(
        turn,
        row["fence"],
        row["holder"],
        row["lease_until"],
        row["began_at"],
        _messages(row, "partial_"),
        row["partial_bytes"],
        row["alive"],
    )
