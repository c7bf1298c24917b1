"""Whose deadline passes leaves nothing running in Postgres."""

import asyncio
from collections.abc import AsyncIterator

import asyncpg
import grpc
import pytest

from tests.registry.stubs import Connection, Registry
from twofold.registry.v1 import user_pb2
from twofold_cli.embedded.postgres import EmbeddedPostgres

RUNNING = """
    SELECT count(*) FROM pg_stat_activity
    WHERE datname = 'session' AND application_name LIKE 'twofold-registry%' AND state <> 'idle'
        AND (wait_event_type = 'Lock' OR state LIKE 'idle in transaction%')
"""


@pytest.fixture
async def watcher(postgres_server: EmbeddedPostgres) -> AsyncIterator[Connection]:
    """Who sees what all others do."""
    connection = await asyncpg.connect(postgres_server.superuser_url)
    yield connection
    await connection.close()


async def count_becomes(watcher: Connection, expected: int) -> None:
    async with asyncio.timeout(20):
        while await watcher.fetchval(RUNNING) != expected:  # noqa: ASYNC110  (it happens in Postgres)
            await asyncio.sleep(0.02)


async def test_a_call_whose_deadline_passes_ends_its_query_in_postgres_too(
    api: Registry, owner: Connection, watcher: Connection, workspace: str
) -> None:
    draft = user_pb2.User(workspace_id=workspace, user_id="ann", email="ann@acme.test")
    async with owner.transaction():
        await owner.execute("SELECT FROM registry.workspaces WHERE workspace_id = $1 FOR UPDATE", workspace)
        call = api.users.CreateUser(user_pb2.CreateUserRequest(user=draft), timeout=0.5)
        await count_becomes(watcher, 1)
        with pytest.raises(grpc.aio.AioRpcError) as refusal:
            await call
        assert refusal.value.code() == grpc.StatusCode.DEADLINE_EXCEEDED
        await count_becomes(watcher, 0)
    await api.make_user(workspace, "ann")
