"""How long workspaces keep their conversations, in Postgres."""

from collections.abc import Callable

import asyncpg

from twofold_chassis import postgres
from twofold_chassis.postgres import Pool
from twofold_chassis.requests import Attempt, Requests
from twofold_memory.erasures import Retention
from twofold_memory.store.statements import STATEMENTS

Answer = Callable[[Retention], bytes]


class PostgresRetentions:
    """The truth about how long conversations are kept."""

    def __init__(self, pool: Pool, requests: Requests) -> None:
        self._pool = pool
        self._requests = requests

    async def get(self, workspace_id: str) -> Retention:
        """What was set; for ever, if nothing was."""
        async with postgres.connection(self._pool) as connection:
            row = await connection.fetchrow(STATEMENTS["retention"], workspace_id)
        return _retention(row) if row else Retention(workspace_id)

    async def set(
        self, attempt: Attempt, workspace_id: str, days: int, expect: Callable[[Retention], None], answer: Answer
    ) -> bytes:
        """Sets it, if `expect` does not refuse what is there. Raises EtagMismatch, RequestReused."""

        async def change() -> bytes:
            await connection.execute(STATEMENTS["make_retention"], workspace_id)
            before = await connection.fetchrow(STATEMENTS["lock_retention"], workspace_id)
            assert before is not None
            expect(_retention(before))
            row = await connection.fetchrow(STATEMENTS["set_retention"], workspace_id, days)
            assert row is not None
            return answer(_retention(row))

        async with postgres.transaction(self._pool) as connection:
            return await self._requests.once(connection, attempt, change)


def _retention(row: asyncpg.Record) -> Retention:
    return Retention(row["workspace_id"], row["days"], row["version"], row["updated_at"])
