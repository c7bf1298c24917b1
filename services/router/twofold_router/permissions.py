"""Permissions: what the registry says of a user and an agent."""

from dataclasses import dataclass
from enum import Enum
from typing import Protocol

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


class Basis(Enum):
    """On what ground use is allowed."""

    GRANT = "grant"
    ROLE = "role"


@dataclass(frozen=True, slots=True)
class Verdict:
    """The registry's answer, read at the revision `stamp`. No basis: denied.

    `agent_unknown` is only set for users whose role implies use: they may know.
    """

    basis: Basis | None
    agent_unknown: bool
    stamp: bytes


class Permissions(Protocol):
    """The owner of the permissions."""

    async def check(self, agent: AgentKey, user_id: str, at_least: bytes) -> Verdict:
        """Whether the user may use the agent, at a revision at least as new as the token, if one is given."""
        ...
