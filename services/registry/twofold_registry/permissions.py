"""Permissions: which user may use which agent.

The rule: a user may use an agent iff workspace, user and agent exist and are not deleted, and the user's role implies use
or there is a grant for the pair that has not expired.
"""

import enum
from dataclasses import dataclass
from datetime import datetime
from typing import ClassVar, Protocol

from twofold_chassis.refusals import InvalidField
from twofold_chassis.requests import Attempt
from twofold_registry.agents import AgentKey
from twofold_registry.resources import Answer, Page, Read
from twofold_registry.revisions import Revision
from twofold_registry.users import Role, UserKey


@dataclass(frozen=True, slots=True)
class GrantKey:
    """Which pair of a user and an agent."""

    workspace_id: str
    user_id: str
    agent_id: str

    @property
    def user(self) -> UserKey:
        return UserKey(self.workspace_id, self.user_id)

    @property
    def agent(self) -> AgentKey:
        return AgentKey(self.workspace_id, self.agent_id)

    @property
    def audited_id(self) -> str:
        """The pair as one id, from which both can be read again."""
        return f"{_escaped(self.user_id)}/{_escaped(self.agent_id)}"


def _escaped(value: str) -> str:
    return value.replace("%", "%25").replace("/", "%2F")


@dataclass(frozen=True, slots=True)
class Grant:
    """A user may use an agent, until `expires_at` if that is set."""

    kind: ClassVar[str] = "permission"

    key: GrantKey
    expires_at: datetime | None
    granted_by: str
    granted_at: datetime

    def __post_init__(self) -> None:
        if self.expires_at is not None and self.expires_at <= self.granted_at:
            raise InvalidField("grant.expire_time", "must lie in the future")


class Reason(enum.Enum):
    """Why a check is answered as it is."""

    GRANT = "there is a grant"
    ROLE = "the role implies use"
    NO_GRANT = "there is no grant"
    EXPIRED = "the grant has expired"
    WORKSPACE_UNKNOWN = "no such workspace"
    USER_UNKNOWN = "no such user"
    AGENT_UNKNOWN = "no such agent"


@dataclass(frozen=True, slots=True)
class Facts:
    """All that the rule asks, as it was at one moment. `role` is None where there is no such user."""

    workspace_lives: bool
    role: Role | None
    agent_lives: bool
    granted: bool
    expires_at: datetime | None
    at: datetime


@dataclass(frozen=True, slots=True)
class Verdict:
    """The answer of a check; `expires_at` is set where it will change by itself."""

    reason: Reason
    expires_at: datetime | None = None

    @property
    def allowed(self) -> bool:
        return self.reason in (Reason.GRANT, Reason.ROLE)


def judge(facts: Facts) -> Verdict:
    """The rule. To whom nothing is granted, a missing agent looks like one that was not granted."""
    if not facts.workspace_lives:
        return Verdict(Reason.WORKSPACE_UNKNOWN)
    if facts.role is None:
        return Verdict(Reason.USER_UNKNOWN)
    if facts.role.implies_use:
        return Verdict(Reason.ROLE if facts.agent_lives else Reason.AGENT_UNKNOWN)
    if not facts.agent_lives or not facts.granted:
        return Verdict(Reason.NO_GRANT)
    if facts.expires_at is not None and facts.expires_at <= facts.at:
        return Verdict(Reason.EXPIRED)
    return Verdict(Reason.GRANT, facts.expires_at)


@dataclass(frozen=True, slots=True)
class GrantQuery:
    """Which grants of a workspace to list: of one user, of one agent, or of all where they are empty."""

    workspace_id: str
    user_id: str | None
    agent_id: str | None


class Permissions(Protocol):
    """The grants that are kept, and the facts that the rule asks."""

    async def grant(self, key: GrantKey, expires_at: datetime | None, attempt: Attempt, answer: Answer[Grant]) -> bytes:
        """Raises WorkspaceUnknown, UserUnknown, AgentUnknown, InvalidField (the expiry is past)."""
        ...

    async def revoke(self, key: GrantKey, attempt: Attempt, answer: Answer[bool]) -> bytes:
        """Answers whether there was a grant to take away. Raises WorkspaceUnknown, UserUnknown, AgentUnknown."""
        ...

    async def facts(self, key: GrantKey, least: Revision | None) -> Read[Facts]:
        """What the rule asks, not older than `least`. Raises RevisionNotReached, HistoryChanged."""
        ...

    async def list(self, query: GrantQuery, after: tuple[str, str], size: int) -> Page[Grant]:
        """Up to `size` grants that count now and follow the pair of ids `after`. Raises WorkspaceUnknown."""
        ...
