"""Conversations: made, found, listed, changed, hidden."""

import asyncio
from typing import Any

import asyncpg
import grpc
import redis.asyncio
from google.protobuf.field_mask_pb2 import FieldMask

from tests.memory.rooms import CALL_S, Memory, refused, seqs, thread
from tests.waiting import until
from twofold.memory.v1.context_pb2 import InvokingRequest
from twofold.memory.v1.conversation_pb2 import (
    Conversation,
    CreateConversationRequest,
    DeleteConversationRequest,
    GetConversationRequest,
    GetTurnRequest,
    ListConversationsRequest,
    ListMessagesRequest,
    ReadWindowRequest,
    UpdateConversationRequest,
)
from twofold.memory.v1.message_pb2 import ReadLevel
from twofold_memory import keys
from twofold_memory.threads import ThreadKey

NOT_FOUND = grpc.StatusCode.NOT_FOUND
UNKNOWN = "REASON_CONVERSATION_UNKNOWN"


async def create(room: Memory, request_id: str = "", **values: str) -> Conversation:
    request = CreateConversationRequest(conversation=Conversation(**values), request_id=request_id)  # type: ignore[arg-type]
    return (await room.conversations.CreateConversation(request, timeout=CALL_S)).conversation


async def get(room: Memory, key: ThreadKey) -> Conversation:
    request = GetConversationRequest(workspace_id=key.workspace_id, thread_id=key.thread_id)
    return (await room.conversations.GetConversation(request, timeout=CALL_S)).conversation


async def listed(room: Memory, workspace_id: str, *, user_id: str = "", page_size: int = 3) -> list[str]:
    request = ListConversationsRequest(workspace_id=workspace_id, user_id=user_id, page_size=page_size)
    found: list[str] = []
    while True:
        page = await room.conversations.ListConversations(request, timeout=CALL_S)
        found += [conversation.thread_id for conversation in page.conversations]
        if not page.next_page_token:
            return found
        request.page_token = page.next_page_token


async def test_ids_are_the_callers_or_made_here_and_a_repeat_makes_no_second(room: Memory, workspace_id: str) -> None:
    made = await create(room, "r", workspace_id=workspace_id, title="Ein Titel 🙂")
    assert made.thread_id
    assert await create(room, "r", workspace_id=workspace_id, title="Ein Titel 🙂") == made
    async with refused(grpc.StatusCode.ALREADY_EXISTS, "REASON_REQUEST_REUSED"):
        await create(room, "r", workspace_id=workspace_id, title="another")
    await create(room, workspace_id=workspace_id, thread_id="mine")
    async with refused(grpc.StatusCode.ALREADY_EXISTS, "REASON_CONVERSATION_EXISTS"):
        await create(room, workspace_id=workspace_id, thread_id="mine")
    assert sorted(await listed(room, workspace_id)) == sorted([made.thread_id, "mine"])


async def test_two_first_messages_at_once_make_one_conversation(room: Memory, other_room: Memory, key: ThreadKey) -> None:
    """The textbook gets, then creates, and loses one."""
    calls = [(room, other_room)[index % 2].append(key, f"{index}", user_id="ada") for index in range(8)]
    await asyncio.gather(*calls)
    conversation = await get(room, key)
    assert (conversation.user_id, conversation.message_count) == ("ada", 8)


async def test_the_list_has_the_newest_change_first_and_loses_none_while_it_is_written_to(
    room: Memory, workspace_id: str
) -> None:
    for index in range(7):
        await create(room, workspace_id=workspace_id, thread_id=f"t{index}", user_id="ada" if index % 2 else "bob")
    changed = Conversation(workspace_id=workspace_id, thread_id="t2", title="now")
    update = UpdateConversationRequest(conversation=changed, update_mask=FieldMask(paths=["title"]))
    await room.conversations.UpdateConversation(update, timeout=CALL_S)
    order = ["t2", "t6", "t5", "t4", "t3", "t1", "t0"]
    assert await listed(room, workspace_id) == order
    assert await listed(room, workspace_id, user_id="ada") == ["t5", "t3", "t1"]
    request = ListConversationsRequest(workspace_id=workspace_id, page_size=2)
    seen = []
    for _ in range(20):
        page = await room.conversations.ListConversations(request, timeout=CALL_S)
        seen += [conversation.thread_id for conversation in page.conversations]
        update.conversation.thread_id = "t0"
        await room.conversations.UpdateConversation(update, timeout=CALL_S)
        if not page.next_page_token:
            break
        request.page_token = page.next_page_token
    assert set(seen) | {"t0"} == set(order)
    assert [name for name in seen if name != "t0"] == order[:-1]
    request.user_id = "ada"
    async with refused(grpc.StatusCode.INVALID_ARGUMENT, "REASON_INVALID_PAGE_TOKEN"):
        await room.conversations.ListConversations(request, timeout=CALL_S)


async def test_an_update_changes_what_its_mask_names_if_the_etag_is_current(room: Memory, workspace_id: str) -> None:
    made = await create(room, workspace_id=workspace_id, thread_id="t", title="old")
    made.metadata["label"] = "x"
    made.title = "new"
    request = UpdateConversationRequest(conversation=made, update_mask=FieldMask(paths=["metadata"]), request_id="r")
    changed = (await room.conversations.UpdateConversation(request, timeout=CALL_S)).conversation
    assert (changed.title, dict(changed.metadata)) == ("old", {"label": "x"})
    assert (await room.conversations.UpdateConversation(request, timeout=CALL_S)).conversation == changed
    request.request_id = ""
    async with refused(grpc.StatusCode.ABORTED, "REASON_ETAG_MISMATCH"):
        await room.conversations.UpdateConversation(request, timeout=CALL_S)
    await room.append(ThreadKey(workspace_id, "t"), "q")
    assert (await get(room, ThreadKey(workspace_id, "t"))).etag == changed.etag  # appends do not change it
    request.conversation.etag = changed.etag
    request.update_mask.paths[:] = ["title", "metadata"]
    request.conversation.metadata.clear()
    again = (await room.conversations.UpdateConversation(request, timeout=CALL_S)).conversation
    assert (again.title, dict(again.metadata), again.message_count) == ("new", {}, 1)


async def test_of_updates_with_one_etag_at_once_exactly_one_succeeds(room: Memory, workspace_id: str) -> None:
    made = await create(room, workspace_id=workspace_id, thread_id="t")
    request = UpdateConversationRequest(conversation=made, update_mask=FieldMask(paths=["title"]))
    calls = [room.conversations.UpdateConversation(request, timeout=CALL_S) for _ in range(8)]
    results = await asyncio.gather(*calls, return_exceptions=True)
    assert sum(not isinstance(result, BaseException) for result in results) == 1


async def test_a_deleted_conversation_is_hidden_from_every_read_and_takes_nothing_more(
    room: Memory, other_room: Memory, key: ThreadKey, raw_redis: redis.asyncio.Redis
) -> None:
    answer = await room.append(key, "q", "a", turn_id="t")
    request = DeleteConversationRequest(workspace_id=key.workspace_id, thread_id=key.thread_id, etag="wrong")
    async with refused(grpc.StatusCode.ABORTED, "REASON_ETAG_MISMATCH"):
        await room.conversations.DeleteConversation(request, timeout=CALL_S)
    request.etag, request.request_id = (await get(room, key)).etag, "r"
    await room.conversations.DeleteConversation(request, timeout=CALL_S)
    assert not await raw_redis.exists(keys.thread_messages(key))
    for worker in (room, other_room):
        for level in (ReadLevel.READ_LEVEL_VERIFIED, ReadLevel.READ_LEVEL_ANY):
            async with refused(NOT_FOUND, UNKNOWN):
                await worker.read(key, level=level)
        async with refused(NOT_FOUND, UNKNOWN):
            await worker.read(key, token=answer.thread_token)
        async with refused(NOT_FOUND, UNKNOWN):
            await worker.all_messages(key)
        async with refused(NOT_FOUND, UNKNOWN):
            await get(worker, key)
        async with refused(NOT_FOUND, UNKNOWN):
            await worker.conversations.GetTurn(
                GetTurnRequest(workspace_id=key.workspace_id, thread_id=key.thread_id, turn_id="t"), timeout=CALL_S
            )
        for turn_id in ("new", "t"):
            async with refused(grpc.StatusCode.FAILED_PRECONDITION, "REASON_CONVERSATION_DELETED"):
                await worker.append(key, "q", "a", turn_id=turn_id)
    assert key.thread_id not in await listed(room, key.workspace_id)
    await room.conversations.DeleteConversation(request, timeout=CALL_S)  # a repeat
    request.request_id = ""
    async with refused(NOT_FOUND, UNKNOWN):
        await room.conversations.DeleteConversation(request, timeout=CALL_S)


async def test_a_repeated_deletion_drops_a_window_that_the_first_did_not_reach(
    room: Memory, key: ThreadKey, raw_redis: redis.asyncio.Redis
) -> None:
    await room.append(key, "secret")
    names = (keys.thread_messages(key), keys.thread_head(key))
    old = [await raw_redis.dump(name) or b"" for name in names]
    request = DeleteConversationRequest(workspace_id=key.workspace_id, thread_id=key.thread_id, request_id="r")
    await room.conversations.DeleteConversation(request, timeout=CALL_S)
    for name, value in zip(names, old, strict=True):
        await raw_redis.restore(name, 3_600_000, value, replace=True)
    await room.conversations.DeleteConversation(request, timeout=CALL_S)
    async with refused(NOT_FOUND, UNKNOWN):
        await room.read(key, level=ReadLevel.READ_LEVEL_ANY)


async def test_an_old_window_of_a_deleted_conversation_is_not_believed_and_is_dropped_when_it_is_met(
    room: Memory, key: ThreadKey, raw_redis: redis.asyncio.Redis
) -> None:
    """M8: the epoch has risen."""
    await room.append(key, "secret")
    names = (keys.thread_messages(key), keys.thread_head(key))
    old = [await raw_redis.dump(name) or b"" for name in names]
    request = DeleteConversationRequest(workspace_id=key.workspace_id, thread_id=key.thread_id)
    await room.conversations.DeleteConversation(request, timeout=CALL_S)
    for name, value in zip(names, old, strict=True):
        await raw_redis.restore(name, 3_600_000, value, replace=True)
    async with refused(NOT_FOUND, UNKNOWN):
        await room.read(key)

    async def is_dropped() -> bool:
        return not await raw_redis.exists(keys.thread_messages(key))

    await until(is_dropped)


async def test_another_users_conversation_is_answered_as_one_that_does_not_exist(room: Memory, workspace_id: str) -> None:
    key = thread(workspace_id)
    await room.append(key, "secret", user_id="ada")
    window = ReadWindowRequest(workspace_id=workspace_id, thread_id=key.thread_id, user_id="bob")
    context = InvokingRequest(workspace_id=workspace_id, thread_id=key.thread_id, user_id="bob")
    for level in (ReadLevel.READ_LEVEL_VERIFIED, ReadLevel.READ_LEVEL_ANY):
        window.read_level = context.read_level = level
        async with refused(NOT_FOUND, UNKNOWN) as foreign:
            await room.conversations.ReadWindow(window, timeout=CALL_S)
        assert "secret" not in str(foreign.value)
        async with refused(NOT_FOUND, UNKNOWN):
            await room.contexts.Invoking(context, timeout=CALL_S)
    async with refused(NOT_FOUND, UNKNOWN):
        await room.append(key, "forged", user_id="bob")
    window.user_id = "ada"
    assert seqs((await room.conversations.ReadWindow(window, timeout=CALL_S)).messages) == [1]


async def test_pages_of_messages_go_both_ways_and_are_bound_to_their_query(room: Memory, key: ThreadKey) -> None:
    await asyncio.gather(*(room.append(key, f"{index}") for index in range(11)))
    request = ListMessagesRequest(workspace_id=key.workspace_id, thread_id=key.thread_id, newest_first=True, page_size=4)
    pages = []
    while True:
        page = await room.conversations.ListMessages(request, timeout=CALL_S)
        pages.append(seqs(page.messages))
        if not page.next_page_token:
            break
        request.page_token = page.next_page_token
    assert pages == [[11, 10, 9, 8], [7, 6, 5, 4], [3, 2, 1]]
    assert seqs(await room.all_messages(key, page_size=3)) == list(range(1, 12))
    request.newest_first = False
    async with refused(grpc.StatusCode.INVALID_ARGUMENT, "REASON_INVALID_PAGE_TOKEN"):
        await room.conversations.ListMessages(request, timeout=CALL_S)


async def test_lists_are_filtered_by_labels_time_and_user_together(
    room: Memory, workspace_id: str, sql: "asyncpg.Pool[Any]"
) -> None:
    async def make(thread_id: str, user_id: str, **labels: str) -> None:
        made = Conversation(workspace_id=workspace_id, thread_id=thread_id, user_id=user_id, metadata=labels)
        await room.conversations.CreateConversation(CreateConversationRequest(conversation=made), timeout=CALL_S)

    await make("t0", "ada", channel="web", lang="de")
    await make("t1", "ada", channel="web")
    await make("t2", "bob", channel="web", lang="de")
    await make("t3", "ada", channel="webb", lang="de", a='"quoted", \\ and {braces}')
    await make("t4", "ada")

    async def found(**asked: Any) -> list[str]:
        request = ListConversationsRequest(workspace_id=workspace_id, page_size=1, **asked)
        names: list[str] = []
        while True:
            page = await room.conversations.ListConversations(request, timeout=CALL_S)
            names += [conversation.thread_id for conversation in page.conversations]
            if not page.next_page_token:
                return names
            request.page_token = page.next_page_token

    assert await found(metadata={"channel": "web"}) == ["t2", "t1", "t0"]
    assert await found(metadata={"channel": "web", "lang": "de"}) == ["t2", "t0"]
    assert await found(metadata={"channel": "web", "lang": "de"}, user_id="ada") == ["t0"]
    assert await found(metadata={"a": '"quoted", \\ and {braces}'}) == ["t3"]
    assert await found(metadata={"channel": "we"}) == []
    assert await found(user_id="ada") == ["t4", "t3", "t1", "t0"]
    changed = (await get(room, ThreadKey(workspace_id, "t1"))).update_time
    later = (await get(room, ThreadKey(workspace_id, "t3"))).update_time
    assert await found(updated_from=changed) == ["t4", "t3", "t2", "t1"]
    assert await found(updated_before=later) == ["t2", "t1", "t0"]
    assert await found(updated_from=changed, updated_before=later, user_id="ada") == ["t1"]
    assert await found(updated_from=changed, metadata={"lang": "de"}) == ["t3", "t2"]
    # An append changes the time, and the place in the list only after a minute: the filter goes by the time.
    await room.append(ThreadKey(workspace_id, "t0"), "q")
    changed = (await get(room, ThreadKey(workspace_id, "t0"))).update_time
    assert await found(updated_from=changed) == ["t0"]
    await sql.execute(
        "UPDATE memory.conversations SET metadata = '{}' WHERE workspace_id = $1 AND thread_id = 't2'", workspace_id
    )
    assert await found(metadata={"lang": "de"}) == ["t3", "t0"]


async def test_a_label_of_another_workspace_finds_nothing_here(room: Memory, workspace_id: str) -> None:
    for workspace in (workspace_id, f"{workspace_id}x"):
        made = Conversation(workspace_id=workspace, thread_id="t", metadata={"channel": "web"})
        await room.conversations.CreateConversation(CreateConversationRequest(conversation=made), timeout=CALL_S)
    request = ListConversationsRequest(workspace_id=workspace_id, metadata={"channel": "web"})
    answer = await room.conversations.ListConversations(request, timeout=CALL_S)
    assert [conversation.workspace_id for conversation in answer.conversations] == [workspace_id]
