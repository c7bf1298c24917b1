"""What was true when: all changes of a workspace, read from Postgres around the services, and what they made of pairs."""

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import asyncpg

from benchmarks.chaos.control.history import FOREVER, Change, Pair, Route, State, Verdict
from twofold.registry.v1 import agent_pb2, permission_pb2, user_pb2, workspace_pb2
from twofold_chassis.clocks import boot_s

# Two clocks are read one after the other.
_CLOCKS_S = 0.005
_IMPLIES_USE = (user_pb2.ROLE_OWNER, user_pb2.ROLE_ADMIN)

_HEAD = "SELECT epoch, revision FROM registry.registry_head"
_CHANGES = """
    SELECT revision, extract(epoch FROM at)::float8 AS at_s, workspace_id, kind, user_id, agent_id, after
    FROM (SELECT * FROM registry.changes UNION ALL SELECT * FROM chaos_archive) AS c ORDER BY revision, ordinal
"""


class Head(NamedTuple):
    """How far the history had come."""

    epoch: int
    revision: int


class Row(NamedTuple):
    """One thing that a revision changed."""

    revision: int
    at: float
    workspace: str
    kind: str
    user: str
    agent: str
    after: bytes | None


async def rows(connection: "asyncpg.Connection[Any]") -> tuple[Head, Sequence[Row]]:
    """All changes there ever were, oldest first, and the head."""
    async with connection.transaction(isolation="repeatable_read", readonly=True):
        head = await connection.fetchrow(_HEAD)
        found = await connection.fetch(_CHANGES)
    assert head is not None
    ahead = time.time() - boot_s()
    return Head(*head), [Row(row[0], row[1] - ahead - _CLOCKS_S, *row[2:]) for row in found]


def states_at(rows: Iterable[Row], workspace: str, pairs: Sequence[Pair], revision: int) -> dict[Pair, State]:
    """What was so of all pairs behind this revision."""
    facts = _Facts()
    for row in rows:
        if row.workspace == workspace and row.revision <= revision:
            facts.take(row)
    return {pair: facts.state(pair) for pair in pairs}


def changes_after(rows: Sequence[Row], workspace: str, pairs: Sequence[Pair], revision: int) -> Iterator[Change]:
    """The changes behind this revision, each with the states that it changed."""
    facts = _Facts()
    known: Mapping[Pair, State] = {}
    begun = False
    for number, things in _by_revision(rows):
        if number > revision and not begun:
            known, begun = {pair: facts.state(pair) for pair in pairs}, True
        for row in things:
            if row.workspace == workspace:
                facts.take(row)
        if begun:
            now = {pair: facts.state(pair) for pair in pairs}
            yield Change(number, things[0].at, {pair: state for pair, state in now.items() if state != known[pair]})
            known = now


def _by_revision(rows: Sequence[Row]) -> Iterator[tuple[int, Sequence[Row]]]:
    found: dict[int, list[Row]] = {}
    for row in rows:
        found.setdefault(row.revision, []).append(row)
    yield from found.items()


@dataclass
class _Facts:
    """All that the rule asks, of one workspace."""

    workspace: workspace_pb2.Workspace | None = None
    users: dict[str, user_pb2.User | None] = field(default_factory=dict)
    agents: dict[str, agent_pb2.Agent | None] = field(default_factory=dict)
    grants: dict[Pair, permission_pb2.AgentGrant | None] = field(default_factory=dict)
    ahead: float = field(default_factory=lambda: time.time() - boot_s())

    def take(self, row: Row) -> None:
        after = row.after
        match row.kind:
            case "workspace":
                self.workspace = workspace_pb2.Workspace.FromString(after) if after is not None else None
            case "user":
                self.users[row.user] = user_pb2.User.FromString(after) if after is not None else None
            case "agent" | "route":
                self.agents[row.agent] = agent_pb2.Agent.FromString(after) if after is not None else None
            case "permission":
                grant = permission_pb2.AgentGrant.FromString(after) if after is not None else None
                self.grants[Pair(row.user, row.agent)] = grant

    def state(self, pair: Pair) -> State:
        agent, grant = self.agents.get(pair.agent), self.grants.get(pair)
        verdict = self._verdict(pair)
        ends = FOREVER
        if verdict is Verdict.GRANT and grant is not None and grant.HasField("expire_time"):
            ends = grant.expire_time.ToNanoseconds() / 1e9 - self.ahead
        if agent is None:
            return State(verdict, ends, None)
        published = agent.state == agent_pb2.AGENT_STATE_PUBLISHED
        return State(verdict, ends, Route(agent.url, published, agent.state == agent_pb2.AGENT_STATE_GONE))

    def _verdict(self, pair: Pair) -> Verdict:
        """The rule of the contract, told once more: what it says of itself is not believed here."""
        workspace, user, agent = self.workspace, self.users.get(pair.user), self.agents.get(pair.agent)
        if workspace is None or workspace.state == workspace_pb2.WORKSPACE_STATE_SUSPENDED:
            return Verdict.DENIED
        if user is None or user.state == user_pb2.USER_STATE_SUSPENDED:
            return Verdict.DENIED
        gone = agent is not None and agent.state == agent_pb2.AGENT_STATE_GONE
        if user.role in _IMPLIES_USE:
            return Verdict.AGENT_UNKNOWN if agent is None else Verdict.AGENT_GONE if gone else Verdict.ROLE
        if agent is None or self.grants.get(pair) is None:
            return Verdict.DENIED
        return Verdict.AGENT_GONE if gone else Verdict.GRANT
