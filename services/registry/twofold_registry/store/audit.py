"""The audit trail in Postgres, for reading: `changes.py` writes it."""

from asyncpg import Record

from twofold_chassis.postgres import Connection
from twofold_registry.audit import AuditQuery, Entry, Place
from twofold_registry.resources import Page
from twofold_registry.store import rows
from twofold_registry.store.reads import Reads
from twofold_registry.store.statements import STATEMENTS
from twofold_registry.store.tenants import require_past_workspace


class PostgresAudit:
    """The truth about who did what."""

    def __init__(self, reads: Reads) -> None:
        self._reads = reads

    async def list(self, query: AuditQuery, before: Place, size: int) -> Page[Entry]:
        statement, filters = _chosen(query)
        values = (query.workspace_id, before.revision, before.ordinal, size + 1, *filters)

        async def ask(connection: Connection) -> list[Record]:
            found = await connection.fetch(STATEMENTS[statement], *values)
            if not found:
                await require_past_workspace(connection, query.workspace_id)
            return found

        found = await self._reads.read(query.workspace_id, ask)
        return rows.page([rows.entry(row) for row in found], size)


def _chosen(query: AuditQuery) -> tuple[str, tuple[str, ...]]:
    if query.resource_kind is None:
        return "list_audit", ()
    if query.resource_id is None:
        return "list_audit_of_kind", (query.resource_kind,)
    return "list_audit_of_resource", (query.resource_kind, query.resource_id)
