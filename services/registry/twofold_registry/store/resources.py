"""Workspaces, users and agents in Postgres, as far as they are kept alike."""

import json
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Generic, NamedTuple

from asyncpg import Record

from twofold_chassis.postgres import Connection
from twofold_chassis.refusals import AlreadyExists, NotFound
from twofold_registry.history import Item
from twofold_registry.resources import Answer, Edit, Key, Kind, Listing, Look, Order, Page, Read, Stamp, Stored, Write
from twofold_registry.store import rows
from twofold_registry.store.changes import Change, Changes, Deed, unique
from twofold_registry.store.reads import Reads
from twofold_registry.store.statements import STATEMENTS
from twofold_registry.store.tenants import require_workspace
from twofold_registry.workspaces import Workspace, WorkspaceUnknown


class Statements(NamedTuple):
    """The names of the statements of one kind. Their first parameters are the ids of the resource, from the workspace on.

    Then follow, for `get`, whether deleted ones are shown; for `insert`, times of creation and of the last change,
    revision, and the kind's own values; for `update`, time, revision, and the own values; for `delete`, time, revision and
    the time of the purge; for `undelete` and `purge`, time and revision. `batch_get` takes the workspace (but for
    workspaces), the ids, and whether deleted ones are shown; a listing the workspace, how many, whether deleted ones are
    shown, the kind's own filters, and the place to begin behind.
    """

    get: str
    batch_get: str
    insert: str
    update: str
    delete: str
    undelete: str
    purge: str
    listings: Mapping[Order, str]


@dataclass(frozen=True, slots=True)
class Table(Generic[Kind]):
    """What is a kind's own. `items`: what those who follow are told of a change, from what was to what is (None: gone)."""

    kind: str
    statements: Statements
    stored: Callable[[Record], Stored[Kind]]
    values: Callable[[Kind], tuple[object, ...]]
    told: Callable[[Stored[Kind]], str]
    items: Callable[[Stored[Kind] | None, Stored[Kind] | None], Sequence[Item]]
    unknown: Callable[[Key], NotFound]
    taken: Callable[[Kind], Mapping[str, AlreadyExists]]


class PostgresResources(Generic[Kind]):
    """The truth about the resources of one kind. A kind with rules of its own overrides what begins with "_"."""

    def __init__(
        self, table: Table[Kind], reads: Reads, changes: Changes, grace: timedelta, many: Reads | None = None
    ) -> None:
        """`grace`: how long a deleted one can be restored. `many`: reads several at once, if `reads` cannot."""
        self._table = table
        self._statements = table.statements
        self._reads = reads
        self._many = many or reads
        self._changes = changes
        self._grace = grace

    async def get(self, key: Key, look: Look) -> Read[Stored[Kind]]:
        async def ask(connection: Connection) -> Read[Stored[Kind]]:
            row = await self._row(connection, key, look.show_deleted)
            return rows.read(row, self._table.stored(row))

        return await self._reads.read(key[0], ask, look.least)

    async def batch_get(self, workspace_id: str, ids: Sequence[str], look: Look) -> Read[Sequence[Stored[Kind]]]:
        async def ask(connection: Connection) -> Read[Sequence[Stored[Kind]]]:
            values = (*_scope(workspace_id), ids, look.show_deleted)
            found = await connection.fetch(STATEMENTS[self._statements.batch_get], *values)
            # The head is in every row, so there is one row although there is no resource.
            return rows.read(found[0], [self._table.stored(row) for row in found if row["created_at"] is not None])

        return await self._many.read(workspace_id, ask, look.least)

    async def list(self, listing: Listing) -> Page[Stored[Kind]]:
        statement = STATEMENTS[self._statements.listings[listing.order]]
        values = (*_scope(listing.workspace_id), listing.size + 1, listing.look.show_deleted, *listing.filters)

        async def ask(connection: Connection) -> list[Record]:
            found = await connection.fetch(statement, *values, *listing.after)
            if not found and listing.workspace_id:
                await require_workspace(connection, listing.workspace_id)
            return found

        found = await self._many.report(listing.workspace_id, ask, listing.look.least)
        return rows.page([self._table.stored(row) for row in found], listing.size)

    async def create(self, value: Kind, write: Write, answer: Answer[Stored[Kind]]) -> bytes:
        async def make(change: Change) -> bytes:
            await self._check(change, await self._home(change, value), None, value)
            stamp = await change.take_revision()
            stored = Stored.new(value, stamp)
            with unique(self._table.taken(value)):
                await self._insert(change, stored)
            await self._record(change, stamp, "create", None, stored)
            return answer(stored, stamp.revision)

        return await self._make(write, value.path, make)

    async def update(self, key: Key, edit: Edit, write: Write, answer: Answer[Stored[Kind]]) -> bytes:
        async def make(change: Change) -> bytes:
            workspace, before = await self._locked(change, key)
            before.expect(write.etag)
            value = self._edited(before.value, edit)
            await self._check(change, workspace, before.value, value)
            stamp = await change.take_revision()
            after = before.changed(value, stamp)
            with unique(self._table.taken(value)):
                values = (*key, stamp.at, stamp.revision.number, *self._table.values(value))
                await change.write(self._statements.update, *values)
            await self._record(change, stamp, "update", before, after)
            return answer(after, stamp.revision)

        return await self._make(write, key, make)

    async def delete(self, key: Key, write: Write, answer: Answer[Stored[Kind]]) -> bytes:
        async def make(change: Change) -> bytes:
            workspace, before = await self._locked(change, key)
            before.expect(write.etag)
            await self._check(change, workspace, before.value, None)
            stamp = await change.take_revision()
            purge_at = stamp.at + self._grace
            await change.write(self._statements.delete, *key, stamp.at, stamp.revision.number, purge_at)
            await self._record(change, stamp, "delete", before, None)
            return answer(before.deleted(stamp, purge_at), stamp.revision)

        return await self._make(write, key, make)

    async def undelete(self, key: Key, write: Write, answer: Answer[Stored[Kind]]) -> bytes:
        async def make(change: Change) -> bytes:
            workspace, before = await self._locked(change, key, show_deleted=True)
            before.expect(write.etag)
            before.require_deleted()
            await self._check(change, workspace, None, before.value)
            stamp = await change.take_revision()
            after = before.changed(before.value, stamp)
            with unique(self._table.taken(before.value)):
                await change.write(self._statements.undelete, *key, stamp.at, stamp.revision.number)
            await self._record(change, stamp, "undelete", None, after)
            return answer(after, stamp.revision)

        return await self._make(write, key, make)

    async def purge(self, key: Key, write: Write, answer: Answer[None]) -> bytes:
        async def make(change: Change) -> bytes:
            _, before = await self._locked(change, key, show_deleted=True)
            before.expect(write.etag)
            before.require_deleted()
            stamp = await change.take_revision()
            await change.write(self._statements.purge, *key, stamp.at, stamp.revision.number)
            # The audit is told which one it was, and nothing of what is to be forgotten.
            tombstone = json.dumps(dict(zip(("workspace_id", f"{self._table.kind}_id"), key, strict=False)))
            deed = Deed(f"{self._table.kind}.purge", key[-1], tombstone, "", self._table.items(before, None))
            await change.record(stamp, key[0], [deed])
            return answer(None, stamp.revision)

        return await self._make(write, key, make)

    async def _make(self, write: Write, key: Key, make: Callable[[Change], Awaitable[bytes]]) -> bytes:
        if write.validate_only:
            return await self._changes.rehearse(key[0], make)
        return await self._changes.once(write.attempt, key[0], make)

    async def _record(
        self, change: Change, stamp: Stamp, action: str, before: Stored[Kind] | None, after: Stored[Kind] | None
    ) -> None:
        (path, *_) = [each.value.path for each in (after, before) if each]
        old, new = [self._table.told(each) if each else "" for each in (before, after)]
        deed = Deed(f"{self._table.kind}.{action}", path[-1], old, new, self._table.items(before, after))
        await change.record(stamp, path[0], [deed])

    async def _row(self, connection: Connection, key: Key, show_deleted: bool) -> Record:
        row = await connection.fetchrow(STATEMENTS[self._statements.get], *key, show_deleted)
        if row is None:
            raise self._table.unknown(key)
        return row

    async def _locked(
        self, change: Change, key: Key, *, show_deleted: bool = False
    ) -> tuple[Stored[Workspace], Stored[Kind]]:
        """The resource and its workspace, which nobody else changes until this change has ended."""
        workspace = await change.lock_workspace(key[0])
        if workspace is None:
            raise self._table.unknown(key)
        return workspace, self._table.stored(await self._row(change.connection, key, show_deleted))

    async def _home(self, change: Change, value: Kind) -> Stored[Workspace] | None:
        """The workspace that a new resource comes into, locked; None for a new workspace."""
        workspace = await change.lock_workspace(value.path[0])
        if workspace is None:
            raise WorkspaceUnknown(value.path[0])
        return workspace

    async def _insert(self, change: Change, stored: Stored[Kind]) -> None:
        values = (stored.created_at, stored.updated_at, stored.revision, *self._table.values(stored.value))
        await change.write(self._statements.insert, *stored.value.path, *values)

    def _edited(self, before: Kind, edit: Edit) -> Kind:
        """The resource after an update."""
        return edit.applied(before)

    async def _check(
        self, change: Change, workspace: Stored[Workspace] | None, before: Kind | None, after: Kind | None
    ) -> None:
        """Refuses what the kind forbids. `before` is None when it is created or restored, `after` when it is deleted."""


def _scope(workspace_id: str) -> tuple[str, ...]:
    return (workspace_id,) if workspace_id else ()
