"""The service against a model: appends, retries, reads of each kind, changes of what was said, branches, and whatever may
befall Redis meanwhile."""

import uuid
from collections.abc import Awaitable
from dataclasses import dataclass, field
from typing import Any

import asyncpg
import grpc
import redis.asyncio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.memory import changing
from tests.memory.checker import check_window
from tests.memory.rooms import CALL_S, Memory, reason, said, seqs, texts
from twofold.memory.v1.conversation_pb2 import (
    AppendTurnRequest,
    AppendTurnResponse,
    GetTurnRequest,
    ReadWindowResponse,
)
from twofold.memory.v1.message_pb2 import Completeness, Message, MessageStatus, ReadLevel
from twofold.memory.v1.revision_pb2 import RevisionKind
from twofold_memory import keys
from twofold_memory.threads import ThreadKey

COMPLETE = Completeness.COMPLETENESS_COMPLETE
DELETED, REDACTED = MessageStatus.MESSAGE_STATUS_DELETED, MessageStatus.MESSAGE_STATUS_REDACTED
THREADS_MAX = 4
THREADS = st.integers(0, THREADS_MAX - 1)
NUMBER = st.integers(0, 10**6)
SIZES = st.integers(1, 5)
COUNTS = st.integers(1, 14)

# Without something that was said nothing much can go wrong.
FIRST_STEPS = [("append", 0, 2), ("append", 0, 3), ("fork", 0, 4), ("append", 1, 2)]
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("append"), THREADS, SIZES),
        st.tuples(st.just("append"), THREADS, SIZES),
        st.tuples(st.just("retry"), THREADS, NUMBER),
        st.tuples(st.just("reuse"), THREADS, NUMBER),
        st.tuples(st.just("read"), THREADS, COUNTS),
        st.tuples(st.just("read"), THREADS, COUNTS),
        st.tuples(st.just("read_any"), THREADS, COUNTS),
        st.tuples(st.just("read_any"), THREADS, COUNTS),
        st.tuples(st.just("read_token"), THREADS, NUMBER),
        st.tuples(st.just("page"), THREADS, SIZES),
        st.tuples(st.just("turn"), THREADS, NUMBER),
        st.tuples(st.just("edit"), THREADS, NUMBER),
        st.tuples(st.just("edit"), THREADS, NUMBER),
        st.tuples(st.just("redact"), THREADS, NUMBER),
        st.tuples(st.just("remove"), THREADS, NUMBER),
        st.tuples(st.just("pop"), THREADS, st.just(0)),
        st.tuples(st.just("audit"), THREADS, NUMBER),
        st.tuples(st.just("fork"), THREADS, NUMBER),
        st.tuples(st.just("fork"), THREADS, NUMBER),
        st.tuples(st.just("hide"), THREADS, st.just(0)),
        st.tuples(st.just("show"), THREADS, st.just(0)),
        st.tuples(st.just("evict"), THREADS, st.integers(1, 3)),
        st.tuples(st.just("lose_redis"), THREADS, st.just(0)),
        st.tuples(st.just("keep"), THREADS, st.just(0)),
        st.tuples(st.just("put_back"), THREADS, st.just(0)),
    ),
    min_size=10,
    max_size=40,
)


@dataclass
class Spoken:
    """What a message must be. Branches hold the very same one as the thread in which it was said."""

    owner: str
    turn: int
    text: str | None
    status: int = 0
    formers: list[tuple[int, str | None]] = field(default_factory=list)

    def change(self, kind: int, text: str | None, status: int) -> None:
        self.formers.append((kind, self.text))
        self.text, self.status = text, status


@dataclass
class Thread:
    """What a thread must be."""

    key: ThreadKey
    turns: list[tuple[int, list[str], bytes]] = field(default_factory=list)
    log: list[Spoken] = field(default_factory=list)
    taken_back: set[int] = field(default_factory=set)
    hidden: bool = False
    kept: dict[str, bytes] = field(default_factory=dict)
    kept_past: int = 0
    # Rises with every change of what it has.
    past: int = 0

    @property
    def name(self) -> str:
        return self.key.thread_id

    @property
    def window_keys(self) -> tuple[str, str]:
        return keys.thread_messages(self.key), keys.thread_head(self.key)


class Machine:
    """Does a step at the service and in the model, and compares."""

    def __init__(self, rooms: tuple[Memory, Memory], raw: redis.asyncio.Redis) -> None:
        self.rooms = rooms
        self.raw = raw
        self.threads = [Thread(ThreadKey("machine", uuid.uuid4().hex))]
        self.calls = 0

    @property
    def room(self) -> Memory:
        self.calls += 1
        return self.rooms[self.calls % 2]

    def thread(self, which: int) -> Thread:
        return self.threads[which % len(self.threads)]

    async def append(self, thread: Thread, size: int) -> None:
        turn, spoken = len(thread.turns), [f"{len(thread.turns)}.{index}" for index in range(size)]
        if thread.hidden:
            assert await refusal(self.sent(thread, turn, spoken)) == "REASON_CONVERSATION_DELETED"
            return
        answer = await self.sent(thread, turn, spoken)
        assert (answer.first_seq, answer.duplicate) == (len(thread.log) + 1, False)
        thread.log += [Spoken(thread.name, turn, text) for text in spoken]
        thread.turns.append((answer.first_seq, spoken, answer.thread_token))

    async def retry(self, thread: Thread, which: int) -> None:
        if thread.turns and not thread.hidden:
            turn = which % len(thread.turns)
            answer = await self.sent(thread, turn, thread.turns[turn][1])
            assert (answer.first_seq, answer.duplicate) == (thread.turns[turn][0], True)

    async def reuse(self, thread: Thread, which: int) -> None:
        if thread.turns and not thread.hidden:
            turn = which % len(thread.turns)
            other = [*thread.turns[turn][1], "more"]
            assert await refusal(self.sent(thread, turn, other)) == "REASON_REQUEST_REUSED"

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
        if thread.log and not thread.hidden:
            found = await self.room.all_messages(thread.key, page_size=size)
            assert [looks(message) for message in found] == [expected(spoken) for spoken in thread.log]

    async def turn(self, thread: Thread, which: int) -> None:
        if thread.turns and not thread.hidden:
            turn = which % len(thread.turns)
            first, spoken, _ = thread.turns[turn]
            request = GetTurnRequest(workspace_id="machine", thread_id=thread.name, turn_id=f"turn-{turn}")
            found = (await self.room.conversations.GetTurn(request, timeout=CALL_S)).messages
            assert seqs(found) == list(range(first, first + len(spoken)))
            assert [looks(m) for m in found] == [expected(s) for s in thread.log[first - 1 : first - 1 + len(spoken)]]

    async def edit(self, thread: Thread, which: int) -> None:
        if not thread.log:
            return
        seq, text = which % len(thread.log) + 1, f"edited {self.calls}"
        call = changing.edit(self.room, thread.key, seq, text)
        if await self.is_changeable(thread, seq, call, final=(DELETED, REDACTED)):
            self.change(thread, seq, RevisionKind.REVISION_KIND_EDIT, text, 0)

    async def redact(self, thread: Thread, which: int) -> None:
        if not thread.log:
            return
        seq = which % len(thread.log) + 1
        was_deleted = thread.log[seq - 1].status == DELETED
        call = changing.redact(self.room, thread.key, seq, replacement="" if was_deleted else "gone")
        if await self.is_changeable(thread, seq, call, final=()):
            text, status = (None, DELETED) if was_deleted else ("gone", REDACTED)
            spoken = thread.log[seq - 1]
            self.change(thread, seq, RevisionKind.REVISION_KIND_REDACT, text, status)
            spoken.formers = [(kind, None) for kind, _ in spoken.formers]

    async def remove(self, thread: Thread, which: int) -> None:
        if not thread.log:
            return
        seq = which % len(thread.log) + 1
        call = changing.delete(self.room, thread.key, seq)
        if await self.is_changeable(thread, seq, call, final=(DELETED,)):
            self.change(thread, seq, RevisionKind.REVISION_KIND_DELETE, None, DELETED)

    async def pop(self, thread: Thread, _: int) -> None:
        left = [turn for turn in range(len(thread.turns)) if turn not in thread.taken_back]
        if thread.hidden or not left:
            shared = [spoken for spoken in thread.log if spoken.owner != thread.name]
            why = "REASON_MESSAGE_SHARED" if shared else "REASON_TURN_UNKNOWN"
            unknown = thread.hidden or self.is_missing(thread)
            told = await refusal(changing.pop(self.room, thread.key))
            assert told == ("REASON_CONVERSATION_UNKNOWN" if unknown else why)
            return
        turn = left[-1]
        first, size = thread.turns[turn][0], len(thread.turns[turn][1])
        seqs_left = [seq for seq in range(first, first + size) if thread.log[seq - 1].status != DELETED]
        popped = await changing.pop(self.room, thread.key, expected_turn_id=f"turn-{turn}")
        assert (popped.turn_id, seqs(popped.messages)) == (f"turn-{turn}", seqs_left)
        assert texts(popped.messages) == [thread.log[seq - 1].text or "" for seq in seqs_left]
        thread.taken_back.add(turn)
        for seq in seqs_left:
            self.change(thread, seq, RevisionKind.REVISION_KIND_POP, None, DELETED)
        self.age(thread, first)

    async def audit(self, thread: Thread, which: int) -> None:
        if thread.log and not thread.hidden:
            seq = which % len(thread.log) + 1
            found = await changing.revisions(self.room, thread.key, seq, page_size=2)
            assert [(r.kind, r.former.content if r.HasField("former") else None) for r in found] == thread.log[
                seq - 1
            ].formers

    async def fork(self, thread: Thread, which: int) -> None:
        if len(self.threads) == THREADS_MAX or not thread.log:
            return
        at_seq = which % (len(thread.log) + 1)
        if thread.hidden:
            assert await refusal(changing.fork(self.room, thread.key, at_seq)) == "REASON_CONVERSATION_UNKNOWN"
            return
        branch = Thread(await changing.fork(self.room, thread.key, at_seq), log=thread.log[:at_seq])
        self.threads.append(branch)

    async def hide(self, thread: Thread, _: int) -> None:
        if thread.log and not thread.hidden:
            await changing.hide(self.room, thread.key)
            thread.hidden = True
            thread.past += 1

    async def show(self, thread: Thread, _: int) -> None:
        if thread.log:
            shown = await changing.show(self.room, thread.key)
            assert shown.message_count == len(thread.log)
            thread.past += thread.hidden
            thread.hidden = False

    async def evict(self, thread: Thread, which: int) -> None:
        await self.raw.delete(*(name for bit, name in enumerate(thread.window_keys) if which & 1 << bit))

    async def lose_redis(self, _: Thread, __: int) -> None:
        for thread in self.threads:
            await self.raw.delete(*thread.window_keys)

    async def keep(self, thread: Thread, _: int) -> None:
        values = {name: await self.raw.dump(name) for name in thread.window_keys}
        thread.kept = {name: value for name, value in values.items() if value is not None}
        thread.kept_past = thread.past

    async def put_back(self, thread: Thread, _: int) -> None:
        """An older state of the window, as of a lagging replica. One of another past is not shown once Postgres is asked."""
        for name, value in thread.kept.items():
            await self.raw.restore(name, 60_000, value, replace=True)
        if thread.past != thread.kept_past:
            await self.read(thread, 14)
            await self.raw.delete(*thread.window_keys)

    def change(self, thread: Thread, seq: int, kind: int, text: str | None, status: int) -> None:
        thread.log[seq - 1].change(kind, text, status)
        self.age(thread, seq)

    def age(self, thread: Thread, seq: int) -> None:
        """All that have the message have another past now."""
        changed = thread.log[seq - 1]
        for other in self.threads:
            other.past += any(spoken is changed for spoken in other.log)

    async def is_changeable(self, thread: Thread, seq: int, call: Awaitable[object], *, final: tuple[int, ...]) -> bool:
        """Makes the call; whether it went well, as it must unless it must be refused."""
        spoken = thread.log[seq - 1]
        if thread.hidden:
            assert await refusal(call) == "REASON_CONVERSATION_UNKNOWN"
        elif spoken.owner != thread.name:
            assert await refusal(call) == "REASON_MESSAGE_SHARED"
        elif spoken.status in final:
            assert await refusal(call) == "REASON_MESSAGE_DELETED"
        else:
            await call
            return True
        return False

    def is_missing(self, thread: Thread) -> bool:
        """Whether it was never made: neither by an append nor as a branch."""
        return thread is self.threads[0] and not thread.turns

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
            assert (thread.hidden, reason(error)) == (True, "REASON_CONVERSATION_UNKNOWN")  # noqa: PT017
            return None
        assert not thread.hidden
        known = [expected(spoken) for spoken in thread.log[: window.as_of_seq]]
        assert [looks(message) for message in window.messages] == known[len(known) - len(window.messages) :]
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


def looks(message: Message) -> tuple[str | None, int, int]:
    return message.content if message.HasField("content") else None, message.status, message.revision


def expected(spoken: Spoken) -> tuple[str | None, int, int]:
    return spoken.text, spoken.status, len(spoken.formers)


async def refusal(call: Awaitable[object]) -> str:
    try:
        await call
    except grpc.aio.AioRpcError as error:
        return reason(error)
    return "not refused"


@settings(max_examples=30, deadline=None, suppress_health_check=list(HealthCheck))
@given(steps=STEPS)
async def test_the_service_does_what_the_model_does(
    small_rooms: tuple[Memory, Memory],
    raw_redis: redis.asyncio.Redis,
    sql: "asyncpg.Pool[Any]",
    steps: list[tuple[str, int, int]],
) -> None:
    """M1, M3, M4, M7, M8, M9, M10 on any history of calls, changes, branches and losses of Redis, over two workers."""
    machine = Machine(small_rooms, raw_redis)
    for name, which, number in [*FIRST_STEPS, *steps]:
        await getattr(machine, name)(machine.thread(which), number)
        for thread in machine.threads:
            await check_window(raw_redis, sql, thread.key)
