"""A store that does not answer: what is said then, how soon, and that nothing is doubled or lost by asking again."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterator

import grpc
import pytest
from google.rpc import error_details_pb2
from grpc_status import rpc_status

from tests.memory.rooms import CALL_S, Memory, database_of, redis_of, refused, seqs, serving, thread
from tests.waiting import until
from twofold.memory.v1.context_pb2 import InvokingRequest
from twofold.memory.v1.message_pb2 import Completeness, Durability, ReadLevel, ReadSource
from twofold.memory.v1.preference_pb2 import GetPreferencesRequest, UpdatePreferencesRequest
from twofold_chassis.settings import RedisSettings
from twofold_cli.embedded.postgres import EmbeddedPostgres
from twofold_cli.embedded.redis import EmbeddedRedis
from twofold_memory.threads import ThreadKey

UNVERIFIED, COMMITTED_ONLY = Completeness.COMPLETENESS_UNVERIFIED, Completeness.COMPLETENESS_COMMITTED_ONLY
L1, L2 = ReadSource.READ_SOURCE_L1, ReadSource.READ_SOURCE_L2


@pytest.fixture
async def fragile(own_postgres: EmbeddedPostgres, redis_settings: RedisSettings) -> AsyncIterator[Memory]:
    """A worker on a Postgres of its own."""
    database = database_of(await own_postgres.create_database("memory"), command_timeout_s=1, connect_timeout_s=1)
    async with serving(database, redis_settings, confirm_ms=150) as memory:
        yield memory


@contextlib.contextmanager
def silent(server: EmbeddedPostgres | EmbeddedRedis) -> Iterator[None]:
    server.pause()
    try:
        yield
    finally:
        server.resume()


async def test_while_postgres_and_redis_are_silent_an_append_says_unknown_and_its_retry_finds_or_stores_it_once(
    own_postgres: EmbeddedPostgres, own_redis: EmbeddedRedis, workspace_id: str
) -> None:
    """M4."""
    warm, new = thread(workspace_id), thread(workspace_id)
    database = database_of(await own_postgres.create_database("memory"), command_timeout_s=1, connect_timeout_s=1)
    async with serving(database, redis_of(own_redis, budget_ms=50), commit_ms=150, journal_ms=150) as memory:
        await memory.append(warm, "q0", turn_id="t0")
        with silent(own_postgres), silent(own_redis):
            for key in (warm, new):
                async with refused(grpc.StatusCode.UNAVAILABLE, "REASON_STORE_UNAVAILABLE") as told:
                    await memory.append(key, "q1", turn_id="t1")
                assert outcome(told.value) in ("UNKNOWN", "NOT_STORED")
        for key in (warm, new):
            await until_stored(memory, key, "q1", turn_id="t1")
        assert seqs(await memory.all_messages(warm)) == [1, 2]
        assert seqs(await memory.all_messages(new)) == [1]


async def test_m10_while_postgres_is_silent_a_warm_window_is_read_unverified_and_a_cold_one_is_not_called_empty(
    fragile: Memory, own_postgres: EmbeddedPostgres, workspace_id: str
) -> None:
    """M10."""
    warm, cold = thread(workspace_id), thread(workspace_id)
    token = (await fragile.append(warm, "q", "a")).thread_token
    with silent(own_postgres):
        window = await fragile.read(warm)
        assert (seqs(window.messages), window.source, window.completeness) == ([1, 2], L1, UNVERIFIED)
        window = await fragile.read(warm, token=token)
        assert window.completeness == Completeness.COMPLETENESS_AS_OF
        for level in (ReadLevel.READ_LEVEL_VERIFIED, ReadLevel.READ_LEVEL_ANY):
            async with refused(grpc.StatusCode.UNAVAILABLE, "REASON_STORE_UNAVAILABLE"):
                await fragile.read(cold, level=level)
        async with refused(grpc.StatusCode.UNAVAILABLE, "REASON_STORE_UNAVAILABLE"):
            await fragile.contexts.Invoking(
                InvokingRequest(workspace_id=workspace_id, thread_id=cold.thread_id), timeout=CALL_S
            )


async def test_while_postgres_is_silent_a_foreign_user_sees_no_more_than_before(
    fragile: Memory, own_postgres: EmbeddedPostgres, workspace_id: str
) -> None:
    key = thread(workspace_id)
    await fragile.append(key, "secret", user_id="ada")
    request = InvokingRequest(workspace_id=workspace_id, thread_id=key.thread_id, user_id="bob")
    for is_silent in (False, True):
        with silent(own_postgres) if is_silent else contextlib.nullcontext():
            async with refused(grpc.StatusCode.NOT_FOUND, "REASON_CONVERSATION_UNKNOWN"):
                await fragile.contexts.Invoking(request, timeout=CALL_S)


async def test_while_postgres_is_silent_preferences_come_from_the_copy_or_not_at_all(
    fragile: Memory, own_postgres: EmbeddedPostgres, workspace_id: str
) -> None:
    set_one = UpdatePreferencesRequest(workspace_id=workspace_id, user_id="ada", set={"a": "1"})
    await fragile.preferences.UpdatePreferences(set_one, timeout=CALL_S)
    with silent(own_postgres):
        answer = await fragile.preferences.GetPreferences(
            GetPreferencesRequest(workspace_id=workspace_id, user_id="ada"), timeout=CALL_S
        )
        assert [(entry.key, entry.value) for entry in answer.preferences] == [("a", "1")]
        assert (answer.source, answer.completeness) == (L1, UNVERIFIED)
        async with refused(grpc.StatusCode.UNAVAILABLE, "REASON_STORE_UNAVAILABLE"):
            await fragile.preferences.GetPreferences(
                GetPreferencesRequest(workspace_id=workspace_id, user_id="bob"), timeout=CALL_S
            )


async def test_with_both_stores_gone_nothing_was_stored_and_the_service_comes_back_with_them(
    own_postgres: EmbeddedPostgres, own_redis: EmbeddedRedis, workspace_id: str
) -> None:
    key = thread(workspace_id)
    database = database_of(await own_postgres.create_database("memory"), command_timeout_s=1, connect_timeout_s=1)
    async with serving(database, redis_of(own_redis, budget_ms=50)) as memory:
        await own_postgres.kill()
        await own_redis.kill()
        outcomes = set()
        for _ in range(3):
            async with refused(grpc.StatusCode.UNAVAILABLE, "REASON_STORE_UNAVAILABLE") as told:
                await memory.append(key, "q", turn_id="t")
            outcomes.add(outcome(told.value))
        assert "NOT_STORED" in outcomes
        await own_postgres.start()
        await until_stored(memory, key, "q", turn_id="t")
        assert seqs(await memory.all_messages(key)) == [1]


async def test_with_redis_silent_everything_is_answered_from_postgres_within_the_budget(
    own_redis: EmbeddedRedis, fragile: Memory, own_postgres: EmbeddedPostgres, workspace_id: str
) -> None:
    key = thread(workspace_id)
    database = database_of(await own_postgres.create_database("other"))
    async with serving(database, redis_of(own_redis, budget_ms=50)) as memory:
        await memory.append(key, "q0")
        with silent(own_redis):
            loop = asyncio.get_running_loop()
            for index in range(1, 20):
                started = loop.time()
                await memory.append(key, f"q{index}")
                window = await memory.read(key, 50)
                assert (window.source, window.completeness) == (L2, COMMITTED_ONLY)
                assert seqs(window.messages) == list(range(1, index + 2))
                assert loop.time() - started < 5  # 0.1 s, and ten times that on a bad day
        await own_redis.kill()
        await memory.append(key, "more")
        assert (await memory.read(key, 50)).as_of_seq == 21
        await own_redis.start()

        async def warm() -> bool:
            return (await memory.read(key, 50)).source == L1

        await until(warm)


async def test_redis_with_a_wrong_password_is_as_good_as_none(
    fragile: Memory, own_postgres: EmbeddedPostgres, redis_settings: RedisSettings, workspace_id: str
) -> None:
    database = database_of(await own_postgres.create_database("other"))
    wrong = redis_settings.model_copy(update={"password": None})
    async with serving(database, wrong) as memory:
        key = thread(workspace_id)
        await memory.append(key, "q")
        assert (await memory.read(key)).completeness == COMMITTED_ONLY


async def until_stored(memory: Memory, key: ThreadKey, text: str, *, turn_id: str) -> None:
    """As a client retries."""

    async def stored() -> bool:
        try:
            answer = await memory.append(key, text, turn_id=turn_id)
        except grpc.aio.AioRpcError:
            return False
        return answer.durability == Durability.DURABILITY_COMMITTED

    await until(stored)


def outcome(error: grpc.aio.AioRpcError) -> str:
    status = rpc_status.from_call(error)  # type: ignore[arg-type]
    assert status is not None
    info = error_details_pb2.ErrorInfo()
    for detail in status.details:
        if detail.Is(info.DESCRIPTOR):
            detail.Unpack(info)
    return str(info.metadata["outcome"])
