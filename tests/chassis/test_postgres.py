"""Postgres for a room: what a driver error becomes, and that nothing of a failed call stays behind."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Coroutine
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import asyncpg
import pytest
from prometheus_client import CollectorRegistry
from pydantic import SecretStr
from structlog.testing import capture_logs

import twofold_memory
from tests.waiting import until
from twofold_chassis import call, migrations, postgres
from twofold_chassis.pools import PoolMetrics
from twofold_chassis.postgres import Pool
from twofold_chassis.refusals import Busy, Overloaded, RequestReused, StoreUnavailable
from twofold_chassis.requests import Attempt, Requests
from twofold_chassis.settings import DatabaseSettings
from twofold_chassis.start import StartError
from twofold_cli.embedded.postgres import DatabaseUrls, EmbeddedPostgres


async def answers(pool: Pool) -> bool:
    pulse = postgres.Pulse(pool, "SELECT 1")
    try:
        return await pulse.beats()
    finally:
        await pulse.close()


async def test_a_lock_that_others_hold_is_busy(pool: Pool) -> None:
    async with postgres.transaction(pool) as holder:
        await holder.execute("SELECT 1 FROM room.things WHERE id = 1 FOR UPDATE")

        async def wait() -> None:
            async with postgres.transaction(pool) as other:
                await other.execute("SET LOCAL lock_timeout = '10ms'")
                await other.execute("SELECT 1 FROM room.things WHERE id = 1 FOR UPDATE")

        with pytest.raises(Busy):
            await wait()


async def test_a_statement_that_takes_too_long_means_not_now_and_leaves_the_pool_fit(pool: Pool) -> None:
    with pytest.raises(StoreUnavailable) as told:
        async with postgres.connection(pool) as connection:
            await connection.execute("SELECT pg_sleep(20)", timeout=0.05)
    assert told.value.metadata["outcome"] == "NOT_STORED"
    assert await answers(pool)


async def for_caller(left_s: float | None, work: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """Does it for a caller who waits for so long, or for none."""

    async def served() -> None:
        if left_s is not None:
            call.enter(call.Call(call.Identity("ann"), "request-1", deadline=time.monotonic() + left_s))
        await work()

    await asyncio.create_task(served())


async def test_postgres_itself_ends_what_nobody_waits_for_any_more(pool: Pool) -> None:
    async def outlast() -> None:
        async with postgres.transaction(pool) as connection:
            await connection.execute("SELECT pg_sleep(60)", timeout=30)

    with pytest.raises(StoreUnavailable) as told:
        await for_caller(0.1, outlast)
    assert isinstance(told.value.__cause__, asyncpg.QueryCanceledError)
    assert "statement timeout" in str(told.value.__cause__)
    assert await answers(pool)


@pytest.mark.parametrize(("left_s", "at_least_ms", "at_most_ms"), [(1.0, 250, 1250), (60.0, 2000, 2000), (None, 2000, 2000)])
async def test_a_statement_may_take_what_the_caller_has_left_and_never_more_than_the_setting(
    pool: Pool, left_s: float | None, at_least_ms: int, at_most_ms: int
) -> None:
    row = "SELECT setting::int FROM pg_settings WHERE name = 'statement_timeout'"

    async def look() -> None:
        for begun in (postgres.transaction(pool), postgres.reading(pool, ()), postgres.snapshot(pool)):
            async with begun as connection:
                assert at_least_ms <= await connection.fetchval(row) <= at_most_ms

    await for_caller(left_s, look)
    async with postgres.connection(pool) as connection:
        assert await connection.fetchval(row) == 0, "nothing of it stays on the connection"


async def test_a_pool_tells_who_uses_it_who_waits_and_how_long(chassis_urls: DatabaseUrls) -> None:
    metrics = CollectorRegistry()
    settings = DatabaseSettings(url=SecretStr(chassis_urls.owner), pool_size_max=2)
    pool = await postgres.open_pool(settings, name="test", metrics=PoolMetrics(metrics))

    def told() -> list[float | None]:
        in_use, idle = (
            metrics.get_sample_value("twofold_postgres_connections", {"pool": "test", "state": state})
            for state in ("in_use", "idle")
        )
        waiting = metrics.get_sample_value("twofold_postgres_waiting", {"pool": "test"})
        return [in_use, idle, waiting, metrics.get_sample_value("twofold_postgres_acquire_seconds_count", {"pool": "test"})]

    async def use() -> None:
        async with postgres.connection(pool):
            pass

    assert told() == [0, 1, 0, 0]
    async with postgres.connection(pool), postgres.connection(pool):
        waiting = asyncio.create_task(use())
        await asyncio.sleep(0)
        assert told() == [2, 0, 1, 2]
    await waiting
    assert told() == [0, 2, 0, 3]
    await postgres.close_pool(pool)


async def test_a_connection_that_breaks_says_whether_something_can_have_been_kept(
    own_postgres: EmbeddedPostgres,
) -> None:
    settings = DatabaseSettings(url=SecretStr(own_postgres.superuser_url), command_timeout_s=1, connect_timeout_s=1)
    pool = await postgres.open_pool(settings, name="test")

    async def killed() -> None:
        async with postgres.transaction(pool) as connection:
            await own_postgres.kill()
            await connection.execute("SELECT 1")

    async def paused() -> None:
        async with postgres.transaction(pool) as connection:
            await connection.execute("CREATE TABLE kept (x int)")
            own_postgres.pause()

    with pytest.raises(StoreUnavailable) as told:
        await killed()
    assert told.value.metadata["outcome"] == "NOT_STORED"
    assert not await answers(pool)
    await own_postgres.start()
    with pytest.raises(StoreUnavailable) as told:
        await paused()
    assert told.value.metadata["outcome"] == "UNKNOWN"  # it had reached COMMIT
    own_postgres.resume()
    await until(lambda: answers(pool))
    await postgres.close_pool(pool)


async def test_a_password_that_was_changed_and_a_standby_mean_not_now(own_postgres: EmbeddedPostgres) -> None:
    settings = DatabaseSettings(url=SecretStr(own_postgres.app_url))
    pool = await postgres.open_pool(settings, name="test")
    admin = await asyncpg.connect(own_postgres.superuser_url)
    await admin.execute("ALTER ROLE twofold_app SET default_transaction_read_only = on")
    await pool.expire_connections()
    with pytest.raises(StoreUnavailable):
        async with postgres.transaction(pool) as connection:
            await connection.execute("CREATE TABLE x (y int)")
    await admin.execute("ALTER ROLE twofold_app PASSWORD 'changed'")
    await pool.expire_connections()
    with pytest.raises(StoreUnavailable):
        async with postgres.connection(pool) as connection:
            await connection.execute("SELECT 1")
    assert not await answers(pool)
    await admin.close()
    await postgres.close_pool(pool)


async def test_when_all_connections_are_in_use_that_is_overload_and_not_an_outage(
    chassis_urls: DatabaseUrls, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(postgres, "_ACQUIRE_S", 0.05)
    pool = await postgres.open_pool(DatabaseSettings(url=SecretStr(chassis_urls.owner), pool_size_max=1), name="test")
    async with postgres.connection(pool):
        with pytest.raises(Overloaded):
            async with postgres.connection(pool):
                pass
    await postgres.close_pool(pool)


@pytest.mark.parametrize("pool_size_max", [1, 4, 8])
async def test_a_lane_keeps_at_most_a_quarter_of_the_pool(chassis_urls: DatabaseUrls, pool_size_max: int) -> None:
    """Else many callers at once would leave nothing for everybody else."""
    settings = DatabaseSettings(url=SecretStr(chassis_urls.owner), pool_size_max=pool_size_max)
    pool = await postgres.open_pool(settings, name="test")
    lane = postgres.Lane(pool)

    async def use() -> None:
        async with lane.connection() as connection:
            assert await connection.fetchval("SELECT 1") == 1

    await asyncio.gather(*(use() for _ in range(3 * pool_size_max)))
    assert pool.get_size() - pool.get_idle_size() <= pool_size_max // 4
    with pytest.raises(asyncpg.UndefinedTableError):
        async with lane.connection() as connection:
            await connection.execute("SELECT * FROM nothing")
    await use()
    await lane.close()
    assert pool.get_size() == pool.get_idle_size()
    await postgres.close_pool(pool)


@pytest.mark.parametrize("ended_by", ["error", "cancellation", "cancellation, twice"])
async def test_what_ends_in_an_error_or_a_cancellation_is_rolled_back(pool: Pool, ended_by: str) -> None:
    changed = asyncio.Event()

    async def change() -> None:
        async with postgres.transaction(pool) as connection:
            await connection.execute("UPDATE room.things SET value = 99 WHERE id = 2")
            changed.set()
            if ended_by == "error":
                raise KeyError
            await asyncio.Event().wait()

    task = asyncio.create_task(change())
    if ended_by != "error":
        await changed.wait()
        task.cancel()
        if ended_by == "cancellation, twice":
            await asyncio.sleep(0)
            task.cancel()  # while it is rolled back: a deadline, and the caller that goes away with it
    await asyncio.wait([task])
    async with postgres.connection(pool) as connection:
        assert await connection.fetchval("SELECT value FROM room.things WHERE id = 2") == 0
        assert not connection.is_in_transaction()


async def migrate(settings: DatabaseSettings) -> None:
    await migrations.upgrade(settings, schema="room", folder=Path(__file__).parent)


async def open_pool(settings: DatabaseSettings) -> None:
    await postgres.open_pool(settings, name="test")


@pytest.mark.parametrize("connect", [open_pool, migrate])
@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"port": 1}, "nothing listens at its host and port"),
        ({"host": "nowhere.invalid"}, "its host is not known"),
        ({"password": "s3cret"}, "it refuses the user, the password or this host"),
        ({"database": "/nothing"}, "it has no such database"),
    ],
)
async def test_a_database_that_cannot_be_reached_ends_the_start_with_one_sentence(
    chassis_urls: DatabaseUrls, connect: Callable[[DatabaseSettings], Awaitable[None]], change: dict[str, Any], told: str
) -> None:
    parts = urlsplit(chassis_urls.owner)
    given = {
        "user": parts.username,
        "password": parts.password,
        "host": parts.hostname,
        "port": parts.port,
        "database": parts.path,
    } | change
    url = "postgresql://{user}:{password}@{host}:{port}{database}".format(**given)
    with pytest.raises(StartError) as error:
        await connect(DatabaseSettings(url=SecretStr(url), connect_timeout_s=5))
    assert str(error.value) == f"cannot reach Postgres (DATABASE__URL): {told}"


async def test_what_the_owner_may_not_do_ends_a_migration_in_the_words_of_postgres(own_postgres: EmbeddedPostgres) -> None:
    settings = DatabaseSettings(url=SecretStr(own_postgres.app_url))
    with pytest.raises(StartError) as error:
        await migrations.upgrade(settings, schema="memory", folder=Path(twofold_memory.__file__).parent / "migrations")
    assert str(error.value).startswith(
        "cannot migrate the schema memory (DATABASE__URL): InsufficientPrivilegeError: permission denied for database"
    )


async def test_a_postgres_that_is_too_old_ends_the_start_and_is_not_migrated(
    chassis_urls: DatabaseUrls, pool: Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(postgres, "_VERSION_MIN", 99)
    with pytest.raises(StartError, match=r"Postgres \d+ is too old \(DATABASE__URL\): 99 or newer is needed"):
        await postgres.require(pool, "SELECT 1", schema="room")
    settings = DatabaseSettings(url=SecretStr(chassis_urls.app), migrate_url=SecretStr(chassis_urls.owner))
    with pytest.raises(StartError, match=r"Postgres \d+ is too old \(DATABASE__MIGRATE_URL\): 99 or newer is needed"):
        await migrate(settings)


def attempt(request_id: str | None, *, rpc: str = "Change", body: bytes = b"body") -> Attempt:
    return Attempt("w", rpc, request_id, body)


async def test_of_repeats_at_once_one_makes_the_change_and_all_get_its_answer(pool: Pool) -> None:
    made = 0

    async def once() -> bytes:
        async def change() -> bytes:
            nonlocal made
            made += 1
            await asyncio.sleep(0)
            return f"answer {made}".encode()

        async with postgres.transaction(pool) as connection:
            return await Requests("room").once(connection, attempt("many"), change)

    assert set(await asyncio.gather(*(once() for _ in range(12)))) == {b"answer 1"}
    assert made == 1


async def test_a_change_that_fails_leaves_no_answer_and_the_repeat_makes_it(pool: Pool) -> None:
    async def fail() -> bytes:
        raise KeyError

    async def succeed() -> bytes:
        return b"made"

    with pytest.raises(KeyError):
        async with postgres.transaction(pool) as connection:
            await Requests("room").once(connection, attempt("again"), fail)
    for change in (succeed, fail):
        async with postgres.transaction(pool) as connection:
            assert await Requests("room").once(connection, attempt("again"), change) == b"made"
    for other in (attempt("again", rpc="Other"), attempt("again", body=b"other")):
        with pytest.raises(RequestReused):
            async with postgres.transaction(pool) as connection:
                await Requests("room").once(connection, other, succeed)


async def test_without_a_request_id_each_call_makes_its_change_and_old_answers_are_forgotten(pool: Pool) -> None:
    calls = 0

    async def change() -> bytes:
        nonlocal calls
        calls += 1
        return b""

    async with postgres.transaction(pool) as connection:
        for _ in range(2):
            await Requests("room").once(connection, attempt(None), change)
        await connection.execute(
            "INSERT INTO room.requests SELECT 'w', 'old' || i, 'Change', '', '', now() - interval '26 hours'"
            " FROM generate_series(1, 150) i"
        )
        for index in range(2):
            await Requests("room").once(connection, attempt(f"sweep {index}"), change)
        assert await connection.fetchval("SELECT count(*) FROM room.requests WHERE request_id LIKE 'old%'") == 0
        await Requests("room").once(connection, attempt("old7", body=b"another body"), change)
    assert calls == 5


async def test_a_pool_that_is_all_in_use_is_no_sign_of_death_and_silence_is_and_is_told_once(
    own_postgres: EmbeddedPostgres,
) -> None:
    settings = DatabaseSettings(url=SecretStr(own_postgres.superuser_url), pool_size_max=3)
    pool = await postgres.open_pool(settings, name="test")
    pulse, late = postgres.Pulse(pool, "SELECT 1"), postgres.Pulse(pool, "SELECT 1")
    assert await pulse.beats()
    async with postgres.connection(pool), postgres.connection(pool):
        assert await pulse.beats()
        assert await late.beats(), "all in use: those who hold them are being served"
    own_postgres.pause()
    with capture_logs() as logs:
        assert not await pulse.beats()
        assert not await pulse.beats()
        own_postgres.resume()
        await until(pulse.beats)
        assert await pulse.beats()
    assert [(entry["event"], entry.get("error")) for entry in logs if "postgres" in entry["event"]] == [
        ("postgres is away", "TimeoutError"),
        ("postgres is back", None),
    ]
    await pulse.close()
    await late.close()
    await postgres.close_pool(pool)


async def test_a_transaction_waits_briefly_for_locks_and_loses_them_when_it_sleeps(pool: Pool) -> None:
    async with postgres.transaction(pool) as connection:
        assert await connection.fetchval("SHOW lock_timeout") == "2s"
        assert await connection.fetchval("SHOW idle_in_transaction_session_timeout") == "2s"
    async with postgres.connection(pool) as connection:
        assert await connection.fetchval("SHOW lock_timeout") == "0"
        assert not connection.is_in_transaction()


async def test_what_raises_inside_a_transaction_undoes_it(pool: Pool) -> None:
    async def deletes_and_fails() -> None:
        async with postgres.transaction(pool) as connection:
            await connection.execute("DELETE FROM room.things")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await deletes_and_fails()
    async with postgres.connection(pool) as connection:
        assert await connection.fetchval("SELECT count(*) FROM room.things") > 0


async def test_a_schema_that_is_not_there_ends_the_start_with_a_sentence(pool: Pool) -> None:
    await postgres.require(pool, "SELECT 1 FROM room.things", schema="room")
    with pytest.raises(StartError, match="the schema room is not ready"):
        await postgres.require(pool, "SELECT 1 FROM room.nothing", schema="room")
