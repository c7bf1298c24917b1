"""What watchers read from Postgres."""

from collections.abc import Sequence

from twofold_chassis import postgres
from twofold_chassis.postgres import Pool
from twofold_memory.store.statements import STATEMENTS
from twofold_memory.store.turns import PostgresTurns, entries
from twofold_memory.threads import Entry, Head, ThreadKey


class PostgresWatches:
    """The truth about what was said, in small steps."""

    def __init__(self, pool: Pool, turns: PostgresTurns) -> None:
        self._pool = pool
        self._turns = turns

    async def heads(self, keys: Sequence[ThreadKey]) -> list[Head | None]:
        """What is known of each thread; None for one that does not exist."""
        return await self._turns.heads(keys)

    async def step(self, key: ThreadKey, after: int, count: int, bytes_max: int) -> list[Entry]:
        """The next messages after a seq, in order; the last one may be larger than what is left of `bytes_max`."""
        async with postgres.connection(self._pool) as connection:
            return entries(await connection.fetch(STATEMENTS["messages_after"], *key, after, count, bytes_max))
