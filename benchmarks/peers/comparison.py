"""P11: each library in a process and a database of its own, and Twofold through gRPC, in turn, round by round."""

import asyncio
import contextlib
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from benchmarks.places import Place
from benchmarks.rows import Figure, Json

ROOT = Path(__file__).resolve().parents[2]
ENVIRONMENTS = Path("build/peers")
_ROUNDS = 3
_ROUND_S = 1.0
_CALLERS = (1, 64)
_ACTIONS = ("append", "read")
_WHAT = {
    "append": "append of one exchange",
    "read": "read of the newest 20",
    "hit": "one held against a limit",
    "count": "the same, counters alone",
}
_LINE_S = 180.0
_INSTALL_S = 600.0


@dataclass(frozen=True, slots=True)
class Library:
    """A peer: the module that measures it, the environment it needs, and what is to be known of it."""

    id: str
    module: str
    environment: str
    durable: bool
    note: str


LIBRARIES = (
    Library(
        "openai-agents-redis",
        "openai_agents_redis",
        "openai-agents",
        False,
        "openai-agents RedisSession: in the caller's process, Redis only, no second copy",
    ),
    Library(
        "openai-agents-sqlalchemy",
        "openai_agents_sqlalchemy",
        "openai-agents",
        True,
        "openai-agents SQLAlchemySession over asyncpg: in the caller's process, durable",
    ),
    Library(
        "langchain-redis",
        "langchain_redis_history",
        "langchain",
        False,
        "langchain-redis RedisChatMessageHistory: in the caller's process, Redis with the search module only",
    ),
    Library(
        "langchain-community-redis",
        "langchain_community_redis",
        "langchain",
        False,
        "langchain-community RedisChatMessageHistory, in threads as it is not async: in the caller's process, Redis only; "
        "reads the whole list of 40",
    ),
    Library(
        "langchain-postgres",
        "langchain_postgres_history",
        "langchain",
        True,
        "langchain-postgres PostgresChatMessageHistory, async: in the caller's process, durable; reads the whole history of "
        "40",
    ),
    Library(
        "langgraph",
        "langgraph_checkpointer",
        "langgraph",
        True,
        "LangGraph AsyncPostgresSaver, get and put without the graph engine: in the caller's process, durable; reads and "
        "writes the whole history",
    ),
)

Told = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Result:
    """One library, one action, one round."""

    rate: float
    p50_ms: float
    client_cpu_us: float


async def figures(place: Place, *, told: Told) -> list[Figure]:
    """All of P11; a library that cannot be installed or run here has one row, which says why."""
    workers: dict[str, Worker] = {}
    failed: list[Figure] = []
    async with contextlib.AsyncExitStack() as undo:
        told("P11: Twofold")
        ours = await undo.enter_async_context(Worker(sys.executable, "twofold_client", own_environment(place)))
        for library in LIBRARIES:
            told(f"P11: {library.id}")
            try:
                python = await installed_soon(library.environment)
                urls = await place.stack.postgres.create_database(f"peer_{library.module}")
                servers = environment(urls.owner, place.redis_url)
                workers[library.id] = await undo.enter_async_context(Worker(python, library.module, servers))
            except CannotRunError as error:
                failed.append(Figure(f"P11-{library.id}", library.note, {"not_run": str(error)}))
        results = await _rounds(ours, workers, told)
    chosen = [library for library in LIBRARIES if library.id in workers]
    return [*failed, *(figure for library in chosen for figure in _figures(library, results))]


Results = Mapping[tuple[str, str, int], Sequence[Result]]


async def _rounds(ours: "Worker", workers: Mapping[str, "Worker"], told: Told) -> Results:
    results: dict[tuple[str, str, int], list[Result]] = {}
    for action in _ACTIONS:
        turns = [("twofold", ours, action), *((id_, worker, action) for id_, worker in workers.items())]
        if action == "read":
            turns.append(("twofold-token", ours, "read_with_token"))
        for callers in _CALLERS:
            for number in range(_ROUNDS + 1):
                told(f"P11: {action}, {callers} callers, round {number} of {_ROUNDS}")
                for id_, worker, asked in turns:
                    result = await worker.measure(asked, callers)
                    if number:  # the first is to warm up
                        results.setdefault((id_, action, callers), []).append(result)
    return results


def _figures(library: Library, results: Results) -> list[Figure]:
    return [
        figure_of(
            library,
            action,
            callers,
            results[library.id, action, callers],
            results["twofold", action, callers],
            results.get(("twofold-token", action, callers)),
        )
        for action in _ACTIONS
        for callers in _CALLERS
    ]


def figure_of(
    library: Library,
    action: str,
    callers: int,
    theirs: Sequence[Result],
    ours: Sequence[Result],
    with_token: Sequence[Result] | None,
) -> Figure:
    """Ours over theirs, as the median of same-round ratios. The goal, to be ahead, is against durable ones only."""
    ahead = _over(ours, theirs)
    values: Json = {
        "callers": callers,
        "durable": library.durable,
        "twofold_over_peer": ahead,
        "rate_per_s": _median(theirs, lambda one: one.rate),
        "p50_ms": _median(theirs, lambda one: one.p50_ms),
        "client_cpu_us": _median(theirs, lambda one: one.client_cpu_us),
        "twofold_rate_per_s": _median(ours, lambda one: one.rate),
        "twofold_p50_ms": _median(ours, lambda one: one.p50_ms),
        "twofold_client_cpu_us": _median(ours, lambda one: one.client_cpu_us),
    }
    if with_token is not None:
        values["twofold_with_token_over_peer"] = _over(with_token, theirs)
        values["twofold_with_token_rate_per_s"] = _median(with_token, lambda one: one.rate)
        values["twofold_with_token_p50_ms"] = _median(with_token, lambda one: one.p50_ms)
    return Figure(
        f"P11-{library.id}-{action}-{callers}",
        f"{library.id}: {_WHAT[action]}",
        values,
        library.note,
        met=ahead >= 1 if library.durable else None,
    )


def _over(ours: Sequence[Result], theirs: Sequence[Result]) -> float:
    return round(statistics.median(mine.rate / other.rate for mine, other in zip(ours, theirs, strict=True)), 2)


def _median(results: Sequence[Result], value: Callable[[Result], float]) -> float:
    return round(statistics.median(map(value, results)), 2)


class CannotRunError(Exception):
    """A library cannot be installed or run here; says why."""


class Worker:
    """The process of one library, started and ready inside the block."""

    def __init__(self, python: str, module: str, environment: Mapping[str, str]) -> None:
        self._argv = [python, "-m", f"benchmarks.peers.{module}"]
        self._environment = environment
        self._process: asyncio.subprocess.Process | None = None

    async def __aenter__(self) -> Self:
        self._process = await asyncio.create_subprocess_exec(
            *self._argv,
            env=dict(self._environment),
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        try:
            ready = await self._line()
            if "failed" in ready:
                raise CannotRunError(str(ready["failed"]))
        except BaseException:
            await self._end()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._end()

    async def measure(self, action: str, callers: int) -> Result:
        """One round. Raises CannotRunError."""
        assert self._process is not None
        assert self._process.stdin is not None
        asked = {"action": action, "callers": callers, "seconds": _ROUND_S}
        self._process.stdin.write(json.dumps(asked).encode() + b"\n")
        found = await self._line()
        return Result(found["calls"] / _ROUND_S, found["p50_ms"], found["client_cpu_us"])

    async def _line(self) -> dict[str, Any]:
        assert self._process is not None
        assert self._process.stdout is not None
        assert self._process.stderr is not None
        try:
            async with asyncio.timeout(_LINE_S):
                line = await self._process.stdout.readline()
        except TimeoutError:
            raise CannotRunError(f"no answer within {_LINE_S:g} s") from None
        if not line:
            errors = (await self._process.stderr.read()).decode(errors="replace").strip().splitlines()
            raise CannotRunError(errors[-1] if errors else "it ended without a word")
        found: dict[str, Any] = json.loads(line)
        return found

    async def _end(self) -> None:
        assert self._process is not None
        if self._process.returncode is None:
            self._process.kill()
        await self._process.wait()


async def installed_soon(name: str) -> str:
    """The same without keeping others waiting."""
    return await asyncio.to_thread(installed, name)


def installed(name: str) -> str:
    """The interpreter of a library's environment, which is made if it is not there as pinned. Raises CannotRunError."""
    pins = Path(__file__).with_name(f"{name}.txt")
    folder = ENVIRONMENTS.absolute() / name
    python, stamp = folder / "bin" / "python", folder / "installed.txt"
    if stamp.exists() and stamp.read_text() == pins.read_text():
        return str(python)
    _run([sys.executable, "-m", "venv", "--clear", str(folder)])
    _run([str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "-r", str(pins)])
    stamp.write_text(pins.read_text())
    return str(python)


def _run(argv: Sequence[str]) -> None:
    try:
        done = subprocess.run(argv, capture_output=True, text=True, timeout=_INSTALL_S, check=False)
    except subprocess.TimeoutExpired:
        raise CannotRunError(f"could not be installed within {_INSTALL_S:g} s") from None
    if done.returncode != 0:
        errors = done.stderr.strip().splitlines()
        raise CannotRunError(f"could not be installed: {errors[-1] if errors else 'no reason given'}")


def environment(postgres: str, redis_url: str) -> dict[str, str]:
    """What a library's process gets: the servers, and of our modules only those of this benchmark."""
    kept = {name: value for name, value in os.environ.items() if name in ("PATH", "HOME", "LANG", "TMPDIR")}
    return kept | {"PYTHONPATH": str(ROOT), "PEER_POSTGRES": postgres, "PEER_REDIS": redis_url}


def own_environment(place: Place) -> dict[str, str]:
    """What a process of ours gets that calls Twofold as the libraries are called."""
    path = os.pathsep.join((str(ROOT), *(entry for entry in sys.path if entry)))
    own = {"PEER_POSTGRES": "", "PEER_REDIS": "", "PEER_TWOFOLD": place.stack.memory.target, "PYTHONPATH": path}
    return dict(os.environ) | own
