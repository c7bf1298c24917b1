"""Pods of the control plane: their incarnations, and the verdict on them, which is for ever."""

import enum
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import NamedTuple, Protocol

from twofold_chassis.requests import Attempt
from twofold_registry.resources import Page


class Incarnation(NamedTuple):
    """One life of a pod. Of two, the greater one is the later."""

    epoch: int
    number: int


class PodKey(NamedTuple):
    """Which life of which pod."""

    pod_id: str
    incarnation: Incarnation


class PodState(enum.StrEnum):
    """Whether an incarnation may hold sessions: only one that is LIVE, and one that is not never becomes so."""

    LIVE = "live"
    DEAD = "dead"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class Pod:
    """What is known of a pod: its newest incarnation, and the verdict on that, LIVE or DEAD.

    `registered_at` is None if it was marked dead without being known; `dead_at` is None while it is alive.
    """

    pod_id: str
    address: str
    incarnation: Incarnation
    state: PodState
    registered_at: datetime | None
    dead_at: datetime | None
    dead_reason: str
    marked_by: str

    def judge(self, asked: Incarnation) -> PodState:
        """The verdict on one of its incarnations. One newer than all that are known is of a history that was lost."""
        if asked > self.incarnation:
            return PodState.UNKNOWN
        return self.state if asked == self.incarnation else PodState.DEAD


Answer = Callable[[Incarnation], bytes]
"""Writes the answer of a registration down, so that a repeat gets the very same bytes."""


class Pods(Protocol):
    """The pods that are kept."""

    async def register(self, pod_id: str, address: str, attempt: Attempt, answer: Answer) -> bytes:
        """Gives the pod an incarnation that none had before. Raises RequestReused."""
        ...

    async def check(self, keys: Sequence[PodKey]) -> Sequence[PodState]:
        """The verdict on each, as of one moment."""
        ...

    async def mark_dead(self, key: PodKey, reason: str) -> bool:
        """Answers whether it was not dead before. Raises InvalidField (no pod ever had this incarnation)."""
        ...

    async def list(self, state: PodState | None, after: str, size: int) -> Page[Pod]:
        """Up to `size` pods whose ids follow `after`, in the order of their ids."""
        ...
