"""`python -m benchmarks.chaos.mutants`: planted bugs, each of which the checker must catch (= make chaos-mutants).

Each is a change of the service's text, applied to a copy of it and run under schedules that are directed at it, until the
checker has caught it. One that does not apply exactly, or is not caught within its schedules, makes the exit status 1: then
the checker is not worth what `make chaos` says. The row `none` is the service as it is, which must not be accused.
"""

import argparse
import asyncio
import json
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.chaos.history import Violation
from benchmarks.chaos.plants import MUTANTS, Mutant
from benchmarks.chaos.run import run
from benchmarks.chaos.schedules import directed, planned
from benchmarks.chaos.stack import Servers, raise_servers, raise_workers
from twofold_chassis.start import StartError

REPORT = Path("build/chaos-mutants.json")
SERVICE = Path(__file__).resolve().parents[2] / "services" / "memory"
_LOAD_S = 6.0
_OVERDUE_S = 20.0
_TOLD_MAX = 20


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one mutant; `problem` says why it could not be tried at all."""

    mutant: Mutant
    caught: dict[str, int]
    schedules: int
    problem: str = ""
    violations: tuple[Violation, ...] = ()

    @property
    def is_well(self) -> bool:
        """Whether the checker did what it must."""
        return not self.problem and bool(self.caught) == bool(self.mutant.patches)


def planted(mutant: Mutant, folder: Path, source: Path = SERVICE) -> None:
    """A copy of the service with the bug in it. Raises ValueError if the change does not apply exactly once."""
    package = folder / "twofold_memory"
    shutil.copytree(source / "twofold_memory", package, ignore=shutil.ignore_patterns("__pycache__"))
    for patch in mutant.patches:
        path = package / patch.file
        text = path.read_text(encoding="utf-8") if path.is_file() else ""
        count = text.count(patch.old)
        if count != 1:
            raise ValueError(f"{patch.file} holds the text to be changed {count} times: {patch.old.strip()[:60]!r}")
        path.write_text(text.replace(patch.old, patch.new), encoding="utf-8")


async def tried(servers: Servers, mutant: Mutant, number: int, seed: int) -> Outcome:
    """Runs schedules until one is caught."""
    with tempfile.TemporaryDirectory(prefix="twofold-mutant-") as name:
        folder = Path(name)
        try:
            planted(mutant, folder)
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
                        some = tuple(result.verdict.violations[:_TOLD_MAX])
                        return Outcome(mutant, dict(result.verdict.counts()), count + 1, violations=some)
        except StartError as error:
            return Outcome(mutant, {}, 0, f"does not run: {error}")
    return Outcome(mutant, {}, mutant.schedules_max)


async def mutants(console: Console, chosen: Sequence[Mutant], seed: int) -> int:
    """Tries them all; returns the exit status."""
    outcomes = []
    async with raise_servers() as servers:
        for number, mutant in enumerate(chosen):
            with console.status(f"mutant {number + 1} of {len(chosen)}: {mutant.name}"):
                outcomes.append(await tried(servers, mutant, number, seed))
            if not console.is_terminal:
                console.print(f"{mutant.name}: {_word(outcomes[-1])}", markup=False)
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
    unknown = set(asked.names) - {mutant.name for mutant in MUTANTS}
    if unknown:
        parser.error(f"no such mutant: {', '.join(sorted(unknown))}")
    console = Console(highlight=False)
    try:
        chosen = [mutant for mutant in MUTANTS if mutant.name in asked.names or not asked.names]
        raise SystemExit(asyncio.run(mutants(console, chosen, asked.seed)))
    except StartError as error:
        console.print(f"chaos: {error}", markup=False)
        raise SystemExit(1) from None


if __name__ == "__main__":
    main()
