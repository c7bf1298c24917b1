"""The judging of rows: ratios, goals, what is not reported, and what a load generator does not see."""

from collections.abc import Sequence
from pathlib import Path

import pytest

from benchmarks import operations, rows, table, threads
from benchmarks.comparing import is_chosen
from benchmarks.load import Measured
from benchmarks.rows import Compared, Comparison, Figure, Round, Server, Subject

SERVER = Server("127.0.0.1:1", 1)
SUBJECT = Subject(SERVER, "/a.B/C", lambda _: [b""])


def compared(pairs: Sequence[tuple[int, int]], *, callers: int = 64, goal: float | None = 0.5) -> Compared:
    """Rounds of so many calls a second; a call takes as long as a lone caller would wait for it."""
    comparison = Comparison("P0", "something", SUBJECT, SUBJECT, "something else", callers, goal)
    rounds = [(one(mine), one(base)) for mine, base in pairs]
    return Compared(comparison, rounds)


def one(calls: int) -> Round:
    return Round(Measured(calls, 1, 1000 / calls, 2000 / calls), 100.0)


def test_the_ratio_is_the_median_of_same_round_ratios_and_not_the_ratio_of_medians() -> None:
    row = compared([(100, 400), (300, 400), (300, 500), (100, 500), (200, 480)])
    assert row.ratio == pytest.approx(200 / 480)


def test_rates_must_reach_their_goal_and_waiting_times_stay_below_it() -> None:
    assert compared([(200, 400)] * 5).met is True
    assert compared([(199, 400)] * 5).met is False
    assert compared([(200, 400)] * 5, callers=1, goal=2).met is True
    assert compared([(199, 400)] * 5, callers=1, goal=2).met is False


def test_a_lone_callers_ratio_is_of_waiting_times() -> None:
    row = compared([(200, 400)] * 5, callers=1)
    assert row.ratio == pytest.approx(2)
    assert row.as_json()["goal_is"] == "at most"


def test_without_a_goal_nothing_is_judged() -> None:
    assert compared([(200, 400)] * 5, goal=None).met is None


def test_a_row_whose_baseline_moved_too_much_has_no_ratio() -> None:
    row = compared([(400, 400), (400, 601)])
    assert row.unsteady
    assert row.as_json()["ratio"] is None
    assert row.met is None
    assert table.cells_of(row.as_json())[3] == "not reported"
    assert not compared([(400, 400), (400, 600)]).unsteady


METRICS = """\
# HELP grpc_server_handled_total Calls ended.
grpc_server_handled_total{grpc_code="OK",grpc_method="C",grpc_service="a.B",grpc_type="unary"} 7.0
grpc_server_handled_total{grpc_code="Internal",grpc_method="C",grpc_service="a.B",grpc_type="unary"} 2.0
grpc_server_handled_total{grpc_code="OK",grpc_method="Other",grpc_service="a.B",grpc_type="unary"} 99.0
grpc_server_started_total{grpc_method="C",grpc_service="a.B",grpc_type="unary"} 9.0
"""


def test_what_a_server_answered_is_read_from_its_metrics() -> None:
    assert rows.answered_of(METRICS, "/a.B/C") == {"OK": 7, "Internal": 2}


def test_calls_that_were_refused_are_no_result() -> None:
    with pytest.raises(RuntimeError, match=r"refused calls: \{'Internal': 1"):
        rows.check("P0", {"OK": 5, "Internal": 1}, {"OK": 105, "Internal": 2}, 100)


def test_calls_that_the_server_did_not_see_are_no_result() -> None:
    with pytest.raises(RuntimeError, match="the server 90"):
        rows.check("P0", {"OK": 10}, {"OK": 100}, 100)
    rows.check("P0", {"OK": 10, "Cancelled": 1}, {"OK": 105, "Cancelled": 9}, 100)


COUNTERS = """\
# TYPE windows_total counter
windows_total{completeness="COMPLETE",source="L1"} 90.0
windows_total{completeness="COMPLETE",source="L2"} 10.0
windows_total_of_another_kind{source="L1"} 5.0
journaled_total 3.0
"""


def test_a_family_of_counters_is_read_with_its_labels() -> None:
    assert rows.counted(COUNTERS, "windows_total") == {
        'windows_total{completeness="COMPLETE",source="L1"}': 90,
        'windows_total{completeness="COMPLETE",source="L2"}': 10,
    }
    assert rows.counted(COUNTERS, "journaled_total") == {"journaled_total": 3}
    assert rows.counted(COUNTERS, "") == {}


def test_calls_that_were_answered_in_another_way_are_reported_or_no_result() -> None:
    before = rows.counted(COUNTERS, "windows_total")
    few = {series: value + (980 if "L1" in series else 20) for series, value in before.items()}
    assert rows.otherwise("P0", before, few, 'source="L1"') == 20
    assert rows.otherwise("P0", before, before, 'source="L1"') == 0
    with pytest.raises(RuntimeError, match="another way"):
        rows.otherwise("P0", before, few, 'source="L2"')


def test_where_nothing_may_rise_every_rise_counts() -> None:
    assert rows.otherwise("P0", {"journaled_total": 3}, {"journaled_total": 5}, "") == 2
    with pytest.raises(RuntimeError, match="another way"):
        rows.otherwise("P0", {}, {"journaled_total": 2000}, "")


def test_a_report_keeps_rows_that_were_not_measured_again(tmp_path: Path) -> None:
    path = tmp_path / "build" / "bench.json"
    rows.write([Figure("P12-a", "a", {"bytes": 1}), Figure("P12-b", "b", {"bytes": 2})], path)
    rows.write([Figure("P12-a", "a", {"bytes": 3})], path)
    assert {row["id"]: row["bytes"] for row in rows.read(path)} == {"P12-a": 3, "P12-b": 2}


def test_a_report_that_is_not_one_is_begun_anew(tmp_path: Path) -> None:
    path = tmp_path / "bench.json"
    path.write_text("{")
    assert rows.read(path) == []
    assert rows.read(tmp_path / "nowhere.json") == []


def test_rows_are_chosen_by_id_or_by_what_it_begins_with() -> None:
    ids = [operation.id for operation in operations.OPERATIONS]
    assert [id_ for id_ in ids if is_chosen(id_, ["P8"])] == ["P8-append", "P8-window", "P8-window-postgres"]
    assert [id_ for id_ in ids if is_chosen(id_, ["P5", "P1"])] == ["P1", "P5"]
    assert [id_ for id_ in ids if is_chosen(id_, [])] == ids
    assert len(set(ids)) == len(ids)


@pytest.mark.parametrize("length", [10, 100, 500, 502, 1_000, 10_000, 100_000])
def test_a_thread_is_made_as_long_as_asked_and_ends_with_exchanges(length: int) -> None:
    sizes = threads.turn_sizes(length)
    assert sum(sizes) == length
    assert all(size % 2 == 0 and 0 < size <= 500 for size in sizes)
    assert sizes[-5:] == [2] * 5
