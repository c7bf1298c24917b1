"""`python -m benchmarks.chaos.mutants`: planted bugs, each of which the checker must catch (= make chaos-mutants).

Each is a change of the service's text, applied to a copy of it and run under schedules that are directed at it, until the
checker has caught it. One that does not apply exactly, or is not caught within its schedules, makes the exit status 1: then
the checker is not worth what `make chaos` says. The row `none` is the service as it is, which must not be accused.
"""

import argparse
import asyncio
import json
import tempfile
from collections.abc import Awaitable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.chaos.control import mutants as control
from benchmarks.chaos.control import world as control_world
from benchmarks.chaos.control.plants import MUTANTS as CONTROL_MUTANTS
from benchmarks.chaos.control.plants import Mutant as ControlMutant
from benchmarks.chaos.outcomes import TOLD_MAX, Outcome, planted
from benchmarks.chaos.plants import MUTANTS, Mutant
from benchmarks.chaos.run import run
from benchmarks.chaos.schedules import directed, planned
from benchmarks.chaos.stack import Servers, raise_servers, raise_workers
from twofold_chassis.start import StartError

REPORT = Path("build/chaos-mutants.json")
PACKAGE = "twofold_memory"
_LOAD_S = 6.0
_OVERDUE_S = 20.0


async def tried(servers: Servers, mutant: Mutant, number: int, seed: int) -> Outcome:
    """Runs schedules until one is caught."""
    with tempfile.TemporaryDirectory(prefix="twofold-mutant-") as name:
        folder = Path(name)
        try:
            planted(mutant.patches, folder, package=PACKAGE)
        except ValueError as error:
            return Outcome(mutant, {}, 0, f"does not apply: {error}")
        try:
            async with raise_workers(servers, f"mutant_{number}", code=folder) as stack:
                for count in range(mutant.schedules_max):
                    if mutant.tracks:
                        plan = directed(seed + count, _LOAD_S, mutant.tracks, gap_s=mutant.gap_s)
                    else:
                        plan = planned(seed + count, _LOAD_S, kind=mutant.kind)
                    result = await run(stack, plan, appetite=mutant.appetite, overdue_s=_OVERDUE_S)
                    if result.verdict.violations:
                        some = tuple(result.verdict.violations[:TOLD_MAX])
                        return Outcome(mutant, dict(result.verdict.counts()), count + 1, violations=some)
        except StartError as error:
            return Outcome(mutant, {}, 0, f"does not run: {error}")
    return Outcome(mutant, {}, mutant.schedules_max)


async def mutants(console: Console, chosen: Sequence[Mutant], others: Sequence[ControlMutant], seed: int) -> int:
    """Tries them all, those of memory and those of the control plane; returns the exit status."""
    outcomes: list[Outcome] = []
    count = len(chosen) + len(others)

    async def told(name: str, trying: Awaitable[Outcome]) -> None:
        with console.status(f"mutant {len(outcomes) + 1} of {count}: {name}"):
            outcomes.append(await trying)
        if not console.is_terminal:
            console.print(f"{name}: {_word(outcomes[-1])}", markup=False)

    if chosen:
        async with raise_servers() as servers:
            for number, mutant in enumerate(chosen):
                await told(mutant.name, tried(servers, mutant, number, seed))
    if others:
        async with control_world.raise_servers() as stores:
            for number, other in enumerate(others):
                await told(other.name, control.tried(stores, other, number, seed))
    _tell(console, outcomes)
    _write(outcomes, seed)
    return 0 if all(outcome.is_well for outcome in outcomes) else 1


def _word(outcome: Outcome) -> str:
    if outcome.problem:
        return outcome.problem
    if not outcome.caught:
        return "NOT CAUGHT" if outcome.mutant.patches else "not accused"
    kinds = ", ".join(f"{count} {kind}" for kind, count in sorted(outcome.caught.items()))
    return kinds if outcome.mutant.patches else f"ACCUSED: {kinds}"


def _tell(console: Console, outcomes: Sequence[Outcome]) -> None:
    table = Table("mutant", "what is wrong with it", "caught as", "after schedules")
    for outcome in outcomes:
        table.add_row(outcome.mutant.name, outcome.mutant.flaw, _word(outcome), str(outcome.schedules))
    console.print(table)
    console.print(f"{sum(outcome.is_well for outcome in outcomes)} of {len(outcomes)} as it should be; written to {REPORT}")


def _write(outcomes: Sequence[Outcome], seed: int) -> None:
    rows: list[dict[str, Any]] = [
        {
            "mutant": outcome.mutant.name,
            "flaw": outcome.mutant.flaw,
            "caught": outcome.caught,
            "schedules": outcome.schedules,
            "problem": outcome.problem,
            "violations": [asdict(violation) for violation in outcome.violations],
        }
        for outcome in outcomes
    ]
    REPORT.parent.mkdir(parents=True, exist_ok=True)
    REPORT.write_text(json.dumps({"seed": seed, "mutants": rows}, indent=2) + "\n", encoding="utf-8")


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.chaos.mutants", description="planted bugs must be caught")
    parser.add_argument("--seed", type=int, default=0, help="of the first schedule of each")
    parser.add_argument("names", nargs="*", metavar="mutant", help="only these")
    asked = parser.parse_args()
    unknown = set(asked.names) - {mutant.name for mutant in (*MUTANTS, *CONTROL_MUTANTS)}
    if unknown:
        parser.error(f"no such mutant: {', '.join(sorted(unknown))}")
    console = Console(highlight=False)
    try:
        chosen = [mutant for mutant in MUTANTS if mutant.name in asked.names or not asked.names]
        others = [mutant for mutant in CONTROL_MUTANTS if mutant.name in asked.names or not asked.names]
        raise SystemExit(asyncio.run(mutants(console, chosen, others, asked.seed)))
    except StartError as error:
        console.print(f"chaos: {error}", markup=False)
        raise SystemExit(1) from None


if __name__ == "__main__":
    main()
