"""The facts that checks ask, in Postgres; what is asked at the same time is asked in one statement."""

from collections.abc import Sequence
from itertools import islice

from asyncpg import Record

from twofold_chassis import postgres
from twofold_chassis.gathering import Gathering
from twofold_chassis.postgres import Connection, Pool
from twofold_registry.agents import AgentKey, AgentState, AgentUnknown
from twofold_registry.checks import (
    AgentUser,
    Explanation,
    Facts,
    Found,
    Question,
    Reason,
    RouterNotRegistered,
    UsableAgent,
)
from twofold_registry.permissions import GrantKey
from twofold_registry.resources import Page, Read
from twofold_registry.revisions import Revision
from twofold_registry.store import rows
from twofold_registry.store.reads import Reads, renew_epoch
from twofold_registry.store.rows import PastRewritten
from twofold_registry.store.statements import STATEMENTS
from twofold_registry.users import Role, UserKey, UserUnknown

# Pairs: of one statement, and of all who wait for one.
_BATCH_MAX = 500
_WAITING_MAX = 50_000
_ROLES = {role.value: role for role in Role} | {None: None}

Answer = Read[Found] | RouterNotRegistered


class PostgresChecks:
    """Checks are asked of the primary, always: a copy would not know what was revoked a moment ago. Listings are reports."""

    def __init__(self, pool: Pool, reads: Reads) -> None:
        self._pool = pool
        self._reads = reads
        # While one statement is on its way, the next questions gather. Single ones in one lane: they are so small that most
        # of the work is the transaction around them. Batches apart from them, in two lanes: while we write down the answers
        # of one, Postgres works on the other.
        self._singles = self._gathering(lanes=1)
        self._batches = self._gathering(lanes=2)

    async def drain(self) -> None:
        """Returns when no question is under way."""
        await self._singles.drain()
        await self._batches.drain()

    async def ask(self, question: Question, least: Revision | None) -> Read[Found]:
        gathering = self._singles if len(question.pairs) == 1 else self._batches
        read = await gathering.ask(question)
        read.revision.satisfies(least)
        return read

    async def explain(self, key: GrantKey, least: Revision | None) -> Read[Explanation]:
        async def ask(connection: Connection) -> Read[Explanation]:
            row = await connection.fetchrow(STATEMENTS["explain_facts"], key.workspace_id, key.user_id, key.agent_id)
            assert row is not None
            return rows.read(row, _explanation(row, key))

        return await self._reads.read(key.workspace_id, ask, least)

    async def usable_agents(self, user: UserKey, after: str, size: int, least: Revision | None) -> Page[UsableAgent]:
        async def ask(connection: Connection) -> list[UsableAgent]:
            ids = (user.workspace_id, user.user_id)
            found = await connection.fetch(STATEMENTS["usable_agents"], *ids, after, size + 1)
            if not found and not await connection.fetchval(STATEMENTS["user_is_there"], *ids):
                raise UserUnknown(user)
            return [_usable_agent(row) for row in found]

        return rows.page(await self._reads.report(user.workspace_id, ask, least), size)

    async def users_of(self, agent: AgentKey, after: str, size: int, least: Revision | None) -> Page[AgentUser]:
        async def ask(connection: Connection) -> list[AgentUser]:
            ids = (agent.workspace_id, agent.agent_id)
            found = await connection.fetch(STATEMENTS["users_of_agent"], *ids, after, size + 1)
            if not found and not await connection.fetchval(STATEMENTS["agent_is_there"], *ids):
                raise AgentUnknown(agent)
            return [_agent_user(row) for row in found]

        return rows.page(await self._reads.report(agent.workspace_id, ask, least), size)

    def _gathering(self, lanes: int) -> Gathering[Question, Read[Found]]:
        return Gathering(
            self._answered,
            batch_max=_BATCH_MAX,
            waiting_max=_WAITING_MAX,
            lanes=lanes,
            weigh=_weight,
            weight_max=_BATCH_MAX,
            waiting_weight_max=_WAITING_MAX,
        )

    async def _answered(self, questions: Sequence[Question]) -> Sequence[Answer]:
        try:
            return await self._answered_once(questions)
        except PastRewritten:
            await renew_epoch(self._pool)
        return await self._answered_once(questions)

    async def _answered_once(self, questions: Sequence[Question]) -> Sequence[Answer]:
        async with postgres.reading(self._pool, tuple({question.workspace_id for question in questions})) as connection:
            found = await connection.fetch(STATEMENTS["check_facts"], *_columns(questions))
        revision = rows.read(found[0], None).revision
        at = found[0]["at"]
        following = iter(found)
        answers: list[Answer] = []
        for question in questions:
            mine = list(islice(following, len(question.pairs)))
            if question.router is not None and mine and not mine[0]["registered"]:
                answers.append(RouterNotRegistered(question.router))
            else:
                answers.append(Read(Found([_facts(row) for row in mine], at), revision))
        return answers


def _weight(question: Question) -> int:
    return len(question.pairs)


def _columns(questions: Sequence[Question]) -> tuple[list[str], ...]:
    """Workspace, user, agent, router and its incarnation of each pair."""
    workspaces: list[str] = []
    users: list[str] = []
    agents: list[str] = []
    routers: list[str] = []
    incarnations: list[str] = []
    for workspace_id, pairs, router in questions:
        count = len(pairs)
        workspaces += [workspace_id] * count
        users += [pair[0] for pair in pairs]
        agents += [pair[1] for pair in pairs]
        routers += [router.router_id if router else ""] * count
        incarnations += [router.incarnation if router else ""] * count
    return workspaces, users, agents, routers, incarnations


def _facts(row: Record) -> Facts:
    # In the order of the statement; by name it would take three times as long, and there may be 500 of them.
    lives, suspended, role, user_suspended, agent_lives, agent_gone, granted, expires_at, at, _, _, _ = row
    return Facts(lives, suspended, _ROLES[role], user_suspended, agent_lives, agent_gone, granted, expires_at, at)


def _explanation(row: Record, key: GrantKey) -> Explanation:
    user_lives = row["role"] is not None and row["user_deleted_at"] is None
    agent_state = AgentState(row["agent_state"]) if row["agent_state"] else None
    grant = rows.grant(row, key) if row["granted_at"] else None
    facts = Facts(
        workspace_lives=row["workspace_state"] is not None and row["workspace_deleted_at"] is None,
        workspace_suspended=row["workspace_state"] == "suspended",
        role=_ROLES[row["role"]] if user_lives else None,
        user_suspended=row["user_state"] == "suspended",
        agent_lives=agent_state is not None and row["agent_deleted_at"] is None,
        agent_gone=agent_state is AgentState.GONE,
        granted=grant is not None,
        expires_at=grant.expires_at if grant else None,
        at=row["at"],
    )
    return Explanation(
        key=key,
        facts=facts,
        workspace_deleted_at=row["workspace_deleted_at"],
        role=_ROLES[row["role"]],
        user_deleted_at=row["user_deleted_at"],
        agent_state=agent_state,
        agent_deleted_at=row["agent_deleted_at"],
        grant=grant,
    )


def _reason(row: Record) -> Reason:
    return Reason.GRANT if row["by_grant"] else Reason.ROLE


def _usable_agent(row: Record) -> UsableAgent:
    return UsableAgent(row["agent_id"], row["display_name"], AgentState(row["state"]), _reason(row), row["expires_at"])


def _agent_user(row: Record) -> AgentUser:
    return AgentUser(row["user_id"], row["display_name"], Role(row["role"]), _reason(row), row["expires_at"])
