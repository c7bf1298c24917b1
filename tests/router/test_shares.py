"""Shares: what one router may give out of each limit while nobody can tell how it stands."""

import pytest

from twofold_chassis.refusals import RequestReused
from twofold_router import shares as module
from twofold_router.limits import Cost, Operation
from twofold_router.permissions import PairKey
from twofold_router.shares import Passed, Shares
from twofold_router.terms import Limit, LimitKind

ADA = PairKey("ws", "ada", "agent")
HOUR = Limit(LimitKind.USER_HOUR_MESSAGES, 100)


class Room:
    """Shares with a clock and a number of routers that a test sets."""

    def __init__(self) -> None:
        self.now_s = 1_800_000_000.0
        self.routers = 1
        self.shares = Shares(cells=12, routers=lambda: self.routers, clock=lambda: self.now_s)
        self.number = 0

    def take(self, *limits: Limit, cost: Cost | None = None, pair: PairKey = ADA) -> Passed | None:
        self.number += 1
        return self.shares.take(Operation(pair, f"op-{self.number}", cost or Cost()), limits)

    def spend(self, *limits: Limit, pair: PairKey = ADA) -> int:
        """How many pass."""
        passed = 0
        while self.take(*limits, pair=pair) is not None:
            passed += 1
        return passed


@pytest.fixture
def room() -> Room:
    return Room()


@pytest.mark.parametrize(
    ("routers", "amount", "share"), [(1, 100, 5), (3, 100, 2), (9, 100, 1), (50, 100, 1), (1, 5, 1), (1, 10**4, 500)]
)
def test_a_share_is_a_tenth_for_each_router_and_one_more_and_at_least_one(
    room: Room, routers: int, amount: int, share: int
) -> None:
    room.routers = routers
    assert room.spend(Limit(LimitKind.USER_HOUR_MESSAGES, amount)) == share


def test_who_may_give_out_nothing_lets_only_pass_what_no_limit_refuses(room: Room) -> None:
    room.routers = 0
    assert room.take(HOUR) is None
    assert room.take(HOUR._replace(is_shadow=True)) is not None
    assert room.take() is not None


def test_a_share_is_of_one_span_cell_by_cell_and_outlives_an_outage(room: Room) -> None:
    assert room.spend(HOUR) == 5
    for passed in room.shares.waiting():
        room.shares.handed_over(passed)
    room.now_s += 3599
    assert room.take(HOUR) is None  # of what was counted within the span nothing is given out twice
    room.now_s += 301
    assert room.spend(HOUR) == 5


def test_a_clock_that_steps_back_gives_nothing_out_twice(room: Room) -> None:
    assert room.spend(HOUR) == 5
    room.now_s -= 7200
    assert room.take(HOUR) is None


def test_the_smallest_share_decides_and_a_shadow_does_not(room: Room) -> None:
    tokens = Limit(LimitKind.WORKSPACE_DAY_TOKENS, 1000)
    assert room.take(HOUR, tokens, cost=Cost(1, 51, 0)) is None
    assert room.take(HOUR, tokens, cost=Cost(1, 50, 0)) is not None
    assert room.take(HOUR, tokens, cost=Cost(1, 1, 0)) is None
    assert room.take(HOUR, tokens._replace(is_shadow=True), cost=Cost(1, 9999, 0)) is not None
    assert room.spend(HOUR) == 5 - 2  # what was refused counted nowhere


def test_what_is_handed_over_is_not_waiting_unless_it_changed_meanwhile(room: Room) -> None:
    passed = room.take(HOUR)
    assert passed is not None
    room.shares.settle(passed, Cost(1, 70, 0))
    room.shares.handed_over(passed)
    (settled,) = room.shares.waiting()
    assert (settled.operation.cost, settled.is_settled) == (Cost(1, 70, 0), True)
    room.shares.handed_over(settled)
    assert not room.shares.waiting()


def test_what_is_released_may_be_given_out_again(room: Room) -> None:
    last: Passed | None = None
    while (passed := room.take(HOUR)) is not None:
        last = passed
    assert last is not None
    room.shares.release(last)
    assert room.take(HOUR) is not None
    assert room.take(HOUR) is None
    assert last not in room.shares.waiting()


def test_a_repeat_is_found_and_another_one_under_its_id_is_refused(room: Room) -> None:
    passed = room.take(HOUR)
    assert passed is not None
    operation = passed.operation
    assert room.shares.find(operation, claims=True) is passed
    for other in (operation._replace(pair=ADA._replace(user_id="bob")), operation._replace(cost=Cost(1, 1, 0))):
        with pytest.raises(RequestReused):
            room.shares.find(other, claims=True)


def test_what_is_kept_is_bounded_and_what_does_not_fit_does_not_pass(room: Room, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_OPERATIONS_MAX", 3)
    assert room.spend() == 3
    assert room.shares.keep(Operation(ADA, "more"), None) is None
    room.now_s += 3601  # their operations are too long ago for anybody to ask again
    assert not room.shares.waiting()
    monkeypatch.setattr(module, "_COUNTERS_MAX", 10)
    passed = [room.take(pair=ADA._replace(user_id=f"user-{number}")) for number in range(3)]
    assert [each is not None for each in passed] == [True, False, False]
    room.now_s += 3 * 86_400
    assert room.take(pair=ADA._replace(user_id="later")) is not None
