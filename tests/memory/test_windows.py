"""Reading windows: L1 is used where it is known to be right, and nothing that befalls it changes an answer."""

import asyncio
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

import asyncpg
import grpc
import pytest
import redis.asyncio

from tests.memory.changing import insisting
from tests.memory.checker import check_window
from tests.memory.rooms import Memory, refused, seqs, texts
from tests.waiting import until
from twofold.memory.v1.message_pb2 import Completeness, ReadLevel, ReadSource
from twofold_memory import keys, tokens
from twofold_memory.threads import ThreadKey

COMPLETE, AS_OF = Completeness.COMPLETENESS_COMPLETE, Completeness.COMPLETENESS_AS_OF
COMMITTED_ONLY = Completeness.COMPLETENESS_COMMITTED_ONLY
L1, L2 = ReadSource.READ_SOURCE_L1, ReadSource.READ_SOURCE_L2
ANY = ReadLevel.READ_LEVEL_ANY

Raw = redis.asyncio.Redis
Sql = asyncpg.Pool


async def filled(memory: Memory, raw: Raw, key: ThreadKey) -> None:
    """Waits until the fill behind a cold answer has come through."""

    async def warm() -> bool:
        return (await memory.read(key)).source == L1

    await until(warm)


async def test_a_thread_that_is_only_appended_to_is_read_from_l1_and_confirmed(
    room: Memory, other_room: Memory, key: ThreadKey
) -> None:
    """M8."""
    for index in range(5):
        await room.append(key, f"q{index}", f"a{index}")
    for worker in (room, other_room):
        window = await worker.read(key)
        assert (window.source, window.completeness, window.as_of_seq) == (L1, COMPLETE, 10)
        assert seqs(window.messages) == list(range(1, 11))


async def test_a_thread_nobody_wrote_to_is_empty_and_complete_without_a_token(room: Memory, key: ThreadKey) -> None:
    window = await room.read(key)
    assert (len(window.messages), window.completeness, window.as_of_seq, window.thread_token) == (0, COMPLETE, 0, b"")


async def delete_list(raw: Raw, key: ThreadKey) -> None:
    await raw.delete(keys.thread_messages(key))


async def delete_head(raw: Raw, key: ThreadKey) -> None:
    await raw.delete(keys.thread_head(key))


async def delete_both(raw: Raw, key: ThreadKey) -> None:
    await raw.delete(keys.thread_head(key), keys.thread_messages(key))


async def shorten(raw: Raw, key: ThreadKey) -> None:
    await raw.lpop(keys.thread_messages(key))


async def garbage(raw: Raw, key: ThreadKey) -> None:
    await raw.lset(keys.thread_messages(key), 0, "?written by somebody else")


async def another_type(raw: Raw, key: ThreadKey) -> None:
    await raw.delete(keys.thread_messages(key))
    await raw.set(keys.thread_messages(key), b"x", px=60_000)


@pytest.mark.parametrize("damage", [delete_list, delete_head, delete_both, shorten, garbage, another_type])
@pytest.mark.parametrize("then", ["read", "append"])
async def test_whatever_befalls_the_keys_reads_are_complete_and_right(
    room: Memory,
    key: ThreadKey,
    raw_redis: Raw,
    sql: "Sql[Any]",
    damage: Callable[[Raw, ThreadKey], Awaitable[None]],
    then: str,
) -> None:
    """M7, M8, M10; the textbook's worst: an append onto an expired list, after which history is invisible."""
    for index in range(4):
        await room.append(key, f"q{index}", f"a{index}")
    await damage(raw_redis, key)
    count = 8
    if then == "append":
        await room.append(key, "q4", "a4")
        count = 10
    window = await room.read(key)
    assert seqs(window.messages) == list(range(1, count + 1))
    # What waits in a journal cannot be read past a key of another type.
    assert window.completeness == (COMMITTED_ONLY if damage is another_type else COMPLETE)
    await room.read(key)
    if damage not in (garbage, another_type):
        await filled(room, raw_redis, key)
        assert await check_window(raw_redis, sql, key) == count


async def test_an_old_window_restored_by_hand_is_noticed(
    room: Memory, key: ThreadKey, raw_redis: Raw, sql: "Sql[Any]"
) -> None:
    """M8: a lagging replica that became the leader, a backup."""
    first = await room.append(key, "q0", "a0")
    names = [keys.thread_messages(key), keys.thread_head(key)]
    old = [await raw_redis.dump(name) or b"" for name in names]
    last = await room.append(key, "q1", "a1")
    for name, value in zip(names, old, strict=True):
        await raw_redis.restore(name, 60_000, value, replace=True)
    stale = await room.read(key, level=ANY)
    assert (stale.as_of_seq, stale.completeness, stale.source) == (2, AS_OF, L1)
    assert (await room.read(key, token=first.thread_token)).as_of_seq >= 2
    window = await room.read(key, token=last.thread_token)
    assert (seqs(window.messages), window.completeness) == ([1, 2, 3, 4], COMPLETE)
    for name, value in zip(names, old, strict=True):
        await raw_redis.restore(name, 60_000, value, replace=True)
    window = await room.read(key)
    assert (texts(window.messages), window.completeness, window.source) == (["q0", "a0", "q1", "a1"], COMPLETE, L2)
    for name, value in zip(names, old, strict=True):
        await raw_redis.restore(name, 60_000, value, replace=True)
    await room.append(key, "q2", "a2")  # onto the old one: a gap
    assert seqs((await room.read(key)).messages) == list(range(1, 7))
    await filled(room, raw_redis, key)
    assert await check_window(raw_redis, sql, key) == 6


async def test_with_a_token_the_copy_answers_alone_as_soon_as_it_holds_the_turn(
    room: Memory, other_room: Memory, key: ThreadKey
) -> None:
    for index in range(5):
        token = (await room.append(key, f"q{index}")).thread_token
        window = await other_room.read(key, token=token)
        assert (window.source, window.completeness, window.as_of_seq) == (L1, AS_OF, index + 1)


async def test_a_token_of_a_future_that_never_came_is_another_history(room: Memory, key: ThreadKey) -> None:
    await room.append(key, "q")
    for epoch, seq in ((1, 2), (2, 1)):
        async with refused(grpc.StatusCode.ABORTED, "REASON_HISTORY_CHANGED"):
            await room.read(key, token=tokens.seal(key, epoch, seq))
    async with refused(grpc.StatusCode.INVALID_ARGUMENT, "REASON_INVALID_TOKEN"):
        await room.read(key, token=tokens.seal(ThreadKey(key.workspace_id, "other"), 1, 1))


async def test_more_than_the_window_holds_is_read_from_postgres_and_does_not_shrink_the_window(
    new_worker: Any, workspace_id: str, raw_redis: Raw, sql: "Sql[Any]"
) -> None:
    key = ThreadKey(workspace_id, "t")
    async with new_worker(max_thread_messages=3) as worker:
        for index in range(10):
            await worker.append(key, f"q{index}", f"a{index}")
        assert await check_window(raw_redis, sql, key) == 6
        for count, source in ((6, L1), (7, L2), (20, L2), (2, L1)):
            window = await worker.read(key, count)
            assert (window.source, window.completeness) == (source, COMPLETE)
            assert seqs(window.messages) == list(range(21 - count // 2 * 2, 21))  # whole turns of two
        assert await check_window(raw_redis, sql, key) == 6


async def test_m8_readers_and_writers_at_once_never_see_a_hole_or_less_than_was_acknowledged(
    room: Memory, other_room: Memory, key: ThreadKey, raw_redis: Raw, sql: "Sql[Any]"
) -> None:
    """M7, M8, M10 under evictions in the middle of it all."""
    acknowledged, done = 0, False

    async def write(worker: Memory, name: str) -> None:
        nonlocal acknowledged
        for index in range(25):
            turn_id = f"{name}{index}"
            answer = await insisting(partial(worker.append, key, turn_id, "a", turn_id=turn_id))
            acknowledged = max(acknowledged, answer.last_seq)

    async def read(worker: Memory) -> None:
        while not done:
            before = acknowledged
            window = await worker.read(key, 100)
            assert window.completeness == COMPLETE
            assert window.as_of_seq >= before
            assert seqs(window.messages) == list(range(1, window.as_of_seq + 1))[-100:]

    async def evict() -> None:
        damages = (delete_list, delete_head, shorten, delete_both)
        while not done:
            for damage in damages:
                await damage(raw_redis, key)
                await check_window(raw_redis, sql, key)
                await room.read(key)

    background = [asyncio.create_task(task) for task in (read(room), read(other_room), evict())]
    try:
        await asyncio.gather(write(room, "x"), write(other_room, "y"))
    finally:
        done = True
        await asyncio.gather(*background)
    assert seqs(await room.all_messages(key)) == list(range(1, 101))
    await filled(room, raw_redis, key)
    await check_window(raw_redis, sql, key)
