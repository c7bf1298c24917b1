"""Summaries: put beside the messages they tell of, never over what was not said, and stale when the past changes."""

import asyncio
from typing import Any

import asyncpg
import grpc

from tests.memory.rooms import CALL_S, Memory, refused, texts, thread
from twofold.memory.v1.conversation_pb2 import DeleteConversationRequest
from twofold.memory.v1.summary_pb2 import (
    DeleteSummaryRequest,
    GetSummaryRequest,
    ListSummariesRequest,
    PutSummaryRequest,
    Summary,
)
from twofold_memory.threads import ThreadKey


async def put(
    room: Memory,
    key: ThreadKey,
    last_seq: int,
    text: str = "They talked.",
    *,
    first_seq: int = 1,
    request_id: str = "",
    user_id: str = "",
    **given: Any,
) -> Summary:
    request = PutSummaryRequest(
        workspace_id=key.workspace_id,
        thread_id=key.thread_id,
        user_id=user_id,
        summary=Summary(first_seq=first_seq, last_seq=last_seq, text=text, **given),
        request_id=request_id,
    )
    return (await room.summaries.PutSummary(request, timeout=CALL_S)).summary


async def get(room: Memory, key: ThreadKey, summary_id: str, user_id: str = "") -> Summary:
    request = GetSummaryRequest(
        workspace_id=key.workspace_id, thread_id=key.thread_id, summary_id=summary_id, user_id=user_id
    )
    return (await room.summaries.GetSummary(request, timeout=CALL_S)).summary


async def delete(room: Memory, key: ThreadKey, summary_id: str, request_id: str = "") -> None:
    request = DeleteSummaryRequest(
        workspace_id=key.workspace_id, thread_id=key.thread_id, summary_id=summary_id, request_id=request_id
    )
    await room.summaries.DeleteSummary(request, timeout=CALL_S)


async def listed(room: Memory, key: ThreadKey, size: int = 2, user_id: str = "") -> list[Summary]:
    request = ListSummariesRequest(workspace_id=key.workspace_id, thread_id=key.thread_id, page_size=size, user_id=user_id)
    found: list[Summary] = []
    while True:
        page = await room.summaries.ListSummaries(request, timeout=CALL_S)
        found += page.summaries
        if not page.next_page_token:
            return found
        request.page_token = page.next_page_token


async def test_a_summary_comes_back_as_it_was_written_and_replaces_nothing(room: Memory, key: ThreadKey) -> None:
    """M17."""
    await room.append(key, "q", "a", "q", "a")
    text = "Ada 🙂 said:\n\\assistant: no" + "x" * 200_000
    kept = await put(room, key, 4, text, token_count=9, model="small", author="ada", metadata={"a": "b"})
    assert (kept.first_seq, kept.last_seq, kept.stale, kept.text) == (1, 4, False, "")
    found = await get(room, key, kept.summary_id)
    assert (found.text, found.token_count, found.model, found.author, dict(found.metadata)) == (
        text,
        9,
        "small",
        "ada",
        {"a": "b"},
    )
    assert found.create_time == kept.create_time
    assert texts(await room.all_messages(key)) == ["q", "a", "q", "a"]


async def test_they_are_listed_newest_first_by_order_of_commit_and_deleted_ones_are_gone(
    room: Memory, other_room: Memory, key: ThreadKey
) -> None:
    """M20: whatever the clock says."""
    await room.append(key, "q", "a")
    made = [await put((room, other_room)[index % 2], key, 2, f"{index}") for index in range(5)]
    assert [entry.text for entry in await listed(room, key)] == ["4", "3", "2", "1", "0"]
    await delete(room, key, made[4].summary_id)
    await delete(room, key, made[1].summary_id)
    assert [entry.text for entry in await listed(room, key)] == ["3", "2", "0"]
    await put(room, key, 2, "5")
    assert [entry.text for entry in await listed(room, key)] == ["5", "3", "2", "0"]
    for missing in (made[4].summary_id, "never there"):
        async with refused(grpc.StatusCode.NOT_FOUND, "REASON_SUMMARY_UNKNOWN"):
            await get(room, key, missing)
        async with refused(grpc.StatusCode.NOT_FOUND, "REASON_SUMMARY_UNKNOWN"):
            await delete(room, key, missing)


async def test_a_page_of_large_ones_is_bounded(room: Memory, key: ThreadKey) -> None:
    await room.append(key, "q")
    for index in range(14):
        await put(room, key, 1, f"{index}" + "x" * 262_000)
    request = ListSummariesRequest(workspace_id=key.workspace_id, thread_id=key.thread_id, page_size=500)
    page = await room.summaries.ListSummaries(request, timeout=CALL_S)
    assert page.next_page_token
    assert page.ByteSize() <= 3 * 1024 * 1024 + 1024
    assert len(await listed(room, key, 500)) == 14


async def test_seqs_that_were_not_said_yet_are_refused_and_so_are_ranges_upside_down(room: Memory, key: ThreadKey) -> None:
    await room.append(key, "q", "a")
    async with refused(grpc.StatusCode.FAILED_PRECONDITION, "REASON_SEQ_NOT_REACHED"):
        await put(room, key, 3)
    async with refused(grpc.StatusCode.INVALID_ARGUMENT, "REASON_INVALID_FIELD") as told:
        await put(room, key, 1, first_seq=2)
    assert "summary.last_seq" in (told.value.details() or "")
    assert not await listed(room, key)
    assert (await put(room, key, 2, first_seq=2)).first_seq == 2


async def test_a_conversation_that_is_not_there_or_not_ones_own_takes_none(room: Memory, workspace_id: str) -> None:
    missing, foreign, deleted = thread(workspace_id), thread(workspace_id), thread(workspace_id)
    await room.append(foreign, "q", user_id="ada")
    await room.append(deleted, "q")
    kept = await put(room, deleted, 1)
    await room.conversations.DeleteConversation(
        DeleteConversationRequest(workspace_id=workspace_id, thread_id=deleted.thread_id), timeout=CALL_S
    )
    for key in (missing, foreign, deleted):
        async with refused(grpc.StatusCode.NOT_FOUND, "REASON_CONVERSATION_UNKNOWN"):
            await put(room, key, 1, user_id="bob")
        async with refused(grpc.StatusCode.NOT_FOUND, "REASON_CONVERSATION_UNKNOWN"):
            await get(room, key, kept.summary_id, user_id="bob")
        async with refused(grpc.StatusCode.NOT_FOUND, "REASON_CONVERSATION_UNKNOWN"):
            await listed(room, key, user_id="bob")


async def test_it_is_stale_once_the_past_has_changed(room: Memory, key: ThreadKey, sql: "asyncpg.Pool[Any]") -> None:
    await room.append(key, "q", "a")
    before = await put(room, key, 2)
    await room.append(key, "q", "a")
    assert not (await get(room, key, before.summary_id)).stale
    await sql.execute("UPDATE memory.conversations SET epoch = epoch + 1 WHERE workspace_id = $1", key.workspace_id)
    after = await put(room, key, 2)
    assert {entry.summary_id: entry.stale for entry in await listed(room, key)} == {
        before.summary_id: True,
        after.summary_id: False,
    }


async def test_repeats_change_nothing_and_an_id_is_taken_once(room: Memory, other_room: Memory, key: ThreadKey) -> None:
    await room.append(key, "q", "a")
    one, same = await asyncio.gather(
        put(room, key, 2, request_id="r", summary_id="s"), put(other_room, key, 2, request_id="r", summary_id="s")
    )
    assert one == same
    async with refused(grpc.StatusCode.ALREADY_EXISTS, "REASON_REQUEST_REUSED"):
        await put(room, key, 1, request_id="r", summary_id="s")
    async with refused(grpc.StatusCode.ALREADY_EXISTS, "REASON_RECORD_EXISTS"):
        await put(room, key, 2, summary_id="s")
    await delete(room, key, "s", request_id="d")
    await delete(other_room, key, "s", request_id="d")
    assert not await listed(room, key)


async def test_what_is_remembered_of_a_request_holds_no_words(
    room: Memory, key: ThreadKey, sql: "asyncpg.Pool[Any]"
) -> None:
    """M11: an erasure looks for words in the tables of records, not among answers."""
    await room.append(key, "q")
    await put(room, key, 1, "the secret", request_id="r", metadata={"note": "the secret"})
    answer = await sql.fetchval("SELECT answer FROM memory.requests WHERE workspace_id = $1", key.workspace_id)
    assert b"secret" not in answer
