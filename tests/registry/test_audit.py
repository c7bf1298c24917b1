import itertools
import json
import re
from collections.abc import Callable, Iterator
from typing import Any

import grpc
import pytest
from google.protobuf.descriptor import Descriptor
from google.protobuf.field_mask_pb2 import FieldMask
from google.protobuf.timestamp_pb2 import Timestamp

from tests.registry.stubs import URL, Registry, invalid, refused, unknown
from twofold.errors.v1.reason_pb2 import Reason
from twofold.registry.v1 import agent_pb2, permission_pb2, user_pb2, workspace_pb2
from twofold.registry.v1 import audit_pb2 as pb
from twofold_registry.revisions import Revision, revision_of
from twofold_registry.store import audit as store

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
    await api.grant(workspace_id, "a/b%", "helper", expire_time=Timestamp(seconds=4_000_000_000))
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
        ("first_revision", pb.ListAuditEntriesRequest(workspace_id=workspace, first_revision=-1)),
        ("last_revision", pb.ListAuditEntriesRequest(workspace_id=workspace, first_revision=5, last_revision=4)),
    ):
        with invalid(field):
            await api.audit.ListAuditEntries(request)
    with unknown(Reason.REASON_WORKSPACE_UNKNOWN):
        await api.audit.ListAuditEntries(pb.ListAuditEntriesRequest(workspace_id="nowhere"))


async def busy_trail(api: Registry, workspace_id: str) -> list[pb.AuditEntry]:
    """A trail of two actors in several calls, oldest first."""
    await api.make_workspace(workspace_id)
    for index in range(6):
        actor, call = ("user:ann", "user:bob")[index % 2], f"call-{index}"
        told = (("twofold-actor", actor), ("x-request-id", call))
        agent = agent_pb2.Agent(workspace_id=workspace_id, agent_id=f"a{index % 3}", display_name=f"A{index}", url=URL)
        if index < 3:
            await api.agents.CreateAgent(agent_pb2.CreateAgentRequest(agent=agent), metadata=told)
        else:
            await api.agents.UpdateAgent(agent_pb2.UpdateAgentRequest(agent=agent, update_mask=NAMES), metadata=told)
    for name in ("ann", "bob"):
        await api.make_user(workspace_id, name)
    return await api.trail(workspace_id)


async def test_every_combination_of_filters_lists_what_passes_all_of_them(api: Registry, workspace_id: str) -> None:
    trail = await busy_trail(api, workspace_id)
    third, sixth = trail[2], trail[5]
    filters: list[tuple[dict[str, Any], Callable[[pb.AuditEntry], bool]]] = [
        ({"resource_kind": "agent"}, lambda e: e.resource_kind == "agent"),
        ({"resource_kind": "agent", "resource_id": "a1"}, lambda e: (e.resource_kind, e.resource_id) == ("agent", "a1")),
        ({"actor": "user:bob"}, lambda e: e.actor == "user:bob"),
        ({"action": "agent.update"}, lambda e: e.action == "agent.update"),
        ({"call_request_id": "call-4"}, lambda e: e.request_id == "call-4"),
        ({"start_time": third.create_time}, lambda e: micros(e) >= micros(third)),
        ({"end_time": sixth.create_time}, lambda e: micros(e) < micros(sixth)),
        ({"first_revision": third.revision}, lambda e: e.revision >= third.revision),
        ({"last_revision": sixth.revision}, lambda e: e.revision <= sixth.revision),
    ]
    for count in range(4):
        for chosen in itertools.combinations(filters, count):
            values = {name: value for asked, _ in chosen for name, value in asked.items()}
            expected = [entry for entry in trail if all(passes(entry) for _, passes in chosen)]
            for size, oldest_first in ((500, False), (500, True), (2, False), (1, True)):
                found = await walk(api, workspace_id, size, oldest_first=oldest_first, **values)
                assert found == (expected if oldest_first else expected[::-1]), (values, size, oldest_first)


def micros(entry: pb.AuditEntry) -> int:
    return entry.create_time.ToMicroseconds()


async def walk(api: Registry, workspace_id: str, size: int, **values: Any) -> list[pb.AuditEntry]:
    """All pages."""
    request = pb.ListAuditEntriesRequest(workspace_id=workspace_id, page_size=size, **values)
    found: list[pb.AuditEntry] = []
    while True:
        answer = await api.audit.ListAuditEntries(request)
        found += answer.entries
        request.page_token = answer.next_page_token
        assert len(answer.entries) <= size
        if not answer.next_page_token:
            return found


async def test_where_few_entries_pass_a_page_looks_at_so_many_and_no_more(
    api: Registry, workspace_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store, "SCANNED_MAX", 3)
    trail = await busy_trail(api, workspace_id)
    request = pb.ListAuditEntriesRequest(workspace_id=workspace_id, action="agent.create", actor="user:bob")
    pages = []
    while True:
        answer = await api.audit.ListAuditEntries(request)
        pages.append([entry.seq for entry in answer.entries])
        request.page_token = answer.next_page_token
        if not answer.next_page_token:
            break
    assert [seq for page in pages for seq in page] == [
        e.seq for e in trail if (e.action, e.actor) == ("agent.create", "user:bob")
    ]
    assert len(pages) == 2  # user:bob has three entries, of which the first is what is looked for
    late = {"start_time": trail[0].create_time, "resource_kind": "workspace"}
    assert await walk(api, workspace_id, 10, **late) == trail[:1]


async def test_a_listing_can_be_asked_to_be_as_new_as_a_write(api: Registry, workspace: str) -> None:
    answer = await api.agents.CreateAgent(
        agent_pb2.CreateAgentRequest(agent=agent_pb2.Agent(workspace_id=workspace, display_name="A", url=URL))
    )
    request = pb.ListAuditEntriesRequest(workspace_id=workspace, min_revision_token=answer.revision_token)
    assert len((await api.audit.ListAuditEntries(request)).entries) == 2
    revision = revision_of(answer.revision_token, "t")
    assert revision is not None
    request.min_revision_token = Revision(revision.epoch, revision.number + 1000).token()
    with refused(grpc.StatusCode.UNAVAILABLE, Reason.REASON_REVISION_NOT_REACHED):
        await api.audit.ListAuditEntries(request)


def fields_below(kind: Descriptor, above: str = "") -> Iterator[str]:
    for field in kind.fields:
        yield f"{above}{field.name}"
        if field.message_type is not None and field.message_type.full_name.startswith("twofold."):
            yield from fields_below(field.message_type, f"{above}{field.name}.")


def test_no_resource_has_a_field_for_a_secret_that_the_audit_would_tell() -> None:
    kinds = (workspace_pb2.Workspace, user_pb2.User, agent_pb2.Agent, permission_pb2.AgentGrant)
    names = [name for kind in kinds for name in fields_below(kind.DESCRIPTOR)]
    assert "settings.instructions" in names
    secret = re.compile(r"secret|passw|credential|api_?key|private|bearer|signature|(^|[._])(auth|token|key)$")
    assert [name for name in names if secret.search(name)] == []
