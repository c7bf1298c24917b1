"""Usage: every billable event, counted once for ever."""

import enum
import hashlib
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import lru_cache
from json.encoder import encode_basestring_ascii as _quoted
from typing import NamedTuple, Protocol

from twofold_chassis.prices import Price, cost_micros
from twofold_chassis.refusals import AlreadyExists, InvalidField, Reason, ResourceExhausted
from twofold_registry import months
from twofold_registry.prices import COST_MAX, Money
from twofold_registry.resources import Page
from twofold_registry.revisions import Revision

TURN = "turn"
"""The kind of an event that has not said which."""


class EventReused(AlreadyExists):
    """The event id stands for another body already."""

    reason = Reason.REASON_EVENT_REUSED

    def __init__(self, workspace_id: str, event_id: str) -> None:
        super().__init__(
            f"the usage event {event_id!r} was recorded with another body", workspace_id=workspace_id, event_id=event_id
        )


class WindowTooLarge(ResourceExhausted):
    """More was used than one window tells."""

    reason = Reason.REASON_TOO_MANY


class Event(NamedTuple):
    """One billable event. A tuple, as hundreds are made for one call: in a third of the time of a frozen dataclass."""

    event_id: str
    user_id: str
    agent_id: str
    thread_id: str
    kind: str
    at: datetime
    messages: int
    input_tokens: int
    output_tokens: int

    def body_hash(self) -> bytes:
        """Alike for the same body. Made of values, not of wire bytes, because it is compared for ever.

        It is of a JSON array. The usual kind is left out: events were recorded before there were kinds.
        """
        begin, end = _around(self.user_id, self.agent_id, self.thread_id, self.kind)
        at = self.at.isoformat(timespec="microseconds")
        body = f'{begin}"{at}", {self.messages}, {self.input_tokens}, {self.output_tokens}{end}'
        return hashlib.sha256(body.encode()).digest()

    def cost_micros(self, price: Price) -> int:
        """What it costs at a price."""
        return cost_micros(price, self.messages, self.input_tokens, self.output_tokens)


@lru_cache(maxsize=4096)
def _around(user_id: str, agent_id: str, thread_id: str, kind: str) -> tuple[str, str]:
    """What of a body's array stands before its numbers and after them. By hand: json.dumps takes several times as long."""
    begin = f"[{_quoted(user_id)}, {_quoted(agent_id)}, {_quoted(thread_id)}, "
    return begin, "]" if kind == TURN else f", {_quoted(kind)}]"


def distinct(workspace_id: str, events: Sequence[Event]) -> dict[str, tuple[Event, bytes]]:
    """The events of a batch by id, each once, with their body's hash. Raises EventReused."""
    found: dict[str, tuple[Event, bytes]] = {}
    for event in events:
        body = event.body_hash()
        if found.setdefault(event.event_id, (event, body))[1] != body:
            raise EventReused(workspace_id, event.event_id)
    return found


class TooExpensive(InvalidField):
    """An event costs more than can be counted; it is named by its place in the batch."""

    def __init__(self, index: int, cost_micros: int) -> None:
        problem = f"costs {cost_micros} micros at its agent's price, at most {COST_MAX} can be counted"
        super().__init__(f"events[{index}]", problem)


class Group(enum.StrEnum):
    """By what usage is summed."""

    ALL = ""
    USER = "user"
    AGENT = "agent"
    KIND = "kind"
    DAY = "day"
    MONTH = "month"


@dataclass(frozen=True, slots=True)
class UsageQuery:
    """Which events to sum: from `start` on, before `end`."""

    workspace_id: str
    start: datetime
    end: datetime
    user_id: str | None
    agent_id: str | None
    kind: str | None
    group: Group = Group.ALL

    @property
    def is_of_whole_months(self) -> bool:
        """Whether the sums that are kept by month can answer it."""
        return months.is_begin(self.start) and months.is_begin(self.end) and self.group is not Group.DAY


@dataclass(frozen=True, slots=True)
class Totals:
    """Sums over events."""

    events: int
    messages: int
    input_tokens: int
    output_tokens: int
    costs: Sequence[Money] = ()


@dataclass(frozen=True, slots=True)
class Grouped:
    """The sums of one group."""

    name: str
    totals: Totals


@dataclass(frozen=True, slots=True)
class WindowQuery:
    """What was used from `start` on, the begin of a cell; and operations from `operations_from` on.

    `by_user`, `by_agent`: whether cells are apart by these.
    """

    workspace_id: str
    start: datetime
    cell: timedelta
    operations_from: datetime
    by_user: bool = True
    by_agent: bool = True


@dataclass(frozen=True, slots=True)
class Cell:
    """What one user used of one agent in one currency, in one cell of time; nobody is named where it is of all."""

    start: datetime
    user_id: str
    agent_id: str
    events: int
    messages: int
    input_tokens: int
    output_tokens: int
    cost: Money


@dataclass(frozen=True, slots=True)
class Operation:
    """One that is recorded, and when its first event happened."""

    operation_id: str
    at: datetime


@dataclass(frozen=True, slots=True)
class Window:
    """A part of a window: some of its cells, or some of its operations."""

    cells: Sequence[Cell]
    operations: Sequence[Operation]
    read_at: datetime


class Usage(Protocol):
    """The events that are kept."""

    async def record(self, workspace_id: str, events: Sequence[Event]) -> Sequence[bool]:
        """Keeps all events or none; says of each whether it was kept before.

        Raises WorkspaceUnknown, EventReused, InvalidField (one costs too much).
        """
        ...

    async def totals(self, query: UsageQuery, least: Revision | None) -> Totals:
        """Raises WorkspaceUnknown, RevisionNotReached, HistoryChanged."""
        ...

    async def grouped(self, query: UsageQuery, after: str, size: int, least: Revision | None) -> Page[Grouped]:
        """Up to `size` groups after one, by name ascending. Raises WorkspaceUnknown, RevisionNotReached, HistoryChanged."""
        ...

    def window(self, query: WindowQuery) -> AsyncGenerator[Window]:
        """All of it as of one moment, part by part; at least one. Raises WorkspaceUnknown, WindowTooLarge, Overloaded."""
        ...
