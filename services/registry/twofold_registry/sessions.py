"""The history of sessions: what became of them, whoever tells it, in whatever order, however often."""

import enum
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import NamedTuple, Protocol

from twofold_registry.pods import Incarnation
from twofold_registry.resources import Page
from twofold_registry.revisions import Revision


class CloseReason(enum.IntEnum):
    """Why a pod holds a session no longer. The numbers are kept."""

    CLIENT_LEFT = 1
    REVOKED = 2
    POD_DEAD = 3
    IDLE = 4
    TAKEN_OVER = 5
    DRAINED = 6
    CLOSED_BY_OTHERS = 7
    ERROR = 8


class Tenure(NamedTuple):
    """A session while one pod held it. Each taking over has a higher fence."""

    session_id: str
    fence: int


class Holding(NamedTuple):
    """Whose session it is, where it leads to, and who holds it: the same for all that is told of a tenure."""

    user_id: str
    agent_id: str
    pod_id: str
    incarnation: Incarnation


class Closing(NamedTuple):
    """When and why it was closed. Of two, the lesser one counts."""

    at: datetime
    reason: CloseReason


@dataclass(frozen=True, slots=True)
class Session:
    """What is known of a tenure: its opening, its closing, or both."""

    tenure: Tenure
    holding: Holding
    opened_at: datetime | None = None
    closing: Closing | None = None

    def __post_init__(self) -> None:
        assert self.opened_at is not None or self.closing is not None

    @property
    def began_at(self) -> datetime:
        """Its place in lists."""
        if self.opened_at is not None:
            return self.opened_at
        assert self.closing is not None
        return self.closing.at

    def joined(self, other: "Session") -> "Session":
        """All that is known of the tenure by either: the same in whatever order and however often things are joined."""
        openings = [told.opened_at for told in (self, other) if told.opened_at is not None]
        closings = [told.closing for told in (self, other) if told.closing is not None]
        return Session(self.tenure, self.holding, min(openings, default=None), min(closings, default=None))


@dataclass(frozen=True, slots=True)
class SessionQuery:
    """Which sessions of a workspace to list."""

    workspace_id: str
    user_id: str | None
    agent_id: str | None
    pod_id: str | None
    open_only: bool
    start: datetime | None
    end: datetime | None


class Place(NamedTuple):
    """Where a session stands in a list: later ones come first."""

    began_at: datetime
    session_id: str
    fence: int


class Sessions(Protocol):
    """The sessions that are kept."""

    async def record(self, workspace_id: str, told: Sequence[Session]) -> Sequence[int]:
        """Joins what is told, each an opening or a closing, to what is known.

        Answers the places of those that were not kept, as the tenure has another holding. Raises WorkspaceUnknown.
        """
        ...

    async def list(self, query: SessionQuery, before: Place | None, size: int, least: Revision | None) -> Page[Session]:
        """Up to `size` sessions that began before `before`. Raises WorkspaceUnknown, RevisionNotReached, HistoryChanged."""
        ...
