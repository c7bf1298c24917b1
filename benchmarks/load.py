"""Load on one gRPC method, from outside the server's process, for a bounded time.

With h2load (nghttp2), which costs little, so that on a small machine the server and not the generator is what is measured;
without it, with a Python generator that costs about as much as the server: then ratios come out too kind, and the
report says which one was used. h2load counts every HTTP 200 as a success, gRPC errors included: the caller must check
what was done.
"""

import asyncio
import shutil
import statistics
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks import python_load

GRPC_OK = 200


@dataclass(frozen=True, slots=True)
class Load:
    """What is sent: each body by a generator of its own, `callers` calls under way at a time in all."""

    target: str
    method: str
    bodies: Sequence[bytes]
    callers: int


@dataclass(frozen=True, slots=True)
class Measured:
    """What came of it. Latencies in milliseconds."""

    calls: int
    seconds: int
    p50_ms: float
    p99_ms: float

    @property
    def rate(self) -> float:
        """Calls per second."""
        return self.calls / self.seconds


def generator() -> str:
    """Which generator is used on this machine."""
    return "h2load" if shutil.which("h2load") else "python"


async def run(load: Load, seconds: int) -> Measured:
    """Runs the load for about `seconds`. Raises RuntimeError if a generator fails."""
    bodies = load.bodies[: load.callers]
    shares = [load.callers // len(bodies) + (index < load.callers % len(bodies)) for index in range(len(bodies))]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        runs = [
            _h2load(load, body, share, seconds, folder / str(index))
            if generator() == "h2load"
            else _python(load, body, share, seconds, folder / str(index))
            for index, (body, share) in enumerate(zip(bodies, shares, strict=True))
        ]
        latencies = [latency for result in await asyncio.gather(*runs) for latency in result]
    if len(latencies) < 2:
        raise RuntimeError(f"{load.method}: no answers")
    cuts = statistics.quantiles(latencies, n=100)
    return Measured(len(latencies), seconds, cuts[49], cuts[98])


async def _h2load(load: Load, body: bytes, callers: int, seconds: int, place: Path) -> list[float]:
    data, log = place.with_suffix(".bin"), place.with_suffix(".log")
    data.write_bytes(b"\0" + len(body).to_bytes(4, "big") + body)
    connections = min(callers, 8)
    argv = ["h2load", "-t1", f"-c{connections}", f"-m{max(1, callers // connections)}", f"-D{seconds}", "-d", str(data)]
    argv += ["-H", "content-type: application/grpc", "-H", "te: trailers", "--log-file", str(log)]
    await _process([*argv, f"http://{load.target}{load.method}"])
    # A line a request: start time in microseconds, HTTP status, duration in microseconds.
    rows = (line.split() for line in log.read_text().splitlines())
    return [int(micros) / 1000 for _, status, micros in rows if int(status) == GRPC_OK]


async def _python(load: Load, body: bytes, callers: int, seconds: int, place: Path) -> list[float]:
    data, log = place.with_suffix(".bin"), place.with_suffix(".log")
    data.write_bytes(body)
    await _process(
        [
            sys.executable,
            "-m",
            python_load.__name__,
            load.target,
            load.method,
            str(data),
            str(callers),
            str(seconds),
            str(log),
        ]
    )
    return [float(line) for line in log.read_text().split()]


async def _process(argv: Sequence[str]) -> None:
    process = await asyncio.create_subprocess_exec(*argv, stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.PIPE)
    _, errors = await process.communicate()
    if process.returncode != 0:
        raise RuntimeError(f"{argv[0]} failed: {errors.decode()[-500:]}")
