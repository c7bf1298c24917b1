"""The registry as it is shipped, in this process, on a port of its own, over the session's Postgres."""

from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import asyncpg
import grpc
import pytest

from twofold.registry.v1 import agent_pb2, user_pb2, workspace_pb2
from twofold.registry.v1.agent_pb2_grpc import AgentServiceStub
from twofold.registry.v1.audit_pb2_grpc import AuditServiceStub
from twofold.registry.v1.permission_pb2_grpc import PermissionServiceStub
from twofold.registry.v1.usage_pb2_grpc import UsageServiceStub
from twofold.registry.v1.user_pb2_grpc import UserServiceStub
from twofold.registry.v1.workspace_pb2_grpc import WorkspaceServiceStub
from twofold_chassis.settings import DatabaseSettings, LogSettings
from twofold_registry.app import registry
from twofold_registry.settings import RegistrySettings, Settings

URL = "http://helper.agents.svc.cluster.local"


class Registry:
    """Typed stubs of all services of one registry."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self.workspaces = WorkspaceServiceStub(channel)
        self.users = UserServiceStub(channel)
        self.agents = AgentServiceStub(channel)
        self.permissions = PermissionServiceStub(channel)
        self.usage = UsageServiceStub(channel)
        self.audit = AuditServiceStub(channel)

    async def make_workspace(self, workspace_id: str, **values: Any) -> workspace_pb2.Workspace:
        draft = workspace_pb2.Workspace(workspace_id=workspace_id, display_name="Acme", **values)
        return (await self.workspaces.CreateWorkspace(workspace_pb2.CreateWorkspaceRequest(workspace=draft))).workspace

    async def make_user(self, workspace_id: str, user_id: str, **values: Any) -> user_pb2.User:
        draft = user_pb2.User(workspace_id=workspace_id, user_id=user_id, **{"email": f"{user_id}@acme.test", **values})
        return (await self.users.CreateUser(user_pb2.CreateUserRequest(user=draft))).user

    async def make_agent(self, workspace_id: str, agent_id: str, **values: Any) -> agent_pb2.Agent:
        values = {"display_name": "Helper", "url": URL, **values}
        draft = agent_pb2.Agent(workspace_id=workspace_id, agent_id=agent_id, **values)
        return (await self.agents.CreateAgent(agent_pb2.CreateAgentRequest(agent=draft))).agent


@dataclass(frozen=True)
class Served:
    """Where a registry serves."""

    target: str


def settings_of(database: DatabaseSettings, **values: Any) -> Settings:
    log = LogSettings(level="error")
    return Settings(database=database, registry=RegistrySettings(port=0, drain_s=0, **values), log=log)


@pytest.fixture(scope="session")
async def served(database_settings: DatabaseSettings) -> AsyncIterator[Served]:
    async with registry(settings_of(database_settings)) as running:
        yield Served(f"127.0.0.1:{running.port}")


@pytest.fixture(scope="session")
async def api(served: Served) -> AsyncIterator[Registry]:
    async with grpc.aio.insecure_channel(served.target) as channel:
        yield Registry(channel)


@pytest.fixture(scope="session")
async def owner(served: Served, database_settings: DatabaseSettings) -> AsyncIterator["asyncpg.Connection[asyncpg.Record]"]:
    """The session's database as its owner sees it, migrated."""
    connection = await asyncpg.connect(database_settings.owner_url.get_secret_value())
    yield connection
    await connection.close()


@pytest.fixture(scope="session")
async def application(
    served: Served, database_settings: DatabaseSettings
) -> AsyncIterator["asyncpg.Connection[asyncpg.Record]"]:
    """The same as the service's own role sees it."""
    connection = await asyncpg.connect(database_settings.url.get_secret_value())
    yield connection
    await connection.close()


@pytest.fixture
async def workspace(api: Registry, workspace_id: str) -> str:
    """A workspace of this test's own, which exists."""
    await api.make_workspace(workspace_id)
    return workspace_id
