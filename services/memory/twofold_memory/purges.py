"""Purges: windows whose conversation is deleted must go, also if Redis is away at that moment or comes back with old data.

The wish is written in the transaction of the deletion. Whoever deletes tries at once; every worker repeats what is not
done each second; and whenever a worker has a new connection to Redis, behind which an older state may have been restored,
all that can matter is done again. Until it has been, copies alone answer nobody (`settled`); with Postgres' word they may.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence
from typing import NamedTuple, Protocol

import structlog

from twofold_chassis.alongside import alongside
from twofold_chassis.refusals import Refusal
from twofold_memory.threads import ThreadKey

_PERIOD_S = 1.0
_AT_ONCE = 256


class Purge(NamedTuple):
    """A thread whose windows of epochs before this one must go; of one that is erased, all there is."""

    key: ThreadKey
    epoch: int
    erased: bool = False


class Store(Protocol):
    """The truth about which windows must go."""

    async def due(self, count: int) -> Sequence[Purge]:
        """Some that are not done."""
        ...

    async def recent(self, behind: ThreadKey, count: int) -> Sequence[Purge]:
        """Some of all that can matter to a window that is alive, done or not, by thread, from behind one on."""
        ...

    async def done(self, purge: Purge) -> None:
        """The window is gone."""
        ...

    async def forget(self, count: int) -> None:
        """Drops some that no window can need any more."""
        ...


class Cache(Protocol):
    """The copies."""

    async def connected(self) -> int | None:
        """The generation, if Redis answers."""
        ...

    @property
    def generation(self) -> int:
        """A number of the connection that is there now, and another one while there is none."""
        ...

    async def fence(self, key: ThreadKey, epoch: int, erased: bool) -> bool:
        """Drops a window that is older than `epoch`, of an erased thread all there is; whether that is sure."""
        ...


class Purges:
    """Does what is due."""

    def __init__(self, store: Store, cache: Cache) -> None:
        self._store = store
        self._cache = cache
        self._repeated_for: int | None = None
        self._settled_for: int | None = None
        self._failures = 0
        self._logger = structlog.get_logger("twofold.purges")

    @property
    def settled(self) -> bool:
        """Whether every purge that is known of has been done on the Redis that we are connected to."""
        return self._settled_for == self._cache.generation

    async def do(self, purge: Purge) -> None:
        """Does one at once, if Redis lets it be done."""
        if not await self._cache.fence(*purge):
            self._settled_for = None
            self._failures += 1
            return
        with contextlib.suppress(Refusal):  # not marked as done, it is done once more: that is harmless
            await self._store.done(purge)

    async def round(self) -> None:
        """Does what is due. Raises StoreUnavailable and its like."""
        failures, settled = self._failures, None
        try:
            settled = await self._done()
        finally:
            # A deletion that could not reach Redis meanwhile may have come too late for this round.
            self._settled_for = settled if failures == self._failures else None

    async def _done(self) -> int | None:
        """The generation for which everything is done; None if something is not."""
        generation = await self._cache.connected()
        if generation is None:
            return None
        # That others have done it, on whatever they are connected to, says nothing of what stands behind this connection.
        if generation != self._repeated_for:
            if not await self._repeated():
                return None
            self._repeated_for = generation
        while due := await self._store.due(_AT_ONCE):
            if not await self._fenced(due):
                return None
            for purge in due:
                await self._store.done(purge)
        await self._store.forget(_AT_ONCE)
        return generation

    async def _repeated(self) -> bool:
        behind = ThreadKey("", "")
        while recent := await self._store.recent(behind, _AT_ONCE):
            if not await self._fenced(recent):
                return False
            behind = recent[-1].key
        return True

    async def _fenced(self, purges: Sequence[Purge]) -> bool:
        return all(await asyncio.gather(*(self._cache.fence(*purge) for purge in purges)))

    @contextlib.asynccontextmanager
    async def repeated(self) -> AsyncIterator[None]:
        """A round now, and one a second for as long as the block runs."""
        await self._try()
        async with alongside(self._repeat()):
            yield

    async def _repeat(self) -> None:
        while True:
            await asyncio.sleep(_PERIOD_S)
            await self._try()

    async def _try(self) -> None:
        try:
            await self.round()
        except Refusal as refusal:
            # Postgres is away or busy: what is not done stays due.
            self._logger.debug("purges wait", reason=refusal.message)
        except Exception as error:
            # Whatever it was, the next round must come, and until one succeeds nothing is settled: the loop may not die.
            self._logger.error("purges failed", exc_info=error)
