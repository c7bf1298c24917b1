"""Who changes what routers answer from: grants and revokes above all, and what hides or moves the rest."""

import asyncio
import random
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any

import grpc
from google.protobuf.field_mask_pb2 import FieldMask

from benchmarks.chaos.control.history import History, Pair, Token, Write
from twofold.registry.v1 import agent_pb2, permission_pb2, user_pb2, workspace_pb2
from twofold.registry.v1.agent_pb2_grpc import AgentServiceStub
from twofold.registry.v1.permission_pb2_grpc import PermissionServiceStub
from twofold.registry.v1.user_pb2_grpc import UserServiceStub
from twofold.registry.v1.workspace_pb2_grpc import WorkspaceServiceStub
from twofold_chassis.clocks import boot_s
from twofold_chassis.revisions import revision_of

MEMBERS = ("ada", "bob", "cem")
ADMIN = "root"
AGENTS = ("one", "two")
# Somebody and something that never is.
NOBODY, NOTHING = "nobody", "nothing"
PAIRS = [Pair(user, agent) for user in (*MEMBERS, ADMIN, NOBODY) for agent in (*AGENTS, NOTHING)]
_GRANTABLE = [Pair(user, agent) for user in MEMBERS for agent in AGENTS]
_ENDS_S = (0.5, 4.0)
_HIDDEN_S = (0.05, 0.8)
_CALL_S = 4.0
_TOKENS_MAX = 8


@dataclass(frozen=True, slots=True)
class Appetite:
    """How often a writer does what; the rest of the time it grants.

    `writers`: how many never wait for all routers, `waiters`: who does at times, `spenders`: who uses up limits.
    `thinking_s`: for how long a writer does nothing at most.
    """

    revokes: float = 0.15
    waited: float = 0.2
    hides: float = 0.1
    ends: float = 0.15
    writers: int = 3
    waiters: int = 2
    spenders: int = 2
    thinking_s: float = 0.15

    def patient(self) -> "Appetite":
        """That of one who waits for nobody."""
        return replace(self, revokes=self.revokes + self.waited / 2, waited=0.0)


class Registries:
    """What is called of one registry."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self.permissions = PermissionServiceStub(channel)
        self.users = UserServiceStub(channel)
        self.agents = AgentServiceStub(channel)
        self.workspaces = WorkspaceServiceStub(channel)


async def furnish(registry: Registries, workspace: str) -> None:
    """The workspace with all that is in it; half of the pairs are granted."""
    draft = workspace_pb2.Workspace(workspace_id=workspace, display_name="Chaos")
    await registry.workspaces.CreateWorkspace(workspace_pb2.CreateWorkspaceRequest(workspace=draft))
    for user_id in (*MEMBERS, ADMIN):
        user = user_pb2.User(workspace_id=workspace, user_id=user_id, email=f"{user_id}@chaos.test")
        user.role = user_pb2.ROLE_ADMIN if user_id == ADMIN else user_pb2.ROLE_MEMBER
        await registry.users.CreateUser(user_pb2.CreateUserRequest(user=user))
    for agent_id in AGENTS:
        agent = agent_pb2.Agent(workspace_id=workspace, agent_id=agent_id, display_name="Agent", url=_url(agent_id, 0))
        agent.state = agent_pb2.AGENT_STATE_PUBLISHED
        await registry.agents.CreateAgent(agent_pb2.CreateAgentRequest(agent=agent))
    for pair in _GRANTABLE[::2]:
        grant = permission_pb2.AgentGrant(workspace_id=workspace, user_id=pair.user, agent_id=pair.agent)
        await registry.permissions.Grant(permission_pb2.GrantRequest(grant=grant))


class Writer:
    """One who changes things, at any registry. What was acknowledged is written down; `tokens` are those of the last."""

    def __init__(
        self,
        registries: Sequence[Registries],
        history: History,
        chance: random.Random,
        workspace: str,
        tokens: list[tuple[Token, bytes]],
        appetite: Appetite,
    ) -> None:
        self._registries = registries
        self._history = history
        self._chance = chance
        self._workspace = workspace
        self._tokens = tokens
        self._appetite = appetite

    async def run(self, enough: asyncio.Event) -> None:
        """Writes until it is enough; what it hid is shown again."""
        while not enough.is_set():
            await self._write()
            await asyncio.sleep(self._chance.uniform(0, self._appetite.thinking_s))

    async def _write(self) -> None:
        drawn, appetite = self._chance.random(), self._appetite
        pair = self._chance.choice(_GRANTABLE)
        if drawn < appetite.revokes:
            await self._revoke(pair, wait=False)
        elif drawn < appetite.revokes + appetite.waited:
            await self._revoke(pair, wait=True)
        elif drawn < appetite.revokes + appetite.waited + appetite.hides:
            await self._hide(pair)
        else:
            await self._grant(pair)

    # Grants ----------------------------------------------------------------------------------------------------

    async def _grant(self, pair: Pair) -> None:
        grant = permission_pb2.AgentGrant(workspace_id=self._workspace, user_id=pair.user, agent_id=pair.agent)
        if self._chance.random() < self._appetite.ends:
            grant.expire_time.FromDatetime(datetime.now(UTC) + timedelta(seconds=self._chance.uniform(*_ENDS_S)))
        await self._call(
            lambda registry: registry.permissions.Grant(permission_pb2.GrantRequest(grant=grant), timeout=_CALL_S)
        )

    async def _revoke(self, pair: Pair, *, wait: bool) -> None:
        wanted = permission_pb2.REVOKE_WAIT_ALL_ROUTERS if wait else permission_pb2.REVOKE_WAIT_NONE
        # As long as a wait may last, and some more.
        timeout = 3 * _CALL_S if wait else _CALL_S
        if self._chance.random() < 0.3:
            others = self._chance.sample(_GRANTABLE, 3)
            items = [permission_pb2.BatchRevokeItem(user_id=other.user, agent_id=other.agent) for other in others]
            batch = permission_pb2.BatchRevokeRequest(workspace_id=self._workspace, revokes=items, wait=wanted)
            await self._call(lambda registry: registry.permissions.BatchRevoke(batch, timeout=timeout), waited=wait)
            return
        request = permission_pb2.RevokeRequest(
            workspace_id=self._workspace, user_id=pair.user, agent_id=pair.agent, wait=wanted
        )
        await self._call(lambda registry: registry.permissions.Revoke(request, timeout=timeout), waited=wait)

    # What hides others -----------------------------------------------------------------------------------------

    async def _hide(self, pair: Pair) -> None:
        hide, show = self._chance.choice(
            (
                (self._user_state(pair.user, user_pb2.USER_STATE_SUSPENDED), self._user_state(pair.user)),
                (self._agent_state(pair.agent, agent_pb2.AGENT_STATE_PAUSED), self._agent_state(pair.agent)),
                (self._agent_url(pair.agent), self._agent_url(pair.agent)),
                (self._delete_user(pair.user), self._undelete_user(pair.user)),
                (self._delete_agent(pair.agent), self._undelete_agent(pair.agent)),
                (self._workspace_state(workspace_pb2.WORKSPACE_STATE_SUSPENDED), self._workspace_state()),
            )
        )
        await self._call(hide)
        await asyncio.sleep(self._chance.uniform(*_HIDDEN_S))
        await self._call(show)

    def _user_state(self, user_id: str, state: user_pb2.UserState.ValueType = user_pb2.USER_STATE_ACTIVE) -> "_Deed":
        user = user_pb2.User(workspace_id=self._workspace, user_id=user_id, state=state)
        request = user_pb2.UpdateUserRequest(user=user, update_mask=FieldMask(paths=["state"]))
        return lambda registry: registry.users.UpdateUser(request, timeout=_CALL_S)

    def _agent_state(
        self, agent_id: str, state: agent_pb2.AgentState.ValueType = agent_pb2.AGENT_STATE_PUBLISHED
    ) -> "_Deed":
        agent = agent_pb2.Agent(workspace_id=self._workspace, agent_id=agent_id, state=state)
        request = agent_pb2.UpdateAgentRequest(agent=agent, update_mask=FieldMask(paths=["state"]))
        return lambda registry: registry.agents.UpdateAgent(request, timeout=_CALL_S)

    def _agent_url(self, agent_id: str) -> "_Deed":
        url = _url(agent_id, self._chance.randrange(1_000_000))
        agent = agent_pb2.Agent(workspace_id=self._workspace, agent_id=agent_id, url=url)
        request = agent_pb2.UpdateAgentRequest(agent=agent, update_mask=FieldMask(paths=["url"]))
        return lambda registry: registry.agents.UpdateAgent(request, timeout=_CALL_S)

    def _delete_user(self, user_id: str) -> "_Deed":
        request = user_pb2.DeleteUserRequest(workspace_id=self._workspace, user_id=user_id)
        return lambda registry: registry.users.DeleteUser(request, timeout=_CALL_S)

    def _undelete_user(self, user_id: str) -> "_Deed":
        request = user_pb2.UndeleteUserRequest(workspace_id=self._workspace, user_id=user_id)
        return lambda registry: registry.users.UndeleteUser(request, timeout=_CALL_S)

    def _delete_agent(self, agent_id: str) -> "_Deed":
        request = agent_pb2.DeleteAgentRequest(workspace_id=self._workspace, agent_id=agent_id)
        return lambda registry: registry.agents.DeleteAgent(request, timeout=_CALL_S)

    def _undelete_agent(self, agent_id: str) -> "_Deed":
        request = agent_pb2.UndeleteAgentRequest(workspace_id=self._workspace, agent_id=agent_id)
        return lambda registry: registry.agents.UndeleteAgent(request, timeout=_CALL_S)

    def _workspace_state(
        self, state: workspace_pb2.WorkspaceState.ValueType = workspace_pb2.WORKSPACE_STATE_ACTIVE
    ) -> "_Deed":
        workspace = workspace_pb2.Workspace(workspace_id=self._workspace, state=state)
        request = workspace_pb2.UpdateWorkspaceRequest(workspace=workspace, update_mask=FieldMask(paths=["state"]))
        return lambda registry: registry.workspaces.UpdateWorkspace(request, timeout=_CALL_S)

    async def _call(self, deed: "_Deed", *, waited: bool = False) -> None:
        sent = boot_s()
        try:
            answer = await deed(self._chance.choice(self._registries))
        except grpc.aio.AioRpcError:
            return  # done or not: the history will tell
        revision = revision_of(answer.revision_token, "revision_token")
        assert revision is not None
        token = Token(revision.epoch, revision.number)
        self._history.writes.append(Write(token, sent, boot_s(), waited))
        self._tokens.append((token, answer.revision_token))
        del self._tokens[:-_TOKENS_MAX]


_Deed = Callable[[Registries], Awaitable[Any]]


def _url(agent_id: str, number: int) -> str:
    return f"http://{agent_id}-{number}.agents.svc.cluster.local"
