"""How metadata changes: rows, audit, change rows and revision in one transaction, repeats answered as the first time.

The order of locks is the same for all: request id, workspace (and with it the end of its audit chain), head. So no two
changes wait for each other in a circle.
"""

import contextlib
import secrets
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

import asyncpg

from twofold_chassis import call, postgres
from twofold_chassis.postgres import Connection, Pool
from twofold_chassis.refusals import AlreadyExists
from twofold_chassis.requests import Attempt, Requests
from twofold_registry.audit import FIRST_LINK, Entry, Link
from twofold_registry.history import Item
from twofold_registry.resources import Stamp, Stored
from twofold_registry.revisions import Revision
from twofold_registry.store import rows
from twofold_registry.store.reads import read_head, renew_epoch
from twofold_registry.store.statements import STATEMENTS
from twofold_registry.workspaces import Workspace


class Deed(NamedTuple):
    """One thing that a change did: what the audit tells of it, and what those who follow are told.

    `action` begins with the kind of the resource: "agent.create". `before` and `after` are JSON objects, empty for a
    creation and a deletion.
    """

    action: str
    resource_id: str
    before: str
    after: str
    items: Sequence[Item]


class Change:
    """One change that is under way, in its transaction."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self._links: dict[str, Link] = {}

    async def lock_workspace(self, workspace_id: str, *, show_deleted: bool = False) -> Stored[Workspace] | None:
        """The workspace, which nobody else changes, nor anything in it, until this change has ended; None if unknown."""
        row = await self.connection.fetchrow(STATEMENTS["lock_workspace"], workspace_id, show_deleted)
        if row is None:
            return None
        self._links[workspace_id] = Link(row["chain_seq"], row["chain_hash"])
        return rows.workspace(row)

    async def lock_past_workspace(self, workspace_id: str) -> bool:
        """The same lock, of one that may be deleted, and purged, for what outlives it; answers whether it ever was."""
        row = await self.connection.fetchrow(STATEMENTS["lock_chain"], workspace_id)
        if row is None:
            return False
        self._links[workspace_id] = Link(row["chain_seq"], row["chain_hash"])
        return True

    async def begin_chain(self, workspace_id: str) -> None:
        """Gives a new workspace its audit chain."""
        await self.write("insert_audit_head", workspace_id)
        self._links[workspace_id] = FIRST_LINK

    async def take_revision(self) -> Stamp:
        """The place of this change in the history. From now on every other change waits: only writes may follow."""
        row = await self.connection.fetchrow(STATEMENTS["take_revision"], secrets.randbits(63))
        assert row is not None
        return Stamp(Revision(row["epoch"], row["revision"]), row["at"], row["tag"])

    async def head(self) -> Revision:
        """The newest revision, for an answer of what changed nothing."""
        try:
            return await read_head(self.connection)
        except rows.PastRewritten:
            await self.write("renew_epoch")
            return await read_head(self.connection)

    async def write(self, statement: str, *values: object) -> None:
        """Writes rows."""
        await self.connection.execute(STATEMENTS[statement], *values)

    async def record(self, stamp: Stamp, workspace_id: str, deeds: Sequence[Deed], *, wait: bool = False) -> None:
        """Writes the audit entries and the change rows of this change, in their order. The workspace is locked, or new.

        `wait`: somebody waits until every router has it.
        """
        link = self._links[workspace_id]
        entries = []
        for ordinal, deed in enumerate(deeds):
            entry = _entry(stamp, ordinal, deed, link.seq + 1)
            new = link.next(workspace_id, entry)
            entries.append(rows.entry_values(entry, link.hash, new.hash))
            link = new
        self._links[workspace_id] = link
        items = [item for deed in deeds for item in deed.items]
        assert items, "a revision without a change row would look lost to those who follow"
        number = stamp.revision.number
        await self.connection.execute(
            STATEMENTS["record_change"],
            workspace_id,
            link.seq,
            link.hash,
            *zip(*entries, strict=True),
            number,
            stamp.tag,
            stamp.at,
            wait,
            [item.kind.value for item in items],
            [item.user_id for item in items],
            [item.agent_id for item in items],
            [item.after for item in items],
        )


class Rehearsal(Change):
    """A change that is made to see whether it can be, and taken back: it has no place in the history."""

    async def take_revision(self) -> Stamp:
        row = await self.connection.fetchrow(STATEMENTS["rehearse_revision"])
        assert row is not None
        if row["epoch"] is None:
            raise rows.PastRewritten
        return Stamp(Revision(row["epoch"], 0), row["at"], 0)

    async def record(self, stamp: Stamp, workspace_id: str, deeds: Sequence[Deed], *, wait: bool = False) -> None:
        """Nobody is told."""


class _Rehearsed(Exception):  # noqa: N818  (not an error: it takes back what was written)
    def __init__(self, answer: bytes) -> None:
        self.answer = answer


def _entry(stamp: Stamp, ordinal: int, deed: Deed, seq: int) -> Entry:
    current = call.current()
    return Entry(
        seq=seq,
        revision=stamp.revision.number,
        ordinal=ordinal,
        actor=current.identity.actor,
        action=deed.action,
        resource_kind=deed.action.partition(".")[0],
        resource_id=deed.resource_id,
        before=deed.before,
        after=deed.after,
        request_id=current.request_id,
        at=stamp.at,
    )


class Changes:
    """Runs changes. `made` is told after each commit: those who follow need not wait for the next look."""

    def __init__(self, pool: Pool, requests: Requests, made: Callable[[], None] = lambda: None) -> None:
        self._pool = pool
        self._requests = requests
        self._made = made

    async def once(self, attempt: Attempt, workspace_id: str, make: Callable[[Change], Awaitable[bytes]]) -> bytes:
        """Makes the change in the workspace, or returns the answer of the first time.

        Raises RequestReused, and what `make` raises.
        """
        # The scope of the request id is the workspace, or none at all for the creation of workspaces.
        async with postgres.transaction(self._pool, (attempt.scope, workspace_id)) as connection:
            answer = await self._requests.once(connection, attempt, lambda: make(Change(connection)))
        self._made()
        return answer

    async def rehearse(self, workspace_id: str, make: Callable[[Change], Awaitable[bytes]]) -> bytes:
        """What `make` would answer now. Everything is checked by the real writes, and nothing is kept: neither rows nor a
        revision nor an answer for repeats. Raises what `make` raises."""
        try:
            return await self._rehearsed(workspace_id, make)
        except rows.PastRewritten:
            await renew_epoch(self._pool)
        return await self._rehearsed(workspace_id, make)

    async def _rehearsed(self, workspace_id: str, make: Callable[[Change], Awaitable[bytes]]) -> bytes:
        try:
            async with postgres.transaction(self._pool, (workspace_id,)) as connection:
                raise _Rehearsed(await make(Rehearsal(connection)))
        except _Rehearsed as rehearsed:
            return rehearsed.answer


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
