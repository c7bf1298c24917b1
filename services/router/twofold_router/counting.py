"""Counting: operations are held against limits in Redis, where all routers count; while that cannot be, within a share.

A repeat with the same id finds what was counted. Where Redis was asked and did not answer, it may have counted: then this
router's share may let the operation pass, and nothing may refuse it as over the limit.
"""

import asyncio
from collections.abc import Callable, Sequence
from itertools import islice
from typing import Protocol

import structlog

from twofold_chassis import call
from twofold_chassis.refusals import RequestReused
from twofold_router.limits import (
    Cost,
    Counted,
    Counters,
    CountersAway,
    CountersLost,
    LimitReached,
    LimitsSource,
    LimitStatus,
    LimitsUnknown,
    Operation,
    Outcome,
    Settled,
    Tally,
    statuses,
)
from twofold_router.shares import Passed, Shares
from twofold_router.terms import Limit, LimitKind

_AGAIN_S = 0.25
_HANDED_OVER_AT_ONCE = 100


class Rebuilding(Protocol):
    """Sets counters up anew."""

    async def rebuilt(self, workspace_id: str) -> bool:
        """Whether the counters of the workspace are complete now; does not wait long."""
        ...


class Limits:
    """Holds operations against limits. `note` hears how each limit decided, `note_share` whether the share let pass."""

    def __init__(
        self,
        counters: Counters,
        rebuilds: Rebuilding,
        shares: Shares,
        *,
        note: Callable[[LimitKind, str], None],
        note_share: Callable[[str], None],
    ) -> None:
        self._counters = counters
        self._rebuilds = rebuilds
        self._shares = shares
        self._note = note
        self._note_share = note_share
        self._handing_over: asyncio.Task[None] | None = None
        self._logger = structlog.get_logger("twofold.limits")

    async def count(self, operation: Operation, limits: Sequence[Limit]) -> Counted:
        """Counts it in everything, once however often it comes. Raises LimitReached, RequestReused, LimitsUnknown."""
        passed = self._shares.find(operation, claims=True)
        if passed is not None:
            return _out_of_share(passed, is_duplicate=True)
        try:
            tally = await self._tally(operation, limits)
        except (CountersLost, CountersAway):
            return self._out_of_share(operation, limits)
        told = statuses(tally, operation, limits)
        if tally.outcome is Outcome.DUPLICATE:
            return Counted(operation.operation_id, True, tally.at_ms / 1000, told, LimitsSource.COUNTED)
        for limit in told:
            self._note(limit.kind, _decision(limit))
        if tally.outcome is Outcome.REFUSED:
            raise LimitReached(told)
        return Counted(operation.operation_id, False, tally.at_ms / 1000, told, LimitsSource.COUNTED)

    async def peek(self, operation: Operation, limits: Sequence[Limit]) -> tuple[LimitStatus, ...]:
        """How the limits stand, and whether each would refuse. Nothing is counted. Raises LimitsUnknown."""
        try:
            tally = await self._tally(operation, limits, peeks=True)
        except (CountersLost, CountersAway):
            raise _unknown() from None
        return statuses(tally, operation, limits)

    async def settle(self, operation: Operation, used: Cost, *, at_s: float | None = None) -> Settled:
        """Puts what it really used in the place of what it was counted with, once; used may then exceed a limit.

        `at_s`: the time of its usage event, for where the operation is not known any more. While it cannot be told it is
        kept, and told later. Raises RequestReused; LimitsUnknown if there is no room to keep it.
        """
        operation = operation._replace(cost=used)
        settled = self._settled_here(operation)
        if settled is not None:
            return settled
        try:
            return await self._settled(operation, at_s)
        except (CountersLost, CountersAway):
            settled = self._settled_here(operation)
        if settled is not None:  # another call came this far while this one asked
            return settled
        passed = self._shares.keep(operation, at_s)
        if passed is None:
            raise _unknown()
        self._hand_over_soon()
        return Settled(False, passed.at_s)

    async def release(self, operation: Operation) -> None:
        """Takes it back, unless it is settled: it was not begun. Raises RequestReused, LimitsUnknown."""
        passed = self._shares.find(operation)
        if passed is not None:
            self._shares.release(passed)
            return
        try:
            await self._counters.release(operation)
        except CountersLost:
            return  # and with them what was counted for it
        except CountersAway:
            raise _unknown() from None

    async def close(self) -> None:
        """Ends what is under way. What is not handed over by then, the registry's word replaces in time."""
        if self._handing_over is not None:
            self._handing_over.cancel()
            await asyncio.wait([self._handing_over])

    async def _tally(self, operation: Operation, limits: Sequence[Limit], *, peeks: bool = False) -> Tally:
        try:
            return await self._counters.count(operation, limits, peeks=peeks)
        except CountersLost:
            if not await self._rebuilds.rebuilt(operation.pair.workspace_id):
                raise
        return await self._counters.count(operation, limits, peeks=peeks)

    async def _settled(self, operation: Operation, at_s: float | None) -> Settled:
        try:
            return await self._counters.settle(operation, at_s)
        except CountersLost:
            if not await self._rebuilds.rebuilt(operation.pair.workspace_id):
                raise
        return await self._counters.settle(operation, at_s)

    # While Redis cannot tell ---------------------------------------------------------------------------------

    def _settled_here(self, operation: Operation) -> Settled | None:
        """What became of settling one that waits to be handed over; None of any other."""
        passed = self._shares.find(operation)
        if passed is None:
            return None
        if not passed.is_settled:
            self._shares.settle(passed, operation.cost)
        return Settled(passed.is_settled, passed.at_s)

    def _out_of_share(self, operation: Operation, limits: Sequence[Limit]) -> Counted:
        passed = self._shares.find(operation, claims=True)
        if passed is not None:  # another call passed while this one asked
            return _out_of_share(passed, is_duplicate=True)
        passed = self._shares.take(operation, limits)
        self._note_share("refused" if passed is None else "passed")
        if passed is None:
            raise _unknown()
        self._hand_over_soon()
        return _out_of_share(passed, is_duplicate=False)

    def _hand_over_soon(self) -> None:
        if self._handing_over is None or self._handing_over.done():
            self._handing_over = call.begin_for_all(self._hand_over())

    async def _hand_over(self) -> None:
        """Until all is counted where it belongs."""
        while waiting := self._shares.waiting():
            await asyncio.sleep(_AGAIN_S)
            for start in range(0, len(waiting), _HANDED_OVER_AT_ONCE):
                batch = islice(waiting, start, start + _HANDED_OVER_AT_ONCE)
                if not all(await asyncio.gather(*map(self._handed_over, batch))):
                    break  # it is still away: the others need not be tried

    async def _handed_over(self, passed: Passed) -> bool:
        """False if Redis is away, for all. Counters of one workspace that are lost say nothing of the others."""
        operation, at_s = passed.operation, passed.at_s
        try:
            if passed.is_settled:
                await self._settled(operation, at_s)
            else:
                await self._counters.add(operation, at_s)
        except CountersLost:
            await self._rebuilds.rebuilt(operation.pair.workspace_id)
            return True
        except CountersAway:
            return False
        except RequestReused:
            self._logger.warning("an operation was counted as another one elsewhere", operation_id=operation.operation_id)
        self._shares.handed_over(passed)
        return True


def _decision(limit: LimitStatus) -> str:
    if not limit.would_refuse:
        return "passed"
    return "shadow_refused" if limit.is_shadow else "refused"


def _out_of_share(passed: Passed, *, is_duplicate: bool) -> Counted:
    return Counted(passed.operation.operation_id, is_duplicate, passed.at_s, passed.limits, LimitsSource.LOCAL_SHARE)


def _unknown() -> LimitsUnknown:
    return LimitsUnknown(
        "how the limits stand cannot be told: Redis does not answer, or counters are being set up anew", retry_after_s=0.5
    )
