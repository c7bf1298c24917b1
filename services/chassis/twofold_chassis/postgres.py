"""Postgres for a room: a bounded pool, and driver errors turned into refusals in one place."""

import asyncio
import contextlib
import socket
import ssl
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from typing import TYPE_CHECKING, Literal

import asyncpg
import structlog
from asyncpg.pool import PoolConnectionProxy

from twofold_chassis import call
from twofold_chassis.pools import PoolMetrics
from twofold_chassis.refusals import Busy, Overloaded, Refusal, StoreUnavailable
from twofold_chassis.settings import DatabaseSettings
from twofold_chassis.start import StartError

if TYPE_CHECKING:
    Connection = PoolConnectionProxy[asyncpg.Record]
    _DriversPool = asyncpg.Pool[asyncpg.Record]
else:  # generic for the type checker only
    Connection = PoolConnectionProxy
    _DriversPool = asyncpg.Pool
Outcome = Literal["NOT_STORED", "UNKNOWN"]

CANNOT_CONNECT = (asyncpg.PostgresError, asyncpg.InterfaceError, OSError, ValueError, TimeoutError)

_VERSION_MIN = 16
_ACQUIRE_S = 1.0
_PULSE_S = 1.5
_GRACE_S = 0.25
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
# The first that fits; OSError is the parent of most others.
_SENTENCES: tuple[tuple[type[BaseException], str], ...] = (
    (asyncpg.InvalidAuthorizationSpecificationError, "it refuses the user, the password or this host"),
    (asyncpg.InvalidCatalogNameError, "it has no such database"),
    (socket.gaierror, "its host is not known"),
    (ConnectionRefusedError, "nothing listens at its host and port"),
    (TimeoutError, "no answer in time"),
    (ssl.SSLError, "TLS with it fails"),
    (ConnectionError, "it broke off the connection, or does not speak TLS"),
    (OSError, "its host cannot be reached"),
)


class Pool(_DriversPool):
    """The driver's pool, which knows how long its statements may take, and how many wait for one of its connections."""

    def __init__(
        self,
        settings: DatabaseSettings,
        name: str,
        metrics: PoolMetrics | None = None,
        *,
        size_min: int = 1,
        connection_class: "type[asyncpg.Connection[asyncpg.Record]]" = asyncpg.Connection,
    ) -> None:
        super().__init__(
            settings.url.get_secret_value(),
            min_size=size_min,
            max_size=settings.pool_size_max,
            max_queries=50_000,
            max_inactive_connection_lifetime=300.0,
            setup=None,
            init=None,
            reset=_nothing_to_reset,  # type: ignore[arg-type]  # the stubs name the wrong kind of connection
            loop=asyncio.get_running_loop(),
            connection_class=connection_class,
            record_class=asyncpg.Record,
            timeout=settings.connect_timeout_s,
            command_timeout=settings.command_timeout_s,
            statement_cache_size=200 if settings.prepared_statements else 0,
            server_settings={"application_name": f"twofold-{name}"} if settings.prepared_statements else {},
        )
        self.command_timeout_s = settings.command_timeout_s
        self.waiting = 0
        self._acquired = metrics.watch(name, self) if metrics else None

    async def take(self) -> Connection:
        """A connection, when there is one; the time until then is counted."""
        began = time.perf_counter()
        self.waiting += 1
        try:
            acquired = await self.acquire()
        finally:
            self.waiting -= 1
        if self._acquired is not None:
            self._acquired.observe(time.perf_counter() - began)
        return acquired


async def open_pool(
    settings: DatabaseSettings, *, name: str, metrics: PoolMetrics | None = None, connected: bool = True
) -> Pool:
    """A pool of connections of the application role. Raises StartError if Postgres cannot be reached now.

    With `connected` False it is not tried: the first connection is made for whoever needs one.
    """
    try:
        pool = Pool(settings, name, metrics, size_min=int(connected))
        await pool
    except CANNOT_CONNECT as error:
        raise unreachable(error, "DATABASE__URL") from None
    return pool


async def _nothing_to_reset(_: Connection) -> None:
    # Every setting is transaction-local (it must be, for PgBouncer), so the pool's reset query, which would double
    # the cost of a small call, has nothing to undo.
    return


def unreachable(error: BaseException, setting: str) -> StartError:
    """That nobody can connect with the URL in `setting`, and why."""
    return StartError(f"cannot reach Postgres ({setting}): {told(error)}")


def told(error: BaseException) -> str:
    """What an error says to an operator, in half a sentence and without a traceback. Never for callers."""
    for kind, sentence in _SENTENCES:
        if isinstance(error, kind):
            return sentence
    return f"{type(error).__name__}: {(str(error).splitlines() or ['without a word'])[0]}"


def check_version(connection: "Connection | asyncpg.Connection[asyncpg.Record]", setting: str) -> None:
    """Raises StartError if the server is too old."""
    version = connection.get_server_version()
    if version.major < _VERSION_MIN:
        raise StartError(f"Postgres {version.major} is too old ({setting}): {_VERSION_MIN} or newer is needed")


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


# Waiting for locks is bounded; and Postgres takes the locks from a process that was paused in the middle of a transaction.
# In one message with BEGIN, so that it costs no round trip of its own, and for this transaction only, as PgBouncer needs it.
_BEGIN = "BEGIN; SET LOCAL lock_timeout = '2s'; SET LOCAL idle_in_transaction_session_timeout = '2s'"
_BEGIN_READING = "BEGIN READ ONLY; SET LOCAL idle_in_transaction_session_timeout = '2s'"
_PLANS_ANEW = "; SET LOCAL plan_cache_mode = force_custom_plan"
_BEGIN_SNAPSHOT = "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY; SET LOCAL idle_in_transaction_session_timeout = '30s'"


def _limited(pool: Pool) -> str:
    """The part of BEGIN that has Postgres itself end a statement soon after nobody waits for it any more.

    We cancel what we give up; this is for when that does not arrive, as we are paused, gone, or cut off.
    """
    left_s = min(call.current().left_s() + _GRACE_S, pool.command_timeout_s)
    return f"; SET LOCAL statement_timeout = {round(left_s * 1000)}"


@contextlib.asynccontextmanager
async def transaction(pool: Pool, tenants: Sequence[str] = ()) -> AsyncIterator[Connection]:
    """A connection in a READ COMMITTED transaction that commits when the block ends and rolls back when it raises.

    `tenants` are the workspaces that row-level security lets it see; it matters where a schema has that switched on.
    A store failure inside the block says NOT_STORED; one during COMMIT says UNKNOWN, because the commit may have happened.
    Waiting longer than 2 s for a lock is Busy; a statement that outlasts the caller's deadline is ended by Postgres.
    """
    async with _transaction(pool, _BEGIN + _seeing(tenants), outcome="UNKNOWN") as acquired:
        yield acquired


@contextlib.asynccontextmanager
async def reading(pool: Pool, tenants: Sequence[str], *, plans_anew: bool = False) -> AsyncIterator[Connection]:
    """The same for reading only, where row-level security is on.

    `plans_anew`: each statement is planned for its values. For pages, whose place says how much is in front of them: a plan
    for any values may read and sort everything there.
    """
    begin = _BEGIN_READING + (_PLANS_ANEW if plans_anew else "") + _seeing(tenants)
    async with _transaction(pool, begin, outcome="NOT_STORED") as acquired:
        yield acquired


@contextlib.asynccontextmanager
async def snapshot(pool: Pool) -> AsyncIterator[Connection]:
    """A connection whose statements all see the database as it was at the first of them.

    For reading more than fits into one, on a pool that sees it. Its caller may take its time between two of them: up to half
    a minute.
    """
    async with _transaction(pool, _BEGIN_SNAPSHOT, outcome="NOT_STORED") as acquired:
        yield acquired


@contextlib.asynccontextmanager
async def _transaction(pool: Pool, begin: str, *, outcome: Outcome) -> AsyncIterator[Connection]:
    with refusals(outcome="NOT_STORED"):
        acquired = await _acquire(pool)
        try:
            try:
                await acquired.execute(begin + _limited(pool))
                yield acquired
            except BaseException:
                await _rollback(acquired)
                raise
            with refusals(outcome=outcome):
                await acquired.execute("COMMIT")
        finally:
            await _release(pool, acquired)


def _seeing(tenants: Sequence[str]) -> str:
    """The part of BEGIN that sets which tenants are seen. In hexadecimal: a script takes no parameters, and no id can
    break out of it; between ids stands a control character, which none of them holds."""
    if not tenants:
        return ""
    names = "\x1f".join(tenants).encode().hex()
    return f"; SELECT set_config('twofold.workspaces', convert_from(decode('{names}', 'hex'), 'UTF8'), true)"


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


async def require(pool: Pool, statement: str, *, schema: str) -> None:
    """Raises StartError if the server is too old, the schema is not there yet, or this role may not use it.

    `statement` reads something of the schema.
    """
    try:
        async with connection(pool) as acquired:
            check_version(acquired, "DATABASE__URL")
            await acquired.fetch(statement)
    except (asyncpg.UndefinedTableError, asyncpg.InvalidSchemaNameError, asyncpg.InsufficientPrivilegeError) as error:
        raise StartError(f"the schema {schema} is not ready for this role ({error}): migrate it first") from None
    except (StoreUnavailable, Overloaded) as refusal:
        raise StartError(f"cannot reach Postgres (DATABASE__URL): {refusal.message}") from None


class Pulse:
    """Whether Postgres answers, felt on a connection of its own: a pool that is all in use is no sign of death.

    That it is away, or back, is told to operators once, in the log.
    """

    def __init__(self, pool: Pool, statement: str) -> None:
        self._pool = pool
        self._statement = statement
        self._connection: Connection | None = None
        self._keeps_it = pool.get_max_size() > 2  # of a very small pool one connection is too much to keep
        self._away = False
        self._logger = structlog.get_logger("twofold.postgres")

    async def beats(self) -> bool:
        """Whether it answers now, and with what was asked for."""
        try:
            if self._connection is None or self._connection.is_closed():
                await self.close()
                self._connection = await _acquire(self._pool)
            await self._connection.fetch(self._statement, timeout=_PULSE_S)
            if not self._keeps_it:
                await self.close()
        except Overloaded:
            return True  # as long as it has no connection of its own: those who hold them all are being served
        except (asyncpg.PostgresError, *_GONE) as error:  # whatever it says instead, nothing can be done with it
            if not self._away:
                self._logger.warning("postgres is away", error=type(error).__name__)
            self._away = True
            await self.close()
            return False
        if self._away:
            self._logger.info("postgres is back")
        self._away = False
        return True

    async def close(self) -> None:
        """Gives the connection back."""
        if self._connection is not None:
            held, self._connection = self._connection, None
            await _release(self._pool, held)


async def _acquire(pool: Pool) -> Connection:
    try:
        async with asyncio.timeout(_ACQUIRE_S):
            return await pool.take()
    except TimeoutError:
        if pool.get_idle_size() == 0 and pool.get_size() == pool.get_max_size():
            raise Overloaded("all connections to the durable store are in use", retry_after_s=0.5) from None
        raise


async def _release(pool: Pool, acquired: Connection) -> None:
    with contextlib.suppress(*_GONE):
        await pool.release(acquired, timeout=1.0)


async def _rollback(acquired: Connection) -> None:
    with contextlib.suppress(asyncpg.PostgresError, *_GONE):
        await acquired.execute("ROLLBACK")


async def close_pool(pool: Pool, *, within_s: float = 5.0) -> None:
    """Waits for running statements and closes; what takes longer is cut off."""
    try:
        async with asyncio.timeout(within_s):
            await pool.close()
    except TimeoutError:
        pool.terminate()
