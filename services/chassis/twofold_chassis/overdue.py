"""Ending calls that brought no deadline of their own, at the server's: one timer for all of them.

They all get the same time, so who began first is due first: a line, instead of a timer for each, which would cost a hot
call as much as the rest of its edge.
"""

import asyncio
import time
from typing import Any

_LATE_S = 0.05
"""How much later than its time a call may be ended, but never before it."""

Running = asyncio.Task[Any]


class Overdue:
    """The calls under way that have `within_s`. One of these is told by a cancellation that it is over."""

    def __init__(self, within_s: float) -> None:
        self._within_s = within_s
        self._line: dict[Running, float] = {}
        self._ended: set[Running] = set()
        self._timer: asyncio.TimerHandle | None = None

    def join(self, call: Running, due: float) -> None:
        """From now on it ends at `due`, a reading of time.monotonic() and no earlier than that of those before it."""
        self._line[call] = due
        if self._timer is None:
            self._wait(self._within_s)

    def has_ended(self, call: Running) -> bool:
        """Whether it was ended here, and has not left."""
        return call in self._ended

    def leave(self, call: Running) -> None:
        """It is done with, one way or another."""
        if self._line.pop(call, None) is None:
            self._ended.discard(call)

    def close(self) -> None:
        """Ends none any more."""
        self._line.clear()
        if self._timer is not None:
            self._timer.cancel()

    def _wait(self, seconds: float) -> None:
        self._timer = asyncio.get_running_loop().call_later(seconds, self._look)

    def _look(self) -> None:
        self._timer = None
        now = time.monotonic()
        for call, due in list(self._line.items()):
            if due > now:
                self._wait(max(_LATE_S, due - now))
                return
            del self._line[call]
            self._ended.add(call)
            call.cancel()
