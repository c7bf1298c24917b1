"""Reading what belongs to one workspace: through row-level security, and never at an epoch that has passed."""

import contextlib
from collections.abc import Awaitable, Callable
from typing import TypeVar

from twofold_chassis import postgres
from twofold_chassis.postgres import Connection, Pool
from twofold_registry.revisions import Revision
from twofold_registry.store.replica import NotAtReplica, Replica
from twofold_registry.store.rows import PastRewritten
from twofold_registry.store.statements import STATEMENTS

Answer = TypeVar("Answer")


class Reads:
    """Runs reads."""

    def __init__(self, pool: Pool, replica: Replica | None = None) -> None:
        self._pool = pool
        self._replica = replica

    async def read(
        self, workspace_id: str, ask: Callable[[Connection], Awaitable[Answer]], least: Revision | None = None
    ) -> Answer:
        """What `ask` answers on a connection that sees this workspace; asked once more if the epoch had to be renewed.

        Not older than `least`. Raises RevisionNotReached, HistoryChanged, and what `ask` raises.
        """
        return await self._read(workspace_id, ask, least, plans_anew=False)

    async def report(
        self, workspace_id: str, ask: Callable[[Connection], Awaitable[Answer]], least: Revision | None = None
    ) -> Answer:
        """The same for lists and reports, which carry no revision of their own: also from a replica that has `least`.

        Nobody else may be answered by it: without a token even the own last change could be missing. Statements are planned
        for their values, as which index serves a page depends on its place, and on which filters are set.
        """
        if self._replica is not None and least is not None:
            with contextlib.suppress(NotAtReplica):
                return await self._replica.report(workspace_id, ask, least)
        return await self._read(workspace_id, ask, least, plans_anew=True)

    async def _read(
        self,
        workspace_id: str,
        ask: Callable[[Connection], Awaitable[Answer]],
        least: Revision | None,
        *,
        plans_anew: bool,
    ) -> Answer:
        try:
            return await self._once(workspace_id, ask, least, plans_anew)
        except PastRewritten:
            await renew_epoch(self._pool)
        return await self._once(workspace_id, ask, least, plans_anew)

    async def _once(
        self, workspace_id: str, ask: Callable[[Connection], Awaitable[Answer]], least: Revision | None, plans_anew: bool
    ) -> Answer:
        async with postgres.reading(self._pool, (workspace_id,), plans_anew=plans_anew) as connection:
            if least is not None:
                (await read_head(connection)).satisfies(least)
            return await ask(connection)


async def read_head(connection: Connection) -> Revision:
    """The newest revision. Raises PastRewritten."""
    row = await connection.fetchrow(STATEMENTS["read_head"])
    assert row is not None
    if row["epoch"] is None:
        raise PastRewritten
    return Revision(row["epoch"], row["revision"])


async def renew_epoch(pool: Pool) -> None:
    """Begins a new epoch if this is another Postgres, or another past, than the one of the current epoch."""
    async with postgres.transaction(pool) as connection:
        await connection.execute(STATEMENTS["renew_epoch"])
