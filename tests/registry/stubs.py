"""What tests of the registry call it with."""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Iterator
from typing import TYPE_CHECKING, Any, TypeVar

import asyncpg
import grpc
import pytest

from twofold import refusals
from twofold.errors.v1.reason_pb2 import Reason
from twofold.registry.v1 import agent_pb2, audit_pb2, permission_pb2, user_pb2, workspace_pb2
from twofold.registry.v1.agent_pb2_grpc import AgentServiceStub
from twofold.registry.v1.audit_pb2_grpc import AuditServiceStub
from twofold.registry.v1.billing_pb2_grpc import BillingServiceStub
from twofold.registry.v1.change_pb2_grpc import ChangeServiceStub
from twofold.registry.v1.permission_pb2_grpc import PermissionServiceStub
from twofold.registry.v1.pod_pb2_grpc import PodServiceStub
from twofold.registry.v1.session_pb2_grpc import SessionHistoryServiceStub
from twofold.registry.v1.terms_pb2_grpc import TermsServiceStub
from twofold.registry.v1.usage_pb2_grpc import UsageServiceStub
from twofold.registry.v1.user_pb2_grpc import UserServiceStub
from twofold.registry.v1.workspace_pb2_grpc import WorkspaceServiceStub
from twofold_chassis.settings import DatabaseSettings, LogSettings
from twofold_registry.settings import RegistrySettings, Settings

if TYPE_CHECKING:
    Connection = asyncpg.Connection[asyncpg.Record]
else:  # generic for the type checker only
    Connection = asyncpg.Connection

Answer = TypeVar("Answer")

URL = "http://helper.agents.svc.cluster.local"


class Registry:
    """Typed stubs of all services of one registry."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self.workspaces = WorkspaceServiceStub(channel)
        self.users = UserServiceStub(channel)
        self.agents = AgentServiceStub(channel)
        self.permissions = PermissionServiceStub(channel)
        self.terms = TermsServiceStub(channel)
        self.usage = UsageServiceStub(channel)
        self.billing = BillingServiceStub(channel)
        self.audit = AuditServiceStub(channel)
        self.changes = ChangeServiceStub(channel)
        self.pods = PodServiceStub(channel)
        self.sessions = SessionHistoryServiceStub(channel)

    async def make_workspace(self, workspace_id: str, **values: Any) -> workspace_pb2.Workspace:
        values = {"display_name": "Acme", **values}
        draft = workspace_pb2.Workspace(workspace_id=workspace_id, **values)
        return (await self.workspaces.CreateWorkspace(workspace_pb2.CreateWorkspaceRequest(workspace=draft))).workspace

    async def make_user(self, workspace_id: str, user_id: str, **values: Any) -> user_pb2.User:
        values = {"email": f"{user_id}@acme.test", **values}
        draft = user_pb2.User(workspace_id=workspace_id, user_id=user_id, **values)
        return (await self.users.CreateUser(user_pb2.CreateUserRequest(user=draft))).user

    async def make_agent(self, workspace_id: str, agent_id: str, **values: Any) -> agent_pb2.Agent:
        values = {"display_name": "Helper", "url": URL, **values}
        draft = agent_pb2.Agent(workspace_id=workspace_id, agent_id=agent_id, **values)
        return (await self.agents.CreateAgent(agent_pb2.CreateAgentRequest(agent=draft))).agent

    async def grant(self, workspace_id: str, user_id: str, agent_id: str, **values: Any) -> permission_pb2.GrantResponse:
        grant = permission_pb2.AgentGrant(workspace_id=workspace_id, user_id=user_id, agent_id=agent_id, **values)
        return await self.permissions.Grant(permission_pb2.GrantRequest(grant=grant))

    async def check(
        self, workspace_id: str, user_id: str, agent_id: str, token: bytes = b""
    ) -> permission_pb2.CheckResponse:
        request = permission_pb2.CheckRequest(workspace_id=workspace_id, user_id=user_id, agent_id=agent_id)
        request.min_revision_token = token
        return await self.permissions.Check(request)

    async def trail(self, workspace_id: str, **values: Any) -> list[audit_pb2.AuditEntry]:
        """The audit entries of a workspace, oldest first."""
        request = audit_pb2.ListAuditEntriesRequest(workspace_id=workspace_id, page_size=500, **values)
        return list((await self.audit.ListAuditEntries(request)).entries)[::-1]


def settings_of(database: DatabaseSettings, **values: Any) -> Settings:
    """Settings of a registry on a free port, which does not wait when it ends, and sweeps nothing while a test runs."""
    log = LogSettings(level="error")
    values = {"port": 0, "drain_s": 0, "sweep_period_s": 3600, **values}
    return Settings(database=database, registry=RegistrySettings(**values), log=log)


_TRANSIENT = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.ABORTED, grpc.StatusCode.RESOURCE_EXHAUSTED)


async def insist(send: Callable[[], Awaitable[Answer]]) -> Answer:
    """Sends until there is an answer, as a client does that carries a request id."""
    while True:
        try:
            return await send()
        except grpc.aio.AioRpcError as error:
            if error.code() not in _TRANSIENT:
                raise
        await asyncio.sleep(0.05)  # a client's own patience


class Answered:
    """Counts the answers that writers insisted upon, for those who wait until work is well under way."""

    def __init__(self) -> None:
        self._count = 0
        self._more = asyncio.Event()

    async def insist(self, send: Callable[[], Awaitable[Answer]]) -> Answer:
        answer = await insist(send)
        self._count += 1
        self._more.set()
        return answer

    async def progress(self, answers: int) -> None:
        """Returns when there were so many more."""
        wanted = self._count + answers
        async with asyncio.timeout(60):
            while self._count < wanted:
                self._more.clear()
                await self._more.wait()


@contextlib.contextmanager
def refused(code: grpc.StatusCode, reason: Reason.ValueType, field: str = "") -> Iterator[None]:
    """The call in the block is refused for this reason, with this status, naming this field."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        yield
    error = caught.value
    told = (error.code(), Reason.Name(refusals.reason(error)), refusals.field(error))
    assert told == (code, Reason.Name(reason), field), error.details()


def invalid(field: str) -> contextlib.AbstractContextManager[None]:
    """The call is refused because of this field."""
    return refused(grpc.StatusCode.INVALID_ARGUMENT, Reason.REASON_INVALID_FIELD, field)


def unknown(reason: Reason.ValueType) -> contextlib.AbstractContextManager[None]:
    """The call is refused because there is no such thing."""
    return refused(grpc.StatusCode.NOT_FOUND, reason)


def taken(reason: Reason.ValueType) -> contextlib.AbstractContextManager[None]:
    """The call is refused because something is taken."""
    return refused(grpc.StatusCode.ALREADY_EXISTS, reason)


def lost() -> contextlib.AbstractContextManager[None]:
    """The call is refused because somebody else changed the resource."""
    return refused(grpc.StatusCode.ABORTED, Reason.REASON_ETAG_MISMATCH)
