"""Workspaces: the tenants. Everything else belongs to exactly one of them."""

import enum
from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar, NamedTuple, Protocol

from twofold_chassis.refusals import AlreadyExists, NotFound, Reason
from twofold_registry.resources import Resources

PLAN_DEFAULT = "default"


class WorkspaceUnknown(NotFound):
    """There is no such workspace, or it is deleted."""

    reason = Reason.REASON_WORKSPACE_UNKNOWN

    def __init__(self, workspace_id: str) -> None:
        super().__init__(f"no workspace {workspace_id!r}", workspace_id=workspace_id)


class WorkspaceExists(AlreadyExists):
    """The id is taken, by a deleted workspace too."""

    reason = Reason.REASON_WORKSPACE_EXISTS

    def __init__(self, workspace_id: str) -> None:
        super().__init__(f"the workspace id {workspace_id!r} is taken", workspace_id=workspace_id)


class WorkspaceState(enum.StrEnum):
    """Whether anything in the workspace may be used."""

    ACTIVE = "active"
    SUSPENDED = "suspended"


class LimitKind(enum.StrEnum):
    """What is limited: of whom, in which span, counted in what. Money is in micro-units."""

    USER_HOUR_MESSAGES = "user_hour_messages"
    USER_MINUTE_MESSAGES = "user_minute_messages"
    AGENT_HOUR_MESSAGES = "agent_hour_messages"
    WORKSPACE_DAY_MESSAGES = "workspace_day_messages"
    WORKSPACE_DAY_TOKENS = "workspace_day_tokens"
    WORKSPACE_DAY_MICROS = "workspace_day_micros"

    @property
    def is_of_users(self) -> bool:
        """Whether a single user can have a limit of their own."""
        return self in (LimitKind.USER_HOUR_MESSAGES, LimitKind.USER_MINUTE_MESSAGES)


class Limit(NamedTuple):
    """How much at most; 0 is no limit. A shadow is counted and told of, and refuses nobody."""

    kind: LimitKind
    amount: int
    is_shadow: bool


@dataclass(frozen=True, slots=True)
class Retention:
    """How many days something is kept; 0 is for ever."""

    conversation_days: int = 0
    session_days: int = 0


KEPT_FOR_EVER = Retention()


@dataclass(frozen=True, slots=True)
class WorkspaceSettings:
    """The rules a workspace sets for itself."""

    limits: tuple[Limit, ...] = ()
    allowed_url_suffixes: tuple[str, ...] = ()
    retention: Retention = KEPT_FOR_EVER


class WorkspaceKey(NamedTuple):
    """Which workspace."""

    workspace_id: str


@dataclass(frozen=True, slots=True)
class Workspace:
    """A tenant. `namespace` is empty where its agents do not run in Kubernetes."""

    kind: ClassVar[str] = "workspace"

    workspace_id: str
    display_name: str
    namespace: str
    plan: str
    state: WorkspaceState
    settings: WorkspaceSettings

    @property
    def path(self) -> tuple[str, ...]:
        return (self.workspace_id,)

    def allows_as(self, other: "Workspace") -> bool:
        """Whether what may be used up is the same in both."""
        return (self.plan, self.settings.limits) == (other.plan, other.settings.limits)


class WorkspaceFilters(NamedTuple):
    """Which workspaces to list; None lets all pass."""

    state: str | None
    plan: str | None
    display_name_prefix: str | None


class Workspaces(Resources[Workspace], Protocol):
    """The workspaces that are kept.

    Raises WorkspaceUnknown; a creation WorkspaceExists. What is in a deleted one is hidden with it, and shown again with it.
    """


def sorted_limits(limits: Iterable[Limit]) -> tuple[Limit, ...]:
    """In one order, so that the same limits are the same value."""
    return tuple(sorted(limits))
