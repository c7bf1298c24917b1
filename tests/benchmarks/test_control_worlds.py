"""What chaos holds against limits, events and sessions, and the schedules of the control plane."""

from dataclasses import replace
from itertools import pairwise

import pytest

from benchmarks.chaos.__main__ import asked_for
from benchmarks.chaos.control import schedules
from benchmarks.chaos.control.eventing import Eventing, Place, Published, Subscriber, judge_events
from benchmarks.chaos.control.eventing import Told as Heard
from benchmarks.chaos.control.holding import Holding, Listed, Word, judge_sessions
from benchmarks.chaos.control.spending import Operation, Spending, Used, judge_spending

# Limits ------------------------------------------------------------------------------------------------------------------

DONE = Operation("ada", 1, 1.0, admitted=1.1, recorded=1.2, settled=True)


def spent(*operations: Operation, used: int | None = None, **values: object) -> list[str]:
    spending = Spending(20, 3, list(operations), **values)  # type: ignore[arg-type]
    if used is not None:
        spending.used.append(Used("ada", used))
    return [violation.kind for violation in judge_spending(spending)]


def test_no_more_passes_than_the_limit_and_what_is_allowed_besides() -> None:
    assert not spent(*[DONE] * 23)
    assert spent(*[DONE] * 24) == ["OVER"]
    assert not spent(*[DONE] * 24, kills=1)
    assert not spent(*[DONE] * 23, replace(DONE, released=True))


def test_what_redis_forgot_and_the_ledger_had_not_is_allowed_besides() -> None:
    unrecorded = replace(DONE, recorded=None)
    assert not spent(*[DONE] * 23, unrecorded, losses=[(1.5, 1.6)])
    assert spent(*[DONE] * 24, losses=[(1.5, 1.6)]) == ["OVER"]
    assert not spent(*[DONE] * 24, losses=[(1.5, 1.6)], forgettings=[(1.4, 1.5)])


def test_what_passed_is_counted_and_what_was_refused_is_not() -> None:
    refused, unknown = Operation("ada", 1, 1.0, refused=True), Operation("ada", 1, 1.0, may_count=True)
    assert not spent(DONE, refused, used=1)
    assert spent(DONE, refused, used=2) == ["EXCESS"]
    assert not spent(DONE, unknown, used=2)
    assert spent(DONE, used=0) == ["FORGOTTEN"]
    assert not spent(replace(DONE, released=True), used=0)


def test_what_the_ledger_had_is_counted_after_a_loss_too() -> None:
    assert spent(DONE, used=0, losses=[(1.5, 1.6)]) == ["FORGOTTEN"]
    assert not spent(replace(DONE, recorded=1.55), used=0, losses=[(1.5, 1.6)])
    assert not spent(replace(DONE, settled=False, local=True), used=0, kills=1)


def test_a_repeat_of_what_passed_is_not_refused() -> None:
    assert spent(DONE, repeated_in_vain=[(DONE, 2.0)]) == ["REFUSED"]
    assert not spent(DONE, repeated_in_vain=[(DONE, 2.0)], losses=[(0.0, 0.1)])


# Events ------------------------------------------------------------------------------------------------------------------

BEGUN = Heard("subscribed", "a", "e1", 0)


def event(offset: int, epoch: str = "e1", name: str = "") -> Heard:
    return Heard("event", "a", epoch, offset, name=name or f"{epoch}-{offset}")


def heard(*told: Heard, published: tuple[Published, ...] = ()) -> list[str]:
    return [violation.kind for violation in judge_events(Eventing(list(published), [Subscriber(0, list(told))]))]


def test_offsets_are_told_one_after_the_other_or_announced_as_missing() -> None:
    assert not heard(BEGUN, event(1), event(2), Heard("gap", "a", "e1", 4, 3), event(5))
    assert heard(BEGUN, event(1), event(3)) == ["HOLE"]
    assert heard(BEGUN, event(1), event(1)) == ["ORDER"]
    assert heard(BEGUN, event(1), Heard("gap", "a", "e1", 4, 3)) == ["HOLE"]
    assert heard(event(1)) == ["ORDER"]


def test_another_epoch_is_announced() -> None:
    assert not heard(BEGUN, event(1), Heard("reset", "a", "e2"), event(1, "e2"))
    assert heard(BEGUN, event(1), event(1, "e2")) == ["ORDER"]
    assert heard(BEGUN, Heard("reset", "a", "e1")) == ["ORDER"]


def test_who_goes_on_goes_on_where_he_was() -> None:
    again = Heard("subscribed", "a", "e1", 1, after=Place("e1", 1))
    assert not heard(BEGUN, event(1), again, event(2))
    assert heard(BEGUN, event(1), replace(again, offset=2), event(3)) == ["RESUMED"]
    assert not heard(BEGUN, event(1), Heard("refused", "a"), Heard("subscribed", "a", "e2", 7), event(8, "e2"))


def test_an_offset_is_one_event_and_an_event_has_one_offset() -> None:
    told = (BEGUN, event(1, name="x"))
    assert not heard(*told, published=(Published("a", "e1", 1, ("x",)),))
    assert heard(*told, published=(Published("a", "e1", 1, ("y",)),)) == ["FORKED"]
    assert heard(*told, event(2, name="x")) == ["DOUBLED"]


# Sessions ----------------------------------------------------------------------------------------------------------------

ONE = Word("pod-1", "opened", 1.0, "s", 5)
TRIES = Word("pod-2", "tries", 1.9, "s")
TWO = Word("pod-2", "opened", 2.0, "s", 7)


def holds(pod: str, at: float, fence: int) -> Word:
    return Word(pod, "holds", at, sessions=(("s", fence),))


def held(*words: Word, **values: object) -> list[str]:
    return [violation.kind for violation in judge_sessions(Holding(1.0, list(words), **values))]  # type: ignore[arg-type]


def test_nobody_serves_what_another_has_been_given() -> None:
    assert not held(ONE, holds("pod-1", 1.9, 5), TRIES, TWO, holds("pod-2", 3.0, 7))
    assert held(ONE, TRIES, TWO, holds("pod-1", 2.5, 5)) == ["TWO"]


def test_fences_rise() -> None:
    assert held(ONE, TRIES, replace(TWO, fence=4)) == ["FENCE"]


def test_a_session_is_lost_only_to_somebody() -> None:
    lost = Word("pod-1", "lost", 3.0, "s", 5, "TAKEN_OVER")
    assert not held(ONE, TRIES, TWO, lost)
    assert not held(ONE, TRIES, lost)  # it may have been given without hearing of it
    assert held(ONE, lost) == ["SNATCHED"]
    assert held(ONE, TRIES, Word("pod-2", "refused", 2.0, "s"), lost) == ["SNATCHED"]
    lives = [Word("pod-1", "holds", at, life=life) for at, life in ((2.9, "1"), (3.1, "1"), (3.2, "2"))]
    assert held(ONE, lost, *lives[:2]) == ["SNATCHED"]
    assert not held(ONE, lost, *lives)  # the pod was thought dead


def test_a_fence_of_before_closes_nothing() -> None:
    assert held(ONE, TRIES, TWO, closed=[("s", 5, 3.0)]) == ["CLOSED"]
    assert not held(ONE, TRIES, TWO, closed=[("s", 7, 3.0), ("s", 5, 1.5)])


def test_who_was_killed_is_not_listed_long_after() -> None:
    listed = Listed(20.0, (("s", 5),))
    assert held(ONE, listed=[listed], kills=[("pod-1", 2.0)]) == ["GHOST"]
    assert not held(ONE, listed=[listed, Listed(20.0, (("s", 7),))], kills=[("pod-1", 15.0)])
    assert held(ONE, differs="something") == ["TABLE"]


# Schedules ---------------------------------------------------------------------------------------------------------------


def test_a_seed_means_the_same_faults_at_the_same_moments() -> None:
    assert [schedules.planned(seed, 9, 1) for seed in range(20)] == [schedules.planned(seed, 9, 1) for seed in range(20)]
    assert {schedules.planned(seed, 9, 1).kind for seed in range(7, 12)} == set(schedules.KINDS)


def test_faults_of_one_track_follow_each_other_and_only_some_kinds_kill() -> None:
    for seed in range(50):
        plan = schedules.planned(seed, 9, 1)
        names = {fault.name for track in plan.tracks for fault in track}
        assert plan.kind != "calm" or not names
        assert plan.kind == "past" or not names & {"postgres restore"}
        for track in plan.tracks:
            assert all(one.at + one.seconds <= other.at + 0.002 for one, other in pairwise(track))


def test_both_worlds_run_unless_one_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SCHEDULES", raising=False)
    assert asked_for([]).worlds == ["memory", "control"]
    assert asked_for(["control"]).worlds == ["control"]
    assert asked_for(["--kind", "past"]).worlds == ["control"]
    assert asked_for(["--kind", "loss"]).worlds == ["memory"]
    with pytest.raises(SystemExit):
        asked_for(["memory", "--kind", "past"])
