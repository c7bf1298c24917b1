"""What is in one workspace looks, from another, as if it were nowhere."""

from typing import Any

import grpc
import pytest
from google.protobuf.descriptor import MethodDescriptor, ServiceDescriptor
from google.protobuf.field_mask_pb2 import FieldMask
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp

from tests.registry.stubs import URL, Registry
from twofold.registry.v1 import agent_pb2, audit_pb2, permission_pb2, usage_pb2, user_pb2, workspace_pb2

SERVICES: dict[str, ServiceDescriptor] = {
    "workspaces": workspace_pb2.DESCRIPTOR.services_by_name["WorkspaceService"],
    "users": user_pb2.DESCRIPTOR.services_by_name["UserService"],
    "agents": agent_pb2.DESCRIPTOR.services_by_name["AgentService"],
    "permissions": permission_pb2.DESCRIPTOR.services_by_name["PermissionService"],
    "usage": usage_pb2.DESCRIPTOR.services_by_name["UsageService"],
    "audit": audit_pb2.DESCRIPTOR.services_by_name["AuditService"],
}
RPCS = [(name, method) for name, service in SERVICES.items() for method in service.methods]
TENANTS = [(name, method) for name, method in RPCS if name != "workspaces"]
NAMES = [method.name for _, method in TENANTS]
MASK = FieldMask(paths=["display_name"])


def requests(workspace: str, user: str, agent: str) -> dict[str, Message]:
    """For each rpc a request in `workspace` that speaks of `user` and `agent`."""
    pair: dict[str, Any] = {"workspace_id": workspace, "user_id": user, "agent_id": agent}
    at_user: dict[str, Any] = {"workspace_id": workspace, "user_id": user}
    at_agent: dict[str, Any] = {"workspace_id": workspace, "agent_id": agent}
    event = usage_pb2.UsageEvent(event_id="event", user_id=user, agent_id=agent, event_time=Timestamp(seconds=10**9))
    span: dict[str, Any] = {"start_time": Timestamp(seconds=1), "end_time": Timestamp(seconds=2 * 10**9)}
    return {
        "CreateUser": user_pb2.CreateUserRequest(user=user_pb2.User(email="ann@acme.test", **at_user)),
        "GetUser": user_pb2.GetUserRequest(**at_user),
        "ListUsers": user_pb2.ListUsersRequest(workspace_id=workspace),
        "UpdateUser": user_pb2.UpdateUserRequest(user=user_pb2.User(display_name="X", **at_user), update_mask=MASK),
        "DeleteUser": user_pb2.DeleteUserRequest(**at_user),
        "CreateAgent": agent_pb2.CreateAgentRequest(agent=agent_pb2.Agent(display_name="X", url=URL, **at_agent)),
        "GetAgent": agent_pb2.GetAgentRequest(**at_agent),
        "ListAgents": agent_pb2.ListAgentsRequest(workspace_id=workspace),
        "UpdateAgent": agent_pb2.UpdateAgentRequest(agent=agent_pb2.Agent(display_name="X", **at_agent), update_mask=MASK),
        "DeleteAgent": agent_pb2.DeleteAgentRequest(**at_agent),
        "Grant": permission_pb2.GrantRequest(grant=permission_pb2.AgentGrant(**pair)),
        "Revoke": permission_pb2.RevokeRequest(**pair),
        "Check": permission_pb2.CheckRequest(**pair),
        "ListGrants": permission_pb2.ListGrantsRequest(**pair),
        "RecordUsage": usage_pb2.RecordUsageRequest(workspace_id=workspace, events=[event]),
        "GetUsage": usage_pb2.GetUsageRequest(**pair, **span),
        "ListAuditEntries": audit_pb2.ListAuditEntriesRequest(
            workspace_id=workspace, resource_kind="user", resource_id=user
        ),
    }


def test_every_rpc_has_a_request_here() -> None:
    assert set(NAMES) == requests("w", "u", "a").keys()


@pytest.fixture
async def furnished(api: Registry, workspace: str) -> str:
    """A workspace with one of everything."""
    await api.make_user(workspace, "ann", email="ann@acme.test", identity_id="auth|1")
    await api.make_agent(workspace, "helper")
    await api.grant(workspace, "ann", "helper")
    request = requests(workspace, "ann", "helper")["RecordUsage"]
    await api.usage.RecordUsage(request)  # type: ignore[arg-type]
    return workspace


async def answer(api: Registry, service: str, method: MethodDescriptor, request: Message, *forgotten: str) -> str:
    """What a caller learns: the answer without some of its fields, or the refusal."""
    call = getattr(getattr(api, service), method.name)
    try:
        found = await call(request)
    except grpc.aio.AioRpcError as error:
        return f"{error.code()} {error.details()}"
    for name in forgotten:
        if name in found.DESCRIPTOR.fields_by_name:
            found.ClearField(name)
    return str(found)


@pytest.mark.parametrize(("service", "method"), TENANTS, ids=NAMES)
async def test_ids_of_another_workspace_look_as_ids_that_do_not_exist(
    api: Registry, furnished: str, service: str, method: MethodDescriptor
) -> None:
    one, two = [(await api.make_workspace("")).workspace_id for _ in range(2)]
    told_of_new = ("revision_token", "user", "agent", "grant")  # they differ from call to call
    foreign = await answer(api, service, method, requests(one, "ann", "helper")[method.name], *told_of_new)
    missing = await answer(api, service, method, requests(two, "nobody", "nothing")[method.name], *told_of_new)
    assert foreign == missing.replace("nobody", "ann").replace("nothing", "helper")
    assert furnished not in foreign


@pytest.mark.parametrize(("service", "method"), TENANTS, ids=NAMES)
async def test_what_happens_in_another_workspace_changes_nothing_here(
    api: Registry, furnished: str, service: str, method: MethodDescriptor
) -> None:
    async def state() -> list[str]:
        reads = ("GetUser", "GetAgent", "Check", "ListGrants", "GetUsage", "ListAuditEntries", "ListUsers", "ListAgents")
        asked = requests(furnished, "ann", "helper")
        return [
            await answer(api, name, each, asked[each.name], "revision_token") for name, each in TENANTS if each.name in reads
        ]

    other = (await api.make_workspace("")).workspace_id
    await api.make_user(other, "ann", email="ann@acme.test", identity_id="auth|1")
    await api.make_agent(other, "helper")
    await api.grant(other, "ann", "helper")
    before = await state()
    await answer(api, service, method, requests(other, "ann", "helper")[method.name])
    assert await state() == before
