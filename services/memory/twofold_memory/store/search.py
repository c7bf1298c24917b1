"""Search in Postgres."""

import itertools
from collections.abc import Sequence

import asyncpg

from twofold_chassis import postgres
from twofold_chassis.postgres import Connection, Pool
from twofold_chassis.refusals import InvalidField
from twofold_memory.searching import Found, Hit, Order, Place, Search, SearchTooBroad
from twofold_memory.store import records
from twofold_memory.store.statements import STATEMENTS
from twofold_memory.store.turns import entries
from twofold_memory.threads import ANSWER_BYTES_MAX, AS_SAID, INTERRUPTED, ThreadKey


class PostgresSearch:
    """What can be found. `pool` is of the searches' own, `long_pool` for what nobody waits for."""

    def __init__(self, pool: Pool, long_pool: Pool) -> None:
        self._pool = pool
        self._long_pool = long_pool

    async def search(self, search: Search) -> Found:
        """One page. Raises InvalidField, ConversationUnknown, SearchTooBroad."""
        async with postgres.transaction(self._pool) as connection:
            await connection.execute(STATEMENTS["search_within"])
            if not await connection.fetchval(STATEMENTS["search_has_words"], search.words):
                raise InvalidField("query", "has no words to look for")
            if search.thread_id is not None:
                await records.find(connection, ThreadKey(search.workspace_id, search.thread_id), search.user_id)
            try:
                rows = await _places(connection, search)
                page = rows[: search.count]
                shown = await _around(connection, search, page)
            except asyncpg.QueryCanceledError:
                raise SearchTooBroad("the search finds too much to be done in its time: narrow it") from None
        hits = list(itertools.chain(*(_hit(row, around) for row, around in zip(page, shown, strict=False))))
        more = 0 < len(shown) < len(rows)
        return Found(hits, _place(page[len(shown) - 1]) if more else None)

    async def index(self, count: int) -> int:
        """Looks at what `count` turns or changes have left to be looked at. Raises SearchTooBroad if that takes too long."""
        async with postgres.transaction(self._long_pool) as connection:
            await connection.execute(STATEMENTS["search_within"])
            try:
                done: int = await connection.fetchval(STATEMENTS["index_pending"], count)
            except asyncpg.QueryCanceledError:
                raise SearchTooBroad("too much at once to be put into the index") from None
        return done


async def _places(connection: Connection, search: Search) -> list[asyncpg.Record]:
    """The hits of the page, and one more if there are any behind it."""
    asked = (
        search.start,
        search.end,
        search.order is Order.RELEVANCE,
        *(search.behind or (None, None, None, None)),
        search.count + 1,
    )
    if search.thread_id is None:
        found = await connection.fetch(
            STATEMENTS["search_workspace"], search.workspace_id, search.words, search.user_id, *asked
        )
    else:
        found = await connection.fetch(
            STATEMENTS["search_conversation"], search.workspace_id, search.words, search.thread_id, *asked
        )
    return list(found)


async def _around(connection: Connection, search: Search, page: Sequence[asyncpg.Record]) -> list[list[asyncpg.Record]]:
    """For each hit its message and those around it: of as many hits, from the first on, as fit an answer."""
    rows = await connection.fetch(
        STATEMENTS["messages_around"],
        search.workspace_id,
        [row["thread_id"] for row in page],
        [row["seq"] for row in page],
        search.around,
        ANSWER_BYTES_MAX,
        search.words,
        search.thread_id,
    )
    of_hit: dict[int, list[asyncpg.Record]] = {}
    for row in rows:
        of_hit.setdefault(row["place"], []).append(row)
    shown = []
    for place in range(1, max(of_hit, default=0) + 1):
        around = of_hit.get(place, [])  # of a conversation that was erased meanwhile there are none
        if place > 1 and around and len(around) < around[0]["there"]:
            break
        shown.append(around)
    return shown


def _hit(row: asyncpg.Record, around: Sequence[asyncpg.Record]) -> list[Hit]:
    """The hit; nothing if it has changed since it was found, so that it must not be shown."""
    itself = [found for found in around if found["seq"] == row["seq"]]
    if not itself or itself[0]["status"] not in (AS_SAID, INTERRUPTED):
        return []
    kept = entries(around)
    return [
        Hit(
            _place(row),
            itself[0]["owner"],
            row["rank"],
            itself[0]["snippet"],
            next(entry for entry in kept if entry.seq == row["seq"]),
            [entry for entry in kept if entry.seq < row["seq"]],
            [entry for entry in kept if entry.seq > row["seq"]],
            len(around) < itself[0]["there"],
        )
    ]


def _place(row: asyncpg.Record) -> Place:
    return Place(row["micros"], row["created_at"], row["thread_id"], row["seq"])
