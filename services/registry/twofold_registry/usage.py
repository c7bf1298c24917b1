"""Usage: every billable event, counted once for ever."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol

from twofold_chassis.refusals import AlreadyExists, Reason


class EventReused(AlreadyExists):
    """The event id stands for another body already."""

    reason = Reason.REASON_EVENT_REUSED

    def __init__(self, workspace_id: str, event_id: str) -> None:
        super().__init__(
            f"the usage event {event_id!r} was recorded with another body", workspace_id=workspace_id, event_id=event_id
        )


@dataclass(frozen=True, slots=True)
class Event:
    """One billable event."""

    event_id: str
    user_id: str
    agent_id: str
    thread_id: str
    at: datetime
    messages: int
    input_tokens: int
    output_tokens: int

    def body_hash(self) -> bytes:
        """Alike for the same body. Made of values, not of wire bytes, because it is compared for ever."""
        values = (
            self.user_id,
            self.agent_id,
            self.thread_id,
            self.at.isoformat(timespec="microseconds"),
            self.messages,
            self.input_tokens,
            self.output_tokens,
        )
        return hashlib.sha256(json.dumps(values).encode()).digest()


def distinct(workspace_id: str, events: Sequence[Event]) -> dict[str, tuple[Event, bytes]]:
    """The events of a batch by id, each once, with their body's hash. Raises EventReused."""
    found: dict[str, tuple[Event, bytes]] = {}
    for event in events:
        body = event.body_hash()
        if found.setdefault(event.event_id, (event, body))[1] != body:
            raise EventReused(workspace_id, event.event_id)
    return found


@dataclass(frozen=True, slots=True)
class UsageQuery:
    """Which events to sum: from `start` on, before `end`."""

    workspace_id: str
    start: datetime
    end: datetime
    user_id: str | None
    agent_id: str | None


@dataclass(frozen=True, slots=True)
class Totals:
    """Sums over events."""

    events: int
    messages: int
    input_tokens: int
    output_tokens: int


class Usage(Protocol):
    """The events that are kept."""

    async def record(self, workspace_id: str, events: Sequence[Event]) -> Sequence[bool]:
        """Keeps all events or none; says of each whether it was kept before. Raises WorkspaceUnknown, EventReused."""
        ...

    async def totals(self, query: UsageQuery) -> Totals:
        """Raises WorkspaceUnknown."""
        ...
