"""The SQL: every statement fits the schema and is used, hot ones use indexes, the application may do what it must."""

import asyncio
import re
from importlib import resources
from pathlib import Path
from typing import Any

import asyncpg
import pytest

import twofold_memory
from tests.memory.rooms import Memory, database_of
from twofold_cli.embedded.postgres import DatabaseUrls, EmbeddedPostgres
from twofold_memory.migrate import migrate
from twofold_memory.store.statements import STATEMENTS

Sql = asyncpg.Pool
MESSAGES = 20_000


@pytest.mark.parametrize("name", sorted(STATEMENTS))
async def test_every_statement_can_be_prepared_by_the_application_role(
    room: Memory, memory_urls: DatabaseUrls, name: str
) -> None:
    connection = await asyncpg.connect(memory_urls.app)
    try:
        await connection.prepare(STATEMENTS[name])
    finally:
        await connection.close()


def test_every_statement_is_used_and_every_used_one_is_there() -> None:
    folder = Path(str(resources.files(twofold_memory)))
    code = "".join(path.read_text(encoding="utf-8") for path in folder.rglob("*.py"))
    assert set(re.findall(r'STATEMENTS\["(\w+)"\]', code)) == set(STATEMENTS)


@pytest.fixture(scope="module")
async def long_thread(room: Memory, sql: "Sql[Any]") -> tuple[str, str]:
    """A thread of 20,000 messages beside 20,000 threads, and a workspace where a label is common that is rare here."""
    workspace_id, thread_id = "ws-long", "long"
    threads = (
        "INSERT INTO memory.conversations (workspace_id, thread_id, user_id, metadata)"
        " SELECT $1, 't' || i, 'u' || i % 100, jsonb_build_object('batch', (i / $3)::text) FROM generate_series(1, $2) i"
    )
    await sql.execute(threads, workspace_id, MESSAGES, 100)
    await sql.execute(threads, "ws-other", 1000, 100_000)
    await sql.execute("UPDATE memory.conversations SET metadata = '{\"batch\": \"7\"}' WHERE workspace_id = 'ws-other'")
    await sql.execute(
        "INSERT INTO memory.conversations (workspace_id, thread_id, next_seq) VALUES ($1, $2, $3)",
        workspace_id,
        thread_id,
        MESSAGES + 1,
    )
    await sql.execute(
        "INSERT INTO memory.messages (workspace_id, thread_id, seq, turn_id, turn_index, role, content, rest, created_at)"
        " SELECT $1, $2, i, 't' || i, 0, 2, 'text', '', now() FROM generate_series(1, $3) i",
        workspace_id,
        thread_id,
        MESSAGES,
    )
    await sql.execute(
        "INSERT INTO memory.turns (workspace_id, thread_id, turn_id, payload_hash, first_seq, last_seq, epoch, created_at)"
        " SELECT $1, $2, 't' || i, '', i, i, 1, now() FROM generate_series(1, $3) i",
        workspace_id,
        thread_id,
        MESSAGES,
    )
    await sql.execute(
        "INSERT INTO memory.message_revisions (workspace_id, thread_id, seq, revision, kind, rest, actor)"
        " SELECT $1, $2, i, 1, 1, '', 'ada' FROM generate_series(1, $3) i",
        workspace_id,
        thread_id,
        MESSAGES,
    )
    for table in ("conversations", "messages", "turns", "message_revisions"):
        await sql.execute(f"ANALYZE memory.{table}")
    return workspace_id, thread_id


HOT: dict[str, tuple[object, ...]] = {
    "newest": (100, 3_000_000),
    "messages_after": (10_000, 50, 3_000_000),
    "messages_before": (10_000, 50, 3_000_000),
    "messages_between": (10_000, 10_010),
    "turn": ("t10000",),
    "conversation": (),
    "lock_conversation": (),
    "lock_deleted_conversation": (),
    "message_body": (10_000,),
    "turn_bytes": ("t10000",),
    "last_turn": (),
    "popped_messages": ("t10000",),
    "revisions_after": (10_000, 0, 51, 3_000_000),
    "lock_family": (),
    "family_epochs": (),
    "lineage": (),
    "lock_parent": (),
    "count_descendants": (1_000,),
    "branches": ("", 51, None),
}
LISTS: dict[str, tuple[object, ...]] = {
    "conversations_of_workspace": (),
    "conversations_of_user": ("u7",),
    "conversations_with_labels": (None, '{"batch": "7"}'),
}


@pytest.mark.parametrize("plans", ["force_generic_plan", "force_custom_plan"])
@pytest.mark.parametrize("name", sorted([*HOT, *LISTS, "heads"]))
async def test_m13_the_hot_statements_read_an_index_and_few_rows_of_a_long_thread(
    sql: "Sql[Any]", long_thread: tuple[str, str], name: str, plans: str
) -> None:
    """M13, as a plan instead of a time: no sequential scan, no sort of the thread, and a bounded number of rows read."""
    workspace_id, thread_id = long_thread
    arguments: tuple[object, ...] = (*long_thread, *HOT.get(name, ()))
    if name == "heads":
        arguments = ([workspace_id] * 20, [thread_id] * 20)
    elif name in LISTS:
        arguments = (workspace_id, None, None, 51, None, None, *LISTS[name])
    async with sql.acquire() as connection, connection.transaction():
        await connection.execute(f"SET LOCAL plan_cache_mode = {plans}")
        rows = await connection.fetch(
            f"EXPLAIN (ANALYZE, TIMING OFF, COSTS OFF, BUFFERS OFF) {STATEMENTS[name]}", *arguments
        )
    plan = "\n".join(row[0] for row in rows)
    assert "Seq Scan" not in plan, plan
    read = [float(found) for found in re.findall(r"Scan.*\(actual rows=([\d.]+)", plan)]
    assert read, plan
    assert max(read) <= 110, plan
    assert all(int(found) <= 110 for found in re.findall(r"Rows Removed by Filter: (\d+)", plan)), plan


async def test_the_plans_within_a_group_commit_use_indexes(sql: "Sql[Any]", long_thread: tuple[str, str]) -> None:
    """M13: what one append touches does not grow with the thread."""
    async with sql.acquire() as connection:
        read = "SELECT sum(seq_tup_read) FROM pg_stat_xact_user_tables WHERE schemaname = 'memory'"
        async with connection.transaction():
            before = await connection.fetchval(read) or 0
            row = await connection.fetchrow(
                STATEMENTS["append_turns"],
                *([value] for value in (*long_thread, None, "new", b"hash", 1, False, None, None, "t7", False, 0)),
                *([value] for value in (1, 0, 2, "text", b"", None, 0)),
            )
            assert row is not None
            assert (row["outcome"], row["first_seq"]) == ("STORED", MESSAGES + 1)
            assert (await connection.fetchval(read) or 0) == before
            await connection.execute("DELETE FROM memory.messages WHERE turn_id = 'new'")
            await connection.execute("DELETE FROM memory.turns WHERE turn_id = 'new'")


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE memory.messages SET seq = seq + 1",
        "DELETE FROM memory.messages",
        "TRUNCATE memory.messages",
        "UPDATE memory.turns SET last_seq = 9",
        "DELETE FROM memory.turns",
        "DELETE FROM memory.conversations",
        "CREATE TABLE memory.mine (x int)",
        "DROP TABLE memory.messages",
        "ALTER TABLE memory.messages ADD COLUMN x int",
        "CREATE SCHEMA mine",
        "CREATE TEMPORARY TABLE mine (x int)",
        "UPDATE memory.alembic_version SET version_num = 'x'",
        "CREATE OR REPLACE FUNCTION memory.mine() RETURNS int LANGUAGE sql AS 'SELECT 1'",
    ],
)
async def test_the_application_role_can_neither_change_the_schema_nor_what_was_numbered(
    room: Memory, memory_urls: DatabaseUrls, statement: str
) -> None:
    connection = await asyncpg.connect(memory_urls.app)
    try:
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            await connection.execute(statement)
    finally:
        await connection.close()


async def test_several_processes_may_migrate_at_once_and_again(postgres_server: EmbeddedPostgres) -> None:
    urls = await postgres_server.create_database("memory_race")
    await asyncio.gather(*(migrate(database_of(urls)) for _ in range(6)))
    await migrate(database_of(urls))
    connection = await asyncpg.connect(urls.app)
    try:
        assert await connection.fetchval("SELECT count(*) FROM memory.alembic_version") == 1
        await connection.prepare(STATEMENTS["append_turns"])
    finally:
        await connection.close()
