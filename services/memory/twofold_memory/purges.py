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

from twofold_chassis.refusals import Refusal
from twofold_memory.threads import ThreadKey

_PERIOD_S = 1.0
_AT_ONCE = 100


class Purge(NamedTuple):
    """A thread whose windows of epochs before this one must go."""

    key: ThreadKey
    epoch: int


class Store(Protocol):
    """The truth about which windows must go."""

    async def due(self, count: int) -> Sequence[Purge]:
        """Some that are not done."""
        ...

    async def done(self, purge: Purge) -> None:
        """The window is gone."""
        ...

    async def reopen(self) -> None:
        """All windows that can still be alive must go once more."""
        ...

    async def forget(self, count: int) -> None:
        """Drops some that no window can need any more."""
        ...


class Cache(Protocol):
    """The copies."""

    async def connected(self) -> int:
        """Tries to reach Redis; the generation then."""
        ...

    @property
    def generation(self) -> int:
        """A number of the connection that is there now, and another one while there is none."""
        ...

    async def fence(self, key: ThreadKey, epoch: int) -> bool:
        """Drops a window that is older than `epoch`; whether that is sure."""
        ...


class Purges:
    """Does what is due."""

    def __init__(self, store: Store, cache: Cache) -> None:
        self._store = store
        self._cache = cache
        self._reopened_for = 0
        self._settled_for: int | None = None
        self._logger = structlog.get_logger("twofold.purges")

    @property
    def settled(self) -> bool:
        """Whether every purge that is known of has been done on the Redis that we are connected to."""
        return self._settled_for == self._cache.generation

    async def do(self, purge: Purge) -> None:
        """Does one at once, if Redis lets it be done."""
        if not await self._cache.fence(purge.key, purge.epoch):
            self._settled_for = None
            return
        with contextlib.suppress(Refusal):  # not marked as done, it is done once more: that is harmless
            await self._store.done(purge)

    async def round(self) -> None:
        """Does what is due. Raises StoreUnavailable and its like."""
        generation = await self._cache.connected()
        if generation != self._reopened_for:
            await self._store.reopen()
            self._reopened_for = generation
        due = await self._store.due(_AT_ONCE)
        for purge in due:
            if not await self._cache.fence(*purge):
                return
            await self._store.done(purge)
        if len(due) < _AT_ONCE:
            self._settled_for = generation
            await self._store.forget(_AT_ONCE)

    @contextlib.asynccontextmanager
    async def repeated(self) -> AsyncIterator[None]:
        """A round now, and one a second for as long as the block runs."""
        await self._try()
        task = asyncio.create_task(self._repeat())
        try:
            yield
        finally:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task

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
