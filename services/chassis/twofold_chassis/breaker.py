"""A circuit breaker: a dependency that failed some times in a row is not asked for a while, so that nobody waits for it."""

import time
from collections.abc import Callable
from typing import Protocol


class Opens(Protocol):
    """What can be seen of one breaker, or of several together."""

    @property
    def open(self) -> bool:
        """Whether the dependency is believed to be gone."""
        ...


class Breaker:
    """Opens after `failures_max` failures in a row; after `rest_s` lets one call through to try.

    Pattern: Michael Nygard, Release It! (2nd ed.), "Circuit Breaker". Small and own because it stands on the hot path.
    """

    def __init__(self, *, failures_max: int = 5, rest_s: float = 0.5, clock: Callable[[], float] = time.monotonic) -> None:
        self._failures_max = failures_max
        self._rest_s = rest_s
        self._clock = clock
        self._failures = 0
        self._next_try_at = 0.0

    @property
    def open(self) -> bool:
        """Whether the dependency is believed to be gone."""
        return self._failures >= self._failures_max

    def admits(self) -> bool:
        """Whether a call may be tried now. While open, one call per rest time is."""
        if not self.open:
            return True
        now = self._clock()
        if now < self._next_try_at:
            return False
        self._next_try_at = now + self._rest_s
        return True

    def succeeded(self) -> None:
        """The dependency answered."""
        self._failures = 0

    def failed(self) -> None:
        """The dependency did not answer."""
        self._failures += 1
        if self._failures == self._failures_max:
            self._next_try_at = self._clock() + self._rest_s
