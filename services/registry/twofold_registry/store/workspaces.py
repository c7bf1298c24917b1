"""Workspaces in Postgres."""

from twofold_chassis import postgres
from twofold_chassis.postgres import Pool
from twofold_chassis.requests import Attempt
from twofold_registry.resources import Answer, Edit, Page, Read, Stored
from twofold_registry.store import rows
from twofold_registry.store.changes import Change, Changes, unique
from twofold_registry.store.statements import STATEMENTS
from twofold_registry.wire.workspaces import workspace_json
from twofold_registry.workspaces import Workspace, WorkspaceExists, WorkspaceUnknown


class PostgresWorkspaces:
    """The truth about workspaces."""

    def __init__(self, pool: Pool, changes: Changes) -> None:
        self._pool = pool
        self._changes = changes

    async def get(self, workspace_id: str) -> Read[Stored[Workspace]]:
        async with postgres.connection(self._pool) as connection:
            row = await connection.fetchrow(STATEMENTS["get_workspace"], workspace_id)
        if row is None:
            raise WorkspaceUnknown(workspace_id)
        return rows.read(row, rows.workspace(row))

    async def list(self, after: str, size: int) -> Page[Stored[Workspace]]:
        async with postgres.connection(self._pool) as connection:
            found = await connection.fetch(STATEMENTS["list_workspaces"], after, size + 1)
        return rows.page([rows.workspace(row) for row in found], size)

    async def create(self, workspace: Workspace, attempt: Attempt, answer: Answer[Stored[Workspace]]) -> bytes:
        async def make(change: Change) -> bytes:
            stamp = await change.take_revision()
            stored = Stored.new(workspace, stamp)
            with unique({"workspace_ids_are_unique": WorkspaceExists(workspace.workspace_id)}):
                values = (*workspace.path, stamp.at, stamp.at, stamp.revision.number, *rows.workspace_values(workspace))
                await change.write("insert_workspace", *values)
            workspace_id = workspace.workspace_id
            await change.record(stamp, "workspace.create", workspace_id, workspace_id, after=workspace_json(stored))
            return answer(stored, stamp.revision)

        return await self._changes.once(attempt, make)

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
            told = {"before": workspace_json(before), "after": workspace_json(after)}
            await change.record(stamp, "workspace.update", workspace_id, workspace_id, **told)
            return answer(after, stamp.revision)

        return await self._changes.once(attempt, make)

    async def delete(self, workspace_id: str, etag: str, attempt: Attempt, answer: Answer[None]) -> bytes:
        async def make(change: Change) -> bytes:
            before = await _locked(change, workspace_id)
            before.expect(etag)
            stamp = await change.take_revision()
            await change.write("delete_workspace", workspace_id, stamp.at, stamp.revision.number)
            await change.record(stamp, "workspace.delete", workspace_id, workspace_id, before=workspace_json(before))
            return answer(None, stamp.revision)

        return await self._changes.once(attempt, make)


async def _locked(change: Change, workspace_id: str) -> Stored[Workspace]:
    workspace = await change.lock_workspace(workspace_id)
    if workspace is None:
        raise WorkspaceUnknown(workspace_id)
    return workspace
