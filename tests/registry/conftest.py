"""The registry as it is shipped, in this process, on a port of its own, over the session's Postgres."""

from collections.abc import AsyncIterator
from dataclasses import dataclass

import asyncpg
import grpc
import pytest

from tests.registry.stubs import Connection, Registry, settings_of
from twofold_chassis.settings import DatabaseSettings
from twofold_registry.app import registry


@dataclass(frozen=True)
class Served:
    """Where a registry serves."""

    target: str


@pytest.fixture(scope="session")
async def served(database_settings: DatabaseSettings) -> AsyncIterator[Served]:
    async with registry(settings_of(database_settings)) as running:
        yield Served(f"127.0.0.1:{running.port}")


@pytest.fixture(scope="session")
async def api(served: Served) -> AsyncIterator[Registry]:
    async with grpc.aio.insecure_channel(served.target) as channel:
        yield Registry(channel)


@pytest.fixture(scope="session")
async def owner(served: Served, database_settings: DatabaseSettings) -> AsyncIterator[Connection]:
    """The session's database, migrated, as the owner of the schema sees it."""
    connection = await asyncpg.connect(database_settings.owner_url.get_secret_value())
    yield connection
    await connection.close()


@pytest.fixture(scope="session")
async def application(served: Served, database_settings: DatabaseSettings) -> AsyncIterator[Connection]:
    """The same as the service's own role sees it."""
    connection = await asyncpg.connect(database_settings.url.get_secret_value())
    yield connection
    await connection.close()


@pytest.fixture(scope="session")
async def system(served: Served, database_settings: DatabaseSettings) -> AsyncIterator[Connection]:
    """The same as the service's role for work of no tenant sees it."""
    connection = await asyncpg.connect(database_settings.system.url.get_secret_value())
    yield connection
    await connection.close()


@pytest.fixture
async def workspace(api: Registry, workspace_id: str) -> str:
    """A workspace of this test's own, which exists."""
    await api.make_workspace(workspace_id)
    return workspace_id
