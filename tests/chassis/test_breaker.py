"""The breaker, with a clock that is given."""

from twofold_chassis.breaker import Breaker


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_it_opens_after_failures_in_a_row_and_lets_one_call_through_per_rest() -> None:
    clock = Clock()
    breaker = Breaker(failures_max=3, rest_s=0.5, clock=clock)
    for _ in range(2):
        breaker.failed()
    assert breaker.admits()
    breaker.succeeded()
    for _ in range(3):
        assert breaker.admits()
        breaker.failed()
    assert breaker.open
    assert not breaker.admits()
    clock.now += 0.49
    assert not breaker.admits()
    clock.now += 0.02
    assert [breaker.admits() for _ in range(3)] == [True, False, False]
    breaker.failed()
    clock.now += 0.6
    assert [breaker.admits() for _ in range(2)] == [True, False]
    breaker.succeeded()
    assert not breaker.open
    assert all(breaker.admits() for _ in range(3))


def test_a_try_that_is_never_answered_does_not_keep_it_open_for_ever() -> None:
    clock = Clock()
    breaker = Breaker(failures_max=1, rest_s=0.5, clock=clock)
    breaker.failed()
    for _ in range(3):
        clock.now += 0.6
        assert breaker.admits()
