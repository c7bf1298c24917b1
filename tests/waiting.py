"""Waiting for what nobody announces: it is looked at again and again, and given up once it can only be broken."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

import asyncpg
import pytest
from asyncpg.pool import PoolConnectionProxy

if TYPE_CHECKING:
    Connection = asyncpg.Connection[asyncpg.Record] | PoolConnectionProxy[asyncpg.Record]
else:  # generic for the type checker only
    Connection = asyncpg.Connection | PoolConnectionProxy

# By the locks: activities stand still within a transaction.
_WAITING = """
    WITH RECURSIVE behind (pid) AS (
        SELECT pg_backend_pid()
        UNION
        SELECT l.pid FROM pg_locks l, behind WHERE NOT l.granted AND behind.pid = ANY (pg_blocking_pids(l.pid))
    )
    SELECT count(*) - 1 FROM behind
"""


async def until(is_so: Callable[[], bool | Awaitable[bool]], what: str = "", *, within_s: float = 60) -> None:
    """Returns once it is so; fails the test, saying `what`, if it never is. The bound is for what is broken, not slow."""
    try:
        async with asyncio.timeout(within_s):
            while True:
                now = is_so()
                if now if isinstance(now, bool) else await now:
                    return
                await asyncio.sleep(0.005)
    except TimeoutError:
        pytest.fail(f"not so within {within_s} s: {what or getattr(is_so, '__qualname__', is_so)}")


async def waiting_for(holder: Connection) -> int:
    """How many wait for locks of this connection's transaction, and for those who wait for them, and so on."""
    count: int = await holder.fetchval(_WAITING)
    return count


async def somebody_waits(holder: Connection, count: int = 1) -> None:
    """Returns when so many wait for this connection's transaction to end."""

    async def all_of_them() -> bool:
        return await waiting_for(holder) >= count

    await until(all_of_them, f"{count} wait for this transaction")
