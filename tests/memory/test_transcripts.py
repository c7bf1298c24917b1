"""200 real conversations go in by turns and come back field by field, also when Redis dies in the middle."""

import asyncio
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.memory.rooms import CALL_S, Memory, database_of, redis_of, serving
from tests.waiting import until
from twofold.memory.v1.context_pb2 import InvokingRequest
from twofold.memory.v1.conversation_pb2 import AppendTurnRequest
from twofold.memory.v1.message_pb2 import Completeness, Message, Role, ToolCall
from twofold_cli.embedded.postgres import EmbeddedPostgres
from twofold_cli.embedded.redis import EmbeddedRedis
from twofold_memory.threads import ThreadKey

FILE = Path(__file__).parents[3] / "shared" / "data" / "airline-agent-transcripts.jsonl"
ROLES = {"user": Role.ROLE_USER, "assistant": Role.ROLE_ASSISTANT, "tool": Role.ROLE_TOOL, "system": Role.ROLE_SYSTEM}
NAMES = {role: name for name, role in ROLES.items()}

Told = dict[str, Any]


@pytest.fixture(scope="module")
def transcripts() -> list[Told]:
    if not FILE.exists():
        pytest.skip("the transcripts are not beside this repository (../shared/data/airline-agent-transcripts.jsonl)")
    return [json.loads(line) for line in FILE.read_text(encoding="utf-8").splitlines()]


def message_of(told: Told) -> Message:
    calls = [
        ToolCall(id=c["id"], type=c["type"], name=c["function"]["name"], arguments=c["function"]["arguments"])
        for c in told.get("tool_calls") or ()
    ]
    return Message(
        role=ROLES[told["role"]],
        content=told["content"],
        tool_calls=calls,
        tool_call_id=told.get("tool_call_id", ""),
        name=told.get("name", ""),
    )


def told_of(message: Message) -> Told:
    """Back into the shape it came in."""
    told: Told = {"role": NAMES[message.role], "content": message.content if message.HasField("content") else None}
    if message.tool_calls:
        told["tool_calls"] = [
            {"id": call.id, "type": call.type, "function": {"name": call.name, "arguments": call.arguments}}
            for call in message.tool_calls
        ]
    if message.tool_call_id:
        told["tool_call_id"] = message.tool_call_id
    if message.name:
        told["name"] = message.name
    return told


def turns_of(transcript: Told) -> Iterator[list[Message]]:
    turn: list[Message] = []
    for told in transcript["messages"]:
        if told["role"] == "user" and turn:
            yield turn
            turn = []
        turn.append(message_of(told))
    yield turn


async def replay(memory: Memory, workspace_id: str, transcript: Told) -> None:
    for index, turn in enumerate(turns_of(transcript)):
        request = AppendTurnRequest(
            workspace_id=workspace_id, thread_id=transcript["thread_id"], request_id=f"{index}", messages=turn
        )
        await memory.conversations.AppendTurn(request, timeout=CALL_S)


async def check(
    memory: Memory,
    workspace_id: str,
    transcript: Told,
    completeness: Completeness.ValueType = Completeness.COMPLETENESS_COMPLETE,
) -> None:
    key = ThreadKey(workspace_id, transcript["thread_id"])
    stored = await memory.all_messages(key, page_size=17)
    assert [told_of(message) for message in stored] == transcript["messages"]
    window = await memory.read(key, 500)
    assert window.completeness == completeness
    assert list(window.messages) == stored
    request = InvokingRequest(workspace_id=workspace_id, thread_id=key.thread_id, message_count_max=500, token_count_max=800)
    context = await memory.contexts.Invoking(request, timeout=CALL_S)
    assert context.token_count <= 800
    assert is_paired(context.messages)  # M12


def is_paired(messages: Iterable[Message]) -> bool:
    open_calls: set[str] = set()
    for message in messages:
        if message.role == Role.ROLE_TOOL:
            if message.tool_call_id not in open_calls:
                return False
            open_calls.remove(message.tool_call_id)
        else:
            if open_calls:
                return False
            open_calls = {call.id for call in message.tool_calls}
    return not open_calls


async def test_real_conversations_come_back_as_they_were(
    room: Memory, other_room: Memory, workspace_id: str, transcripts: list[Told]
) -> None:
    assert len(transcripts) == 200
    waiting = asyncio.Semaphore(16)

    async def one(index: int, transcript: Told) -> None:
        async with waiting:
            await replay((room, other_room)[index % 2], workspace_id, transcript)
            await check((other_room, room)[index % 2], workspace_id, transcript)

    await asyncio.gather(*(one(index, transcript) for index, transcript in enumerate(transcripts)))


async def test_real_conversations_come_back_as_they_were_when_redis_dies_in_the_middle(
    own_redis: EmbeddedRedis, postgres_server: EmbeddedPostgres, workspace_id: str, transcripts: list[Told]
) -> None:
    database = database_of(await postgres_server.create_database("memory_replay"))
    async with serving(database, redis_of(own_redis)) as memory:
        half = asyncio.Event()
        waiting = asyncio.Semaphore(8)
        done = 0

        async def one(transcript: Told) -> None:
            nonlocal done
            async with waiting:
                await replay(memory, workspace_id, transcript)
                done += 1
                if done == 60:
                    half.set()

        async def crash() -> None:
            await half.wait()
            await own_redis.kill()

        await asyncio.gather(crash(), *(one(transcript) for transcript in transcripts[:120]))
        for transcript in transcripts[:60]:
            await check(memory, workspace_id, transcript, Completeness.COMPLETENESS_COMMITTED_ONLY)
        await own_redis.start()

        async def is_asked_again() -> bool:
            window = await memory.read(ThreadKey(workspace_id, transcripts[0]["thread_id"]), 500)
            return window.completeness == Completeness.COMPLETENESS_COMPLETE

        await until(is_asked_again)
        for transcript in transcripts[60:120]:
            await check(memory, workspace_id, transcript)
