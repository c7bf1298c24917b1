"""docs/performance.md: the parts between its markers are written from what was measured."""

import re
from collections.abc import Callable, Sequence
from pathlib import Path

from rich.table import Table

from benchmarks import curve, plot, rows, table
from benchmarks.curve import Point
from benchmarks.rows import Json

PAGE = Path("docs/performance.md")
PLOT = Path("docs/latency-over-length.svg")
_ROW_COLUMNS = (
    "row",
    "what",
    "callers",
    "ratio",
    "goal",
    "p50 ms",
    "p99 ms",
    "baseline's p50",
    "CPU µs a call",
    "baseline's CPU",
)


def write_curve(points: Sequence[Point]) -> None:
    """The plot, and the table of the page."""
    PLOT.write_text(picture(points))
    columns = ("messages in the thread", *(f"{length:,}" for length in curve.LENGTHS))
    body = table.markdown(columns, curve_cells(points)) + f"\n{machine_line(rows.machine())}\n"
    _replace("curve", body)


def write_rows(report: Sequence[Json]) -> None:
    """The tables of the page, from a report, in the order of the goals. Rows that it does not have yet are left out."""
    report = sorted(report, key=lambda row: goal_number(str(row["id"])))
    compared = [row for row in report if table.is_compared(row)]
    peers = [row for row in report if table.is_peer(row)]
    sizes = [row for row in report if not (table.is_compared(row) or table.is_peer(row))]
    _replace("rows", _table(_ROW_COLUMNS, compared, table.cells_of))
    _replace("peers", _table(table.PEER_COLUMNS, peers, table.peer_cells_of))
    _replace("sizes", _table(("row", "what", "measured"), sizes, _size_cells))


def picture(points: Sequence[Point]) -> str:
    """Latency over length."""
    series = []
    for name in curve.OPERATIONS:
        of_this = [point for point in points if point.operation == name]
        places = [point.messages for point in of_this]
        series.append(plot.Series(name, places, [point.p50_ms for point in of_this], [point.p99_ms for point in of_this]))
    return plot.svg(
        "What a lone caller waits, over the length of the thread",
        "messages in the thread",
        "milliseconds, p50 (solid) and p99 (dashed)",
        series,
    )


def curve_cells(points: Sequence[Point]) -> list[list[str]]:
    """A line an operation: p50 and p99 at each length."""
    found = {(point.operation, point.messages): point for point in points}
    return [
        [name, *(f"{found[name, length].p50_ms} / {found[name, length].p99_ms}" for length in curve.LENGTHS)]
        for name in curve.OPERATIONS
    ]


def curve_table(points: Sequence[Point]) -> Table:
    """The same for the terminal."""
    shown = Table("p50 / p99 in ms at", *(f"{length:,}" for length in curve.LENGTHS))
    for cells in curve_cells(points):
        shown.add_row(*cells)
    return shown


def goal_number(id_: str) -> int:
    """The number of the goal that a row is about: 8 for P8-window."""
    found = re.match(r"P(\d+)", id_)
    return int(found.group(1)) if found else 0


def machine_line(machine: object) -> str:
    """What it was measured on, as a sentence."""
    assert isinstance(machine, dict)
    return (
        f"Measured on {machine['cores']} cores, {machine.get('system', 'another system')}, Python {machine['python']}, "
        f"load from {machine['generator']}."
    )


def replaced(page: str, name: str, body: str) -> str:
    """The page with the part between the markers `name` replaced. Raises ValueError if it has no such part."""
    begin, end = f"<!-- {name}: begin -->\n", f"<!-- {name}: end -->"
    pattern = re.compile(re.escape(begin) + ".*?" + re.escape(end), re.DOTALL)
    if not pattern.search(page):
        raise ValueError(f"{PAGE} has no part {name}")
    return pattern.sub(lambda _: f"{begin}\n{body}\n{end}", page)


def _table(columns: Sequence[str], report: Sequence[Json], cells: Callable[[Json], list[str]]) -> str:
    machines = "\n".join(dict.fromkeys(machine_line(row["machine"]) for row in report))
    return f"{table.markdown(columns, [cells(row) for row in report])}\n{machines}\n"


def _size_cells(row: Json) -> list[str]:
    return [str(row["id"]), str(row["what"]), table.figures_of(row)]


def _replace(name: str, body: str) -> None:
    PAGE.write_text(replaced(PAGE.read_text(), name, body))
