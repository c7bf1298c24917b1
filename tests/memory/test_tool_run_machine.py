"""Tool runs against a model: any history of calls, with versions and attempts of now and of before, while time passes."""

import uuid
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import asyncpg
import grpc
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.memory import test_tool_runs as runs
from tests.memory.rooms import Memory, reason
from twofold.memory.v1.tool_run_pb2 import ToolRun
from twofold_memory.store.statements import STATEMENTS

WORDS = {1: "PENDING", 2: "RUNNING", 3: "SUCCEEDED", 4: "FAILED", 5: "CANCELLED"}
ILLEGAL, OUTDATED, LOST = "REASON_TOOL_RUN_STATE", "REASON_VERSION_MISMATCH", "REASON_LEASE_LOST"
ATTEMPTS_MAX = 2

STEPS = st.lists(
    st.tuples(
        st.sampled_from(
            [
                "claim",
                "claim",
                "claim_next",
                "heartbeat",
                "complete",
                "fail",
                "fail_for_good",
                "cancel",
                "retry",
                "age",
                "sweep",
            ]
        ),
        st.integers(0, 1),  # which run
        st.sampled_from([0, 0, 0, 1]),  # how many versions ago the caller looked
        st.sampled_from([0, 0, 0, 1]),  # how many attempts ago the caller held it
    ),
    max_size=24,
)


@dataclass
class Run:
    """What a run must be."""

    tool_run_id: str
    name: str
    state: str = "PENDING"
    version: int = 1
    attempt: int = 0
    due: bool = True
    retryable: bool = False

    def becomes(self, state: str, *, due: bool = False, retryable: bool = False) -> None:
        self.state, self.due, self.retryable = state, due, retryable
        self.version += 1

    @property
    def claimable(self) -> bool:
        return self.state in ("PENDING", "RUNNING") and self.due and self.attempt < ATTEMPTS_MAX


class Machine:
    """Does a step at the service and in the model, and compares."""

    def __init__(self, rooms: tuple[Memory, Memory], sql: "asyncpg.Pool[Any]") -> None:
        self.rooms = rooms
        self.sql = sql
        self.workspace_id = f"tools-{uuid.uuid4().hex[:12]}"
        self.runs = [Run("one", "search"), Run("two", "clock")]
        self.calls = 0

    @property
    def room(self) -> Memory:
        self.calls += 1
        return self.rooms[self.calls % 2]

    async def begin(self) -> None:
        for run in self.runs:
            await runs.create(self.room, self.workspace_id, run.tool_run_id, name=run.name, attempts_max=ATTEMPTS_MAX)

    async def claim(self, run: Run, seen: ToolRun) -> None:
        expected = self.outdated(run, seen) or (None if run.claimable else ILLEGAL)
        await self.told(lambda: runs.claim(self.room, self.workspace_id, run=seen), expected)
        if expected is None:
            run.becomes("RUNNING")
            run.attempt += 1

    async def claim_next(self, run: Run, _: ToolRun) -> None:
        answer = await runs.claim(self.room, self.workspace_id, run.name)
        assert answer.HasField("tool_run") == run.claimable
        if run.claimable:
            run.becomes("RUNNING")
            run.attempt += 1

    async def heartbeat(self, run: Run, seen: ToolRun) -> None:
        if await self.held(run, seen, lambda: runs.heartbeat(self.room, seen)):
            run.becomes("RUNNING")

    async def complete(self, run: Run, seen: ToolRun) -> None:
        if await self.held(run, seen, lambda: runs.complete(self.room, seen)):
            run.becomes("SUCCEEDED")

    async def fail(self, run: Run, seen: ToolRun) -> None:
        if await self.held(run, seen, lambda: runs.fail(self.room, seen)):
            run.becomes("FAILED", retryable=True)

    async def fail_for_good(self, run: Run, seen: ToolRun) -> None:
        if await self.held(run, seen, lambda: runs.fail(self.room, seen, retryable=False)):
            run.becomes("FAILED")

    async def cancel(self, run: Run, seen: ToolRun) -> None:
        expected = self.outdated(run, seen) or (None if run.state in ("PENDING", "RUNNING") else ILLEGAL)
        await self.told(lambda: runs.cancel(self.room, seen), expected)
        if expected is None:
            run.becomes("CANCELLED")

    async def retry(self, run: Run, seen: ToolRun) -> None:
        may = run.state == "FAILED" and run.retryable and run.attempt < ATTEMPTS_MAX
        expected = self.outdated(run, seen) or (None if may else ILLEGAL)
        await self.told(lambda: runs.retry(self.room, seen, runs.LONG), expected)
        if expected is None:
            run.becomes("PENDING")

    async def age(self, run: Run, _: ToolRun) -> None:
        await self.sql.execute(
            "UPDATE memory.tool_runs SET due_at = now() - interval '1 second'"
            " WHERE workspace_id = $1 AND tool_run_id = $2 AND due_at IS NOT NULL",
            self.workspace_id,
            run.tool_run_id,
        )
        run.due = run.state in ("PENDING", "RUNNING")

    async def sweep(self, _: Run, __: ToolRun) -> None:
        await self.sql.execute(STATEMENTS["give_up_tool_runs"], 10_000)
        for run in self.runs:
            if run.state == "RUNNING" and run.due and run.attempt >= ATTEMPTS_MAX:
                run.becomes("FAILED")

    async def held(self, run: Run, seen: ToolRun, call: Callable[[], Awaitable[object]]) -> bool:
        """What only who holds it may do, while it runs."""
        lost = LOST if seen.attempt != run.attempt else None
        expected = lost or self.outdated(run, seen) or (None if run.state == "RUNNING" else ILLEGAL)
        await self.told(call, expected)
        return expected is None

    def outdated(self, run: Run, seen: ToolRun) -> str | None:
        return OUTDATED if seen.version != run.version else None

    async def told(self, call: Callable[[], Awaitable[object]], expected: str | None) -> None:
        try:
            await call()
        except grpc.aio.AioRpcError as error:
            assert reason(error) == expected, error  # noqa: PT017
        else:
            assert expected is None

    async def check(self) -> None:
        for run in self.runs:
            found = await runs.get(self.room, self.workspace_id, run.tool_run_id)
            assert (WORDS[found.state], found.version, found.attempt, found.retryable) == (
                run.state,
                run.version,
                run.attempt,
                run.retryable,
            )
            assert bool(found.holder) == (run.state == "RUNNING")
            assert found.HasField("result") == (run.state == "SUCCEEDED")


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(steps=STEPS)
async def test_tool_runs_do_what_the_model_does(
    room: Memory, other_room: Memory, sql: "asyncpg.Pool[Any]", steps: list[tuple[str, int, int, int]]
) -> None:
    """M15 on any history."""
    machine = Machine((room, other_room), sql)
    await machine.begin()
    for name, which, versions_ago, attempts_ago in steps:
        run = machine.runs[which]
        seen = ToolRun(
            workspace_id=machine.workspace_id,
            tool_run_id=run.tool_run_id,
            version=max(run.version - versions_ago, 1),
            attempt=max(run.attempt - attempts_ago, 1),
        )
        await getattr(machine, name)(run, seen)
        await machine.check()
