"""The rule of permissions against a model: whatever is changed, in whatever order, all five ways to ask agree with it."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

import grpc
from google.protobuf.field_mask_pb2 import FieldMask
from hypothesis import given, settings
from hypothesis import strategies as some

from tests.registry.stubs import Connection, Registry
from twofold.registry.v1 import agent_pb2, user_pb2, workspace_pb2
from twofold.registry.v1 import permission_pb2 as pb
from twofold_chassis import fields

USERS = ("ann", "bob")
AGENTS = ("helper", "painter")
PAIRS = [(user, agent) for user in USERS for agent in AGENTS]
ROLES = ("OWNER", "ADMIN", "MEMBER", "SERVICE")


@dataclass
class Member:
    role: str = "MEMBER"
    suspended: bool = False
    deleted: bool = False


@dataclass
class Agent:
    gone: bool = False
    deleted: bool = False


@dataclass
class World:
    """What there should be. A grant is True until it has expired."""

    suspended: bool = False
    deleted: bool = False
    users: dict[str, Member] = field(default_factory=lambda: {name: Member() for name in USERS})
    agents: dict[str, Agent] = field(default_factory=lambda: {name: Agent() for name in AGENTS})
    grants: dict[tuple[str, str], bool] = field(default_factory=dict)

    def reason(self, user: str, agent: str) -> str:
        """The rule, told once more, backwards: the last thing that is wrong is what is told."""
        told = {None: "NO_GRANT", False: "EXPIRED", True: "GRANT"}[self.grants.get((user, agent))]
        member, used = self.users[user], self.agents[agent]
        by_role = member.role in ("OWNER", "ADMIN")
        if by_role:
            told = "ROLE"
        if used.gone and told in ("GRANT", "ROLE"):
            told = "AGENT_GONE"
        if used.deleted:
            told = "AGENT_UNKNOWN" if by_role else "NO_GRANT"
        if member.suspended:
            told = "USER_SUSPENDED"
        if member.deleted:
            told = "USER_UNKNOWN"
        if self.suspended:
            told = "WORKSPACE_SUSPENDED"
        if self.deleted:
            told = "WORKSPACE_UNKNOWN"
        return told

    def answers(self) -> list[tuple[bool, str]]:
        """What is to be answered for all pairs."""
        reasons = [self.reason(*pair) for pair in PAIRS]
        return [(reason in ("GRANT", "ROLE"), reason) for reason in reasons]

    def may(self) -> dict[tuple[str, str], str]:
        """The pairs of who may use what, and why."""
        return {pair: reason for pair, (allowed, reason) in zip(PAIRS, self.answers(), strict=True) if allowed}


Step = tuple[str, str, str, str]
STEPS = some.lists(
    some.tuples(
        some.sampled_from(
            [
                *("grant", "grant", "grant", "grant_all", "grant_all", "revoke", "expire", "role", "role", "role"),
                *("suspend_user", "suspend_user", "delete_user", "delete_agent", "end_agent", "suspend", "delete"),
            ]
        ),
        some.sampled_from(USERS),
        some.sampled_from(AGENTS),
        some.sampled_from(ROLES),
    ),
    min_size=3,
    max_size=15,
)


class Life:
    """Makes steps in a workspace and in its model. What a step takes away the next of its kind brings back."""

    def __init__(self, api: Registry, owner: Connection, workspace_id: str) -> None:
        self.api = api
        self.owner = owner
        self.at: dict[str, Any] = {"workspace_id": workspace_id}
        self.world = World()

    async def step(self, kind: str, user: str, agent: str, role: str) -> None:
        if self.world.deleted and kind != "delete":
            return
        await getattr(self, kind)(user, agent, role)

    async def grant(self, user: str, agent: str, _: str) -> None:
        await self._grant([(user, agent)])

    async def grant_all(self, *_: str) -> None:
        await self._grant(PAIRS)

    async def _grant(self, pairs: Sequence[tuple[str, str]]) -> None:
        world = self.world
        pairs = [
            (user, agent)
            for user, agent in pairs
            if not (world.users[user].deleted or world.agents[agent].deleted or world.agents[agent].gone)
        ]
        if not pairs:
            return
        expires = fields.timestamp(datetime.now(UTC) + timedelta(days=1))
        items = [pb.BatchGrantItem(user_id=user, agent_id=agent, expire_time=expires) for user, agent in pairs]
        await self.api.permissions.BatchGrant(pb.BatchGrantRequest(**self.at, grants=items))
        world.grants |= dict.fromkeys(pairs, True)

    async def revoke(self, user: str, agent: str, _: str) -> None:
        if not (self.world.users[user].deleted or self.world.agents[agent].deleted):
            await self.api.permissions.Revoke(pb.RevokeRequest(**self.at, user_id=user, agent_id=agent))
            self.world.grants.pop((user, agent), None)

    async def expire(self, user: str, agent: str, _: str) -> None:
        await self.owner.execute(
            "UPDATE registry.grants SET granted_at = now() - interval '2 s', expires_at = now()"
            " WHERE workspace_id = $1 AND user_id = $2 AND agent_id = $3",
            self.at["workspace_id"],
            user,
            agent,
        )
        if (user, agent) in self.world.grants:
            self.world.grants[user, agent] = False

    async def role(self, user: str, _: str, role: str) -> None:
        if not self.world.users[user].deleted:
            await self._update(user, "role", role=user_pb2.Role.Value(f"ROLE_{role}"))
            self.world.users[user].role = role

    async def suspend_user(self, user: str, *_: str) -> None:
        member = self.world.users[user]
        if not member.deleted:
            state = user_pb2.USER_STATE_ACTIVE if member.suspended else user_pb2.USER_STATE_SUSPENDED
            await self._update(user, "state", state=state)
            member.suspended = not member.suspended

    async def _update(self, user: str, path: str, **values: Any) -> None:
        changed = user_pb2.User(**self.at, user_id=user, **values)
        await self.api.users.UpdateUser(user_pb2.UpdateUserRequest(user=changed, update_mask=FieldMask(paths=[path])))

    async def delete_user(self, user: str, *_: str) -> None:
        member = self.world.users[user]
        if member.deleted:
            await self.api.users.UndeleteUser(user_pb2.UndeleteUserRequest(**self.at, user_id=user))
        else:
            await self.api.users.DeleteUser(user_pb2.DeleteUserRequest(**self.at, user_id=user))
        member.deleted = not member.deleted

    async def delete_agent(self, _: str, agent: str, __: str) -> None:
        used = self.world.agents[agent]
        if used.deleted:
            await self.api.agents.UndeleteAgent(agent_pb2.UndeleteAgentRequest(**self.at, agent_id=agent))
        else:
            await self.api.agents.DeleteAgent(agent_pb2.DeleteAgentRequest(**self.at, agent_id=agent))
        used.deleted = not used.deleted

    async def end_agent(self, _: str, agent: str, __: str) -> None:
        if not self.world.agents[agent].deleted:
            gone = agent_pb2.Agent(**self.at, agent_id=agent, state=agent_pb2.AGENT_STATE_GONE)
            await self.api.agents.UpdateAgent(
                agent_pb2.UpdateAgentRequest(agent=gone, update_mask=FieldMask(paths=["state"]))
            )
            self.world.agents[agent].gone = True

    async def suspend(self, *_: str) -> None:
        active, suspended = workspace_pb2.WORKSPACE_STATE_ACTIVE, workspace_pb2.WORKSPACE_STATE_SUSPENDED
        changed = workspace_pb2.Workspace(**self.at, state=active if self.world.suspended else suspended)
        request = workspace_pb2.UpdateWorkspaceRequest(workspace=changed, update_mask=FieldMask(paths=["state"]))
        await self.api.workspaces.UpdateWorkspace(request)
        self.world.suspended = not self.world.suspended

    async def delete(self, *_: str) -> None:
        if self.world.deleted:
            await self.api.workspaces.UndeleteWorkspace(workspace_pb2.UndeleteWorkspaceRequest(**self.at))
        else:
            await self.api.workspaces.DeleteWorkspace(workspace_pb2.DeleteWorkspaceRequest(**self.at))
        self.world.deleted = not self.world.deleted

    async def batch(self) -> list[tuple[bool, str]]:
        """What one batch of checks answers for all pairs."""
        asked = [pb.PermissionPair(user_id=user, agent_id=agent) for user, agent in PAIRS]
        answer = await self.api.permissions.BatchCheck(pb.BatchCheckRequest(**self.at, pairs=asked))
        return [(one.allowed, name(one.reason)) for one in answer.results]

    async def singles(self) -> list[tuple[bool, str]]:
        """The same, asked one by one."""
        answers = await asyncio.gather(*(self.api.check(self.at["workspace_id"], *pair) for pair in PAIRS))
        return [(one.allowed, name(one.reason)) for one in answers]

    async def explanations(self) -> list[tuple[bool, str]]:
        """The same, as explanations."""
        asked = [pb.ExplainPermissionRequest(**self.at, user_id=user, agent_id=agent) for user, agent in PAIRS]
        answers = await asyncio.gather(*(self.api.permissions.ExplainPermission(one) for one in asked))
        return [(one.allowed, name(one.reason)) for one in answers]

    async def usable(self, user: str) -> dict[str, str]:
        """The agents that a user may use, page by page, with the reason; none if there is no such user."""
        found: dict[str, str] = {}
        token = ""
        while True:
            request = pb.ListUsableAgentsRequest(**self.at, user_id=user, page_size=1, page_token=token)
            try:
                page = await self.api.permissions.ListUsableAgents(request)
            except grpc.aio.AioRpcError as error:
                if error.code() is not grpc.StatusCode.NOT_FOUND:
                    raise
                return {}
            found |= {one.agent_id: name(one.reason) for one in page.agents}
            token = page.next_page_token
            if not token:
                return found

    async def users_of(self, agent: str) -> dict[str, str]:
        """The users who may use an agent, page by page, with the reason; none if there is no such agent."""
        found: dict[str, str] = {}
        token = ""
        while True:
            request = pb.ListAgentUsersRequest(**self.at, agent_id=agent, page_size=1, page_token=token)
            try:
                page = await self.api.permissions.ListAgentUsers(request)
            except grpc.aio.AioRpcError as error:
                if error.code() is not grpc.StatusCode.NOT_FOUND:
                    raise
                return {}
            found |= {one.user_id: name(one.reason) for one in page.users if one.user_id != "founder"}
            token = page.next_page_token
            if not token:
                return found


def name(reason: pb.CheckReason.ValueType) -> str:
    return pb.CheckReason.Name(reason).removeprefix("CHECK_REASON_")


@settings(deadline=None, max_examples=12)
@given(STEPS)
async def test_all_ways_to_ask_agree_with_the_model_whatever_was_changed(
    api: Registry, owner: Connection, steps: Sequence[Step]
) -> None:
    workspace_id = (await api.make_workspace("")).workspace_id
    await api.make_user(workspace_id, "founder", role=user_pb2.ROLE_OWNER)  # a workspace that has an owner keeps one
    await asyncio.gather(*(api.make_user(workspace_id, user) for user in USERS))
    await asyncio.gather(*(api.make_agent(workspace_id, agent) for agent in AGENTS))
    life = Life(api, owner, workspace_id)
    for kind, user, agent, role in steps:
        await life.step(kind, user, agent, role)
        may = life.world.may()
        answers, usable, users = await asyncio.gather(life.batch(), life.usable(user), life.users_of(agent))
        assert answers == life.world.answers(), kind
        assert usable == {one: reason for (who, one), reason in may.items() if who == user}, kind
        assert users == {who: reason for (who, one), reason in may.items() if one == agent}, kind
    assert await life.singles() == await life.explanations() == life.world.answers()
