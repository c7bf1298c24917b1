"""What is in one workspace looks, from another, as if it were nowhere.

Every rpc of the registry has its request in `requests`, or stands in `OF_NO_TENANT` with the reason why it has none.
"""

import asyncio
import itertools
from collections.abc import AsyncIterator, Mapping
from typing import Any

import grpc
import pytest
from google.protobuf import descriptor_pool, text_format
from google.protobuf.duration_pb2 import Duration
from google.protobuf.field_mask_pb2 import FieldMask
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp
from google.rpc import error_details_pb2, status_pb2

from tests.house import contract
from tests.house.contract import Rpc
from tests.registry.conftest import Served
from tests.registry.stubs import URL, Registry
from twofold.registry.v1 import (
    agent_pb2,
    audit_pb2,
    billing_pb2,
    permission_pb2,
    pod_pb2,
    session_pb2,
    terms_pb2,
    usage_pb2,
    user_pb2,
)

RPCS = {rpc.name.rpartition(".")[2]: rpc for rpc in contract.rpcs() if rpc.room == "registry"}
OF_NO_TENANT: Mapping[str, str] = {
    "CreateWorkspace": "workspace ids are one name space: that one is taken is told to whoever asks for it",
    "GetWorkspace": "its only id is that of the workspace",
    "ListWorkspaces": "for operators: it lists them all",
    "BatchGetWorkspaces": "for the installation: its only ids are those of workspaces",
    "UndeleteWorkspace": "its only id is that of the workspace",
    "PurgeWorkspace": "its only id is that of the workspace",
    "UpdateWorkspace": "its only id is that of the workspace",
    "DeleteWorkspace": "its only id is that of the workspace",
    "VerifyAudit": "its only id is that of the workspace",
    "ExportAuditHead": "its only id is that of the workspace",
    "GetAuditKey": "the key is that of the whole registry",
    "Watch": "for routers: what changes in all workspaces",
    "ListRouters": "for operators: routers belong to no workspace",
    "RegisterPod": "pods belong to no workspace",
    "CheckPod": "pods belong to no workspace",
    "BatchCheckPods": "pods belong to no workspace",
    "MarkPodDead": "pods belong to no workspace",
    "ListPods": "for operators: pods belong to no workspace",
}
NAMES = sorted(RPCS.keys() - OF_NO_TENANT.keys())
# What listings require besides the workspace.
OF_ONE: Mapping[str, Mapping[str, Any]] = {
    "ListUsableAgents": {"user_id": "ann"},
    "ListAgentUsers": {"agent_id": "helper"},
    "QueryUsage": {"group_by": usage_pb2.USAGE_GROUP_AGENT},
    "GetBill": {"month": "2001-09"},
    "GetInvoice": {"month": "2001-09"},
}
MASK = FieldMask(paths=["display_name"])
SEEN = agent_pb2.AgentObservation(state=agent_pb2.OBSERVED_STATE_COLD, generation=1, observe_time=Timestamp(seconds=10**9))
# What differs from call to call, whoever is asked for: the head of the history and the time, and resources with their times.
MOVING = {"revision_token", "revision", "read_time"}
VARYING = MOVING | {"user", "agent", "grant", "invoice", "adjustment", "caps"}
# Ids of a furnished workspace, and ids of the same length that are nowhere.
USER, NOBODY = "ann", "nob"
AGENT, NOTHING = "helper", "nohelp"
# One that every write of the furnished workspace was made with.
REQUEST_ID = "request-1"


def requests(workspace: str, user: str, agent: str) -> dict[str, Message]:
    """For each rpc a request in `workspace` that speaks of `user` and `agent`."""
    pair: dict[str, Any] = {"workspace_id": workspace, "user_id": user, "agent_id": agent}
    at_user: dict[str, Any] = {"workspace_id": workspace, "user_id": user}
    at_agent: dict[str, Any] = {"workspace_id": workspace, "agent_id": agent}
    event = usage_pb2.UsageEvent(event_id="event", user_id=user, agent_id=agent, event_time=Timestamp(seconds=10**9))
    session = session_pb2.SessionEvent(
        session_id=f"session-of-{user}",
        kind=session_pb2.SessionEventKind.SESSION_EVENT_KIND_OPENED,
        user_id=user,
        agent_id=agent,
        pod_id="pod",
        incarnation=pod_pb2.PodIncarnation(epoch=1, number=1),
        event_time=Timestamp(seconds=10**9),
    )
    span: dict[str, Any] = {"start_time": Timestamp(seconds=1), "end_time": Timestamp(seconds=2 * 10**9)}
    return {
        "CreateUser": user_pb2.CreateUserRequest(user=user_pb2.User(email="ann@acme.test", **at_user)),
        "GetUser": user_pb2.GetUserRequest(**at_user),
        "BatchGetUsers": user_pb2.BatchGetUsersRequest(workspace_id=workspace, user_ids=[user]),
        "ListUsers": user_pb2.ListUsersRequest(workspace_id=workspace),
        "UpdateUser": user_pb2.UpdateUserRequest(user=user_pb2.User(display_name="X", **at_user), update_mask=MASK),
        "DeleteUser": user_pb2.DeleteUserRequest(**at_user),
        "UndeleteUser": user_pb2.UndeleteUserRequest(**at_user),
        "PurgeUser": user_pb2.PurgeUserRequest(**at_user),
        "CreateAgent": agent_pb2.CreateAgentRequest(agent=agent_pb2.Agent(display_name="X", url=URL, **at_agent)),
        "GetAgent": agent_pb2.GetAgentRequest(**at_agent),
        "BatchGetAgents": agent_pb2.BatchGetAgentsRequest(workspace_id=workspace, agent_ids=[agent]),
        "ListAgents": agent_pb2.ListAgentsRequest(workspace_id=workspace),
        "UpdateAgent": agent_pb2.UpdateAgentRequest(agent=agent_pb2.Agent(display_name="X", **at_agent), update_mask=MASK),
        "DeleteAgent": agent_pb2.DeleteAgentRequest(**at_agent),
        "UndeleteAgent": agent_pb2.UndeleteAgentRequest(**at_agent),
        "PurgeAgent": agent_pb2.PurgeAgentRequest(**at_agent),
        "ReportAgentState": agent_pb2.ReportAgentStateRequest(observation=SEEN, **at_agent),
        "Grant": permission_pb2.GrantRequest(grant=permission_pb2.AgentGrant(**pair)),
        "BatchGrant": permission_pb2.BatchGrantRequest(
            workspace_id=workspace, grants=[permission_pb2.BatchGrantItem(user_id=user, agent_id=agent)]
        ),
        "Revoke": permission_pb2.RevokeRequest(**pair),
        "BatchRevoke": permission_pb2.BatchRevokeRequest(
            workspace_id=workspace, revokes=[permission_pb2.BatchRevokeItem(user_id=user, agent_id=agent)]
        ),
        "Check": permission_pb2.CheckRequest(**pair),
        "BatchCheck": permission_pb2.BatchCheckRequest(
            workspace_id=workspace, pairs=[permission_pb2.PermissionPair(user_id=user, agent_id=agent)]
        ),
        "ExplainPermission": permission_pb2.ExplainPermissionRequest(**pair),
        "ListGrants": permission_pb2.ListGrantsRequest(**pair),
        "ListUsableAgents": permission_pb2.ListUsableAgentsRequest(**at_user),
        "ListAgentUsers": permission_pb2.ListAgentUsersRequest(**at_agent),
        "RecordUsage": usage_pb2.RecordUsageRequest(workspace_id=workspace, events=[event]),
        "StreamUsage": usage_pb2.StreamUsageRequest(workspace_id=workspace, events=[event]),
        "GetUsage": usage_pb2.GetUsageRequest(**pair, **span),
        "QueryUsage": usage_pb2.QueryUsageRequest(**pair, **span, group_by=usage_pb2.USAGE_GROUP_DAY),
        "ReadWindow": usage_pb2.ReadWindowRequest(workspace_id=workspace, cell=Duration(seconds=300)),
        "GetTerms": terms_pb2.GetTermsRequest(**at_user),
        "GetBill": billing_pb2.GetBillRequest(workspace_id=workspace, month="2001-09"),
        "CloseMonth": billing_pb2.CloseMonthRequest(workspace_id=workspace, month="2001-10"),
        "GetInvoice": billing_pb2.GetInvoiceRequest(workspace_id=workspace, month="2001-09"),
        "ListInvoices": billing_pb2.ListInvoicesRequest(workspace_id=workspace),
        "CreateAdjustment": billing_pb2.CreateAdjustmentRequest(
            adjustment=billing_pb2.Adjustment(
                workspace_id=workspace, amount=usage_pb2.Money(amount_micros=-1), reason="as agreed"
            )
        ),
        "GetCaps": billing_pb2.GetCapsRequest(workspace_id=workspace),
        "SetCaps": billing_pb2.SetCapsRequest(
            caps=billing_pb2.UsageCaps(workspace_id=workspace, messages=billing_pb2.Cap(hard=1))
        ),
        "RecordSessions": session_pb2.RecordSessionsRequest(workspace_id=workspace, events=[session]),
        "ListSessions": session_pb2.ListSessionsRequest(**pair),
        "ListAuditEntries": audit_pb2.ListAuditEntriesRequest(
            workspace_id=workspace, resource_kind="user", resource_id=user
        ),
        "ExportAudit": audit_pb2.ExportAuditRequest(workspace_id=workspace, after_seq=1),  # behind its own creation
    }


def test_every_rpc_has_a_request_here() -> None:
    assert len(RPCS) == len([rpc for rpc in contract.rpcs() if rpc.room == "registry"]), "two rpcs have one name"
    assert requests("w", "u", "a").keys() == set(NAMES)
    assert OF_NO_TENANT.keys() <= RPCS.keys()


@pytest.mark.parametrize("name", NAMES)
def test_every_request_here_speaks_of_all_that_it_can(name: str) -> None:
    request = requests("w", "u", "a")[name]
    assert isinstance(request, RPCS[name].request)
    told = dict(_ids(request))
    expected = {"workspace_id": "w", "user_id": "u", "agent_id": "a"}
    for field in _id_fields(request):
        if field.rpartition(".")[2] in expected:
            assert told.get(field) == expected[field.rpartition(".")[2]], field


def _id_fields(message: Message, path: str = "") -> set[str]:
    """The paths of all ids of a request, in it and in the resource that it is about."""
    found = set()
    for field in contract.fields_of(message):
        if field.message_type is None:
            found |= {f"{path}{field.name}"} if field.name.endswith("_id") else set()
        elif not field.is_repeated and not path and message.HasField(field.name):
            found |= _id_fields(getattr(message, field.name), f"{path}{field.name}.")
    return found


def _ids(message: Message) -> list[tuple[str, object]]:
    found = []
    for path in _id_fields(message):
        holder: Any = message
        *steps, name = path.split(".")
        for step in steps:
            holder = getattr(holder, step)
        found.append((path, getattr(holder, name)))
    return found


def asked(name: str, workspace: str, user: str, agent: str) -> Any:
    """The request of an rpc, under the request id that others have used, too."""
    request: Any = requests(workspace, user, agent)[name]
    if "request_id" in request.DESCRIPTOR.fields_by_name and not request.request_id:
        request.request_id = REQUEST_ID
    return request


@pytest.fixture
async def channel(served: Served) -> AsyncIterator[grpc.aio.Channel]:
    async with grpc.aio.insecure_channel(served.target) as opened:
        yield opened


@pytest.fixture
async def furnished(api: Registry, channel: grpc.aio.Channel, workspace: str) -> str:
    """A workspace with two of everything, in which the request id is used."""
    for user, agent in (("ann", "helper"), ("ben", "painter")):
        await api.make_user(workspace, user, identity_id=f"auth|{user}")
        await api.make_agent(workspace, agent)
        await api.grant(workspace, user, agent)
    await api.grant(workspace, USER, "painter")
    await api.grant(workspace, "ben", AGENT)
    await send(channel, RPCS["RecordUsage"], asked("RecordUsage", workspace, USER, AGENT))
    other: Any = asked("RecordUsage", workspace, "ben", "painter")
    other.events[0].event_id = "another"
    await send(channel, RPCS["RecordUsage"], other)
    for month in ("2001-08", "2001-09"):
        closing = billing_pb2.CloseMonthRequest(workspace_id=workspace, month=month)
        await send(channel, RPCS["CloseMonth"], closing)
    await send(channel, RPCS["SetCaps"], billing_pb2.SetCapsRequest(caps=billing_pb2.UsageCaps(workspace_id=workspace)))
    await send(channel, RPCS["RecordSessions"], asked("RecordSessions", workspace, USER, AGENT))
    await send(channel, RPCS["RecordSessions"], asked("RecordSessions", workspace, "ben", "painter"))
    await send(channel, RPCS["UpdateUser"], asked("UpdateUser", workspace, USER, AGENT))
    return workspace


async def send(channel: grpc.aio.Channel, rpc: Rpc, request: Message) -> list[Any]:
    """The answers of one call: one, or all those of a stream."""
    kind = f"{'stream' if rpc.takes_stream else 'unary'}_{'stream' if rpc.streams else 'unary'}"
    method = getattr(channel, kind)(
        rpc.path,
        request_serializer=rpc.request.SerializeToString,
        response_deserializer=rpc.response.FromString,
    )
    call = method(iter([request]) if rpc.takes_stream else request, timeout=20)
    return [found async for found in call] if rpc.streams else [await call]


async def answer(channel: grpc.aio.Channel, name: str, request: Message, *forgotten: str) -> str:
    """What a caller learns: the answer without some of its fields, or all of the refusal."""
    try:
        found = await send(channel, RPCS[name], request)
    except grpc.aio.AioRpcError as error:
        trailing = dict(error.trailing_metadata() or ())
        status = status_pb2.Status.FromString(trailing["grpc-status-details-bin"])
        return f"{error.code()} {error.details()} {trailing['twofold-reason']!r} {_in_full(status)}"
    for one, field in itertools.product(found, forgotten):
        if field in one.DESCRIPTOR.fields_by_name:
            one.ClearField(field)
    return "\n".join(map(str, found))


def _in_full(status: status_pb2.Status) -> str:
    return text_format.MessageToString(status, descriptor_pool=descriptor_pool.Default())  # with what is packed in it


def test_a_refusal_is_compared_with_all_its_details() -> None:
    info = error_details_pb2.ErrorInfo(metadata={"user_id": "ann"})
    status = status_pb2.Status()
    status.details.add().Pack(info)
    assert 'value: "ann"' in _in_full(status)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("user", "agent"), [(USER, AGENT), (USER, NOTHING), (NOBODY, AGENT)])
async def test_c17_ids_of_another_workspace_look_as_ids_that_do_not_exist(
    api: Registry, channel: grpc.aio.Channel, furnished: str, name: str, user: str, agent: str
) -> None:
    one, two = [(await api.make_workspace("")).workspace_id for _ in range(2)]
    foreign = await answer(channel, name, asked(name, one, user, agent), *VARYING)
    missing = await answer(channel, name, asked(name, two, NOBODY, NOTHING), *VARYING)
    for theirs, ours in ((two, one), (NOBODY, user), (NOTHING, agent)):
        missing = missing.replace(theirs, ours)
    assert foreign == missing
    assert furnished not in foreign


@pytest.mark.parametrize("name", [name for name in NAMES if "page_token" in RPCS[name].request.DESCRIPTOR.fields_by_name])
async def test_c17_a_page_token_of_another_workspace_tells_nothing(
    api: Registry, channel: grpc.aio.Channel, furnished: str, name: str
) -> None:
    request: Any = RPCS[name].request(workspace_id=furnished, page_size=1, **OF_ONE.get(name, {}))
    _copy_times(asked(name, furnished, USER, AGENT), request)
    (page,) = await send(channel, RPCS[name], request)
    assert page.next_page_token, "a workspace with two of everything has a second page"
    one, two = [(await api.make_workspace("")).workspace_id for _ in range(2)]
    told = []
    for workspace, token in ((one, page.next_page_token), (two, "")):
        request.workspace_id, request.page_token = workspace, token
        told.append((await answer(channel, name, request, *VARYING)).replace(workspace, "it"))
    refused = told[0].startswith("StatusCode.INVALID_ARGUMENT")
    # Audit entries tell of the workspace's own creation; of what is in the other one, none does.
    assert refused or told[0] == told[1] or not told[0]
    assert furnished not in told[0]


def _copy_times(source: Message, target: Message) -> None:
    """Spans of time are required where there are any."""
    for field, value in source.ListFields():
        if isinstance(value, Timestamp):
            getattr(target, field.name).CopyFrom(value)


async def test_c17_the_etag_of_another_workspaces_resource_is_that_of_none(api: Registry, furnished: str) -> None:
    theirs = await api.agents.GetAgent(agent_pb2.GetAgentRequest(workspace_id=furnished, agent_id=AGENT))
    ours = await api.make_workspace("")
    agent = await api.make_agent(ours.workspace_id, AGENT)
    for etag in (theirs.agent.etag, "0" * 16):
        request = agent_pb2.DeleteAgentRequest(workspace_id=ours.workspace_id, agent_id=AGENT, etag=etag)
        with pytest.raises(grpc.aio.AioRpcError) as refusal:
            await api.agents.DeleteAgent(request)
        assert refusal.value.code() == grpc.StatusCode.ABORTED
    assert agent.etag != theirs.agent.etag


@pytest.mark.parametrize("name", NAMES)
async def test_c17_what_happens_in_another_workspace_changes_nothing_here(
    api: Registry, channel: grpc.aio.Channel, furnished: str, name: str
) -> None:
    writes = {"RecordUsage", "StreamUsage", "ReportAgentState"} | {
        each for each in NAMES if "request_id" in RPCS[each].request.DESCRIPTOR.fields_by_name
    }

    async def state() -> list[str]:
        reads = (each for each in NAMES if each not in writes)
        return await asyncio.gather(*(answer(channel, each, asked(each, furnished, USER, AGENT), *MOVING) for each in reads))

    other = (await api.make_workspace("")).workspace_id
    await api.make_user(other, USER, identity_id=f"auth|{USER}")
    await api.make_agent(other, AGENT)
    await api.grant(other, USER, AGENT)
    before = await state()
    await answer(channel, name, asked(name, other, USER, AGENT))
    assert await state() == before
