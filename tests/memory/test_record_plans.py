"""What a query of records reads does not grow with what there is (M13), as a plan instead of a time."""

import re
from datetime import UTC, datetime
from typing import Any

import asyncpg
import pytest

from tests.memory.rooms import Memory
from twofold_memory.store.statements import STATEMENTS

ROWS = 5_000
WS, THREAD = "ws-records", "long"


@pytest.fixture(scope="module")
async def many_records(room: Memory, sql: "asyncpg.Pool[Any]") -> None:
    """Of each kind of record 5,000 in one conversation, beside 5,000 of other conversations."""
    await sql.execute("INSERT INTO memory.conversations (workspace_id, thread_id, next_seq) VALUES ($1, $2, 9)", WS, THREAD)
    await sql.execute(
        f"INSERT INTO memory.conversations (workspace_id, thread_id) SELECT $1, 't' || i FROM generate_series(1, {ROWS}) i",
        WS,
    )
    for thread_id in ("$2", "$2 || i"):
        places = f"SELECT $1, {thread_id}, i"
        series = f"FROM generate_series(1, {ROWS}) i"
        for statement in (
            "INSERT INTO memory.events (workspace_id, thread_id, event_offset, kind, payload, by_service)"
            f" {places}, CASE WHEN i % 50 = 0 THEN 'rare' ELSE 'common' END, '', false {series}",
            "INSERT INTO memory.summaries (workspace_id, thread_id, version, summary_id, first_seq, last_seq, text, model,"
            f" author, metadata, epoch) {places}, 's' || i, 1, 1, 'x', '', '', '{{}}', 1 {series}",
            "INSERT INTO memory.documents (workspace_id, thread_id, document_id, title, url, media_type, metadata)"
            f" {places}, '', '', '', '{{}}' {series}",
            "INSERT INTO memory.checkpoints (workspace_id, thread_id, version, line, checkpoint_id, parent_id, data,"
            f" content_type, metadata, pinned) {places}, '', 'c' || i, '', '', '', '{{}}', i % 100 = 0 {series}",
            "INSERT INTO memory.tool_runs (workspace_id, thread_id, tool_run_id, turn_id, tool_call_id, name, arguments,"
            " metadata, body_hash, state, version, attempt, attempts_max, backoff, due_at)"
            f" SELECT $1, CASE WHEN {len(thread_id)} = 2 THEN $2 END, {thread_id} || '/' || i, '', '', 'name-' || i % 100,"
            f" '', '{{}}', '', CASE i % 100 WHEN 1 THEN 1 ELSE 3 END, 1, 0, 3, '1 s',"
            f" CASE i % 100 WHEN 1 THEN now() - i * interval '1 s' END {series}",
        ):
            await sql.execute(statement, WS, THREAD)
    await sql.execute(
        "INSERT INTO memory.preferences (workspace_id, user_id, key, value, version, expires_at)"
        " SELECT $1, 'u' || i, 'k', 'v', 1, CASE WHEN i % 500 = 0 THEN now() - interval '1 day' END"
        f" FROM generate_series(1, {ROWS}) i",
        WS,
    )
    await sql.execute(
        "INSERT INTO memory.dead_letters (workspace_id, thread_id, turn_id, payload_hash, reason, payload, resolved_at)"
        f" SELECT $1, 't' || i, 't', '', 'INVALID', '', now() FROM generate_series(1, {ROWS}) i",
        WS,
    )
    await sql.execute(
        "INSERT INTO memory.record_heads (workspace_id, thread_id) SELECT workspace_id, thread_id FROM memory.conversations"
        " WHERE workspace_id = $1",
        WS,
    )
    for table in (
        "record_heads",
        "dead_letters",
        "events",
        "summaries",
        "checkpoints",
        "tool_runs",
        "preferences",
        "documents",
        "conversations",
    ):
        await sql.execute(f"ANALYZE memory.{table}")


MB = 3_000_000
LAST = 2**63 - 1
QUERIES: dict[str, tuple[object, ...]] = {
    "all_dead_letters": (WS, datetime(1970, 1, 1, tzinfo=UTC), "", "", "", b"", 51),
    "events_after": (WS, THREAD, 2_000, 51, MB),
    "events_of_kind_after": (WS, THREAD, 2_000, 51, MB, "rare"),
    "summary": (WS, THREAD, "s77"),
    "summaries_before": (WS, THREAD, LAST, 51, MB),
    "newest_summaries": ([WS] * 16, [THREAD] * 16, 4),
    "documents_of": ([WS] * 8, [THREAD, "t1"] * 4, [None] * 8, 12),
    "tool_run": (WS, f"{THREAD}/77"),
    "lock_tool_run": (WS, f"{THREAD}/77"),
    "lock_due_tool_run": (WS, "name-1"),
    "tool_runs_of_workspace": (WS, LAST, 51),
    "tool_runs_of_state": (WS, LAST, 51, 1),
    "tool_runs_of_name": (WS, LAST, 51, None, "name-7"),
    "tool_runs_of_thread": (WS, LAST, 51, None, None, THREAD),
    "checkpoint": (WS, THREAD, "c77"),
    "newest_checkpoint": (WS, THREAD, ""),
    "checkpoints_before": (WS, THREAD, "", LAST, 51, MB, False),
    "checkpoints_to_delete": (WS, THREAD, "", 4_990),
    "remove_expired_preferences": (WS, "u500"),
    "sweep_preferences": (10,),
    "give_up_tool_runs": (100,),
}


@pytest.mark.parametrize("plans", ["force_generic_plan", "force_custom_plan"])
@pytest.mark.parametrize("name", sorted(QUERIES))
async def test_records_are_found_by_an_index_and_few_rows_are_read(
    many_records: None, sql: "asyncpg.Pool[Any]", name: str, plans: str
) -> None:
    async with sql.acquire() as connection:
        trying = connection.transaction()
        await trying.start()
        await connection.execute(f"SET LOCAL plan_cache_mode = {plans}")
        rows = await connection.fetch(
            f"EXPLAIN (ANALYZE, TIMING OFF, COSTS OFF, BUFFERS OFF) {STATEMENTS[name]}", *QUERIES[name]
        )
        await trying.rollback()
    plan = "\n".join(row[0] for row in rows)
    assert "Seq Scan" not in plan, plan
    read = [float(found) for found in re.findall(r"Scan.*\(actual rows=([\d.]+)", plan)]
    assert read, plan
    assert max(read) <= 110, plan
    assert all(int(found) <= 110 for found in re.findall(r"Rows Removed by Filter: (\d+)", plan)), plan
