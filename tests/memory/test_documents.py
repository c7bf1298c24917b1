"""Documents linked to a conversation."""

import asyncio

import grpc

from tests.memory.rooms import CALL_S, Memory, refused
from twofold.memory.v1.conversation_pb2 import DeleteConversationRequest
from twofold.memory.v1.document_pb2 import Document, LinkDocumentRequest, ListDocumentsRequest, UnlinkDocumentRequest
from twofold_memory.threads import ThreadKey


async def link(
    room: Memory,
    key: ThreadKey,
    document_id: str,
    title: str = "",
    *,
    user_id: str = "",
    request_id: str = "",
    large: int = 0,
) -> Document:
    document = Document(
        document_id=document_id,
        title=title,
        url="s3://papers/1",
        media_type="text/markdown",
        metadata={f"k{index}": "v" * 1000 for index in range(large)},
    )
    request = LinkDocumentRequest(
        workspace_id=key.workspace_id, thread_id=key.thread_id, user_id=user_id, document=document, request_id=request_id
    )
    return (await room.documents.LinkDocument(request, timeout=CALL_S)).document


async def unlink(room: Memory, key: ThreadKey, document_id: str) -> None:
    request = UnlinkDocumentRequest(workspace_id=key.workspace_id, thread_id=key.thread_id, document_id=document_id)
    await room.documents.UnlinkDocument(request, timeout=CALL_S)


async def linked(room: Memory, key: ThreadKey, *, user_id: str = "", page_size: int = 0) -> list[Document]:
    """All pages."""
    request = ListDocumentsRequest(
        workspace_id=key.workspace_id, thread_id=key.thread_id, user_id=user_id, page_size=page_size
    )
    found: list[Document] = []
    while True:
        page = await room.documents.ListDocuments(request, timeout=CALL_S)
        found += page.documents
        if not page.next_page_token:
            return found
        request.page_token = page.next_page_token


async def test_documents_are_linked_replaced_and_unlinked(room: Memory, key: ThreadKey) -> None:
    await room.append(key, "hello")
    first = await link(room, key, "b", "Old title")
    await link(room, key, "a", "Another")
    replaced = await link(room, key, "b", "New title", large=1)
    assert (replaced.create_time, replaced.title) == (first.create_time, "New title")
    found = await linked(room, key)
    assert [(document.document_id, document.title) for document in found] == [("a", "Another"), ("b", "New title")]
    assert (found[1].url, found[1].media_type, dict(found[1].metadata)) == (
        "s3://papers/1",
        "text/markdown",
        {"k0": "v" * 1000},
    )
    await unlink(room, key, "a")
    await unlink(room, key, "a")
    assert [document.document_id for document in await linked(room, key)] == ["b"]


async def test_a_repeat_gets_the_first_answer_and_changes_nothing(room: Memory, key: ThreadKey) -> None:
    await room.append(key, "hello")
    first = await link(room, key, "a", "One", request_id=f"{key.thread_id}/1")
    await link(room, key, "a", "Two")
    assert await link(room, key, "a", "One", request_id=f"{key.thread_id}/1") == first
    assert [document.title for document in await linked(room, key)] == ["Two"]


async def test_a_conversation_has_a_hundred_documents_at_most_also_when_they_come_at_once(
    room: Memory, other_room: Memory, key: ThreadKey
) -> None:
    await room.append(key, "hello")
    for begin in range(0, 96, 8):
        await asyncio.gather(*(link(room, key, f"{index:03}", large=32) for index in range(begin, begin + 8)))
    many = await asyncio.gather(
        *(link((room, other_room)[index % 2], key, f"x{index}") for index in range(8)), return_exceptions=True
    )
    assert sum(isinstance(answer, Document) for answer in many) == 4
    assert (await link(room, key, "000", "replaced")).title == "replaced"
    async with refused(grpc.StatusCode.RESOURCE_EXHAUSTED, "REASON_TOO_MANY"):
        await link(room, key, "one too many")
    for page_size in (0, 7, 500):  # more than fits one answer
        found = await linked(room, key, page_size=page_size)
        assert len({document.document_id for document in found}) == len(found) == 100


async def test_documents_belong_to_conversations_that_are_there_and_to_their_users(room: Memory, key: ThreadKey) -> None:
    async with refused(grpc.StatusCode.NOT_FOUND, "REASON_CONVERSATION_UNKNOWN"):
        await link(room, key, "a")
    await room.append(key, "hello", user_id="ada")
    await link(room, key, "a", user_id="ada")
    for foreign in (lambda: link(room, key, "b", user_id="grace"), lambda: linked(room, key, user_id="grace")):
        async with refused(grpc.StatusCode.NOT_FOUND, "REASON_CONVERSATION_UNKNOWN"):
            await foreign()
    await room.conversations.DeleteConversation(
        DeleteConversationRequest(workspace_id=key.workspace_id, thread_id=key.thread_id), timeout=CALL_S
    )
    for gone in (lambda: link(room, key, "b"), lambda: linked(room, key), lambda: unlink(room, key, "a")):
        async with refused(grpc.StatusCode.NOT_FOUND, "REASON_CONVERSATION_UNKNOWN"):
            await gone()
