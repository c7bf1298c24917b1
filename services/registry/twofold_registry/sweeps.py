"""Sweeps: what is over by the clock is cleared away, a bounded number at a time. No answer depends on when that happens."""

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from typing import NamedTuple, Protocol, TypeVar

import structlog
from prometheus_client import CollectorRegistry, Counter

from twofold_chassis.alongside import alongside
from twofold_chassis.refusals import Overloaded, Refusal, StoreUnavailable

AT_ONCE = 500
"""Rows of one transaction."""
_TURNS_MAX = 100

Thing = TypeVar("Thing")


class SweepSettings(Protocol):
    """For how long things are kept."""

    @property
    def changes_kept_s(self) -> int: ...
    @property
    def sessions_kept_days(self) -> int: ...
    @property
    def pods_kept_days(self) -> int: ...


class Sweep(NamedTuple):
    """Clears something away, at most so many; says how many it were. Several processes may do it at once.

    `every`: in each so many-th round.
    """

    what: str
    run: Callable[[int], Awaitable[int]]
    every: int = 1


async def one_by_one(things: Iterable[Thing], sweep: Callable[[Thing], Awaitable[None]]) -> None:
    """Sweeps each of them. One that cannot be is none of the others' business: its failure is raised at the end.

    Unless it is the store that fails: so it would with all of them.
    """
    failures: list[Exception] = []
    for thing in things:
        try:
            await sweep(thing)
        except (StoreUnavailable, Overloaded):
            raise
        except Exception as error:  # noqa: BLE001  (whatever it was)
            failures.append(error)
    if failures:
        raise failures[0]


class Sweeps:
    """Sweeps everything there is to sweep, now and again."""

    def __init__(self, sweeps: Sequence[Sweep], metrics: CollectorRegistry, *, period_s: float = 10.0) -> None:
        self._sweeps = sweeps
        self._period_s = period_s
        self._rounds = 0
        self._failing: set[str] = set()
        self._swept = Counter("twofold_registry_swept", "Rows that were swept away.", ("what",), registry=metrics)
        self._failures = Counter(
            "twofold_registry_sweep_failures", "Rounds in which a sweep failed.", ("what",), registry=metrics
        )
        for sweep in sweeps:
            self._swept.labels(sweep.what)
            self._failures.labels(sweep.what)
        self._logger = structlog.get_logger("twofold.sweeps")

    async def round(self) -> None:
        """Each sweep until nothing is left for it, or it had its share. One that fails is none of the others' business."""
        due = [sweep for sweep in self._sweeps if self._rounds % sweep.every == 0]
        self._rounds += 1
        for sweep in due:
            try:
                await self._run(sweep)
            except Refusal as refusal:
                if self._failing_anew(sweep):
                    self._logger.warning("a sweep waits", what=sweep.what, reason=refusal.message)
            except Exception as error:
                # Whatever it was, the next round must come: the loop may not die.
                if self._failing_anew(sweep):
                    self._logger.error("a sweep failed", what=sweep.what, exc_info=error)
            else:
                self._failing.discard(sweep.what)

    async def _run(self, sweep: Sweep) -> None:
        for _ in range(_TURNS_MAX):
            count = await sweep.run(AT_ONCE)
            self._swept.labels(sweep.what).inc(count)
            if count < AT_ONCE:
                return

    def _failing_anew(self, sweep: Sweep) -> bool:
        """That it fails is counted, and told once until it has gone well again."""
        self._failures.labels(sweep.what).inc()
        anew = sweep.what not in self._failing
        self._failing.add(sweep.what)
        return anew

    @contextlib.asynccontextmanager
    async def repeated(self) -> AsyncIterator[None]:
        """A round each period, or a little earlier or later, for as long as the block runs."""
        async with alongside(self._repeat()):
            yield

    async def _repeat(self) -> None:
        while True:
            await asyncio.sleep(self._period_s * random.uniform(0.8, 1.2))
            await self.round()
