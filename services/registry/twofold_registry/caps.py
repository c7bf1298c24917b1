"""Caps: what a workspace may use in a month before somebody is warned, and before routers stop."""

import enum
from dataclasses import dataclass
from datetime import date, datetime
from typing import ClassVar, Protocol

from twofold_chassis.prices import CURRENCY_DEFAULT
from twofold_chassis.refusals import EtagMismatch
from twofold_chassis.requests import Attempt
from twofold_registry.resources import Answer, Read
from twofold_registry.revisions import Revision, etag


class CapState(enum.StrEnum):
    """How a month stands to its caps."""

    NONE = "none"
    SOFT = "soft"
    HARD = "hard"


@dataclass(frozen=True, slots=True)
class Cap:
    """From `soft` on a warning, from `hard` on a stop; 0 where there is none."""

    soft: int = 0
    hard: int = 0

    def state(self, used: int) -> CapState:
        """How this much stands to it."""
        if self.hard and used >= self.hard:
            return CapState.HARD
        return CapState.SOFT if self.soft and used >= self.soft else CapState.NONE


@dataclass(frozen=True, slots=True)
class Used:
    """What counts of the current month. `cost_micros` is in the currency of the caps."""

    month: date
    messages: int = 0
    tokens: int = 0
    cost_micros: int = 0


@dataclass(frozen=True, slots=True)
class Caps:
    """The caps of a workspace, for each month anew."""

    kind: ClassVar[str] = "caps"

    workspace_id: str
    messages: Cap = Cap()
    tokens: Cap = Cap()
    cost_micros: Cap = Cap()
    currency: str = CURRENCY_DEFAULT

    def state(self, used: Used) -> CapState:
        """The worst of the three."""
        states = (
            self.messages.state(used.messages),
            self.tokens.state(used.tokens),
            self.cost_micros.state(used.cost_micros),
        )
        return max(states, key=list(CapState).index)


@dataclass(frozen=True, slots=True)
class Told:
    """What those who follow the changes were told last: the state, and of which month."""

    state: CapState
    month: date

    def is_crossed_by(self, state: CapState, month: date) -> bool:
        """Whether they are to be told. Never of a month that is over, by one who comes late.

        In a later month also that it is as before: what they were told was of the earlier one, and ended with it.
        """
        if month > self.month:
            return {self.state, state} != {CapState.NONE}
        return month == self.month and state is not self.state


@dataclass(frozen=True, slots=True)
class StoredCaps:
    """Caps as they are kept, and how the current month stands. `told` and `set_at` are None while nothing was ever set."""

    caps: Caps
    used: Used
    told: Told | None = None
    set_at: datetime | None = None
    revision: int = 0

    @property
    def state(self) -> CapState:
        """How the current month stands."""
        return self.caps.state(self.used)

    @property
    def told_state(self) -> CapState:
        """What those who follow the changes believe."""
        return CapState.NONE if self.told is None else self.told.state

    @property
    def is_crossed(self) -> bool:
        """Whether those who follow the changes do not know how it stands."""
        return self.told is not None and self.told.is_crossed_by(self.state, self.used.month)

    @property
    def etag(self) -> str:
        """The version of what was set; empty while nothing was."""
        if self.set_at is None:
            return ""
        return etag(Caps.kind, self.caps.workspace_id, revision=self.revision, at=self.set_at)

    def expect(self, given: str) -> None:
        """Refuses if the caller gave an etag and it is not the current one."""
        if given and given != self.etag:
            raise EtagMismatch("the caps were changed by somebody else; read them again, then decide")


class UsageCaps(Protocol):
    """The caps that are kept."""

    async def get(self, workspace_id: str, least: Revision | None) -> Read[StoredCaps]:
        """Not older than `least`. Raises WorkspaceUnknown, RevisionNotReached, HistoryChanged."""
        ...

    async def set(self, caps: Caps, etag: str, attempt: Attempt, answer: Answer[StoredCaps]) -> bytes:
        """Raises WorkspaceUnknown, EtagMismatch, RequestReused."""
        ...
