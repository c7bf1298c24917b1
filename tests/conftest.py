"""Real servers for all tests: one Postgres and one Redis for the session, and throw-away ones for tests that kill them."""

import shutil
import tempfile
import uuid
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from pydantic import SecretStr

from tests.databases import settings_of_database
from twofold_chassis.settings import DatabaseSettings, RedisSettings
from twofold_cli.embedded.postgres import EmbeddedPostgres
from twofold_cli.embedded.redis import EmbeddedRedis


@pytest.fixture(scope="session")
def servers_folder() -> Iterator[Path]:
    """A folder that the account of servers can enter, unlike pytest's own."""
    path = Path(tempfile.mkdtemp(prefix="twofold-test-"))
    path.chmod(0o711)
    yield path
    shutil.rmtree(path, ignore_errors=True)


@pytest.fixture(scope="session")
async def postgres_server(servers_folder: Path) -> AsyncIterator[EmbeddedPostgres]:
    """The session's Postgres: never kill it."""
    server = EmbeddedPostgres(servers_folder / "postgres")
    await server.start()
    yield server
    await server.stop()


@pytest.fixture(scope="session")
async def redis_server(servers_folder: Path) -> AsyncIterator[EmbeddedRedis]:
    """The session's Redis: never kill or flush it."""
    server = EmbeddedRedis(servers_folder / "redis")
    await server.start()
    yield server
    await server.stop()


@pytest.fixture
async def own_postgres(servers_folder: Path) -> AsyncIterator[EmbeddedPostgres]:
    """A Postgres of this test's own, to be killed and paused."""
    server = EmbeddedPostgres(servers_folder / f"postgres-{uuid.uuid4().hex[:8]}")
    await server.start()
    yield server
    await server.stop()


@pytest.fixture
async def own_redis(servers_folder: Path) -> AsyncIterator[EmbeddedRedis]:
    """A Redis of this test's own, to be killed and flushed."""
    server = EmbeddedRedis(servers_folder / f"redis-{uuid.uuid4().hex[:8]}")
    await server.start()
    yield server
    await server.stop()


@pytest.fixture(scope="session")
async def database_settings(postgres_server: EmbeddedPostgres) -> DatabaseSettings:
    """An empty database of the session, for services to migrate and use."""
    urls = await postgres_server.create_database("session")
    return settings_of_database(urls)


@pytest.fixture(scope="session")
def redis_settings(redis_server: EmbeddedRedis) -> RedisSettings:
    """The session's Redis as a service's settings. Tests run on a busy machine: the budget is generous."""
    return RedisSettings(
        host=redis_server.host, port=redis_server.port, password=SecretStr(redis_server.password), budget_ms=2000
    )


@pytest.fixture
def workspace_id() -> str:
    """A workspace of this test's own."""
    return f"ws-{uuid.uuid4().hex[:12]}"
