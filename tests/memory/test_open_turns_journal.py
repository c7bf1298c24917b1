"""Nothing of a thread is numbered by the closing of a turn while turns that were journaled before may still wait."""

from collections.abc import Sequence
from datetime import datetime, timedelta

import pytest

from twofold_memory.open_turns import (
    Answer,
    Beginning,
    Closed,
    Heartbeat,
    Opening,
    OpenTurn,
    OpenTurns,
    OwedUsage,
    Policy,
    TurnName,
    Unsettled,
)
from twofold_memory.threads import Entry, KeptTurn, NewTurn, ThreadKey, TurnOnItsWay
from twofold_memory.turn_queue import Ticket, TurnQueue


class Truth:
    """A store in which a turn would have to be closed."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    async def begin(self, opening: Opening, ticket: str, *, settled: bool, order_unverified: bool = False) -> Beginning:
        self.asked.append(f"begin {settled}")
        return Unsettled()

    async def heartbeat(self, heartbeat: Heartbeat) -> datetime:
        raise AssertionError("nobody asks for this")

    async def close(self, answer: Answer, *, order_unverified: bool) -> Closed:
        raise AssertionError("it was closed in front of turns that wait")

    async def current(self, key: ThreadKey, user_id: str | None) -> OpenTurn | None:
        raise AssertionError("nobody asks for this")

    async def left_behind(self, count: int) -> Sequence[ThreadKey]:
        return [ThreadKey("ws", "t")]

    async def sweep(self, key: ThreadKey, *, order_unverified: bool) -> Closed | None:
        raise AssertionError("it was swept in front of turns that wait")

    async def waiters_are_here(self, tickets: Sequence[Ticket]) -> Sequence[bool]:
        return [False] * len(tickets)

    async def leave(self, ticket: Ticket) -> None:
        raise AssertionError("nobody waits")

    async def owed(self, min_age: timedelta, after: TurnName | None, count: int) -> Sequence[OwedUsage]:
        raise AssertionError("nobody asks for this")

    async def acknowledge(self, turns: Sequence[TurnName]) -> None:
        raise AssertionError("nobody asks for this")


class Nowhere:
    """A cache of nothing."""

    async def extend(self, key: ThreadKey, turns: Sequence[tuple[KeptTurn, Sequence[Entry]]]) -> None:
        raise AssertionError("nothing was stored")


class SomeWait:
    """A journal that is not empty."""

    async def none_before(self, key: ThreadKey) -> bool:
        return False


async def test_nothing_is_closed_in_front_of_turns_that_wait() -> None:
    """M2."""
    truth, key = Truth(), ThreadKey("ws", "t")
    turns = OpenTurns(truth, Nowhere(), SomeWait(), TurnQueue(truth), told=lambda _: None)
    with pytest.raises(TurnOnItsWay):
        await turns.close(Answer(key, "t1", 1, None, b"", 0, None, interrupted=False))
    second, span = timedelta(seconds=1), timedelta(seconds=60)
    opening = Opening(NewTurn(key, None, "t2", b"", [], 0), "", span, Policy.TAKE_OVER, second)
    with pytest.raises(TurnOnItsWay):
        await turns.begin(opening)
    assert truth.asked == ["begin False"]
    assert await turns.sweep(500) == 1
    await turns.drain()
