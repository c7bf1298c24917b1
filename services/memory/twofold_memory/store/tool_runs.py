"""Tool runs in Postgres."""

import json
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from datetime import datetime

import asyncpg

from twofold_chassis import postgres
from twofold_chassis.postgres import Connection, Pool
from twofold_chassis.requests import Attempt, Requests
from twofold_memory.store import records
from twofold_memory.store.statements import STATEMENTS
from twofold_memory.threads import ThreadKey, may_see
from twofold_memory.tool_runs import (
    Contents,
    NewToolRun,
    State,
    ToolRun,
    ToolRunExists,
    ToolRunPage,
    unknown,
)

Answer = Callable[[ToolRun], bytes]
Change = Callable[[ToolRun, datetime], ToolRun]


class PostgresToolRuns:
    """The truth about what is done for agents."""

    def __init__(self, pool: Pool, requests: Requests) -> None:
        self._pool = pool
        self._requests = requests

    async def create(
        self, attempt: Attempt, new: NewToolRun, user_id: str | None, answer: Callable[[ToolRun, bool], bytes]
    ) -> bytes:
        """Makes a run, or finds it made. Raises ConversationUnknown, ToolRunExists, RequestReused."""

        async def change() -> bytes:
            if new.key is not None:
                await records.find(connection, new.key, user_id)
            row = await _created(connection, new)
            if new.key is not None:
                # Last: appends of the conversation wait for this lock, and large arguments take their time.
                await records.hold(connection, new.key, user_id)
            if row is not None:
                return answer(_run(row), False)
            row = await connection.fetchrow(STATEMENTS["tool_run"], new.workspace_id, new.tool_run_id)
            if row is None or row["body_hash"] != new.body_hash:
                raise ToolRunExists(f"the id {new.tool_run_id!r} is taken", tool_run_id=new.tool_run_id)
            return answer(_run(row), True)

        async with postgres.transaction(self._pool) as connection:
            return await self._requests.once(connection, attempt, change)

    async def change(
        self,
        attempt: Attempt,
        tool_run_id: str,
        change: Change,
        answer: Answer,
        *,
        result: str | None = None,
        error: str | None = None,
    ) -> bytes:
        """Changes a run under its lock. Raises ToolRunUnknown, RequestReused, and what `change` does."""

        async def make(connection: Connection) -> ToolRun:
            row = await connection.fetchrow(STATEMENTS["lock_tool_run"], attempt.scope, tool_run_id)
            if row is None:
                raise unknown(tool_run_id)
            return await _changed(connection, row, change, result, error)

        return await self._once(attempt, make, answer)

    async def change_due(self, attempt: Attempt, names: Sequence[str], change: Change, answer: Answer) -> bytes:
        """Changes a run that may be claimed, of the first of the names that has one; without one the answer is empty.

        Raises RequestReused, what `change` does.
        """

        async def make(connection: Connection) -> ToolRun | None:
            for name in names:
                row = await connection.fetchrow(STATEMENTS["lock_due_tool_run"], attempt.scope, name)
                if row is not None:
                    return await _changed(connection, row, change)
            return None

        return await self._once(attempt, make, answer)

    async def get(self, workspace_id: str, tool_run_id: str, user_id: str | None) -> tuple[ToolRun, Contents]:
        """A run with all there is of it. Raises ToolRunUnknown."""
        async with postgres.connection(self._pool) as connection:
            row = await connection.fetchrow(STATEMENTS["tool_run"], workspace_id, tool_run_id)
            contents = await connection.fetchrow(STATEMENTS["tool_run_contents"], workspace_id, tool_run_id)
        if row is None or contents is None or not may_see(row["owner"], user_id):
            raise unknown(tool_run_id)
        return _run(row), _contents(contents)

    async def page(
        self,
        workspace_id: str,
        key: ThreadKey | None,
        user_id: str | None,
        state: State | None,
        name: str | None,
        before: int | None,
        size: int,
    ) -> ToolRunPage:
        """Up to `size` runs, the newest first. Raises ConversationUnknown."""
        place = (workspace_id, before or 2**63 - 1, size + 1)
        number = state.value if state else None
        async with postgres.connection(self._pool) as connection:
            if key is not None:
                await records.find(connection, key, user_id)
                rows = await connection.fetch(STATEMENTS["tool_runs_of_thread"], *place, number, name, key.thread_id)
            elif name is not None:
                rows = await connection.fetch(STATEMENTS["tool_runs_of_name"], *place, number, name)
            elif state is not None:
                rows = await connection.fetch(STATEMENTS["tool_runs_of_state"], *place, number)
            else:
                rows = await connection.fetch(STATEMENTS["tool_runs_of_workspace"], *place)
        return ToolRunPage([_run(row) for row in rows[:size]], len(rows) > size)

    async def give_up(self, count: int) -> int:
        """Ends some runs that have lost their last attempt; how many."""
        async with postgres.transaction(self._pool) as connection:
            return len(await connection.fetch(STATEMENTS["give_up_tool_runs"], count))

    async def _once(
        self, attempt: Attempt, make: Callable[[Connection], Awaitable[ToolRun | None]], answer: Answer
    ) -> bytes:
        """The answer of a change whose request names no conversation, kept as one about that of the run."""
        run: ToolRun | None = None

        async def first() -> bytes:
            nonlocal run
            run = await make(connection)
            return b"" if run is None else answer(run)

        async with postgres.transaction(self._pool) as connection:
            told = await self._requests.once(connection, attempt, first)
            if run is not None and run.thread_id is not None:
                await self._requests.tells_of(connection, attempt, run.thread_id)
        return told


async def _created(connection: Connection, new: NewToolRun) -> asyncpg.Record | None:
    return await connection.fetchrow(
        STATEMENTS["create_tool_run"],
        new.workspace_id,
        new.tool_run_id,
        new.thread_id,
        new.turn_id,
        new.tool_call_id,
        new.name,
        new.arguments,
        json.dumps(dict(new.metadata)),
        new.body_hash,
        new.attempts_max,
        new.backoff,
    )


async def _changed(
    connection: Connection, row: asyncpg.Record, change: Change, result: str | None = None, error: str | None = None
) -> ToolRun:
    run = replace(change(_run(row), row["now"]), updated_at=row["now"])
    await connection.execute(
        STATEMENTS["change_tool_run"],
        run.workspace_id,
        run.tool_run_id,
        run.state.value,
        run.version,
        run.attempt,
        run.holder,
        run.due_at,
        run.retryable,
        result,
        error,
    )
    return run


def _run(row: asyncpg.Record) -> ToolRun:
    return ToolRun(
        workspace_id=row["workspace_id"],
        tool_run_id=row["tool_run_id"],
        number=row["number"],
        thread_id=row["thread_id"],
        turn_id=row["turn_id"],
        tool_call_id=row["tool_call_id"],
        name=row["name"],
        state=State(row["state"]),
        version=row["version"],
        attempt=row["attempt"],
        attempts_max=row["attempts_max"],
        backoff=row["backoff"],
        holder=row["holder"],
        due_at=row["due_at"],
        retryable=row["retryable"],
        created_at=row["created_at"],
        updated_at=row["updated_at"],
    )


def _contents(row: asyncpg.Record) -> Contents:
    return Contents(row["arguments"], json.loads(row["metadata"]), row["result"], row["error"])
