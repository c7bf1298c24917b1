"""What audits ask Postgres. Each question is bounded in time, on connections for long work."""

from collections.abc import Sequence

import asyncpg

from twofold_chassis import postgres
from twofold_chassis.postgres import Pool
from twofold_memory.audits import Numbers, Truth
from twofold_memory.store.statements import STATEMENTS
from twofold_memory.store.turns import entries
from twofold_memory.threads import WINDOW_BYTES_MAX, Head, ThreadKey

_SAMPLE_S = 10.0
_ANSWER_S = 5.0
# Twice what a window holds: who has more there than this has something else than the window.
_COMPARED_BYTES_MAX = 2 * WINDOW_BYTES_MAX


class PostgresAudits:
    """The truth that windows are compared with, and whether it is as it must be. `pool` is for long work."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool

    async def sample(self, workspace_id: str | None, count: int) -> Sequence[ThreadKey]:
        """Conversations of a workspace, or of all, that were changed last; none that are deleted."""
        async with postgres.connection(self._pool) as connection:
            if workspace_id is None:
                rows = await connection.fetch(STATEMENTS["newest_changed_of_all"], count, timeout=_SAMPLE_S)
            else:
                rows = await connection.fetch(STATEMENTS["newest_changed"], workspace_id, count, timeout=_SAMPLE_S)
        return [ThreadKey(*row) for row in rows]

    async def truth(self, key: ThreadKey, first_seq: int, next_seq: int) -> Truth | None:
        """The head and the messages from `first_seq` on and before `next_seq`; None if there is no such thread."""
        async with postgres.connection(self._pool) as connection:
            rows = await connection.fetch(
                STATEMENTS["audited_messages"], *key, first_seq, next_seq, _COMPARED_BYTES_MAX, timeout=_ANSWER_S
            )
        if not rows:
            return None
        return Truth(_head(rows[0]), [] if rows[0]["seq"] is None else entries(rows))

    async def numbers(self, key: ThreadKey) -> Numbers:
        """Whether the thread's numbers are right."""
        async with postgres.connection(self._pool) as connection:
            row = await connection.fetchrow(STATEMENTS["audited_numbers"], *key, timeout=_ANSWER_S)
        assert row is not None
        return Numbers(*row)


def _head(row: asyncpg.Record) -> Head:
    return Head(row["next_seq"], row["epoch"], row["owner"], row["deleted"], row["erased"])
