"""The history of sessions in Postgres. It never touches the head of the history: it waits for no change of metadata."""

from collections.abc import Iterable, Sequence
from datetime import UTC, datetime

from asyncpg import Record

from twofold_chassis import postgres
from twofold_chassis.postgres import Connection, Pool
from twofold_registry.pods import Incarnation
from twofold_registry.resources import Page
from twofold_registry.revisions import Revision
from twofold_registry.sessions import CloseReason, Closing, Holding, Place, Session, SessionQuery, Tenure
from twofold_registry.store import rows
from twofold_registry.store.reads import Reads
from twofold_registry.store.statements import STATEMENTS
from twofold_registry.store.tenants import require_past_workspace

_EVER = datetime(1, 1, 1, tzinfo=UTC)
_NEVER = datetime(9999, 12, 31, tzinfo=UTC)


class PostgresSessions:
    """The truth about what became of sessions."""

    def __init__(self, pool: Pool, reads: Reads) -> None:
        self._pool = pool
        self._reads = reads

    async def record(self, workspace_id: str, told: Sequence[Session]) -> list[int]:
        async with postgres.transaction(self._pool, (workspace_id,)) as connection:
            await require_past_workspace(connection, workspace_id)
            holdings = await _known_holdings(connection, workspace_id, _disputed(told))
            joined: dict[Tenure, Session] = {}
            for each in told:
                if each.holding == holdings.setdefault(each.tenure, each.holding):
                    joined[each.tenure] = joined.get(each.tenure, each).joined(each)
            others = await _join(connection, workspace_id, [joined[tenure] for tenure in sorted(joined)])
        return [place for place, each in enumerate(told) if each.tenure in others or each.holding != holdings[each.tenure]]

    async def list(self, query: SessionQuery, before: Place | None, size: int, least: Revision | None) -> Page[Session]:
        statement, filters = _chosen(query)
        place = before or Place(query.end or _NEVER, "", 0)
        values = (query.workspace_id, *place, query.start or _EVER, size + 1, *filters)

        async def ask(connection: Connection) -> list[Record]:
            found = await connection.fetch(STATEMENTS[statement], *values)
            if not found:
                await require_past_workspace(connection, query.workspace_id)
            return found

        found = await self._reads.report(query.workspace_id, ask, least)
        return rows.page([_session(row) for row in found], size)


def _chosen(query: SessionQuery) -> tuple[str, tuple[object, ...]]:
    """The statement whose index is led by the filter that leaves fewest; the others are looked at row by row."""
    if query.user_id is not None:
        return "list_sessions_of_user", (query.open_only, query.user_id, query.pod_id, query.agent_id)
    if query.pod_id is not None:
        return "list_sessions_of_pod", (query.open_only, query.pod_id, query.agent_id)
    if query.agent_id is not None:
        return "list_sessions_of_agent", (query.open_only, query.agent_id)
    return ("list_open_sessions" if query.open_only else "list_sessions"), ()


def _disputed(told: Sequence[Session]) -> list[Tenure]:
    """The tenures that are told with several holdings: which one counts is not for their order to decide."""
    first: dict[Tenure, Holding] = {}
    return [each.tenure for each in told if first.setdefault(each.tenure, each.holding) != each.holding]


async def _known_holdings(connection: Connection, workspace_id: str, tenures: Sequence[Tenure]) -> dict[Tenure, Holding]:
    if not tenures:
        return {}
    found = await connection.fetch(STATEMENTS["known_holdings"], workspace_id, *zip(*tenures, strict=True))
    return {_tenure(row): _holding(row) for row in found}


async def _join(connection: Connection, workspace_id: str, told: Sequence[Session]) -> set[Tenure]:
    """Keeps what is told, each tenure once, in their order; returns those that are held by others."""
    if not told:
        return set()
    new = await connection.fetch(STATEMENTS["join_sessions"], workspace_id, *_holdings(told), *_times(told))
    kept = {_tenure(row) for row in new}
    return await _held_by_others(connection, workspace_id, [each for each in told if each.tenure not in kept])


async def _held_by_others(connection: Connection, workspace_id: str, told: Sequence[Session]) -> set[Tenure]:
    if not told:
        return set()
    found = await connection.fetch(STATEMENTS["held_by_others"], workspace_id, *_holdings(told))
    return {_tenure(row) for row in found}


def _holdings(told: Iterable[Session]) -> Iterable[tuple[object, ...]]:
    return zip(*((*each.tenure, *each.holding[:3], *each.holding.incarnation) for each in told), strict=True)


def _times(told: Iterable[Session]) -> Iterable[tuple[object, ...]]:
    return zip(*((each.opened_at, *(each.closing or (None, 0))) for each in told), strict=True)


def _tenure(row: Record) -> Tenure:
    return Tenure(row["session_id"], row["fence"])


def _holding(row: Record) -> Holding:
    return Holding(row["user_id"], row["agent_id"], row["pod_id"], Incarnation(row["pod_epoch"], row["pod_number"]))


def _session(row: Record) -> Session:
    closed_at = row["closed_at"]
    return Session(
        tenure=_tenure(row),
        holding=_holding(row),
        opened_at=row["opened_at"],
        closing=None if closed_at is None else Closing(closed_at, CloseReason(row["close_reason"])),
    )
