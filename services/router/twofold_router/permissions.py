"""Permissions: what the registry says of a user and an agent."""

from enum import StrEnum
from typing import NamedTuple

from twofold_chassis.refusals import PermissionDenied
from twofold_router.routes import AgentKey


class NotPermitted(PermissionDenied):
    """The user may not use this agent; the same words for an agent, user or workspace that does not exist."""

    def __init__(self, agent: AgentKey, user_id: str) -> None:
        super().__init__(
            f"user {user_id!r} may not use agent {agent.agent_id!r}",
            workspace_id=agent.workspace_id,
            user_id=user_id,
            agent_id=agent.agent_id,
        )


class PairKey(NamedTuple):
    """Which user and which agent."""

    workspace_id: str
    user_id: str
    agent_id: str


class Verdict(StrEnum):
    """The registry's answer. The last two are told only to whom they may be told."""

    GRANT = "grant"
    ROLE = "role"
    DENIED = "denied"
    AGENT_UNKNOWN = "agent_unknown"
    AGENT_GONE = "agent_gone"


class Permission(NamedTuple):
    """The answer, and when it ends, if it does by itself: seconds since 1970 by the database's clock."""

    verdict: Verdict
    ends_s: float | None = None

    def at(self, database_s: float) -> Verdict:
        """What it says when the database's clock shows at most this."""
        ended = self.ends_s is not None and self.ends_s <= database_s
        return Verdict.DENIED if ended else self.verdict
