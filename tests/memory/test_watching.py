"""A watcher gets every message once, in order, whichever worker it was said at, and is told when the past changes."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence
from typing import Any

import asyncpg
import grpc
import pytest

from tests.memory.conftest import Worker
from tests.memory.rooms import CALL_S, Memory, connected, reason, refused, seqs
from tests.memory.test_open_turns import begin, commit
from tests.waiting import until
from twofold.memory.v1.conversation_pb2 import DeleteConversationRequest
from twofold.memory.v1.watch_pb2 import WatchConversationRequest, WatchConversationResponse
from twofold_chassis.refusals import Overloaded, Refusal, StoreUnavailable
from twofold_memory.followers import Followers
from twofold_memory.threads import Entry, Head, ThreadKey
from twofold_memory.watching import CaughtUp, Heartbeat, Start, Told, Watches

Sql = asyncpg.Pool


class Watcher:
    """A stream, and what has come of it."""

    def __init__(self, room: Memory, key: ThreadKey, **start: Any) -> None:
        request = WatchConversationRequest(workspace_id=key.workspace_id, thread_id=key.thread_id, **start)
        self.call = room.watches.WatchConversation(request, timeout=CALL_S)
        self.told: list[WatchConversationResponse] = []
        self.task = asyncio.create_task(self._read())

    async def _read(self) -> None:
        async for answer in self.call:
            self.told.append(answer)

    @property
    def seqs(self) -> list[int]:
        return [seq for answer in self.told for seq in seqs(answer.batch.messages)]

    @property
    def token(self) -> bytes:
        return self.told[-1].thread_token

    def kinds(self) -> list[str | None]:
        return [answer.WhichOneof("told") for answer in self.told]

    async def progress(self, *, at_end: bool) -> None:
        await until(lambda: at_end or bool(self.seqs))

    async def has(self, *kinds: str) -> None:
        await until(lambda: [kind for kind in self.kinds() if kind in kinds] == [*kinds])

    async def has_seqs(self, last: int, first: int = 1) -> None:
        await until(lambda: self.seqs[-1:] == [last])
        assert self.seqs == list(range(first, last + 1))


@contextlib.asynccontextmanager
async def watching(room: Memory, key: ThreadKey, **start: Any) -> AsyncIterator[Watcher]:
    watcher = Watcher(room, key, **start)
    try:
        yield watcher
    finally:
        watcher.call.cancel()
        await asyncio.wait([watcher.task])


async def test_a_watcher_gets_what_was_said_and_then_what_is_said_at_any_worker(
    room: Memory, other_room: Memory, key: ThreadKey
) -> None:
    await room.append(key, "a", "b", "c")
    async with watching(room, key) as here, watching(other_room, key, after_seq=1) as there:
        await asyncio.gather(here.has("caught_up"), there.has("caught_up"))
        await room.append(key, "d")
        fence = (await begin(other_room, key, "t1", "e")).fence
        await room.append(key, "f")  # the open turn has no number yet
        await commit(other_room, key, "t1", fence, "g")
        await asyncio.gather(here.has_seqs(7), there.has_seqs(7, first=2))
    assert [message.content for answer in here.told for message in answer.batch.messages] == list("abcdfeg")


async def test_a_local_append_wakes_a_watcher_without_waiting_for_the_next_round(
    new_worker: Worker, key: ThreadKey, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Broken, this would hang: the rounds of this worker are an hour apart."""
    monkeypatch.setattr(Followers.__init__, "__kwdefaults__", {"period_s": 3600.0, "followers_max": 10})
    async with new_worker() as lone:
        await lone.append(key, "a")
        async with watching(lone, key) as watcher:
            await watcher.has("caught_up")
            fence = (await begin(lone, key, "t1", "b")).fence
            await commit(lone, key, "t1", fence, "c")
            await watcher.has_seqs(3)


async def test_a_long_conversation_comes_in_bounded_steps(room: Memory, key: ThreadKey) -> None:
    for _ in range(3):
        await room.append(key, *["x"] * 100)
    for _ in range(3):
        await room.append(key, "y" * 200_000)
    async with watching(room, key, until_caught_up=True) as watcher:
        await watcher.task
    assert watcher.seqs == list(range(1, 304))
    assert watcher.kinds()[-1] == "caught_up"
    assert all(len(answer.batch.messages) <= 100 for answer in watcher.told)
    assert all(answer.ByteSize() < 600_000 for answer in watcher.told)


async def test_watching_is_resumed_without_a_gap_or_a_double_wherever_it_was_cut(
    room: Memory, other_room: Memory, key: ThreadKey
) -> None:
    await room.append(key, "first")

    async def write() -> None:
        for index in range(60):
            await (room, other_room)[index % 2].append(key, *["x"] * (1 + index % 3))

    writer = asyncio.create_task(write())
    found: list[int] = []
    token = b""
    while not writer.done() or len(found) < 121:
        async with watching((room, other_room)[len(found) % 2], key, resume_token=token) as watcher:
            await watcher.progress(at_end=len(found) == 121)
        found += watcher.seqs
        token = watcher.token if watcher.told else token
        assert "history_changed" not in watcher.kinds()
    await writer
    assert found == list(range(1, 122))


async def test_from_the_end_only_what_comes_is_told(room: Memory, key: ThreadKey) -> None:
    await room.append(key, "a", "b")
    async with watching(room, key, from_end=True) as watcher:
        await watcher.has("caught_up")
        assert watcher.told[0].caught_up.last_seq == 2
        await room.append(key, "c")
        await watcher.has_seqs(3, first=3)


async def test_a_watcher_is_told_that_the_past_has_changed_also_while_it_was_away(
    room: Memory, other_room: Memory, key: ThreadKey, sql: "Sql[Any]"
) -> None:
    await room.append(key, "a", "b")
    change = "UPDATE memory.conversations SET epoch = epoch + 1 WHERE (workspace_id, thread_id) = ($1, $2)"
    async with watching(room, key) as watcher:
        await watcher.has("batch", "caught_up")
        before = watcher.token
        await sql.execute(change, *key)
        await watcher.has("batch", "caught_up", "history_changed")
        assert watcher.told[-1].history_changed.epoch == 2
    async with watching(other_room, key, resume_token=before) as late:
        await late.has("history_changed", "caught_up")
        assert late.seqs == []
    async with watching(other_room, key, resume_token=watcher.token) as informed:
        await informed.has("caught_up")
        assert informed.kinds() == ["caught_up"]


async def test_the_stream_ends_when_the_conversation_is_deleted_and_begins_nowhere_else(
    room: Memory, other_room: Memory, key: ThreadKey
) -> None:
    await room.append(key, "a", user_id="ada")
    async with watching(room, key, user_id="ada") as watcher, watching(room, key, user_id="grace") as foreign:
        await watcher.has("caught_up")
        await other_room.conversations.DeleteConversation(
            DeleteConversationRequest(workspace_id=key.workspace_id, thread_id=key.thread_id), timeout=CALL_S
        )
        for ended in (watcher, foreign):
            async with refused(grpc.StatusCode.NOT_FOUND, "REASON_CONVERSATION_UNKNOWN"):
                await ended.task
    assert foreign.told == []
    for start in ({}, {"from_end": True}):
        async with watching(room, key, **start) as late, refused(grpc.StatusCode.NOT_FOUND, "REASON_CONVERSATION_UNKNOWN"):
            await late.task


async def test_a_place_that_does_not_exist_is_no_place_to_begin_at(room: Memory, key: ThreadKey) -> None:
    await room.append(key, "a")
    async with watching(room, key, after_seq=2) as watcher, refused(grpc.StatusCode.ABORTED, "REASON_HISTORY_CHANGED"):
        await watcher.task


async def test_a_stream_ends_as_draining_and_goes_on_elsewhere(new_worker: Worker, room: Memory, key: ThreadKey) -> None:
    async with contextlib.AsyncExitStack() as stack:
        async with new_worker(drain_s=30) as ending:
            await ending.append(key, "a")
            elsewhere = await stack.enter_async_context(connected(ending.port))
            watcher = await stack.enter_async_context(watching(elsewhere, key))
            await watcher.has("caught_up")
        await asyncio.wait([watcher.task])
        error = watcher.task.exception()
        assert isinstance(error, grpc.aio.AioRpcError)
        assert reason(error) == "REASON_DRAINING"
    await room.append(key, "b")
    async with watching(room, key, resume_token=watcher.token) as resumed:
        await resumed.has_seqs(2, first=2)


async def _end_of(watch: AsyncIterator[Told]) -> None:
    async for told in watch:
        assert isinstance(told, Heartbeat)


class Quiet:
    """A store in which nothing happens, and that may be gone."""

    def __init__(self) -> None:
        self.refusal: Refusal | None = None

    async def heads(self, keys: Sequence[ThreadKey]) -> list[Head | None]:
        if self.refusal is not None:
            raise self.refusal
        return [Head(1, 1, None, False) for _ in keys]

    async def step(self, key: ThreadKey, after: int, count: int, bytes_max: int) -> list[Entry]:
        raise AssertionError("there is nothing to read")


async def test_a_heartbeat_says_that_postgres_was_heard_and_silence_ends_the_stream(key: ThreadKey) -> None:
    store = Quiet()
    followers = Followers(store, period_s=0.001)
    watch = Watches(store, followers, heartbeat_s=0.1).watch(key, None, Start(0))
    assert isinstance(await anext(watch), CaughtUp)
    assert isinstance(await anext(watch), Heartbeat)
    store.refusal = StoreUnavailable("away")
    with pytest.raises(StoreUnavailable):
        await _end_of(watch)
    await followers.close()


async def test_watchers_are_bounded_and_leave_nothing_behind(key: ThreadKey) -> None:
    store = Quiet()
    followers = Followers(store, followers_max=2)
    watches = [Watches(store, followers).watch(key, None, Start(0)) for _ in range(3)]
    await anext(watches[0])
    await anext(watches[1])
    with pytest.raises(Overloaded):
        await anext(watches[2])
    for watch in watches:
        await watch.aclose()
    assert followers._threads == {}
    await anext(again := Watches(store, followers).watch(key, None, Start(0)))
    await again.aclose()
    await followers.close()
