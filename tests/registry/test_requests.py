"""Repeats of a write: one effect, the first answer, byte for byte."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import grpc
import pytest
from google.protobuf.field_mask_pb2 import FieldMask
from google.protobuf.message import Message

from tests.registry.conftest import Served
from tests.registry.stubs import URL, Connection, Registry, invalid, lost, settings_of, taken
from twofold import refusals
from twofold.errors.v1.reason_pb2 import Reason
from twofold.registry.v1 import agent_pb2, permission_pb2, user_pb2, workspace_pb2
from twofold_chassis.requests import Requests
from twofold_chassis.settings import DatabaseSettings
from twofold_registry.app import registry

Send = Callable[[], Awaitable[Message]]


def write(api: Registry, rpc: str, workspace: str, request_id: str, name: str = "New") -> Send:
    """A write that can be sent again and again; `name` makes another body. The workspace has user ann and agent helper."""
    rename = FieldMask(paths=["display_name"])
    revoked = {"New": "ann", "Other": "bob"}[name]
    grant = permission_pb2.AgentGrant(workspace_id=workspace, user_id="ann", agent_id="helper")
    grant.expire_time.FromSeconds(4_000_000_000 + len(name))
    user = user_pb2.User(workspace_id=workspace, email=f"{name}@acme.test", display_name=name)
    agent = agent_pb2.Agent(workspace_id=workspace, display_name=name, url=URL)
    named = workspace_pb2.Workspace(workspace_id=workspace, display_name=name)
    etag = {"New": "", "Other": "0000000000000000"}[name]
    deleted = deleted_workspace(workspace)
    requests: dict[str, tuple[Any, Any]] = {
        "CreateWorkspace": (
            api.workspaces,
            workspace_pb2.CreateWorkspaceRequest(workspace=workspace_pb2.Workspace(display_name=name)),
        ),
        "UpdateWorkspace": (
            api.workspaces,
            workspace_pb2.UpdateWorkspaceRequest(workspace=named, update_mask=rename),
        ),
        "DeleteWorkspace": (api.workspaces, workspace_pb2.DeleteWorkspaceRequest(workspace_id=workspace, etag=etag)),
        "UndeleteWorkspace": (api.workspaces, workspace_pb2.UndeleteWorkspaceRequest(workspace_id=deleted, etag=etag)),
        "PurgeWorkspace": (api.workspaces, workspace_pb2.PurgeWorkspaceRequest(workspace_id=deleted, etag=etag)),
        "UndeleteUser": (
            api.users,
            user_pb2.UndeleteUserRequest(workspace_id=workspace, user_id="eve", etag=etag),
        ),
        "PurgeUser": (api.users, user_pb2.PurgeUserRequest(workspace_id=workspace, user_id="eve", etag=etag)),
        "UndeleteAgent": (
            api.agents,
            agent_pb2.UndeleteAgentRequest(workspace_id=workspace, agent_id="old", etag=etag),
        ),
        "PurgeAgent": (api.agents, agent_pb2.PurgeAgentRequest(workspace_id=workspace, agent_id="old", etag=etag)),
        "CreateUser": (api.users, user_pb2.CreateUserRequest(user=user)),
        "UpdateUser": (
            api.users,
            user_pb2.UpdateUserRequest(
                user=user_pb2.User(workspace_id=workspace, user_id="ann", display_name=name), update_mask=rename
            ),
        ),
        "DeleteUser": (
            api.users,
            user_pb2.DeleteUserRequest(workspace_id=workspace, user_id="ann", etag=etag),
        ),
        "CreateAgent": (api.agents, agent_pb2.CreateAgentRequest(agent=agent)),
        "UpdateAgent": (
            api.agents,
            agent_pb2.UpdateAgentRequest(
                agent=agent_pb2.Agent(workspace_id=workspace, agent_id="helper", display_name=name), update_mask=rename
            ),
        ),
        "DeleteAgent": (
            api.agents,
            agent_pb2.DeleteAgentRequest(workspace_id=workspace, agent_id="helper", etag=etag),
        ),
        "Grant": (api.permissions, permission_pb2.GrantRequest(grant=grant)),
        "BatchGrant": (
            api.permissions,
            permission_pb2.BatchGrantRequest(
                workspace_id=workspace,
                grants=[
                    permission_pb2.BatchGrantItem(user_id="ann", agent_id="helper", expire_time=grant.expire_time),
                ],
            ),
        ),
        "BatchRevoke": (
            api.permissions,
            permission_pb2.BatchRevokeRequest(
                workspace_id=workspace,
                revokes=[permission_pb2.BatchRevokeItem(user_id=revoked, agent_id="helper")],
            ),
        ),
        "Revoke": (
            api.permissions,
            permission_pb2.RevokeRequest(workspace_id=workspace, user_id=revoked, agent_id="helper"),
        ),
    }
    stub, request = requests[rpc]
    request.request_id = request_id
    method: Callable[[Message], Awaitable[Message]] = getattr(stub, rpc)
    return lambda: method(request)


WRITES = (
    "CreateWorkspace",
    "UpdateWorkspace",
    "DeleteWorkspace",
    "UndeleteWorkspace",
    "PurgeWorkspace",
    "CreateUser",
    "UpdateUser",
    "DeleteUser",
    "UndeleteUser",
    "PurgeUser",
    "CreateAgent",
    "UpdateAgent",
    "DeleteAgent",
    "UndeleteAgent",
    "PurgeAgent",
    "Grant",
    "BatchGrant",
    "Revoke",
    "BatchRevoke",
)


def deleted_workspace(workspace: str) -> str:
    return f"{workspace}-deleted"


async def furnish(api: Registry, workspace: str) -> None:
    """What the writes speak of."""
    await api.make_user(workspace, "eve")
    await api.users.DeleteUser(user_pb2.DeleteUserRequest(workspace_id=workspace, user_id="eve"))
    await api.make_agent(workspace, "old")
    await api.agents.DeleteAgent(agent_pb2.DeleteAgentRequest(workspace_id=workspace, agent_id="old"))
    deleted = await api.make_workspace(deleted_workspace(workspace))
    await api.workspaces.DeleteWorkspace(workspace_pb2.DeleteWorkspaceRequest(workspace_id=deleted.workspace_id))
    await api.make_user(workspace, "ann")
    await api.make_user(workspace, "bob")
    await api.make_agent(workspace, "helper")
    await api.grant(workspace, "ann", "helper")


@pytest.fixture
async def furnished(api: Registry, workspace: str) -> str:
    await furnish(api, workspace)
    return workspace


async def head(owner: Connection) -> int:
    revision: int = await owner.fetchval("SELECT revision FROM registry.registry_head")
    return revision


@pytest.mark.parametrize("rpc", WRITES)
async def test_twenty_repeats_at_once_have_one_effect_and_one_answer(
    api: Registry, owner: Connection, furnished: str, rpc: str
) -> None:
    before = await head(owner)
    send = write(api, rpc, furnished, f"{furnished}-r1")
    answers = await asyncio.gather(*(send() for _ in range(20)))
    assert len({answer.SerializeToString() for answer in answers}) == 1
    assert await head(owner) == before + 1
    assert await send() == answers[0]
    assert await head(owner) == before + 1


@pytest.mark.parametrize("rpc", WRITES)
async def test_a_request_id_with_another_body_is_refused_and_changes_nothing(
    api: Registry, owner: Connection, furnished: str, rpc: str
) -> None:
    await write(api, rpc, furnished, f"{furnished}-r1")()
    before = await head(owner)
    with taken(Reason.REASON_REQUEST_REUSED):
        await write(api, rpc, furnished, f"{furnished}-r1", name="Other")()
    assert await head(owner) == before


async def test_a_request_id_with_another_rpc_is_refused(api: Registry, furnished: str) -> None:
    await write(api, "UpdateUser", furnished, "r1")()
    with taken(Reason.REASON_REQUEST_REUSED):
        await write(api, "UpdateAgent", furnished, "r1")()


async def test_another_request_id_is_another_write(api: Registry, furnished: str) -> None:
    first = await write(api, "CreateAgent", furnished, "r1")()
    second = await write(api, "CreateAgent", furnished, "r2")()
    assert first != second


async def test_workspaces_do_not_share_request_ids(api: Registry, furnished: str) -> None:
    other = (await api.make_workspace("")).workspace_id
    first = await write(api, "CreateAgent", furnished, "r1")()
    second = await write(api, "CreateAgent", other, "r1")()
    assert first != second


async def test_a_refused_write_leaves_its_request_id_free(api: Registry, workspace: str) -> None:
    request = user_pb2.CreateUserRequest(request_id="r1")
    request.user.MergeFrom(user_pb2.User(workspace_id=workspace, user_id="bob", email="ann@acme.test"))
    await api.make_user(workspace, "ann", email="ann@acme.test")
    with taken(Reason.REASON_EMAIL_TAKEN):
        await api.users.CreateUser(request)
    await api.users.DeleteUser(user_pb2.DeleteUserRequest(workspace_id=workspace, user_id="ann"))
    assert (await api.users.CreateUser(request)).user.user_id == "bob"


async def test_a_repeat_gets_its_answer_although_the_etag_has_passed(api: Registry, workspace: str) -> None:
    user = await api.make_user(workspace, "ann")
    user.display_name = "Ann"
    request = user_pb2.UpdateUserRequest(user=user, update_mask=FieldMask(paths=["display_name"]), request_id="r1")
    first = await api.users.UpdateUser(request)
    assert await api.users.UpdateUser(request) == first
    request.request_id = "r2"
    with lost():
        await api.users.UpdateUser(request)


@pytest.fixture(scope="module")
async def replica(served: Served, database_settings: DatabaseSettings) -> AsyncIterator[Registry]:
    """A second registry on the same database."""
    async with (
        registry(settings_of(database_settings)) as running,
        grpc.aio.insecure_channel(f"127.0.0.1:{running.port}") as channel,
    ):
        yield Registry(channel)


@pytest.mark.parametrize("rpc", WRITES)
async def test_c16_a_request_id_has_one_effect_and_one_answer_across_replicas(
    api: Registry, replica: Registry, owner: Connection, furnished: str, rpc: str
) -> None:
    before = await head(owner)
    sends = [write(each, rpc, furnished, f"{furnished}-r1") for each in (api, replica)] * 5
    answers = await asyncio.gather(*(send() for send in sends))
    assert len({answer.SerializeToString() for answer in answers}) == 1
    assert await head(owner) == before + 1


async def test_c16_of_writes_with_one_etag_one_wins_across_replicas(
    api: Registry, replica: Registry, owner: Connection, workspace: str
) -> None:
    user = await api.make_user(workspace, "ann")
    before = await head(owner)

    async def rename(registry: Registry, name: str) -> user_pb2.User:
        values = user_pb2.User(workspace_id=workspace, user_id="ann", display_name=name, etag=user.etag)
        request = user_pb2.UpdateUserRequest(user=values, update_mask=FieldMask(paths=["display_name"]))
        return (await registry.users.UpdateUser(request)).user

    calls = [rename((api, replica)[number % 2], f"Ann {number}") for number in range(10)]
    answers = await asyncio.gather(*calls, return_exceptions=True)
    (winner,) = [answer for answer in answers if isinstance(answer, user_pb2.User)]
    lost_out = [refusals.reason(answer) for answer in answers if isinstance(answer, grpc.aio.AioRpcError)]
    assert lost_out == [Reason.REASON_ETAG_MISMATCH] * 9
    assert await head(owner) == before + 1
    found = await replica.users.GetUser(user_pb2.GetUserRequest(workspace_id=workspace, user_id="ann"))
    assert found.user == winner


async def test_request_ids_are_bounded(api: Registry, furnished: str) -> None:
    for request_id in ("x" * 256, "a\0b"):
        with invalid("request_id"):
            await write(api, "Grant", furnished, request_id)()


async def test_answers_are_forgotten_after_more_than_a_day_and_not_before(
    api: Registry, owner: Connection, system: Connection, furnished: str
) -> None:
    forget = Requests("registry", is_swept=True).statements["forget_answers"]
    kept = "SELECT request_id FROM registry.requests WHERE workspace_id = $1"
    age = "UPDATE registry.requests SET created_at = now() - $2::interval WHERE workspace_id = $1"
    first = await write(api, "CreateAgent", furnished, "old")()
    await owner.execute(age.replace("$2::interval", "interval '23 hours 59 minutes'"), furnished)
    await system.execute(forget, 10_000)
    assert await write(api, "CreateAgent", furnished, "old")() == first
    await owner.execute(age.replace("$2::interval", "interval '26 hours'"), furnished)
    await write(api, "CreateAgent", furnished, "new")()
    await system.execute(forget, 10_000)
    assert [row["request_id"] for row in await owner.fetch(kept, furnished)] == ["new"]
