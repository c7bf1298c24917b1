"""Starting: migrations that many processes race, and starts that explain why they cannot go on."""

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator

import asyncpg
import grpc
import pytest
import structlog.testing
from grpc_health.v1 import health_pb2
from pydantic import SecretStr, ValidationError

from tests.databases import own_database, settings_of_database
from tests.registry.stubs import Registry, settings_of
from tests.waiting import until
from twofold.registry.v1 import workspace_pb2
from twofold_chassis.settings import DatabaseSettings
from twofold_chassis.start import StartError
from twofold_cli.embedded.postgres import EmbeddedPostgres
from twofold_registry.app import registry
from twofold_registry.migrate import migrate
from twofold_registry.settings import RegistrySettings


@pytest.fixture
async def empty(postgres_server: EmbeddedPostgres) -> AsyncIterator[DatabaseSettings]:
    """A database in which nothing is."""
    async with own_database(postgres_server, "empty") as urls:
        yield settings_of_database(urls)


async def test_many_that_migrate_at_once_do_it_once(empty: DatabaseSettings) -> None:
    await asyncio.gather(*(migrate(empty) for _ in range(8)))
    owner = await asyncpg.connect(empty.owner_url.get_secret_value())
    before = await owner.fetch("SELECT epoch, revision FROM registry.registry_head")
    await migrate(empty)
    assert await owner.fetch("SELECT epoch, revision FROM registry.registry_head") == before
    assert await owner.fetchval("SELECT count(*) FROM registry.alembic_version") == 1
    await owner.close()
    assert len(before) == 1


async def test_many_that_start_at_once_all_serve(empty: DatabaseSettings) -> None:
    async def serve_once() -> str:
        async with (
            registry(settings_of(empty)) as running,
            grpc.aio.insecure_channel(f"127.0.0.1:{running.port}") as channel,
        ):
            return (await Registry(channel).make_workspace("")).workspace_id

    assert len(set(await asyncio.gather(*(serve_once() for _ in range(4))))) == 4


@pytest.mark.parametrize(
    ("same", "warned"), [({}, False), ({"system_url": None}, True), ({"migrate_url": None, "migrate": False}, False)]
)
async def test_a_start_with_one_role_for_two_says_that_tenants_are_not_kept_apart(
    empty: DatabaseSettings, same: dict[str, object], warned: bool
) -> None:
    await migrate(empty)
    with structlog.testing.capture_logs() as logged:
        async with registry(settings_of(empty.model_copy(update=same))):
            pass
    told = [line["event"] for line in logged if line["log_level"] == "warning"]
    assert (
        told
        == ["Postgres does not keep tenants apart: give DATABASE__SYSTEM_URL and DATABASE__MIGRATE_URL roles of their own"]
        * warned
    )


async def test_a_schema_that_nobody_migrated_ends_the_start(empty: DatabaseSettings) -> None:
    settings = settings_of(empty.model_copy(update={"migrate": False}))
    with pytest.raises(StartError, match="migrate it first"):
        async with registry(settings):
            pass


async def test_a_database_that_does_not_answer_ends_the_start() -> None:
    nowhere = DatabaseSettings(url=SecretStr("postgresql://a:secret-word@127.0.0.1:1/x"))
    for database in (nowhere, nowhere.model_copy(update={"migrate": False})):
        with pytest.raises(StartError) as refusal:
            async with registry(settings_of(database)):
                pass
        assert "secret-word" not in str(refusal.value)


@pytest.mark.parametrize("suffix", ["", ".cluster.local", "a..b", "127.0.0.1", "*.test", "a_b"])
def test_suffixes_of_the_installation_are_names(suffix: str) -> None:
    with pytest.raises(ValidationError):
        RegistrySettings(url_suffixes=(suffix,))


async def test_the_process_serves_says_so_and_ends_in_order(database_settings: DatabaseSettings) -> None:
    environment = {
        **os.environ,
        "DATABASE__URL": database_settings.url.get_secret_value(),
        "DATABASE__MIGRATE_URL": database_settings.owner_url.get_secret_value(),
        "DATABASE__SYSTEM_URL": database_settings.system.url.get_secret_value(),
        "REGISTRY__PORT": "0",
        "REGISTRY__URL_SUFFIXES": '["acme.test"]',
        "REGISTRY__ALLOW_LOOPBACK_URLS": "true",
    }
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "twofold_registry", env=environment, stdout=asyncio.subprocess.PIPE
    )
    assert process.stdout is not None
    said = (await process.stdout.readline()).decode()
    port = said.partition('"port": ')[2].partition(",")[0]
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        api = Registry(channel)
        workspace_id = (await api.make_workspace("")).workspace_id
        await api.make_agent(workspace_id, "one", url="http://one.acme.test")
        await api.make_agent(workspace_id, "two", url="http://127.0.0.1:8080")
        await api.workspaces.ListWorkspaces(workspace_pb2.ListWorkspacesRequest())
        for name in ("Workspace", "User", "Agent", "Permission", "Usage", "Audit"):
            assert await serves(channel, f"twofold.registry.v1.{name}Service")
    process.send_signal(signal.SIGTERM)
    assert await asyncio.wait_for(process.wait(), 20) == 0


async def serves(channel: grpc.aio.Channel, service: str = "") -> bool:
    check = channel.unary_unary(
        "/grpc.health.v1.Health/Check",
        request_serializer=health_pb2.HealthCheckRequest.SerializeToString,
        response_deserializer=health_pb2.HealthCheckResponse.FromString,
    )
    answer: health_pb2.HealthCheckResponse = await check(health_pb2.HealthCheckRequest(service=service))
    return answer.status == health_pb2.HealthCheckResponse.SERVING


async def becomes(channel: grpc.aio.Channel, serving: bool) -> None:
    async def is_so() -> bool:
        return await serves(channel) == serving

    await until(is_so, f"serving: {serving}")


async def test_health_follows_the_database(own_postgres: EmbeddedPostgres) -> None:
    database = settings_of_database(own_postgres)
    async with (
        registry(settings_of(database)) as running,
        grpc.aio.insecure_channel(f"127.0.0.1:{running.port}") as channel,
    ):
        await becomes(channel, True)
        await own_postgres.kill()
        await becomes(channel, False)
        await own_postgres.start()
        await becomes(channel, True)
