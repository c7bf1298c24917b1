"""The journal, on real servers: what is accepted while Postgres is silent comes in once, in order, or is a dead letter."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Iterator

import asyncpg
import grpc
import pytest
import redis.asyncio

from tests.memory.rooms import (
    CALL_S,
    Memory,
    database_of,
    reason,
    redis_of,
    refused,
    said,
    seqs,
    serving,
    texts,
    thread,
)
from tests.waiting import until
from twofold.memory.v1.conversation_pb2 import (
    AppendTurnRequest,
    AppendTurnResponse,
    DeleteConversationRequest,
    GetTurnRequest,
    ReadWindowRequest,
    ReadWindowResponse,
)
from twofold.memory.v1.message_pb2 import Completeness, Durability, Message, Role
from twofold.memory.v1.turn_pb2 import BeginTurnRequest, CommitTurnRequest, TurnPolicy
from twofold_chassis.settings import DatabaseSettings
from twofold_cli.embedded.postgres import EmbeddedPostgres
from twofold_cli.embedded.redis import EmbeddedRedis
from twofold_memory import keys
from twofold_memory.threads import ThreadKey

COMMITTED, JOURNALED = Durability.DURABILITY_COMMITTED, Durability.DURABILITY_JOURNALED
COMPLETE, PARTIAL = Completeness.COMPLETENESS_COMPLETE, Completeness.COMPLETENESS_PARTIAL
UNVERIFIED = Completeness.COMPLETENESS_UNVERIFIED
# A worker that journals soon; the time to put a turn into the journal is generous, tests run on busy machines.
HASTY = {"commit_ms": 100, "journal_ms": 5000, "confirm_ms": 200}


@pytest.fixture
async def database(own_postgres: EmbeddedPostgres) -> DatabaseSettings:
    return database_of(await own_postgres.create_database("memory"), command_timeout_s=1, connect_timeout_s=1)


@pytest.fixture
async def worker(database: DatabaseSettings, own_redis: EmbeddedRedis) -> AsyncIterator[Memory]:
    async with serving(database, redis_of(own_redis), **HASTY) as memory:
        yield memory


@pytest.fixture
async def other(worker: Memory, database: DatabaseSettings, own_redis: EmbeddedRedis) -> AsyncIterator[Memory]:
    async with serving(database, redis_of(own_redis), **HASTY) as memory:
        yield memory


@contextlib.contextmanager
def silent(server: EmbeddedPostgres) -> Iterator[None]:
    server.pause()
    try:
        yield
    finally:
        server.resume()


def request(key: ThreadKey, *words: str, turn_id: str = "", **fields: object) -> AppendTurnRequest:
    return AppendTurnRequest(
        workspace_id=key.workspace_id,
        thread_id=key.thread_id,
        request_id=turn_id,
        messages=said(*words),
        **fields,  # type: ignore[arg-type]
    )


async def append(memory: Memory, key: ThreadKey, *words: str, turn_id: str = "", **fields: object) -> AppendTurnResponse:
    return await memory.conversations.AppendTurn(request(key, *words, turn_id=turn_id, **fields), timeout=CALL_S)


async def journaled(memory: Memory, key: ThreadKey, *words: str, turn_id: str = "", **fields: object) -> AppendTurnResponse:
    answer = await append(memory, key, *words, turn_id=turn_id, durability=JOURNALED, **fields)
    assert answer.durability == JOURNALED
    return answer


async def until_stored(memory: Memory, key: ThreadKey, count: int) -> ReadWindowResponse:
    """The window, once this many messages are in Postgres."""
    found = ReadWindowResponse()

    async def stored() -> bool:
        nonlocal found
        found = await memory.read(key, 500)
        return found.as_of_seq >= count

    await until(stored)
    return found


def flushed(server: EmbeddedRedis) -> "contextlib.AbstractAsyncContextManager[redis.asyncio.Redis]":
    return redis.asyncio.Redis(host=server.host, port=server.port, password=server.password)


async def test_m6_while_postgres_is_silent_turns_are_journaled_shown_and_come_in_once_and_in_order(
    worker: Memory, own_postgres: EmbeddedPostgres, workspace_id: str
) -> None:
    """M6, M2: on a warm thread and on one that does not exist yet."""
    warm, new = thread(workspace_id), thread(workspace_id)
    await append(worker, warm, "q0", "a0", durability=COMMITTED)
    with silent(own_postgres):
        for index in range(1, 4):
            for key in (warm, new):
                answer = await append(worker, key, f"q{index}", f"a{index}", turn_id=f"t{index}")
                assert (answer.durability, answer.first_seq, answer.duplicate) == (JOURNALED, 0, False)
        window = await worker.read(warm)
        assert texts(window.messages) == ["q0", "a0", "q1", "a1", "q2", "a2", "q3", "a3"]
        assert seqs(window.messages) == [1, 2, 0, 0, 0, 0, 0, 0]
        assert (window.completeness, window.as_of_seq) == (UNVERIFIED, 2)
        window = await worker.read(new)
        assert texts(window.messages) == ["q1", "a1", "q2", "a2", "q3", "a3"]
        assert window.completeness == PARTIAL
        again = await append(worker, warm, "q2", "a2", turn_id="t2")
        assert (again.durability, again.duplicate) == (JOURNALED, True)
        async with refused(grpc.StatusCode.ALREADY_EXISTS, "REASON_REQUEST_REUSED"):
            await append(worker, warm, "something else", turn_id="t2")
    for key, count in ((warm, 8), (new, 6)):
        window = await until_stored(worker, key, count)
        assert seqs(window.messages) == list(range(1, count + 1))
        assert texts(window.messages)[-6:] == ["q1", "a1", "q2", "a2", "q3", "a3"]
        assert window.completeness == COMPLETE
    retried = await append(worker, warm, "q2", "a2", turn_id="t2")
    assert (retried.durability, retried.first_seq, retried.duplicate) == (COMMITTED, 5, True)


async def test_what_waits_for_a_conversation_that_nobody_can_look_up_is_shown_to_those_for_whom_it_was_said(
    worker: Memory, own_postgres: EmbeddedPostgres, own_redis: EmbeddedRedis, workspace_id: str
) -> None:
    """The conversation is Alice's, and Redis has forgotten it: neither is it told to Bob, nor called unknown to Alice."""
    spoken_for, poked = thread(workspace_id), thread(workspace_id)
    for key in (spoken_for, poked):
        await append(worker, key, "q0", "a0", user_id="alice", durability=COMMITTED)
    async with flushed(own_redis) as client:
        await client.flushall()
    with silent(own_postgres):
        for key, user_id in ((spoken_for, ""), (poked, "bob")):
            await journaled(worker, key, "before", user_id=user_id)
            await journaled(worker, key, "secret", user_id="alice")
        for key in (spoken_for, poked):
            for user_id in ("alice", "bob"):
                async with refused(grpc.StatusCode.UNAVAILABLE, "REASON_STORE_UNAVAILABLE"):
                    await read_as(worker, key, user_id)
        assert texts((await worker.read(spoken_for)).messages) == ["before", "secret"]
    await until_stored(worker, spoken_for, 4)
    assert texts((await read_as(worker, spoken_for, "alice")).messages) == ["q0", "a0", "before", "secret"]


async def read_as(memory: Memory, key: ThreadKey, user_id: str) -> ReadWindowResponse:
    asked = ReadWindowRequest(workspace_id=key.workspace_id, thread_id=key.thread_id, user_id=user_id)
    return await memory.conversations.ReadWindow(asked, timeout=CALL_S)


async def test_a_stored_turn_that_is_said_again_while_postgres_is_silent_is_not_shown_behind_newer_ones(
    worker: Memory, own_postgres: EmbeddedPostgres, key: ThreadKey
) -> None:
    """M8: also in a window that is too short to hold it where it belongs."""
    for index in range(1, 4):
        await append(worker, key, f"q{index}", f"a{index}", turn_id=f"t{index}")
    await until_stored(worker, key, 6)
    with silent(own_postgres):
        again = await append(worker, key, "q1", "a1", turn_id="t1")
        assert again.durability == JOURNALED
        window = await worker.read(key, 2)
        assert (texts(window.messages), seqs(window.messages)) == (["q3", "a3"], [5, 6])
        assert (window.completeness, window.as_of_seq) == (UNVERIFIED, 6)


async def test_who_asks_for_a_turn_that_waits_is_told_that_it_is_on_its_way(
    worker: Memory, other: Memory, own_postgres: EmbeddedPostgres, workspace_id: str
) -> None:
    """Who keeps what an agent has answered must not take it for lost, and ask the agent again."""
    key = thread(workspace_id)
    asked = GetTurnRequest(workspace_id=key.workspace_id, thread_id=key.thread_id, turn_id="t", user_id="ada")
    await journaled(worker, key, "q", turn_id="t", user_id="ada")
    codes = set()

    async def found() -> bool:
        try:
            return bool((await other.conversations.GetTurn(asked, timeout=CALL_S)).messages)
        except grpc.aio.AioRpcError as error:
            codes.add(reason(error))
            return False

    await until(found)
    assert codes <= {"REASON_TURN_ON_ITS_WAY"}


async def test_m20_clocks_that_jump_change_no_order_and_no_outcome(
    worker: Memory,
    other: Memory,
    own_postgres: EmbeddedPostgres,
    workspace_id: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Years forward and back between turns that are journaled, at both workers: the one use they make of the time of day."""
    key, years = thread(workspace_id), [0, 20, -20, 1, -1]
    real_ns = time.time_ns
    with silent(own_postgres):
        for index, offset in enumerate(years):
            monkeypatch.setattr(time, "time_ns", lambda shift=offset: real_ns() + shift * 31_536_000 * 10**9)
            memory = (worker, other)[index % 2]
            assert (await append(memory, key, f"q{index}", turn_id=f"t{index}")).durability == JOURNALED
        assert texts((await worker.read(key)).messages) == [f"q{index}" for index in range(len(years))]
    window = await until_stored(other, key, len(years))
    assert texts(window.messages) == [f"q{index}" for index in range(len(years))]
    assert seqs(window.messages) == list(range(1, len(years) + 1))
    answer = await append(worker, key, "now", turn_id="now")
    assert (answer.durability, answer.first_seq, answer.order_unverified) == (COMMITTED, len(years) + 1, False)


async def test_with_postgres_killed_a_turn_is_journaled_at_once(
    worker: Memory, own_postgres: EmbeddedPostgres, workspace_id: str
) -> None:
    key = thread(workspace_id)
    await own_postgres.kill()
    for index in range(5):
        assert (await append(worker, key, f"q{index}")).durability == JOURNALED
    await own_postgres.start()
    assert texts((await until_stored(worker, key, 5)).messages) == [f"q{index}" for index in range(5)]


async def test_no_later_turn_overtakes_one_that_waits_at_any_worker(
    worker: Memory, other: Memory, own_postgres: EmbeddedPostgres, workspace_id: str
) -> None:
    """M2: acknowledged before sent, so the smaller number; also where the later one goes through another worker."""
    key = thread(workspace_id)
    with silent(own_postgres):
        await append(worker, key, "first", turn_id="first")
    answer = await append(other, key, "second", turn_id="second")
    window = await until_stored(other, key, 2)
    assert texts(window.messages) == ["first", "second"]
    assert not answer.order_unverified


async def test_a_caller_can_ask_for_the_journal_and_for_nothing_but_a_commit(
    worker: Memory, own_postgres: EmbeddedPostgres, workspace_id: str
) -> None:
    key = thread(workspace_id)
    token = (await journaled(worker, key, "q", turn_id="t")).thread_token
    window = await worker.read(key, token=token)
    assert texts(window.messages) == ["q"]
    await until_stored(worker, key, 1)
    assert (await append(worker, key, "more", durability=COMMITTED)).first_seq == 2
    with silent(own_postgres):
        async with refused(grpc.StatusCode.UNAVAILABLE, "REASON_STORE_UNAVAILABLE"):
            await append(worker, key, "q", durability=COMMITTED)


async def test_a_token_finds_its_turn_in_the_journal_and_in_postgres_and_is_refused_where_it_is_lost(
    worker: Memory, other: Memory, own_postgres: EmbeddedPostgres, own_redis: EmbeddedRedis, workspace_id: str
) -> None:
    """M8."""
    key, outcomes = thread(workspace_id), set[str]()
    await append(worker, key, "q0", durability=COMMITTED)
    with silent(own_postgres):
        answer = await append(worker, key, "q1", turn_id="t1")
        assert texts((await other.read(key, token=answer.thread_token)).messages) == ["q0", "q1"]
        async with flushed(own_redis) as client:
            for _ in range(4):  # its worker puts it back, sooner or later than we ask
                await client.flushall()
                try:
                    window = await other.read(key, token=answer.thread_token)
                except grpc.aio.AioRpcError as error:
                    outcomes.add(reason(error))
                else:
                    outcomes.add(",".join(texts(window.messages)))
        assert outcomes <= {"REASON_STORE_UNAVAILABLE", "q1", "q0,q1"}
        assert "REASON_STORE_UNAVAILABLE" in outcomes
    await until_stored(worker, key, 2)
    window = await other.read(key, token=answer.thread_token)
    assert (texts(window.messages), window.completeness) == (["q0", "q1"], COMPLETE)
    after = await append(other, key, "q2", turn_id="t2", after_token=answer.thread_token)
    assert (after.durability, after.first_seq) == (COMMITTED, 3)


async def test_a_turn_behind_one_that_is_lost_for_now_is_refused_and_goes_in_later(
    worker: Memory, other: Memory, own_postgres: EmbeddedPostgres, own_redis: EmbeddedRedis, workspace_id: str
) -> None:
    """R4: `after` keeps the order even where Redis has lost what waits."""
    key = thread(workspace_id)
    with silent(own_postgres):
        token = (await append(worker, key, "first", turn_id="first")).thread_token
        stop = asyncio.Event()
        async with flushed(own_redis) as client:

            async def flushing() -> None:
                while not stop.is_set():
                    await client.flushall()
                    await asyncio.sleep(0)

            task = asyncio.create_task(flushing())
            try:
                with contextlib.suppress(grpc.aio.AioRpcError):
                    await append(other, key, "second", turn_id="second", after_token=token)
            finally:
                stop.set()
                await task

    codes: set[grpc.StatusCode] = set()

    async def stored() -> bool:
        try:
            answer = await append(other, key, "second", turn_id="second", after_token=token)
        except grpc.aio.AioRpcError as error:
            codes.add(error.code())
            return False
        return answer.durability == COMMITTED

    await until(stored)
    assert codes <= {grpc.StatusCode.ABORTED, grpc.StatusCode.UNAVAILABLE}
    assert texts((await until_stored(other, key, 2)).messages) == ["first", "second"]


async def test_a_turn_that_names_the_one_before_it_goes_in_together_with_it_also_from_memory_alone(
    worker: Memory, own_postgres: EmbeddedPostgres, own_redis: EmbeddedRedis, workspace_id: str
) -> None:
    """It was refused as behind one that is missing, by the transaction that stored that one; the drain failed for ever."""
    key = thread(workspace_id)
    with silent(own_postgres):
        token = (await journaled(worker, key, "first", turn_id="first")).thread_token
        await journaled(worker, key, "second", turn_id="second", after_token=token)
        await own_redis.kill()
    assert texts((await until_stored(worker, key, 2)).messages) == ["first", "second"]


async def test_what_waits_survives_a_flush_because_its_worker_puts_it_back(
    worker: Memory, own_postgres: EmbeddedPostgres, own_redis: EmbeddedRedis, workspace_id: str
) -> None:
    """M6."""
    key = thread(workspace_id)
    with silent(own_postgres):
        for index in range(3):
            await append(worker, key, f"q{index}", turn_id=f"t{index}")
        async with flushed(own_redis) as client:
            await client.flushall()

            async def put_back() -> bool:
                return bool(await client.llen(keys.thread_waiting(key)) == 3)

            await until(put_back)
            assert await client.hlen(keys.journal(keys.journal_shard(key))) == 1
    assert texts((await until_stored(worker, key, 3)).messages) == ["q0", "q1", "q2"]


async def test_what_a_dead_worker_left_is_found_and_brought_in_by_another(
    database: DatabaseSettings, own_postgres: EmbeddedPostgres, own_redis: EmbeddedRedis, workspace_id: str
) -> None:
    """M6: here the worker ends while Postgres is silent; killing it leaves the same behind."""
    keys_left = [thread(workspace_id) for _ in range(3)]
    async with serving(database, redis_of(own_redis), **HASTY) as survivor:
        async with serving(database, redis_of(own_redis), **HASTY) as short_lived:
            own_postgres.pause()
            for key in keys_left:
                await append(short_lived, key, "left behind", turn_id="t")
        own_postgres.resume()
        for key in keys_left:
            window = await until_stored(survivor, key, 1)
            assert texts(window.messages) == ["left behind"]


async def test_a_journaled_turn_of_a_deleted_conversation_is_a_dead_letter_and_is_said_to_be(
    worker: Memory, database: DatabaseSettings, workspace_id: str
) -> None:
    """M6: never neither stored nor dead."""
    key = thread(workspace_id)
    await append(worker, key, "q0", durability=COMMITTED)
    await worker.conversations.DeleteConversation(
        DeleteConversationRequest(workspace_id=key.workspace_id, thread_id=key.thread_id), timeout=CALL_S
    )
    await journaled(worker, key, "late", turn_id="late")
    connection = await asyncpg.connect(database.url.get_secret_value())
    try:

        async def dead() -> bool:
            row = await connection.fetchrow("SELECT reason FROM memory.dead_letters WHERE turn_id = 'late'")
            return row is not None and row["reason"] == "DELETED"

        await until(dead)
        assert await connection.fetchval("SELECT dead FROM memory.turns WHERE turn_id = 'late'")
    finally:
        await connection.close()


async def test_with_redis_away_a_turn_is_committed_and_says_that_its_order_is_not_sure_also_when_it_is_repeated(
    worker: Memory, own_redis: EmbeddedRedis, workspace_id: str
) -> None:
    """M2, race 2."""
    key = thread(workspace_id)
    await append(worker, key, "q0", durability=COMMITTED)
    await own_redis.kill()
    answer = await append(worker, key, "q1", turn_id="t1")
    assert (answer.durability, answer.order_unverified, answer.first_seq) == (COMMITTED, True, 2)
    await own_redis.start()
    again = await append(worker, key, "q1", turn_id="t1")
    assert (again.order_unverified, again.duplicate) == (True, True)


async def test_with_redis_away_an_open_turn_is_closed_and_its_order_is_kept_as_not_sure(
    worker: Memory, database: DatabaseSettings, own_redis: EmbeddedRedis, workspace_id: str
) -> None:
    """M2: nobody can know whether turns wait; what this worker has taken in itself comes first all the same."""
    key = thread(workspace_id)
    await own_redis.kill()
    for turn_id, policy in (("t1", TurnPolicy.TURN_POLICY_REJECT), ("t2", TurnPolicy.TURN_POLICY_TAKE_OVER)):
        opening = BeginTurnRequest(request_id=turn_id, messages=said("q"), policy=policy)
        opening.workspace_id, opening.thread_id = key
        begun = await worker.turns.BeginTurn(opening, timeout=CALL_S)
    answer = [Message(role=Role.ROLE_ASSISTANT, content="a")]
    closing = CommitTurnRequest(turn_id="t2", fence=begun.fence, response_messages=answer)
    closing.workspace_id, closing.thread_id = key
    committed = await worker.turns.CommitTurn(closing, timeout=CALL_S)
    assert (committed.first_seq, committed.last_seq) == (2, 3)
    connection = await asyncpg.connect(database.url.get_secret_value())
    try:
        rows = await connection.fetch("SELECT turn_id, order_unverified FROM memory.turns ORDER BY turn_id")
    finally:
        await connection.close()
    assert [tuple(row) for row in rows] == [("t1", True), ("t2", True)]


async def test_a_thread_whose_journal_is_full_says_so_and_keeps_nothing_of_what_it_refused(
    worker: Memory, own_postgres: EmbeddedPostgres, workspace_id: str
) -> None:
    key = thread(workspace_id)
    with silent(own_postgres):
        for index in range(64):
            await append(worker, key, f"q{index}")
        async with refused(grpc.StatusCode.RESOURCE_EXHAUSTED, "REASON_JOURNAL_FULL"):
            await append(worker, key, "one too many")
    window = await until_stored(worker, key, 64)
    assert texts(window.messages) == [f"q{index}" for index in range(64)]


async def test_what_waits_has_no_time_to_live_and_leaves_nothing_behind(
    worker: Memory, own_postgres: EmbeddedPostgres, own_redis: EmbeddedRedis, workspace_id: str
) -> None:
    """M9 is for copies; what waits must not expire."""
    key = thread(workspace_id)
    names = (keys.thread_waiting(key), keys.thread_waiting_data(key))
    async with flushed(own_redis) as client:
        with silent(own_postgres):
            await append(worker, key, "q")
            for name in names:
                assert await client.pttl(name) == -1
        await until_stored(worker, key, 1)

        async def gone() -> bool:
            return not await client.exists(*names)

        await until(gone)
