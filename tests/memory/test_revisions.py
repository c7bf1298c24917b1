"""Messages that change: edited, redacted, deleted, taken back; numbers stay, nothing old is shown, audits see what was."""

import asyncio
import uuid
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

import asyncpg
import grpc
import pytest
import redis.asyncio

from tests.memory.changing import delete, edit, hide, insisting, message, places_of, pop, redact, revisions, show
from tests.memory.checker import check_window
from tests.memory.rooms import CALL_S, Memory, refused, seqs, texts
from tests.waiting import until
from twofold.memory.v1.context_pb2 import InvokingRequest
from twofold.memory.v1.conversation_pb2 import AppendTurnRequest, GetTurnRequest
from twofold.memory.v1.event_pb2 import ListEventsRequest
from twofold.memory.v1.message_pb2 import FileRef, MessageStatus, Part, ReadLevel, Role, ToolCall
from twofold.memory.v1.revision_pb2 import EditMessageRequest, ListRevisionsRequest, NewContent, PartList, RevisionKind
from twofold_chassis import fields
from twofold_chassis.call import ACTOR_KEY
from twofold_memory import keys
from twofold_memory.threads import ThreadKey

ABORTED, NOT_FOUND = grpc.StatusCode.ABORTED, grpc.StatusCode.NOT_FOUND
REFUSED = grpc.StatusCode.FAILED_PRECONDITION
DELETED, REDACTED = MessageStatus.MESSAGE_STATUS_DELETED, MessageStatus.MESSAGE_STATUS_REDACTED
ANY = ReadLevel.READ_LEVEL_ANY
Change = Callable[[Memory, ThreadKey], Awaitable[object]]
CHANGES: dict[str, Change] = {
    "edit": lambda room, key: edit(room, key, 2, "new"),
    "redact": lambda room, key: redact(room, key, 2, replacement="new"),
    "delete": lambda room, key: delete(room, key, 2),
    "pop": lambda room, key: pop(room, key),
}


async def test_an_edited_message_keeps_its_place_and_says_the_new_text_everywhere(
    room: Memory, other_room: Memory, key: ThreadKey
) -> None:
    await room.append(key, "q", "a", turn_id="t")
    answer = await edit(room, key, 1, "Q", token_count=7, reason="spelling")
    assert answer.revision == 1
    changed = await message(other_room, key, 1)
    assert (changed.content, changed.token_count, changed.revision, changed.status) == ("Q", 7, 1, 0)
    assert (changed.seq, changed.turn_id, changed.turn_index) == (1, "t", 0)
    for worker in (room, other_room):
        for window in (
            await worker.read(key),
            await worker.read(key, level=ANY),
            await worker.read(key, token=answer.thread_token),
        ):
            assert texts(window.messages) == ["Q", "a"]
        assert texts(await worker.all_messages(key)) == ["Q", "a"]
    turn = GetTurnRequest(workspace_id=key.workspace_id, thread_id=key.thread_id, turn_id="t")
    assert texts((await room.conversations.GetTurn(turn, timeout=CALL_S)).messages) == ["Q", "a"]
    await room.append(key, "next")
    assert seqs((await other_room.read(key)).messages) == [1, 2, 3]


async def test_an_edit_without_a_token_count_drops_the_old_one_and_one_of_the_count_alone_keeps_the_text(
    room: Memory, key: ThreadKey
) -> None:
    request = AppendTurnRequest(workspace_id=key.workspace_id, thread_id=key.thread_id)
    request.messages.add(role=Role.ROLE_USER, content="q", token_count=9, author="ada", metadata={"a": "b"})
    await room.conversations.AppendTurn(request, timeout=CALL_S)
    await edit(room, key, 1, "Q")
    changed = await message(room, key, 1)
    assert (changed.HasField("token_count"), changed.author, dict(changed.metadata)) == (False, "ada", {"a": "b"})
    only = EditMessageRequest(workspace_id=key.workspace_id, thread_id=key.thread_id, seq=1, token_count=3)
    await room.revisions.EditMessage(only, timeout=CALL_S)
    changed = await message(room, key, 1)
    assert (changed.content, changed.token_count, changed.revision) == ("Q", 3, 2)


async def test_text_can_be_edited_into_parts_and_back(room: Memory, key: ThreadKey) -> None:
    await room.append(key, "q")
    pieces = [Part(text="Look"), Part(file=FileRef(file_id="f"))]
    request = EditMessageRequest(workspace_id=key.workspace_id, thread_id=key.thread_id, seq=1)
    request.content.CopyFrom(NewContent(parts=PartList(parts=pieces)))
    await room.revisions.EditMessage(request, timeout=CALL_S)
    changed = await message(room, key, 1)
    assert (list(changed.parts), changed.HasField("content")) == (pieces, False)
    await edit(room, key, 1, "again")
    changed = await message(room, key, 1)
    assert (list(changed.parts), changed.content) == ([], "again")
    assert [list(revision.former.parts) for revision in await revisions(room, key, 1)] == [[], pieces]


async def test_the_expected_revision_decides_between_editors(room: Memory, other_room: Memory, key: ThreadKey) -> None:
    await room.append(key, "q")
    calls = [edit((room, other_room)[index % 2], key, 1, f"{index}", expected_revision=0) for index in range(8)]
    results = await asyncio.gather(*calls, return_exceptions=True)
    assert sum(not isinstance(result, BaseException) for result in results) == 1
    assert len(await revisions(room, key, 1)) == 1
    async with refused(ABORTED, "REASON_VERSION_MISMATCH"):
        await delete(room, key, 1, expected_revision=0)
    await delete(room, key, 1, expected_revision=1)


async def test_a_repeat_of_a_change_is_one_change(room: Memory, key: ThreadKey) -> None:
    await room.append(key, "q", "a", turn_id="one")
    await room.append(key, "r", "b", turn_id="two")
    first = await edit(room, key, 1, "Q", request_id="e")
    assert await edit(room, key, 1, "Q", request_id="e") == first
    async with refused(grpc.StatusCode.ALREADY_EXISTS, "REASON_REQUEST_REUSED"):
        await edit(room, key, 1, "other", request_id="e")
    popped = await pop(room, key, request_id="p")
    assert await pop(room, key, request_id="p") == popped
    assert (popped.turn_id, texts(popped.messages)) == ("two", ["r", "b"])
    assert len(await revisions(room, key, 1)) == 1
    assert [bool(m.content) for m in await room.all_messages(key)] == [True, True, False, False]


@pytest.mark.parametrize("name", sorted(CHANGES))
async def test_no_window_of_before_a_change_is_shown_after_it(
    room: Memory,
    other_room: Memory,
    key: ThreadKey,
    raw_redis: redis.asyncio.Redis,
    sql: "asyncpg.Pool[Any]",
    name: str,
) -> None:
    """M7, M8: nor one that is put back by hand, as by a writer that was held up."""
    await room.append(key, "q", "old")
    names = (keys.thread_messages(key), keys.thread_head(key))
    before = [await raw_redis.dump(name) or b"" for name in names]
    await CHANGES[name](room, key)
    assert not await raw_redis.exists(keys.thread_messages(key))
    assert "old" not in texts((await other_room.read(key, level=ANY)).messages)
    for key_name, value in zip(names, before, strict=True):
        await raw_redis.restore(key_name, 3_600_000, value, replace=True)
    assert "old" not in texts((await other_room.read(key)).messages)
    await check_window(raw_redis, sql, key)


@pytest.mark.parametrize("name", sorted(CHANGES))
async def test_a_retry_of_the_append_brings_nothing_back(
    room: Memory, key: ThreadKey, raw_redis: redis.asyncio.Redis, sql: "asyncpg.Pool[Any]", name: str
) -> None:
    """M4, race 1: the retry holds the old payload."""
    await room.append(key, "q", "old", turn_id="t")
    await CHANGES[name](room, key)
    again = await room.append(key, "q", "old", turn_id="t")
    assert (again.duplicate, again.first_seq, again.last_seq) == (True, 1, 2)
    for level in (ReadLevel.READ_LEVEL_VERIFIED, ANY):
        assert "old" not in texts((await room.read(key, level=level)).messages)
    await check_window(raw_redis, sql, key)


async def test_a_redacted_text_is_nowhere_any_more(
    room: Memory, key: ThreadKey, raw_redis: redis.asyncio.Redis, sql: "asyncpg.Pool[Any]"
) -> None:
    word = f"secret{uuid.uuid4().hex}"
    call = ToolCall(id="c", type="function", name="f", arguments=word)
    request = AppendTurnRequest(workspace_id=key.workspace_id, thread_id=key.thread_id)
    request.messages.add(role=Role.ROLE_USER, content="q")
    request.messages.add(role=Role.ROLE_ASSISTANT, content=word, name=word, metadata={word: word}, tool_calls=[call])
    await room.conversations.AppendTurn(request, timeout=CALL_S)
    await edit(room, key, 2, f"{word} again", request_id="e")

    async def is_everywhere() -> bool:
        kept = {"memory.messages", "memory.message_revisions", "memory.search_entries", keys.thread_messages(key)}
        await room.read(key)
        return kept <= set(await places_of(sql, raw_redis, word))

    await until(is_everywhere)
    await redact(room, key, 2, replacement="(gone)", reason="asked for", request_id="r")
    await room.read(key)
    assert await places_of(sql, raw_redis, word) == []
    changed = await message(room, key, 2)
    assert (changed.content, changed.status, changed.revision, changed.name) == ("(gone)", REDACTED, 2, "")
    found = await revisions(room, key, 2)
    assert [(r.kind, r.HasField("former"), r.reason) for r in found] == [
        (RevisionKind.REVISION_KIND_EDIT, False, ""),
        (RevisionKind.REVISION_KIND_REDACT, False, "asked for"),
    ]
    async with refused(REFUSED, "REASON_MESSAGE_DELETED"):
        await edit(room, key, 2, "x")
    await redact(room, key, 2)
    assert not (await message(room, key, 2)).HasField("content")


async def test_what_was_deleted_or_taken_back_can_still_be_redacted(
    room: Memory, key: ThreadKey, raw_redis: redis.asyncio.Redis, sql: "asyncpg.Pool[Any]"
) -> None:
    word = f"secret{uuid.uuid4().hex}"
    await room.append(key, word)
    await room.append(key, word)
    await pop(room, key, request_id="p")
    await delete(room, key, 1)
    for seq in (1, 2):
        async with refused(REFUSED, "REASON_MESSAGE_DELETED"):
            await redact(room, key, seq, replacement="x")
        await redact(room, key, seq)
        assert (await message(room, key, seq)).status == DELETED
    assert await places_of(sql, raw_redis, word) == []
    assert (await pop(room, key, request_id="p")).messages == []


async def test_a_redacted_result_still_answers_its_call(room: Memory, key: ThreadKey) -> None:
    request = AppendTurnRequest(workspace_id=key.workspace_id, thread_id=key.thread_id)
    request.messages.add(role=Role.ROLE_USER, content="q")
    call = ToolCall(id="c", type="function", name="f")
    request.messages.add(role=Role.ROLE_ASSISTANT, tool_calls=[call])
    request.messages.add(role=Role.ROLE_TOOL, content="42", tool_call_id="c", name="f")
    await room.conversations.AppendTurn(request, timeout=CALL_S)
    await redact(room, key, 3)
    changed = await message(room, key, 3)
    assert (changed.role, changed.tool_call_id, changed.name) == (Role.ROLE_TOOL, "c", "")
    context = InvokingRequest(workspace_id=key.workspace_id, thread_id=key.thread_id)
    assert seqs((await room.contexts.Invoking(context, timeout=CALL_S)).messages) == [1, 2, 3]
    await delete(room, key, 3)
    assert seqs((await room.contexts.Invoking(context, timeout=CALL_S)).messages) == [1]  # M12: the call goes with it


async def test_a_deleted_message_keeps_its_place_and_contexts_leave_it_out(room: Memory, key: ThreadKey) -> None:
    await room.append(key, "q", "a")
    await room.append(key, "r", "b")
    await delete(room, key, 3, reason="a slip")
    window = await room.read(key)
    assert seqs(window.messages) == [1, 2, 3, 4]
    gone = window.messages[2]
    assert (gone.status, gone.HasField("content"), gone.role, gone.turn_index) == (DELETED, False, Role.ROLE_USER, 0)
    context = InvokingRequest(workspace_id=key.workspace_id, thread_id=key.thread_id)
    answer = await room.contexts.Invoking(context, timeout=CALL_S)
    assert seqs(answer.messages) == [1, 2, 4]
    assert answer.text == "Previous conversation:\nuser: q\nassistant: a\nassistant: b"
    async with refused(REFUSED, "REASON_MESSAGE_DELETED"):
        await delete(room, key, 3)
    async with refused(REFUSED, "REASON_MESSAGE_DELETED"):
        await edit(room, key, 3, "x")
    (revision,) = await revisions(room, key, 3)
    assert (revision.former.content, revision.kind, revision.reason) == ("r", RevisionKind.REVISION_KIND_DELETE, "a slip")


async def test_turns_are_taken_back_one_after_the_other_whole_and_never_twice(
    room: Memory, other_room: Memory, key: ThreadKey
) -> None:
    """M3: a turn goes as a whole."""
    for name in ("one", "two", "three"):
        await room.append(key, f"q-{name}", f"a-{name}", turn_id=name)
    await delete(room, key, 4)
    async with refused(ABORTED, "REASON_VERSION_MISMATCH"):
        await pop(room, key, expected_turn_id="two")
    popped = await pop(room, key, expected_turn_id="three", reason="wrong button")
    assert (popped.turn_id, texts(popped.messages), seqs(popped.messages)) == ("three", ["q-three", "a-three"], [5, 6])
    assert [m.status for m in (await room.read(key)).messages] == [0, 0, 0, DELETED, DELETED, DELETED]
    first, second = await asyncio.gather(pop(room, key), pop(other_room, key))
    assert {first.turn_id, second.turn_id} == {"one", "two"}
    assert sorted(texts([*first.messages, *second.messages])) == ["a-one", "q-one", "q-two"]
    async with refused(NOT_FOUND, "REASON_TURN_UNKNOWN"):
        await pop(room, key)
    assert (await room.append(key, "again")).first_seq == 7
    assert (await pop(room, key)).messages[0].seq == 7


async def test_revisions_say_who_changed_what_when_and_why(room: Memory, key: ThreadKey) -> None:
    await room.append(key, "one")
    for index in range(5):
        request = EditMessageRequest(
            workspace_id=key.workspace_id,
            thread_id=key.thread_id,
            seq=1,
            content=NewContent(text=f"edit {index}"),
            reason=f"because {index}",
        )
        await room.revisions.EditMessage(request, timeout=CALL_S, metadata=((ACTOR_KEY, f"editor-{index}"),))
    found = await revisions(room, key, 1, page_size=2)
    assert [revision.revision for revision in found] == [1, 2, 3, 4, 5]
    assert [revision.actor for revision in found] == [f"editor-{index}" for index in range(5)]
    assert [revision.reason for revision in found] == [f"because {index}" for index in range(5)]
    assert [revision.former.content for revision in found] == ["one", *(f"edit {index}" for index in range(4))]
    assert all(revision.former.seq == 1 and revision.create_time.seconds for revision in found)


async def test_a_page_token_that_somebody_made_is_refused(room: Memory, key: ThreadKey) -> None:
    await room.append(key, "q")
    query = ("ListRevisions", *key, 1, None)
    request = ListRevisionsRequest(workspace_id=key.workspace_id, thread_id=key.thread_id, seq=1)
    for number in (2**31, 2**62):
        request.page_token = fields.page_token(query, [number])
        async with refused(grpc.StatusCode.INVALID_ARGUMENT, "REASON_INVALID_PAGE_TOKEN"):
            await room.revisions.ListRevisions(request, timeout=CALL_S)


async def test_large_revisions_come_in_pages_that_fit_an_answer(room: Memory, key: ThreadKey) -> None:
    await room.append(key, "first")
    large = "x" * (1024 * 1024)
    for index in range(5):
        await edit(room, key, 1, f"{index}{large[1:]}")
    assert [revision.former.content[:1] for revision in await revisions(room, key, 1)] == ["f", "0", "1", "2", "3"]


async def test_an_edit_cannot_make_a_turn_larger_than_a_turn_may_be(room: Memory, key: ThreadKey) -> None:
    large = "x" * (1024 * 1024 - 100)
    await room.append(key, large, large, large, "small")
    async with refused(grpc.StatusCode.INVALID_ARGUMENT, "REASON_INVALID_FIELD"):
        await edit(room, key, 4, "y" * 1000)
    await edit(room, key, 4, "y" * 200)
    await edit(room, key, 1, "shorter")
    await edit(room, key, 4, "y" * 1000)


async def test_a_message_is_edited_so_often_and_not_more_and_can_still_be_redacted(
    room: Memory, key: ThreadKey, sql: "asyncpg.Pool[Any]"
) -> None:
    await room.append(key, "q")
    await sql.execute("UPDATE memory.messages SET revision = 999 WHERE workspace_id = $1 AND thread_id = $2", *key)
    await edit(room, key, 1, "x")
    async with refused(grpc.StatusCode.RESOURCE_EXHAUSTED, "REASON_TOO_MANY"):
        await edit(room, key, 1, "y")
    await redact(room, key, 1)
    await delete(room, key, 1)


async def test_a_message_that_is_not_there_cannot_be_changed_nor_one_of_somebody_else(room: Memory, key: ThreadKey) -> None:
    async with refused(NOT_FOUND, "REASON_CONVERSATION_UNKNOWN"):
        await edit(room, key, 1, "x")
    await room.append(key, "q", user_id="ada")
    for seq in (2, 2**53):
        async with refused(NOT_FOUND, "REASON_MESSAGE_UNKNOWN"):
            await edit(room, key, seq, "x")
        async with refused(NOT_FOUND, "REASON_MESSAGE_UNKNOWN"):
            await message(room, key, seq)
        async with refused(NOT_FOUND, "REASON_MESSAGE_UNKNOWN"):
            await revisions(room, key, seq)
    for call in (edit(room, key, 1, "x", user_id="bob"), redact(room, key, 1, user_id="bob"), pop(room, key, user_id="bob")):
        async with refused(NOT_FOUND, "REASON_CONVERSATION_UNKNOWN"):
            await call
    await edit(room, key, 1, "mine", user_id="ada")
    await hide(room, key)
    async with refused(NOT_FOUND, "REASON_CONVERSATION_UNKNOWN"):
        await edit(room, key, 1, "x")


async def test_a_hidden_conversation_comes_back_as_it_was_and_its_old_windows_do_not(
    room: Memory, other_room: Memory, key: ThreadKey, raw_redis: redis.asyncio.Redis, sql: "asyncpg.Pool[Any]"
) -> None:
    await room.append(key, "q", "a", turn_id="t")
    token = (await room.read(key)).thread_token
    assert (await show(room, key)).message_count == 2  # nothing to do
    names = (keys.thread_messages(key), keys.thread_head(key))
    before = [await raw_redis.dump(name) or b"" for name in names]
    await hide(room, key)
    shown = await show(room, key, request_id="u")
    assert await show(room, key, request_id="u") == shown
    query = "SELECT epoch FROM memory.conversations WHERE workspace_id = $1 AND thread_id = $2"
    assert await sql.fetchval(query, *key) == 3
    await edit(room, key, 2, "A")
    for name, value in zip(names, before, strict=True):
        await raw_redis.restore(name, 3_600_000, value, replace=True)
    for worker in (room, other_room):
        assert texts((await worker.read(key)).messages) == ["q", "A"]
        assert texts((await worker.read(key, token=token)).messages) == ["q", "A"]
    assert (await room.append(key, "q", "a", turn_id="t")).duplicate
    assert (await room.append(key, "r")).first_seq == 3
    await check_window(raw_redis, sql, key)
    async with refused(NOT_FOUND, "REASON_CONVERSATION_UNKNOWN"):
        await show(room, ThreadKey(key.workspace_id, "nobody"))


async def test_a_change_whose_caller_has_gone_still_comes_to_its_end(
    room: Memory, key: ThreadKey, sql: "asyncpg.Pool[Any]"
) -> None:
    """It is cancelled while it waits for the thread, which somebody else holds."""
    await room.append(key, "old")
    waiting = "SELECT count(*) > 0 FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND query LIKE '%d.ancestors @>%'"

    async def is_waiting() -> bool:
        return bool(await sql.fetchval(waiting))

    async def is_changed() -> bool:
        return texts((await room.read(key, level=ANY)).messages) == ["new"]

    async with sql.acquire() as connection, connection.transaction():
        await connection.execute(
            "SELECT FROM memory.conversations WHERE workspace_id = $1 AND thread_id = $2 FOR UPDATE", *key
        )
        call = asyncio.ensure_future(edit(room, key, 1, "new"))
        await until(is_waiting)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
    await until(is_changed)


async def test_a_change_stands_in_the_event_log_without_what_was_said(room: Memory, key: ThreadKey) -> None:
    await room.append(key, "secret", turn_id="t")
    await edit(room, key, 1, "secret too")
    await delete(room, key, 1)
    await pop(room, key)
    await hide(room, key)
    await show(room, key)
    request = ListEventsRequest(workspace_id=key.workspace_id, thread_id=key.thread_id)
    events = (await room.events.ListEvents(request, timeout=CALL_S)).events
    assert [event.kind for event in events] == [
        "message.edited",
        "message.deleted",
        "turn.popped",
        "conversation.deleted",
        "conversation.undeleted",
    ]
    assert all(event.by_service and "secret" not in event.payload for event in events)


async def test_changes_and_appends_at_once_leave_numbers_without_gaps(
    room: Memory, other_room: Memory, key: ThreadKey, raw_redis: redis.asyncio.Redis, sql: "asyncpg.Pool[Any]"
) -> None:
    """M1, M3, M7 while everybody writes."""
    for index in range(13):  # one more than is taken back: the first is edited however late the others come
        await room.append(key, f"{index}", f"{index}")

    async def writes(worker: Memory, name: str) -> None:
        for index in range(10):
            call = partial(worker.append, key, f"{name}{index}", f"{name}{index}", turn_id=f"{name}{index}")
            await insisting(call)

    async def changes(worker: Memory, name: str) -> None:
        for index in range(6):
            await insisting(partial(edit, worker, key, 1 + index % 2, f"{name}{index}"))
            await insisting(partial(pop, worker, key))
            await check_window(raw_redis, sql, key)

    await asyncio.gather(writes(room, "a"), writes(other_room, "b"), changes(room, "x"), changes(other_room, "y"))
    stored = await room.all_messages(key)
    assert seqs(stored) == list(range(1, 67))
    for first, second in zip(stored[::2], stored[1::2], strict=True):
        assert (first.turn_id, first.status, first.turn_index, second.turn_index) == (second.turn_id, second.status, 0, 1)
    assert sum(m.status == DELETED for m in stored) == 24
    await check_window(raw_redis, sql, key)
