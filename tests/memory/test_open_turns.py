"""M14: one turn is open on a conversation at a time, who was superseded changes nothing, and no word of a turn is lost."""

import asyncio
from datetime import timedelta
from typing import Any

import asyncpg
import grpc
import pytest
from google.protobuf.duration_pb2 import Duration
from google.rpc import error_details_pb2
from grpc_status import rpc_status

from tests.memory.rooms import CALL_S, Memory, refused, seqs, texts
from tests.waiting import until
from twofold.memory.v1.conversation_pb2 import DeleteConversationRequest, GetTurnRequest, TurnUsage
from twofold.memory.v1.event_pb2 import ListEventsRequest
from twofold.memory.v1.message_pb2 import Completeness, Message, MessageStatus, ReadSource, Role
from twofold.memory.v1.turn_pb2 import (
    AbortTurnRequest,
    AbortTurnResponse,
    BeginTurnRequest,
    BeginTurnResponse,
    CommitTurnRequest,
    CommitTurnResponse,
    GetOpenTurnRequest,
    GetOpenTurnResponse,
    HeartbeatTurnRequest,
    HeartbeatTurnResponse,
    TurnPolicy,
    TurnState,
)
from twofold_memory.threads import ThreadKey

Sql = asyncpg.Pool
ABORTED = grpc.StatusCode.ABORTED
QUEUE, TAKE_OVER = TurnPolicy.TURN_POLICY_QUEUE, TurnPolicy.TURN_POLICY_TAKE_OVER
INTERRUPTED = MessageStatus.MESSAGE_STATUS_INTERRUPTED


def answered(*words: str) -> list[Message]:
    return [Message(role=Role.ROLE_ASSISTANT, content=text) for text in words]


async def begin(
    room: Memory,
    key: ThreadKey,
    turn_id: str,
    *words: str,
    policy: TurnPolicy.ValueType = TurnPolicy.TURN_POLICY_REJECT,
    user_id: str = "",
    wait_s: int = 60,
    holder: str = "",
    timeout: float = CALL_S,
) -> BeginTurnResponse:
    request = BeginTurnRequest(
        workspace_id=key.workspace_id,
        thread_id=key.thread_id,
        user_id=user_id,
        request_id=turn_id,
        messages=[Message(role=Role.ROLE_USER, content=text) for text in words or (turn_id,)],
        policy=policy,
        queue_wait=Duration(seconds=wait_s),
        holder=holder,
    )
    return await room.turns.BeginTurn(request, timeout=timeout)


async def heartbeat(room: Memory, key: ThreadKey, turn_id: str, fence: int, *partial: str) -> HeartbeatTurnResponse:
    request = HeartbeatTurnRequest(
        workspace_id=key.workspace_id,
        thread_id=key.thread_id,
        turn_id=turn_id,
        fence=fence,
        partial_messages=answered(*partial),
    )
    return await room.turns.HeartbeatTurn(request, timeout=CALL_S)


async def commit(
    room: Memory, key: ThreadKey, turn_id: str, fence: int, *words: str, usage: TurnUsage | None = None
) -> CommitTurnResponse:
    request = CommitTurnRequest(
        workspace_id=key.workspace_id,
        thread_id=key.thread_id,
        turn_id=turn_id,
        fence=fence,
        response_messages=answered(*words),
        usage=usage,
    )
    return await room.turns.CommitTurn(request, timeout=CALL_S)


async def abort(room: Memory, key: ThreadKey, turn_id: str, fence: int, *partial: str, why: str = "") -> AbortTurnResponse:
    request = AbortTurnRequest(
        workspace_id=key.workspace_id,
        thread_id=key.thread_id,
        turn_id=turn_id,
        fence=fence,
        partial_messages=answered(*partial),
        reason=why,
    )
    return await room.turns.AbortTurn(request, timeout=CALL_S)


async def open_turn(room: Memory, key: ThreadKey, user_id: str = "") -> GetOpenTurnResponse:
    request = GetOpenTurnRequest(workspace_id=key.workspace_id, thread_id=key.thread_id, user_id=user_id)
    return await room.turns.GetOpenTurn(request, timeout=CALL_S)


async def waiting(room: Memory, key: ThreadKey, count: int) -> None:
    """Returns when so many wait behind the open turn."""

    async def are_there() -> bool:
        return (await open_turn(room, key)).waiting_count == count

    await until(are_there)


def told_with(error: grpc.aio.AioRpcError) -> dict[str, str]:
    """The metadata of a refusal."""
    info = error_details_pb2.ErrorInfo()
    status = rpc_status.from_call(error)  # type: ignore[arg-type]  # it reads code, details and trailers, which an aio error has
    assert status is not None
    assert any(detail.Unpack(info) for detail in status.details)
    return dict(info.metadata)


async def end_lease(sql: "Sql[Any]", key: ThreadKey, *, and_grace: bool = False) -> None:
    """The clock is Postgres' own: as if time had passed."""
    await sql.execute(
        "UPDATE memory.open_turns"
        " SET lease_until = now() - $3::interval, sweep_at = CASE WHEN $4 THEN now() ELSE sweep_at END"
        " WHERE workspace_id = $1 AND thread_id = $2",
        *key,
        timedelta(seconds=60 if and_grace else 1),
        and_grace,
    )


async def statuses(room: Memory, key: ThreadKey) -> list[tuple[int, str, bool]]:
    return [(m.seq, m.content, m.status == INTERRUPTED) for m in await room.all_messages(key)]


async def test_what_the_user_said_has_no_number_until_the_turn_is_committed_with_its_answer(
    room: Memory, key: ThreadKey
) -> None:
    begun = await begin(room, key, "t1", "one", "two", holder="agent-7")
    assert (begun.turn_id, begun.state, begun.fence) == ("t1", TurnState.TURN_STATE_OPEN, 1)
    assert begun.HasField("lease_expire_time")
    assert await room.all_messages(key) == []
    found = await open_turn(room, key)
    assert (found.turn_id, found.holder, texts(found.messages), seqs(found.messages)) == (
        "t1",
        "agent-7",
        ["one", "two"],
        [0, 0],
    )
    kept = await commit(room, key, "t1", 1, "three", usage=TurnUsage(input_tokens=5, output_tokens=6))
    assert (kept.first_seq, kept.last_seq, kept.duplicate) == (1, 3, False)
    window = await room.read(key)
    assert texts(window.messages) == ["one", "two", "three"]
    assert {message.turn_id for message in window.messages} == {"t1"}
    assert (window.source, window.completeness) == (ReadSource.READ_SOURCE_L1, Completeness.COMPLETENESS_COMPLETE)
    turn = await room.conversations.GetTurn(
        GetTurnRequest(workspace_id=key.workspace_id, thread_id=key.thread_id, turn_id="t1"), timeout=CALL_S
    )
    assert (turn.usage.input_tokens, turn.usage.output_tokens) == (5, 6)
    async with refused(grpc.StatusCode.NOT_FOUND, "REASON_TURN_UNKNOWN"):
        await open_turn(room, key)


async def test_a_second_turn_is_rejected_and_told_who_holds_the_conversation_and_until_when(
    room: Memory, other_room: Memory, key: ThreadKey
) -> None:
    begun = await begin(room, key, "t1", holder="the first")
    async with refused(ABORTED, "REASON_TURN_HELD") as told:
        await begin(other_room, key, "t2")
    metadata = told_with(told.value)
    assert (metadata["turn_id"], metadata["holder"]) == ("t1", "the first")
    assert metadata["lease_end"] == begun.lease_expire_time.ToJsonString()
    assert (await open_turn(room, key)).turn_id == "t1"


async def test_a_repeat_of_begin_returns_the_same_turn_also_when_it_is_closed(
    room: Memory, other_room: Memory, key: ThreadKey
) -> None:
    first = await begin(room, key, "t1", "a")
    for policy in (TurnPolicy.TURN_POLICY_REJECT, QUEUE, TAKE_OVER):
        again = await begin(other_room, key, "t1", "a", policy=policy)
        assert (again.fence, again.duplicate, again.lease_expire_time) == (first.fence, True, first.lease_expire_time)
    async with refused(grpc.StatusCode.ALREADY_EXISTS, "REASON_REQUEST_REUSED"):
        await begin(room, key, "t1", "something else")
    await commit(room, key, "t1", first.fence, "b")
    ended = await begin(room, key, "t1", "a")
    assert (ended.state, ended.first_seq, ended.last_seq, ended.fence) == (TurnState.TURN_STATE_COMMITTED, 1, 2, 0)
    async with refused(grpc.StatusCode.ALREADY_EXISTS, "REASON_REQUEST_REUSED"):
        await begin(room, key, "t1", "something else")


async def test_a_repeat_of_commit_returns_the_same_numbers_and_another_body_is_refused(
    room: Memory, other_room: Memory, key: ThreadKey
) -> None:
    fence = (await begin(room, key, "t1")).fence
    first = await commit(room, key, "t1", fence, "answer")
    again = await commit(other_room, key, "t1", fence, "answer")
    assert (again.first_seq, again.last_seq, again.duplicate) == (first.first_seq, first.last_seq, True)
    for words, given in ((("another",), fence), (("answer",), fence + 1)):
        async with refused(grpc.StatusCode.ALREADY_EXISTS, "REASON_REQUEST_REUSED"):
            await commit(room, key, "t1", given, *words)
    async with refused(grpc.StatusCode.ALREADY_EXISTS, "REASON_REQUEST_REUSED"):
        await abort(room, key, "t1", fence)
    async with refused(grpc.StatusCode.NOT_FOUND, "REASON_TURN_UNKNOWN"):
        await commit(room, key, "t2", fence, "answer")
    assert texts(await room.all_messages(key)) == ["t1", "answer"]


async def test_of_many_repeats_at_once_one_commits(room: Memory, other_room: Memory, key: ThreadKey) -> None:
    """M4."""
    fence = (await begin(room, key, "t1")).fence
    answers = await asyncio.gather(
        *(commit((room, other_room)[index % 2], key, "t1", fence, "answer") for index in range(8))
    )
    assert {(answer.first_seq, answer.last_seq) for answer in answers} == {(1, 2)}
    assert sum(not answer.duplicate for answer in answers) == 1
    assert seqs(await room.all_messages(key)) == [1, 2]


async def test_m14_a_holder_that_was_superseded_can_change_nothing(room: Memory, other_room: Memory, key: ThreadKey) -> None:
    """M14: not its lease, not the answer, not the end; and what was said is there, before what came after it."""
    await room.append(key, "before")
    old = await begin(room, key, "t1", "asked first")
    await heartbeat(room, key, "t1", old.fence, "so far")
    new = await begin(other_room, key, "t2", "asked second", policy=TAKE_OVER)
    assert new.fence == old.fence + 1
    expected = [(1, "before", False), (2, "asked first", False), (3, "so far", True)]
    assert await statuses(room, key) == expected
    found = await open_turn(room, key)
    for late in (
        lambda: heartbeat(room, key, "t1", old.fence, "late"),
        lambda: commit(room, key, "t1", old.fence, "late"),
        lambda: abort(room, key, "t1", old.fence, "late"),
        lambda: commit(room, key, "t2", old.fence, "late"),
        lambda: heartbeat(room, key, "t2", old.fence, "late"),
    ):
        async with refused(ABORTED, "REASON_TURN_SUPERSEDED"):
            await late()
    assert await statuses(room, key) == expected
    assert await open_turn(room, key) == found
    ended = await begin(room, key, "t1", "asked first")
    assert (ended.state, ended.first_seq, ended.last_seq) == (TurnState.TURN_STATE_INTERRUPTED, 2, 3)
    kept = await commit(other_room, key, "t2", new.fence, "answered")
    assert (kept.first_seq, kept.last_seq) == (4, 5)
    window = await room.read(key)
    assert (window.source, texts(window.messages)[-2:]) == (ReadSource.READ_SOURCE_L1, ["asked second", "answered"])


async def test_an_aborted_turn_is_numbered_with_what_there_is_of_the_answer(room: Memory, key: ThreadKey) -> None:
    fence = (await begin(room, key, "t1")).fence
    await heartbeat(room, key, "t1", fence, "a", "b")
    await heartbeat(room, key, "t1", fence, "in its place")
    kept = await abort(room, key, "t1", fence, why="the model is gone")
    assert (kept.first_seq, kept.last_seq, kept.duplicate) == (1, 2, False)
    assert await statuses(room, key) == [(1, "t1", False), (2, "in its place", True)]
    again = await abort(room, key, "t1", fence, why="the model is gone")
    assert (again.first_seq, again.last_seq, again.duplicate) == (1, 2, True)
    fence = (await begin(room, key, "t2")).fence
    await heartbeat(room, key, "t2", fence, "a")
    await abort(room, key, "t2", fence, "better")
    fence = (await begin(room, key, "t3")).fence
    assert (await abort(room, key, "t3", fence)).last_seq == 5
    assert texts(await room.all_messages(key)) == ["t1", "in its place", "t2", "better", "t3"]
    log = await room.events.ListEvents(
        ListEventsRequest(workspace_id=key.workspace_id, thread_id=key.thread_id, kind="turn.interrupted"), timeout=CALL_S
    )
    assert len(log.events) == 3
    assert "the model is gone" in log.events[0].payload
    assert all(event.by_service for event in log.events)


async def test_a_heartbeat_extends_the_lease(room: Memory, key: ThreadKey, sql: "Sql[Any]") -> None:
    begun = await begin(room, key, "t1")
    await end_lease(sql, key)
    extended = await heartbeat(room, key, "t1", begun.fence)
    assert extended.lease_expire_time.ToDatetime() >= begun.lease_expire_time.ToDatetime()
    async with refused(ABORTED, "REASON_TURN_HELD"):
        await begin(room, key, "t2")


async def test_a_turn_whose_lease_has_ended_makes_way_for_the_next_one_or_is_still_committed(
    room: Memory, key: ThreadKey, sql: "Sql[Any]"
) -> None:
    late = await begin(room, key, "t1", "asked")
    await end_lease(sql, key)
    assert (await commit(room, key, "t1", late.fence, "just in time")).last_seq == 2
    gone = await begin(room, key, "t2", "asked again")
    await end_lease(sql, key)
    begun = await begin(room, key, "t3")
    assert (begun.state, begun.fence) == (TurnState.TURN_STATE_OPEN, gone.fence + 1)
    assert texts(await room.all_messages(key)) == ["asked", "just in time", "asked again"]
    async with refused(ABORTED, "REASON_TURN_SUPERSEDED"):
        await commit(room, key, "t2", gone.fence, "too late")


async def test_a_turn_that_is_left_behind_is_swept_with_all_its_words(room: Memory, key: ThreadKey, sql: "Sql[Any]") -> None:
    fence = (await begin(room, key, "t1", "asked")).fence
    await heartbeat(room, key, "t1", fence, "half an ans")
    await end_lease(sql, key, and_grace=True)

    async def is_closed() -> bool:
        return bool(await room.all_messages(key))

    await until(is_closed)
    assert await statuses(room, key) == [(1, "asked", False), (2, "half an ans", True)]
    async with refused(ABORTED, "REASON_TURN_SUPERSEDED"):
        await commit(room, key, "t1", fence, "too late")
    assert (await begin(room, key, "t2")).fence == fence + 1  # for ever


async def test_turns_wait_in_order_of_arrival_across_workers(room: Memory, other_room: Memory, key: ThreadKey) -> None:
    rooms = (room, other_room)
    fence = (await begin(room, key, "t0")).fence
    waiters = []
    for index in range(1, 5):
        waiters.append(asyncio.create_task(begin(rooms[index % 2], key, f"t{index}", policy=QUEUE)))
        await waiting(room, key, index)
    async with refused(ABORTED, "REASON_TURN_HELD"):  # nobody passes them
        await begin(room, key, "t9")
    await commit(room, key, "t0", fence, "a0")
    for index, waiter in enumerate(waiters, 1):
        begun = await waiter
        assert [other.done() for other in waiters] == [True] * index + [False] * (len(waiters) - index)
        await commit(rooms[(index + 1) % 2], key, f"t{index}", begun.fence, f"a{index}")
    assert texts(await room.all_messages(key)) == [f"{who}{index}" for index in range(5) for who in "ta"]


async def test_who_waits_in_vain_is_told_and_so_is_who_finds_no_place(room: Memory, key: ThreadKey) -> None:
    fence = (await begin(room, key, "t0")).fence
    async with refused(ABORTED, "REASON_TURN_HELD"):
        await begin(room, key, "short", policy=QUEUE, wait_s=1)
    async with refused(ABORTED, "REASON_TURN_HELD"):  # before the deadline, which would say less
        await begin(room, key, "dated", policy=QUEUE, timeout=1.5)
    await waiting(room, key, 0)
    waiters = [asyncio.create_task(begin(room, key, f"w{index}", policy=QUEUE)) for index in range(16)]
    await waiting(room, key, 16)
    async with refused(grpc.StatusCode.RESOURCE_EXHAUSTED, "REASON_TOO_MANY"):
        await begin(room, key, "one too many", policy=QUEUE)
    for waiter in waiters[1:]:
        waiter.cancel()
    await waiting(room, key, 1)  # who goes away gives up its place
    await commit(room, key, "t0", fence, "a0")
    assert (await waiters[0]).state == TurnState.TURN_STATE_OPEN


async def test_nobody_passes_who_waits_also_when_all_is_free(room: Memory, key: ThreadKey, sql: "Sql[Any]") -> None:
    await room.append(key, "there")
    await sql.execute(
        "INSERT INTO memory.turn_waiters (workspace_id, thread_id, place, turn_id, ticket, seen_at)"
        " VALUES ($1, $2, 1, 'at another worker', '', now() + interval '1 hour')",
        *key,
    )
    async with refused(ABORTED, "REASON_TURN_HELD"):
        await begin(room, key, "t1")
    async with refused(ABORTED, "REASON_TURN_HELD"):
        await begin(room, key, "t2", policy=QUEUE, wait_s=1)
    assert (await begin(room, key, "t3", policy=TAKE_OVER)).fence == 1


async def test_the_place_of_a_worker_that_is_gone_holds_nobody_up(room: Memory, key: ThreadKey, sql: "Sql[Any]") -> None:
    """Neither who comes after its end nor who has waited behind it."""
    lost = (
        "INSERT INTO memory.turn_waiters (workspace_id, thread_id, place, turn_id, ticket, seen_at)"
        " VALUES ($1, $2, $3, 'of a dead worker ' || $3::bigint, '', now() - interval '1 minute')"
    )
    fence = (await begin(room, key, "t0")).fence
    await sql.execute(lost, *key, 1)
    waiter = asyncio.create_task(begin(room, key, "t1", policy=QUEUE))

    async def waits() -> bool:
        query = "SELECT EXISTS (SELECT FROM memory.turn_waiters WHERE (workspace_id, thread_id, turn_id) = ($1, $2, 't1'))"
        return bool(await sql.fetchval(query, *key))

    await until(waits)
    await sql.execute(lost, *key, -1)
    await commit(room, key, "t0", fence, "a0")
    assert (await waiter).turn_id == "t1"


async def test_open_turns_are_refused_where_appends_are(room: Memory, key: ThreadKey, sql: "Sql[Any]") -> None:
    fence = (await begin(room, key, "t1", user_id="ada")).fence
    async with refused(grpc.StatusCode.NOT_FOUND, "REASON_CONVERSATION_UNKNOWN"):
        await begin(room, key, "t2", user_id="grace", policy=TAKE_OVER)
    async with refused(grpc.StatusCode.NOT_FOUND, "REASON_CONVERSATION_UNKNOWN"):
        await open_turn(room, key, "grace")
    await room.conversations.DeleteConversation(
        DeleteConversationRequest(workspace_id=key.workspace_id, thread_id=key.thread_id), timeout=CALL_S
    )
    closed = (
        lambda: begin(room, key, "t3"),
        lambda: heartbeat(room, key, "t1", fence, "a"),
        lambda: commit(room, key, "t1", fence, "a"),
    )
    for refused_now in closed:
        async with refused(grpc.StatusCode.FAILED_PRECONDITION, "REASON_CONVERSATION_DELETED"):
            await refused_now()
    await sql.execute("UPDATE memory.conversations SET erased_at = now() WHERE (workspace_id, thread_id) = ($1, $2)", *key)
    for refused_now in closed:
        async with refused(grpc.StatusCode.FAILED_PRECONDITION, "REASON_CONVERSATION_ERASED"):
            await refused_now()


async def test_plain_appends_neither_need_nor_respect_an_open_turn(room: Memory, key: ThreadKey, sql: "Sql[Any]") -> None:
    fence = (await begin(room, key, "t1", "asked")).fence
    assert (await room.append(key, "in", "between")).first_seq == 1
    await room.append(key, "an append of the same id", turn_id="t1")
    async with refused(grpc.StatusCode.ALREADY_EXISTS, "REASON_REQUEST_REUSED"):
        await commit(room, key, "t1", fence, "answered")
    begun = await begin(room, key, "t2", policy=TAKE_OVER)  # and all the same no word is lost
    assert texts(await room.all_messages(key)) == ["in", "between", "an append of the same id", "asked"]
    assert (await commit(room, key, "t2", begun.fence, "a")).first_seq == 5


async def test_a_turn_is_never_larger_than_a_turn_may_be(room: Memory, key: ThreadKey) -> None:
    fence = (await begin(room, key, "t1", *["x"] * 250)).fence
    async with refused(grpc.StatusCode.INVALID_ARGUMENT, "REASON_INVALID_FIELD"):
        await commit(room, key, "t1", fence, *["y"] * 251)
    await commit(room, key, "t1", fence, *["y"] * 250)
    mib = 1024 * 1024
    fence = (await begin(room, key, "t2", *["x" * (mib - 100)] * 2)).fence
    async with refused(grpc.StatusCode.INVALID_ARGUMENT, "REASON_INVALID_FIELD"):
        await commit(room, key, "t2", fence, "y" * (mib - 100), "z" * 1000)
    await heartbeat(room, key, "t2", fence, "y" * (mib - 100))
    assert (await abort(room, key, "t2", fence)).last_seq == 503


@pytest.mark.parametrize("closing", ["commit", "abort"])
async def test_a_caller_that_goes_away_changes_nothing(room: Memory, key: ThreadKey, closing: str) -> None:
    fence = (await begin(room, key, "t1")).fence
    task = asyncio.create_task((commit if closing == "commit" else abort)(room, key, "t1", fence, "answer"))
    await asyncio.sleep(0)
    task.cancel()
    again = await (commit if closing == "commit" else abort)(room, key, "t1", fence, "answer")
    assert (again.first_seq, again.last_seq) == (1, 2)
