"""Purges of windows in Postgres."""

from collections.abc import Sequence
from datetime import timedelta

import asyncpg

from twofold_chassis import postgres
from twofold_chassis.postgres import Pool
from twofold_memory.purges import Purge
from twofold_memory.store.statements import STATEMENTS
from twofold_memory.threads import ThreadKey


class PostgresPurges:
    """The truth about which windows must go. `window_ttl_s`: how long one can live."""

    def __init__(self, pool: Pool, *, window_ttl_s: float) -> None:
        self._pool = pool
        self._window_ttl = timedelta(seconds=window_ttl_s)

    async def due(self, count: int) -> Sequence[Purge]:
        """Some that are not done, the oldest first."""
        async with postgres.connection(self._pool) as connection:
            rows = await connection.fetch(STATEMENTS["due_purges"], count)
        return [_purge(row) for row in rows]

    async def done(self, purge: Purge) -> None:
        """The window is gone."""
        async with postgres.connection(self._pool) as connection:
            await connection.execute(STATEMENTS["purge_done"], *purge.key, purge.epoch)

    async def recent(self, behind: ThreadKey, count: int) -> Sequence[Purge]:
        """Some of all that can matter to a window that is alive, done or not, by thread, from behind one on."""
        async with postgres.connection(self._pool) as connection:
            rows = await connection.fetch(STATEMENTS["recent_purges"], *behind, self._window_ttl, count)
        return [_purge(row) for row in rows]

    async def forget(self, count: int) -> None:
        """Drops some that no window can need any more."""
        async with postgres.connection(self._pool) as connection:
            await connection.execute(STATEMENTS["forget_purges"], self._window_ttl, count)


def _purge(row: asyncpg.Record) -> Purge:
    return Purge(ThreadKey(row["workspace_id"], row["thread_id"]), row["epoch"], row["erased"])
