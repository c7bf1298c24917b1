"""The audit trail in Postgres, for reading: `changes.py` writes it."""

from collections.abc import Collection
from datetime import UTC, datetime
from typing import NamedTuple

from asyncpg import Record

from twofold_chassis import postgres
from twofold_chassis.postgres import Connection, Pool
from twofold_registry.audit import AuditQuery, Chained, Head, Link, Place, Trail
from twofold_registry.audit_chains import Batch, Kept
from twofold_registry.revisions import Revision
from twofold_registry.store import rows
from twofold_registry.store.reads import Reads
from twofold_registry.store.statements import STATEMENTS
from twofold_registry.store.tenants import require_past_workspace
from twofold_registry.workspaces import WorkspaceUnknown

SCANNED_MAX = 2000
"""How many entries a page looks at where an index does not do all of the filtering."""
_BATCH_BYTES_MAX = 1024 * 1024
_FIRST = Place(datetime(1, 1, 1, tzinfo=UTC), 0)
_LAST = Place(datetime(9999, 12, 31, tzinfo=UTC), 2**63 - 1)


class _Way(NamedTuple):
    """An index that a listing goes along, and the filters that it does: the rest of them is looked at entry by entry."""

    filters: Collection[str]
    newest: str
    oldest: str

    def fits(self, query: AuditQuery) -> bool:
        return any(getattr(query, name) is not None for name in self.filters) or not self.filters


_BY_TIME = _Way(("start", "end"), "audit_by_time_newest", "audit_by_time_oldest")
# From the one that leaves the fewest entries to the one that leaves them all.
_WAYS = (
    _Way(("request_id",), "audit_of_request_newest", "audit_of_request_oldest"),
    _Way(("resource_id", "resource_kind"), "audit_of_resource_newest", "audit_of_resource_oldest"),
    _BY_TIME,
    _Way(("actor",), "audit_of_actor_newest", "audit_of_actor_oldest"),
    _Way(("action",), "audit_of_action_newest", "audit_of_action_oldest"),
    _Way(("resource_kind",), "audit_of_kind_newest", "audit_of_kind_oldest"),
    _Way((), "audit_newest", "audit_oldest"),
)
_PLACED = ("first_revision", "last_revision")  # filters that are bounds of the place


class PostgresAudit:
    """The truth about who did what."""

    def __init__(self, reads: Reads) -> None:
        self._reads = reads

    async def list(self, query: AuditQuery, behind: Place | None, size: int, least: Revision | None) -> Trail:
        async def ask(connection: Connection) -> Trail:
            trail = await _trail(connection, query, behind, size)
            if not trail.entries:
                await require_past_workspace(connection, query.workspace_id)
            return trail

        return await self._reads.report(query.workspace_id, ask, least)

    async def head(self, workspace_id: str) -> Head:
        """The end of a chain now. Raises WorkspaceUnknown."""

        async def ask(connection: Connection) -> Head:
            row = await connection.fetchrow(STATEMENTS["get_audit_head"], workspace_id)
            if row is None:
                raise WorkspaceUnknown(workspace_id)
            epoch = rows.read(row, None).revision.epoch
            return Head(workspace_id, row["seq"], row["hash"], row["revision"], epoch, row["at"])

        return await self._reads.read(workspace_id, ask)


async def _trail(connection: Connection, query: AuditQuery, behind: Place | None, size: int) -> Trail:
    """In two steps: the places in the order of an index, and then what stands there. No entry ever changes in between."""
    way = _way(query)
    low, high = (behind or _FIRST, _LAST) if query.oldest_first else (_FIRST, behind or _LAST)
    done = set(way.filters)
    if way is not _BY_TIME:
        done.update(_PLACED)
        low, high = await _placed(connection, query, low, high)
    asked = _asked(query)
    exact = asked <= done
    scanned = await _scan(connection, query, way, low, high, size + 1 if exact else SCANNED_MAX)
    filters = [getattr(query, name) for name in (*_EQUAL, *_SPANS)]
    seqs = [row["seq"] for row in scanned]
    found = await connection.fetch(STATEMENTS["read_audit"], query.workspace_id, seqs, size + 1, *filters)
    entries = [_chained(row) for row in found]
    if len(entries) > size:
        last = entries[size - 1].entry
        return Trail(entries[:size], Place(last.at, last.seq))
    if not exact and len(scanned) == SCANNED_MAX:
        return Trail(entries, Place(scanned[-1]["created_at"], scanned[-1]["seq"]))
    return Trail(entries, None)


_EQUAL = ("resource_kind", "resource_id", "actor", "action", "request_id")
_SPANS = ("start", "end", *_PLACED)


def _asked(query: AuditQuery) -> set[str]:
    return {name for name in (*_EQUAL, *_SPANS) if getattr(query, name) is not None}


def _way(query: AuditQuery) -> _Way:
    if query.resource_id is None:  # the index of resources begins with the kind, but is in order only below one id
        return next(way for way in _WAYS if "resource_id" not in way.filters and way.fits(query))
    return next(way for way in _WAYS if way.fits(query))


async def _placed(connection: Connection, query: AuditQuery, low: Place, high: Place) -> tuple[Place, Place]:
    """The same bounds, narrowed to the places that the revisions have in the chain."""
    if query.first_revision is None and query.last_revision is None:
        return low, high
    first, last = query.first_revision or 0, query.last_revision or _LAST.seq
    row = await connection.fetchrow(STATEMENTS["audit_places_of_revisions"], query.workspace_id, first, last)
    assert row is not None
    if row["first"] is None or row["last"] is None:
        return low, low
    return Place(low.at, max(low.seq, row["first"] - 1)), Place(high.at, min(high.seq, row["last"] + 1))


async def _scan(connection: Connection, query: AuditQuery, way: _Way, low: Place, high: Place, count: int) -> "list[Record]":
    statement = STATEMENTS[way.oldest if query.oldest_first else way.newest]
    if way is not _BY_TIME:
        filters = [getattr(query, name) for name in way.filters]
        return await connection.fetch(statement, query.workspace_id, low.seq, high.seq, count, *filters)
    # The places behind the start, and those before the end, whatever their place in the chain.
    if query.start is not None:
        low = max(low, Place(query.start, 0))
    if query.end is not None:
        high = min(high, Place(query.end, 0))
    return await connection.fetch(statement, query.workspace_id, low.at, low.seq, high.at, high.seq, count)


class PostgresChains:
    """The chains, for long walks over a pool of its own: nobody who has little to ask waits behind them."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool

    async def batch(self, workspace_id: str, after: int, last: int) -> Batch:
        values = (workspace_id, after, last, last - after + 1, _BATCH_BYTES_MAX)
        async with postgres.reading(self._pool, (workspace_id,)) as connection:
            found = await connection.fetch(STATEMENTS["audit_batch"], *values)
            if found[0]["head_seq"] is None:
                await require_past_workspace(connection, workspace_id)
        first = found[0]
        return Batch(
            last=last,
            head=None if first["head_seq"] is None else Link(first["head_seq"], first["head_hash"]),
            lowest=first["lowest"],
            behind=first["behind"],
            entries=[_chained(row) for row in found if row["seq"] is not None],
            following=found[-1]["following"],
        )

    async def kept(self, workspace_id: str, seq: int) -> Kept | None:
        async with postgres.reading(self._pool, (workspace_id,)) as connection:
            row = await connection.fetchrow(STATEMENTS["audit_place"], workspace_id, seq)
            if row is None:
                await require_past_workspace(connection, workspace_id)
                return None
        return Kept(Link(seq, row["hash"]), (row["revision"], row["ordinal"]))


def _chained(row: Record) -> Chained:
    return Chained(rows.entry(row), row["prev_hash"], row["hash"])
