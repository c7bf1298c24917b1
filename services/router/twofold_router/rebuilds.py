"""Rebuilds: counters that were lost are set up anew from what the registry knows to have been used.

The old content is replaced, not mixed with the new: the larger of an old count and a known one, in one cell, would lose one
of two operations. It is written under a generation that nobody reads until it is complete, and that counts only if nobody
else has begun meanwhile. What was counted before the loss and is not known to the registry comes back when it is settled.
"""

import asyncio
import math
import secrets
import time
from collections import defaultdict
from collections.abc import Awaitable, Callable, Mapping, Sequence
from enum import Enum
from typing import NamedTuple, Protocol

import structlog

from twofold_chassis import call
from twofold_chassis.call import Call
from twofold_chassis.refusals import Overloaded, Reason, Refusal, ResourceExhausted
from twofold_router.flights import Flights
from twofold_router.limits import METERS, Cost, CountersAway, CountersLost, Meter, Subject

_AT_ONCE = 8
_REBUILD_S = 60.0
_AGAIN_S = 0.1
_BACK_MAX_S = 26 * 3600 - 60
_CELL_MAX_S = 7200
_OPERATIONS_S = (3600, 600, 60)


class Used(NamedTuple):
    """What a subject used in a cell of time."""

    subject_id: str
    start_s: float
    cost: Cost


class Window(NamedTuple):
    """What was used cell by cell, and which operations are recorded, with their times."""

    used: Sequence[Used]
    operations: Mapping[str, float]


class Span(NamedTuple):
    """Which window: whose, from when on, and how long a cell is; and of how long operations are told, if they are."""

    subject: Subject
    since_s: float
    cell_s: int
    operations_s: int = 0


class WindowTooLarge(ResourceExhausted):
    """There is more in the window than is told."""

    reason = Reason.REASON_TOO_MANY


class Windows(Protocol):
    """The owner of what was used."""

    async def read(self, workspace_id: str, span: Span) -> Window:
        """All of it is of one moment. Raises WindowTooLarge, Overloaded, and what else the registry refuses."""
        ...


class Counter(NamedTuple):
    """What a meter of a subject shows: counts by number of the cell."""

    subject_id: str
    meter: Meter
    cells: Mapping[int, int]


class Begun(Enum):
    """Why a rebuild was not begun."""

    COMPLETE = "complete"
    CLAIMED = "claimed"


class Filling(Protocol):
    """Where all routers count. Every method raises CountersAway."""

    async def begin(self, workspace_id: str, generation: str, *, keeps: bool = False) -> float | Begun:
        """Claims the right for some seconds, or keeps it if it is not lost; returns what time it is there."""
        ...

    async def fill(
        self, workspace_id: str, generation: str, counters: Sequence[Counter], operations: Mapping[str, float]
    ) -> None:
        """Writes a part. Nobody reads it yet."""
        ...

    async def commit(self, workspace_id: str, generation: str) -> bool:
        """It is complete and counts from now on; False if somebody else has begun meanwhile."""
        ...


class Rebuilds:
    """Sets up counters anew, at most eight at once; `wait_s` is how long who needs them waits for that."""

    def __init__(
        self,
        filling: Filling,
        windows: Windows,
        *,
        cells: int,
        wait_s: float,
        database_s: Callable[[], float],
        count: Callable[[str], None],
    ) -> None:
        self._filling = filling
        self._windows = windows
        self._cells = cells
        self._wait_s = wait_s
        self._database_s = database_s
        self._count = count
        self._flights: Flights[str, bool] = Flights()
        self._running: set[str] = set()
        self._logger = structlog.get_logger("twofold.limits")

    async def rebuilt(self, workspace_id: str) -> bool:
        """Whether the counters are complete. If that takes longer it goes on, and whoever asks next will find it."""
        if workspace_id not in self._running and len(self._running) >= _AT_ONCE:
            return False
        try:
            async with asyncio.timeout(self._wait_s):
                return await self._flights.join(workspace_id, lambda: self._run(workspace_id))
        except TimeoutError:
            return False

    async def close(self) -> None:
        """Ends what is under way."""
        await self._flights.close()

    async def _run(self, workspace_id: str) -> bool:
        first = call.current()
        call.enter(Call(first.identity, first.request_id, time.monotonic() + _REBUILD_S))
        self._running.add(workspace_id)
        outcome = "failed"
        try:
            async with asyncio.timeout(_REBUILD_S):
                # Somebody else is at it, perhaps in another process: nobody tells when it ends.
                while not await self._rebuild(workspace_id):  # noqa: ASYNC110
                    await asyncio.sleep(_AGAIN_S)
            outcome = "complete"
        except (CountersAway, CountersLost, Refusal, TimeoutError) as error:
            self._logger.warning("limits not rebuilt", workspace_id=workspace_id, reason=str(error) or type(error).__name__)
        finally:
            self._running.discard(workspace_id)
            self._count(outcome)
        return outcome == "complete"

    async def _rebuild(self, workspace_id: str) -> bool:
        """False: somebody else is at it."""
        generation = secrets.token_hex(8)
        begun = await self._filling.begin(workspace_id, generation)
        if isinstance(begun, Begun):
            return begun is Begun.COMPLETE

        async def still() -> float:
            now_s = await self._filling.begin(workspace_id, generation, keeps=True)
            if isinstance(now_s, Begun):
                raise CountersLost
            return now_s

        try:
            # The operations first: one that is recorded between two readings may count once too much, never too little.
            for place, (subject, span_s) in enumerate(_SPANS):
                now_s = await still()
                counters, operations = await self._read(
                    workspace_id, subject, span_s, now_s, still, tells_operations=place == 0
                )
                await still()
                await self._filling.fill(workspace_id, generation, counters, operations)
        except CountersLost:
            return False
        return await self._filling.commit(workspace_id, generation)

    async def _read(
        self,
        workspace_id: str,
        subject: Subject,
        span_s: int,
        now_s: float,
        still: Callable[[], Awaitable[float]],
        *,
        tells_operations: bool,
    ) -> tuple[list[Counter], Mapping[str, float]]:
        """What the meters of a span show, and the operations. What is too much to be told is asked for in coarser cells."""
        since_s = max(min(now_s, self._database_s()) - span_s, self._database_s() - _BACK_MAX_S)
        exact = Span(subject, since_s, span_s // self._cells, _OPERATIONS_S[0] if tells_operations else 0)
        tries = [exact, exact._replace(cell_s=min(span_s, _CELL_MAX_S))]
        if tells_operations:
            tries += [tries[1]._replace(operations_s=seconds) for seconds in (*_OPERATIONS_S[1:], 0)]
        for span in tries:
            try:
                window = await self._told(workspace_id, span, still)
            except WindowTooLarge:
                continue
            return self._counters(window.used, span, span_s, now_s), window.operations
        self._logger.error("limits begin anew: too much was used to be told", workspace_id=workspace_id, span_s=span_s)
        return [], {}

    async def _told(self, workspace_id: str, span: Span, still: Callable[[], Awaitable[float]]) -> Window:
        while True:
            try:
                return await self._windows.read(workspace_id, span)
            except Overloaded:  # few windows are read at once there
                await asyncio.sleep(_AGAIN_S)
                await still()

    def _counters(self, used: Sequence[Used], span: Span, span_s: int, now_s: float) -> list[Counter]:
        width_s = span_s / self._cells
        newest = math.floor(now_s / width_s)
        sums: dict[tuple[str, Meter], dict[int, int]] = defaultdict(lambda: defaultdict(int))
        meters = [meter for meter in METERS.values() if (meter.subject, meter.span_s) == (span.subject, span_s)]
        for each in used:
            # What is told in coarser cells counts as late as it may have been.
            number = min(newest, math.floor((each.start_s + span.cell_s - 1) / width_s))
            for meter in meters:
                amount: int = getattr(each.cost, meter.unit)
                if amount:
                    sums[each.subject_id, meter][number] += amount
        return [Counter(subject_id, meter, cells) for (subject_id, meter), cells in sums.items()]


# Short ones first: with them the operations are told, and there are fewer cells.
_SPANS = sorted({(meter.subject, meter.span_s) for meter in METERS.values()}, key=lambda each: (each[1], each[0].value))
