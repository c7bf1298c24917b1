"""Real conversations that go in while faults rage, and must come out as they went in."""

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc

from benchmarks.chaos.clients import CALL_S, OPTIONS
from benchmarks.chaos.stack import Stack
from twofold.memory.v1 import conversation_pb2 as pb
from twofold.memory.v1.conversation_pb2_grpc import ConversationServiceStub
from twofold.memory.v1.message_pb2 import Message
from twofold_cli.demo.transcripts import Transcript, message_of, read

WORKSPACE = "transcripts"
_AT_ONCE = 4
_PAUSE_S = 0.1
_COMPARE_S = 120.0
_PAGE = 500


class Import:
    """The conversations of a file, by turns, each turn repeated under its id until it is acknowledged."""

    def __init__(self, path: Path, stack: Stack) -> None:
        self._transcripts = read(path)
        self._stack = stack
        self._repeats = 0

    async def run(self) -> None:
        """Returns when every turn has been acknowledged."""
        turns_at_once = asyncio.Semaphore(_AT_ONCE)

        async def told(number: int, transcript: Transcript) -> None:
            async with turns_at_once, self._channel(number) as channel:
                await self._tell(ConversationServiceStub(channel), transcript)

        async with asyncio.TaskGroup() as group:
            for number, transcript in enumerate(self._transcripts):
                group.create_task(told(number, transcript))

    async def compared(self) -> dict[str, Any]:
        """How many came out as they went in, and which did not."""
        different = []
        async with self._channel(0) as channel:
            stub = ConversationServiceStub(channel)
            until = asyncio.get_running_loop().time() + _COMPARE_S
            for transcript in self._transcripts:
                while not transcript.same_as(await self._all_of(stub, transcript)):
                    if asyncio.get_running_loop().time() > until:  # what is journaled may still be on its way
                        different.append(transcript.thread_id)
                        break
                    await asyncio.sleep(_PAUSE_S)
        return {
            "conversations": len(self._transcripts),
            "messages": sum(len(transcript.sources) for transcript in self._transcripts),
            "appends_repeated": self._repeats,
            "different": different,
        }

    def _channel(self, number: int) -> grpc.aio.Channel:
        workers = self._stack.workers
        return grpc.aio.insecure_channel(workers[number % len(workers)].process.target, options=OPTIONS)

    async def _tell(self, stub: ConversationServiceStub, transcript: Transcript) -> None:
        token = b""
        for number, messages in enumerate(_turns(transcript)):
            request = pb.AppendTurnRequest(
                workspace_id=WORKSPACE,
                thread_id=transcript.thread_id,
                request_id=f"{number}",
                messages=messages,
                after_token=token,
            )
            while not (token := await self._attempted(stub, request)):
                self._repeats += 1
                await asyncio.sleep(_PAUSE_S)

    async def _attempted(self, stub: ConversationServiceStub, request: pb.AppendTurnRequest) -> bytes:
        """The token of the turn; empty if it must be tried again."""
        try:
            return (await stub.AppendTurn(request, timeout=CALL_S)).thread_token
        except grpc.aio.AioRpcError:
            return b""

    async def _all_of(self, stub: ConversationServiceStub, transcript: Transcript) -> list[Message]:
        request = pb.ListMessagesRequest(workspace_id=WORKSPACE, thread_id=transcript.thread_id, page_size=_PAGE)
        found: list[Message] = []
        while True:
            try:
                page = await stub.ListMessages(request, timeout=CALL_S)
            except grpc.aio.AioRpcError:
                return []
            found += page.messages
            if not page.next_page_token:
                return found
            request.page_token = page.next_page_token


def _turns(transcript: Transcript) -> Iterator[list[Message]]:
    """Its messages by turns: each begins with what the user said."""
    turn: list[Message] = []
    for source in transcript.sources:
        if source["role"] == "user" and turn:
            yield turn
            turn = []
        turn.append(message_of(source))
    yield turn
