"""The event logs of conversations in Postgres."""

import json
from collections.abc import Callable, Mapping, Sequence

import asyncpg

from twofold_chassis import postgres
from twofold_chassis.postgres import Connection, Pool
from twofold_chassis.requests import Attempt, Requests
from twofold_memory.events import Event, EventPage, NewEvent, Recorded
from twofold_memory.store import records
from twofold_memory.store.statements import STATEMENTS
from twofold_memory.threads import ANSWER_BYTES_MAX, ThreadKey

Answer = Callable[[Recorded], bytes]


async def record(connection: Connection, key: ThreadKey, kind: str, payload: Mapping[str, object]) -> int:
    """Writes an event of the service's own into a conversation's log, in the running transaction; returns its offset.

    To be called as the last step of the change that it tells of: it locks the log of the conversation until the commit,
    behind the conversation's own row if that is locked too (always in this order). The payload becomes JSON, at most 64 KiB:
    ids and numbers, never what was said. Asks nothing of the conversation: whoever changes it knows that it is there.
    """
    return (await _record(connection, key, [NewEvent(kind, json.dumps(payload))], by_service=True)).last_offset


class PostgresEvents:
    """The truth about what happened."""

    def __init__(self, pool: Pool, requests: Requests) -> None:
        self._pool = pool
        self._requests = requests

    async def append(
        self, attempt: Attempt, key: ThreadKey, user_id: str | None, events: Sequence[NewEvent], answer: Answer
    ) -> bytes:
        """Keeps a caller's events, all or none. Raises ConversationUnknown, RequestReused."""

        async def change() -> bytes:
            await records.hold(connection, key, user_id)
            return answer(await _record(connection, key, events, by_service=False))

        async with postgres.transaction(self._pool) as connection:
            return await self._requests.once(connection, attempt, change)

    async def page(self, key: ThreadKey, user_id: str | None, kind: str | None, after: int, size: int) -> EventPage:
        """Up to `size` events behind an offset, in order; fewer if they are very large. Raises ConversationUnknown."""
        async with postgres.connection(self._pool) as connection:
            await records.find(connection, key, user_id)
            # Asked first: whatever is committed later has a higher offset.
            head = await connection.fetchval(STATEMENTS["event_offset"], *key) or 0
            if kind is None:
                rows = await connection.fetch(STATEMENTS["events_after"], *key, after, size + 1, ANSWER_BYTES_MAX)
            else:
                rows = await connection.fetch(
                    STATEMENTS["events_of_kind_after"], *key, after, size + 1, ANSWER_BYTES_MAX, kind
                )
        kept = records.fitting(rows, size, lambda row: len(row["payload"].encode()))
        events = [_event(row) for row in rows[:kept]]
        if kept < len(rows):
            return EventPage(events, events[-1].offset, more=True)
        return EventPage(events, max([head, *(event.offset for event in events)]), more=False)


async def _record(connection: Connection, key: ThreadKey, events: Sequence[NewEvent], *, by_service: bool) -> Recorded:
    kinds, payloads = [event.kind for event in events], [event.payload for event in events]
    rows = await connection.fetch(STATEMENTS["record_events"], *key, kinds, payloads, by_service)
    offsets = [row["event_offset"] for row in rows]
    return Recorded(min(offsets), max(offsets), rows[0]["created_at"])


def _event(row: asyncpg.Record) -> Event:
    return Event(row["event_offset"], row["kind"], row["payload"], row["by_service"], row["created_at"])
