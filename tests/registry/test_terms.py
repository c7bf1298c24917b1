"""Terms: which limits are in force for a user, how the month stands, and where agents may live."""

import grpc
from google.protobuf.field_mask_pb2 import FieldMask

from tests.registry.billing import Books, event, this_month
from tests.registry.stubs import Connection, Registry, invalid, refused, unknown
from twofold.errors.v1.reason_pb2 import Reason
from twofold.registry.v1 import billing_pb2, terms_pb2, user_pb2, workspace_pb2
from twofold_chassis import fields
from twofold_chassis.revisions import Revision, revision_of
from twofold_registry import months

KINDS = workspace_pb2.LimitKind


def limit(kind: str, amount: int, *, shadow: bool = False) -> workspace_pb2.Limit:
    return workspace_pb2.Limit(kind=KINDS.Value(f"LIMIT_KIND_{kind}"), amount=amount, shadow=shadow)


async def terms(api: Registry, workspace_id: str, user_id: str = "", **values: bytes) -> terms_pb2.GetTermsResponse:
    return await api.terms.GetTerms(terms_pb2.GetTermsRequest(workspace_id=workspace_id, user_id=user_id, **values))


async def set_limits(api: Registry, workspace_id: str, *limits: workspace_pb2.Limit) -> bytes:
    settings = workspace_pb2.WorkspaceSettings(limits=limits)
    workspace = workspace_pb2.Workspace(workspace_id=workspace_id, settings=settings)
    request = workspace_pb2.UpdateWorkspaceRequest(workspace=workspace, update_mask=FieldMask(paths=["settings.limits"]))
    return (await api.workspaces.UpdateWorkspace(request)).revision_token


async def test_a_users_own_limit_takes_the_place_of_the_workspaces(api: Registry, workspace: str) -> None:
    of_day = limit("WORKSPACE_DAY_TOKENS", 10**9, shadow=True)
    await set_limits(api, workspace, limit("USER_HOUR_MESSAGES", 47), limit("USER_MINUTE_MESSAGES", 5), of_day)
    own = [limit("USER_HOUR_MESSAGES", 100), limit("USER_MINUTE_MESSAGES", 0)]
    await api.make_user(workspace, "ann", limits=own)
    await api.make_user(workspace, "bob")
    assert list((await terms(api, workspace, "ann")).limits) == [own[0], of_day]
    others = [limit("USER_HOUR_MESSAGES", 47), limit("USER_MINUTE_MESSAGES", 5), of_day]
    for user_id in ("bob", "nobody", ""):
        assert list((await terms(api, workspace, user_id)).limits) == others


async def test_a_deleted_users_own_limits_are_none(api: Registry, workspace: str) -> None:
    await api.make_user(workspace, "ann", limits=[limit("USER_HOUR_MESSAGES", 100)])
    assert len((await terms(api, workspace, "ann")).limits) == 1
    await api.users.DeleteUser(user_pb2.DeleteUserRequest(workspace_id=workspace, user_id="ann"))
    assert not (await terms(api, workspace, "ann")).limits


async def test_terms_tell_where_agents_may_live_and_when_they_were_read(api: Registry, workspace_id: str) -> None:
    settings = workspace_pb2.WorkspaceSettings(allowed_url_suffixes=["agents.example.com"])
    await api.make_workspace(workspace_id, namespace="acme", settings=settings)
    told = await terms(api, workspace_id)
    assert (list(told.allowed_url_suffixes), told.namespace) == (["agents.example.com"], "acme")
    assert (told.cap_state, told.cap_month) == (billing_pb2.CAP_STATE_NONE, "")
    assert told.read_time.seconds > 10**9


async def test_a_cap_that_is_crossed_is_told_with_its_month_at_a_new_revision(api: Registry, workspace: str) -> None:
    await api.make_user(workspace, "ann")
    await api.make_agent(workspace, "helper")
    caps = billing_pb2.UsageCaps(workspace_id=workspace, messages=billing_pb2.Cap(soft=1, hard=2))
    await api.billing.SetCaps(billing_pb2.SetCapsRequest(caps=caps))
    month, seen = months.named(this_month()), []
    for number in range(3):
        told = await terms(api, workspace, "ann")
        assert told.cap_month == month
        revision = revision_of(told.revision_token, "revision_token")
        assert revision is not None
        seen.append((told.cap_state, revision.number))
        await Books(api, workspace).record(event(f"{number}/0"))
    states, revisions = zip(*seen, strict=True)
    assert states == (billing_pb2.CAP_STATE_NONE, billing_pb2.CAP_STATE_SOFT, billing_pb2.CAP_STATE_HARD)
    assert len(set(revisions)) == 3


async def test_terms_are_not_older_than_asked_for(api: Registry, owner: Connection, workspace: str) -> None:
    token = await set_limits(api, workspace, limit("USER_HOUR_MESSAGES", 47))
    told = await terms(api, workspace, min_revision_token=token)
    assert [each.amount for each in told.limits] == [47]
    epoch = await owner.fetchval("SELECT epoch FROM registry.registry_head")
    with refused(grpc.StatusCode.UNAVAILABLE, Reason.REASON_REVISION_NOT_REACHED):
        await terms(api, workspace, min_revision_token=Revision(epoch, 10**12).token())
    with refused(grpc.StatusCode.ABORTED, Reason.REASON_HISTORY_CHANGED):
        await terms(api, workspace, min_revision_token=Revision(1, 1).token())


async def test_an_unknown_workspace_has_no_terms(api: Registry, workspace: str) -> None:
    with unknown(Reason.REASON_WORKSPACE_UNKNOWN):
        await terms(api, "nowhere")
    await api.workspaces.DeleteWorkspace(workspace_pb2.DeleteWorkspaceRequest(workspace_id=workspace))
    with unknown(Reason.REASON_WORKSPACE_UNKNOWN):
        await terms(api, workspace)
    with invalid("user_id"):
        await terms(api, workspace, "x" * (fields.ID_BYTES_MAX + 1))
