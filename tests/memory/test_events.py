"""The event log of a conversation: numbered without gaps in order of commit, resumable, and not to be forged."""

import asyncio
from collections.abc import Sequence
from typing import Any

import asyncpg
import grpc

from tests.memory.rooms import CALL_S, Memory, refused, thread
from twofold.memory.v1.conversation_pb2 import DeleteConversationRequest
from twofold.memory.v1.event_pb2 import (
    AppendEventsRequest,
    AppendEventsResponse,
    Event,
    ListEventsRequest,
    ListEventsResponse,
)
from twofold_memory.store import events as store
from twofold_memory.threads import ThreadKey


async def append(
    room: Memory, key: ThreadKey, *kinds: str, payload: str = "{}", request_id: str = "", user_id: str = ""
) -> AppendEventsResponse:
    request = AppendEventsRequest(
        workspace_id=key.workspace_id,
        thread_id=key.thread_id,
        user_id=user_id,
        events=[Event(kind=kind, payload=payload) for kind in kinds],
        request_id=request_id,
    )
    return await room.events.AppendEvents(request, timeout=CALL_S)


async def listed(
    room: Memory, key: ThreadKey, *, after: int = 0, kind: str = "", size: int = 0, page_token: str = "", user_id: str = ""
) -> ListEventsResponse:
    request = ListEventsRequest(
        workspace_id=key.workspace_id,
        thread_id=key.thread_id,
        user_id=user_id,
        after_offset=after,
        kind=kind,
        page_size=size,
        page_token=page_token,
    )
    return await room.events.ListEvents(request, timeout=CALL_S)


async def all_of(room: Memory, key: ThreadKey, *, after: int = 0, kind: str = "", size: int = 7) -> list[Event]:
    found: list[Event] = []
    page = await listed(room, key, after=after, kind=kind, size=size)
    while True:
        found += page.events
        if not page.next_page_token:
            return found
        page = await listed(room, key, after=after, kind=kind, size=size, page_token=page.next_page_token)


def offsets(events: Sequence[Event]) -> list[int]:
    return [event.offset for event in events]


async def test_many_writers_get_consecutive_offsets_without_gaps(room: Memory, other_room: Memory, key: ThreadKey) -> None:
    """M2, for events."""
    await room.append(key, "q")
    answers = await asyncio.gather(
        *(append((room, other_room)[index % 2], key, *[f"kind-{index}"] * (index % 4 + 1)) for index in range(24))
    )
    found = await all_of(room, key)
    assert offsets(found) == list(range(1, len(found) + 1))
    for index, answer in enumerate(answers):
        own = [event.offset for event in found if event.kind == f"kind-{index}"]
        assert own == list(range(answer.first_offset, answer.last_offset + 1))


async def test_a_follower_misses_and_doubles_nothing_whatever_is_written_meanwhile(
    room: Memory, other_room: Memory, key: ThreadKey
) -> None:
    await room.append(key, "q")
    seen: list[int] = []

    async def follow() -> None:
        through = 0
        while len(seen) < 60:
            page = await listed(other_room, key, after=through, size=5)
            seen.extend(offsets(page.events))
            through = page.through_offset

    async with asyncio.timeout(CALL_S):
        await asyncio.gather(follow(), *(append(room, key, "a", "b", "c") for _ in range(20)))
    assert seen == list(range(1, 61))


async def test_a_kind_can_be_followed_and_the_offset_tells_up_to_where(room: Memory, key: ThreadKey) -> None:
    await room.append(key, "q")
    assert (await listed(room, key)).through_offset == 0
    await append(room, key, "a", "b", "a", "b", "b", "b")
    page = await listed(room, key, kind="a")
    assert (offsets(page.events), page.through_offset) == ([1, 3], 6)
    page = await listed(room, key, kind="b", size=2)
    assert (offsets(page.events), page.through_offset) == ([2, 4], 4)
    assert offsets(await all_of(room, key, kind="b", after=2, size=2)) == [4, 5, 6]
    assert not (await listed(room, key, after=6)).events


async def test_what_was_written_comes_back_byte_for_byte_and_a_page_is_bounded(room: Memory, key: ThreadKey) -> None:
    """M17."""
    await room.append(key, "q")
    payload = '{"text": "🙂\\n\u202eassistant:"}\r\n' + "x" * 65_000
    for _ in range(2):
        await append(room, key, *["large"] * 40, payload=payload)
    page = await listed(room, key, size=500)
    assert page.next_page_token
    assert page.ByteSize() < 3.5 * 1024 * 1024
    found = await all_of(room, key, size=500)
    assert {event.payload for event in found} == {payload}
    assert offsets(found) == list(range(1, 81))


async def test_a_repeat_writes_nothing_and_gets_the_same_offsets(room: Memory, other_room: Memory, key: ThreadKey) -> None:
    await room.append(key, "q")
    first, again = await asyncio.gather(
        append(room, key, "a", "b", request_id="r"), append(other_room, key, "a", "b", request_id="r")
    )
    assert first == again
    assert await append(room, key, "a", "b", request_id="r") == first
    assert offsets(await all_of(room, key)) == [1, 2]
    async with refused(grpc.StatusCode.ALREADY_EXISTS, "REASON_REQUEST_REUSED"):
        await append(room, key, "a", request_id="r")


async def test_a_conversation_that_is_not_there_or_not_ones_own_has_no_log(room: Memory, workspace_id: str) -> None:
    missing, foreign, deleted = thread(workspace_id), thread(workspace_id), thread(workspace_id)
    await room.append(foreign, "q", user_id="ada")
    await room.append(deleted, "q", user_id="bob")
    await append(room, deleted, "a", user_id="bob")
    await room.conversations.DeleteConversation(
        DeleteConversationRequest(workspace_id=workspace_id, thread_id=deleted.thread_id), timeout=CALL_S
    )
    for key in (missing, foreign, deleted):
        async with refused(grpc.StatusCode.NOT_FOUND, "REASON_CONVERSATION_UNKNOWN"):
            await append(room, key, "a", user_id="bob")
        async with refused(grpc.StatusCode.NOT_FOUND, "REASON_CONVERSATION_UNKNOWN"):
            await listed(room, key, user_id="bob")


async def test_an_event_of_the_service_is_committed_with_its_change_or_not_at_all(
    room: Memory, key: ThreadKey, sql: "asyncpg.Pool[Any]"
) -> None:
    await room.append(key, "q")
    await append(room, key, "mine")
    async with sql.acquire() as connection:
        async with connection.transaction():
            assert await store.record(connection, key, "conversation.edited", {"seq": 1}) == 2
        fails = connection.transaction()
        await fails.start()
        assert await store.record(connection, key, "conversation.edited", {"seq": 2}) == 3
        await fails.rollback()
    assert (await append(room, key, "conversation.edited")).first_offset == 3
    found = await all_of(room, key)
    assert [(event.kind, event.payload, event.by_service) for event in found] == [
        ("mine", "{}", False),
        ("conversation.edited", '{"seq": 1}', True),
        ("conversation.edited", "{}", False),
    ]
