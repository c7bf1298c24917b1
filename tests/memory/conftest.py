"""Memory rooms on the session's stores, and ways into the stores themselves."""

from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager
from typing import Any, Protocol

import asyncpg
import pytest
import redis.asyncio

from tests.memory.rooms import Memory, database_of, serving, thread
from twofold_chassis.settings import DatabaseSettings, RedisSettings
from twofold_cli.embedded.postgres import DatabaseUrls, EmbeddedPostgres
from twofold_memory.threads import ThreadKey


class Worker(Protocol):
    """Makes one more worker on the same stores."""

    def __call__(self, **settings: object) -> AbstractAsyncContextManager[Memory]: ...


@pytest.fixture(scope="session")
async def memory_urls(postgres_server: EmbeddedPostgres) -> DatabaseUrls:
    """A database of these tests' own."""
    return await postgres_server.create_database("memory_tests")


@pytest.fixture(scope="session")
def memory_database(memory_urls: DatabaseUrls) -> DatabaseSettings:
    return database_of(memory_urls)


@pytest.fixture(scope="session")
def new_worker(memory_database: DatabaseSettings, redis_settings: RedisSettings) -> Worker:
    def worker(**settings: object) -> AbstractAsyncContextManager[Memory]:
        return serving(memory_database, redis_settings, **settings)

    return worker


@pytest.fixture(scope="session")
async def room(new_worker: Worker) -> AsyncIterator[Memory]:
    async with new_worker() as worker:
        yield worker


@pytest.fixture(scope="session")
async def other_room(room: Memory, new_worker: Worker) -> AsyncIterator[Memory]:
    """A second worker on the same stores."""
    async with new_worker(commit_lanes=2) as worker:
        yield worker


@pytest.fixture
def key(workspace_id: str) -> ThreadKey:
    """A thread that does not exist yet."""
    return thread(workspace_id)


@pytest.fixture(scope="session")
async def sql(room: Memory, memory_urls: DatabaseUrls) -> AsyncIterator["asyncpg.Pool[Any]"]:
    """Postgres as nobody of the service sees it, after the migrations."""
    async with asyncpg.create_pool(memory_urls.superuser, min_size=1, max_size=4) as pool:
        yield pool


@pytest.fixture(scope="session")
async def raw_redis(redis_settings: RedisSettings) -> AsyncIterator[redis.asyncio.Redis]:
    """The session's Redis itself: touch only keys of your own workspace."""
    assert redis_settings.password is not None
    async with redis.asyncio.Redis(
        host=redis_settings.host, port=redis_settings.port, password=redis_settings.password.get_secret_value()
    ) as client:
        yield client


@pytest.fixture(scope="session")
async def small_rooms(room: Memory, new_worker: Worker) -> AsyncIterator[tuple[Memory, Memory]]:
    """Two workers whose windows hold 8 messages, so that their ends are soon reached."""
    async with new_worker(max_thread_messages=4) as one, new_worker(max_thread_messages=4) as other:
        yield one, other
