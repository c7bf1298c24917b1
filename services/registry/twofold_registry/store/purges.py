"""What was deleted for long enough is purged: each by a change of its own, as if somebody had asked for it."""

import contextlib
from collections.abc import Awaitable, Callable, Mapping

from asyncpg import Record

from twofold_chassis import postgres
from twofold_chassis.postgres import Pool
from twofold_chassis.refusals import EtagMismatch, NotFound
from twofold_chassis.requests import Attempt
from twofold_registry.resources import Answer, Key, NotDeleted, Write
from twofold_registry.revisions import etag
from twofold_registry.store.statements import STATEMENTS
from twofold_registry.sweeps import Sweep, one_by_one

Purge = Callable[[Key, Write, Answer[None]], Awaitable[bytes]]
_SELDOM = 30
_WORKSPACES_AT_ONCE = 10


class PostgresPurges:
    """Finds what is due as the system role, which sees all tenants, and purges it as the application.

    `purges`: for each kind of resource what purges one. Several processes may do it at once.
    """

    def __init__(self, system: Pool, pool: Pool, purges: Mapping[str, Purge]) -> None:
        self._system = system
        self._pool = pool
        self._purges = purges

    def sweeps(self) -> list[Sweep]:
        """These, as sweeps."""
        return [Sweep("deleted_resources", self.purge_due, _SELDOM), Sweep("purged_workspaces", self.empty, _SELDOM)]

    async def purge_due(self, most: int) -> int:
        """Purges up to so many resources whose purge_time has come; says how many were due."""
        async with postgres.connection(self._system) as connection:
            due = await connection.fetch(STATEMENTS["purges_due"], most)
        await one_by_one(due, self.purge_one)
        return len(due)

    async def empty(self, most: int) -> int:
        """Forgets users and agents of purged workspaces, up to so many of each in a transaction; says how many rows it were.

        That of a workspace, which is empty then, is one of them. It were fewer only where no workspace is left.
        """
        count = 0

        async def empty(row: Record) -> None:
            nonlocal count
            count += await self._empty(row["workspace_id"], most)

        for _ in range(-(-most // _WORKSPACES_AT_ONCE)):
            async with postgres.connection(self._system) as connection:
                found = await connection.fetch(STATEMENTS["workspaces_to_empty"], _WORKSPACES_AT_ONCE)
            await one_by_one(found, empty)
            if not found or count >= most:
                break
        return count

    async def purge_one(self, row: Record) -> None:
        """Purges one that was found to be due, if nobody has changed it since."""
        kind, workspace_id = row["kind"], row["workspace_id"]
        key = (workspace_id,) if kind == "workspace" else (workspace_id, row["resource_id"])
        # With its etag: somebody may restore it meanwhile, or restore and delete it again.
        version = etag(kind, *key, revision=row["revision"], at=row["updated_at"])
        write = Write(Attempt(workspace_id, "Purge", None, b""), version)
        with contextlib.suppress(NotFound, NotDeleted, EtagMismatch):
            await self._purges[kind](key, write, lambda _, __: b"")

    async def _empty(self, workspace_id: str, most: int) -> int:
        async with postgres.transaction(self._pool, (workspace_id,)) as connection:
            users: int = await connection.fetchval(STATEMENTS["empty_users"], workspace_id, most)
            agents: int = await connection.fetchval(STATEMENTS["empty_agents"], workspace_id, most)
            told = await connection.execute(STATEMENTS["workspace_is_empty"], workspace_id)
        return users + agents + int(told.rpartition(" ")[2])  # "UPDATE 1"
