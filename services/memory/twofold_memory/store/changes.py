"""Changes of the past in Postgres: what they have in common."""

from collections.abc import Awaitable, Callable, Sequence

import asyncpg

from twofold_chassis import postgres
from twofold_chassis.postgres import Connection, Pool
from twofold_chassis.requests import Attempt, Requests
from twofold_memory.changes import Changed
from twofold_memory.purges import Purge
from twofold_memory.store.statements import STATEMENTS
from twofold_memory.threads import ThreadKey

Change = Callable[[Connection], Awaitable[tuple[bytes, Sequence[Purge]]]]
"""Changes something in the running transaction; returns its answer, and the windows that it has asked to go."""


Completion = Callable[[Connection, bytes], Awaitable[bytes]]
"""Makes an answer whole that is not kept for repeats as it is, in the running transaction: what is done then is told."""


async def made(
    pool: Pool,
    requests: Requests,
    attempt: Attempt,
    key: ThreadKey,
    change: Change,
    complete: Completion | None = None,
) -> Changed:
    """The change in a transaction of its own, once for any number of calls with one request id. Raises RequestReused."""
    purges: Sequence[Purge] | None = None

    async def first() -> bytes:
        nonlocal purges
        answer, purges = await change(connection)
        return answer

    async with postgres.transaction(pool) as connection:
        answer = await requests.once(connection, attempt, first)
        if purges is None:
            rows = await connection.fetch(STATEMENTS["family_epochs"], *key)
            purges = [purge(key.workspace_id, row) for row in rows]
        if complete is not None:
            answer = await complete(connection, answer)
    return Changed(answer, purges)


async def ask_purges(connection: Connection, workspace_id: str, purges: Sequence[Purge]) -> None:
    """Writes down that these windows must go."""
    threads, epochs = [purge.key.thread_id for purge in purges], [purge.epoch for purge in purges]
    await connection.execute(STATEMENTS["ask_purges"], workspace_id, threads, epochs)


def purge(workspace_id: str, row: asyncpg.Record) -> Purge:
    """That of a thread and its epoch."""
    return Purge(ThreadKey(workspace_id, row["thread_id"]), row["epoch"])
