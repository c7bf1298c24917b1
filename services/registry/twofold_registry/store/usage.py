"""Usage events in Postgres. They never touch the head of the history: metadata and usage do not wait for each other."""

from collections.abc import Sequence

import asyncpg

from twofold_chassis import postgres
from twofold_chassis.postgres import Connection, Pool
from twofold_chassis.refusals import InvalidField
from twofold_registry.store.statements import STATEMENTS
from twofold_registry.store.tenants import require_workspace
from twofold_registry.usage import Event, EventReused, Totals, UsageQuery, distinct
from twofold_registry.workspaces import WorkspaceUnknown


class PostgresUsage:
    """The truth about what was used."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool

    async def record(self, workspace_id: str, events: Sequence[Event]) -> list[bool]:
        batch = distinct(workspace_id, events)
        async with postgres.transaction(self._pool, (workspace_id,)) as connection:
            await require_workspace(connection, workspace_id)
            new = await _insert(connection, workspace_id, batch)
            await _compare(connection, workspace_id, {event_id: batch[event_id][1] for event_id in batch.keys() - new})
        return _duplicates(events, new)

    async def totals(self, query: UsageQuery) -> Totals:
        values = (query.workspace_id, query.start, query.end, query.user_id, query.agent_id)
        async with postgres.reading(self._pool, (query.workspace_id,)) as connection:
            try:
                row = await connection.fetchrow(STATEMENTS["sum_usage"], *values)
            except asyncpg.NumericValueOutOfRangeError:
                raise InvalidField("end_time", "the sums of this span do not fit; ask for a shorter one") from None
        if row is None:
            raise WorkspaceUnknown(query.workspace_id)
        return Totals(row["events"], row["messages"], row["input_tokens"], row["output_tokens"])


async def _insert(connection: Connection, workspace_id: str, batch: dict[str, tuple[Event, bytes]]) -> set[str]:
    """Keeps those that are new and returns their ids; of one that another call is recording now, waits for the end."""
    ordered = [batch[event_id] for event_id in sorted(batch)]
    columns = (
        [event.event_id for event, _ in ordered],
        [event.user_id for event, _ in ordered],
        [event.agent_id for event, _ in ordered],
        [event.thread_id for event, _ in ordered],
        [event.at for event, _ in ordered],
        [event.messages for event, _ in ordered],
        [event.input_tokens for event, _ in ordered],
        [event.output_tokens for event, _ in ordered],
        [body for _, body in ordered],
    )
    return {row["event_id"] for row in await connection.fetch(STATEMENTS["insert_events"], workspace_id, *columns)}


async def _compare(connection: Connection, workspace_id: str, bodies: dict[str, bytes]) -> None:
    if not bodies:
        return
    for row in await connection.fetch(STATEMENTS["recorded_bodies"], workspace_id, list(bodies)):
        if row["body_hash"] != bodies[row["event_id"]]:
            raise EventReused(workspace_id, row["event_id"])


def _duplicates(events: Sequence[Event], new: set[str]) -> list[bool]:
    """Of an id that stands twice in the batch, the first may be new, the second is not."""
    fresh = set(new)
    duplicates = []
    for event in events:
        duplicates.append(event.event_id not in fresh)
        fresh.discard(event.event_id)
    return duplicates
