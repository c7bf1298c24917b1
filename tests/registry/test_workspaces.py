import asyncio
from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Any

import grpc
import pytest
from google.protobuf.field_mask_pb2 import FieldMask

from tests.registry.stubs import Connection, Registry, invalid, lost, refused, taken, unknown
from twofold.errors.v1.reason_pb2 import Reason
from twofold.registry.v1 import agent_pb2, user_pb2
from twofold.registry.v1 import workspace_pb2 as pb
from twofold_chassis import postgres
from twofold_chassis.refusals import Busy
from twofold_chassis.requests import Requests
from twofold_chassis.settings import DatabaseSettings
from twofold_chassis.urls import UrlPolicy
from twofold_registry.store.agents import PostgresAgents
from twofold_registry.store.changes import Changes
from twofold_registry.store.purges import PostgresPurges, Purge
from twofold_registry.store.reads import Reads
from twofold_registry.store.users import PostgresUsers
from twofold_registry.store.workspaces import PostgresWorkspaces


async def get(api: Registry, workspace_id: str) -> pb.Workspace:
    return (await api.workspaces.GetWorkspace(pb.GetWorkspaceRequest(workspace_id=workspace_id))).workspace


async def update(api: Registry, paths: list[str], **values: object) -> pb.Workspace:
    workspace = pb.Workspace(**values)  # type: ignore[arg-type]
    request = pb.UpdateWorkspaceRequest(workspace=workspace, update_mask=FieldMask(paths=paths))
    return (await api.workspaces.UpdateWorkspace(request)).workspace


async def delete(api: Registry, workspace_id: str, etag: str = "") -> pb.DeleteWorkspaceResponse:
    return await api.workspaces.DeleteWorkspace(pb.DeleteWorkspaceRequest(workspace_id=workspace_id, etag=etag))


async def undelete(api: Registry, workspace_id: str, etag: str = "") -> pb.Workspace:
    return (
        await api.workspaces.UndeleteWorkspace(pb.UndeleteWorkspaceRequest(workspace_id=workspace_id, etag=etag))
    ).workspace


async def purge(api: Registry, workspace_id: str, etag: str = "") -> None:
    await api.workspaces.PurgeWorkspace(pb.PurgeWorkspaceRequest(workspace_id=workspace_id, etag=etag))


def not_deleted() -> Any:
    return refused(grpc.StatusCode.FAILED_PRECONDITION, Reason.REASON_NOT_DELETED)


async def told(owner: Connection, workspace_id: str) -> list[tuple[int, str]]:
    """What those who follow were told of the workspace itself: revision and kind, in order."""
    text = (
        "SELECT revision, kind FROM registry.changes WHERE workspace_id = $1 AND kind IN ('workspace', 'plan')"
        " ORDER BY revision, ordinal"
    )
    return [(row["revision"], row["kind"]) for row in await owner.fetch(text, workspace_id)]


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
        ({"plan": "Gold"}, "plan"),
        ({"plan": "-gold"}, "plan"),
        ({"plan": "x" * 64}, "plan"),
        ({"plan": "gold\n"}, "plan"),
        ({"state": 3}, "state"),
        ({"settings": {"limits": [{"kind": 4, "amount": -1}]}}, "settings.limits[0].amount"),
        ({"settings": {"limits": [{"kind": 4, "amount": 10**15 + 1}]}}, "settings.limits[0].amount"),
        ({"settings": {"limits": [{"kind": 7, "amount": 1}]}}, "settings.limits[0].kind"),
        ({"settings": {"limits": [{"kind": 4}, {"kind": 4}]}}, "settings.limits[1].kind"),
        ({"settings": {"limits": [{"kind": 4}] * 7}}, "settings.limits"),
        ({"settings": {"retention": {"conversation_days": -1}}}, "settings.retention.conversation_days"),
        ({"settings": {"retention": {"session_days": 36_501}}}, "settings.retention.session_days"),
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


async def test_each_field_of_a_workspace_is_changed_alone(api: Registry, workspace: str) -> None:
    every = pb.Workspace(
        workspace_id=workspace,
        display_name="New",
        namespace="new",
        plan="gold.2_a-b",
        state=pb.WORKSPACE_STATE_SUSPENDED,
        settings=pb.WorkspaceSettings(
            allowed_url_suffixes=["new.test"],
            limits=[pb.Limit(kind=pb.LIMIT_KIND_AGENT_HOUR_MESSAGES, amount=10**15, shadow=True)],
            retention=pb.Retention(conversation_days=36_500, session_days=1),
        ),
    )
    before = await get(api, workspace)
    assert (before.plan, before.state) == ("default", pb.WORKSPACE_STATE_ACTIVE)
    paths = ["display_name", "namespace", "plan", "state", "settings.allowed_url_suffixes", "settings.limits",
             "settings.retention.conversation_days", "settings.retention.session_days"]  # fmt: skip
    for path in paths:
        request = pb.UpdateWorkspaceRequest(workspace=every, update_mask=FieldMask(paths=[path]))
        after = (await api.workspaces.UpdateWorkspace(request)).workspace
        FieldMask(paths=[path]).MergeMessage(every, before, replace_repeated_field=True)
        for each in (before, after):
            each.ClearField("etag")
            each.ClearField("update_time")
        assert after == before
    request = pb.UpdateWorkspaceRequest(
        workspace=pb.Workspace(workspace_id=workspace), update_mask=FieldMask(paths=["settings.retention", "plan"])
    )
    reset = (await api.workspaces.UpdateWorkspace(request)).workspace
    assert (reset.plan, reset.settings.HasField("retention")) == ("default", False)


async def test_limits_are_in_one_order_and_the_same_limits_are_no_other_plan(
    api: Registry, owner: Connection, workspace: str
) -> None:
    tokens = pb.Limit(kind=pb.LIMIT_KIND_WORKSPACE_DAY_TOKENS, amount=5)
    hourly = pb.Limit(kind=pb.LIMIT_KIND_USER_HOUR_MESSAGES, amount=47)
    for limits in ([tokens, hourly], [hourly, tokens]):
        settings = pb.WorkspaceSettings(limits=limits)
        updated = await update(api, ["settings.limits"], workspace_id=workspace, settings=settings)
        assert list(updated.settings.limits) == [hourly, tokens]
    assert [kind for _, kind in await told(owner, workspace)] == ["workspace", "workspace", "plan", "workspace"]


async def test_who_follows_is_told_of_every_change_and_of_those_of_the_plan(
    api: Registry, owner: Connection, workspace: str
) -> None:
    await update(api, ["display_name"], workspace_id=workspace, display_name="New")
    await update(api, ["plan"], workspace_id=workspace, plan="gold")
    await update(api, ["state"], workspace_id=workspace, state=pb.WORKSPACE_STATE_SUSPENDED)
    await delete(api, workspace)
    await undelete(api, workspace)
    await delete(api, workspace)
    await purge(api, workspace)
    kinds = [kind for _, kind in await told(owner, workspace)]
    assert kinds == ["workspace", "workspace", "workspace", "plan", *["workspace"] * 5]
    actions = [entry.action for entry in await api.trail(workspace)]
    wanted = ["create", "update", "update", "update", "delete", "undelete", "delete", "purge"]
    assert actions == [f"workspace.{action}" for action in wanted]


async def test_in_a_suspended_workspace_nobody_may_use_anything(api: Registry, workspace: str) -> None:
    await api.make_user(workspace, "ann", role=user_pb2.ROLE_OWNER)
    await api.make_agent(workspace, "helper")
    await update(api, ["state"], workspace_id=workspace, state=pb.WORKSPACE_STATE_SUSPENDED)
    assert not (await api.check(workspace, "ann", "helper")).allowed
    await update(api, ["state"], workspace_id=workspace, state=pb.WORKSPACE_STATE_ACTIVE)
    assert (await api.check(workspace, "ann", "helper")).allowed


async def test_a_deleted_workspace_is_restored_with_all_that_is_in_it(api: Registry, workspace: str) -> None:
    await api.make_user(workspace, "ann")
    await api.make_agent(workspace, "helper")
    await api.grant(workspace, "ann", "helper")
    before = await get(api, workspace)
    with not_deleted():
        await undelete(api, workspace)
    gone = (await api.workspaces.DeleteWorkspace(pb.DeleteWorkspaceRequest(workspace_id=workspace))).workspace
    assert gone.HasField("delete_time")
    shown = pb.GetWorkspaceRequest(workspace_id=workspace, show_deleted=True)
    assert (await api.workspaces.GetWorkspace(shown)).workspace == gone
    with lost():
        await undelete(api, workspace, etag=before.etag)
    await undelete(api, workspace, etag=gone.etag)
    assert (await api.check(workspace, "ann", "helper")).allowed
    with unknown(Reason.REASON_WORKSPACE_UNKNOWN):
        await undelete(api, "nowhere")


async def test_a_workspace_that_is_only_validated_is_not_there(api: Registry, owner: Connection, workspace: str) -> None:
    head = "SELECT revision FROM registry.registry_head"
    before = await owner.fetchval(head)
    new = pb.Workspace(workspace_id=f"{workspace}-new", display_name="New")
    told = (await api.workspaces.CreateWorkspace(pb.CreateWorkspaceRequest(workspace=new, validate_only=True))).workspace
    assert (told.display_name, told.plan, told.etag) == ("New", "default", "")
    new.workspace_id = workspace
    with taken(Reason.REASON_WORKSPACE_EXISTS):
        await api.workspaces.CreateWorkspace(pb.CreateWorkspaceRequest(workspace=new, validate_only=True))
    gone = await api.workspaces.DeleteWorkspace(pb.DeleteWorkspaceRequest(workspace_id=workspace, validate_only=True))
    assert gone.workspace.HasField("purge_time")
    assert (await get(api, workspace)).display_name == "Acme"
    with unknown(Reason.REASON_WORKSPACE_UNKNOWN):
        await get(api, f"{workspace}-new")
    assert await owner.fetchval(head) == before


async def test_workspaces_are_found_by_plan_state_and_name(api: Registry, workspace_id: str) -> None:
    plan = workspace_id.lower()
    made: dict[str, dict[str, Any]] = {
        "a": {"display_name": "Acme%One"},
        "b": {"display_name": "Acme_Two", "state": pb.WORKSPACE_STATE_SUSPENDED},
        "c": {"display_name": "Bolt"},
    }
    for name, values in made.items():
        await api.make_workspace(f"{workspace_id}-{name}", plan=plan, **values)
    await delete(api, f"{workspace_id}-c")

    async def listed(**values: Any) -> str:
        request = pb.ListWorkspacesRequest(plan=plan, page_size=500, **values)
        return "".join(each.workspace_id[-1] for each in (await api.workspaces.ListWorkspaces(request)).workspaces)

    assert await listed() == "ab"
    assert await listed(show_deleted=True, order_by="id desc") == "cba"
    assert await listed(state=pb.WORKSPACE_STATE_SUSPENDED) == "b"
    assert await listed(display_name_prefix="Acme") == "ab"
    assert await listed(display_name_prefix="Acme%") == "a"
    assert await listed(display_name_prefix="acme") == ""
    assert await listed(display_name_prefix="Acme_Two!") == ""
    for name, value in {"state": 9, "display_name_prefix": "a\0", "plan": "x" * 256}.items():
        with invalid(name):
            await api.workspaces.ListWorkspaces(pb.ListWorkspacesRequest(**{name: value}))  # type: ignore[arg-type]


async def test_a_batch_that_outgrows_a_message_names_what_it_leaves_out(api: Registry, workspace_id: str) -> None:
    suffixes = [f"{'a' * 63}.{'b' * 63}.{'c' * 63}.{'d' * 50}{index:02}.test" for index in range(50)]
    ids = [f"{workspace_id}-{number:03}" for number in range(200)]
    settings = pb.WorkspaceSettings(allowed_url_suffixes=suffixes)
    for start in range(0, len(ids), 10):
        await asyncio.gather(*(api.make_workspace(each, settings=settings) for each in ids[start : start + 10]))
    asked = [*ids, "nowhere"]
    got: list[str] = []
    while asked:
        found = await api.workspaces.BatchGetWorkspaces(pb.BatchGetWorkspacesRequest(workspace_ids=asked))
        assert found.ByteSize() < 4 * 1024 * 1024
        assert list(found.missing_ids) in ([], ["nowhere"])
        assert found.workspaces
        got += [each.workspace_id for each in found.workspaces]
        asked = list(found.omitted_ids)
    assert got == ids
    for each in ids:  # they would fill the pages of others
        await delete(api, each)


@pytest.fixture
async def purges(api: Registry, database_settings: DatabaseSettings) -> AsyncIterator[PostgresPurges]:
    """The purges of a registry, to be run when the test says so."""
    pool = await postgres.open_pool(database_settings, name="test")
    system = await postgres.open_pool(database_settings.system, name="test-system")
    reads, changes = Reads(pool), Changes(pool, Requests("registry"))
    grace, policy = timedelta(days=30), UrlPolicy((), allow_loopback=False)
    kinds: dict[str, Purge] = {
        "workspace": PostgresWorkspaces(reads, changes, grace, Reads(system)).purge,
        "user": PostgresUsers(reads, changes, grace).purge,
        "agent": PostgresAgents(reads, changes, grace, policy).purge,
    }
    yield PostgresPurges(system, pool, kinds)
    await postgres.close_pool(system)
    await postgres.close_pool(pool)


async def age(owner: Connection, workspace_id: str, days: int) -> None:
    for table in ("workspaces", "users", "agents"):
        text = f"UPDATE registry.{table} SET purge_at = purge_at - make_interval(days => $2) WHERE workspace_id = $1"
        await owner.execute(text, workspace_id, days)


async def test_what_was_deleted_for_long_enough_is_purged_and_told_of(
    api: Registry, owner: Connection, purges: PostgresPurges, workspace: str
) -> None:
    for name in ("ann", "bob"):
        await api.make_user(workspace, name)
    await api.make_agent(workspace, "helper")
    await api.grant(workspace, "ann", "helper")
    await api.users.DeleteUser(user_pb2.DeleteUserRequest(workspace_id=workspace, user_id="ann"))
    await api.agents.DeleteAgent(agent_pb2.DeleteAgentRequest(workspace_id=workspace, agent_id="helper"))
    await age(owner, workspace, 29)
    await purges.purge_due(500)
    shown = user_pb2.GetUserRequest(workspace_id=workspace, user_id="ann", show_deleted=True)
    assert (await api.users.GetUser(shown)).user.email == "ann@acme.test"

    await age(owner, workspace, 1)
    await asyncio.gather(purges.purge_due(500), purges.purge_due(500))
    with unknown(Reason.REASON_USER_UNKNOWN):
        await api.users.GetUser(shown)
    left = "SELECT count(*) FROM registry.{} WHERE workspace_id = $1"
    assert await owner.fetchval(left.format("grants"), workspace) == 0
    assert await owner.fetchval(left.format("users") + " AND purged_at IS NOT NULL AND email = ''", workspace) == 1
    assert await owner.fetchval(left.format("agents") + " AND purged_at IS NOT NULL AND url = ''", workspace) == 1
    entries = [(entry.actor, entry.action) for entry in await api.trail(workspace)][-2:]
    assert sorted(entries) == [("system", "agent.purge"), ("system", "user.purge")]
    assert await owner.fetchval(left.format("changes") + " AND kind IN ('user', 'agent') AND after IS NULL", workspace) == 4


async def test_one_that_cannot_be_purged_holds_up_no_other(
    api: Registry, owner: Connection, purges: PostgresPurges, workspace: str
) -> None:
    stuck = (await api.make_workspace("")).workspace_id
    for place, of in enumerate((stuck, workspace)):
        await api.make_user(of, "ann")
        await api.users.DeleteUser(user_pb2.DeleteUserRequest(workspace_id=of, user_id="ann"))
        await age(owner, of, 40 - place)  # the one that is stuck is the first
    async with owner.transaction():
        await owner.execute("SELECT FROM registry.workspaces WHERE workspace_id = $1 FOR UPDATE", stuck)
        with pytest.raises(Busy):
            await purges.purge_due(500)
    purged = "SELECT purged_at IS NOT NULL FROM registry.users WHERE workspace_id = $1"
    assert [await owner.fetchval(purged, of) for of in (stuck, workspace)] == [False, True]
    await purges.purge_due(500)
    assert await owner.fetchval(purged, stuck)


async def test_who_is_restored_in_the_last_moment_is_not_purged(
    api: Registry, owner: Connection, purges: PostgresPurges, workspace: str
) -> None:
    await api.make_user(workspace, "ann")
    gone = user_pb2.DeleteUserRequest(workspace_id=workspace, user_id="ann")
    await api.users.DeleteUser(gone)
    await age(owner, workspace, 31)
    row = {"kind": "user", "workspace_id": workspace, "resource_id": "ann"}
    found = await owner.fetchrow("SELECT revision, updated_at FROM registry.users WHERE workspace_id = $1", workspace)
    assert found is not None
    due: Any = {**row, **found}
    await api.users.UndeleteUser(user_pb2.UndeleteUserRequest(workspace_id=workspace, user_id="ann"))
    await purges.purge_one(due)
    await api.users.DeleteUser(gone)
    await purges.purge_one(due)
    back = await api.users.UndeleteUser(user_pb2.UndeleteUserRequest(workspace_id=workspace, user_id="ann"))
    assert back.user.email == "ann@acme.test"


async def test_a_purged_workspace_is_emptied_some_rows_at_a_time(
    api: Registry, owner: Connection, purges: PostgresPurges, workspace: str
) -> None:
    for number in range(5):
        await api.make_user(workspace, f"user-{number}")
        await api.make_agent(workspace, f"agent-{number}")
        await api.grant(workspace, f"user-{number}", f"agent-{number}")
    await api.users.DeleteUser(user_pb2.DeleteUserRequest(workspace_id=workspace, user_id="user-3"))
    with not_deleted():
        await purge(api, workspace)
    await delete(api, workspace)
    await age(owner, workspace, 31)
    await purges.purge_due(500)
    with unknown(Reason.REASON_WORKSPACE_UNKNOWN):
        await undelete(api, workspace)
    with taken(Reason.REASON_WORKSPACE_EXISTS):
        await api.make_workspace(workspace)

    emptied = "SELECT emptied_at IS NOT NULL FROM registry.workspaces WHERE workspace_id = $1"
    assert not await owner.fetchval(emptied, workspace)
    for _ in range(3):
        await asyncio.gather(purges.empty(2), purges.empty(2))
    assert await owner.fetchval(emptied, workspace)
    left = "SELECT count(*) FROM registry.{} WHERE workspace_id = $1"
    assert await owner.fetchval(left.format("grants"), workspace) == 0
    assert await owner.fetchval(left.format("users") + " AND email || display_name <> ''", workspace) == 0
    assert await owner.fetchval(left.format("agents") + " AND url || display_name || model <> ''", workspace) == 0
    row = await owner.fetchrow("SELECT * FROM registry.workspaces WHERE workspace_id = $1", workspace)
    assert row is not None
    assert (row["display_name"], row["namespace"], row["plan"]) == ("", "", "")
    assert await purges.empty(2) == 0


async def test_many_purged_workspaces_are_emptied_in_one_sweep(
    api: Registry, owner: Connection, purges: PostgresPurges, workspace_id: str
) -> None:
    names = [f"{workspace_id}-{number}" for number in range(12)]
    for name in names:
        await api.make_workspace(name)
        await delete(api, name)
        await age(owner, name, 31)
    await purges.purge_due(500)
    await purges.empty(500)
    left = "SELECT count(*) FROM registry.workspaces WHERE workspace_id = ANY ($1) AND emptied_at IS NULL"
    assert await owner.fetchval(left, names) == 0
