"""Checks: whether a user may use an agent and why, which agents a user may use, and who may use an agent.

The rule: a user may use an agent iff the workspace exists and is not suspended, the user exists and is not suspended, the
agent exists and is not gone, and the user's role implies use or there is a grant for the pair that has not expired.
"""

import enum
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import NamedTuple, Protocol

from twofold_chassis.refusals import FailedPrecondition
from twofold_chassis.refusals import Reason as RefusalReason
from twofold_registry.agents import AgentKey, AgentState
from twofold_registry.permissions import Grant, GrantKey, Pair
from twofold_registry.resources import Page, Read
from twofold_registry.revisions import Revision
from twofold_registry.routers import RouterKey
from twofold_registry.users import Role, UserKey


class RouterNotRegistered(FailedPrecondition):
    """The router that asks is not registered: a revoke would not wait for it."""

    reason = RefusalReason.REASON_ROUTER_NOT_REGISTERED

    def __init__(self, router: RouterKey) -> None:
        told = f"the router {router.router_id!r} is not registered as {router.incarnation!r}"
        super().__init__(told, router_id=router.router_id, router_incarnation=router.incarnation)


class Reason(enum.Enum):
    """Why a check is answered as it is."""

    GRANT = "there is a grant"
    ROLE = "the role implies use"
    NO_GRANT = "there is no grant"
    EXPIRED = "the grant has expired"
    WORKSPACE_UNKNOWN = "no such workspace"
    WORKSPACE_SUSPENDED = "the workspace is suspended"
    USER_UNKNOWN = "no such user"
    USER_SUSPENDED = "the user is suspended"
    AGENT_UNKNOWN = "no such agent"
    AGENT_GONE = "the agent is gone"


class Facts(NamedTuple):
    """All that the rule asks, as it was at one moment. `role` is None where there is no such user."""

    workspace_lives: bool
    workspace_suspended: bool
    role: Role | None
    user_suspended: bool
    agent_lives: bool
    agent_gone: bool
    granted: bool
    expires_at: datetime | None
    at: datetime


class Verdict(NamedTuple):
    """The answer of a check; `expires_at` is set where it will change by itself."""

    allowed: bool
    reason: Reason
    expires_at: datetime | None = None


_ALLOWED_BY_ROLE = Verdict(True, Reason.ROLE)
_DENIED = {reason: Verdict(False, reason) for reason in Reason}


def judge(facts: Facts) -> Verdict:
    """The rule. To whom nothing is granted, a missing agent looks like one that was not granted."""
    if not facts.workspace_lives:
        return _DENIED[Reason.WORKSPACE_UNKNOWN]
    if facts.workspace_suspended:
        return _DENIED[Reason.WORKSPACE_SUSPENDED]
    if facts.role is None:
        return _DENIED[Reason.USER_UNKNOWN]
    if facts.user_suspended:
        return _DENIED[Reason.USER_SUSPENDED]
    if facts.role.implies_use:
        if not facts.agent_lives:
            return _DENIED[Reason.AGENT_UNKNOWN]
        return _DENIED[Reason.AGENT_GONE] if facts.agent_gone else _ALLOWED_BY_ROLE
    if not facts.agent_lives or not facts.granted:
        return _DENIED[Reason.NO_GRANT]
    if facts.expires_at is not None and facts.expires_at <= facts.at:
        return _DENIED[Reason.EXPIRED]
    if facts.agent_gone:
        return _DENIED[Reason.AGENT_GONE]
    return Verdict(True, Reason.GRANT, facts.expires_at)


class Question(NamedTuple):
    """What is asked in one check: for all pairs at once. `router`: who will keep the answer, if that is a router."""

    workspace_id: str
    pairs: Sequence[Pair]
    router: RouterKey | None


class Found(NamedTuple):
    """The facts of each pair of a question, all as they were at one moment."""

    facts: Sequence[Facts]
    at: datetime


@dataclass(frozen=True, slots=True)
class Explanation:
    """A check with everything that it rests on, also what does not count."""

    key: GrantKey
    facts: Facts
    workspace_deleted_at: datetime | None
    role: Role | None
    """That of a deleted user too."""
    user_deleted_at: datetime | None
    agent_state: AgentState | None
    """That of a deleted agent too."""
    agent_deleted_at: datetime | None
    grant: Grant | None

    @property
    def sentence(self) -> str:
        """The answer for people."""
        verdict = judge(self.facts)
        user, agent = f"{self.key.user_id!r}", f"{self.key.agent_id!r}"
        return f"{user} {'may' if verdict.allowed else 'may not'} use {agent}: {self._because(verdict.reason)}."

    def _because(self, reason: Reason) -> str:
        grant, role = self.grant, self.role
        match reason:
            case Reason.GRANT if grant is not None:
                until = f" until {_told(grant.expires_at)}" if grant.expires_at else ", without an end"
                return f"{grant.granted_by!r} granted it on {_told(grant.granted_at)}{until}"
            case Reason.ROLE if role is not None:
                return f"the role {role.value} implies the use of every agent of the workspace"
            case Reason.NO_GRANT if not self.facts.agent_lives:
                return f"there is no such agent{_since(self.agent_deleted_at)}"
            case Reason.NO_GRANT if role is not None:
                return f"there is no grant, and the role {role.value} does not imply use"
            case Reason.EXPIRED if grant is not None and grant.expires_at is not None:
                return f"the grant expired on {_told(grant.expires_at)}"
            case Reason.WORKSPACE_UNKNOWN:
                return f"{reason.value}{_since(self.workspace_deleted_at)}"
            case Reason.USER_UNKNOWN:
                return f"{reason.value}{_since(self.user_deleted_at)}"
            case Reason.AGENT_UNKNOWN:
                return f"{reason.value}{_since(self.agent_deleted_at)}"
            case _:
                return str(reason.value)


def _told(at: datetime) -> str:
    return at.isoformat(timespec="seconds")


def _since(deleted_at: datetime | None) -> str:
    return f" (deleted on {_told(deleted_at)})" if deleted_at else ""


class UsableAgent(NamedTuple):
    """An agent that a user may use, and why."""

    agent_id: str
    display_name: str
    state: AgentState
    reason: Reason
    expires_at: datetime | None


class AgentUser(NamedTuple):
    """A user who may use an agent, and why."""

    user_id: str
    display_name: str
    role: Role
    reason: Reason
    expires_at: datetime | None


class Checks(Protocol):
    """The facts that the rule asks. All methods raise RevisionNotReached and HistoryChanged if `least` is not reached."""

    async def ask(self, question: Question, least: Revision | None) -> Read[Found]:
        """The facts of all pairs, at one revision. Raises RouterNotRegistered."""
        ...

    async def explain(self, key: GrantKey, least: Revision | None) -> Read[Explanation]:
        """The facts of one pair and what else is known of it."""
        ...

    async def usable_agents(self, user: UserKey, after: str, size: int, least: Revision | None) -> Page[UsableAgent]:
        """Up to `size` agents that the user may use and whose ids follow `after`. Raises UserUnknown."""
        ...

    async def users_of(self, agent: AgentKey, after: str, size: int, least: Revision | None) -> Page[AgentUser]:
        """Up to `size` users who may use the agent and whose ids follow `after`. Raises AgentUnknown."""
        ...
