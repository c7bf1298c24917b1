"""`python -m benchmarks.chaos`: seeded schedules of faults under load; writes build/chaos.json, build/chaos-control.json.

    make chaos SCHEDULES=20 SEED=7        the same seed does the same faults at the same moments, as far as a machine can
    python -m benchmarks.chaos memory     one of the two worlds: memory, or the control plane (registries and routers)
    python -m benchmarks.chaos memory --transcripts FILE     all conversations of the file go in meanwhile, and are compared

A schedule is some seconds of load with faults, then calm, then the comparison of what clients saw with what the stores hold.
Exit status 1 if anything was violated.
"""

import argparse
import asyncio
import json
import os
import random
import shutil
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from benchmarks.chaos.control import command as control
from benchmarks.chaos.control import schedules as control_schedules
from benchmarks.chaos.run import Result, run
from benchmarks.chaos.schedules import KINDS, planned
from benchmarks.chaos.stack import Stack, raise_servers, raise_workers
from benchmarks.chaos.transcripts import Import
from twofold_chassis.start import StartError

REPORT = Path("build/chaos.json")
LOGS = Path("build/chaos-logs")
SCHEDULES_DEFAULT = 5
LOAD_S = 9.0
WORLDS = ("memory", "control")
_KINDS = {"memory": KINDS, "control": control_schedules.KINDS}


async def chaos(console: Console, asked: argparse.Namespace) -> int:
    """Runs the schedules of the worlds that were asked for; returns the exit status."""
    status = 0
    if "memory" in asked.worlds:
        status |= await _memory(console, asked, asked.schedules or SCHEDULES_DEFAULT)
    if "control" in asked.worlds:
        schedules = asked.schedules or control.SCHEDULES_DEFAULT
        status |= await control.chaos(console, schedules, asked.seed, kind=asked.kind, slower=asked.slower)
    return status


async def _memory(console: Console, asked: argparse.Namespace, schedules: int) -> int:
    results: list[Result] = []
    async with raise_servers() as servers, raise_workers(servers, "chaos") as stack:
        transcripts = Import(asked.transcripts, stack) if asked.transcripts else None
        importing = asyncio.create_task(transcripts.run()) if transcripts else None
        for number in range(schedules):
            plan = planned(asked.seed + number, LOAD_S, workers=len(stack.workers), kind=asked.kind)
            with console.status(f"schedule {number + 1} of {schedules}, seed {plan.seed}, {plan.kind}"):
                results.append(await run(stack, plan))
            _tell(console, results[-1])
            if results[-1].verdict.violations:
                _keep_logs(stack, plan.seed)
            _write(_report(asked, results, None))
        compared = None
        if transcripts is not None and importing is not None:
            with console.status("the rest of the transcripts"):
                await importing
                compared = await transcripts.compared()
            console.print(f"transcripts: {json.dumps(compared)}")
    report = _report(asked, results, compared)
    _write(report)
    console.print(f"{json.dumps({name: report[name] for name in report if name != 'runs'})}\nwritten to {REPORT}")
    return 1 if report["violations"] or (compared and compared["different"]) else 0


def _keep_logs(stack: Stack, seed: int) -> None:
    """What the workers said of a schedule in which something was violated, beside the report."""
    LOGS.mkdir(parents=True, exist_ok=True)
    for worker in stack.workers:
        shutil.copyfile(worker.process.child.log.path, LOGS / f"{seed}-memory-{worker.number}.log")


def _tell(console: Console, result: Result) -> None:
    found = result.verdict.counts()
    words = ", ".join(f"{count} {kind}" for kind, count in sorted(found.items())) or "nothing violated"
    told = result.counts
    console.print(
        f"seed {result.plan.seed} {result.plan.kind:<5} {len(result.faults):>3} faults, {told['calls']:>5} calls, "
        f"{told['appends committed']:>4} committed, {told['appends journaled']:>4} journaled "
        f"(the last in Postgres after {result.settled_s:.1f} s): {words}"
    )
    for violation in result.verdict.violations[:20]:
        console.print(
            f"    {violation.kind} {violation.thread} {' '.join(violation.turns)}: {violation.detail}", markup=False
        )


def _report(asked: argparse.Namespace, results: Sequence[Result], transcripts: dict[str, Any] | None) -> dict[str, Any]:
    violations, excused, counts, faults = (Counter[str]() for _ in range(4))
    for result in results:
        violations += result.verdict.counts()
        excused += result.verdict.excused
        counts += result.counts
        faults.update(name for name, *_ in result.faults)
    return {
        "seed": asked.seed,
        "schedules": len(results),
        "kinds": dict(Counter(result.plan.kind for result in results)),
        "violations": dict(violations),
        "failing_seeds": [result.plan.seed for result in results if result.verdict.violations],
        "excused": dict(excused),
        "counts": dict(counts),
        "faults": dict(faults),
        "settled_s_max": round(max((result.settled_s for result in results), default=0.0), 2),
        "transcripts": transcripts,
        "runs": [result.report() for result in results],
    }


def _write(report: dict[str, Any]) -> None:
    REPORT.parent.mkdir(parents=True, exist_ok=True)
    REPORT.write_text(json.dumps(report, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def asked_for(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """What is to be run: the environment speaks for make."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.chaos", description="seeded schedules of faults under load")
    schedules = int(os.environ.get("SCHEDULES") or 0)
    seed = int(os.environ.get("SEED") or random.randrange(1_000_000))
    parser.add_argument("worlds", nargs="*", metavar="world", help=f"only these, out of {', '.join(WORLDS)}")
    parser.add_argument("--schedules", type=int, default=schedules, help="how many, with seeds in a row (or SCHEDULES)")
    parser.add_argument("--seed", type=int, default=seed, help="of the first one (or SEED)")
    kinds = sorted({*KINDS, *control_schedules.KINDS})
    parser.add_argument("--kind", choices=kinds, default=os.environ.get("KIND") or None, help="instead of the seed's own")
    parser.add_argument("--slower", type=float, help="the control plane's limits of time, as so many times the usual ones")
    parser.add_argument("--transcripts", type=Path, help="conversations to import meanwhile, one JSON object a line")
    asked = parser.parse_args(arguments)
    asked.worlds = asked.worlds or [world for world in WORLDS if asked.kind is None or asked.kind in _KINDS[world]]
    if unknown := set(asked.worlds) - {*WORLDS}:
        parser.error(f"no such world: {', '.join(sorted(unknown))}")
    if foreign := [world for world in asked.worlds if asked.kind and asked.kind not in _KINDS[world]]:
        parser.error(f"{', '.join(foreign)} has no schedules of the kind {asked.kind}")
    return asked


def main() -> None:
    """The command."""
    console = Console(highlight=False, soft_wrap=True)
    try:
        raise SystemExit(asyncio.run(chaos(console, asked_for())))
    except StartError as error:
        console.print(f"chaos: {error}", markup=False)
        raise SystemExit(1) from None


if __name__ == "__main__":
    main()
