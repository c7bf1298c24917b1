import asyncio
from datetime import UTC, datetime, timedelta
from typing import Any

import grpc
import pytest
from google.protobuf.field_mask_pb2 import FieldMask
from google.protobuf.timestamp_pb2 import Timestamp
from hypothesis import given, settings
from hypothesis import strategies as some

from tests.registry.stubs import Connection, Registry, invalid, refused, unknown
from twofold.errors.v1.reason_pb2 import Reason
from twofold.registry.v1 import agent_pb2, user_pb2, workspace_pb2
from twofold.registry.v1 import permission_pb2 as pb
from twofold_chassis import fields
from twofold_registry.checks import Facts, Verdict, judge
from twofold_registry.checks import Reason as Why
from twofold_registry.revisions import Revision, revision_of
from twofold_registry.users import Role

NOW = datetime(2030, 1, 1, tzinfo=UTC)


@settings(deadline=None)
@given(
    some.builds(
        Facts,
        workspace_lives=some.booleans(),
        workspace_suspended=some.booleans(),
        role=some.sampled_from([None, *Role]),
        user_suspended=some.booleans(),
        agent_lives=some.booleans(),
        agent_gone=some.booleans(),
        granted=some.booleans(),
        expires_at=some.sampled_from([None, NOW - timedelta(1), NOW, NOW + timedelta(microseconds=1)]),
        at=some.just(NOW),
    )
)
def test_the_rule(facts: Facts) -> None:
    verdict = judge(facts)
    all_exist = facts.workspace_lives and facts.role is not None and facts.agent_lives
    none_is_out = not (facts.workspace_suspended or facts.user_suspended or facts.agent_gone)
    is_valid = facts.granted and (facts.expires_at is None or facts.expires_at > NOW)
    may = facts.role in (Role.OWNER, Role.ADMIN) or is_valid
    assert verdict.allowed == (all_exist and none_is_out and may)
    if verdict.reason in (Why.AGENT_UNKNOWN, Why.AGENT_GONE):
        assert may
    if not facts.agent_lives and facts.role not in (Role.OWNER, Role.ADMIN):
        # Whoever is granted nothing learns nothing of agents: neither that one is there nor that one was.
        assert verdict == judge(facts._replace(agent_gone=False))
    if verdict.expires_at is not None:
        assert verdict == Verdict(True, Why.GRANT, facts.expires_at)


@pytest.fixture
async def pair(api: Registry, workspace: str) -> str:
    """A workspace with the member ann, the agent helper, and no grant."""
    await api.make_user(workspace, "ann")
    await api.make_agent(workspace, "helper")
    return workspace


async def reason(api: Registry, workspace_id: str, user_id: str = "ann", agent_id: str = "helper") -> str:
    answer = await api.check(workspace_id, user_id, agent_id)
    name = pb.CheckReason.Name(answer.reason).removeprefix("CHECK_REASON_")
    assert answer.allowed == (name in ("GRANT", "ROLE"))
    return name


async def revoke(api: Registry, workspace_id: str, user_id: str = "ann", agent_id: str = "helper") -> pb.RevokeResponse:
    request = pb.RevokeRequest(workspace_id=workspace_id, user_id=user_id, agent_id=agent_id)
    return await api.permissions.Revoke(request)


async def grants(api: Registry, workspace_id: str, **values: Any) -> list[tuple[str, str]]:
    listed = await api.permissions.ListGrants(pb.ListGrantsRequest(workspace_id=workspace_id, **values))
    return [(grant.user_id, grant.agent_id) for grant in listed.grants]


def after(delay: timedelta) -> Timestamp:
    return fields.timestamp(datetime.now(UTC) + delay)


async def test_a_grant_allows_until_it_is_revoked(api: Registry, pair: str) -> None:
    assert await reason(api, pair) == "NO_GRANT"
    granted = await api.grant(pair, "ann", "helper")
    assert (granted.grant.granted_by, granted.grant.HasField("expire_time")) == ("anonymous", False)
    assert await reason(api, pair) == "GRANT"
    assert await grants(api, pair) == [("ann", "helper")]
    assert (await revoke(api, pair)).revoked
    assert await reason(api, pair) == "NO_GRANT"
    assert await grants(api, pair) == []


async def test_revoking_nothing_changes_nothing_and_says_so(api: Registry, pair: str) -> None:
    before = await api.check(pair, "ann", "helper")
    answer = await revoke(api, pair)
    assert not answer.revoked
    assert answer.revision_token == before.revision_token
    assert await api.trail(pair, resource_kind="permission") == []


async def test_granting_again_replaces_the_expiry(api: Registry, pair: str) -> None:
    expires = after(timedelta(hours=1))
    await api.grant(pair, "ann", "helper", expire_time=expires)
    answer = await api.check(pair, "ann", "helper")
    assert (answer.reason, answer.expire_time) == (pb.CHECK_REASON_GRANT, expires)
    await api.grant(pair, "ann", "helper")
    assert not (await api.check(pair, "ann", "helper")).HasField("expire_time")


async def test_an_expired_grant_no_longer_counts_and_is_not_listed(api: Registry, pair: str, owner: Connection) -> None:
    await api.grant(pair, "ann", "helper", expire_time=after(timedelta(hours=1)))
    past = "UPDATE registry.grants SET granted_at = now() - interval '2 s', expires_at = now() WHERE workspace_id = $1"
    await owner.execute(past, pair)
    answer = await api.check(pair, "ann", "helper")
    assert (answer.allowed, answer.reason, answer.HasField("expire_time")) == (False, pb.CHECK_REASON_EXPIRED, False)
    assert await grants(api, pair) == []
    await api.grant(pair, "ann", "helper", expire_time=after(timedelta(hours=1)))
    assert await reason(api, pair) == "GRANT"


@pytest.mark.parametrize(
    "expires", [Timestamp(seconds=1), Timestamp(seconds=2**60), Timestamp(nanos=-1), Timestamp(nanos=10**9)]
)
async def test_an_expiry_lies_in_the_future(api: Registry, pair: str, expires: Timestamp) -> None:
    with invalid("grant.expire_time"):
        await api.grant(pair, "ann", "helper", expire_time=expires)
    assert await reason(api, pair) == "NO_GRANT"


@pytest.mark.parametrize(
    ("role", "told"), [("OWNER", "ROLE"), ("ADMIN", "ROLE"), ("MEMBER", "NO_GRANT"), ("SERVICE", "NO_GRANT")]
)
async def test_owners_and_admins_need_no_grant(api: Registry, pair: str, role: str, told: str) -> None:
    await api.make_user(pair, "bob", role=user_pb2.Role.Value(f"ROLE_{role}"))
    assert await reason(api, pair, "bob") == told
    assert await reason(api, pair, "bob", "nothing") == ("AGENT_UNKNOWN" if told == "ROLE" else "NO_GRANT")


async def test_a_role_counts_from_its_change_on(api: Registry, pair: str) -> None:
    user = user_pb2.User(workspace_id=pair, user_id="ann", role=user_pb2.ROLE_ADMIN)
    update = user_pb2.UpdateUserRequest(user=user, update_mask=FieldMask(paths=["role"]))
    await api.users.UpdateUser(update)
    assert await reason(api, pair) == "ROLE"
    await revoke(api, pair)
    assert await reason(api, pair) == "ROLE"
    update.user.role = user_pb2.ROLE_MEMBER
    await api.users.UpdateUser(update)
    assert await reason(api, pair) == "NO_GRANT"


async def test_what_is_deleted_takes_its_grants_with_it(api: Registry, pair: str) -> None:
    for name in ("bob", "eve"):
        await api.make_user(pair, name)
    await api.make_agent(pair, "other")
    for user, agent in (("ann", "helper"), ("bob", "helper"), ("bob", "other"), ("eve", "other")):
        await api.grant(pair, user, agent)
    await api.users.DeleteUser(user_pb2.DeleteUserRequest(workspace_id=pair, user_id="ann"))
    assert await reason(api, pair) == "USER_UNKNOWN"
    await api.agents.DeleteAgent(agent_pb2.DeleteAgentRequest(workspace_id=pair, agent_id="helper"))
    assert await reason(api, pair, "bob") == "NO_GRANT"
    assert await grants(api, pair) == [("bob", "other"), ("eve", "other")]
    assert await grants(api, pair, agent_id="other") == [("bob", "other"), ("eve", "other")]
    assert await grants(api, pair, user_id="bob") == [("bob", "other")]
    assert await grants(api, pair, user_id="bob", agent_id="helper") == []
    assert await grants(api, pair, user_id="ann") == await grants(api, pair, agent_id="helper") == []
    await api.workspaces.DeleteWorkspace(workspace_pb2.DeleteWorkspaceRequest(workspace_id=pair))
    assert await reason(api, pair, "bob", "other") == "WORKSPACE_UNKNOWN"
    with unknown(Reason.REASON_WORKSPACE_UNKNOWN):
        await grants(api, pair)


async def test_grant_and_revoke_name_what_is_unknown(api: Registry, pair: str) -> None:
    await api.make_user(pair, "gone")
    await api.users.DeleteUser(user_pb2.DeleteUserRequest(workspace_id=pair, user_id="gone"))
    for workspace_id, user_id, agent_id, told in (
        ("nowhere", "ann", "helper", Reason.REASON_WORKSPACE_UNKNOWN),
        (pair, "nobody", "helper", Reason.REASON_USER_UNKNOWN),
        (pair, "gone", "helper", Reason.REASON_USER_UNKNOWN),
        (pair, "ann", "nothing", Reason.REASON_AGENT_UNKNOWN),
    ):
        with unknown(told):
            await api.grant(workspace_id, user_id, agent_id)
        with unknown(told):
            await revoke(api, workspace_id, user_id, agent_id)
    with unknown(Reason.REASON_WORKSPACE_UNKNOWN):
        await grants(api, "nowhere")


async def test_a_check_is_as_new_as_it_was_asked_to_be(api: Registry, pair: str) -> None:
    granted = await api.grant(pair, "ann", "helper")
    answer = await api.check(pair, "ann", "helper", granted.revision_token)
    assert answer.allowed
    read, least = revision_of(answer.revision_token, "t"), revision_of(granted.revision_token, "t")
    assert read is not None
    assert least is not None
    assert read.number >= least.number
    ahead = Revision(read.epoch, read.number + 1_000_000)
    with refused(grpc.StatusCode.UNAVAILABLE, Reason.REASON_REVISION_NOT_REACHED):
        await api.check(pair, "ann", "helper", ahead.token())
    for epoch in (read.epoch - 1, read.epoch + 1):
        with refused(grpc.StatusCode.ABORTED, Reason.REASON_HISTORY_CHANGED):
            await api.check(pair, "ann", "helper", Revision(epoch, read.number).token())


async def test_tokens_that_nobody_issued_are_refused(api: Registry, pair: str) -> None:
    token = (await api.grant(pair, "ann", "helper")).revision_token
    damaged = bytes([token[0] ^ 1]) + token[1:]
    foreign = (b"x", token[:-1], token + b"x", damaged, fields.seal("thread", bytes(16)), fields.seal("revision", bytes(17)))
    for wrong in (*foreign, fields.seal("revision", b""), b"\0" * 4000):
        with refused(grpc.StatusCode.INVALID_ARGUMENT, Reason.REASON_INVALID_TOKEN, "min_revision_token"):
            await api.check(pair, "ann", "helper", wrong)


async def test_a_check_needs_all_three_ids(api: Registry, pair: str) -> None:
    for field in ("workspace_id", "user_id", "agent_id"):
        ids = {"workspace_id": pair, "user_id": "ann", "agent_id": "helper", field: ""}
        with invalid(field):
            await api.permissions.Check(pb.CheckRequest(**ids))  # type: ignore[arg-type]
        with invalid(f"grant.{field}"):
            await api.grant(**ids)


async def test_grants_and_a_deletion_at_once_end_in_one_order(api: Registry, workspace: str) -> None:
    await api.make_agent(workspace, "helper")
    for index in range(10):
        await api.make_user(workspace, f"user-{index}")

    async def delete(index: int) -> None:
        await api.users.DeleteUser(user_pb2.DeleteUserRequest(workspace_id=workspace, user_id=f"user-{index}"))

    calls = [(api.grant(workspace, f"user-{index}", "helper"), delete(index)) for index in range(10)]
    answers = await asyncio.gather(*(call for pair in calls for call in pair), return_exceptions=True)
    assert not [answer for answer in answers[1::2] if answer is not None]
    deleted: set[str] = set()
    for entry in await api.trail(workspace):
        if entry.action == "user.delete":
            deleted.add(entry.resource_id)
        if entry.action == "permission.grant":
            assert entry.resource_id.partition("/")[0] not in deleted
    assert len(deleted) == 10
