"""Sweeps: what is over by the clock is cleared away, a bounded number at a time. No answer depends on when that happens."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence

import structlog

from twofold_chassis.alongside import alongside
from twofold_chassis.refusals import Refusal

_AT_ONCE = 500

Sweep = Callable[[int], Awaitable[int]]
"""Clears away at most so many; says how many it were."""


class Sweeps:
    """Sweeps everything there is to sweep, now and again."""

    def __init__(self, sweeps: Sequence[Sweep], *, period_s: float = 30.0) -> None:
        self._sweeps = sweeps
        self._period_s = period_s
        self._logger = structlog.get_logger("twofold.sweeps")

    async def round(self) -> None:
        """Sweeps until nothing is left. Raises StoreUnavailable and its like."""
        for sweep in self._sweeps:
            while await sweep(_AT_ONCE) == _AT_ONCE:
                pass

    @contextlib.asynccontextmanager
    async def repeated(self) -> AsyncIterator[None]:
        """A round each period for as long as the block runs."""
        async with alongside(self._repeat()):
            yield

    async def _repeat(self) -> None:
        while True:
            await asyncio.sleep(self._period_s)
            try:
                await self.round()
            except Refusal as refusal:
                self._logger.debug("sweeps wait", reason=refusal.message)
            except Exception as error:
                # Whatever it was, the next round must come: the loop may not die.
                self._logger.error("sweeps failed", exc_info=error)
