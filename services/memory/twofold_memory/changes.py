"""Changes of the past: a transaction, and then every window that showed what was before."""

import asyncio
from collections.abc import Coroutine, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from twofold_chassis.outliving import Outliving
from twofold_chassis.refusals import Overloaded
from twofold_memory.purges import Purge, Purges

_PURGES_AT_ONCE = 16
_UNDER_WAY_MAX = 1024


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
        self._outliving = Outliving("changes of the past are made", most=_UNDER_WAY_MAX)

    async def make(self, change: Coroutine[Any, Any, Changed]) -> bytes:
        """The answer of the change, once the windows are gone or, while Redis is away, are sure to go. Raises Overloaded."""
        try:
            return await self._outliving.do(partial(self._made, change))
        except Overloaded:
            change.close()  # it may not have begun
            raise

    async def drain(self) -> None:
        """Returns when no change is under way."""
        await self._outliving.drain()

    async def _made(self, change: Coroutine[Any, Any, Changed]) -> bytes:
        changed = await change
        for begin in range(0, len(changed.purges), _PURGES_AT_ONCE):
            await asyncio.gather(*map(self._purges.do, changed.purges[begin : begin + _PURGES_AT_ONCE]))
        return changed.answer
