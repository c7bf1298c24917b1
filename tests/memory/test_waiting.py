"""M18: threads do not wait for each other; and M4 for callers that go away before they are answered."""

import asyncio
from typing import Any

import asyncpg
import grpc

from tests.memory.conftest import Worker
from tests.memory.rooms import CALL_S, Memory, refused, seqs, thread
from tests.waiting import until
from twofold.memory.v1.conversation_pb2 import DeleteConversationRequest, GetTurnRequest
from twofold.memory.v1.preference_pb2 import UpdatePreferencesRequest
from twofold_memory.threads import ThreadKey

Sql = asyncpg.Pool
LOCK = "SELECT 1 FROM memory.conversations WHERE workspace_id = $1 AND thread_id = $2 FOR UPDATE"


async def test_m18_a_thread_that_somebody_holds_is_busy_and_the_others_of_its_batch_are_stored(
    new_worker: Worker, workspace_id: str, sql: "Sql[Any]"
) -> None:
    """M18: one lane, so that all of them meet in one batch."""
    keys = [thread(workspace_id) for _ in range(8)]
    async with new_worker() as worker, sql.acquire() as connection:
        await asyncio.gather(*(worker.append(key, "first") for key in keys))
        async with connection.transaction():
            await connection.execute(LOCK, *keys[0])
            calls = [worker.append(keys[index % 8], f"{index}", turn_id=f"t{index}") for index in range(64)]
            results = await asyncio.gather(*calls, return_exceptions=True)
        for index, result in enumerate(results):
            assert isinstance(result, BaseException) == (index % 8 == 0)
        async with connection.transaction():
            await connection.execute(LOCK, *keys[0])
            async with refused(grpc.StatusCode.ABORTED, "REASON_BUSY"):
                await worker.append(keys[0], "0", turn_id="t0")
        retried = await asyncio.gather(*(worker.append(keys[0], f"{8 * i}", turn_id=f"t{8 * i}") for i in range(8)))
        assert not any(answer.duplicate for answer in retried)
        for key in keys:
            assert seqs(await worker.all_messages(key)) == list(range(1, 10))


async def test_an_append_whose_caller_went_away_ends_in_one_stored_turn(
    room: Memory, other_room: Memory, key: ThreadKey, sql: "Sql[Any]"
) -> None:
    """M4: cancelled at any moment; a retry elsewhere learns what became of it."""
    await room.append(key, "first")
    async with sql.acquire() as connection:
        transaction = connection.transaction()
        await transaction.start()
        await connection.execute(LOCK, *key)
        call = asyncio.create_task(room.append(key, "q", "a", turn_id="held"))

        async def under_way() -> bool:
            return call.done() or await waits_for_a_lock(sql)

        await until(under_way)
        call.cancel()
        await asyncio.wait([call])
        await transaction.rollback()
    asked = GetTurnRequest(workspace_id=key.workspace_id, thread_id=key.thread_id, turn_id="held")

    async def stored_or_busy() -> bool:
        # Busy after 100 ms is an end as well; on a slow machine the lock may have been held for longer.
        try:
            await room.conversations.GetTurn(asked, timeout=CALL_S)
        except grpc.aio.AioRpcError:
            return not await waits_for_a_lock(sql)
        return True

    await until(stored_or_busy)
    answer = await other_room.append(key, "q", "a", turn_id="held")
    assert (answer.first_seq, answer.last_seq) == (2, 3)
    for index in range(30):
        call = asyncio.create_task(room.append(key, f"{index}", turn_id=f"c{index}"))
        for _ in range(index % 10):
            await asyncio.sleep(0)
        call.cancel()
        await asyncio.wait([call])
    answers = await asyncio.gather(*(other_room.append(key, f"{i}", turn_id=f"c{i}") for i in range(30)))
    assert sorted(answer.first_seq for answer in answers) == list(range(4, 34))
    assert seqs(await room.all_messages(key)) == list(range(1, 34))


async def waits_for_a_lock(sql: "Sql[Any]") -> bool:
    waiting: int = await sql.fetchval(
        "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND query LIKE '%append_turns%'"
        " AND datname = current_database()"
    )
    return waiting > 0


async def test_calls_that_ran_out_of_time_leave_one_turn_or_none(room: Memory, key: ThreadKey) -> None:
    for index in range(20):
        try:
            await room.append(key, f"{index}", turn_id=f"t{index}", timeout=0.0005 * (index + 1))
        except grpc.aio.AioRpcError as error:
            assert error.code() is grpc.StatusCode.DEADLINE_EXCEEDED  # noqa: PT017
    await asyncio.gather(*(room.append(key, f"{index}", turn_id=f"t{index}") for index in range(20)))
    assert seqs(await room.all_messages(key)) == list(range(1, 21))


async def test_an_orderly_end_finishes_what_was_accepted(new_worker: Worker, room: Memory, key: ThreadKey) -> None:
    async with new_worker(drain_s=30) as worker:
        calls = [asyncio.create_task(worker.append(key, f"{index}", turn_id=f"t{index}")) for index in range(50)]
        await asyncio.wait(calls, return_when=asyncio.FIRST_COMPLETED)
    results = await asyncio.gather(*calls, return_exceptions=True)
    stored = {message.turn_id for message in await room.all_messages(key)}
    for index, result in enumerate(results):
        if not isinstance(result, BaseException):
            assert f"t{index}" in stored
    await asyncio.gather(*(room.append(key, f"{index}", turn_id=f"t{index}") for index in range(50)))
    assert seqs(await room.all_messages(key)) == list(range(1, 51))


async def test_writes_cancelled_anywhere_leave_no_open_transaction_behind(
    new_worker: Worker, workspace_id: str, sql: "Sql[Any]"
) -> None:
    async with new_worker() as worker:
        await worker.append(ThreadKey(workspace_id, "t"), "q")
        for index in range(40):
            update = UpdatePreferencesRequest(
                workspace_id=workspace_id, user_id="ada", set={"k": f"{index}"}, request_id=f"r{index}"
            )
            calls = [
                asyncio.ensure_future(worker.preferences.UpdatePreferences(update, timeout=CALL_S)),
                asyncio.ensure_future(
                    worker.conversations.DeleteConversation(
                        DeleteConversationRequest(workspace_id=workspace_id, thread_id=f"{index}"), timeout=CALL_S
                    )
                ),
            ]
            for _ in range(index):
                await asyncio.sleep(0)
            for call in calls:
                call.cancel()
            await asyncio.wait(calls)

        async def settled() -> bool:
            open_ones: int = await sql.fetchval(
                "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND usename = 'twofold_app'"
                " AND (state LIKE 'idle in transaction%' OR state = 'active')"
            )
            return open_ones == 0

        await until(settled)
        update.request_id = "last"
        answer = await worker.preferences.UpdatePreferences(update, timeout=CALL_S)
        assert [entry.value for entry in answer.preferences] == ["39"]
