"""`python -m benchmarks.chaos`: seeded schedules of faults under load; writes build/chaos.json.

    make chaos SCHEDULES=20 SEED=7        the same seed does the same faults at the same moments, as far as a machine can
    python -m benchmarks.chaos --transcripts FILE     all conversations of the file go in meanwhile, and are compared

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

from benchmarks.chaos.run import Result, run
from benchmarks.chaos.schedules import KINDS, planned
from benchmarks.chaos.stack import Stack, raise_servers, raise_workers
from benchmarks.chaos.transcripts import Import
from twofold_chassis.start import StartError

REPORT = Path("build/chaos.json")
LOGS = Path("build/chaos-logs")
SCHEDULES_DEFAULT = 5
LOAD_S = 9.0


async def chaos(console: Console, asked: argparse.Namespace) -> int:
    """Runs the schedules; returns the exit status."""
    results: list[Result] = []
    async with raise_servers() as servers, raise_workers(servers, "chaos") as stack:
        transcripts = Import(asked.transcripts, stack) if asked.transcripts else None
        importing = asyncio.create_task(transcripts.run()) if transcripts else None
        for number in range(asked.schedules):
            plan = planned(asked.seed + number, LOAD_S, workers=len(stack.workers), kind=asked.kind)
            with console.status(f"schedule {number + 1} of {asked.schedules}, seed {plan.seed}, {plan.kind}"):
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
    schedules = int(os.environ.get("SCHEDULES") or SCHEDULES_DEFAULT)
    seed = int(os.environ.get("SEED") or random.randrange(1_000_000))
    parser.add_argument("--schedules", type=int, default=schedules, help="how many, with seeds in a row (or SCHEDULES)")
    parser.add_argument("--seed", type=int, default=seed, help="of the first one (or SEED)")
    parser.add_argument("--kind", choices=KINDS, default=os.environ.get("KIND") or None, help="instead of the seed's own")
    parser.add_argument("--transcripts", type=Path, help="conversations to import meanwhile, one JSON object a line")
    return parser.parse_args(arguments)


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
