"""Operations that count within limits, and the judgement of them. Pure.

OVER: more was let through than the limit and what is allowed besides (a tenth of it or one for each router, and what was
under way and in no ledger yet when Redis lost its data). FORGOTTEN: when all is well again less is counted than was counted
and never lost, or than the ledger knows. EXCESS: more is counted than was ever let through, or may have been: a refusal or a
repeat counted (not judged if Redis lost data: what was not settled may then count once too much). REFUSED: a repeat of an
operation that had been let through was refused for a limit, although nothing was lost. WRONG: a code that the contract does
not name.
"""

import math
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from benchmarks.chaos.control.history import Violation

_SHARE = 0.10


@dataclass
class Operation:
    """One operation, over all its attempts. Times are None for what was never acknowledged.

    `may_count`: nobody knows whether it counts. `local`: some answer said that it was held against a share alone.
    `recorded`: when the ledger had it.
    """

    user: str
    messages: int
    sent: float
    admitted: float | None = None
    may_count: bool = False
    local: bool = False
    refused: bool = False
    recorded: float | None = None
    settled: bool = False
    released: bool = False
    may_be_released: bool = False

    @property
    def counts_surely(self) -> bool:
        """Whether it was let through, and nobody took it back."""
        return self.admitted is not None and not self.released and not self.may_be_released


class Used(NamedTuple):
    """How much of a user's limit was used when all was well again, as some router said."""

    user: str
    messages: int


@dataclass
class Spending:
    """Everything that one schedule saw. `losses`: when Redis lost data, `forgettings`: when the ledger did."""

    limit: int
    routers: int
    operations: list[Operation] = field(default_factory=list)
    used: list[Used] = field(default_factory=list)
    losses: list[tuple[float, float]] = field(default_factory=list)
    forgettings: list[tuple[float, float]] = field(default_factory=list)
    kills: int = 0
    repeated_in_vain: list[tuple[Operation, float]] = field(default_factory=list)
    wrong: list[tuple[float, str]] = field(default_factory=list)

    def least(self, user: str) -> int:
        """How much must be counted for a user when all is well again."""
        return sum(
            operation.messages for operation in self.operations if operation.user == user and _must_count(operation, self)
        )

    def counts(self) -> Counter[str]:
        """What was seen, in numbers."""
        return Counter(
            {
                "operations": len(self.operations),
                "operations let through": sum(operation.admitted is not None for operation in self.operations),
                "operations refused": sum(operation.refused for operation in self.operations),
                "operations within a share": sum(operation.local for operation in self.operations),
                "operations of which nobody knows": sum(
                    operation.may_count and operation.admitted is None for operation in self.operations
                ),
                "operations settled": sum(operation.settled for operation in self.operations),
            }
        )


def judge_spending(spending: Spending) -> Iterator[Violation]:
    """What is wrong with it."""
    yield from (Violation("WRONG", -1, at, detail) for at, detail in spending.wrong)
    operations: defaultdict[str, list[Operation]] = defaultdict(list)
    for operation in spending.operations:
        operations[operation.user].append(operation)
    for user, some in operations.items():
        yield from _of_bound(spending, user, some)
    yield from _of_used(spending, operations)
    if not spending.losses:
        for operation, at in spending.repeated_in_vain:
            if not operation.local:
                yield Violation("REFUSED", -1, at, f"a repeat of what {operation.user} was let through with")


def _of_bound(spending: Spending, user: str, operations: Sequence[Operation]) -> Iterator[Violation]:
    admitted = sum(operation.messages for operation in operations if operation.counts_surely)
    share = max(1, math.floor(_SHARE * spending.limit / (spending.routers + 1)))
    # A router that was killed has forgotten what it gave out of its share.
    besides = max(_SHARE * spending.limit, spending.routers) + spending.kills * share
    lost = sum(operation.messages for operation in operations if _may_be_lost(operation, spending))
    if admitted > spending.limit + besides + lost:
        detail = f"{user} was let through with {admitted} of {spending.limit}, {besides:g} besides and {lost} lost"
        yield Violation("OVER", -1, operations[-1].sent, detail)


def _of_used(spending: Spending, operations: Mapping[str, Sequence[Operation]]) -> Iterator[Violation]:
    for used in spending.used:
        some = operations[used.user]
        least = spending.least(used.user)
        if used.messages < least:
            yield Violation("FORGOTTEN", -1, some[-1].sent, f"{used.messages} are counted for {used.user}, not {least}")
        most = sum(
            operation.messages
            for operation in some
            if (operation.admitted is not None and not operation.released) or operation.may_count
        )
        if used.messages > most and not spending.losses:
            detail = f"{used.messages} are counted for {used.user}, at most {most} are; {_unusual(some)}"
            yield Violation("EXCESS", -1, some[-1].sent, detail)


def _unusual(operations: Sequence[Operation]) -> str:
    """Those of which something is to be told, for whoever looks for the reason."""
    return "; ".join(
        str(operation)
        for operation in operations
        if operation.local or operation.may_count or operation.may_be_released or not operation.settled
    )


def _must_count(operation: Operation, spending: Spending) -> bool:
    """Whether it must be counted when all is well again, whatever became of Redis and routers meanwhile."""
    if not operation.counts_surely or _may_be_lost(operation, spending):
        return False
    # What only a router knew of that was killed is lost, unless it was settled.
    return operation.settled or not operation.local or not spending.kills


def _may_be_lost(operation: Operation, spending: Spending) -> bool:
    """Whether Redis lost data when it may have been counted, and the ledger did not surely have it."""
    return operation.admitted is not None and any(
        until >= operation.sent and not _was_recorded(operation, since, spending) for since, until in spending.losses
    )


def _was_recorded(operation: Operation, by: float, spending: Spending) -> bool:
    recorded = operation.recorded
    return recorded is not None and recorded < by and not any(until >= operation.sent for _, until in spending.forgettings)
