"""How metadata changes: rows, audit entry and revision in one transaction, repeats answered as the first time.

The order of locks is the same for all: request id, workspace, head. So no two changes wait for each other in a circle.
"""

import contextlib
from collections.abc import Awaitable, Callable, Iterator, Mapping

import asyncpg

from twofold_chassis import call, postgres
from twofold_chassis.postgres import Connection, Pool
from twofold_chassis.refusals import AlreadyExists
from twofold_chassis.requests import Attempt, Requests
from twofold_registry.audit import Entry
from twofold_registry.resources import Stamp, Stored
from twofold_registry.revisions import Revision
from twofold_registry.store import rows
from twofold_registry.store.statements import STATEMENTS
from twofold_registry.workspaces import Workspace


class Change:
    """One change that is under way, in its transaction."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection

    async def lock_workspace(self, workspace_id: str) -> Stored[Workspace] | None:
        """The workspace, which nobody else changes, nor anything in it, until this change has ended; None if unknown."""
        row = await self.connection.fetchrow(STATEMENTS["lock_workspace"], workspace_id)
        return None if row is None else rows.workspace(row)

    async def take_revision(self) -> Stamp:
        """The place of this change in the history. From now on every other change waits: only writes may follow."""
        row = await self.connection.fetchrow(STATEMENTS["take_revision"])
        assert row is not None
        return Stamp(Revision(row["epoch"], row["revision"]), row["at"])

    async def head(self) -> Revision:
        """The newest revision, for an answer of what changed nothing."""
        row = await self.connection.fetchrow(STATEMENTS["read_head"])
        assert row is not None
        return Revision(row["epoch"], row["revision"])

    async def write(self, statement: str, *values: object) -> None:
        """Writes rows."""
        await self.connection.execute(STATEMENTS[statement], *values)

    async def record(
        self, stamp: Stamp, action: str, workspace_id: str, resource_id: str, *, before: str = "", after: str = ""
    ) -> None:
        """Writes the audit entry of this change. `action` begins with the kind of the resource: "agent.create"."""
        current = call.current()
        entry = Entry(
            revision=stamp.revision.number,
            ordinal=0,
            actor=current.identity.actor,
            action=action,
            resource_kind=action.partition(".")[0],
            resource_id=resource_id,
            before=before,
            after=after,
            request_id=current.request_id,
            at=stamp.at,
        )
        await self.connection.execute(STATEMENTS["insert_audit_entry"], workspace_id, *rows.entry_values(entry))


class Changes:
    """Runs changes."""

    def __init__(self, pool: Pool, requests: Requests) -> None:
        self._pool = pool
        self._requests = requests

    async def once(self, attempt: Attempt, make: Callable[[Change], Awaitable[bytes]]) -> bytes:
        """Makes the change, or returns the answer of the first time. Raises RequestReused, and what `make` raises."""
        async with postgres.transaction(self._pool) as connection:
            return await self._requests.once(connection, attempt, lambda: make(Change(connection)))


@contextlib.contextmanager
def unique(refusals: Mapping[str, AlreadyExists]) -> Iterator[None]:
    """Turns the violation of a constraint or index named here into its refusal."""
    try:
        yield
    except asyncpg.UniqueViolationError as error:
        refusal = refusals.get(error.constraint_name or "")
        if refusal is None:
            raise
        raise refusal from None
