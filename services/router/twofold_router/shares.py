"""Shares: what this router may let pass of each limit while nobody can tell how it stands.

Of every limit a tenth, divided by the number of routers and one more, and at least one. It is counted here as it is counted
in Redis, and handed over as soon as that can be. What is kept is bounded: what does not fit does not pass.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

from twofold_chassis.refusals import RequestReused
from twofold_router.limits import METERS, Cost, Mark, Operation, Outcome, Tally, statuses, subject_id
from twofold_router.limits import LimitStatus as Status
from twofold_router.terms import Limit, LimitKind

_SHARE = 0.10
_OPERATIONS_MAX = 100_000
_COUNTERS_MAX = 200_000
_OPERATION_S = 3600.0

OperationKey = tuple[str, str]
CounterKey = tuple[str, str, LimitKind]


class Passed(NamedTuple):
    """An operation that passed here, when, and how its limits stood."""

    operation: Operation
    at_s: float
    limits: tuple[Status, ...]
    claimed: Cost
    is_settled: bool = False


class Shares:
    """The shares of one router. `routers`: how many there are, 0 if this one may give out nothing; `clock`: since 1970."""

    def __init__(self, *, cells: int, routers: Callable[[], int], clock: Callable[[], float]) -> None:
        self._cells = cells
        self._routers = routers
        self._clock = clock
        self._newest_s = 0.0
        self._counters: dict[CounterKey, dict[int, int]] = {}
        self._passed: dict[OperationKey, Passed] = {}

    def find(self, operation: Operation, *, claims: bool = False) -> Passed | None:
        """One that passed here and is not handed over yet. Raises RequestReused if it was another one.

        `claims`: it is counted again, and must claim the same.
        """
        passed = self._passed.get(_key(operation))
        if passed is not None and (passed.operation.pair != operation.pair or (claims and passed.claimed != operation.cost)):
            raise RequestReused("this operation_id was used for something else", operation_id=operation.operation_id)
        return passed

    def take(self, operation: Operation, limits: Sequence[Limit]) -> Passed | None:
        """Counts it, if it is within the share of every limit. What no limit refuses needs no share."""
        routers = self._routers()
        refusing = {limit.kind for limit in limits if not limit.is_shadow}
        if (refusing and routers <= 0) or len(self._passed) >= _OPERATIONS_MAX:
            return None
        now = self._now()
        if len(self._counters) + len(METERS) > _COUNTERS_MAX:
            self._forget(now)
            if len(self._counters) + len(METERS) > _COUNTERS_MAX:
                return None
        shares = {limit.kind: max(1, math.floor(_SHARE * limit.amount / (routers + 1))) for limit in limits}
        marks = [self._mark(kind, operation, now) for kind in METERS]
        for kind, mark in zip(METERS, marks, strict=True):
            if kind in refusing and mark.used + _amount(kind, operation.cost) > shares[kind]:
                return None
        self._add(operation, operation.cost, now)
        told = [
            mark._replace(used=mark.used + _amount(kind, operation.cost)) for kind, mark in zip(METERS, marks, strict=True)
        ]
        tally = Tally(Outcome.COUNTED, round(now * 1000), told)
        passed = Passed(operation, now, statuses(tally, operation, limits), operation.cost)
        self._passed[_key(operation)] = passed
        return passed

    def settle(self, passed: Passed, used: Cost) -> None:
        """Puts what it really cost in the place of what it was counted with."""
        operation = passed.operation
        change = Cost(*(new - old for new, old in zip(used, operation.cost, strict=True)))
        self._add(operation, change, passed.at_s)
        self._passed[_key(operation)] = passed._replace(operation=operation._replace(cost=used), is_settled=True)

    def keep(self, operation: Operation, at_s: float | None) -> Passed | None:
        """Keeps what an operation cost that was counted elsewhere, to be handed over; None if there is no room."""
        if len(self._passed) >= _OPERATIONS_MAX:
            return None
        passed = Passed(operation, self._now() if at_s is None else at_s, (), operation.cost, is_settled=True)
        self._passed[_key(operation)] = passed
        return passed

    def release(self, passed: Passed) -> None:
        """Takes it back."""
        if not passed.is_settled:
            self._add(passed.operation, Cost(*(-amount for amount in passed.operation.cost)), passed.at_s)
            del self._passed[_key(passed.operation)]

    def waiting(self) -> list[Passed]:
        """What is to be handed over. What is older than the memory of operations is counted by the registry's word alone."""
        now = self._now()
        for key in [key for key, passed in self._passed.items() if passed.at_s < now - _OPERATION_S]:
            del self._passed[key]
        return list(self._passed.values())

    def handed_over(self, passed: Passed) -> None:
        """It is counted where all routers count; what was given out of the share stays so, for its span."""
        if self._passed.get(_key(passed.operation)) is passed:
            del self._passed[_key(passed.operation)]

    def _now(self) -> float:
        self._newest_s = max(self._newest_s, self._clock())
        return self._newest_s

    def _mark(self, kind: LimitKind, operation: Operation, now: float) -> Mark:
        width_s = METERS[kind].span_s / self._cells
        newest = math.floor(now / width_s)
        cells = self._counters.get(_counter(kind, operation), {})
        used = sum(count for number, count in cells.items() if number >= newest - self._cells)
        free_s = (max(cells, default=newest) + self._cells + 1) * width_s
        return Mark(used, 0, round(free_s * 1000))

    def _add(self, operation: Operation, cost: Cost, at_s: float) -> None:
        for kind, meter in METERS.items():
            amount = _amount(kind, cost)
            if amount:
                width_s = meter.span_s / self._cells
                number = math.floor(at_s / width_s)
                cells = self._counters.setdefault(_counter(kind, operation), {})
                cells[number] = max(0, cells.get(number, 0) + amount)
                for old in [each for each in cells if each < number - self._cells]:
                    del cells[old]

    def _forget(self, now: float) -> None:
        """What lies before its span."""
        for key in [key for key, cells in self._counters.items() if _is_past(key[2], cells, now, self._cells)]:
            del self._counters[key]


def _is_past(kind: LimitKind, cells: Iterable[int], now: float, count: int) -> bool:
    width_s = METERS[kind].span_s / count
    return max(cells, default=0) < math.floor(now / width_s) - count


def _amount(kind: LimitKind, cost: Cost) -> int:
    amount: int = getattr(cost, METERS[kind].unit)
    return amount


def _counter(kind: LimitKind, operation: Operation) -> CounterKey:
    return operation.pair.workspace_id, subject_id(kind, operation.pair), kind


def _key(operation: Operation) -> OperationKey:
    return operation.pair.workspace_id, operation.operation_id
