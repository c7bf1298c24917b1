"""Audits on real servers: planted differences of every kind are found, and repaired where that can be; none is made up."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, cast

import asyncpg
import grpc
import pytest

from tests.memory.checker import check_window
from tests.memory.rooms import CALL_S, Memory, database_of, redis_of, refused, serving, texts, thread
from tests.waiting import until
from twofold.memory.v1 import sync_pb2 as pb
from twofold.memory.v1.branch_pb2 import ForkConversationRequest
from twofold.memory.v1.conversation_pb2 import DeleteConversationRequest
from twofold.memory.v1.message_pb2 import Completeness, ReadSource
from twofold.memory.v1.revision_pb2 import EditMessageRequest, NewContent
from twofold_chassis.redis import RedisLink, open_link
from twofold_chassis.refusals import Overloaded, StoreUnavailable
from twofold_chassis.settings import DatabaseSettings, RedisSettings
from twofold_cli.embedded.postgres import EmbeddedPostgres
from twofold_cli.embedded.redis import EmbeddedRedis
from twofold_memory import keys
from twofold_memory.audits import Asked, Audits, Held, Numbers, Truth, WindowState
from twofold_memory.cache.audit import RedisAudits
from twofold_memory.journaled import payload
from twofold_memory.threads import Head, NewMessage, NewTurn, ThreadKey

Sql = asyncpg.Pool
Raw = Any  # redis.asyncio.Redis, whose types know neither bytes nor their mappings
ABSENT, COLD, EQUAL = pb.WINDOW_STATE_ABSENT, pb.WINDOW_STATE_COLD, pb.WINDOW_STATE_EQUAL
LAGGING, AHEAD, DIFFERENT = pb.WINDOW_STATE_LAGGING, pb.WINDOW_STATE_AHEAD, pb.WINDOW_STATE_DIFFERENT
UNKNOWN, NOTHING = pb.WINDOW_STATE_UNKNOWN, pb.WINDOW_STATE_UNSPECIFIED


async def audit(memory: Memory, key: ThreadKey, *, repair: bool = False) -> pb.ConversationAudit:
    request = pb.AuditConversationsRequest(workspace_id=key.workspace_id, thread_id=key.thread_id, repair=repair)
    answer = await memory.sync.AuditConversations(request, timeout=CALL_S)
    assert (answer.audited_count, answer.truncated) == (1, False)
    return answer.conversations[0]


async def sampled(memory: Memory, timeout: float = CALL_S, **fields: Any) -> pb.AuditConversationsResponse:
    return await memory.sync.AuditConversations(pb.AuditConversationsRequest(**fields), timeout=timeout)


@pytest.fixture
async def warm(room: Memory, key: ThreadKey) -> ThreadKey:
    """A thread of three turns, six messages, with a window that holds them all."""
    for index in range(3):
        await room.append(key, f"q{index}", f"a{index}", turn_id=f"t{index}")
    return key


async def test_what_is_legal_is_told_as_that(room: Memory, raw_redis: Raw, warm: ThreadKey) -> None:
    found = await audit(room, warm)
    assert (found.window, found.window_first_seq, found.window_last_seq, found.last_seq) == (EQUAL, 1, 6, 6)
    assert not found.numbers_unknown
    assert (found.missing_count, found.stray_count, found.beyond_count, found.waiting_count) == (0, 0, 0, 0)
    await raw_redis.delete(keys.thread_messages(warm))
    assert (await audit(room, warm)).window == COLD
    await raw_redis.delete(keys.thread_head(warm))
    for repair in (False, True):
        found = await audit(room, warm, repair=repair)
        assert (found.window, found.window_after) == (ABSENT, NOTHING), "what is legal is not repaired"


async def _another_content(raw: Raw, key: ThreadKey) -> None:
    element = await raw.lindex(keys.thread_messages(key), 2)
    assert element.count(b"q1") == 1
    await raw.lset(keys.thread_messages(key), 2, element.replace(b"q1", b"Q1"))


async def _another_order(raw: Raw, key: ThreadKey) -> None:
    elements = await raw.lrange(keys.thread_messages(key), 2, 3)
    await raw.lset(keys.thread_messages(key), 2, elements[1])
    await raw.lset(keys.thread_messages(key), 3, elements[0])


async def _another_letter(raw: Raw, key: ThreadKey) -> None:
    element = await raw.lindex(keys.thread_messages(key), 2)
    await raw.lset(keys.thread_messages(key), 2, b"m" + element[1:])


async def _garbage(raw: Raw, key: ThreadKey) -> None:
    await raw.lset(keys.thread_messages(key), 2, b"")


async def _moved_by_one(raw: Raw, key: ThreadKey) -> None:
    """The list of messages 1 … 5 as if it were 2 … 6."""
    await raw.rpop(keys.thread_messages(key))
    await raw.hset(keys.thread_head(key), "first", "2")


async def _another_owner(raw: Raw, key: ThreadKey) -> None:
    await raw.hset(keys.thread_head(key), "owner", "eve")


async def _for_ever(raw: Raw, key: ThreadKey) -> None:
    await raw.persist(keys.thread_messages(key))


async def _erased(raw: Raw, key: ThreadKey) -> None:
    await raw.hset(keys.thread_head(key), "erased", "1")


async def _one_more(raw: Raw, key: ThreadKey) -> None:
    await raw.rpush(keys.thread_messages(key), await raw.lindex(keys.thread_messages(key), -1))
    await raw.hset(keys.thread_head(key), "next", "8")


async def _later_epoch(raw: Raw, key: ThreadKey) -> None:
    await raw.hset(keys.thread_head(key), "epoch", "7")


async def _told_of_more(raw: Raw, key: ThreadKey) -> None:
    await raw.hset(keys.thread_head(key), "hw", "70")


async def _cold_and_told_of_more(raw: Raw, key: ThreadKey) -> None:
    await raw.delete(keys.thread_messages(key))
    await raw.hset(keys.thread_head(key), mapping={"first": "0", "next": "0", "hw": "70"})


async def _one_turn_less(raw: Raw, key: ThreadKey) -> None:
    await raw.ltrim(keys.thread_messages(key), 0, 3)
    await raw.hset(keys.thread_head(key), mapping={"next": "5", "hw": "4"})


async def _earlier_epoch(raw: Raw, key: ThreadKey) -> None:
    await raw.hset(keys.thread_head(key), "epoch", "0")


Plant = Callable[[Raw, ThreadKey], Awaitable[None]]


@pytest.mark.parametrize(
    ("plant", "state", "seq"),
    [
        (_another_content, DIFFERENT, 3),
        (_another_order, DIFFERENT, 3),
        (_another_letter, DIFFERENT, 3),
        (_garbage, DIFFERENT, 3),
        (_moved_by_one, DIFFERENT, 2),
        (_another_owner, DIFFERENT, 0),
        (_for_ever, DIFFERENT, 0),
        (_erased, DIFFERENT, 0),
        (_one_more, AHEAD, 0),
        (_later_epoch, AHEAD, 0),
        (_told_of_more, AHEAD, 0),
        (_cold_and_told_of_more, AHEAD, 0),
        (_one_turn_less, LAGGING, 0),
        (_earlier_epoch, LAGGING, 0),
    ],
)
async def test_a_window_that_was_changed_by_hand_is_found_and_filled_anew(
    room: Memory, sql: "Sql[Any]", raw_redis: Raw, warm: ThreadKey, plant: Plant, state: int, seq: int
) -> None:
    await plant(raw_redis, warm)
    for _ in range(2):
        found = await audit(room, warm)
        assert (found.window, found.different_seq, found.window_after) == (state, seq, NOTHING)
    found = await audit(room, warm, repair=True)
    assert (found.window, found.different_seq, found.window_after) == (state, seq, EQUAL)
    assert (await audit(room, warm)).window == EQUAL
    assert await check_window(raw_redis, sql, warm) == 6
    window = await room.read(warm)
    assert (window.source, window.completeness) == (ReadSource.READ_SOURCE_L1, Completeness.COMPLETENESS_COMPLETE)
    await room.append(warm, "q3")
    assert await check_window(raw_redis, sql, warm) == 7


async def test_a_row_that_was_changed_in_postgres_is_what_counts(
    room: Memory, sql: "Sql[Any]", raw_redis: Raw, warm: ThreadKey
) -> None:
    await sql.execute(
        "UPDATE memory.messages SET content = 'changed' WHERE workspace_id = $1 AND thread_id = $2 AND seq = 4", *warm
    )
    found = await audit(room, warm, repair=True)
    assert (found.window, found.different_seq, found.window_after) == (DIFFERENT, 4, EQUAL)
    window = await room.read(warm)
    assert (window.source, window.messages[3].content) == (ReadSource.READ_SOURCE_L1, "changed")


@pytest.mark.parametrize(
    ("change", "missing", "stray", "beyond", "state", "after"),
    [
        ("DELETE FROM memory.messages WHERE {} AND seq = 1", (1, 1), (0, 0), 0, DIFFERENT, COLD),
        ("DELETE FROM memory.messages WHERE {} AND seq IN (3, 4)", (2, 3), (0, 0), 0, DIFFERENT, COLD),
        ("DELETE FROM memory.messages WHERE {} AND seq = 6", (1, 6), (0, 0), 0, DIFFERENT, COLD),
        ("DELETE FROM memory.messages WHERE {}", (6, 1), (0, 0), 0, DIFFERENT, COLD),
        ("DELETE FROM memory.turns WHERE {} AND turn_id = 't1'", (0, 0), (2, 3), 0, EQUAL, NOTHING),
        ("UPDATE memory.turns SET dead = true WHERE {} AND turn_id = 't1'", (0, 0), (2, 3), 0, EQUAL, NOTHING),
        ("UPDATE memory.turns SET last_seq = first_seq WHERE {} AND turn_id = 't1'", (0, 0), (1, 4), 0, EQUAL, NOTHING),
        ("UPDATE memory.messages SET turn_index = 5 WHERE {} AND seq = 2", (0, 0), (1, 2), 0, DIFFERENT, COLD),
        ("UPDATE memory.messages SET turn_id = 't2' WHERE {} AND seq = 3", (0, 0), (1, 3), 0, DIFFERENT, COLD),
        ("UPDATE memory.conversations SET next_seq = 9 WHERE {}", (2, 7), (0, 0), 0, LAGGING, LAGGING),
        ("UPDATE memory.conversations SET next_seq = 5 WHERE {}", (0, 0), (0, 0), 2, AHEAD, COLD),
    ],
)
async def test_numbers_that_are_wrong_in_postgres_are_reported_and_left_alone(
    room: Memory,
    sql: "Sql[Any]",
    warm: ThreadKey,
    change: str,
    missing: tuple[int, int],
    stray: tuple[int, int],
    beyond: int,
    state: int,
    after: int,
) -> None:
    """M1, M3."""
    await sql.execute(change.format("workspace_id = $1 AND thread_id = $2"), *warm)
    for repair in (False, True):
        found = await audit(room, warm, repair=repair)
        assert not found.numbers_unknown
        assert (found.missing_count, found.missing_seq) == missing
        assert (found.stray_count, found.stray_seq) == stray
        assert found.beyond_count == beyond
        assert (found.window, found.window_after) == (state, after if repair else NOTHING)


async def test_a_branch_is_looked_at_with_what_it_shares(room: Memory, sql: "Sql[Any]", warm: ThreadKey) -> None:
    branch = thread(warm.workspace_id)
    await room.branches.ForkConversation(
        ForkConversationRequest(
            workspace_id=warm.workspace_id, thread_id=warm.thread_id, at_seq=3, branch_thread_id=branch.thread_id
        ),
        timeout=CALL_S,
    )
    await room.append(branch, "other", turn_id="other")
    await room.read(branch)

    async def filled() -> bool:
        return (await audit(room, branch)).window == EQUAL

    await until(filled)
    found = await audit(room, branch)
    assert (found.last_seq, found.missing_count, found.stray_count) == (4, 0, 0)
    where = f"WHERE workspace_id = '{warm.workspace_id}' AND thread_id = '{warm.thread_id}'"
    await sql.execute(f"DELETE FROM memory.messages {where} AND seq = 5")
    assert (await audit(room, branch)).missing_count == 0, "that one it does not share"
    await sql.execute(f"DELETE FROM memory.messages {where} AND seq = 2")
    found = await audit(room, branch)
    assert (found.missing_count, found.missing_seq, found.window, found.different_seq) == (1, 2, DIFFERENT, 2)
    found = await audit(room, warm)
    assert (found.missing_count, found.missing_seq) == (2, 2)


async def test_a_window_of_a_deleted_conversation_is_found_and_goes(room: Memory, raw_redis: Raw, warm: ThreadKey) -> None:
    names = (keys.thread_messages(warm), keys.thread_head(warm))
    elements, head = await raw_redis.lrange(names[0], 0, -1), await raw_redis.hgetall(names[1])
    await room.conversations.DeleteConversation(
        DeleteConversationRequest(workspace_id=warm.workspace_id, thread_id=warm.thread_id), timeout=CALL_S
    )
    assert (await audit(room, warm)).window == COLD
    await raw_redis.rpush(names[0], *elements)
    await raw_redis.hset(names[1], mapping=head)
    await raw_redis.expire(names[0], 3600)
    assert (await audit(room, warm)).window == LAGGING, "of the history before: nobody may show it as the newest"
    found = await audit(room, warm, repair=True)
    assert (found.window, found.window_after) == (LAGGING, COLD)
    await raw_redis.rpush(names[0], *elements)
    await raw_redis.hset(names[1], mapping=head | {b"epoch": b"2"})
    await raw_redis.expire(names[0], 3600)
    found = await audit(room, warm, repair=True)
    assert (found.window, found.window_after) == (DIFFERENT, COLD)
    assert not await raw_redis.exists(names[0])


async def test_a_thread_that_only_redis_knows_is_told_and_dropped(room: Memory, raw_redis: Raw, warm: ThreadKey) -> None:
    other = thread(warm.workspace_id)
    async with refused(grpc.StatusCode.NOT_FOUND, "REASON_CONVERSATION_UNKNOWN"):
        await audit(room, other)
    for name in (keys.thread_messages, keys.thread_head):
        await raw_redis.copy(name(warm), name(other))
    found = await audit(room, other)
    assert (found.window, found.absent_in_postgres, found.numbers_unknown) == (AHEAD, True, False)
    assert (await audit(room, other, repair=True)).window_after == ABSENT
    async with refused(grpc.StatusCode.NOT_FOUND, "REASON_CONVERSATION_UNKNOWN"):
        await audit(room, other)


async def plant_waiting(raw: Raw, key: ThreadKey, turn_id: str, payload_hash: bytes, *words: str) -> None:
    """A turn in the journal that no search finds: its thread is not in the index."""
    turn = NewTurn(key, None, turn_id, payload_hash, [NewMessage(2, text, b"", None) for text in words], 10)
    await raw.rpush(keys.thread_waiting(key), turn_id)
    value = b"\n".join((payload_hash.hex().encode(), b"gone", b"0", b"", payload(turn)))
    await raw.hset(keys.thread_waiting_data(key), turn_id, value)


async def test_turns_that_wait_although_postgres_has_them_are_told_and_taken_out(
    room: Memory, sql: "Sql[Any]", raw_redis: Raw, warm: ThreadKey
) -> None:
    payload_hash = await sql.fetchval(
        "SELECT payload_hash FROM memory.turns WHERE workspace_id = $1 AND thread_id = $2 AND turn_id = 't1'", *warm
    )
    await plant_waiting(raw_redis, warm, "t1", payload_hash, "q1", "a1")
    await plant_waiting(raw_redis, warm, "new", b"\1" * 32, "waits rightly")
    found = await audit(room, warm)
    assert (found.window, found.waiting_count, list(found.leftover_turn_ids)) == (EQUAL, 2, ["t1"])
    found = await audit(room, warm, repair=True)
    assert (found.waiting_count, list(found.leftover_turn_ids), found.waiting_count_after) == (2, ["t1"], 0)
    assert not await raw_redis.exists(keys.thread_waiting(warm), keys.thread_waiting_data(warm))
    assert texts(await room.all_messages(warm))[-2:] == ["a2", "waits rightly"]
    found = await audit(room, warm)
    assert (found.window, found.last_seq, found.waiting_count) == (EQUAL, 7, 0)


async def test_a_sample_is_what_was_changed_last_and_can_be_cut_to_what_is_wrong(
    room: Memory, sql: "Sql[Any]", raw_redis: Raw, workspace_id: str
) -> None:
    threads = [thread(workspace_id) for _ in range(5)]
    for index, key in enumerate(threads):
        await room.append(key, "q0", "a0", "q1", "a1")
        await sql.execute(
            "UPDATE memory.conversations SET listed_at = now() + $3 * interval '1 hour'"
            " WHERE workspace_id = $1 AND thread_id = $2",
            *key,
            index,
        )
    newest_first = [key.thread_id for key in reversed(threads)]
    answer = await sampled(room, workspace_id=workspace_id)
    assert [found.thread_id for found in answer.conversations] == newest_first
    assert {found.window for found in answer.conversations} == {EQUAL}
    answer = await sampled(room, workspace_id=workspace_id, sample_size=2)
    assert [found.thread_id for found in answer.conversations] == newest_first[:2]
    await _another_content(raw_redis, threads[1])
    answer = await sampled(room, workspace_id=workspace_id, only_findings=True)
    assert [(found.thread_id, found.window) for found in answer.conversations] == [(threads[1].thread_id, DIFFERENT)]
    assert (answer.audited_count, answer.truncated) == (5, False)
    of_all = await sampled(room, sample_size=5)
    assert {(found.workspace_id, found.thread_id) for found in of_all.conversations} >= set(threads[2:])
    answer = await sampled(room, workspace_id=workspace_id, repair=True, only_findings=True)
    assert [found.window_after for found in answer.conversations] == [EQUAL]
    assert not (await sampled(room, workspace_id=workspace_id, only_findings=True)).conversations


async def test_what_there_is_no_time_for_is_not_begun(room: Memory, warm: ThreadKey) -> None:
    answer = await sampled(room, timeout=2.5, workspace_id=warm.workspace_id)
    assert (list(answer.conversations), answer.audited_count, answer.truncated) == ([], 0, True)


async def test_nothing_is_made_up_of_threads_that_change_all_the_time(
    room: Memory, other_room: Memory, raw_redis: Raw, workspace_id: str
) -> None:
    """Appends, edits, reads and lost windows at two workers while both audit, one of them repairing."""
    threads = [thread(workspace_id) for _ in range(3)]
    for key in threads:
        await room.append(key, "q", "a")
    stop = asyncio.Event()

    async def writing(worker: Memory, key: ThreadKey) -> None:
        index = 0
        while not stop.is_set():
            index += 1
            with contextlib.suppress(grpc.aio.AioRpcError):  # all at one thread: some are told that it is busy
                await worker.append(key, f"q{index}", f"a{index}")
                if index % 3 == 0:
                    edit = EditMessageRequest(
                        workspace_id=workspace_id, thread_id=key.thread_id, seq=1, content=NewContent(text=f"edit {index}")
                    )
                    await worker.revisions.EditMessage(edit, timeout=CALL_S)
                if index % 5 == 0:
                    await raw_redis.delete(keys.thread_messages(key))
                await worker.read(key)

    tasks = [asyncio.create_task(writing(worker, key)) for worker in (room, other_room) for key in threads]
    try:
        for _ in range(8):
            for worker, repair in ((room, False), (other_room, True)):
                answer = await sampled(worker, workspace_id=workspace_id, repair=repair)
                assert answer.audited_count == 3
                for found in answer.conversations:
                    assert found.window in (ABSENT, COLD, EQUAL, LAGGING), found
                    numbers = (found.missing_count, found.stray_count, found.beyond_count, len(found.leftover_turn_ids))
                    assert (found.numbers_unknown, numbers) == (False, (0, 0, 0, 0))
    finally:
        stop.set()
        await asyncio.gather(*tasks)


class Slow:
    """A store whose sample takes until it is told, and whose numbers take too long."""

    def __init__(self) -> None:
        self.go_on = asyncio.Event()

    async def sample(self, workspace_id: str | None, count: int) -> list[ThreadKey]:
        await self.go_on.wait()
        return [ThreadKey("w", "t")]

    async def truth(self, key: ThreadKey, first_seq: int, next_seq: int) -> Truth | None:
        return Truth(Head(3, 1, None, False), [])

    async def numbers(self, key: ThreadKey) -> Numbers:
        raise StoreUnavailable("took too long")


class Nothing:
    """A Redis that holds nothing of a thread; nothing is asked of the others."""

    messages_max = 100

    async def held(self, key: ThreadKey) -> Held | None:
        return Held((), 0, 0, 0, 0, None, False, 0, False, [], [])


async def test_few_audits_run_at_once_and_numbers_that_take_too_long_are_not_called_right() -> None:
    store, nothing = Slow(), Nothing()
    audits = Audits(store, cast(Any, nothing), cast(Any, nothing), cast(Any, nothing), cast(Any, nothing))
    asked = Asked(None, None, 5, repair=False)
    running = [asyncio.create_task(audits.audit(asked)) for _ in range(4)]
    await asyncio.sleep(0)
    with pytest.raises(Overloaded):
        await audits.audit(asked)
    store.go_on.set()
    for report in await asyncio.gather(*running):
        (finding,) = report.findings
        assert (finding.window, finding.numbers, finding.sound) == (WindowState.ABSENT, None, False)
    assert len((await audits.audit(asked)).findings) == 1


@pytest.fixture
async def link(redis_settings: RedisSettings) -> AsyncIterator[RedisLink]:
    link = await open_link(redis_settings)
    yield link
    await link.close()


async def test_a_window_that_has_changed_since_it_was_looked_at_is_not_dropped(
    room: Memory, link: RedisLink, raw_redis: Raw, warm: ThreadKey
) -> None:
    audits, head = RedisAudits(link, ttl_s=3600), Head(7, 1, None, False)
    before = await audits.held(warm)
    assert before is not None
    await room.append(warm, "q3")
    assert not await audits.drop(warm, before.mark, head)
    assert (await audit(room, warm)).window == EQUAL
    now = await audits.held(warm)
    assert now is not None
    for field in ("epoch", "first", "next", "hw", "owner", "erased"):
        before_that = await raw_redis.hget(keys.thread_head(warm), field)
        await raw_redis.hset(keys.thread_head(warm), field, "70")
        assert not await audits.drop(warm, now.mark, head), field
        if before_that is None:
            await raw_redis.hdel(keys.thread_head(warm), field)
        else:
            await raw_redis.hset(keys.thread_head(warm), field, before_that)
    await raw_redis.rpop(keys.thread_messages(warm))
    assert not await audits.drop(warm, now.mark, head)
    left = await audits.held(warm)
    assert left is not None
    assert await audits.drop(warm, left.mark, head)
    assert await raw_redis.pttl(keys.thread_head(warm)) > 0
    cold = await audits.held(warm)
    assert cold is not None
    assert (cold.warm, cold.epoch, cold.highest_seq) == (False, 1, 6)


async def test_with_redis_killed_the_numbers_are_told_and_the_window_is_unknown(
    memory_database: DatabaseSettings, own_redis: EmbeddedRedis, key: ThreadKey
) -> None:
    async with serving(memory_database, redis_of(own_redis)) as worker:
        await worker.append(key, "q", "a")
        await own_redis.kill()
        for repair in (False, True):
            found = await audit(worker, key, repair=repair)
            assert (found.window, found.last_seq, found.missing_count, found.numbers_unknown) == (UNKNOWN, 2, 0, False)


async def test_with_postgres_silent_there_is_nothing_to_compare_with(
    own_postgres: EmbeddedPostgres, redis_settings: RedisSettings, key: ThreadKey
) -> None:
    database = database_of(await own_postgres.create_database("memory"), command_timeout_s=1, connect_timeout_s=1)
    async with serving(database, redis_settings) as worker:
        await worker.append(key, "q", "a")
        await own_postgres.kill()
        async with refused(grpc.StatusCode.UNAVAILABLE, "REASON_STORE_UNAVAILABLE"):
            await audit(worker, key)
        async with refused(grpc.StatusCode.UNAVAILABLE, "REASON_STORE_UNAVAILABLE"):
            await sampled(worker, workspace_id=key.workspace_id)
