"""Workspaces in Postgres."""

from collections.abc import Sequence
from datetime import timedelta

from twofold_registry.history import Item, ItemKind
from twofold_registry.resources import Key, Order, Stored
from twofold_registry.store import rows
from twofold_registry.store.changes import Change, Changes
from twofold_registry.store.reads import Reads
from twofold_registry.store.resources import PostgresResources, Statements, Table
from twofold_registry.wire.workspaces import workspace_bytes, workspace_json
from twofold_registry.workspaces import Workspace, WorkspaceExists, WorkspaceUnknown


class PostgresWorkspaces(PostgresResources[Workspace]):
    """The truth about workspaces. `many` sees them all."""

    def __init__(self, reads: Reads, changes: Changes, grace: timedelta, many: Reads) -> None:
        super().__init__(_TABLE, reads, changes, grace, many)

    async def _locked(
        self, change: Change, key: Key, *, show_deleted: bool = False
    ) -> tuple[Stored[Workspace], Stored[Workspace]]:
        workspace = await change.lock_workspace(key[0], show_deleted=show_deleted)
        if workspace is None:
            raise WorkspaceUnknown(key[0])
        return workspace, workspace

    async def _home(self, change: Change, value: Workspace) -> None:
        """It belongs to none."""

    async def _insert(self, change: Change, stored: Stored[Workspace]) -> None:
        await super()._insert(change, stored)
        await change.begin_chain(stored.value.workspace_id)


def _items(before: Stored[Workspace] | None, after: Stored[Workspace] | None) -> Sequence[Item]:
    told = workspace_bytes(after) if after else None
    items = [Item(ItemKind.WORKSPACE, after=told)]
    if before and after and not after.value.allows_as(before.value):
        items.append(Item(ItemKind.PLAN, after=told))
    return items


def _unknown(key: Key) -> WorkspaceUnknown:
    return WorkspaceUnknown(key[0])


def _taken(workspace: Workspace) -> dict[str, WorkspaceExists]:
    return {"workspace_ids_are_unique": WorkspaceExists(workspace.workspace_id)}


_TABLE = Table(
    kind="workspace",
    statements=Statements(
        get="get_workspace",
        batch_get="batch_get_workspaces",
        insert="insert_workspace",
        update="update_workspace",
        delete="delete_workspace",
        undelete="undelete_workspace",
        purge="purge_workspace",
        listings={
            Order.ID: "list_workspaces",
            Order.ID_DESC: "list_workspaces_desc",
            Order.TIME: "list_workspaces_by_time",
            Order.TIME_DESC: "list_workspaces_by_time_desc",
        },
    ),
    stored=rows.workspace,
    values=rows.workspace_values,
    told=workspace_json,
    items=_items,
    unknown=_unknown,
    taken=_taken,
)
