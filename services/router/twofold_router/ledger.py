"""The ledger: what a turn used, recorded once."""

from dataclasses import dataclass
from datetime import datetime
from typing import Protocol

from twofold_router.agents import Usage


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


class Ledger(Protocol):
    """The owner of the usage."""

    async def record(self, event: UsageEvent) -> None:
        """Records the event; the same one again counts once."""
        ...
