"""Agents in Postgres."""

from dataclasses import replace

from asyncpg import Record

from twofold_chassis.postgres import Connection
from twofold_chassis.requests import Attempt
from twofold_registry.agents import (
    Agent,
    AgentExists,
    AgentKey,
    AgentUnknown,
    Observation,
    Reported,
    ReportOutcome,
)
from twofold_registry.history import Item, ItemKind
from twofold_registry.resources import Answer, Edit, Page, Read, Stored
from twofold_registry.store import rows
from twofold_registry.store.changes import Change, Changes, Deed, unique
from twofold_registry.store.reads import Reads
from twofold_registry.store.statements import STATEMENTS
from twofold_registry.store.tenants import require_workspace
from twofold_registry.urls import Home, UrlPolicy
from twofold_registry.wire.agents import agent_bytes, agent_json
from twofold_registry.workspaces import Workspace, WorkspaceUnknown


class PostgresAgents:
    """The truth about agents."""

    def __init__(self, reads: Reads, changes: Changes, policy: UrlPolicy) -> None:
        self._reads = reads
        self._changes = changes
        self._policy = policy

    async def get(self, key: AgentKey) -> Read[Stored[Agent]]:
        return await self._reads.read(key.workspace_id, lambda connection: _got(connection, key))

    async def list(self, workspace_id: str, after: str, size: int) -> Page[Stored[Agent]]:
        async def ask(connection: Connection) -> list[Record]:
            found = await connection.fetch(STATEMENTS["list_agents"], workspace_id, after, size + 1)
            if not found:
                await require_workspace(connection, workspace_id)
            return found

        found = await self._reads.read(workspace_id, ask)
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
            await change.record(stamp, agent.workspace_id, [_deed("create", None, stored)])
            return answer(stored, stamp.revision)

        return await self._changes.once(attempt, agent.workspace_id, make)

    async def update(self, key: AgentKey, edit: Edit, etag: str, attempt: Attempt, answer: Answer[Stored[Agent]]) -> bytes:
        async def make(change: Change) -> bytes:
            workspace, before = await _locked(change, key)
            before.expect(etag)
            agent = before.value.edited(edit)
            if not edit.values.keys().isdisjoint(
                ("url", "targets")
            ):  # else it may be changed although the rules are narrower now
                self._admit(agent, workspace)
            stamp = await change.take_revision()
            after = before.changed(agent, stamp)
            await change.write("update_agent", *agent.path, stamp.at, stamp.revision.number, *rows.agent_values(agent))
            await change.record(stamp, agent.workspace_id, [_deed("update", before, after)])
            return answer(after, stamp.revision)

        return await self._changes.once(attempt, key.workspace_id, make)

    async def delete(self, key: AgentKey, etag: str, attempt: Attempt, answer: Answer[None]) -> bytes:
        async def make(change: Change) -> bytes:
            _, before = await _locked(change, key)
            before.expect(etag)
            stamp = await change.take_revision()
            await change.write("delete_agent", *before.value.path, stamp.at, stamp.revision.number)
            await change.record(stamp, key.workspace_id, [_deed("delete", before, None)])
            return answer(None, stamp.revision)

        return await self._changes.once(attempt, key.workspace_id, make)

    async def report(self, key: AgentKey, seen: Observation, attempt: Attempt, answer: Answer[Reported]) -> bytes:
        async def make(change: Change) -> bytes:
            _, before = await _locked(change, key)
            agent = before.value.observed(seen)
            if isinstance(agent, ReportOutcome):
                return answer(Reported(agent, before.value.generation), await change.head())
            values = (seen.target, seen.state.value, seen.generation, seen.observed_at, seen.message)
            known = before.value.known(seen.target)
            if known is not None and known.state is seen.state:
                revision = await change.head()
                await change.write("keep_observation", *agent.path, *values)
            else:
                stamp = await change.take_revision()
                revision = stamp.revision
                await change.write("keep_observation", *agent.path, *values)
                after = replace(before, value=agent)  # its version stays: nothing else was declared
                await change.record(stamp, key.workspace_id, [_deed("observe", before, after)])
            return answer(Reported(ReportOutcome.RECORDED, agent.generation), revision)

        return await self._changes.once(attempt, key.workspace_id, make)

    def _admit(self, agent: Agent, workspace: Stored[Workspace]) -> None:
        home = Home(workspace.value.settings.allowed_url_suffixes, workspace.value.namespace)
        for url, field in agent.urls():
            self._policy.admit(url, home, field)


async def _locked(change: Change, key: AgentKey) -> tuple[Stored[Workspace], Stored[Agent]]:
    workspace = await change.lock_workspace(key.workspace_id)
    if workspace is None:
        raise AgentUnknown(key)
    return workspace, rows.agent(await _row(change.connection, key))


async def _got(connection: Connection, key: AgentKey) -> Read[Stored[Agent]]:
    row = await _row(connection, key)
    return rows.read(row, rows.agent(row))


async def _row(connection: Connection, key: AgentKey) -> Record:
    row = await connection.fetchrow(STATEMENTS["get_agent"], key.workspace_id, key.agent_id)
    if row is None:
        raise AgentUnknown(key)
    return row


def _deed(action: str, before: Stored[Agent] | None, after: Stored[Agent] | None) -> Deed:
    agent_id = told.value.agent_id if (told := after or before) else ""
    item = Item(
        ItemKind.ROUTE if action in ("update", "observe") else ItemKind.AGENT,
        agent_id=agent_id,
        after=agent_bytes(after) if after else None,
    )
    return Deed(
        f"agent.{action}", agent_id, agent_json(before) if before else "", agent_json(after) if after else "", [item]
    )
