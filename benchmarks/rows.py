"""Rows of the report: one subject against another, interleaved, as the median of same-round ratios."""

import json
import os
import platform
import statistics
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import aiohttp

from benchmarks import load
from benchmarks.load import Load, Measured

ROUNDS = 5
ROUND_S = 1
SPREAD_MAX = 1.5
_OTHERWISE_MAX = 0.05
_FEW = 100
# Another row than the ones that a round has: what the first, unmeasured calls are made with.
WARM_UP = ROUNDS

Json = dict[str, object]


class Row(Protocol):
    """A row of the report."""

    def as_json(self) -> Json:
        """The row for machines; for people, see `benchmarks.table`."""
        ...


@dataclass(frozen=True, slots=True)
class Server:
    """A process that serves. `metrics_url` tells what it answered; without one nothing can be refused there."""

    target: str
    pid: int
    metrics_url: str | None = None


async def _nothing() -> None:
    return


@dataclass(frozen=True, slots=True)
class Subject:
    """Calls of one method of one server. `bodies` are those of a round; `settle` waits for what the server still does.

    `outcomes` names a family of the server's counters, `wanted` those series of it that may rise: a call that was answered
    in another way than the one that is measured (from another store, not durably) is no result. `each` call does so many of
    what is compared.
    """

    server: Server
    method: str
    bodies: Callable[[int], Sequence[bytes]]
    settle: Callable[[], Awaitable[None]] = _nothing
    outcomes: str = ""
    wanted: str = ""
    each: int = 1


@dataclass(frozen=True, slots=True)
class Comparison:
    """What is measured, and against what.

    `goal` is a ratio of rates (at least), or of latencies (at most) for a lone caller; None: only reported.
    """

    id: str
    what: str
    mine: Subject
    base: Subject
    base_is: str
    callers: int
    goal: float | None
    note: str = ""

    @property
    def alone(self) -> bool:
        """Whether it is about one caller's waiting time."""
        return self.callers == 1


@dataclass(frozen=True, slots=True)
class Round:
    """One subject in one round."""

    measured: Measured
    cpu_us: float
    others: int = 0


@dataclass
class Compared:
    """What was measured: rounds of ours and of the baseline's, in pairs."""

    comparison: Comparison
    rounds: list[tuple[Round, Round]] = field(default_factory=list)

    @property
    def ratio(self) -> float:
        """Rate over the baseline's rate; for a lone caller, median latency over the baseline's."""
        pairs = [(mine.measured, base.measured) for mine, base in self.rounds]
        if self.comparison.alone:
            return statistics.median(mine.p50_ms / base.p50_ms for mine, base in pairs)
        each = self.comparison.mine.each / self.comparison.base.each
        return each * statistics.median(mine.rate / base.rate for mine, base in pairs)

    @property
    def met(self) -> bool | None:
        """Whether the goal is reached; None where there is none, or where the machine was too unsteady to say."""
        goal = self.comparison.goal
        if goal is None or self.unsteady:
            return None
        return self.ratio <= goal if self.comparison.alone else self.ratio >= goal

    @property
    def spread(self) -> float:
        """How much the baseline itself moved: the highest over the lowest of its rounds."""
        rates = [base.measured.rate for _, base in self.rounds]
        return max(rates) / min(rates)

    @property
    def unsteady(self) -> bool:
        """Whether the baseline moved too much for a ratio to mean anything."""
        return self.spread > SPREAD_MAX

    def as_json(self) -> Json:
        """The row for machines."""
        comparison = self.comparison
        return {
            "id": comparison.id,
            "what": comparison.what,
            "ratio": None if self.unsteady else round(self.ratio, 3),
            "ratio_is": "p50 latency / baseline's" if comparison.alone else "calls per second / baseline's",
            "goal": comparison.goal,
            "goal_is": "at most" if comparison.alone else "at least",
            "met": self.met,
            "baseline": comparison.base_is,
            "baseline_spread": round(self.spread, 2),
            "callers": comparison.callers,
            **_medians("", [mine for mine, _ in self.rounds]),
            **_medians("baseline_", [base for _, base in self.rounds]),
            "rounds": len(self.rounds),
            "answered_otherwise": sum(mine.others + base.others for mine, base in self.rounds),
            "note": comparison.note,
        }


def _medians(prefix: str, rounds: Sequence[Round]) -> Json:
    return {
        f"{prefix}rate_per_s": round(statistics.median(item.measured.rate for item in rounds), 1),
        f"{prefix}p50_ms": round(statistics.median(item.measured.p50_ms for item in rounds), 3),
        f"{prefix}p99_ms": round(statistics.median(item.measured.p99_ms for item in rounds), 3),
        f"{prefix}cpu_us_per_call": round(statistics.median(item.cpu_us for item in rounds), 1),
    }


@dataclass(frozen=True)
class Figure:
    """Something that was measured without a baseline, such as sizes."""

    id: str
    what: str
    values: Json
    note: str = ""
    met: bool | None = None

    def as_json(self) -> Json:
        """The row for machines."""
        return {"id": self.id, "what": self.what, "met": self.met, **self.values, "note": self.note}


async def measure(comparison: Comparison, *, told: Callable[[int], None], rounds: int = ROUNDS) -> Compared:
    """Measures both subjects in turn, round by round."""
    compared = Compared(comparison)
    for subject in (comparison.mine, comparison.base):
        await _round(comparison, subject, WARM_UP)
    for number in range(rounds):
        mine = await _round(comparison, comparison.mine, number)
        base = await _round(comparison, comparison.base, number)
        compared.rounds.append((mine, base))
        told(number)
    return compared


async def _round(comparison: Comparison, subject: Subject, number: int) -> Round:
    before, cpu_s = await metrics_of(subject.server), cpu_s_of(subject.server.pid)
    asked = Load(subject.server.target, subject.method, subject.bodies(number), comparison.callers)
    measured = await load.run(asked, ROUND_S)
    cpu_us = (cpu_s_of(subject.server.pid) - cpu_s) / measured.calls * 1e6
    after = await metrics_of(subject.server)
    others = 0
    if subject.server.metrics_url is not None:
        check(comparison.id, answered_of(before, subject.method), answered_of(after, subject.method), measured.calls)
        others = otherwise(
            comparison.id, counted(before, subject.outcomes), counted(after, subject.outcomes), subject.wanted
        )
    await subject.settle()
    return Round(measured, cpu_us, others)


def machine() -> Json:
    """What it was measured on, and with what."""
    return {
        "cores": os.cpu_count(),
        "platform": platform.platform(),
        "system": f"{platform.system()} on {platform.machine()}",
        "python": platform.python_version(),
        "generator": load.generator(),
    }


def write(rows: Sequence[Row], path: Path) -> None:
    """The report for machines: a list of rows. Rows of earlier runs stay until they are measured anew."""
    now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    new = [row.as_json() | {"measured_at": now, "machine": machine()} for row in rows]
    measured = {row["id"] for row in new}
    kept = [row for row in read(path) if row["id"] not in measured]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps([*kept, *new], indent=2) + "\n")


def read(path: Path) -> list[Json]:
    """What `write` wrote; empty if there is nothing, or something else."""
    try:
        found: list[Json] = json.loads(path.read_text())
    except (FileNotFoundError, ValueError):
        return []
    return found


async def metrics_of(server: Server) -> str:
    """What the server counts; nothing where it does not."""
    if server.metrics_url is None:
        return ""
    async with aiohttp.ClientSession() as session, session.get(server.metrics_url) as response:
        return await response.text()


def counted(metrics: str, family: str) -> dict[str, float]:
    """The series of a family of counters, with their labels."""
    lines = (line.rsplit(" ", 1) for line in metrics.splitlines() if not line.startswith("#"))
    return {name: float(value) for name, value in lines if family and name.partition("{")[0] == family}


def answered_of(metrics: str, method: str) -> dict[str, float]:
    """Calls of a method by code, out of a server's metrics."""
    service, name = method.lstrip("/").split("/")
    handled = counted(metrics, "grpc_server_handled_total")
    return {
        series.split('grpc_code="')[1].split('"')[0]: value
        for series, value in handled.items()
        if f'"{service}"' in series and f'"{name}"' in series
    }


def check(id_: str, before: dict[str, float], after: dict[str, float], calls: int) -> None:
    """A generator takes a gRPC error for a success: what the server counted decides. Raises RuntimeError."""
    wrong = {
        code: count - before.get(code, 0)
        for code, count in after.items()
        if code not in ("OK", "Cancelled") and count > before.get(code, 0)
    }
    if wrong:
        raise RuntimeError(f"{id_}: the server refused calls: {wrong}")
    done = after.get("OK", 0) - before.get("OK", 0)
    if done < 0.95 * calls:
        raise RuntimeError(f"{id_}: the generator counted {calls} calls, the server {done:.0f}")


def otherwise(id_: str, before: dict[str, float], after: dict[str, float], wanted: str) -> int:
    """How many calls were answered in another way than wanted; a few are reported, many are a RuntimeError."""
    rises = {series: value - before.get(series, 0) for series, value in after.items() if value > before.get(series, 0)}
    others = {series: rise for series, rise in rises.items() if not (wanted and wanted in series)}
    if sum(others.values()) > _OTHERWISE_MAX * max(sum(rises.values()), _FEW):
        raise RuntimeError(f"{id_}: answered in another way than is measured: {others}")
    return round(sum(others.values()))


def resident_mib(pid: int) -> float:
    """Resident memory of a process (Linux)."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return round(int(line.split()[1]) / 1024, 1)
    raise RuntimeError(f"process {pid} has no resident memory")


def cpu_s_of(pid: int) -> float:
    """Processor time of a process (Linux)."""
    after_name = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(after_name[11]) + int(after_name[12])) / os.sysconf("SC_CLK_TCK")
