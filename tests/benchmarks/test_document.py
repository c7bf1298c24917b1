"""The page about performance, and what is written into it."""

import re
from pathlib import Path

import pytest

from benchmarks import curve, document, table
from benchmarks.curve import Point
from benchmarks.peers import comparison
from benchmarks.peers.comparison import Library, Result, figure_of

POINTS = [Point(name, length, 500, 1.5, 2.5) for name in curve.OPERATIONS for length in curve.LENGTHS]


def test_a_part_of_the_page_is_replaced_and_the_rest_stays() -> None:
    page = "before\n<!-- a: begin -->\nold \\1\n<!-- a: end -->\nafter\n"
    once = document.replaced(page, "a", "new \\1")
    assert once == "before\n<!-- a: begin -->\n\nnew \\1\n<!-- a: end -->\nafter\n"
    assert document.replaced(once, "a", "new \\1") == once


def test_the_page_has_all_parts_that_are_written() -> None:
    page = document.PAGE.read_text()
    for name in ("rows", "curve", "peers", "sizes"):
        assert document.replaced(page, name, "body") != page
    with pytest.raises(ValueError, match="no part"):
        document.replaced(page, "other", "body")


def test_the_curve_has_a_line_an_operation_and_a_cell_a_length() -> None:
    cells = document.curve_cells(POINTS)
    assert [line[0] for line in cells] == list(curve.OPERATIONS)
    assert all(line[1:] == ["1.5 / 2.5"] * len(curve.LENGTHS) for line in cells)
    assert document.picture(POINTS).count("<polyline") == 2 * len(curve.OPERATIONS)


def test_rows_are_shown_in_the_order_of_their_goals() -> None:
    assert sorted(["P12-redis", "P8-window", "P3", "P5v", "P11-x"], key=document.goal_number) == [
        "P3",
        "P5v",
        "P8-window",
        "P11-x",
        "P12-redis",
    ]


def test_appends_make_no_thread_more_than_a_tenth_longer() -> None:
    for length in curve.LENGTHS[1:]:
        assert 2 * curve.appends_per_thread(length) <= length / 10
    assert curve.appends_per_thread(10) == 1


def test_every_library_has_its_module_and_pins() -> None:
    folder = Path(comparison.__file__).parent
    for one in comparison.LIBRARIES:
        assert (folder / f"{one.module}.py").exists()
        pins = (folder / f"{one.environment}.txt").read_text().splitlines()
        assert all(re.fullmatch(r"[\w.-]+==[\w.]+", pin) for pin in pins)


def library(*, durable: bool) -> Library:
    return Library("lib", "module", "environment", durable, "a library")


def test_only_a_durable_peer_is_to_be_beaten() -> None:
    ours, theirs = [Result(90, 1, 1)] * 3, [Result(100, 1, 1)] * 3
    assert figure_of(library(durable=True), "append", 64, theirs, ours, None).met is False
    assert figure_of(library(durable=True), "append", 64, ours, theirs, None).met is True
    assert figure_of(library(durable=False), "append", 64, theirs, ours, None).met is None


def test_a_peer_is_shown_with_both_ways_of_reading() -> None:
    row = figure_of(library(durable=True), "read", 1, [Result(100, 1, 1)], [Result(90, 2, 1)], [Result(150, 1, 1)]).as_json()
    cells = table.peer_cells_of(row)
    assert len(cells) == len(table.PEER_COLUMNS)
    assert cells[0] == "P11-lib-read-1"
    assert cells[-2:] == ["0.9 ✘", "1.5"]


def test_a_peer_that_could_not_be_run_says_why() -> None:
    cells = table.peer_cells_of({"id": "P11-lib", "not_run": "no such module", "met": None})
    assert len(cells) == len(table.PEER_COLUMNS)
    assert "no such module" in cells
