"""Permissions: which user was granted the use of which agent, by whom, until when. The rule that asks for them: `checks`."""

import enum
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import ClassVar, NamedTuple, Protocol

from twofold_chassis.refusals import FailedPrecondition, InvalidField, Reason, Refusal
from twofold_chassis.requests import Attempt
from twofold_registry.agents import AgentGone, AgentKey, AgentState, AgentUnknown
from twofold_registry.resources import Answer, Page
from twofold_registry.revisions import Revision
from twofold_registry.routers import Waited
from twofold_registry.users import UserKey, UserUnknown

BATCH_MAX = 500
_AHEAD_MAX = timedelta(days=36_500)


class GrantConditionFailed(FailedPrecondition):
    """There is a grant and there was to be none, or the reverse."""

    reason = Reason.REASON_GRANT_CONDITION


class AgentNotPublished(FailedPrecondition):
    """The agent is not published, and only one that is was to be granted."""

    reason = Reason.REASON_AGENT_NOT_PUBLISHED


class Pair(NamedTuple):
    """A user and an agent of a workspace that is known."""

    user_id: str
    agent_id: str


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

    def counts(self, at: datetime) -> bool:
        """Whether it has not expired."""
        return self.expires_at is None or self.expires_at > at


class Condition(enum.Enum):
    """What must be so with the grant of a pair before it is changed. One that has expired is none."""

    ANY = "any"
    ABSENT = "there must be none"
    PRESENT = "there must be one"


class Standing(NamedTuple):
    """What there is of a pair at one moment, read under the workspace's lock. `agent_state` is None if there is no agent."""

    user_lives: bool
    agent_state: AgentState | None
    grant: Grant | None
    at: datetime


@dataclass(frozen=True, slots=True)
class RevokeOrder:
    """One pair whose grant is to be taken away. `field` is the path of the item, up to the names of its fields."""

    key: GrantKey
    condition: Condition
    field: str

    def admit(self, standing: Standing) -> None:
        """Raises UserUnknown, AgentUnknown, GrantConditionFailed, each with the path of the field."""
        if not standing.user_lives:
            raise _of(f"{self.field}user_id", UserUnknown(self.key.user))
        if standing.agent_state is None:
            raise _of(f"{self.field}agent_id", AgentUnknown(self.key.agent))
        granted = standing.grant is not None and standing.grant.counts(standing.at)
        if self.condition is not Condition.ANY and granted is not (self.condition is Condition.PRESENT):
            told = f"of {self.key.user_id!r} and {self.key.agent_id!r}: {self.condition.value}"
            refusal = GrantConditionFailed(f"the grant {told}", granted=str(granted).lower())
            raise _of(f"{self.field}grant_condition", refusal)


@dataclass(frozen=True, slots=True)
class GrantOrder(RevokeOrder):
    """One pair to be granted, until `expires_at` if that is set."""

    expires_at: datetime | None
    only_published: bool

    def admit(self, standing: Standing) -> None:
        """Raises the same, and InvalidField (the expiry), AgentGone, AgentNotPublished."""
        RevokeOrder.admit(self, standing)
        if standing.agent_state is AgentState.GONE:
            raise _of(f"{self.field}agent_id", AgentGone(self.key.agent))
        if self.only_published and standing.agent_state is not AgentState.PUBLISHED:
            told = f"the agent {self.key.agent_id!r} is {standing.agent_state}"
            raise _of(f"{self.field}agent_condition", AgentNotPublished(told, agent_id=self.key.agent_id))
        self.check_expiry(standing.at)

    def check_expiry(self, at: datetime) -> None:
        """Raises InvalidField unless the grant, if it expires, does so in the future, and not in another life."""
        if self.expires_at is not None and not at < self.expires_at <= at + _AHEAD_MAX:
            raise InvalidField(f"{self.field}expire_time", f"must lie in the future, at most {_AHEAD_MAX.days} days ahead")


def _of(field: str, refusal: Refusal) -> Refusal:
    """The refusal, saying which item it is of."""
    refusal.metadata["field"] = field
    return refusal


class Granted(NamedTuple):
    """A grant as it stands, and whether it was changed."""

    grant: Grant
    changed: bool


@dataclass(frozen=True, slots=True)
class GrantQuery:
    """Which grants of a workspace to list: of one user, of one agent, or of all where they are empty."""

    workspace_id: str
    user_id: str | None
    agent_id: str | None


class RouterWait(Protocol):
    """Knows what routers may still answer."""

    async def until_all(self, revision: Revision) -> Waited:
        """Returns when no router answers from before this revision, which is committed."""
        ...


class Permissions(Protocol):
    """The grants that are kept. Orders are all of one workspace and of different pairs: all are done, or none."""

    async def grant(
        self, workspace_id: str, orders: Sequence[GrantOrder], attempt: Attempt, answer: Answer[Sequence[Granted]]
    ) -> bytes:
        """Raises WorkspaceUnknown, and what an order does not admit."""
        ...

    async def revoke(
        self,
        workspace_id: str,
        orders: Sequence[RevokeOrder],
        attempt: Attempt,
        answer: Answer[Sequence[bool]],
        *,
        wait: bool,
    ) -> bytes:
        """Answers of each whether there was a grant to take away. `wait`: routers shall acknowledge it.

        Raises WorkspaceUnknown, and what an order does not admit.
        """
        ...

    async def list(self, query: GrantQuery, after: tuple[str, str], size: int, least: Revision | None) -> Page[Grant]:
        """Up to `size` grants that count now and follow the pair of ids `after`.

        Raises WorkspaceUnknown, RevisionNotReached, HistoryChanged.
        """
        ...
