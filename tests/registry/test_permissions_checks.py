"""Checks one by one and in batches, explanations, listings, and revokes that wait for routers."""

import asyncio
import itertools
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import asyncpg
import grpc
import pytest
from google.protobuf.field_mask_pb2 import FieldMask

from tests.databases import own_database, settings_of_database
from tests.registry.stubs import Connection, Registry, invalid, refused, settings_of, unknown
from tests.waiting import until
from twofold.errors.v1.reason_pb2 import Reason
from twofold.registry.v1 import agent_pb2, user_pb2, workspace_pb2
from twofold.registry.v1 import permission_pb2 as pb
from twofold_chassis import fields
from twofold_chassis.settings import DatabaseSettings
from twofold_cli.embedded.postgres import EmbeddedPostgres
from twofold_registry.app import registry
from twofold_registry.revisions import Revision, revision_of


@pytest.fixture
async def furnished(api: Registry, workspace: str) -> str:
    """The owner ada, the members ann, who may use both agents, and bob, who may use one of them."""
    await api.make_user(workspace, "ada", role=user_pb2.ROLE_OWNER)
    for user in ("ann", "bob"):
        await api.make_user(workspace, user)
    for agent in ("helper", "painter"):
        await api.make_agent(workspace, agent, display_name=agent.title())
    for user, agent in (("ann", "helper"), ("ann", "painter"), ("bob", "helper")):
        await api.grant(workspace, user, agent)
    return workspace


def name(reason: pb.CheckReason.ValueType) -> str:
    return pb.CheckReason.Name(reason).removeprefix("CHECK_REASON_")


async def why(api: Registry, workspace_id: str, user_id: str = "ann", agent_id: str = "helper") -> str:
    return name((await api.check(workspace_id, user_id, agent_id)).reason)


async def batch(api: Registry, workspace_id: str, *pairs: tuple[str, str], **values: Any) -> pb.BatchCheckResponse:
    asked = [pb.PermissionPair(user_id=user, agent_id=agent) for user, agent in pairs]
    return await api.permissions.BatchCheck(pb.BatchCheckRequest(workspace_id=workspace_id, pairs=asked, **values))


async def explain(
    api: Registry, workspace_id: str, user_id: str = "ann", agent_id: str = "helper"
) -> pb.ExplainPermissionResponse:
    request = pb.ExplainPermissionRequest(workspace_id=workspace_id, user_id=user_id, agent_id=agent_id)
    return await api.permissions.ExplainPermission(request)


async def usable(api: Registry, workspace_id: str, user_id: str, **values: Any) -> pb.ListUsableAgentsResponse:
    request = pb.ListUsableAgentsRequest(workspace_id=workspace_id, user_id=user_id, **values)
    return await api.permissions.ListUsableAgents(request)


async def users_of(api: Registry, workspace_id: str, agent_id: str, **values: Any) -> pb.ListAgentUsersResponse:
    request = pb.ListAgentUsersRequest(workspace_id=workspace_id, agent_id=agent_id, **values)
    return await api.permissions.ListAgentUsers(request)


async def suspend_user(api: Registry, workspace_id: str, user_id: str) -> None:
    user = user_pb2.User(workspace_id=workspace_id, user_id=user_id, state=user_pb2.USER_STATE_SUSPENDED)
    await api.users.UpdateUser(user_pb2.UpdateUserRequest(user=user, update_mask=FieldMask(paths=["state"])))


async def suspend_workspace(api: Registry, workspace_id: str) -> None:
    it = workspace_pb2.Workspace(workspace_id=workspace_id, state=workspace_pb2.WORKSPACE_STATE_SUSPENDED)
    update = workspace_pb2.UpdateWorkspaceRequest(workspace=it, update_mask=FieldMask(paths=["state"]))
    await api.workspaces.UpdateWorkspace(update)


async def end_agent(api: Registry, workspace_id: str, agent_id: str) -> None:
    agent = agent_pb2.Agent(workspace_id=workspace_id, agent_id=agent_id, state=agent_pb2.AGENT_STATE_GONE)
    await api.agents.UpdateAgent(agent_pb2.UpdateAgentRequest(agent=agent, update_mask=FieldMask(paths=["state"])))


async def test_whoever_is_suspended_may_use_nothing(api: Registry, furnished: str) -> None:
    await api.make_user(furnished, "eve", role=user_pb2.ROLE_OWNER)  # there is always one who may act
    for user in ("ada", "ann"):
        await suspend_user(api, furnished, user)
        assert await why(api, furnished, user) == "USER_SUSPENDED"
        assert not (await usable(api, furnished, user)).agents
    assert [one.user_id for one in (await users_of(api, furnished, "helper")).users] == ["bob", "eve"]
    await suspend_workspace(api, furnished)
    assert await why(api, furnished, "bob") == "WORKSPACE_SUSPENDED"
    assert not (await usable(api, furnished, "bob")).agents
    assert not (await users_of(api, furnished, "helper")).users


async def test_an_agent_that_is_gone_is_used_by_nobody_and_routers_hear_of_it(
    api: Registry, owner: Connection, furnished: str
) -> None:
    await end_agent(api, furnished, "painter")
    told = [await why(api, furnished, user, "painter") for user in ("ada", "ann", "bob")]
    assert told == ["AGENT_GONE", "AGENT_GONE", "NO_GRANT"]
    assert [agent.agent_id for agent in (await usable(api, furnished, "ada")).agents] == ["helper"]
    assert [agent.agent_id for agent in (await usable(api, furnished, "ann")).agents] == ["helper"]
    assert not (await users_of(api, furnished, "painter")).users
    last = "SELECT kind FROM registry.changes WHERE workspace_id = $1 ORDER BY revision DESC, ordinal DESC LIMIT 1"
    assert await owner.fetchval(last, furnished) == "agent"  # what a permission rests on, not only the route


async def test_an_undelete_brings_grants_back_and_a_purge_takes_them(
    api: Registry, owner: Connection, furnished: str
) -> None:
    at: dict[str, Any] = {"workspace_id": furnished, "user_id": "ann"}
    agent: dict[str, Any] = {"workspace_id": furnished, "agent_id": "helper"}
    await api.users.DeleteUser(user_pb2.DeleteUserRequest(**at))
    assert await why(api, furnished) == "USER_UNKNOWN"
    await api.users.UndeleteUser(user_pb2.UndeleteUserRequest(**at))
    assert await why(api, furnished) == "GRANT"
    await api.agents.DeleteAgent(agent_pb2.DeleteAgentRequest(**agent))
    assert await why(api, furnished) == "NO_GRANT"
    await api.agents.UndeleteAgent(agent_pb2.UndeleteAgentRequest(**agent))
    assert await why(api, furnished) == "GRANT"
    await api.users.DeleteUser(user_pb2.DeleteUserRequest(**at))
    await api.users.PurgeUser(user_pb2.PurgeUserRequest(**at))
    left = "SELECT array_agg(user_id) FROM registry.grants WHERE workspace_id = $1"
    assert await owner.fetchval(left, furnished) == ["bob"]
    told = await explain(api, furnished)
    assert (told.user, told.HasField("grant")) == (pb.ExplainedUser(), False)


async def test_a_batch_of_checks_answers_each_pair_or_says_what_is_wrong_with_it(api: Registry, furnished: str) -> None:
    pairs = (
        ("ann", "helper"),
        ("", "helper"),
        ("bob", "painter"),
        ("ann", "x" * 256),
        ("ada", "painter"),
        ("ann", "helper"),
    )
    answer = await batch(api, furnished, *pairs)
    told = [(one.allowed, name(one.reason), one.error.field) for one in answer.results]
    assert told == [
        (True, "GRANT", ""),
        (False, "UNSPECIFIED", "pairs[1].user_id"),
        (False, "NO_GRANT", ""),
        (False, "UNSPECIFIED", "pairs[3].agent_id"),
        (True, "ROLE", ""),
        (True, "GRANT", ""),
    ]
    wrong = answer.results[1].error
    assert (wrong.reason, wrong.message) == (Reason.REASON_INVALID_FIELD, "is required")
    assert answer.revision_token == (await api.check(furnished, "ann", "helper")).revision_token
    nothing = await batch(api, furnished, ("", "helper"))
    assert (nothing.revision_token, nothing.results[0].error.field) == (answer.revision_token, "pairs[0].user_id")
    nowhere = await batch(api, "nowhere", ("ann", "helper"))
    assert name(nowhere.results[0].reason) == "WORKSPACE_UNKNOWN"


async def test_all_answers_of_a_batch_are_of_one_revision(api: Registry, furnished: str) -> None:
    pairs = [("bob", "painter"), ("ann", "painter")]
    await api.permissions.Revoke(pb.RevokeRequest(workspace_id=furnished, user_id="ann", agent_id="painter"))
    items = [pb.BatchGrantItem(user_id=user, agent_id=agent) for user, agent in pairs]
    gone = [pb.BatchRevokeItem(user_id=user, agent_id=agent) for user, agent in pairs]
    writing = True

    async def write() -> None:
        while writing:
            await api.permissions.BatchGrant(pb.BatchGrantRequest(workspace_id=furnished, grants=items))
            await api.permissions.BatchRevoke(pb.BatchRevokeRequest(workspace_id=furnished, revokes=gone))

    writer = asyncio.create_task(write())
    seen: dict[bytes, set[bool]] = {}
    while len(seen) < 10:
        answer = await batch(api, furnished, *pairs)
        seen.setdefault(answer.revision_token, set()).update(one.allowed for one in answer.results)
    writing = False
    await writer
    # Of one revision there is one answer, and both pairs are granted or neither is.
    assert all(len(answers) == 1 for answers in seen.values())
    assert {True, False} == set().union(*seen.values())


async def test_checks_that_are_asked_together_each_have_their_own_answer(api: Registry, furnished: str) -> None:
    other = (await api.make_workspace("")).workspace_id
    await api.make_user(other, "ann")
    await api.make_agent(other, "helper")
    expected = {
        (furnished, "ann", "helper"): "GRANT",
        (furnished, "bob", "painter"): "NO_GRANT",
        (furnished, "ada", "painter"): "ROLE",
        (furnished, "nobody", "helper"): "USER_UNKNOWN",
        (other, "ann", "helper"): "NO_GRANT",
        (other, "bob", "helper"): "USER_UNKNOWN",
        ("nowhere", "ann", "helper"): "WORKSPACE_UNKNOWN",
    }
    asked = list(itertools.islice(itertools.cycle(expected), 200))
    ahead = Revision(2**40, 2**40).token()
    calls = [why(api, *ids) for ids in asked]
    strangers = [api.check(furnished, "ann", "helper", ahead) for _ in range(20)]
    answers = await asyncio.gather(*calls, *strangers, return_exceptions=True)
    assert answers[:200] == [expected[ids] for ids in asked]
    codes = {error.code() for error in answers[200:] if isinstance(error, grpc.aio.AioRpcError)}
    assert codes == {grpc.StatusCode.ABORTED}  # what one asks for too much is not refused to another


@pytest.mark.parametrize("rpc", ["BatchCheck", "ExplainPermission", "ListGrants", "ListUsableAgents", "ListAgentUsers"])
async def test_every_read_is_as_new_as_it_was_asked_to_be(api: Registry, furnished: str, rpc: str) -> None:
    at = {"workspace_id": furnished, "user_id": "ann", "agent_id": "helper"}
    granted = await api.grant(furnished, "bob", "painter")
    newest = revision_of(granted.revision_token, "token")
    assert newest is not None

    def ask(token: bytes) -> Awaitable[object]:
        request: Any = getattr(pb, f"{rpc}Request")(min_revision_token=token)
        for field in request.DESCRIPTOR.fields_by_name.keys() & at.keys():
            setattr(request, field, at[field])
        if rpc == "BatchCheck":
            request.pairs.add(user_id="ann", agent_id="helper")
        call: Callable[[Any], Awaitable[object]] = getattr(api.permissions, rpc)
        return call(request)

    await ask(granted.revision_token)
    with refused(grpc.StatusCode.UNAVAILABLE, Reason.REASON_REVISION_NOT_REACHED):
        await ask(Revision(newest.epoch, newest.number + 10**9).token())
    for epoch in (newest.epoch - 1, newest.epoch + 1):
        with refused(grpc.StatusCode.ABORTED, Reason.REASON_HISTORY_CHANGED):
            await ask(Revision(epoch, newest.number).token())
    token = granted.revision_token
    for wrong in (b"x", token[:-1], bytes([token[0] ^ 1]) + token[1:], fields.seal("thread", bytes(16))):
        with refused(grpc.StatusCode.INVALID_ARGUMENT, Reason.REASON_INVALID_TOKEN, "min_revision_token"):
            await ask(wrong)


async def test_a_grant_is_seen_by_another_registry_that_is_asked_with_its_token(
    api: Registry, furnished: str, database_settings: DatabaseSettings
) -> None:
    async with (
        registry(settings_of(database_settings)) as running,
        grpc.aio.insecure_channel(f"127.0.0.1:{running.port}") as channel,
    ):
        another = Registry(channel)
        for _ in range(10):
            token = (await api.grant(furnished, "bob", "painter")).revision_token
            assert (await another.check(furnished, "bob", "painter", token)).allowed
            request = pb.RevokeRequest(workspace_id=furnished, user_id="bob", agent_id="painter")
            token = (await another.permissions.Revoke(request)).revision_token
            assert not (await api.check(furnished, "bob", "painter", token)).allowed


async def test_checks_in_another_postgres_begin_a_new_epoch(api: Registry, owner: Connection, furnished: str) -> None:
    before = await api.check(furnished, "ann", "helper")
    await owner.execute("UPDATE registry.registry_head SET fingerprint = 'of another one'")
    singles = await asyncio.gather(*(api.check(furnished, "ann", "helper") for _ in range(5)))
    told: list[Any] = [before, *singles, await batch(api, furnished, ("ann", "helper")), await explain(api, furnished)]
    first, *epochs = [revision.epoch for one in told if (revision := revision_of(one.revision_token, "token"))]
    assert len(epochs) == 7
    assert len(set(epochs)) == 1
    assert epochs[0] > first
    with refused(grpc.StatusCode.ABORTED, Reason.REASON_HISTORY_CHANGED):
        await api.check(furnished, "ann", "helper", before.revision_token)


async def test_a_router_is_answered_only_while_it_is_registered(api: Registry, owner: Connection, furnished: str) -> None:
    me: dict[str, Any] = {"router_id": f"router-{furnished}", "router_incarnation": "1"}
    single = pb.CheckRequest(workspace_id=furnished, user_id="ann", agent_id="helper", **me)
    pair = ("ann", "helper")
    register = (
        "INSERT INTO registry.watchers (router_id, incarnation, expires_at) VALUES ($1, $2, now() + $3::text::interval)"
        " ON CONFLICT (router_id, incarnation) DO UPDATE SET expires_at = excluded.expires_at"
    )

    async def is_refused() -> None:
        for call in (api.permissions.Check(single), batch(api, furnished, pair, **me)):
            with refused(grpc.StatusCode.FAILED_PRECONDITION, Reason.REASON_ROUTER_NOT_REGISTERED):
                await call

    await is_refused()
    await owner.execute(register, me["router_id"], "2", "1 minute")  # another process of it
    await is_refused()
    await owner.execute(register, me["router_id"], "1", "1 minute")
    assert (await api.permissions.Check(single)).allowed
    assert (await batch(api, furnished, pair, **me)).results[0].allowed
    mixed = await asyncio.gather(api.permissions.Check(single), api.check(furnished, *pair))
    assert all(answer.allowed for answer in mixed)
    await owner.execute(register, me["router_id"], "1", "0 s")
    await is_refused()
    assert (await api.check(furnished, *pair)).allowed
    for missing in me:
        with invalid(missing):
            await batch(api, furnished, pair, **(me | {missing: ""}))


async def test_an_answer_says_when_it_was_read_by_the_clock_of_its_expiry(api: Registry, furnished: str) -> None:
    granted = await api.grant(
        furnished, "bob", "painter", expire_time=fields.timestamp(datetime.now(UTC) + timedelta(hours=1))
    )
    answer = await api.check(furnished, "bob", "painter")
    together = await batch(api, furnished, ("bob", "painter"), ("ann", "helper"))
    expires = granted.grant.expire_time
    assert answer.expire_time == together.results[0].expire_time == expires
    assert not together.results[1].HasField("expire_time")
    for read in (answer.read_time, together.read_time):
        assert granted.grant.grant_time.ToNanoseconds() <= read.ToNanoseconds() < expires.ToNanoseconds()


async def test_an_explanation_tells_every_fact_and_the_rule_that_decided(
    api: Registry, owner: Connection, furnished: str
) -> None:
    told = await explain(api, furnished)
    assert (told.allowed, name(told.reason), told.grant.granted_by) == (True, "GRANT", "anonymous")
    assert (told.user.exists, told.user.role, told.agent.state) == (
        True,
        user_pb2.ROLE_MEMBER,
        agent_pb2.AGENT_STATE_PUBLISHED,
    )
    assert told.sentence.startswith("'ann' may use 'helper': 'anonymous' granted it on ")
    head = revision_of(told.revision_token, "token")
    assert head is not None
    assert head.number == told.revision
    told = await explain(api, furnished, "ada", "painter")
    assert (name(told.reason), told.user.role_implies_use, told.HasField("grant")) == ("ROLE", True, False)
    assert told.sentence == "'ada' may use 'painter': the role owner implies the use of every agent of the workspace."
    assert (
        await explain(api, furnished, "bob", "nothing")
    ).sentence == "'bob' may not use 'nothing': there is no such agent."
    told = await explain(api, furnished, "bob", "painter")
    assert told.sentence == "'bob' may not use 'painter': there is no grant, and the role member does not imply use."
    await api.agents.DeleteAgent(agent_pb2.DeleteAgentRequest(workspace_id=furnished, agent_id="helper"))
    told = await explain(api, furnished)
    assert (name(told.reason), told.agent.exists, told.HasField("grant")) == ("NO_GRANT", False, True)
    assert told.agent.delete_time.seconds
    assert "(deleted on " in told.sentence
    past = "UPDATE registry.grants SET granted_at = now() - interval '2 s', expires_at = now() WHERE workspace_id = $1"
    await owner.execute(past, furnished)
    told = await explain(api, furnished, "ann", "painter")
    assert (name(told.reason), told.HasField("grant")) == ("EXPIRED", True)
    assert told.sentence.startswith("'ann' may not use 'painter': the grant expired on ")
    await suspend_user(api, furnished, "ann")
    assert (await explain(api, furnished, "ann", "painter")).sentence.endswith(": the user is suspended.")
    await suspend_workspace(api, furnished)
    told = await explain(api, furnished, "ann", "painter")
    assert (told.workspace.suspended, told.user.suspended) == (True, True)
    assert told.sentence.endswith(": the workspace is suspended.")
    told = await explain(api, "nowhere", "ann", "helper")
    assert (name(told.reason), told.workspace, told.user, told.agent) == (
        "WORKSPACE_UNKNOWN",
        pb.ExplainedWorkspace(),
        pb.ExplainedUser(),
        pb.ExplainedAgent(),
    )


async def test_who_can_use_what_is_listed_from_both_sides_with_the_reason(api: Registry, furnished: str) -> None:
    expires = fields.timestamp(datetime.now(UTC) + timedelta(hours=1))
    await api.grant(furnished, "bob", "painter", expire_time=expires)
    draft = await api.make_agent(furnished, "sketch", display_name="Sketch", state=agent_pb2.AGENT_STATE_DRAFT)
    told = [(one.agent_id, one.display_name, name(one.reason)) for one in (await usable(api, furnished, "bob")).agents]
    assert told == [("helper", "Helper", "GRANT"), ("painter", "Painter", "GRANT")]
    assert [one.expire_time for one in (await usable(api, furnished, "bob")).agents][1] == expires
    agents = (await usable(api, furnished, "ada")).agents
    assert [(one.agent_id, name(one.reason)) for one in agents] == [(a, "ROLE") for a in ("helper", "painter", "sketch")]
    assert agents[2].state == draft.state
    await api.grant(furnished, "ada", "painter")  # of a role that implies use it is nothing
    users = (await users_of(api, furnished, "painter")).users
    assert [(one.user_id, one.role, name(one.reason), one.HasField("expire_time")) for one in users] == [
        ("ada", user_pb2.ROLE_OWNER, "ROLE", False),
        ("ann", user_pb2.ROLE_MEMBER, "GRANT", False),
        ("bob", user_pb2.ROLE_MEMBER, "GRANT", True),
    ]
    for user, workspace in (("nobody", furnished), ("ann", "nowhere")):
        with unknown(Reason.REASON_USER_UNKNOWN):
            await usable(api, workspace, user)
    for agent, workspace in (("nothing", furnished), ("helper", "nowhere")):
        with unknown(Reason.REASON_AGENT_UNKNOWN):
            await users_of(api, workspace, agent)


async def test_pages_of_what_may_be_used_stay_in_order_whatever_is_changed_meanwhile(api: Registry, furnished: str) -> None:
    for index in range(6):
        await api.make_user(furnished, f"user-{index}", role=user_pb2.ROLE_ADMIN if index % 3 == 0 else user_pb2.ROLE_MEMBER)
        await api.grant(furnished, f"user-{index}", "helper")
    found, token = [], ""
    for step in itertools.count():
        page = await users_of(api, furnished, "helper", page_size=2, page_token=token)
        found += [one.user_id for one in page.users]
        token = page.next_page_token
        if not token:
            break
        await api.make_user(furnished, f"before-{step}", role=user_pb2.ROLE_OWNER)
        await api.permissions.Revoke(pb.RevokeRequest(workspace_id=furnished, user_id="user-4", agent_id="helper"))
    assert found == sorted(found)
    lasting = {"ada", "ann", "bob", *(f"user-{index}" for index in (0, 1, 2, 3, 5))}
    assert lasting <= set(found) <= lasting | {"before-0", "before-1", "user-4"}
    page = await users_of(api, furnished, "helper", page_size=2)
    with refused(grpc.StatusCode.INVALID_ARGUMENT, Reason.REASON_INVALID_PAGE_TOKEN, "page_token"):
        await users_of(api, furnished, "painter", page_token=page.next_page_token)
    with refused(grpc.StatusCode.INVALID_ARGUMENT, Reason.REASON_INVALID_PAGE_TOKEN, "page_token"):
        await usable(api, furnished, "ann", page_token=page.next_page_token)


class Waiting:
    """A registry of its own, whose lease is long, with one router registered that acknowledges when it is told to."""

    def __init__(self, api: Registry, owner: Connection) -> None:
        self.api = api
        self.owner = owner

    async def register(self) -> None:
        await self.owner.execute("UPDATE registry.registry_head SET epoch_at = now() - interval '1 day'")
        await self.owner.execute("INSERT INTO registry.watchers VALUES ('r1', '1', now() + interval '1 hour')")

    async def acknowledge(self) -> None:
        await self.owner.execute(
            "UPDATE registry.watchers SET acked_epoch = h.epoch, acked_revision = h.revision FROM registry.registry_head h"
        )

    def revoke(self, request_id: str = "", **values: Any) -> "asyncio.Task[pb.RevokeResponse]":
        request = pb.RevokeRequest(workspace_id="w", user_id="ann", agent_id="helper", request_id=request_id, **values)

        async def call() -> pb.RevokeResponse:
            return await self.api.permissions.Revoke(request)

        return asyncio.create_task(call())

    async def revoked(self) -> None:
        """Returns when nobody is granted anything."""

        async def nobody_is() -> bool:
            return not await self.owner.fetchval("SELECT count(*) FROM registry.grants")

        await until(nobody_is)


@pytest.fixture
async def waiting(postgres_server: EmbeddedPostgres) -> AsyncIterator[Waiting]:
    async with (
        own_database(postgres_server, "waiting") as urls,
        registry(settings_of(settings_of_database(urls), lease_ms=20_000)) as running,
        grpc.aio.insecure_channel(f"127.0.0.1:{running.port}") as channel,
    ):
        api = Registry(channel)
        owner = await asyncpg.connect(urls.owner)
        await api.make_workspace("w")
        await api.make_user("w", "ann")
        await api.make_agent("w", "helper")
        await api.grant("w", "ann", "helper")
        waiting = Waiting(api, owner)
        await waiting.register()
        yield waiting
        await owner.close()


WAIT = pb.REVOKE_WAIT_ALL_ROUTERS


async def test_a_revoke_waits_until_routers_know_and_a_repeat_waits_again(waiting: Waiting) -> None:
    call = waiting.revoke("r1", wait=WAIT)
    await waiting.revoked()
    assert not call.done()
    assert await waiting.owner.fetchval("SELECT wait FROM registry.changes ORDER BY revision DESC LIMIT 1")
    repeat = waiting.revoke("r1", wait=WAIT)
    done, _ = await asyncio.wait([call, repeat], timeout=0.2)
    assert not done
    await waiting.acknowledge()
    first, second = await asyncio.gather(call, repeat)
    assert (first.revoked, first.acked_routers, first.expired_routers) == (True, 1, 0)
    assert second == first


async def test_a_revoke_that_does_not_wait_asks_no_router(waiting: Waiting) -> None:
    for wait in (pb.REVOKE_WAIT_UNSPECIFIED, pb.REVOKE_WAIT_NONE):
        await waiting.api.grant("w", "ann", "helper")
        answer = await waiting.revoke(wait=wait)
        assert (answer.revoked, answer.acked_routers, answer.expired_routers) == (True, 0, 0)
        assert not await waiting.owner.fetchval("SELECT wait FROM registry.changes ORDER BY revision DESC LIMIT 1")


async def test_whoever_finds_nothing_to_revoke_waits_for_who_has_revoked_it(waiting: Waiting) -> None:
    assert (await waiting.revoke()).revoked
    call = waiting.revoke(wait=WAIT)
    done, _ = await asyncio.wait([call], timeout=0.2)
    assert not done
    await waiting.acknowledge()
    answer = await call
    assert (answer.revoked, answer.acked_routers) == (False, 1)


async def test_a_batch_waits_as_one_revoke_does(waiting: Waiting) -> None:
    items = [pb.BatchRevokeItem(user_id="ann", agent_id="helper")]
    request = pb.BatchRevokeRequest(workspace_id="w", revokes=items, wait=WAIT)

    async def revoke() -> pb.BatchRevokeResponse:
        return await waiting.api.permissions.BatchRevoke(request)

    call = asyncio.create_task(revoke())
    await waiting.revoked()
    assert not call.done()
    await waiting.acknowledge()
    answer = await call
    assert ([one.revoked for one in answer.results], answer.acked_routers) == ([True], 1)
