"""What a look-up or a page reads does not grow with what there is: plans instead of times.

One workspace has 100,000 of everything that grows, beside many small ones; TWOFOLD_PLAN_ROWS says how many instead. Every
statement that only reads tables of tenants is explained as the service runs it, at the first page and at the last.
"""

import asyncio
import json
import os
import re
from collections.abc import AsyncIterator, Iterator, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

import asyncpg
import pytest

from tests.databases import own_database, settings_of_database
from tests.registry.stubs import Connection
from tests.registry.test_row_level_security import OF_THE_SYSTEM, tables_of_tenants
from tests.registry.test_statements import ALL
from twofold_cli.embedded.postgres import DatabaseUrls, EmbeddedPostgres
from twofold_registry.migrate import migrate

ROWS = int(os.environ.get("TWOFOLD_PLAN_ROWS", "100000"))
SMALL = 1_000
PAGE = 101
# A page and its look-ahead, from several tables, and what an index entry to a row that is gone may cost.
ROWS_READ_MAX = 10 * PAGE
BIG = "big"
BEGAN = datetime(2026, 1, 1, tzinfo=UTC)
GROWING = ("users", "agents", "grants", "audit_entries", "usage_events", "usage_keys", "sessions", "requests")
# By column: what stands in row i. Other columns have their default, or are NULL.
VALUES: Mapping[str, str] = {
    "workspace_id": f"CASE WHEN i % 10 = 0 THEN 'small-' || (i % {SMALL}) ELSE '{BIG}' END",
    **dict.fromkeys(("user_id", "agent_id", "event_id", "session_id", "request_id", "resource_id", "thread_id"), "id(i)"),
    **dict.fromkeys(
        ("actor", "pod_id", "display_name", "identity_id", "granted_by", "url", "model", "instructions"), "id(i)"
    ),
    "email": "id(i) || '@acme.test'",
    "role": "'member'",
    "rpc": "'CreateUser'",
    "action": "'user.update'",
    "resource_kind": "'user'",
    "state": "'published'",
    "context_delivery": "'messages'",
    **dict.fromkeys(("context_messages_max", "context_tokens_max", "first_token_timeout_us", "turn_timeout_us"), "20"),
    **dict.fromkeys(("before_json", "after_json"), "'{}'"),
    **dict.fromkeys(("hash", "prev_hash", "body_hash"), "decode(repeat('ab', 32), 'hex')"),
    "close_reason": "0",
    "answer": "decode(repeat('ab', 32), 'hex')",
    **dict.fromkeys(("seq", "revision"), "i"),
    "month": "date '2026-01-01'",
    "event_month": "date '2026-01-01'",
}
OF_TABLE: Mapping[tuple[str, str], str] = {("users", "state"): "'active'"}
BY_TYPE: Mapping[str, str] = {
    "timestamp with time zone": "timestamptz '2026-01-01 00:00+00' + i * interval '1 s'",
    "text": "''",
    "bigint": "1",
    "integer": "1",
    "smallint": "1",
    "boolean": "false",
}
# They sum or bring over what is in a span, a month or a request, not a page; or one part of work that is cut into parts.
NOT_PAGED: Mapping[str, str] = {
    "query_events": "sums all events of a span",
    "read_window": "sums all events of the last cells, of which the caller says how far they go",
}
# Values that are found, where it is no id.
FOUND: Mapping[str, Mapping[int, object]] = {
    **{f"audit_of_{what}_{way}": {5: value} for way in ("newest", "oldest")
       for what, value in (("action", "user.update"), ("kind", "user"))},
    **{f"audit_of_resource_{way}": {6: "user"} for way in ("newest", "oldest")},
}  # fmt: skip


PREPARATION = """
    CREATE FUNCTION pg_temp.id(i int) RETURNS text LANGUAGE sql IMMUTABLE AS $$SELECT 'id' || lpad(i::text, 8, '0')$$;
    SET session_replication_role = replica;
    SET synchronous_commit = off;
"""


def row_id(number: int) -> str:
    return f"id{number:08}"


@pytest.fixture(scope="module")
async def urls(postgres_server: EmbeddedPostgres) -> AsyncIterator[DatabaseUrls]:
    async with own_database(postgres_server, "plans") as made:
        await migrate(settings_of_database(made))
        await _fill(made.superuser)
        yield made


async def _fill(url: str) -> None:
    connection = await asyncpg.connect(url)
    await connection.execute(PREPARATION)
    await connection.execute(
        "INSERT INTO registry.workspaces"
        " (workspace_id, display_name, namespace, allowed_url_suffixes, created_at, updated_at, revision)"
        f" SELECT CASE i WHEN 0 THEN '{BIG}' ELSE 'small-' || i END, 'x', '', '{{}}', now(), now(), 1"
        f" FROM generate_series(0, {SMALL}) i"
    )
    await connection.close()
    await asyncio.gather(*(_fill_table(url, table) for table in GROWING))
    connection = await asyncpg.connect(url)
    await connection.execute("VACUUM ANALYZE")
    await connection.close()


async def _fill_table(url: str, table: str) -> None:
    connection = await asyncpg.connect(url)
    await connection.execute(PREPARATION)
    columns = await connection.fetch(
        "SELECT attname, atttypid::regtype::text AS kind, attnotnull AND NOT atthasdef AS needed FROM pg_attribute"
        " WHERE attrelid = $1::text::regclass AND attnum > 0 AND NOT attisdropped AND attgenerated = ''",
        f"registry.{table}",
    )
    chosen = {
        row["attname"]: OF_TABLE.get((table, row["attname"])) or VALUES.get(row["attname"]) or BY_TYPE[row["kind"]]
        for row in columns
        if row["needed"] or row["attname"] in ("created_at", "opened_at", "began_at")
    }
    values = ", ".join(chosen.values()).replace("id(i)", "pg_temp.id(i)")
    await connection.execute(
        f"INSERT INTO registry.{table} ({', '.join(chosen)}) SELECT {values} FROM generate_series(1, {ROWS}) i"
    )
    await connection.close()


@pytest.fixture(scope="module")
async def application(urls: DatabaseUrls) -> AsyncIterator[Connection]:
    connection = await asyncpg.connect(urls.app)
    yield connection
    await connection.close()


def looking() -> list[str]:
    """The statements that only read, and of what grows."""
    grows = re.compile(rf"\bregistry\.(?:{'|'.join(GROWING)})\b")
    writes = re.compile(r"\b(INSERT|UPDATE|DELETE)\b(?! OF)")
    return [
        name
        for name, text in ALL.items()
        if name not in OF_THE_SYSTEM | NOT_PAGED.keys() and grows.search(text) and not writes.search(text)
    ]


def values_of(name: str, kinds: Any, place: int) -> list[object]:
    """As the service would give them, for the page that begins at row `place`."""
    text = ALL[name]
    at, moment = row_id(place), BEGAN + timedelta(seconds=place)
    values: list[object] = []
    for number, kind in enumerate(kinds, start=1):
        element = kind.name.removesuffix("[]")
        bound = re.search(rf"([<>])=? (?:\([^()]*)?\${number}\b", text)
        low = bound is None or bound.group(1) == ">"
        # Spans are open on the far side: the place is where a page begins.
        backwards = "DESC" in text
        begins = bound is not None and (low != backwards)
        value: object = {
            "text": at if bound is None or begins else "" if low else "~",
            "timestamptz": moment if bound is None or begins else BEGAN if low else BEGAN + timedelta(days=3650),
            "int4": place if bound is None or begins else 0 if low else 2**30,
            "int8": place if bound is None or begins else 0 if low else 2**40,
            "bool": False,
            "date": BEGAN.date(),
            "interval": timedelta(days=1),
        }[element]
        if re.search(rf"\${number}(::\w+(\[\])?)? IS NULL|cardinality\(\${number}\b", text):
            value = None
        elif re.search(rf"LIMIT \${number}\b", text):
            value = PAGE
        elif kind.kind == "array":
            value = [value]
        values.append(FOUND.get(name, {}).get(number, value))
    values[0] = [BIG] if kinds[0].kind == "array" else BIG
    return values


def nodes(plan: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    yield plan
    for below in plan.get("Plans", ()):
        yield from nodes(below)


def rows_read(plan: Mapping[str, Any]) -> float:
    """Rows that were looked at in tables and indexes."""
    read: float = sum(
        (node["Actual Rows"] + node.get("Rows Removed by Filter", 0) + node.get("Rows Removed by Index Recheck", 0))
        * node["Actual Loops"]
        for node in nodes(plan)
        if "Relation Name" in node or "Index Name" in node
    )
    return read


async def explained(application: Connection, name: str, place: int, mode: str) -> Mapping[str, Any]:
    statement = await application.prepare(ALL[name])
    values = values_of(name, statement.get_parameters(), place)
    async with application.transaction(readonly=True):
        await application.execute(f"SELECT set_config('twofold.workspaces', '{BIG}', true)")
        await application.execute(f"SET LOCAL plan_cache_mode = {mode}")
        names = ", ".join(kind.name if kind.kind != "array" else kind.name.removesuffix("[]") + "[]"
                          for kind in statement.get_parameters())  # fmt: skip
        await application.execute(f"PREPARE looked ({names}) AS {ALL[name]}")
        try:
            literals = [await application.fetchval("SELECT quote_nullable($1::text)", _literal(value)) for value in values]
            told = await application.fetchval(
                f"EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) EXECUTE looked ({', '.join(literals)})"
            )
        finally:
            await application.execute("DEALLOCATE looked")
    plan: Mapping[str, Any] = json.loads(told)[0]["Plan"]
    return plan


def _literal(value: object) -> str | None:
    if isinstance(value, list):
        return "{" + ",".join(str(element) for element in value) + "}"
    return None if value is None else str(value)


# Look-ups, whose plan is the same for all values. What makes pages is planned for its values: see Reads.report.
LOOK_UPS = re.compile(r"^(get|batch_get|check|explain|lock|pair|answered|recorded|held)_|_(is_there|lives|ever_was)$")


@pytest.mark.parametrize("name", looking())
async def test_what_is_read_does_not_grow_with_what_there_is(application: Connection, name: str) -> None:
    mode = "force_generic_plan" if LOOK_UPS.search(name) else "force_custom_plan"
    for place in (0, ROWS // 2, ROWS - 2 * PAGE):
        plan = await explained(application, name, place, mode)
        scanned = [node["Relation Name"] for node in nodes(plan) if node["Node Type"] == "Seq Scan"]
        assert not set(scanned) & set(GROWING), f"at row {place}"
        assert rows_read(plan) <= ROWS_READ_MAX, f"at row {place}: {json.dumps(plan, indent=1)}"
        initial = [node for node in nodes(plan) if node.get("Parent Relationship") == "InitPlan"]
        assert all(node["Actual Loops"] <= 1 for node in initial), "the workspaces of the transaction are found out once"


async def test_what_grows_is_what_there_is(application: Connection, urls: DatabaseUrls) -> None:
    """A table that is new is filled here, or said not to grow with use."""
    connection = await asyncpg.connect(urls.owner)
    bounded = set(await tables_of_tenants(connection)) - set(GROWING)
    assert bounded <= STAYING_SMALL.keys()
    await connection.close()


STAYING_SMALL: Mapping[str, str] = {
    "workspaces": "a workspace is one row",
    "audit_heads": "one row of a workspace",
    "usage_caps": "one row of a workspace",
    "usage_totals": "a few rows of a month",
    "usage_sums": "a month's agents, users and prices, read by month",
    "usage_adjustments": "made by hand, read by month",
    "invoices": "one row of a month",
    "invoice_lines": "a month's agents and prices, read by month",
    "agent_observations": "the newest of each target of an agent, read with it",
}


async def test_a_page_that_read_everything_would_be_seen(application: Connection) -> None:
    async with application.transaction(readonly=True):
        await application.execute(f"SELECT set_config('twofold.workspaces', '{BIG}', true)")
        told = await application.fetchval(
            "EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) SELECT user_id FROM registry.users ORDER BY display_name, role LIMIT 10"
        )
    assert rows_read(json.loads(told)[0]["Plan"]) > ROWS_READ_MAX
