"""A memory room as a client meets it, and what its tests say again and again."""

import contextlib
import uuid
from collections.abc import AsyncIterator, Iterable
from dataclasses import dataclass

import grpc
import pytest
from pydantic import SecretStr

from twofold import refusals
from twofold.errors.v1.reason_pb2 import Reason
from twofold.memory.v1.branch_pb2_grpc import BranchServiceStub
from twofold.memory.v1.checkpoint_pb2_grpc import CheckpointServiceStub
from twofold.memory.v1.context_pb2_grpc import ContextServiceStub
from twofold.memory.v1.conversation_pb2 import (
    AppendTurnRequest,
    AppendTurnResponse,
    ListMessagesRequest,
    ReadWindowRequest,
    ReadWindowResponse,
)
from twofold.memory.v1.conversation_pb2_grpc import ConversationServiceStub
from twofold.memory.v1.document_pb2_grpc import DocumentServiceStub
from twofold.memory.v1.erasure_pb2_grpc import ErasureServiceStub
from twofold.memory.v1.event_pb2_grpc import EventLogServiceStub
from twofold.memory.v1.message_pb2 import Message, ReadLevel, Role
from twofold.memory.v1.preference_pb2_grpc import PreferenceServiceStub
from twofold.memory.v1.revision_pb2_grpc import RevisionServiceStub
from twofold.memory.v1.search_pb2_grpc import SearchServiceStub
from twofold.memory.v1.summary_pb2_grpc import SummaryServiceStub
from twofold.memory.v1.sync_pb2_grpc import SyncServiceStub
from twofold.memory.v1.tool_run_pb2_grpc import ToolRunServiceStub
from twofold.memory.v1.transfer_pb2_grpc import TransferServiceStub
from twofold.memory.v1.turn_pb2_grpc import TurnServiceStub
from twofold.memory.v1.watch_pb2_grpc import WatchServiceStub
from twofold_chassis.settings import DatabaseSettings, LogSettings, RedisSettings
from twofold_cli.embedded.postgres import DatabaseUrls
from twofold_cli.embedded.redis import EmbeddedRedis
from twofold_memory.app import memory
from twofold_memory.settings import MemorySettings, Settings
from twofold_memory.threads import ThreadKey

CALL_S = 60.0
OPTIONS = [("grpc.enable_retries", 0)]


@dataclass(frozen=True)
class Memory:
    """One worker, called without any habits of a client."""

    port: int
    conversations: ConversationServiceStub
    contexts: ContextServiceStub
    preferences: PreferenceServiceStub
    summaries: SummaryServiceStub
    tool_runs: ToolRunServiceStub
    checkpoints: CheckpointServiceStub
    events: EventLogServiceStub
    turns: TurnServiceStub
    watches: WatchServiceStub
    search: SearchServiceStub
    documents: DocumentServiceStub
    revisions: RevisionServiceStub
    branches: BranchServiceStub
    transfers: TransferServiceStub
    erasures: ErasureServiceStub
    sync: SyncServiceStub

    async def append(
        self, key: ThreadKey, *texts: str, turn_id: str = "", user_id: str = "", timeout: float = CALL_S
    ) -> AppendTurnResponse:
        request = AppendTurnRequest(
            workspace_id=key.workspace_id,
            thread_id=key.thread_id,
            user_id=user_id,
            request_id=turn_id,
            messages=said(*texts),
        )
        return await self.conversations.AppendTurn(request, timeout=timeout)

    async def read(
        self,
        key: ThreadKey,
        count: int = 0,
        *,
        level: ReadLevel.ValueType = ReadLevel.READ_LEVEL_VERIFIED,
        token: bytes = b"",
    ) -> ReadWindowResponse:
        request = ReadWindowRequest(
            workspace_id=key.workspace_id,
            thread_id=key.thread_id,
            message_count_max=count,
            read_level=ReadLevel.READ_LEVEL_AT_LEAST if token else level,
            thread_token=token,
        )
        return await self.conversations.ReadWindow(request, timeout=CALL_S)

    async def all_messages(self, key: ThreadKey, page_size: int = 500) -> list[Message]:
        request = ListMessagesRequest(workspace_id=key.workspace_id, thread_id=key.thread_id, page_size=page_size)
        found: list[Message] = []
        while True:
            page = await self.conversations.ListMessages(request, timeout=CALL_S)
            found += page.messages
            if not page.next_page_token:
                return found
            request.page_token = page.next_page_token


def said(*texts: str) -> list[Message]:
    """Messages of a user and an assistant in turn."""
    roles = (Role.ROLE_USER, Role.ROLE_ASSISTANT)
    return [Message(role=roles[index % 2], content=text) for index, text in enumerate(texts)]


def texts(messages: Iterable[Message]) -> list[str]:
    return [message.content for message in messages]


def seqs(messages: Iterable[Message]) -> list[int]:
    return [message.seq for message in messages]


def thread(workspace_id: str) -> ThreadKey:
    """A thread that does not exist yet."""
    return ThreadKey(workspace_id, f"thread-{uuid.uuid4().hex[:12]}")


def reason(error: grpc.aio.AioRpcError) -> str:
    return Reason.Name(refusals.reason(error))


@contextlib.asynccontextmanager
async def refused(code: grpc.StatusCode, why: str) -> AsyncIterator[pytest.ExceptionInfo[grpc.aio.AioRpcError]]:
    """The block ends in this refusal."""
    with pytest.raises(grpc.aio.AioRpcError) as told:
        yield told
    assert (told.value.code(), reason(told.value)) == (code, why), told.value


@contextlib.asynccontextmanager
async def connected(port: int) -> AsyncIterator[Memory]:
    """A client of the worker at this port."""
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}", options=OPTIONS) as channel:
        yield Memory(
            port,
            ConversationServiceStub(channel),
            ContextServiceStub(channel),
            PreferenceServiceStub(channel),
            SummaryServiceStub(channel),
            ToolRunServiceStub(channel),
            CheckpointServiceStub(channel),
            EventLogServiceStub(channel),
            TurnServiceStub(channel),
            WatchServiceStub(channel),
            SearchServiceStub(channel),
            DocumentServiceStub(channel),
            RevisionServiceStub(channel),
            BranchServiceStub(channel),
            TransferServiceStub(channel),
            ErasureServiceStub(channel),
            SyncServiceStub(channel),
        )


@contextlib.asynccontextmanager
async def serving(database: DatabaseSettings, redis: RedisSettings, **settings: object) -> AsyncIterator[Memory]:
    """A worker in this process, on these stores."""
    patient = {"port": 0, "drain_s": 0, "confirm_ms": 5000, "commit_ms": 5000, "journal_ms": 5000}
    room = MemorySettings.model_validate(patient | settings)
    chosen = Settings(database=database, redis=redis, memory=room, log=LogSettings(level="error"))
    async with memory(chosen) as running, connected(running.port) as client:
        yield client


def database_of(urls: DatabaseUrls, **settings: object) -> DatabaseSettings:
    return DatabaseSettings.model_validate({"url": SecretStr(urls.app), "migrate_url": SecretStr(urls.owner)} | settings)


def redis_of(server: EmbeddedRedis, *, budget_ms: float = 2000) -> RedisSettings:
    return RedisSettings(host=server.host, port=server.port, password=SecretStr(server.password), budget_ms=budget_ms)
