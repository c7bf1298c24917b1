"""Changing what was said, as a client does, and looking at what is left of it."""

from collections.abc import Awaitable, Callable, Sequence
from typing import Any, TypeVar

import asyncpg
import grpc
import redis.asyncio
from google.rpc import error_details_pb2
from grpc_status import rpc_status

from tests.memory.rooms import CALL_S, Memory, reason
from twofold.memory.v1.branch_pb2 import ForkConversationRequest, ListBranchesRequest
from twofold.memory.v1.conversation_pb2 import (
    Conversation,
    DeleteConversationRequest,
    GetMessageRequest,
    UndeleteConversationRequest,
)
from twofold.memory.v1.message_pb2 import Message
from twofold.memory.v1.revision_pb2 import (
    DeleteMessageRequest,
    EditMessageRequest,
    EditMessageResponse,
    ListRevisionsRequest,
    NewContent,
    PopTurnRequest,
    PopTurnResponse,
    RedactMessageRequest,
    RedactMessageResponse,
    Revision,
)
from twofold_memory.threads import ThreadKey

Answer = TypeVar("Answer")
TABLES = ("conversations", "messages", "turns", "message_revisions", "window_purges", "requests", "events")


async def edit(room: Memory, key: ThreadKey, seq: int, text: str, **values: Any) -> EditMessageResponse:
    request = EditMessageRequest(
        workspace_id=key.workspace_id, thread_id=key.thread_id, seq=seq, content=NewContent(text=text), **values
    )
    return await room.revisions.EditMessage(request, timeout=CALL_S)


async def redact(room: Memory, key: ThreadKey, seq: int, **values: Any) -> RedactMessageResponse:
    request = RedactMessageRequest(workspace_id=key.workspace_id, thread_id=key.thread_id, seq=seq, **values)
    return await room.revisions.RedactMessage(request, timeout=CALL_S)


async def delete(room: Memory, key: ThreadKey, seq: int, **values: Any) -> None:
    request = DeleteMessageRequest(workspace_id=key.workspace_id, thread_id=key.thread_id, seq=seq, **values)
    await room.revisions.DeleteMessage(request, timeout=CALL_S)


async def pop(room: Memory, key: ThreadKey, **values: Any) -> PopTurnResponse:
    request = PopTurnRequest(workspace_id=key.workspace_id, thread_id=key.thread_id, **values)
    return await room.revisions.PopTurn(request, timeout=CALL_S)


async def fork(room: Memory, key: ThreadKey, at_seq: int | None = None, **values: Any) -> ThreadKey:
    return ThreadKey(key.workspace_id, (await forked(room, key, at_seq, **values)).thread_id)


async def forked(room: Memory, key: ThreadKey, at_seq: int | None = None, **values: Any) -> Conversation:
    request = ForkConversationRequest(workspace_id=key.workspace_id, thread_id=key.thread_id, at_seq=at_seq, **values)
    return (await room.branches.ForkConversation(request, timeout=CALL_S)).conversation


async def branches(room: Memory, key: ThreadKey, page_size: int = 0, user_id: str = "") -> list[str]:
    request = ListBranchesRequest(
        workspace_id=key.workspace_id, thread_id=key.thread_id, user_id=user_id, page_size=page_size
    )
    found: list[str] = []
    while True:
        page = await room.branches.ListBranches(request, timeout=CALL_S)
        found += [branch.thread_id for branch in page.conversations]
        if not page.next_page_token:
            return found
        request.page_token = page.next_page_token


async def message(room: Memory, key: ThreadKey, seq: int) -> Message:
    request = GetMessageRequest(workspace_id=key.workspace_id, thread_id=key.thread_id, seq=seq)
    return (await room.conversations.GetMessage(request, timeout=CALL_S)).message


async def revisions(room: Memory, key: ThreadKey, seq: int, page_size: int = 0) -> list[Revision]:
    request = ListRevisionsRequest(workspace_id=key.workspace_id, thread_id=key.thread_id, seq=seq, page_size=page_size)
    found: list[Revision] = []
    while True:
        page = await room.revisions.ListRevisions(request, timeout=CALL_S)
        found += page.revisions
        if not page.next_page_token:
            return found
        request.page_token = page.next_page_token


async def hide(room: Memory, key: ThreadKey) -> None:
    request = DeleteConversationRequest(workspace_id=key.workspace_id, thread_id=key.thread_id)
    await room.conversations.DeleteConversation(request, timeout=CALL_S)


async def show(room: Memory, key: ThreadKey, request_id: str = "") -> Conversation:
    request = UndeleteConversationRequest(workspace_id=key.workspace_id, thread_id=key.thread_id, request_id=request_id)
    return (await room.conversations.UndeleteConversation(request, timeout=CALL_S)).conversation


async def insisting(call: Callable[[], Awaitable[Answer]]) -> Answer:
    """What it returns, once the rows that it needs are not held by others for too long."""
    while True:
        try:
            return await call()
        except grpc.aio.AioRpcError as error:
            if reason(error) != "REASON_BUSY":
                raise


def metadata(error: grpc.aio.AioRpcError) -> dict[str, str]:
    """The ids that a refusal speaks of."""
    status = rpc_status.from_call(error)  # type: ignore[arg-type]  # it reads code, details and trailers, which an aio error has
    told = error_details_pb2.ErrorInfo()
    for detail in status.details if status else ():
        if detail.Unpack(told):
            return dict(told.metadata)
    return {}


async def rows(sql: "asyncpg.Pool[Any]", workspace_id: str) -> dict[str, int]:
    """How many rows each table has of a workspace."""
    count = "SELECT count(*) FROM memory.{} WHERE workspace_id = $1"
    return {table: await sql.fetchval(count.format(table), workspace_id) for table in TABLES}


async def places_of(sql: "asyncpg.Pool[Any]", raw: redis.asyncio.Redis, word: str) -> Sequence[str]:
    """The tables of Postgres and the keys of Redis in which a word stands, as text or as bytes."""
    tables = await sql.fetch(
        "SELECT format('%I.%I', table_schema, table_name) AS name FROM information_schema.tables"
        " WHERE table_schema = 'memory' AND table_type = 'BASE TABLE'"
    )
    as_bytes = word.encode().hex()
    found = []
    for row in tables:
        query = f"SELECT count(*) FROM {row['name']} t WHERE t::text LIKE $1 OR t::text LIKE $2"
        if await sql.fetchval(query, f"%{word}%", f"%{as_bytes}%"):
            found.append(row["name"])
    names = [name async for name in raw.scan_iter(count=1000)]
    return found + [name.decode() for name in names if word.encode() in await _content(raw, name)]


async def _content(raw: redis.asyncio.Redis, name: bytes) -> bytes:
    match await raw.type(name):
        case b"list":
            return repr(await raw.lrange(name, 0, -1)).encode()
        case b"hash":
            return repr(await raw.hgetall(name)).encode()
        case _:
            return b""
