"""Rows of the report: an operation against the echo of the same sizes, interleaved, as the median of same-round ratios."""

import json
import os
import platform
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import aiohttp

from benchmarks import echo, load
from benchmarks.load import Load, Measured

ROUNDS = 5
ROUND_S = 1
SPREAD_MAX = 1.5


@dataclass(frozen=True, slots=True)
class Operation:
    """What is measured. `goal` is a ratio of rates (at least), or of latencies (at most) for a lone caller."""

    id: str
    what: str
    method: str
    bodies: Sequence[bytes]
    callers: int
    answer_size: int
    target: str
    metrics_url: str
    pid: int
    goal: float
    note: str = ""


@dataclass
class Row:
    """What was measured."""

    operation: Operation
    pairs: list[tuple[Measured, Measured]] = field(default_factory=list)
    cpu_us: list[float] = field(default_factory=list)
    echo_cpu_us: list[float] = field(default_factory=list)

    @property
    def alone(self) -> bool:
        """Whether it is about one caller's waiting time."""
        return self.operation.callers == 1

    @property
    def ratio(self) -> float:
        """Rate over the echo's rate; for a lone caller, median latency over the echo's."""
        if self.alone:
            return statistics.median(mine.p50_ms / base.p50_ms for mine, base in self.pairs)
        return statistics.median(mine.rate / base.rate for mine, base in self.pairs)

    @property
    def met(self) -> bool:
        """Whether the goal is reached."""
        return self.ratio <= self.operation.goal if self.alone else self.ratio >= self.operation.goal

    @property
    def spread(self) -> float:
        """How much the baseline itself moved: the highest over the lowest of its rounds."""
        rates = [base.rate for _, base in self.pairs]
        return max(rates) / min(rates)

    def as_json(self) -> dict[str, object]:
        """The row for machines."""
        mine, base = [pair[0] for pair in self.pairs], [pair[1] for pair in self.pairs]
        return {
            "id": self.operation.id,
            "what": self.operation.what,
            "ratio": round(self.ratio, 3) if self.spread <= SPREAD_MAX else None,
            "ratio_is": "p50 latency / echo's" if self.alone else "calls per second / echo's",
            "goal": self.operation.goal,
            "goal_is": "at most" if self.alone else "at least",
            "met": self.met if self.spread <= SPREAD_MAX else None,
            "baseline": "bare grpc.aio echo with the same sizes, same run",
            "baseline_spread": round(self.spread, 2),
            "callers": self.operation.callers,
            "rate_per_s": round(statistics.median(item.rate for item in mine), 1),
            "echo_rate_per_s": round(statistics.median(item.rate for item in base), 1),
            "p50_ms": round(statistics.median(item.p50_ms for item in mine), 3),
            "p99_ms": round(statistics.median(item.p99_ms for item in mine), 3),
            "echo_p50_ms": round(statistics.median(item.p50_ms for item in base), 3),
            "echo_p99_ms": round(statistics.median(item.p99_ms for item in base), 3),
            "service_cpu_us_per_call": round(statistics.median(self.cpu_us), 1),
            "echo_cpu_us_per_call": round(statistics.median(self.echo_cpu_us), 1),
            "rounds": len(self.pairs),
            "note": self.operation.note,
        }


async def measure(operation: Operation, echo_target: str, echo_pid: int, *, told: Callable[[int], None]) -> Row:
    """Measures one operation and its echo in turn, round by round."""
    mine = Load(operation.target, operation.method, operation.bodies, operation.callers)
    body = echo.request(len(operation.bodies[0]), operation.answer_size)
    base = Load(echo_target, echo.METHOD, [body] * len(operation.bodies), operation.callers)
    row = Row(operation)
    await load.run(mine, 1)
    await load.run(base, 1)
    for number in range(ROUNDS):
        handled, cpu = await _handled(operation), _cpu_s(operation.pid)
        measured = await load.run(mine, ROUND_S)
        row.cpu_us.append((_cpu_s(operation.pid) - cpu) / measured.calls * 1e6)
        await _check(operation, handled, measured)
        cpu = _cpu_s(echo_pid)
        baseline = await load.run(base, ROUND_S)
        row.echo_cpu_us.append((_cpu_s(echo_pid) - cpu) / baseline.calls * 1e6)
        row.pairs.append((measured, baseline))
        told(number)
    return row


def machine() -> dict[str, object]:
    """What it was measured on, and with what."""
    return {
        "cores": os.cpu_count(),
        "platform": platform.platform(),
        "python": platform.python_version(),
        "generator": load.generator(),
    }


def write(rows: Sequence[dict[str, object]], path: Path) -> None:
    """The report for machines: a list of rows."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(rows, indent=2) + "\n")


async def _handled(operation: Operation) -> dict[str, float]:
    """Calls of the method that the server counted, by code."""
    service, name = operation.method.lstrip("/").split("/")
    counts: dict[str, float] = {}
    async with aiohttp.ClientSession() as session, session.get(operation.metrics_url) as response:
        for line in (await response.text()).splitlines():
            if line.startswith("grpc_server_handled_total{") and f'"{service}"' in line and f'"{name}"' in line:
                code = line.split('grpc_code="')[1].split('"')[0]
                counts[code] = float(line.rsplit(" ", 1)[1])
    return counts


async def _check(operation: Operation, before: dict[str, float], measured: Measured) -> None:
    """A generator takes a gRPC error for a success: what the server counted decides."""
    after = await _handled(operation)
    wrong = {
        code: count - before.get(code, 0)
        for code, count in after.items()
        if code not in ("OK", "Cancelled") and count > before.get(code, 0)
    }
    if wrong:
        raise RuntimeError(f"{operation.id}: the server refused calls: {wrong}")
    done = after.get("OK", 0) - before.get("OK", 0)
    if done < 0.95 * measured.calls:
        raise RuntimeError(f"{operation.id}: the generator counted {measured.calls} calls, the server {done:.0f}")


def _cpu_s(pid: int) -> float:
    """Processor time of a process (Linux)."""
    after_name = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(after_name[11]) + int(after_name[12])) / os.sysconf("SC_CLK_TCK")
