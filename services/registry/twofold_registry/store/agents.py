"""Agents in Postgres."""

from collections.abc import Sequence
from dataclasses import replace
from datetime import timedelta

from twofold_chassis.requests import Attempt
from twofold_chassis.urls import Home, UrlPolicy
from twofold_registry.agents import (
    Agent,
    AgentExists,
    AgentKey,
    AgentState,
    AgentUnknown,
    Observation,
    Reported,
    ReportOutcome,
)
from twofold_registry.history import Item, ItemKind
from twofold_registry.resources import Answer, Edit, Key, Order, Stored
from twofold_registry.store import rows
from twofold_registry.store.changes import Change, Changes
from twofold_registry.store.reads import Reads
from twofold_registry.store.resources import PostgresResources, Statements, Table
from twofold_registry.store.statements import STATEMENTS
from twofold_registry.wire.agents import agent_bytes, agent_json
from twofold_registry.workspaces import Workspace


class PostgresAgents(PostgresResources[Agent]):
    """The truth about agents."""

    def __init__(self, reads: Reads, changes: Changes, grace: timedelta, policy: UrlPolicy) -> None:
        super().__init__(_TABLE, reads, changes, grace)
        self._policy = policy

    async def report(self, key: AgentKey, seen: Observation, attempt: Attempt, answer: Answer[Reported]) -> bytes:
        values = (seen.target, seen.state.value, seen.generation, seen.observed_at, seen.message)

        async def renew(change: Change) -> bytes:
            if await change.connection.fetchval(STATEMENTS["renew_observation"], *key, *values):
                return answer(Reported(ReportOutcome.RECORDED, seen.generation), await change.head())
            return b""

        async def make(change: Change) -> bytes:
            await self._locked(change, key)
            # A renewal locks this row alone: what is judged below must be what is there behind it.
            await change.connection.fetchval(STATEMENTS["lock_observation"], *key, seen.target)
            _, before = await self._locked(change, key)
            agent = before.value.observed(seen)
            if isinstance(agent, ReportOutcome):
                return answer(Reported(agent, before.value.generation), await change.head())
            known = before.value.known(seen.target)
            if known is not None and known.state is seen.state:
                revision = await change.head()
                await change.write("keep_observation", *agent.path, *values)
            else:
                stamp = await change.take_revision()
                revision = stamp.revision
                await change.write("keep_observation", *agent.path, *values)
                after = replace(before, value=agent)  # its version stays: nothing else was declared
                await self._record(change, stamp, "observe", before, after)
            return answer(Reported(ReportOutcome.RECORDED, agent.generation), revision)

        # Most reports say again what is known: they lock their own row only. In a transaction by itself, since whoever has
        # locked that row must not wait for the workspace.
        renewed = await self._changes.once(attempt, key.workspace_id, renew)
        return renewed or await self._changes.once(attempt, key.workspace_id, make)

    def _edited(self, before: Agent, edit: Edit) -> Agent:
        return before.edited(edit)

    async def _check(
        self, change: Change, workspace: Stored[Workspace] | None, before: Agent | None, after: Agent | None
    ) -> None:
        assert workspace is not None
        if after is None or (before is not None and before.generation == after.generation):
            return  # the rules may be narrower now than when its URLs were written
        home = Home(workspace.value.settings.allowed_url_suffixes, workspace.value.namespace)
        for url, field in after.urls():
            self._policy.admit(url, home, field)


def _items(before: Stored[Agent] | None, after: Stored[Agent] | None) -> Sequence[Item]:
    (one, *_) = [each for each in (after, before) if each]
    # What permissions rest on is that it is there, and not gone for good.
    stays = before and after and AgentState.GONE not in {before.value.state, after.value.state}
    kind = ItemKind.ROUTE if stays else ItemKind.AGENT
    return [Item(kind, agent_id=one.value.agent_id, after=agent_bytes(after) if after else None)]


def _unknown(key: Key) -> AgentUnknown:
    return AgentUnknown(AgentKey(*key))


def _taken(agent: Agent) -> dict[str, AgentExists]:
    return {"agent_ids_are_unique": AgentExists(f"the agent id {agent.agent_id!r} is taken", agent_id=agent.agent_id)}


_TABLE = Table(
    kind="agent",
    statements=Statements(
        get="get_agent",
        batch_get="batch_get_agents",
        insert="insert_agent",
        update="update_agent",
        delete="delete_agent",
        undelete="undelete_agent",
        purge="purge_agent",
        listings={
            Order.ID: "list_agents",
            Order.ID_DESC: "list_agents_desc",
            Order.TIME: "list_agents_by_time",
            Order.TIME_DESC: "list_agents_by_time_desc",
        },
    ),
    stored=rows.agent,
    values=rows.agent_values,
    told=agent_json,
    items=_items,
    unknown=_unknown,
    taken=_taken,
)
