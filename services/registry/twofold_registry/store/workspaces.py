"""Workspaces in Postgres."""

from twofold_chassis import postgres
from twofold_chassis.postgres import Connection, Pool
from twofold_chassis.requests import Attempt
from twofold_registry.history import Item, ItemKind
from twofold_registry.resources import Answer, Edit, Page, Read, Stored
from twofold_registry.store import rows
from twofold_registry.store.changes import Change, Changes, Deed, unique
from twofold_registry.store.reads import Reads
from twofold_registry.store.statements import STATEMENTS
from twofold_registry.wire.workspaces import workspace_bytes, workspace_json
from twofold_registry.workspaces import Workspace, WorkspaceExists, WorkspaceUnknown


class PostgresWorkspaces:
    """The truth about workspaces."""

    def __init__(self, reads: Reads, changes: Changes, system: Pool) -> None:
        self._reads = reads
        self._system = system
        self._changes = changes

    async def get(self, workspace_id: str) -> Read[Stored[Workspace]]:
        async def ask(connection: Connection) -> Read[Stored[Workspace]]:
            row = await connection.fetchrow(STATEMENTS["get_workspace"], workspace_id)
            if row is None:
                raise WorkspaceUnknown(workspace_id)
            return rows.read(row, rows.workspace(row))

        return await self._reads.read(workspace_id, ask)

    async def list(self, after: str, size: int) -> Page[Stored[Workspace]]:
        async with postgres.connection(self._system) as connection:  # which sees them all
            found = await connection.fetch(STATEMENTS["list_workspaces"], after, size + 1)
        return rows.page([rows.workspace(row) for row in found], size)

    async def create(self, workspace: Workspace, attempt: Attempt, answer: Answer[Stored[Workspace]]) -> bytes:
        async def make(change: Change) -> bytes:
            stamp = await change.take_revision()
            stored = Stored.new(workspace, stamp)
            with unique({"workspace_ids_are_unique": WorkspaceExists(workspace.workspace_id)}):
                values = (*workspace.path, stamp.at, stamp.at, stamp.revision.number, *rows.workspace_values(workspace))
                await change.write("insert_workspace", *values)
            await change.begin_chain(workspace.workspace_id)
            await change.record(stamp, workspace.workspace_id, [_deed("create", None, stored)])
            return answer(stored, stamp.revision)

        return await self._changes.once(attempt, workspace.workspace_id, make)

    async def update(
        self, workspace_id: str, edit: Edit, etag: str, attempt: Attempt, answer: Answer[Stored[Workspace]]
    ) -> bytes:
        async def make(change: Change) -> bytes:
            before = await _locked(change, workspace_id)
            before.expect(etag)
            workspace = edit.applied(before.value)
            stamp = await change.take_revision()
            after = before.changed(workspace, stamp)
            values = (workspace_id, stamp.at, stamp.revision.number, *rows.workspace_values(workspace))
            await change.write("update_workspace", *values)
            await change.record(stamp, workspace_id, [_deed("update", before, after)])
            return answer(after, stamp.revision)

        return await self._changes.once(attempt, workspace_id, make)

    async def delete(self, workspace_id: str, etag: str, attempt: Attempt, answer: Answer[None]) -> bytes:
        async def make(change: Change) -> bytes:
            before = await _locked(change, workspace_id)
            before.expect(etag)
            stamp = await change.take_revision()
            await change.write("delete_workspace", workspace_id, stamp.at, stamp.revision.number)
            await change.record(stamp, workspace_id, [_deed("delete", before, None)])
            return answer(None, stamp.revision)

        return await self._changes.once(attempt, workspace_id, make)


async def _locked(change: Change, workspace_id: str) -> Stored[Workspace]:
    workspace = await change.lock_workspace(workspace_id)
    if workspace is None:
        raise WorkspaceUnknown(workspace_id)
    return workspace


def _deed(action: str, before: Stored[Workspace] | None, after: Stored[Workspace] | None) -> Deed:
    workspace_id = told.value.workspace_id if (told := after or before) else ""
    item = Item(ItemKind.WORKSPACE, after=workspace_bytes(after) if after else None)
    return Deed(
        f"workspace.{action}",
        workspace_id,
        workspace_json(before) if before else "",
        workspace_json(after) if after else "",
        [item],
    )
