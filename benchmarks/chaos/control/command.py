"""Schedules of the control plane one after the other, told as they go, and written to build/chaos-control.json."""

import json
import shutil
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from benchmarks.chaos.control.run import Result, run
from benchmarks.chaos.control.schedules import planned
from benchmarks.chaos.control.world import Times, World, raise_servers, raise_world, times

REPORT = Path("build/chaos-control.json")
LOGS = Path("build/chaos-logs")
SCHEDULES_DEFAULT = 2
# So long that there is time for what outlasts a lease, and for what follows it.
_LOAD_S, _LOAD_LEASES = 6.0, 1.0
_TOLD_MAX = 20


async def chaos(
    console: Console, schedules: int, first_seed: int, *, kind: str | None = None, slower: float | None = None
) -> int:
    """Runs the schedules; returns the exit status."""
    limits = times() if slower is None else times(slower)
    results: list[Result] = []
    async with raise_servers() as servers, raise_world(servers, "chaos", limits) as world:
        for number in range(schedules):
            plan = planned(first_seed + number, load_s(limits), limits.lease, kind=kind)
            with console.status(f"control plane, schedule {number + 1} of {schedules}, seed {plan.seed}, {plan.kind}"):
                results.append(await run(world, plan))
            _tell(console, results[-1])
            if results[-1].judgement.violations:
                _keep_logs(world, plan.seed)
            report = _report(first_seed, limits, results)
            _write(report)
    report = _report(first_seed, limits, results)
    _write(report)
    console.print(f"{json.dumps({name: report[name] for name in report if name != 'runs'})}\nwritten to {REPORT}")
    return 1 if report["violations"] else 0


def load_s(limits: Times) -> float:
    """How long the load of a schedule lasts."""
    return _LOAD_S + _LOAD_LEASES * limits.lease


def _keep_logs(world: World, seed: int) -> None:
    """What the processes said of a schedule in which something was violated, beside the report."""
    LOGS.mkdir(parents=True, exist_ok=True)
    for part in world.parts:
        path = LOGS / f"{seed}-{part.process.name}-{part.number}.log"
        shutil.copyfile(part.process.child.log.path, path)


def _tell(console: Console, result: Result) -> None:
    found = result.judgement.kinds()
    words = ", ".join(f"{count} {kind}" for kind, count in sorted(found.items())) or "nothing violated"
    told = result.counts
    console.print(
        f"seed {result.plan.seed} {result.plan.kind:<5} {len(result.faults):>3} faults, {told['changes']:>4} changes, "
        f"{told['answers']:>6} answers, {told['unavailable'] / max(1, told['answers']):6.2%} unavailable "
        f"(all told again after {result.answered_again_s:.2f} s): {words}"
    )
    for violation in result.judgement.violations[:_TOLD_MAX]:
        console.print(f"    {violation.kind} router {violation.router}: {violation.detail}", markup=False)


def _report(first_seed: int, limits: Times, results: Sequence[Result]) -> dict[str, Any]:
    violations, counts, faults = (Counter[str]() for _ in range(3))
    for result in results:
        violations += result.judgement.kinds()
        counts += result.counts
        faults.update(name for name, *_ in result.faults)
    return {
        "seed": first_seed,
        "schedules": len(results),
        "limits_s": limits._asdict(),
        "kinds": dict(Counter(result.plan.kind for result in results)),
        "violations": dict(violations),
        "failing_seeds": [result.plan.seed for result in results if result.judgement.violations],
        "counts": dict(counts),
        "unavailable_share": round(counts["unavailable"] / max(1, counts["answers"]), 4),
        "answered_again_s_max": round(max((result.answered_again_s for result in results), default=0.0), 3),
        "faults": dict(faults),
        "runs": [result.report() for result in results],
    }


def _write(report: dict[str, Any]) -> None:
    REPORT.parent.mkdir(parents=True, exist_ok=True)
    REPORT.write_text(json.dumps(report, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
