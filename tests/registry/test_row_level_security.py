"""Postgres itself keeps workspaces apart: without the conditions of the statements, and the statements without Postgres.

Each statement that names a table of tenants is run against a database in which one workspace has everything, with all
its parameters pointing there, in two ways: as the application, in a transaction that names another workspace, with the
workspace's conditions taken out of the statement; and whole, for another workspace, as the owner, whom row-level security
lets see everything. Both times it has to answer what it answers where there is nothing at all, and to change nothing.
"""

import itertools
import re
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import asyncpg
import grpc
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.databases import own_database, settings_of_database
from tests.registry.stubs import Connection, Registry, settings_of
from tests.registry.test_statements import ALL, system_statements
from tests.registry.test_tenancy import RPCS, requests, send
from twofold.registry.v1.user_pb2 import Role
from twofold_chassis import fields, postgres
from twofold_chassis.refusals import InvalidField
from twofold_chassis.settings import DatabaseSettings
from twofold_cli.embedded.postgres import OWNER, SYSTEM, EmbeddedPostgres
from twofold_registry.app import registry
from twofold_registry.migrate import migrate

# Of no tenant, although they name workspaces: the application cannot read them.
NOT_OF_TENANTS = {"changes", "pods"}
# Statements of the system role, and those of operators, and of the registry for itself, on its connections.
OF_THE_SYSTEM = system_statements() | {
    "batch_get_workspaces",
    "caps_of_past_months",
    "list_workspaces",
    "list_workspaces_by_time",
    "list_workspaces_by_time_desc",
    "list_workspaces_desc",
    "purges_due",
    "workspaces_to_empty",
}
FURNISHED, ELSEWHERE = "furnished", "elsewhere"
# Rpcs whose requests make nothing, but take away what others have made.
TAKES_AWAY = ("Delete", "Revoke", "BatchRevoke", "Purge")
# Every id in the furnished workspace is one of these, so that a parameter finds something, whatever it is compared with.
IDS = ("sama", "same", "samf")
# By column, or type of a column: for rows that no request makes.
VALUES_OF_ROWS: Mapping[str, str] = {
    "workspace_id": f"'{FURNISHED}'",
    "state": "'none'",
    "text": f"'{IDS[1]}'",
    "text[]": f"'{{{IDS[1]}}}'",
    "integer": "1",
    "smallint": "1",
    "bigint": "1",
    "bigint[]": "'{1}'",
    "boolean": "false",
    "date": "date_trunc('month', now())",
    "timestamp with time zone": "now()",
    "bytea": "decode(repeat('00', 32), 'hex')",
    "numeric": "1",
}
PAST, FUTURE = datetime(2000, 1, 1, tzinfo=UTC), datetime(2100, 1, 1, tzinfo=UTC)
TENANTS_CONDITION = re.compile(r"(?:\w+\.)?workspace_id = \$1\b")
_COLUMNS_OF_THE_HEAD = {"epoch", "head_revision", "at"}

# By statement and place, where no value that is the same for all of a type finds anything.
PARAMETERS: Mapping[str, Mapping[int, object]] = {
    **{f"audit_of_actor_{way}": {5: "anonymous"} for way in ("newest", "oldest")},
    **{f"audit_of_action_{way}": {5: "user.create"} for way in ("newest", "oldest")},
    **{f"audit_of_kind_{way}": {5: "user"} for way in ("newest", "oldest")},
    **{f"audit_of_resource_{way}": {6: "user"} for way in ("newest", "oldest")},
    "held_by_others": {2: [f"session-of-{IDS[1]}"]},
    "known_holdings": {2: [f"session-of-{IDS[1]}"]},
    "list_sessions_of_pod": {8: "pod"},
    "lock_observation": {3: ""},
    "record_change": {21: ["user"]},
    "renew_observation": {3: "", 4: "cold"},
}
# They find something only where there is nothing else: nothing can be seen of others by them.
FINDING_NOTHING = {"workspace_is_empty"}
# They insert what they select, and so nothing where there is nothing to be seen.
SELECTING_INSERTS = {"freeze_lines"}


@dataclass(frozen=True)
class Databases:
    """One in which one workspace has everything, and an empty one."""

    furnished: DatabaseSettings
    empty: DatabaseSettings


@pytest.fixture(scope="module")
async def databases(postgres_server: EmbeddedPostgres) -> AsyncIterator[Databases]:
    async with (
        own_database(postgres_server, "rls_furnished") as furnished,
        own_database(postgres_server, "rls_empty") as empty,
    ):
        made = Databases(settings_of_database(furnished), settings_of_database(empty))
        await migrate(made.empty)
        async with (
            registry(settings_of(made.furnished)) as running,
            grpc.aio.insecure_channel(f"127.0.0.1:{running.port}") as channel,
        ):
            await _furnish(channel)
        await _fill(furnished.superuser)
        yield made


async def _furnish(channel: grpc.aio.Channel) -> None:
    """With what the requests of all rpcs make, besides three users and agents. Twice, so that their order is no matter."""
    api = Registry(channel)
    await api.make_workspace(FURNISHED)
    for each in IDS:
        await api.make_user(FURNISHED, each, role=Role.ROLE_OWNER)
        await api.make_agent(FURNISHED, each)
        await api.grant(FURNISHED, each, each)
    first: Any = requests(FURNISHED, "someone", IDS[1])["CreateUser"]
    first.request_id = IDS[1]
    await api.users.CreateUser(first, metadata=(("x-request-id", IDS[1]),))
    for user in (*IDS, *IDS):
        for name, request in requests(FURNISHED, user, user).items():
            if name.startswith(TAKES_AWAY):
                continue
            if name == "RecordUsage":
                request.events[0].event_id = user  # type: ignore[attr-defined]
                request.events[0].event_time.GetCurrentTime()  # type: ignore[attr-defined]
            try:
                await send(channel, RPCS[name], request)
            except grpc.aio.AioRpcError as error:
                if error.code() == grpc.StatusCode.INTERNAL:
                    raise


async def _fill(url: str) -> None:
    """What no request has made, as the month has to end first, for example: one row in each table that is still empty."""
    connection = await asyncpg.connect(url)
    await connection.execute("SET session_replication_role = replica")  # without what it refers to
    for table in await tables_of_tenants(connection):
        there = f"SELECT EXISTS (SELECT FROM registry.{table} WHERE workspace_id = '{FURNISHED}')"
        if not await connection.fetchval(there):
            columns = await connection.fetch(
                "SELECT attname, atttypid::regtype::text AS kind FROM pg_attribute"
                " WHERE attrelid = $1::text::regclass AND attnum > 0 AND NOT attisdropped AND attgenerated = ''",
                f"registry.{table}",
            )
            values = [VALUES_OF_ROWS.get(row["attname"]) or VALUES_OF_ROWS[row["kind"]] for row in columns]
            names = ", ".join(row["attname"] for row in columns)
            await connection.execute(f"INSERT INTO registry.{table} ({names}) VALUES ({', '.join(values)})")
    await connection.close()


@pytest.fixture(scope="module")
async def owner(databases: Databases) -> AsyncIterator[Connection]:
    connection = await asyncpg.connect(databases.furnished.owner_url.get_secret_value())
    yield connection
    await connection.close()


@pytest.fixture(scope="module")
async def application(databases: Databases) -> AsyncIterator[Connection]:
    connection = await asyncpg.connect(databases.furnished.url.get_secret_value())
    yield connection
    await connection.close()


@pytest.fixture(scope="module")
async def nothing(databases: Databases) -> AsyncIterator[Connection]:
    """The empty database, as its owner."""
    connection = await asyncpg.connect(databases.empty.owner_url.get_secret_value())
    yield connection
    await connection.close()


async def tables(owner: Connection) -> list[str]:
    """All tables with a workspace, partitions among them."""
    rows = await owner.fetch(
        "SELECT c.relname FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid"
        " WHERE c.relnamespace = 'registry'::regnamespace AND c.relkind IN ('r', 'p') AND a.attname = 'workspace_id'"
        " AND NOT a.attisdropped ORDER BY 1"
    )
    return [row["relname"] for row in rows]


async def tables_of_tenants(connection: Connection) -> list[str]:
    """Those that the application works with: partitions it reaches only through the whole."""
    rows = await connection.fetch(
        "SELECT relname FROM pg_class WHERE relnamespace = 'registry'::regnamespace AND relispartition"
    )
    return [table for table in await tables(connection) if table not in NOT_OF_TENANTS | {row["relname"] for row in rows}]


async def test_c17_every_table_of_tenants_has_row_level_security_and_two_policies(owner: Connection) -> None:
    found = [table for table in await tables(owner) if table not in NOT_OF_TENANTS]
    assert {"workspaces", "users", "agents", "grants", "usage_events", "audit_entries", "audit_heads", "requests"} <= set(
        found
    )
    for table in found:
        secured = await owner.fetchrow(
            "SELECT relrowsecurity, relforcerowsecurity FROM pg_class WHERE oid = $1::text::regclass", f"registry.{table}"
        )
        policies = await owner.fetch(
            "SELECT policyname, permissive, roles::text[], cmd, qual, with_check FROM pg_policies"
            " WHERE schemaname = 'registry' AND tablename = $1 ORDER BY policyname DESC",
            table,
        )
        assert secured is not None
        assert tuple(secured) == (True, True), table
        tenants, everything = map(tuple, policies)
        condition = "(workspace_id = ANY (( SELECT registry.tenants() AS tenants)::text[]))"
        assert tenants == ("tenants", "PERMISSIVE", ["public"], "ALL", condition, None), table
        assert everything[:2] + everything[3:] == ("everything", "PERMISSIVE", "ALL", "true", None), table
        assert set(everything[2]) == {SYSTEM, OWNER}, table


async def test_c17_what_has_no_row_level_security_the_application_cannot_read(owner: Connection) -> None:
    for table in set(await tables(owner)) & NOT_OF_TENANTS:
        rights = await owner.fetchval(
            "SELECT has_any_column_privilege($1, $2, 'SELECT')", "twofold_app", f"registry.{table}"
        )
        assert rights is False, table


async def test_c17_the_services_roles_pass_by_no_policy(owner: Connection) -> None:
    rows = await owner.fetch("SELECT rolname FROM pg_roles WHERE rolname LIKE 'twofold%' AND (rolbypassrls OR rolsuper)")
    assert rows == []
    assert not await owner.fetchval("SELECT pg_has_role('twofold_app', $1, 'member')", SYSTEM)
    assert not await owner.fetchval("SELECT pg_has_role('twofold_app', $1, 'member')", OWNER)


async def test_c17_who_names_no_workspace_sees_nothing(owner: Connection, application: Connection) -> None:
    for table in await tables_of_tenants(owner):
        count = f"SELECT count(*) FROM registry.{table} WHERE workspace_id = '{FURNISHED}'"
        assert await owner.fetchval(count) > 0, f"the furnished workspace has nothing in {table}: see _furnish"
        assert await application.fetchval(f"SELECT count(*) FROM registry.{table}") == 0, table
        async with application.transaction():
            await application.execute("SELECT set_config('twofold.workspaces', 'furnished', true)")
            assert await application.fetchval(count) > 0, table
        assert await application.fetchval(f"SELECT count(*) FROM registry.{table}") == 0, table


@pytest.mark.parametrize("name", ["", "  ", "NULL", "{furnished}", "furnished,elsewhere", '"furnished"', "%", "FURNISHED"])
async def test_c17_no_other_name_means_a_workspace(application: Connection, name: str) -> None:
    async with application.transaction():
        await application.execute("SELECT set_config('twofold.workspaces', $1, true)", name)
        assert await application.fetchval("SELECT count(*) FROM registry.workspaces") == 0


# Conditions and policies, each without the other ----------------------------------------------------------


def of_tenants() -> list[str]:
    """The statements with a condition on the workspace, and those that write."""
    return [
        name
        for name, text in ALL.items()
        if name not in OF_THE_SYSTEM | FINDING_NOTHING
        and (TENANTS_CONDITION.search(text) or re.search(r"INSERT INTO registry\.", text))
    ]


def without_conditions(text: str) -> str:
    """The statement with all of its conditions on the workspace taken out."""
    return TENANTS_CONDITION.sub("($1::text IS NOT NULL)", text)


async def test_every_statement_that_names_a_table_of_tenants_is_tried(owner: Connection) -> None:
    named = re.compile(rf"\b(?:FROM|JOIN|UPDATE|INTO)\s+registry\.(?:{'|'.join(await tables_of_tenants(owner))})\b")
    speaking = {name for name, text in ALL.items() if named.search(text)}
    assert speaking - OF_THE_SYSTEM - FINDING_NOTHING - {"check_facts"} <= set(of_tenants())


@pytest.mark.parametrize("name", of_tenants())
async def test_c17_conditions_and_policies_each_keep_workspaces_apart(
    owner: Connection, application: Connection, nothing: Connection, name: str
) -> None:
    whole, stripped = ALL[name], without_conditions(ALL[name])
    if "INSERT INTO" in stripped and name not in SELECTING_INSERTS:
        parameters = Parameters(name, number=2**30)
        assert await outcome(application, parameters, whole, FURNISHED, sees=ELSEWHERE) == "InsufficientPrivilegeError"
        return
    parameters = await finding(owner, nothing, name, stripped)
    without_any = await outcome(nothing, parameters, stripped, FURNISHED)
    assert await outcome(application, parameters, stripped, FURNISHED, sees=ELSEWHERE) == without_any, "policies alone"
    elsewhere = await outcome(nothing, parameters, whole, ELSEWHERE)
    assert await outcome(owner, parameters, whole, ELSEWHERE) == elsewhere, "conditions alone"


async def test_c17_checks_of_several_workspaces_at_once_see_only_those_that_the_transaction_names(
    owner: Connection, application: Connection, nothing: Connection
) -> None:
    parameters = Parameters("check_facts", first=[FURNISHED])
    text = ALL["check_facts"]
    unknown = await outcome(nothing, parameters, text, "")
    assert await outcome(application, parameters, text, "", sees=ELSEWHERE) == unknown
    assert await outcome(application, parameters, text, "", sees=FURNISHED) != unknown
    assert await outcome(owner, Parameters("check_facts", first=[ELSEWHERE]), text, "") == unknown


@dataclass(frozen=True)
class Parameters:
    """What a statement is given, so chosen by how it uses each that it finds something."""

    name: str
    number: int = 1
    times: tuple[datetime, ...] = (PAST,)
    flag: bool = True
    first: object = None

    def of(self, statement: Any, workspace_id: str) -> list[object]:
        given, times = PARAMETERS.get(self.name, {}), itertools.cycle(self.times)
        values: list[object] = []
        for place, kind in enumerate(statement.get_parameters(), start=1):
            element = kind.name.removesuffix("[]")
            value = self._used(place, element, next(times))
            values.append(given.get(place, [value] if kind.kind == "array" else value))
        values[0] = self.first or workspace_id
        return values

    def _used(self, place: int, element: str, time: datetime) -> object:
        """What is compared with a parameter that is a bound lies within it; what is only a filter is left out."""
        text = ALL[self.name]
        if re.search(rf"\${place}(::\w+(\[\])?)? IS NULL|cardinality\(\${place}\b", text):
            return None
        if re.search(rf"LIMIT \${place}\b", text):
            return 1000
        bound = re.search(rf"([<>])=? (?:\([^()]*)?\${place}\b", text)
        low = bound is None or bound.group(1) == ">"
        values: Mapping[str, object] = {
            "text": IDS[1] if bound is None else "" if low else "~",
            "bool": self.flag,
            "interval": timedelta(days=1),
            "numeric": Decimal(1),
            "bytea": bytes(32),
            "int2": 1,
        }
        if element in ("int4", "int8"):
            return self.number if bound is None else 0 if low else 2**30
        if element in ("timestamptz", "date"):
            chosen = time if bound is None else PAST if low else FUTURE
            return chosen if element == "timestamptz" else chosen.date().replace(day=1)
        return values[element]


async def finding(owner: Connection, nothing: Connection, name: str, text: str) -> Parameters:
    """Parameters with which who may see everything finds something in the furnished workspace, or changes it."""
    spans = ((PAST,), (FUTURE,), (PAST, FUTURE), (FUTURE, PAST), (datetime.now(UTC),))
    for number, times, flag in itertools.product((1, 2**30, 0), spans, (True, False)):
        parameters = Parameters(name, number, times, flag)
        if await outcome(owner, parameters, text, FURNISHED) != await outcome(nothing, parameters, text, FURNISHED):
            return parameters
    raise AssertionError(f"no parameters make {name} find anything in the furnished workspace: tell them in PARAMETERS")


async def outcome(connection: Connection, parameters: Parameters, text: str, workspace_id: str, sees: str = "") -> object:
    """What a statement answers, but for the head, or its error; and whether anything in the furnished workspace changed."""
    writes = re.search(r"\b(INSERT|UPDATE|DELETE)\b", text) is not None
    transaction = connection.transaction()
    await transaction.start()
    try:
        before = await _everything(connection) if writes else None
        await connection.execute("SELECT set_config('twofold.workspaces', $1, true)", sees)
        try:
            async with connection.transaction():
                statement = await connection.prepare(text)
                rows = await statement.fetch(*parameters.of(statement, workspace_id))
                changed = statement.get_statusmsg()
        except asyncpg.PostgresError as error:
            return type(error).__name__
        answer = [{key: value for key, value in row.items() if key not in _COLUMNS_OF_THE_HEAD} for row in rows]
        return answer, changed, before == (await _everything(connection) if writes else None)
    finally:
        await transaction.rollback()


async def _everything(connection: Connection) -> list[asyncpg.Record]:
    """All that is in the furnished workspace."""
    await connection.execute("SELECT set_config('twofold.workspaces', $1, true)", FURNISHED)
    selects = [
        f"SELECT '{table}', md5(string_agg(t::text, '' ORDER BY t::text)) FROM registry.{table} t"
        f" WHERE workspace_id = '{FURNISHED}'"
        for table in await tables_of_tenants(connection)
    ]
    return await connection.fetch(" UNION ALL ".join(selects))


# Naming workspaces ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
async def pool(databases: Databases) -> AsyncIterator[postgres.Pool]:
    opened = await postgres.open_pool(databases.furnished, name="test")
    yield opened
    await postgres.close_pool(opened)


def ids() -> st.SearchStrategy[str]:
    """What passes for an id, the odd ones more often."""
    odd = st.sampled_from(
        ["'", '"', "\\", "'; RESET ROLE; --", "{a,b}", "NULL", ",", "ü", "\U0001f600", "x" * 255, "%", "$1"]
    )
    texts = st.lists(odd | st.text(st.characters(exclude_categories=["Cs"]), min_size=1), min_size=1).map("".join)
    return texts.filter(_is_an_id)


def _is_an_id(text: str) -> bool:
    try:
        return fields.identifier(text, "id") == text
    except InvalidField:
        return False


@given(named=st.lists(ids(), min_size=1, max_size=3))
@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
async def test_c17_exactly_the_named_workspaces_are_seen(pool: postgres.Pool, named: list[str]) -> None:
    for begun in (postgres.transaction(pool, named), postgres.reading(pool, named)):
        async with begun as connection:
            assert await connection.fetchval("SELECT registry.tenants()") == named
            assert await connection.fetchval("SELECT current_user") == "twofold_app"
    async with postgres.connection(pool) as connection:
        assert not await connection.fetchval("SELECT registry.tenants()")


@pytest.mark.parametrize("text", ["a\x1fb", "\x1f", "a\x00b", "x" * 256, "ü" * 128, ""])
def test_c17_what_would_mean_two_workspaces_is_no_id(text: str) -> None:
    assert not _is_an_id(text)


async def test_c17_who_names_none_or_leaves_a_transaction_sees_none(pool: postgres.Pool) -> None:
    async with postgres.transaction(pool, (FURNISHED,)) as connection:
        assert await connection.fetchval("SELECT count(*) FROM registry.workspaces") == 1
    for _ in range(pool.get_max_size()):
        async with postgres.transaction(pool) as connection:
            assert await connection.fetchval("SELECT count(*) FROM registry.workspaces") == 0
