"""Agents in Postgres."""

from twofold_chassis import postgres
from twofold_chassis.postgres import Connection, Pool
from twofold_chassis.requests import Attempt
from twofold_registry.agents import Agent, AgentExists, AgentKey, AgentUnknown, UrlPolicy
from twofold_registry.resources import Answer, Edit, Page, Read, Stored
from twofold_registry.store import rows
from twofold_registry.store.changes import Change, Changes, unique
from twofold_registry.store.statements import STATEMENTS
from twofold_registry.store.tenants import require_workspace
from twofold_registry.wire.agents import agent_json
from twofold_registry.workspaces import Workspace, WorkspaceUnknown


class PostgresAgents:
    """The truth about agents."""

    def __init__(self, pool: Pool, changes: Changes, policy: UrlPolicy) -> None:
        self._pool = pool
        self._changes = changes
        self._policy = policy

    async def get(self, key: AgentKey) -> Read[Stored[Agent]]:
        async with postgres.connection(self._pool) as connection:
            return await _read(connection, key)

    async def list(self, workspace_id: str, after: str, size: int) -> Page[Stored[Agent]]:
        async with postgres.connection(self._pool) as connection:
            found = await connection.fetch(STATEMENTS["list_agents"], workspace_id, after, size + 1)
            if not found:
                await require_workspace(connection, workspace_id)
        return rows.page([rows.agent(row) for row in found], size)

    async def create(self, agent: Agent, attempt: Attempt, answer: Answer[Stored[Agent]]) -> bytes:
        async def make(change: Change) -> bytes:
            workspace = await change.lock_workspace(agent.workspace_id)
            if workspace is None:
                raise WorkspaceUnknown(agent.workspace_id)
            self._admit(agent, workspace)
            stamp = await change.take_revision()
            stored = Stored.new(agent, stamp)
            taken = AgentExists(f"the agent id {agent.agent_id!r} is taken", agent_id=agent.agent_id)
            with unique({"agent_ids_are_unique": taken}):
                values = (*agent.path, stamp.at, stamp.at, stamp.revision.number, *rows.agent_values(agent))
                await change.write("insert_agent", *values)
            await change.record(stamp, "agent.create", *agent.path, after=agent_json(stored))
            return answer(stored, stamp.revision)

        return await self._changes.once(attempt, make)

    async def update(self, key: AgentKey, edit: Edit, etag: str, attempt: Attempt, answer: Answer[Stored[Agent]]) -> bytes:
        async def make(change: Change) -> bytes:
            workspace, before = await _locked(change, key)
            before.expect(etag)
            agent = edit.applied(before.value)
            if "url" in edit.values:  # another field can be changed although the rules for URLs have become narrower
                self._admit(agent, workspace)
            stamp = await change.take_revision()
            after = before.changed(agent, stamp)
            await change.write("update_agent", *agent.path, stamp.at, stamp.revision.number, *rows.agent_values(agent))
            await change.record(stamp, "agent.update", *agent.path, before=agent_json(before), after=agent_json(after))
            return answer(after, stamp.revision)

        return await self._changes.once(attempt, make)

    async def delete(self, key: AgentKey, etag: str, attempt: Attempt, answer: Answer[None]) -> bytes:
        async def make(change: Change) -> bytes:
            _, before = await _locked(change, key)
            before.expect(etag)
            stamp = await change.take_revision()
            await change.write("delete_agent", *before.value.path, stamp.at, stamp.revision.number)
            await change.record(stamp, "agent.delete", *before.value.path, before=agent_json(before))
            return answer(None, stamp.revision)

        return await self._changes.once(attempt, make)

    def _admit(self, agent: Agent, workspace: Stored[Workspace]) -> None:
        self._policy.admit(agent.url, workspace.value.settings.allowed_url_suffixes, "agent.url")


async def _locked(change: Change, key: AgentKey) -> tuple[Stored[Workspace], Stored[Agent]]:
    workspace = await change.lock_workspace(key.workspace_id)
    if workspace is None:
        raise AgentUnknown(key)
    return workspace, (await _read(change.connection, key)).value


async def _read(connection: Connection, key: AgentKey) -> Read[Stored[Agent]]:
    row = await connection.fetchrow(STATEMENTS["get_agent"], key.workspace_id, key.agent_id)
    if row is None:
        raise AgentUnknown(key)
    return rows.read(row, rows.agent(row))
