"""Whether a workspace is there, for answers that would otherwise be empty: an error is never dressed up as empty."""

from twofold_chassis.postgres import Connection
from twofold_registry.store.statements import STATEMENTS
from twofold_registry.workspaces import WorkspaceUnknown


async def require_workspace(connection: Connection, workspace_id: str) -> None:
    """Raises WorkspaceUnknown for a workspace that is deleted or never was."""
    if not await connection.fetchval(STATEMENTS["workspace_lives"], workspace_id):
        raise WorkspaceUnknown(workspace_id)


async def require_past_workspace(connection: Connection, workspace_id: str) -> None:
    """Raises WorkspaceUnknown for a workspace that never was."""
    if not await connection.fetchval(STATEMENTS["workspace_ever_was"], workspace_id):
        raise WorkspaceUnknown(workspace_id)
