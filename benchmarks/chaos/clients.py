"""Clients under faults: they append, repeat, read, and write down what they saw."""

import asyncio
import random
import uuid

import grpc

from benchmarks.chaos.history import Append, History, Read
from twofold.client import Twofold
from twofold.memory.v1 import conversation_pb2 as pb
from twofold.memory.v1 import message_pb2

WORKSPACE = "chaos"
_CALL_S = 10.0
_ATTEMPTS = 20
_WINDOWS = (2, 20, 100, 200)


class Client:
    """One client with a thread of its own and some that it shares."""

    def __init__(self, twofold: Twofold, history: History, chance: random.Random, threads: list[str]) -> None:
        self._twofold = twofold
        self._history = history
        self._chance = chance
        self._threads = threads
        self._tokens: dict[str, tuple[bytes, int]] = {}
        self.acknowledged = 0

    async def run(self, until: float) -> None:
        """Works until a time of the event loop's clock."""
        while asyncio.get_running_loop().time() < until:
            thread = self._chance.choice(self._threads)
            if self._chance.random() < 0.5:
                await self._append(thread)
            else:
                await self._read(thread)

    async def _append(self, thread: str) -> None:
        turn_id = str(uuid.UUID(int=self._chance.getrandbits(128)))
        texts = (f"asked {turn_id}", f"answered {turn_id}")
        request = pb.AppendTurnRequest(
            workspace_id=WORKSPACE,
            thread_id=thread,
            request_id=turn_id,
            messages=[
                message_pb2.Message(role=message_pb2.ROLE_USER, content=texts[0]),
                message_pb2.Message(role=message_pb2.ROLE_ASSISTANT, content=texts[1]),
            ],
        )
        sent = asyncio.get_running_loop().time()
        seqs: tuple[int, int] | None = None
        for attempt in range(1 + (self._chance.random() < 0.2)):  # some are repeated although they were answered
            answer = await self._kept(request, give_up=self._chance.random() < 0.1 and attempt == 0)
            if answer is None:
                break
            if seqs not in (None, (answer.first_seq, answer.last_seq)):
                seqs = (answer.first_seq, -1)  # two answers for one turn: the judge finds no such numbers
                break
            seqs = (answer.first_seq, answer.last_seq)
            self._tokens[thread] = (answer.thread_token, answer.last_seq)
        answered = asyncio.get_running_loop().time() if seqs else None
        self.acknowledged += seqs is not None
        self._history.appends.append(Append(thread, turn_id, texts, sent, answered, seqs))

    async def _kept(self, request: pb.AppendTurnRequest, *, give_up: bool) -> pb.AppendTurnResponse | None:
        """The answer, after as many attempts as a patient caller makes; None if the caller went away before."""
        for _ in range(_ATTEMPTS):
            call = self._twofold.conversations.AppendTurn(request, timeout=0.005 if give_up else _CALL_S)
            try:
                return await call
            except grpc.aio.AioRpcError as error:
                if give_up:
                    return None
                if error.code() is grpc.StatusCode.DEADLINE_EXCEEDED:
                    self._history.stuck += 1
                    return None
                if error.code() not in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.ABORTED):
                    self._history.refused += 1
                    return None
            await asyncio.sleep(0.05)
        return None

    async def _read(self, thread: str) -> None:
        token, at_least = self._tokens.get(thread, (b"", 0))
        with_token = bool(token) and self._chance.random() < 0.5
        count = self._chance.choice(_WINDOWS)
        request = pb.ReadWindowRequest(workspace_id=WORKSPACE, thread_id=thread, message_count_max=count)
        if with_token:
            request.read_level, request.thread_token = message_pb2.READ_LEVEL_AT_LEAST, token
        sent = asyncio.get_running_loop().time()
        try:
            window = await self._twofold.conversations.ReadWindow(request, timeout=_CALL_S)
        except grpc.aio.AioRpcError as error:
            if error.code() is grpc.StatusCode.DEADLINE_EXCEEDED:
                self._history.stuck += 1
            elif error.code() is not grpc.StatusCode.UNAVAILABLE:
                self._history.refused += 1
            return
        self._history.reads.append(
            Read(
                thread,
                sent,
                asyncio.get_running_loop().time(),
                window.completeness == message_pb2.COMPLETENESS_COMPLETE,
                at_least if with_token else 0,
                count,
                tuple((message.seq, message.content) for message in window.messages),
            )
        )
