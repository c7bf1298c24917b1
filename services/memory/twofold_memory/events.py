"""Events: what happened to a conversation, numbered without gaps in order of commit, for those who follow it."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

EVENTS_AT_ONCE_MAX = 100
PAYLOAD_BYTES_MAX = 64 * 1024
EVENTS_BYTES_MAX = 3 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class NewEvent:
    """Something to be kept in the log. The payload is the writer's own affair; of the service's own events it is JSON."""

    kind: str
    payload: str


@dataclass(frozen=True, slots=True)
class Event:
    """Something in the log. `by_service`: it tells of a change that the service made, and was committed with it."""

    offset: int
    kind: str
    payload: str
    by_service: bool
    created_at: datetime


@dataclass(frozen=True, slots=True)
class Recorded:
    """Where new events stand, and since when."""

    first_offset: int
    last_offset: int
    created_at: datetime


@dataclass(frozen=True, slots=True)
class EventPage:
    """Some events in order. All that were asked for up to `through_offset` are in it or before it."""

    events: Sequence[Event]
    through_offset: int
    more: bool
