"""Changes of the past: a transaction, and then every window that showed what was before."""

import asyncio
from collections.abc import Coroutine, Sequence
from dataclasses import dataclass
from typing import Any

from twofold_memory.purges import Purge, Purges

_PURGES_AT_ONCE = 16


@dataclass(frozen=True, slots=True)
class Changed:
    """What is committed: the answer, and the windows that must go, which are asked for in the same transaction.

    Of a repeat they are there as well: whether the first time came as far as the windows, nobody knows.
    """

    answer: bytes
    purges: Sequence[Purge]


class Changes:
    """Brings changes to their end. Cancelling a call changes nothing: no window outlives what it shows."""

    def __init__(self, purges: Purges) -> None:
        self._purges = purges
        self._under_way: set[asyncio.Task[bytes]] = set()

    async def make(self, change: Coroutine[Any, Any, Changed]) -> bytes:
        """The answer of the change, once the windows are gone or, while Redis is away, are sure to go."""
        task = asyncio.create_task(self._made(change))
        self._under_way.add(task)
        task.add_done_callback(self._under_way.discard)
        return await asyncio.shield(task)

    async def drain(self) -> None:
        """Returns when no change is under way."""
        while self._under_way:
            await asyncio.wait(self._under_way)

    async def _made(self, change: Coroutine[Any, Any, Changed]) -> bytes:
        changed = await change
        for begin in range(0, len(changed.purges), _PURGES_AT_ONCE):
            await asyncio.gather(*map(self._purges.do, changed.purges[begin : begin + _PURGES_AT_ONCE]))
        return changed.answer
