"""Grants and revokes in batches: all or none, one revision, and what changed told once for each pair."""

import asyncio
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import grpc
import pytest
from google.protobuf.field_mask_pb2 import FieldMask
from google.rpc import error_details_pb2
from grpc_status import rpc_status

from tests.registry.stubs import Connection, Registry, invalid, refused, unknown
from tests.waiting import somebody_waits
from twofold import refusals
from twofold.errors.v1.reason_pb2 import Reason
from twofold.registry.v1 import agent_pb2, user_pb2
from twofold.registry.v1 import permission_pb2 as pb
from twofold_chassis import fields

USERS = ("ann", "bob", "eve")
AGENTS = ("helper", "painter")


@pytest.fixture
async def furnished(api: Registry, workspace: str) -> str:
    """A workspace with three members and two agents, and no grant."""
    for user in USERS:
        await api.make_user(workspace, user)
    for agent in AGENTS:
        await api.make_agent(workspace, agent)
    return workspace


def item(user_id: str = "ann", agent_id: str = "helper", **values: Any) -> pb.BatchGrantItem:
    return pb.BatchGrantItem(user_id=user_id, agent_id=agent_id, **values)


async def grant(api: Registry, workspace_id: str, *items: pb.BatchGrantItem, request_id: str = "") -> pb.BatchGrantResponse:
    request = pb.BatchGrantRequest(workspace_id=workspace_id, grants=items, request_id=request_id)
    return await api.permissions.BatchGrant(request)


async def revoke(
    api: Registry,
    workspace_id: str,
    *pairs: tuple[str, str],
    condition: pb.GrantCondition.ValueType = pb.GRANT_CONDITION_UNSPECIFIED,
) -> pb.BatchRevokeResponse:
    items = [pb.BatchRevokeItem(user_id=user, agent_id=agent, grant_condition=condition) for user, agent in pairs]
    return await api.permissions.BatchRevoke(pb.BatchRevokeRequest(workspace_id=workspace_id, revokes=items))


async def granted(api: Registry, workspace_id: str) -> list[tuple[str, str]]:
    listed = await api.permissions.ListGrants(pb.ListGrantsRequest(workspace_id=workspace_id, page_size=500))
    return [(one.user_id, one.agent_id) for one in listed.grants]


def field_of(error: grpc.aio.AioRpcError) -> str:
    """The item that a refusal is of, whatever its code."""
    if named := refusals.field(error):
        return named
    status = rpc_status.from_call(error)  # type: ignore[arg-type]  # it reads code, details and trailers, which an aio error has
    info = error_details_pb2.ErrorInfo()
    assert any(detail.Unpack(info) for detail in status.details)
    return str(info.metadata["field"])


async def refusal(call: Any) -> tuple[str, str]:
    """Reason and item of a refused call."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return Reason.Name(refusals.reason(caught.value)).removeprefix("REASON_"), field_of(caught.value)


async def changes_of(owner: Connection, workspace_id: str) -> Sequence[tuple[int, str, str, bool]]:
    rows = await owner.fetch(
        "SELECT revision, user_id, agent_id, after IS NULL AS gone FROM registry.changes"
        " WHERE workspace_id = $1 AND kind = 'permission' ORDER BY revision, ordinal",
        workspace_id,
    )
    return [tuple(row) for row in rows]


async def test_a_batch_is_one_revision_with_an_entry_and_a_change_for_each_pair_that_changed(
    api: Registry, owner: Connection, furnished: str
) -> None:
    first = await grant(api, furnished, item("bob"), item("ann"))
    assert [(one.grant.user_id, one.changed) for one in first.results] == [("bob", True), ("ann", True)]
    again = await grant(api, furnished, item("ann"), item("eve"), item("bob"))
    assert [(one.grant.user_id, one.changed) for one in again.results] == [("ann", False), ("eve", True), ("bob", False)]
    assert again.results[0].grant == first.results[1].grant
    taken = await revoke(api, furnished, ("ann", "painter"), ("eve", "helper"), ("ann", "helper"))
    assert [one.revoked for one in taken.results] == [False, True, True]
    trail = await api.trail(furnished, resource_kind="permission")
    entries = [(entry.revision, entry.action.partition(".")[2], entry.resource_id) for entry in trail]
    one, two, three = sorted({revision for revision, _, _ in entries})
    assert entries == [
        (one, "grant", "bob/helper"),
        (one, "grant", "ann/helper"),
        (two, "grant", "eve/helper"),
        (three, "revoke", "eve/helper"),
        (three, "revoke", "ann/helper"),
    ]
    assert await changes_of(owner, furnished) == [
        (revision, *resource.split("/"), action == "revoke") for revision, action, resource in entries
    ]


async def test_a_batch_that_changes_nothing_has_no_revision(api: Registry, furnished: str) -> None:
    expires = fields.timestamp(datetime.now(UTC) + timedelta(days=1))
    await grant(api, furnished, item(expire_time=expires), item("bob"))
    before = await api.check(furnished, "ann", "helper")
    again = await grant(api, furnished, item("bob"), item(expire_time=expires))
    assert [one.changed for one in again.results] == [False, False]
    nothing = await revoke(api, furnished, ("eve", "helper"))
    assert before.revision_token == again.revision_token == nothing.revision_token
    assert len(await api.trail(furnished, resource_kind="permission")) == 2


@pytest.mark.parametrize(
    ("bad", "told"),
    [
        (item("nobody"), ("USER_UNKNOWN", "grants[1].user_id")),
        (item("bob", "nothing"), ("AGENT_UNKNOWN", "grants[1].agent_id")),
        (item("bob", "gone"), ("AGENT_GONE", "grants[1].agent_id")),
        (item("bob", "painter", grant_condition=2), ("GRANT_CONDITION", "grants[1].grant_condition")),
        (item("bob", "draft", agent_condition=1), ("AGENT_NOT_PUBLISHED", "grants[1].agent_condition")),
        (item("bob", expire_time={"seconds": 1}), ("INVALID_FIELD", "grants[1].expire_time")),
        (item("bob", expire_time={"seconds": 36_600 * 86_400 + 2_000_000_000}), ("INVALID_FIELD", "grants[1].expire_time")),
        (item("ann"), ("INVALID_FIELD", "grants[1]")),
        (item("bob", grant_condition=9), ("INVALID_FIELD", "grants[1].grant_condition")),
        (item("bob", agent_condition=9), ("INVALID_FIELD", "grants[1].agent_condition")),
        (item(""), ("INVALID_FIELD", "grants[1].user_id")),
        (item("bob", "x" * 256), ("INVALID_FIELD", "grants[1].agent_id")),
    ],
)
async def test_one_bad_item_is_named_and_nothing_is_granted(
    api: Registry, furnished: str, bad: pb.BatchGrantItem, told: tuple[str, str]
) -> None:
    await api.make_agent(furnished, "draft", state=agent_pb2.AGENT_STATE_DRAFT)
    await api.make_agent(furnished, "gone")
    gone = agent_pb2.Agent(workspace_id=furnished, agent_id="gone", state=agent_pb2.AGENT_STATE_GONE)
    await api.agents.UpdateAgent(agent_pb2.UpdateAgentRequest(agent=gone, update_mask=FieldMask(paths=["state"])))
    assert await refusal(grant(api, furnished, item("ann"), bad, item("eve"))) == told
    assert await granted(api, furnished) == []
    assert await api.trail(furnished, resource_kind="permission") == []


async def test_conditions_that_hold_let_a_batch_through(api: Registry, furnished: str) -> None:
    published = pb.AGENT_CONDITION_PUBLISHED
    await grant(api, furnished, item(grant_condition=pb.GRANT_CONDITION_MUST_NOT_EXIST, agent_condition=published))
    told = await refusal(grant(api, furnished, item("bob"), item(grant_condition=pb.GRANT_CONDITION_MUST_NOT_EXIST)))
    assert told == ("GRANT_CONDITION", "grants[1].grant_condition")
    await grant(api, furnished, item(grant_condition=pb.GRANT_CONDITION_MUST_EXIST), item("bob"))
    pairs = (("ann", "helper"), ("eve", "helper"))
    told = await refusal(revoke(api, furnished, *pairs, condition=pb.GRANT_CONDITION_MUST_EXIST))
    assert told == ("GRANT_CONDITION", "revokes[1].grant_condition")
    told = await refusal(revoke(api, furnished, *reversed(pairs), condition=pb.GRANT_CONDITION_MUST_NOT_EXIST))
    assert told == ("GRANT_CONDITION", "revokes[1].grant_condition")
    assert await granted(api, furnished) == [("ann", "helper"), ("bob", "helper")]
    await revoke(api, furnished, ("ann", "helper"), ("bob", "helper"), condition=pb.GRANT_CONDITION_MUST_EXIST)
    assert await granted(api, furnished) == []


async def test_to_a_condition_an_expired_grant_is_none(api: Registry, owner: Connection, furnished: str) -> None:
    expires = fields.timestamp(datetime.now(UTC) + timedelta(days=1))
    await grant(api, furnished, item(expire_time=expires))
    past = "UPDATE registry.grants SET granted_at = now() - interval '2 s', expires_at = now() WHERE workspace_id = $1"
    await owner.execute(past, furnished)
    told = await refusal(grant(api, furnished, item(grant_condition=pb.GRANT_CONDITION_MUST_EXIST)))
    assert told == ("GRANT_CONDITION", "grants[0].grant_condition")
    await grant(api, furnished, item(grant_condition=pb.GRANT_CONDITION_MUST_NOT_EXIST))
    assert await granted(api, furnished) == [("ann", "helper")]


async def test_a_batch_holds_one_to_five_hundred_pairs(api: Registry, owner: Connection, furnished: str) -> None:
    pairs = [(f"user-{index}", "helper") for index in range(10_000)]
    for count in (0, 501, 10_000):
        with invalid("grants"):
            await grant(api, furnished, *(item(*pair) for pair in pairs[:count]))
        with invalid("revokes"):
            await revoke(api, furnished, *pairs[:count])
        with invalid("pairs"):
            asked = [pb.PermissionPair(user_id=user, agent_id=agent) for user, agent in pairs[:count]]
            await api.permissions.BatchCheck(pb.BatchCheckRequest(workspace_id=furnished, pairs=asked))
    await owner.execute(
        "INSERT INTO registry.agents SELECT (jsonb_populate_record(a, jsonb_build_object('agent_id', 'agent-' || n))).*"
        " FROM registry.agents a, generate_series(0, 166) n WHERE a.workspace_id = $1 AND a.agent_id = 'helper'",
        furnished,
    )
    all_pairs = [(user, f"agent-{index}") for index in range(167) for user in USERS][:500]
    full = await grant(api, furnished, *(item(*pair) for pair in all_pairs))
    assert all(one.changed for one in full.results)
    assert await granted(api, furnished) == sorted(all_pairs)
    taken = await revoke(api, furnished, *all_pairs)
    assert all(one.revoked for one in taken.results)


async def test_a_batch_names_an_unknown_workspace_and_users_that_are_deleted(api: Registry, furnished: str) -> None:
    with unknown(Reason.REASON_WORKSPACE_UNKNOWN):
        await grant(api, "nowhere", item())
    with unknown(Reason.REASON_WORKSPACE_UNKNOWN):
        await revoke(api, "nowhere", ("ann", "helper"))
    await grant(api, furnished, item("bob"))
    await api.users.DeleteUser(user_pb2.DeleteUserRequest(workspace_id=furnished, user_id="bob"))
    assert await refusal(revoke(api, furnished, ("bob", "helper"))) == ("USER_UNKNOWN", "revokes[0].user_id")


async def test_a_repeat_of_a_batch_has_the_first_answer(api: Registry, furnished: str) -> None:
    first = await grant(api, furnished, item(), item("bob"), request_id="r1")
    await revoke(api, furnished, ("ann", "helper"))
    assert await grant(api, furnished, item(), item("bob"), request_id="r1") == first
    assert await granted(api, furnished) == [("bob", "helper")]
    with refused(grpc.StatusCode.ALREADY_EXISTS, Reason.REASON_REQUEST_REUSED):
        await grant(api, furnished, item(), request_id="r1")


async def test_batches_and_deletions_at_once_end_in_one_order(api: Registry, workspace: str) -> None:
    names = [f"user-{index}" for index in range(6)]
    await api.make_agent(workspace, "helper")
    await asyncio.gather(*(api.make_user(workspace, name) for name in names))

    async def batch(first: int) -> None:
        await grant(api, workspace, *(item(name) for name in names[first:] + names[:first]))

    async def delete(name: str) -> None:
        await api.users.DeleteUser(user_pb2.DeleteUserRequest(workspace_id=workspace, user_id=name))

    calls = [call for index, name in enumerate(names) for call in (batch(index), delete(name))]
    ends = await asyncio.gather(*calls, return_exceptions=True)
    late = [end for end in ends if isinstance(end, grpc.aio.AioRpcError)]
    assert {refusals.reason(error) for error in late} <= {Reason.REASON_USER_UNKNOWN}
    assert [end for end in ends if end is not None] == late
    deleted: set[str] = set()
    for entry in await api.trail(workspace):
        if entry.action == "user.delete":
            deleted.add(entry.resource_id)
        if entry.action == "permission.grant":
            assert not deleted, "a batch is all or none: no one of it was deleted before"
    assert deleted == set(names)


async def test_a_condition_is_judged_when_its_turn_comes_not_when_it_was_asked(
    api: Registry, owner: Connection, furnished: str
) -> None:
    await api.grant(furnished, "ann", "helper")
    async with owner.transaction():
        await owner.execute("SELECT FROM registry.workspaces WHERE workspace_id = $1 FOR UPDATE", furnished)
        asked = asyncio.create_task(
            grant(api, furnished, item(grant_condition=pb.GRANT_CONDITION_MUST_NOT_EXIST)),
        )
        await somebody_waits(owner)
        expire = "UPDATE registry.grants SET expires_at = clock_timestamp() WHERE workspace_id = $1"
        await owner.execute(
            "UPDATE registry.grants SET granted_at = now() - interval '1 h' WHERE workspace_id = $1", furnished
        )
        await owner.execute(expire, furnished)
    (result,) = (await asked).results
    assert result.changed
