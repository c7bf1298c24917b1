"""Postgres for a room: a bounded pool, and driver errors turned into refusals in one place."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterator
from typing import TYPE_CHECKING, Literal

import asyncpg
from asyncpg.pool import PoolConnectionProxy

from twofold_chassis.refusals import Busy, Overloaded, Refusal, StoreUnavailable
from twofold_chassis.settings import DatabaseSettings
from twofold_chassis.start import StartError

if TYPE_CHECKING:
    Connection = PoolConnectionProxy[asyncpg.Record]
    Pool = asyncpg.Pool[asyncpg.Record]
else:  # generic for the type checker only
    Connection = PoolConnectionProxy
    Pool = asyncpg.Pool
Outcome = Literal["NOT_STORED", "UNKNOWN"]

_ACQUIRE_S = 2.0
_GONE = (
    asyncpg.PostgresConnectionError,  # class 08
    asyncpg.InsufficientResourcesError,  # class 53: disk full, too many connections
    asyncpg.OperatorInterventionError,  # class 57: shutdown, cancelled, cannot connect now
    asyncpg.PostgresSystemError,  # class 58: input or output error
    asyncpg.InvalidAuthorizationSpecificationError,  # class 28: a new connection is refused, e.g. by a changed password
    asyncpg.ReadOnlySQLTransactionError,  # 25006: this is a standby (by now)
    asyncpg.IdleInTransactionSessionTimeoutError,  # 25P03: we were paused, and Postgres gave the locks to others
    asyncpg.InterfaceError,
    asyncpg.InternalClientError,
    OSError,
    TimeoutError,
)
_CONTENDED = (
    asyncpg.LockNotAvailableError,
    asyncpg.DeadlockDetectedError,
    asyncpg.SerializationError,
)


async def open_pool(settings: DatabaseSettings, *, name: str) -> Pool:
    """A pool of connections of the application role. Raises StartError if Postgres cannot be reached now."""
    try:
        return await asyncpg.create_pool(
            settings.url.get_secret_value(),
            min_size=1,
            max_size=settings.pool_size_max,
            timeout=settings.connect_timeout_s,
            command_timeout=settings.command_timeout_s,
            statement_cache_size=200 if settings.prepared_statements else 0,
            reset=_nothing_to_reset,  # type: ignore[arg-type]  # the stubs name the wrong kind of connection
            server_settings={"application_name": f"twofold-{name}"} if settings.prepared_statements else {},
        )
    except (asyncpg.PostgresError, asyncpg.InterfaceError, OSError, ValueError, TimeoutError) as error:
        raise StartError(f"cannot reach Postgres (DATABASE__URL): {told(error)}") from None


async def _nothing_to_reset(_: Connection) -> None:
    # Every setting is transaction-local (it must be, for PgBouncer), so the pool's reset query, which would double
    # the cost of a small call, has nothing to undo.
    return


def told(error: BaseException) -> str:
    """What a connection error says to an operator: its kind and text, without a traceback. Never for callers."""
    return f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else 'no answer in time'}"


@contextlib.asynccontextmanager
async def connection(pool: Pool) -> AsyncIterator[Connection]:
    """A connection for reading, with driver errors as refusals."""
    with refusals(outcome="NOT_STORED"):
        acquired = await _acquire(pool)
        try:
            yield acquired
        finally:
            await _release(pool, acquired)


class Lane:
    """Connections that are kept between uses, for the few places where most of the work goes through.

    Taking a connection from the pool and giving it back costs as much processor time as a small query itself. A lane
    keeps at most a quarter of the pool's: what is kept is out of reach for everybody else.
    """

    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        self._idle: list[Connection] = []
        self._kept_max = pool.get_max_size() // 4

    @contextlib.asynccontextmanager
    async def connection(self) -> AsyncIterator[Connection]:
        """A connection, with driver errors as refusals. One on which something failed, or one too many, goes to the pool."""
        with refusals(outcome="NOT_STORED"):
            acquired = await self._take()
            well = False
            try:
                yield acquired
                well = not acquired.is_closed()
            finally:
                if well and len(self._idle) < self._kept_max:
                    self._idle.append(acquired)
                else:
                    await _release(self._pool, acquired)

    async def close(self) -> None:
        """Gives everything back to the pool."""
        while self._idle:
            await _release(self._pool, self._idle.pop())

    async def _take(self) -> Connection:
        while self._idle:
            acquired = self._idle.pop()
            if not acquired.is_closed():
                return acquired
            await _release(self._pool, acquired)
        return await _acquire(self._pool)


@contextlib.asynccontextmanager
async def transaction(pool: Pool) -> AsyncIterator[Connection]:
    """A connection in a READ COMMITTED transaction that commits when the block ends and rolls back when it raises.

    A store failure inside the block says NOT_STORED; one during COMMIT says UNKNOWN, because the commit may have happened.
    """
    with refusals(outcome="NOT_STORED"):
        acquired = await _acquire(pool)
        try:
            running = acquired.transaction()
            await running.start()
            try:
                yield acquired
            except BaseException:
                await _rollback(running)
                raise
            with refusals(outcome="UNKNOWN"):
                await running.commit()
        finally:
            await _release(pool, acquired)


@contextlib.contextmanager
def refusals(outcome: Outcome) -> Iterator[None]:
    """Turns driver errors that mean "not now" into refusals; all others are defects and pass through."""
    try:
        yield
    except Refusal:
        raise
    except _CONTENDED:
        raise Busy("others hold the same rows for too long", retry_after_s=0.1) from None
    except _GONE as error:
        raise StoreUnavailable("the durable store does not answer", retry_after_s=1.0, outcome=outcome) from error


async def answers(pool: Pool) -> bool:
    """Whether Postgres answers now."""
    try:
        async with connection(pool) as acquired:
            return bool(await acquired.fetchval("SELECT 1"))
    except (Refusal, asyncpg.PostgresError):
        return False


async def _acquire(pool: Pool) -> Connection:
    try:
        async with asyncio.timeout(_ACQUIRE_S):
            return await pool.acquire()
    except TimeoutError:
        if pool.get_idle_size() == 0 and pool.get_size() == pool.get_max_size():
            raise Overloaded("all connections to the durable store are in use", retry_after_s=0.5) from None
        raise


async def _release(pool: Pool, acquired: Connection) -> None:
    with contextlib.suppress(*_GONE):
        await pool.release(acquired, timeout=1.0)


async def _rollback(running: asyncpg.transaction.Transaction) -> None:
    with contextlib.suppress(*_GONE):
        await running.rollback()


async def close_pool(pool: Pool, *, within_s: float = 5.0) -> None:
    """Waits for running statements and closes; what takes longer is cut off."""
    try:
        async with asyncio.timeout(within_s):
            await pool.close()
    except TimeoutError:
        pool.terminate()
