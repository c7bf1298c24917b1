"""What is left to be done, as Postgres has it."""

from datetime import timedelta

from twofold_chassis import postgres
from twofold_chassis.postgres import Pool
from twofold_memory.store.statements import STATEMENTS
from twofold_memory.sync_status import BACKLOG_MAX, Backlog, Backlogs

_ANSWER_S = 2.0


class PostgresBacklogs:
    """The truth about what is left."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool

    async def backlogs(self) -> Backlogs:
        """All that is counted. Raises StoreUnavailable (also if it takes longer than two seconds), Overloaded."""
        async with postgres.connection(self._pool) as connection:
            row = await connection.fetchrow(STATEMENTS["backlogs"], BACKLOG_MAX, timeout=_ANSWER_S)
        assert row is not None
        dead_letters, dead_letters_age, window_purges, window_purges_age, search, open_turns = row
        return Backlogs(
            _backlog(dead_letters, dead_letters_age),
            _backlog(window_purges, window_purges_age),
            Backlog(search, None),
            open_turns,
        )


def _backlog(count: int, age: timedelta | None) -> Backlog:
    # The clock may have been set back meanwhile.
    return Backlog(count, None if age is None else max(age, timedelta()))
