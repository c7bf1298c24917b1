"""Work that outlives its caller: what has begun comes to its end, also when nobody waits for it any more."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

from twofold_chassis.refusals import Overloaded

Value = TypeVar("Value")


class Outliving:
    """Does work in tasks of the service's own, at most `most` at a time. Cancelling a caller changes nothing about it."""

    def __init__(self, what: str, *, most: int) -> None:
        """`what` it is, for the refusal of more: "turns are opened and closed"."""
        self._what = what
        self._most = most
        self._under_way: set[asyncio.Future[Any]] = set()

    async def do(self, work: Callable[[], Awaitable[Value]]) -> Value:
        """What the work returns. Raises what it raises, and Overloaded: then it has not begun."""
        if len(self._under_way) >= self._most:
            raise Overloaded(f"too many {self._what} at the same time", retry_after_s=0.2)
        task = asyncio.ensure_future(work())
        self._under_way.add(task)
        task.add_done_callback(self._ended)
        return await asyncio.shield(task)

    async def drain(self) -> None:
        """Returns when nothing is under way."""
        while self._under_way:
            await asyncio.wait(self._under_way)

    def _ended(self, task: "asyncio.Future[Any]") -> None:
        self._under_way.discard(task)
        if not task.cancelled():
            task.exception()  # its caller may be gone: then nobody else looks at it
