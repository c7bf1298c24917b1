"""`python -m benchmarks`: measures the stack on this machine, prints tables, writes build/bench.json.

  python -m benchmarks               all rows but those below, about ten minutes
  python -m benchmarks P3 P8         these rows; P8 stands for all that begin with P8-
  python -m benchmarks --peers       P11: other libraries on the same servers, installed into build/peers when first needed
  python -m benchmarks --curve       latency over the length of a thread, to docs/performance.md and its plot
  python -m benchmarks --document    what build/bench.json holds, to docs/performance.md; measures nothing

Ratios within one run are what counts; absolute rates move with the machine. Nothing here decides a test.
"""

import argparse
import asyncio
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from benchmarks import curve, document, limits, operations, rows, sizes, table, threads
from benchmarks.comparing import Operation, is_chosen
from benchmarks.peers import comparison as peers
from benchmarks.places import Place, measuring_place
from benchmarks.rows import Compared, Figure, Row

REPORT = Path("build/bench.json")
CURVE = Path("build/curve.json")
_SIZES = ("P12-service", "P12-redis", "P12-postgres")


async def bench(console: Console, only: Sequence[str]) -> None:
    """Measures all rows, or those named, each against its baseline."""
    chosen = [operation for operation in operations.OPERATIONS if is_chosen(operation.id, only)]
    with_sizes = any(is_chosen(id_, only) for id_ in _SIZES)
    if not chosen and not with_sizes:
        raise SystemExit(f"no row is called {' or '.join(only)}")
    measured: list[Row] = []
    async with measuring_place() as place:
        await threads.make_workspace(place.twofold)
        measured += [await _compared(console, place, operation) for operation in chosen]
        if with_sizes:
            with console.status("P12: sizes"):
                measured += await sizes.figures(place)
    _report(console, measured)


async def with_peers(console: Console) -> None:
    """P11."""
    measured: list[Row] = []
    with console.status("P11") as status:
        async with measuring_place(told=status.update) as place:
            measured += await peers.figures(place, told=status.update)
            measured += await limits.peer_figures(place, told=status.update)
    _report(console, measured)


async def with_curve(console: Console) -> None:
    """Latency over length, with its document."""
    with console.status("curve") as status:
        async with measuring_place(told=status.update) as place:
            points = await curve.measure(place, told=status.update)
    curve.write(points, CURVE)
    document.write_curve(points)
    console.print(document.curve_table(points))
    console.print(f"written to {CURVE}, {document.PLOT} and {document.PAGE}", style="dim")


async def _compared(console: Console, place: Place, operation: Operation) -> Compared | Figure:
    """The row; if what was measured was not what was meant, one that says so. The others are measured all the same."""
    with console.status(f"{operation.id}: preparing") as status:

        def told(number: int) -> None:
            status.update(f"{operation.id}: round {number + 1} of {rows.ROUNDS}")

        try:
            prepared = await operation.prepare(place)
            if isinstance(prepared, Figure):
                return prepared
            compared = await rows.measure(prepared, told=told)
        except RuntimeError as error:
            console.print(f"{operation.id}: not measured: {error}", style="red")
            return Figure(operation.id, "not measured", {"reason": str(error)}, met=False)
    comparison = compared.comparison
    if compared.unsteady:
        moved = f"{comparison.id}: not reported, the baseline itself moved by {compared.spread:.2f}×"
        console.print(moved, style="yellow")
    return compared


def _report(console: Console, measured: Sequence[Row]) -> None:
    rows.write(measured, REPORT)
    told = [row.as_json() for row in measured]
    console.print()
    if compared := [row for row in told if table.is_compared(row)]:
        console.print(table.compared(compared))
    if of_peers := [row for row in told if table.is_peer(row)]:
        console.print(table.peers(of_peers))
    if figures := [row for row in told if not (table.is_compared(row) or table.is_peer(row))]:
        console.print(table.figures(figures))
    console.print(f"written to {REPORT}", style="dim")


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("only", nargs="*", help="ids of rows, e.g. P3 (default: all)")
    kind = parser.add_mutually_exclusive_group()
    kind.add_argument("--peers", action="store_true", help="measure other libraries on the same servers")
    kind.add_argument("--curve", action="store_true", help="measure latency over the length of a thread")
    kind.add_argument("--document", action="store_true", help="write the last report into docs/performance.md")
    asked = parser.parse_args()
    width = None if sys.stdout.isatty() else int(os.environ.get("COLUMNS", "150"))
    console = Console(highlight=False, width=width)
    console.print(f"machine: {rows.machine()}\n", style="dim")
    if asked.document:
        document.write_rows(rows.read(REPORT))
    elif asked.curve:
        asyncio.run(with_curve(console))
    elif asked.peers:
        asyncio.run(with_peers(console))
    else:
        asyncio.run(bench(console, asked.only))


if __name__ == "__main__":
    main()
