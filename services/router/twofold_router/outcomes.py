"""Outcomes: what became of messages to targets, as far as this router heard, and which targets rest for it.

Only a failure to dial lets a target rest: then nothing was sent, and another may be asked. It rests for a second or so, and
longer after each failure behind it; when that is over one message tries it, and the next only after as long again. What is
heard is kept for each generation of the agent's targets: what is of an older one, however late it comes, changes no other.
Like the ejection of hosts in Envoy ("outlier detection"), counting in one process and losing nothing that matters with it.
"""

import random
from collections import Counter, OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import NamedTuple

TARGETS_MAX = 10_000
REST_S = (1.0, 30.0)
_JITTER = 0.2
_NEVER = float("-inf")


class Outcome(Enum):
    """What became of a message to a target."""

    DIALED = "dialed"
    DIAL_FAILED = "dial_failed"
    FIRST_BYTE = "first_byte"
    ANSWER_FAILED = "answer_failed"


class TargetKey(NamedTuple):
    """Which target (of an agent without targets: none), in which generation of the agent's targets."""

    workspace_id: str
    agent_id: str
    generation: int
    name: str


class Told(NamedTuple):
    """That a target rests: for how long still, and after how many failures in a row."""

    key: TargetKey
    rest_s: float
    failures: int


@dataclass(slots=True)
class Heard:
    """What was heard of a target. `failures`: to dial, in a row. `on_trial`: a message is under way that tries it again."""

    failures: int = 0
    rests_until: float = _NEVER
    on_trial: bool = False
    reached_at: float = _NEVER
    answered_at: float = _NEVER
    cold_start_s: float | None = None

    def rests(self, now: float) -> bool:
        """Whether nothing is to be sent there now."""
        return self.failures > 0 and now < self.rests_until


class Outcomes:
    """What was heard, of at most `targets_max` targets: those heard of last."""

    def __init__(
        self,
        *,
        targets_max: int = TARGETS_MAX,
        rest_s: tuple[float, float] = REST_S,
        drawn: Callable[[float, float], float] = random.uniform,
    ) -> None:
        self._targets_max = targets_max
        self._rest_s = rest_s
        self._drawn = drawn
        self._heard: OrderedDict[TargetKey, Heard] = OrderedDict()
        self._failing: set[TargetKey] = set()
        self._failing_of: Counter[tuple[str, str]] = Counter()
        self._news: set[TargetKey] = set()

    @property
    def failing(self) -> int:
        """How many targets could not be dialled when that was tried last."""
        return len(self._failing)

    def fails(self, workspace_id: str, agent_id: str) -> bool:
        """Whether one of these is the agent's, in whatever generation."""
        return (workspace_id, agent_id) in self._failing_of

    def find(self, key: TargetKey) -> Heard | None:
        """What was heard of it."""
        return self._heard.get(key)

    def hear(self, key: TargetKey, outcome: Outcome, now: float) -> None:
        """Takes in what became of a message."""
        if outcome is Outcome.ANSWER_FAILED and not self._is_on_trial(key):
            return  # it was reached, but who knows when: that answer may have begun long before
        heard = self._entry(key)
        if outcome is Outcome.DIAL_FAILED:
            # Messages that had left before it rested say no more than the one that made it rest.
            if heard.on_trial or not heard.rests(now):
                self._fail(key, heard, heard.failures + 1, now)
            return
        heard.reached_at = now
        if outcome is Outcome.FIRST_BYTE:
            heard.answered_at = now
        if heard.failures:
            self._recover(key, heard)

    def started(self, key: TargetKey, cold_start_s: float) -> None:
        """How long the first answer took that started it."""
        self._entry(key).cold_start_s = cold_start_s

    def admits(self, key: TargetKey, now: float, *, peek: bool = False) -> bool:
        """Whether a message may be sent there now. One that comes after a rest is the trial: the next waits as long again.

        Who only peeks sends nothing.
        """
        if key not in self._failing:
            return True
        heard = self._heard[key]
        if heard.rests(now):
            return False
        if peek:
            return True
        heard.rests_until, heard.on_trial = now + self._rest(heard.failures), True
        return True

    # What routers tell one another -----------------------------------------------------------------------------

    def news(self) -> dict[TargetKey, Heard]:
        """What has begun to fail here, or to fail again, or was reached again, since this was asked last."""
        news, self._news = self._news, set()
        return {key: self._heard[key] for key in news if key in self._heard}

    def rest(self, told: Told, asked_at: float, now: float) -> None:
        """Another router could not dial it. What was heard here since that was asked is newer."""
        heard = self._entry(told.key)
        if heard.reached_at < asked_at and heard.failures < told.failures:
            self._begin_failing(told.key)
            heard.failures = told.failures
            heard.rests_until = max(heard.rests_until, now + min(told.rest_s, self._rest_s[1] * (1 + _JITTER)))

    def wake(self, key: TargetKey, now: float) -> None:
        """Another router has reached it: it may be tried here as well."""
        heard = self._heard.get(key)
        if heard is not None and not heard.on_trial:
            heard.rests_until = min(heard.rests_until, now)

    def _is_on_trial(self, key: TargetKey) -> bool:
        heard = self._heard.get(key)
        return heard is not None and heard.on_trial

    def _entry(self, key: TargetKey) -> Heard:
        heard = self._heard.setdefault(key, Heard())
        self._heard.move_to_end(key)
        if len(self._heard) > self._targets_max:
            dropped, _ = self._heard.popitem(last=False)
            self._end_failing(dropped)
            self._news.discard(dropped)
        return heard

    def _fail(self, key: TargetKey, heard: Heard, failures: int, now: float) -> None:
        heard.failures, heard.rests_until, heard.on_trial = failures, now + self._rest(failures), False
        self._begin_failing(key)
        self._news.add(key)

    def _recover(self, key: TargetKey, heard: Heard) -> None:
        heard.failures, heard.rests_until, heard.on_trial = 0, _NEVER, False
        self._end_failing(key)
        self._news.add(key)

    def _begin_failing(self, key: TargetKey) -> None:
        if key not in self._failing:
            self._failing.add(key)
            self._failing_of[key.workspace_id, key.agent_id] += 1

    def _end_failing(self, key: TargetKey) -> None:
        if key in self._failing:
            self._failing.remove(key)
            agent = (key.workspace_id, key.agent_id)
            self._failing_of[agent] -= 1
            if not self._failing_of[agent]:
                del self._failing_of[agent]

    def _rest(self, failures: int) -> float:
        least, most = self._rest_s
        return min(most, least * 2.0 ** min(failures - 1, 30)) * self._drawn(1 - _JITTER, 1 + _JITTER)
