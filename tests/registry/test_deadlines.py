"""Whose deadline passes leaves nothing running in Postgres."""

from collections.abc import AsyncIterator

import asyncpg
import grpc
import pytest

from tests.registry.stubs import Connection, Registry, settings_of
from tests.waiting import somebody_waits, until
from twofold.registry.v1 import user_pb2
from twofold_chassis import postgres
from twofold_chassis.settings import DatabaseSettings
from twofold_cli.embedded.postgres import EmbeddedPostgres
from twofold_registry.app import registry

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


@pytest.fixture
async def patient(database_settings: DatabaseSettings, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Registry]:
    """A registry in which neither Postgres nor the driver ends by itself what takes long."""
    monkeypatch.setattr(postgres, "_BEGIN", "BEGIN")
    monkeypatch.setattr(postgres, "_limited", lambda _: "")
    database = database_settings.model_copy(update={"command_timeout_s": 3600})
    async with (
        registry(settings_of(database)) as running,
        grpc.aio.insecure_channel(f"127.0.0.1:{running.port}") as channel,
    ):
        yield Registry(channel)


async def test_a_call_whose_deadline_passes_ends_its_query_in_postgres_too(
    patient: Registry, owner: Connection, watcher: Connection, workspace: str
) -> None:
    async def nothing_is_left() -> bool:
        return not await watcher.fetchval(RUNNING)

    await patient.make_user(workspace, "bob")
    draft = user_pb2.User(workspace_id=workspace, user_id="ann", email="ann@acme.test")
    async with owner.transaction():
        await owner.execute("SELECT FROM registry.workspaces WHERE workspace_id = $1 FOR UPDATE", workspace)
        call = patient.users.CreateUser(user_pb2.CreateUserRequest(user=draft), timeout=0.5)
        await somebody_waits(owner)
        assert not await nothing_is_left()
        with pytest.raises(grpc.aio.AioRpcError) as refusal:
            await call
        assert refusal.value.code() == grpc.StatusCode.DEADLINE_EXCEEDED
        await until(nothing_is_left, within_s=20)
    await patient.make_user(workspace, "ann")
