"""The service against a model: appends, retries, reads of each kind, deletion, and whatever may befall Redis meanwhile."""

import uuid
from dataclasses import dataclass, field
from typing import Any

import asyncpg
import grpc
import redis.asyncio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.memory.checker import check_window
from tests.memory.rooms import CALL_S, Memory, reason, said, seqs, texts
from twofold.memory.v1.conversation_pb2 import (
    AppendTurnRequest,
    AppendTurnResponse,
    DeleteConversationRequest,
    ReadWindowResponse,
)
from twofold.memory.v1.message_pb2 import Completeness, ReadLevel
from twofold_memory import keys
from twofold_memory.threads import ThreadKey

COMPLETE = Completeness.COMPLETENESS_COMPLETE
THREADS = st.integers(0, 1)
NUMBER = st.integers(0, 10**6)

STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("append"), THREADS, st.integers(1, 5)),
        st.tuples(st.just("append"), THREADS, st.integers(1, 5)),
        st.tuples(st.just("retry"), THREADS, NUMBER),
        st.tuples(st.just("reuse"), THREADS, NUMBER),
        st.tuples(st.just("read"), THREADS, st.integers(1, 14)),
        st.tuples(st.just("read_any"), THREADS, st.integers(1, 14)),
        st.tuples(st.just("read_token"), THREADS, NUMBER),
        st.tuples(st.just("page"), THREADS, st.integers(1, 5)),
        st.tuples(st.just("evict"), THREADS, st.integers(1, 3)),
        st.tuples(st.just("keep"), THREADS, st.just(0)),
        st.tuples(st.just("put_back"), THREADS, st.just(0)),
        st.tuples(st.just("delete"), THREADS, st.integers(0, 3)),
    ),
    max_size=40,
)


@dataclass
class Thread:
    """What a thread must be."""

    key: ThreadKey
    turns: list[tuple[int, list[str], bytes]] = field(default_factory=list)
    log: list[str] = field(default_factory=list)
    deleted: bool = False
    kept: dict[str, bytes] = field(default_factory=dict)


class Machine:
    """Does a step at the service and in the model, and compares."""

    def __init__(self, rooms: tuple[Memory, Memory], raw: redis.asyncio.Redis) -> None:
        self.rooms = rooms
        self.raw = raw
        self.threads = [Thread(ThreadKey("machine", uuid.uuid4().hex)) for _ in range(2)]
        self.calls = 0

    @property
    def room(self) -> Memory:
        self.calls += 1
        return self.rooms[self.calls % 2]

    async def append(self, thread: Thread, size: int) -> None:
        turn, spoken = len(thread.turns), [f"{len(thread.turns)}.{index}" for index in range(size)]
        if thread.deleted:
            assert await self.refusal(thread, turn, spoken) == "REASON_CONVERSATION_DELETED"
            return
        answer = await self.sent(thread, turn, spoken)
        assert (answer.first_seq, answer.duplicate) == (len(thread.log) + 1, False)
        thread.log += spoken
        thread.turns.append((answer.first_seq, spoken, answer.thread_token))

    async def retry(self, thread: Thread, which: int) -> None:
        if thread.turns and not thread.deleted:
            turn = which % len(thread.turns)
            answer = await self.sent(thread, turn, thread.turns[turn][1])
            assert (answer.first_seq, answer.duplicate) == (thread.turns[turn][0], True)

    async def reuse(self, thread: Thread, which: int) -> None:
        if thread.turns and not thread.deleted:
            turn = which % len(thread.turns)
            assert await self.refusal(thread, turn, [*thread.turns[turn][1], "more"]) == "REASON_REQUEST_REUSED"

    async def read(self, thread: Thread, count: int) -> None:
        window = await self.seen(thread, count)
        if window is not None:
            assert window.completeness == COMPLETE
            assert window.as_of_seq == len(thread.log)

    async def read_any(self, thread: Thread, count: int) -> None:
        await self.seen(thread, count, level=ReadLevel.READ_LEVEL_ANY)

    async def read_token(self, thread: Thread, which: int) -> None:
        if thread.turns:
            first, spoken, token = thread.turns[which % len(thread.turns)]
            window = await self.seen(thread, 1 + which % 14, token=token)
            if window is not None:
                assert window.as_of_seq >= first + len(spoken) - 1

    async def page(self, thread: Thread, size: int) -> None:
        if thread.log and not thread.deleted:
            assert texts(await self.room.all_messages(thread.key, page_size=size)) == thread.log

    async def evict(self, thread: Thread, which: int) -> None:
        names = keys.thread_messages(thread.key), keys.thread_head(thread.key)
        await self.raw.delete(*(name for bit, name in enumerate(names) if which & 1 << bit))

    async def keep(self, thread: Thread, _: int) -> None:
        names = keys.thread_messages(thread.key), keys.thread_head(thread.key)
        thread.kept = {name: value for name in names if (value := await self.raw.dump(name)) is not None}

    async def put_back(self, thread: Thread, _: int) -> None:
        if not thread.deleted:
            for name, value in thread.kept.items():
                await self.raw.restore(name, 60_000, value, replace=True)

    async def delete(self, thread: Thread, dice: int) -> None:
        if dice == 0 and thread.log and not thread.deleted:
            request = DeleteConversationRequest(workspace_id=thread.key.workspace_id, thread_id=thread.key.thread_id)
            await self.room.conversations.DeleteConversation(request, timeout=CALL_S)
            thread.deleted = True

    async def seen(
        self,
        thread: Thread,
        count: int,
        *,
        level: ReadLevel.ValueType = ReadLevel.READ_LEVEL_VERIFIED,
        token: bytes = b"",
    ) -> ReadWindowResponse | None:
        """A read, with what is true of every one."""
        try:
            window = await self.room.read(thread.key, count, level=level, token=token)
        except grpc.aio.AioRpcError as error:
            assert (thread.deleted, reason(error)) == (True, "REASON_CONVERSATION_UNKNOWN")  # noqa: PT017
            return None
        assert not thread.deleted
        known = thread.log[: window.as_of_seq]
        assert texts(window.messages) == known[len(known) - len(window.messages) :]
        assert seqs(window.messages) == list(range(window.as_of_seq + 1 - len(window.messages), window.as_of_seq + 1))
        assert len(window.messages) <= count
        assert not known or window.messages  # M10
        if window.messages and window.messages[0].turn_index:
            assert all(message.turn_index for message in window.messages)  # only the newest turn may be cut
        return window

    async def sent(self, thread: Thread, turn: int, spoken: list[str]) -> AppendTurnResponse:
        request = AppendTurnRequest(
            workspace_id=thread.key.workspace_id,
            thread_id=thread.key.thread_id,
            request_id=f"turn-{turn}",
            messages=said(*spoken),
        )
        return await self.room.conversations.AppendTurn(request, timeout=CALL_S)

    async def refusal(self, thread: Thread, turn: int, spoken: list[str]) -> str:
        try:
            await self.sent(thread, turn, spoken)
        except grpc.aio.AioRpcError as error:
            return reason(error)
        return "not refused"


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(steps=STEPS)
async def test_the_service_does_what_the_model_does(
    small_rooms: tuple[Memory, Memory],
    raw_redis: redis.asyncio.Redis,
    sql: "asyncpg.Pool[Any]",
    steps: list[tuple[str, int, int]],
) -> None:
    """M1, M3, M4, M7, M8, M9, M10 on any history of calls and of losses of Redis, over two workers."""
    machine = Machine(small_rooms, raw_redis)
    for name, which, number in steps:
        await getattr(machine, name)(machine.threads[which], number)
        await check_window(raw_redis, sql, machine.threads[which].key)
