"""What a turn consumed stays marked until the ledger has it; and a turn that was left behind is gone on with by one."""

import asyncio
from datetime import UTC, datetime
from typing import Any

import asyncpg
import grpc
import pytest
from google.protobuf.duration_pb2 import Duration

from tests.memory.rooms import CALL_S, Memory, refused, texts
from tests.memory.test_open_turns import answered, begin, commit, end_lease, heartbeat
from tests.waiting import until
from twofold.memory.v1 import turn_pb2 as pb
from twofold.memory.v1.conversation_pb2 import AppendTurnRequest, TurnUsage
from twofold.memory.v1.message_pb2 import Message, Role
from twofold_chassis import fields
from twofold_memory.threads import ThreadKey

Sql = asyncpg.Pool
AT = datetime(2026, 1, 5, 12, tzinfo=UTC)
USED = TurnUsage(input_tokens=7, output_tokens=3)


def owed(turn_id: str) -> pb.OwedUsage:
    return pb.OwedUsage(event_id=f"{turn_id}/0", user_id="ada", agent_id="agent", event_time=fields.timestamp(AT))


def named(key: ThreadKey, turn_id: str, fence: int) -> dict[str, Any]:
    return {"workspace_id": key.workspace_id, "thread_id": key.thread_id, "turn_id": turn_id, "fence": fence}


async def close(room: Memory, key: ThreadKey, turn_id: str, fence: int, **fields_: Any) -> pb.CommitTurnResponse:
    given = {"usage": USED, "owed_usage": owed(turn_id), **fields_}
    request = pb.CommitTurnRequest(**named(key, turn_id, fence), response_messages=answered("b"), **given)
    return await room.turns.CommitTurn(request, timeout=CALL_S)


async def owed_turns(room: Memory, key: ThreadKey, *, page_size: int = 500) -> list[pb.UnrecordedUsage]:
    """All that this workspace owes."""
    found, page_token = [], ""
    while True:
        # Nanoseconds: owed since just now.
        request = pb.ListUnrecordedUsageRequest(min_age=Duration(nanos=1000), page_size=page_size, page_token=page_token)
        page = await room.turns.ListUnrecordedUsage(request, timeout=CALL_S)
        found += [usage for usage in page.usages if usage.workspace_id == key.workspace_id]
        page_token = page.next_page_token
        if not page_token:
            return found


async def acknowledge(room: Memory, key: ThreadKey, *turn_ids: str) -> None:
    turns = [pb.TurnName(workspace_id=key.workspace_id, thread_id=key.thread_id, turn_id=name) for name in turn_ids]
    await room.turns.AcknowledgeUsage(pb.AcknowledgeUsageRequest(turns=turns), timeout=CALL_S)


async def test_usage_is_owed_from_the_transaction_that_closes_a_turn_until_it_is_acknowledged(
    room: Memory, other_room: Memory, key: ThreadKey
) -> None:
    begun = await begin(room, key, "t1")
    await close(room, key, "t1", begun.fence)
    await close(other_room, key, "t1", begun.fence)  # a repeat owes nothing more
    expected = pb.UnrecordedUsage(
        workspace_id=key.workspace_id, thread_id=key.thread_id, turn_id="t1", owed_usage=owed("t1"), usage=USED
    )
    assert await owed_turns(other_room, key) == [expected]
    for _ in range(2):
        await acknowledge(other_room, key, "t1", "never-was")
    assert await owed_turns(room, key) == []
    await close(room, key, "t1", begun.fence)
    assert await owed_turns(room, key) == []


async def test_an_aborted_turn_owes_what_it_consumed(room: Memory, key: ThreadKey) -> None:
    begun = await begin(room, key, "t1")
    request = pb.AbortTurnRequest(**named(key, "t1", begun.fence), usage=USED, owed_usage=owed("t1"))
    await room.turns.AbortTurn(request, timeout=CALL_S)
    assert [usage.turn_id for usage in await owed_turns(room, key)] == ["t1"]


async def test_what_is_owed_is_listed_page_by_page_and_only_when_it_is_old_enough(
    room: Memory, sql: "Sql[Any]", key: ThreadKey
) -> None:
    for number in range(5):
        begun = await begin(room, key, f"t{number}")
        await close(room, key, f"t{number}", begun.fence)
    assert [usage.turn_id for usage in await owed_turns(room, key, page_size=2)] == [f"t{number}" for number in range(5)]
    young = pb.ListUnrecordedUsageRequest(min_age=Duration(seconds=3600), page_size=500)

    async def listed() -> list[str]:
        page = await room.turns.ListUnrecordedUsage(young, timeout=CALL_S)
        return [usage.turn_id for usage in page.usages if usage.workspace_id == key.workspace_id]

    assert await listed() == []
    await sql.execute(
        "UPDATE memory.owed_usage SET owed_since = now() - interval '2 hours' WHERE workspace_id = $1 AND turn_id = 't3'",
        key.workspace_id,
    )
    assert await listed() == ["t3"]


async def test_owed_usage_without_usage_is_refused_by_name(room: Memory, key: ThreadKey) -> None:
    begun = await begin(room, key, "t1")
    async with refused(grpc.StatusCode.INVALID_ARGUMENT, "REASON_INVALID_FIELD"):
        await close(room, key, "t1", begun.fence, usage=None)


async def test_m14_of_many_that_go_on_with_a_turn_that_was_left_behind_the_last_holds_it(
    room: Memory, other_room: Memory, sql: "Sql[Any]", key: ThreadKey
) -> None:
    """M14: its former holder, and whoever went on with it before, can change nothing."""
    old = await begin(room, key, "t1", "asked", holder="router-1")
    assert (old.holder, old.duplicate) == ("router-1", False)
    alive = await begin(other_room, key, "t1", "asked", holder="router-2")
    assert (alive.fence, alive.holder, alive.duplicate) == (old.fence, "router-1", True)
    await end_lease(sql, key)
    again = await asyncio.gather(
        *((begin((room, other_room)[index % 2], key, "t1", "asked", holder=f"router-{index}")) for index in range(4))
    )
    # One took it; the others see who did.
    assert {(begun.fence, begun.holder) for begun in again} == {(old.fence + 1, again[0].holder)}
    async with refused(grpc.StatusCode.ABORTED, "REASON_TURN_SUPERSEDED"):
        await heartbeat(room, key, "t1", old.fence)
    async with refused(grpc.StatusCode.ABORTED, "REASON_TURN_SUPERSEDED"):
        await commit(room, key, "t1", old.fence, "late")
    await commit(other_room, key, "t1", old.fence + 1, "answer")
    assert texts(await room.all_messages(key)) == ["asked", "answer"]


@pytest.mark.parametrize("how", ["take over", "sweep"])
async def test_words_of_an_open_turn_that_was_appended_instead_are_not_kept_twice(
    room: Memory, sql: "Sql[Any]", key: ThreadKey, how: str
) -> None:
    """Who opened it did not hear so, as Postgres went away, and had the whole turn journaled under the same id."""
    await begin(room, key, "t1", "asked")
    whole = [Message(role=Role.ROLE_USER, content="asked"), *answered("answer")]
    appended = AppendTurnRequest(workspace_id=key.workspace_id, thread_id=key.thread_id, request_id="t1", messages=whole)
    await room.conversations.AppendTurn(appended, timeout=CALL_S)
    await end_lease(sql, key, and_grace=how == "sweep")
    if how == "take over":
        begun = await begin(room, key, "t2", "more")
        await commit(room, key, "t2", begun.fence, "answered")
        assert texts(await room.all_messages(key)) == ["asked", "answer", "more", "answered"]
    else:

        async def closed() -> bool:
            count = "SELECT count(*) FROM memory.open_turns WHERE workspace_id = $1"
            return not await sql.fetchval(count, key.workspace_id)

        await until(closed)
        assert texts(await room.all_messages(key)) == ["asked", "answer"]
