"""A seed must mean the same faults every time, and the report must be able to name it."""

import json
from collections import Counter
from itertools import pairwise

import pytest

from benchmarks.chaos.__main__ import asked_for
from benchmarks.chaos.history import Violation
from benchmarks.chaos.judge import Verdict
from benchmarks.chaos.run import Result
from benchmarks.chaos.schedules import KINDS, LOSSES, directed, planned


def test_a_seed_means_the_same_faults_at_the_same_moments() -> None:
    assert [planned(seed, 10) for seed in range(50)] == [planned(seed, 10) for seed in range(50)]
    assert len({str(planned(seed, 10, kind="both").tracks) for seed in range(50)}) == 50


def test_five_seeds_in_a_row_are_of_five_kinds() -> None:
    assert {planned(seed, 10).kind for seed in range(17, 22)} == set(KINDS)


def test_only_kinds_that_may_lose_data_do() -> None:
    for seed in range(100):
        plan = planned(seed, 10)
        names = {fault.name for track in plan.tracks for fault in track}
        assert plan.kind in ("loss", "both") or not names & set(LOSSES)
        assert plan.kind in ("crash", "both") or not names & {"worker kill", "all workers kill"}
        assert plan.kind != "calm" or not names


def test_faults_of_one_track_follow_each_other_within_the_load() -> None:
    for seed in range(50):
        for track in planned(seed, 10).tracks:
            assert all(0 <= fault.at < 10 and fault.worker in (0, 1) for fault in track)
            assert all(one.at + one.seconds <= next_one.at for one, next_one in pairwise(track))


def test_a_directed_schedule_has_the_named_faults_only() -> None:
    plan = directed(5, 10, [["redis flush"], ["worker kill"]])
    assert {fault.name for track in plan.tracks for fault in track} == {"redis flush", "worker kill"}
    assert (plan.kind, directed(5, 10, [["worker kill"]]).kind) == ("both", "crash")


def test_the_environment_speaks_for_make(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SCHEDULES", "7")
    monkeypatch.setenv("SEED", "11")
    asked = asked_for([])
    assert (asked.schedules, asked.seed, asked.kind) == (7, 11, None)
    assert asked_for(["--seed", "12", "--kind", "loss"]).seed == 12


def test_a_result_is_reported_with_all_that_is_needed_to_look_again() -> None:
    verdict = Verdict([Violation("LOST", "t", ("turn",), "is nowhere")], Counter(excuse=1))
    result = Result(planned(3, 10), [("redis flush", 0, 1.0, 1.5)], Counter(calls=5), 2.0, verdict)
    report = json.loads(json.dumps(result.report()))
    assert (report["seed"], report["kind"], report["counts"], report["excused"]) == (3, "loss", {"calls": 5}, {"excuse": 1})
    assert report["faults"] == [{"name": "redis flush", "worker": 0, "since_s": 1.0, "until_s": 1.5}]
    assert report["violations"] == [{"kind": "LOST", "thread": "t", "turns": ["turn"], "detail": "is nowhere"}]
