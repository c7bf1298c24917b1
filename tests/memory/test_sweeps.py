"""Sweeps: what is over by the clock goes, a bounded number at a time, and one that fails keeps none from coming."""

import asyncio
from typing import Any

import asyncpg
import pytest

from tests.memory.rooms import Memory
from tests.memory.test_expiring_preferences import HOUR, update
from tests.memory.test_tool_runs import FAILED, claim, create, get, pass_time
from tests.waiting import until
from twofold_chassis import postgres
from twofold_chassis.refusals import StoreUnavailable
from twofold_chassis.requests import Requests
from twofold_chassis.settings import DatabaseSettings
from twofold_memory.store.preferences import PostgresPreferences
from twofold_memory.store.tool_runs import PostgresToolRuns
from twofold_memory.sweeps import Sweeps

Sql = asyncpg.Pool


async def test_a_round_clears_away_what_is_over_and_nothing_else(
    room: Memory, workspace_id: str, sql: "Sql[Any]", memory_database: DatabaseSettings
) -> None:
    await update(room, workspace_id, {"a": "1", "b": "2", "c": "3"}, {"a": -HOUR, "b": HOUR})
    await create(room, workspace_id, "last", attempts_max=1)
    await create(room, workspace_id, "first", name="other", attempts_max=2)
    await claim(room, workspace_id, "search")
    await claim(room, workspace_id, "other")
    await pass_time(sql, workspace_id)
    pool = await postgres.open_pool(memory_database, name="sweeps")
    try:
        requests = Requests("memory")
        sweeps = Sweeps([PostgresPreferences(pool, requests).sweep, PostgresToolRuns(pool, requests).give_up])
        await sweeps.round()
        await sweeps.round()
    finally:
        await postgres.close_pool(pool)
    rows = await sql.fetch("SELECT key FROM memory.preferences WHERE workspace_id = $1 ORDER BY key", workspace_id)
    assert [row["key"] for row in rows] == ["b", "c"]
    given_up = await get(room, workspace_id, "last")
    assert (given_up.state, given_up.version, given_up.retryable) == (FAILED, 3, False)
    assert given_up.error == "the lease of the last attempt has ended"
    assert (await claim(room, workspace_id, "other")).tool_run.tool_run_id == "first"


async def test_a_round_goes_on_until_nothing_is_left() -> None:
    left = 1200
    asked: list[int] = []

    async def sweep(count: int) -> int:
        nonlocal left
        taken = min(count, left)
        left -= taken
        asked.append(taken)
        return taken

    await Sweeps([sweep]).round()
    assert (left, asked) == (0, [500, 500, 200])


@pytest.mark.parametrize("error", [StoreUnavailable("away"), ValueError("a defect")])
async def test_a_round_that_fails_is_followed_by_another(error: Exception) -> None:
    rounds = 0

    async def sweep(_: int) -> int:
        nonlocal rounds
        rounds += 1
        raise error

    async with Sweeps([sweep], period_s=0.001).repeated():
        await until(lambda: rounds >= 3)
    ended = rounds
    await asyncio.sleep(0)
    assert rounds == ended
