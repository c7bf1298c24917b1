"""Reports from a read replica: asked only for what it has surely replayed, and never waited for.

A replica cannot tell whether the epoch is still the current one: whatever carries a revision of its own, and every check, is
answered by the primary.
"""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import asyncpg
import structlog
from prometheus_client import CollectorRegistry, Counter

from twofold_chassis import postgres
from twofold_chassis.breaker import Breaker
from twofold_chassis.pools import PoolMetrics
from twofold_chassis.postgres import Connection, Pool
from twofold_chassis.refusals import Busy, Overloaded, StoreUnavailable
from twofold_chassis.settings import DatabaseSettings
from twofold_registry.revisions import Revision
from twofold_registry.store.statements import STATEMENTS

Answer = TypeVar("Answer")
_LOOK_S = 0.25
_REST_S = 5.0


class NotAtReplica(Exception):  # noqa: N818  (a state, not an error)
    """The replica does not have it yet, or does not answer: the primary is to be asked."""


class Replica:
    """One replica. When it has not answered it is left alone for a while."""

    def __init__(self, pool: Pool, metrics: CollectorRegistry) -> None:
        self._pool = pool
        self._breaker = Breaker(failures_max=1, rest_s=_REST_S)
        self._under_way: set[asyncio.Task[Any]] = set()
        self._reads = Counter(
            "twofold_registry_replica_reads",
            "Reads that a replica could have answered, by what it came to",
            ["outcome"],
            registry=metrics,
        )
        for outcome in ("replica", "behind", "busy", "away"):
            self._reads.labels(outcome)
        self._logger = structlog.get_logger("twofold.replica")

    async def report(self, workspace_id: str, ask: Callable[[Connection], Awaitable[Answer]], least: Revision) -> Answer:
        """What `ask` answers at the replica, which has all that `least` has. Raises NotAtReplica, and what `ask` raises."""
        if not self._breaker.admits():
            raise self._not_there("away")
        looked: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        task = asyncio.create_task(self._asked(workspace_id, ask, least, looked))
        self._under_way.add(task)
        task.add_done_callback(self._ended)
        steps: set[asyncio.Future[Any]] = {task, looked}
        try:
            done, _ = await asyncio.wait(steps, timeout=_LOOK_S, return_when=asyncio.FIRST_COMPLETED)
        except asyncio.CancelledError:
            task.cancel()
            raise
        if not done:
            task.cancel()  # what is left to be cleaned up of it is not waited for
            raise self._not_there("busy") if self._is_full() else self._failed("no answer in time")
        return await self._answer(task)

    async def close(self) -> None:
        """Ends what is under way, and the connections."""
        for task in self._under_way:
            task.cancel()
        await asyncio.gather(*self._under_way, return_exceptions=True)
        await postgres.close_pool(self._pool)

    async def _asked(
        self,
        workspace_id: str,
        ask: Callable[[Connection], Awaitable[Answer]],
        least: Revision,
        looked: "asyncio.Future[bool]",
    ) -> Answer:
        async with postgres.reading(self._pool, (workspace_id,), plans_anew=True) as connection:
            row = await connection.fetchrow(STATEMENTS["read_replayed_head"])
            if not looked.done():
                looked.set_result(True)
            if row is None:
                raise StoreUnavailable("this is no replica any more", retry_after_s=_REST_S)
            if row["epoch"] != least.epoch or row["revision"] < least.number:
                raise NotAtReplica
            return await ask(connection)

    async def _answer(self, task: "asyncio.Task[Answer]") -> Answer:
        try:
            answer = await task
        except NotAtReplica:
            self._answers()
            raise self._not_there("behind") from None
        except Overloaded:
            raise self._not_there("busy") from None
        except StoreUnavailable as refusal:
            raise self._failed(refusal.message) from None
        except (Busy, asyncpg.SyntaxOrAccessError):
            # What it replays took away what was being read; or a migration is yet to come, and with it a column or a right.
            raise self._not_there("behind") from None
        self._answers()
        self._reads.labels("replica").inc()
        return answer

    def _is_full(self) -> bool:
        return self._pool.get_idle_size() == 0 and self._pool.get_size() == self._pool.get_max_size()

    def _answers(self) -> None:
        if self._breaker.open:
            self._logger.info("the replica is back")
        self._breaker.succeeded()

    def _failed(self, problem: str) -> NotAtReplica:
        if not self._breaker.open:
            self._logger.warning("the replica is away, the primary is asked", problem=problem)
        self._breaker.failed()
        return self._not_there("away")

    def _not_there(self, outcome: str) -> NotAtReplica:
        self._reads.labels(outcome).inc()
        return NotAtReplica()

    def _ended(self, task: "asyncio.Task[Any]") -> None:
        self._under_way.discard(task)
        if not task.cancelled():
            task.exception()  # its caller may be gone: then nobody else looks at it


async def open_replica(settings: DatabaseSettings, pools: PoolMetrics, metrics: CollectorRegistry) -> Replica | None:
    """The replica of the settings, if they name one. It need not answer yet."""
    if settings.replica_url is None:
        return None
    database = settings.model_copy(update={"url": settings.replica_url})
    return Replica(await postgres.open_pool(database, name="registry-replica", metrics=pools, connected=False), metrics)
