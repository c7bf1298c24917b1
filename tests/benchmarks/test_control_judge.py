"""The checker of the control plane must see what it is there to see, and accuse nobody else."""

from dataclasses import replace
from typing import Any

import pytest

from benchmarks.chaos.control.history import (
    FOREVER,
    Answer,
    Away,
    Change,
    Era,
    History,
    Pair,
    Route,
    State,
    Token,
    Told,
    Verdict,
    Write,
)
from benchmarks.chaos.control.judge import judge

PAIR = Pair("ada", "one")
LEASE_S = 1.0
HERE = Route("http://here", published=True, gone=False)
YES = State(Verdict.GRANT, FOREVER, HERE)
NO = State(Verdict.DENIED, FOREVER, HERE)
EPOCH = 100


def told(what: Told, sent: float, **values: Any) -> Answer:
    """An answer that came a hundredth of a second after the call."""
    return Answer(0, PAIR, sent, **{"came": sent + 0.01, "told": what, **values})


def history(*answers: Answer, changes: list[tuple[float, State]] | None = None, **values: Any) -> History:
    """Granted at first; each change was acknowledged a hundredth of a second after its commit began."""
    made = [(10.0, NO)] if changes is None else changes
    revisions = [Change(number, at, {PAIR: state}) for number, (at, state) in enumerate(made, start=6)]
    writes = [Write(Token(EPOCH, change.revision), change.earliest, change.earliest + 0.01) for change in revisions]
    era = Era(float("-inf"), 0.0, 5, {PAIR: YES}, revisions, read=100.0)
    return History(**{"eras": [era], "writes": writes, "answers": list(answers), **values})


def kinds(seen: History) -> dict[str, int]:
    return dict(judge(seen, LEASE_S).kinds())


def test_what_is_true_within_a_lease_is_accused_of_nothing() -> None:
    assert not kinds(history(told(Told.ALLOWED, 9), told(Told.ALLOWED, 10.9), told(Told.DENIED, 10), told(Told.DENIED, 20)))


@pytest.mark.parametrize("answer", [told(Told.ALLOWED, 11.1), told(Told.DENIED, 9), told(Told.UNKNOWN, 9)])
def test_what_was_true_at_no_moment_of_the_last_lease_is_stale(answer: Answer) -> None:
    assert kinds(history(answer)) == {"STALE": 1}


def test_what_its_caller_relies_on_counts_from_when_it_came() -> None:
    late = told(Told.ALLOWED, 10.5, came=11.5)
    assert not kinds(history(late))
    assert kinds(history(replace(late, relied=True))) == {"STALE": 1}


def test_a_commit_may_be_as_late_as_its_acknowledgement() -> None:
    slow = history(told(Told.ALLOWED, 12.0))
    assert kinds(slow) == {"STALE": 1}
    slow.writes[0] = replace(slow.writes[0], came=11.5)
    assert not kinds(slow)


def test_after_a_wait_nobody_says_what_was_before() -> None:
    seen = history(told(Told.ALLOWED, 10.5))
    assert not kinds(seen)
    seen.writes[0] = replace(seen.writes[0], waited=True)
    assert kinds(seen) == {"UNWAITED": 1}
    assert not kinds(replace(seen, answers=[told(Told.ALLOWED, 10.005), told(Told.DENIED, 10.5)]))


def test_a_token_is_honoured() -> None:
    asked = told(Told.ALLOWED, 10.5, token=Token(EPOCH, 6))
    assert kinds(history(asked)) == {"TOKEN": 1}
    assert not kinds(history(replace(asked, token=Token(EPOCH, 5)), replace(asked, told=Told.DENIED)))


def test_who_cannot_have_heard_anything_says_so() -> None:
    aways = [Away(0, 5.0, 9.0)]
    assert kinds(history(told(Told.ALLOWED, 7), aways=aways)) == {"KNOWS": 1}
    fine = [told(Told.ALLOWED, 6), told(Told.UNAVAILABLE, 7), told(Told.NOTHING, 7), told(Told.ALLOWED, 8.995)]
    assert not kinds(history(*fine, aways=aways))


def test_what_was_acknowledged_is_in_the_history() -> None:
    seen = history()
    seen.writes.append(Write(Token(EPOCH, 7), 11, 11.1))
    assert kinds(seen) == {"LOST": 1}


def test_a_token_is_of_another_history_only_if_there_was_one() -> None:
    answer = told(Told.HISTORY, 12, token=Token(EPOCH, 6))
    assert kinds(history(answer)) == {"HISTORY": 1}
    assert kinds(history(replace(answer, token=None), restarts=[(8.0, 9.0)])) == {"HISTORY": 1}
    assert not kinds(history(answer, restarts=[(8.0, 9.0)]))


def test_a_grant_ends_by_itself_and_up_to_a_lease_early() -> None:
    ends = State(Verdict.GRANT, 12.0, HERE)
    seen = [told(Told.ALLOWED, 11.9), told(Told.DENIED, 11.2), told(Told.DENIED, 13)]
    assert not kinds(history(*seen, changes=[(10.0, ends)]))
    wrong = [told(Told.ALLOWED, 13.2), told(Told.DENIED, 10.5), told(Told.ALLOWED, 12.2, relied=True)]
    changed = [(8.0, ends)]
    assert kinds(history(*wrong, changes=changed)) == {"STALE": 3}


def test_an_older_copy_of_the_database_is_true_from_when_it_was_put_in_place() -> None:
    seen = history(told(Told.ALLOWED, 25), told(Told.DENIED, 20.5), told(Told.ALLOWED, 20.5))
    seen.eras[0] = replace(seen.eras[0], read=20.0, epoch_max=EPOCH)
    seen.eras.append(Era(20.0, 21.0, 5, {PAIR: YES}, read=100.0))
    seen.writes.append(Write(Token(EPOCH, 6), 10, 10.01, waited=True))
    assert not kinds(seen)
    assert kinds(replace(seen, answers=[told(Told.DENIED, 23)])) == {"STALE": 1}


def test_codes_are_never_confused() -> None:
    admin = State(Verdict.ROLE, FOREVER, HERE)
    paused, gone = HERE._replace(published=False), HERE._replace(gone=True)
    states = {
        Told.ALLOWED: admin,
        Told.UNPUBLISHED: admin._replace(route=paused),
        Told.GONE: State(Verdict.AGENT_GONE, FOREVER, gone),
        Told.UNKNOWN: State(Verdict.AGENT_UNKNOWN, FOREVER, None),
        Told.DENIED: NO,
    }
    for right, state in states.items():
        for said in states:
            found = kinds(history(told(said, 20), changes=[(10.0, state)]))
            assert found == ({} if said is right else {"STALE": 1}), (right, said)
    assert kinds(history(told(Told.ALLOWED, 20, url="http://elsewhere"), changes=[(10.0, admin)])) == {"STALE": 1}
    assert kinds(history(told(Told.WRONG, 9))) == {"WRONG": 1}


def test_a_check_says_nothing_of_the_route() -> None:
    paused = State(Verdict.ROLE, FOREVER, HERE._replace(published=False))
    asked = told(Told.ALLOWED, 20, only_permission=True)
    assert not kinds(history(asked, changes=[(10.0, paused)]))
    assert kinds(history(replace(asked, told=Told.DENIED), changes=[(10.0, paused)])) == {"STALE": 1}
