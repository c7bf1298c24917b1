"""`python -m benchmarks`: measures the stack on this machine, prints a table, writes build/bench.json.

Ratios within one run are what counts; absolute rates move with the machine. Nothing here decides a test.
"""

import argparse
import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

from rich.console import Console
from rich.table import Table

from benchmarks import operations, rows
from benchmarks.rows import Operation, Row
from twofold.client import Twofold
from twofold_cli.stack import raise_stack
from twofold_cli.up import DEVELOPMENT

REPORT = Path("build/bench.json")


@asynccontextmanager
async def echo_process() -> AsyncIterator[tuple[str, int]]:
    """The baseline in a process of its own: its target and pid."""
    process = subprocess.Popen([sys.executable, "-m", "benchmarks.echo"], stdout=subprocess.PIPE, text=True)  # noqa: ASYNC220
    assert process.stdout is not None
    try:
        port = await asyncio.to_thread(process.stdout.readline)
        yield f"127.0.0.1:{port.strip()}", process.pid
    finally:
        process.send_signal(signal.SIGTERM)
        await asyncio.to_thread(process.wait, 10)
        process.stdout.close()


async def bench(console: Console, only: Sequence[str]) -> int:
    """Measures all rows, or those named."""
    console.print(f"machine: {rows.machine()}\n", style="dim")
    async with (
        raise_stack(ephemeral=True, settings=DEVELOPMENT) as stack,
        echo_process() as echo,
        Twofold(registry=stack.registry.target, memory=stack.memory.target, router=stack.router.target) as twofold,
    ):
        chosen = [item for item in await operations.all_of(stack, twofold) if not only or item.id in only]
        measured = [await _measured(console, item, echo) for item in chosen]
    rows.write([{**row.as_json(), "machine": rows.machine()} for row in measured], REPORT)
    console.print()
    console.print(_table(measured))
    console.print(f"written to {REPORT}", style="dim")
    return 0


async def _measured(console: Console, operation: Operation, echo: tuple[str, int]) -> Row:
    with console.status("") as status:

        def told(number: int) -> None:
            status.update(f"{operation.id} {operation.what}: round {number + 1} of {rows.ROUNDS}")

        row = await rows.measure(operation, *echo, told=told)
    _print(console, row)
    return row


def _print(console: Console, row: Row) -> None:
    if row.spread > rows.SPREAD_MAX:
        console.print(f"{row.operation.id}: not reported, the echo itself moved by {row.spread:.2f}×", style="yellow")


def _table(measured: Sequence[Row]) -> Table:
    table = Table("id", "what", "callers", "ratio", "goal", "p50 ms", "p99 ms", "echo p50", "CPU µs/call", "echo CPU")
    for row in measured:
        told = row.as_json()
        ratio = "not reported" if told["ratio"] is None else f"{told['ratio']} {'✔' if told['met'] else '✘'}"
        goal = f"{'≤' if row.alone else '≥'} {row.operation.goal}"
        cells = (row.operation.id, row.operation.what, row.operation.callers, ratio, goal, told["p50_ms"], told["p99_ms"])
        cpu = (told["echo_p50_ms"], told["service_cpu_us_per_call"], told["echo_cpu_us_per_call"])
        table.add_row(*map(str, (*cells, *cpu)))
    return table


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("only", nargs="*", help="ids of rows, e.g. P3 (default: all)")
    chosen: list[str] = parser.parse_args().only
    width = None if sys.stdout.isatty() else int(os.environ.get("COLUMNS", "150"))
    raise SystemExit(asyncio.run(bench(Console(highlight=False, width=width), chosen)))


if __name__ == "__main__":
    main()
