import pytest
from google.protobuf.field_mask_pb2 import FieldMask

from tests.registry.stubs import Registry, invalid, lost, taken, unknown
from twofold.errors.v1.reason_pb2 import Reason
from twofold.registry.v1 import agent_pb2, user_pb2
from twofold.registry.v1 import workspace_pb2 as pb


async def get(api: Registry, workspace_id: str) -> pb.Workspace:
    return (await api.workspaces.GetWorkspace(pb.GetWorkspaceRequest(workspace_id=workspace_id))).workspace


async def update(api: Registry, paths: list[str], **values: object) -> pb.Workspace:
    workspace = pb.Workspace(**values)  # type: ignore[arg-type]
    request = pb.UpdateWorkspaceRequest(workspace=workspace, update_mask=FieldMask(paths=paths))
    return (await api.workspaces.UpdateWorkspace(request)).workspace


async def delete(api: Registry, workspace_id: str, etag: str = "") -> pb.DeleteWorkspaceResponse:
    return await api.workspaces.DeleteWorkspace(pb.DeleteWorkspaceRequest(workspace_id=workspace_id, etag=etag))


async def test_a_workspace_lives_from_its_creation_to_its_deletion(api: Registry, workspace_id: str) -> None:
    settings = pb.WorkspaceSettings(allowed_url_suffixes=["Agents.Acme.Test"])
    created = await api.make_workspace(workspace_id, display_name="Acme", namespace="acme", settings=settings)
    assert created.settings.allowed_url_suffixes == ["agents.acme.test"]
    assert created.create_time == created.update_time
    assert await get(api, workspace_id) == created

    updated = await update(api, ["display_name"], workspace_id=workspace_id, display_name="Acme & Sons", namespace="ignored")
    assert (updated.display_name, updated.namespace) == ("Acme & Sons", "acme")
    assert updated.create_time == created.create_time
    assert updated.etag != created.etag
    assert updated.update_time.ToNanoseconds() > created.update_time.ToNanoseconds()
    assert await get(api, workspace_id) == updated

    await delete(api, workspace_id)
    with unknown(Reason.REASON_WORKSPACE_UNKNOWN):
        await get(api, workspace_id)
    with unknown(Reason.REASON_WORKSPACE_UNKNOWN):
        await delete(api, workspace_id)
    with unknown(Reason.REASON_WORKSPACE_UNKNOWN):
        await update(api, ["display_name"], workspace_id=workspace_id, display_name="Back")


async def test_an_id_is_made_when_none_is_given(api: Registry) -> None:
    first, second = await api.make_workspace(""), await api.make_workspace("")
    assert first.workspace_id < second.workspace_id


async def test_an_id_is_never_used_again(api: Registry, workspace: str) -> None:
    with taken(Reason.REASON_WORKSPACE_EXISTS):
        await api.make_workspace(workspace)
    await delete(api, workspace)
    with taken(Reason.REASON_WORKSPACE_EXISTS):
        await api.make_workspace(workspace)


async def test_only_the_current_etag_changes_or_deletes(api: Registry, workspace: str) -> None:
    first = await get(api, workspace)
    second = await update(api, ["display_name"], workspace_id=workspace, display_name="Two", etag=first.etag)
    with lost():
        await update(api, ["display_name"], workspace_id=workspace, display_name="Three", etag=first.etag)
    with lost():
        await delete(api, workspace, etag=first.etag)
    assert await get(api, workspace) == second
    await delete(api, workspace, etag=second.etag)


async def test_settings_are_replaced_as_a_whole_or_by_field(api: Registry, workspace: str) -> None:
    settings = pb.WorkspaceSettings(allowed_url_suffixes=["one.test", "two.test"])
    updated = await update(api, ["settings.allowed_url_suffixes"], workspace_id=workspace, settings=settings)
    assert updated.settings == settings
    updated = await update(api, ["settings"], workspace_id=workspace)
    assert updated.settings == pb.WorkspaceSettings()


@pytest.mark.parametrize("paths", [[], ["workspace_id"], ["etag"], ["settings.unknown"], ["display_name", "*"], [""]])
async def test_a_mask_names_known_fields(api: Registry, workspace: str, paths: list[str]) -> None:
    with invalid("update_mask"):
        await update(api, paths, workspace_id=workspace, display_name="New")


@pytest.mark.parametrize(
    ("values", "field"),
    [
        ({"display_name": ""}, "display_name"),
        ({"display_name": "x" * 256}, "display_name"),
        ({"display_name": "a\nb"}, "display_name"),
        ({"workspace_id": "x" * 256}, "workspace_id"),
        ({"workspace_id": "a\0b"}, "workspace_id"),
        ({"namespace": "Upper"}, "namespace"),
        ({"namespace": "-begin"}, "namespace"),
        ({"namespace": "two.labels"}, "namespace"),
        ({"namespace": "x" * 64}, "namespace"),
        ({"settings": {"allowed_url_suffixes": ["ok.test"] * 51}}, "settings.allowed_url_suffixes"),
        ({"settings": {"allowed_url_suffixes": ["ok.test", ".test"]}}, "settings.allowed_url_suffixes[1]"),
        ({"settings": {"allowed_url_suffixes": ["127.0.0.1"]}}, "settings.allowed_url_suffixes[0]"),
        ({"settings": {"allowed_url_suffixes": ["a" * 64]}}, "settings.allowed_url_suffixes[0]"),
        ({"settings": {"allowed_url_suffixes": ["ex_ample.test"]}}, "settings.allowed_url_suffixes[0]"),
        ({"settings": {"allowed_url_suffixes": ["bücher.test"]}}, "settings.allowed_url_suffixes[0]"),
        ({"settings": {"allowed_url_suffixes": ["a." * 126 + "aa"]}}, "settings.allowed_url_suffixes[0]"),
    ],
)
async def test_bad_values_are_refused_by_field(
    api: Registry, workspace_id: str, values: dict[str, object], field: str
) -> None:
    given = {"workspace_id": workspace_id, **values}
    with invalid(f"workspace.{field}"):
        await api.make_workspace(**given)  # type: ignore[arg-type]


async def test_a_request_without_its_workspace_is_refused(api: Registry) -> None:
    with invalid("workspace"):
        await api.workspaces.CreateWorkspace(pb.CreateWorkspaceRequest())
    with invalid("workspace"):
        await api.workspaces.UpdateWorkspace(pb.UpdateWorkspaceRequest())


async def test_deleting_a_workspace_hides_what_is_in_it(api: Registry, workspace: str) -> None:
    await api.make_user(workspace, "ann")
    await api.make_agent(workspace, "helper")
    await delete(api, workspace)
    with unknown(Reason.REASON_USER_UNKNOWN):
        await api.users.GetUser(user_pb2.GetUserRequest(workspace_id=workspace, user_id="ann"))
    with unknown(Reason.REASON_AGENT_UNKNOWN):
        await api.agents.DeleteAgent(agent_pb2.DeleteAgentRequest(workspace_id=workspace, agent_id="helper"))
    with unknown(Reason.REASON_WORKSPACE_UNKNOWN):
        await api.users.ListUsers(user_pb2.ListUsersRequest(workspace_id=workspace))
    with unknown(Reason.REASON_WORKSPACE_UNKNOWN):
        await api.make_user(workspace, "bob")
    listed = await api.workspaces.ListWorkspaces(pb.ListWorkspacesRequest(page_size=500))
    assert workspace not in [entry.workspace_id for entry in listed.workspaces]
