import json

import grpc
import pytest
from google.protobuf.field_mask_pb2 import FieldMask

from tests.registry.stubs import URL, Registry, invalid, unknown
from twofold.errors.v1.reason_pb2 import Reason
from twofold.registry.v1 import agent_pb2, permission_pb2, user_pb2, workspace_pb2
from twofold.registry.v1 import audit_pb2 as pb
from twofold_registry.revisions import revision_of

NAMES = FieldMask(paths=["display_name"])


async def whole_life(api: Registry, workspace_id: str) -> None:
    """Every kind of change, once."""
    await api.make_workspace(workspace_id)
    await api.make_user(workspace_id, "a/b%")
    await api.make_agent(workspace_id, "helper")
    workspace = workspace_pb2.Workspace(workspace_id=workspace_id, display_name="New")
    await api.workspaces.UpdateWorkspace(workspace_pb2.UpdateWorkspaceRequest(workspace=workspace, update_mask=NAMES))
    user = user_pb2.User(workspace_id=workspace_id, user_id="a/b%", display_name="New")
    await api.users.UpdateUser(user_pb2.UpdateUserRequest(user=user, update_mask=NAMES))
    agent = agent_pb2.Agent(workspace_id=workspace_id, agent_id="helper", display_name="New")
    await api.agents.UpdateAgent(agent_pb2.UpdateAgentRequest(agent=agent, update_mask=NAMES))
    await api.grant(workspace_id, "a/b%", "helper")
    await api.grant(workspace_id, "a/b%", "helper")
    revoke = permission_pb2.RevokeRequest(workspace_id=workspace_id, user_id="a/b%", agent_id="helper")
    await api.permissions.Revoke(revoke)
    await api.users.DeleteUser(user_pb2.DeleteUserRequest(workspace_id=workspace_id, user_id="a/b%"))
    await api.agents.DeleteAgent(agent_pb2.DeleteAgentRequest(workspace_id=workspace_id, agent_id="helper"))
    await api.workspaces.DeleteWorkspace(workspace_pb2.DeleteWorkspaceRequest(workspace_id=workspace_id))


async def test_each_change_leaves_one_entry_and_the_trail_outlives_the_workspace(api: Registry, workspace_id: str) -> None:
    await whole_life(api, workspace_id)
    trail = await api.trail(workspace_id)
    pair = "a%2Fb%25/helper"
    assert [(entry.action, entry.resource_kind, entry.resource_id) for entry in trail] == [
        ("workspace.create", "workspace", workspace_id),
        ("user.create", "user", "a/b%"),
        ("agent.create", "agent", "helper"),
        ("workspace.update", "workspace", workspace_id),
        ("user.update", "user", "a/b%"),
        ("agent.update", "agent", "helper"),
        ("permission.grant", "permission", pair),
        ("permission.grant", "permission", pair),
        ("permission.revoke", "permission", pair),
        ("user.delete", "user", "a/b%"),
        ("agent.delete", "agent", "helper"),
        ("workspace.delete", "workspace", workspace_id),
    ]
    for entry in trail:
        _, _, verb = entry.action.partition(".")
        assert bool(entry.before_json) == (verb in ("update", "delete", "revoke") or entry is trail[7])
        assert bool(entry.after_json) == (verb in ("create", "update", "grant"))


async def test_an_entry_tells_before_and_after_in_the_fields_of_the_contract(api: Registry, workspace: str) -> None:
    created = await api.make_agent(workspace, "helper", settings=agent_pb2.AgentSettings(instructions="Sei höflich."))
    agent = agent_pb2.Agent(workspace_id=workspace, agent_id="helper", display_name="New")
    answer = await api.agents.UpdateAgent(agent_pb2.UpdateAgentRequest(agent=agent, update_mask=NAMES))
    entry = (await api.trail(workspace, resource_kind="agent", resource_id="helper"))[-1]
    before, after = json.loads(entry.before_json), json.loads(entry.after_json)
    changed = {name for name in after if before.get(name) != after[name]}
    assert changed == {"display_name", "etag", "update_time"}
    assert (after["url"], after["state"], after["etag"]) == (URL, "AGENT_STATE_PUBLISHED", answer.agent.etag)
    assert "höflich" in entry.after_json
    assert before["etag"] == created.etag
    revision = revision_of(answer.revision_token, "t")
    assert revision is not None
    assert entry.revision == revision.number
    assert entry.create_time == answer.agent.update_time


async def test_an_entry_tells_who_did_it_in_which_call(api: Registry, workspace: str) -> None:
    request = user_pb2.CreateUserRequest(user=user_pb2.User(workspace_id=workspace, user_id="ann", email="a@acme.test"))
    await api.users.CreateUser(request, metadata=(("twofold-actor", "user:root"), ("x-request-id", "call-7")))
    entry = (await api.trail(workspace, resource_kind="user"))[0]
    assert (entry.actor, entry.request_id) == ("user:root", "call-7")
    assert [entry.actor for entry in await api.trail(workspace, resource_kind="workspace")] == ["anonymous"]


async def test_a_refused_change_leaves_no_entry(api: Registry, workspace: str) -> None:
    before = await api.trail(workspace)
    with pytest.raises(grpc.aio.AioRpcError):
        await api.make_agent(workspace, "helper", url="http://evil.example")
    with pytest.raises(grpc.aio.AioRpcError):
        await api.grant(workspace, "nobody", "nothing")
    assert await api.trail(workspace) == before


async def test_the_trail_is_listed_newest_first_by_kind_and_by_resource(api: Registry, workspace: str) -> None:
    for name in ("one", "two"):
        await api.make_agent(workspace, name)
    await api.make_user(workspace, "one")

    async def listed(**values: str) -> list[str]:
        request = pb.ListAuditEntriesRequest(workspace_id=workspace)
        for name, value in values.items():
            setattr(request, name, value)
        entries = (await api.audit.ListAuditEntries(request)).entries
        return [f"{entry.resource_kind}/{entry.resource_id}" for entry in entries]

    assert await listed() == ["user/one", "agent/two", "agent/one", f"workspace/{workspace}"]
    assert await listed(resource_kind="agent") == ["agent/two", "agent/one"]
    assert await listed(resource_kind="agent", resource_id="one") == ["agent/one"]
    assert await listed(resource_kind="permission") == []


async def test_bad_questions_are_refused_by_field(api: Registry, workspace: str) -> None:
    for field, request in (
        ("workspace_id", pb.ListAuditEntriesRequest()),
        ("resource_kind", pb.ListAuditEntriesRequest(workspace_id=workspace, resource_kind="planet")),
        ("resource_kind", pb.ListAuditEntriesRequest(workspace_id=workspace, resource_id="one")),
        ("resource_id", pb.ListAuditEntriesRequest(workspace_id=workspace, resource_kind="user", resource_id="x" * 1532)),
    ):
        with invalid(field):
            await api.audit.ListAuditEntries(request)
    with unknown(Reason.REASON_WORKSPACE_UNKNOWN):
        await api.audit.ListAuditEntries(pb.ListAuditEntriesRequest(workspace_id="nowhere"))
