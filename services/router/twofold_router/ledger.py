"""The ledger: what a turn used, recorded once."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol

from twofold_router.agents import Usage
from twofold_router.conversations import TurnKey


@dataclass(frozen=True, slots=True)
class UsageEvent:
    """One turn's use of an agent. A retry must arrive at the very same event: it has the same id."""

    event_id: str
    workspace_id: str
    user_id: str
    agent_id: str
    thread_id: str | None
    event_time: datetime
    usage: Usage


@dataclass(frozen=True, slots=True)
class Owed:
    """An event that the ledger may not know yet. `turn` is where memory keeps it; None if nobody else does."""

    event: UsageEvent
    turn: TurnKey | None


class Ledger(Protocol):
    """The owner of the usage."""

    async def record(self, workspace_id: str, events: Sequence[UsageEvent]) -> None:
        """Records the events of a workspace, all or none; the same once more count once."""
        ...
