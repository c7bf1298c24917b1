"""Terms in Postgres: of the primary, and all of it from one statement, as a router keeps it until something changes."""

from asyncpg import Record

from twofold_chassis.postgres import Connection
from twofold_registry.caps import CapState, Told
from twofold_registry.resources import Read
from twofold_registry.revisions import Revision
from twofold_registry.store import rows
from twofold_registry.store.reads import Reads
from twofold_registry.store.statements import STATEMENTS
from twofold_registry.terms import Terms, in_force
from twofold_registry.workspaces import WorkspaceUnknown


class PostgresTerms:
    """The truth about terms."""

    def __init__(self, reads: Reads) -> None:
        self._reads = reads

    async def get(self, workspace_id: str, user_id: str | None, least: Revision | None) -> Read[Terms]:
        async def ask(connection: Connection) -> Read[Terms]:
            row = await connection.fetchrow(STATEMENTS["get_terms"], workspace_id, user_id or "")
            assert row is not None
            return rows.read(row, _terms(row, workspace_id))

        read = await self._reads.read(workspace_id, ask)
        read.revision.satisfies(least)
        return read


def _terms(row: Record, workspace_id: str) -> Terms:
    if row["limit_kinds"] is None:
        raise WorkspaceUnknown(workspace_id)
    return Terms(
        limits=in_force(rows.limits(row), rows.limits(row, "user_") if row["user_limit_kinds"] is not None else ()),
        cap=Told(CapState(row["cap_state"]), row["cap_month"]) if row["cap_state"] else None,
        allowed_url_suffixes=tuple(row["allowed_url_suffixes"]),
        namespace=row["namespace"],
        read_at=row["at"],
    )
