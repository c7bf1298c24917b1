"""Latency over the length of a thread: what a lone caller waits for an append and for windows, at 10 to 100,000 messages."""

import json
import statistics
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from benchmarks import threads
from benchmarks.places import Place
from benchmarks.words import WINDOW
from twofold.client import Twofold

LENGTHS = (10, 100, 1_000, 10_000, 100_000)
APPEND = "durable Append"
TOKEN = "Window of 20 with a token"
VERIFIED = "Window of 20, verified"
POSTGRES = "Window of 20 from Postgres"
OPERATIONS = (APPEND, TOKEN, VERIFIED, POSTGRES)
_ROUNDS = 5
_CALLS = 200
# Appends make a thread longer: each gets so few that it stays within a tenth of its length, or two exchanges.
_GROWTH = 20


@dataclass(frozen=True, slots=True)
class Point:
    """One operation at one length. Milliseconds."""

    operation: str
    messages: int
    calls: int
    p50_ms: float
    p99_ms: float


def appends_per_thread(length: int) -> int:
    """How many exchanges may be appended to a thread that is to count as one of this length."""
    return max(1, length // _GROWTH)


def thread_count(length: int) -> int:
    """How many threads of a length are needed, so that none gets too many appends."""
    return -(-(_ROUNDS + 1) * _CALLS // appends_per_thread(length))


async def measure(place: Place, *, told: Callable[[str], None]) -> list[Point]:
    """All operations at all lengths, in turn, round by round; the first round is not counted."""
    await threads.make_workspace(place.twofold)
    appended, read = {}, {}
    for length in LENGTHS:
        told(f"curve: making threads of {length:,} messages")
        names = [f"grow-{length}-{number}" for number in range(thread_count(length))]
        await threads.make_threads(place.twofold, names, length)
        appended[length] = iter([name for name in names for _ in range(appends_per_thread(length))])
        read[length] = (await threads.make_threads(place.twofold, [f"read-{length}"], length))[0]
    _, without_redis = await place.without_redis()
    waits: dict[tuple[str, int], list[float]] = {(name, length): [] for name in OPERATIONS for length in LENGTHS}
    for number in range(_ROUNDS + 1):
        told(f"curve: round {number + 1} of {_ROUNDS + 1}")
        for length in LENGTHS:
            names = [next(appended[length]) for _ in range(_CALLS)]
            calls = {
                APPEND: [_append(place.twofold, name) for name in names],
                TOKEN: [_read(place.twofold, f"read-{length}", read[length])] * _CALLS,
                VERIFIED: [_read(place.twofold, f"read-{length}")] * _CALLS,
                POSTGRES: [_read(without_redis, f"read-{length}")] * _CALLS,
            }
            for name, made in calls.items():
                waits[name, length] += [await _timed(call) for call in made] if number else await _once(made)
    return [_point(name, length, found) for (name, length), found in waits.items()]


def write(points: Sequence[Point], path: Path) -> None:
    """For machines."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps([asdict(point) for point in points], indent=2) + "\n")


Call = Callable[[], Awaitable[object]]


def _append(twofold: Twofold, name: str) -> Call:
    return lambda: twofold.conversations.AppendTurn(threads.append(name))


def _read(twofold: Twofold, name: str, token: bytes = b"") -> Call:
    request = threads.window(name, token)

    async def read() -> None:
        answer = await twofold.conversations.ReadWindow(request)
        if len(answer.messages) != min(WINDOW, answer.as_of_seq):
            raise RuntimeError(f"{name}: a window of {len(answer.messages)} messages")

    return read


async def _timed(call: Call) -> float:
    began = time.perf_counter()
    await call()
    return (time.perf_counter() - began) * 1000


async def _once(calls: Sequence[Call]) -> list[float]:
    """Calls that are not counted."""
    for call in calls:
        await call()
    return []


def _point(name: str, length: int, waits: Sequence[float]) -> Point:
    cuts = statistics.quantiles(waits, n=100)
    return Point(name, length, len(waits), round(cuts[49], 3), round(cuts[98], 3))
