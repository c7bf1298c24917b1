"""Postgres itself keeps workspaces apart: without the conditions of the statements, and the statements without Postgres.

Each statement that names a table of tenants is run against a database in which one workspace has everything, with all
its parameters pointing there, in two ways: as the application, in a transaction that names another workspace, with the
workspace's conditions taken out of the statement; and whole, for another workspace, as the owner, whom row-level security
lets see everything. Both times it has to answer what it answers where there is nothing at all, and to change nothing.
"""

import re
import uuid
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from typing import Any

import asyncpg
import grpc
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.databases import settings_of_database
from tests.registry.stubs import Connection, Registry, settings_of
from tests.registry.test_statements import ALL, system_statements
from tests.registry.test_tenancy import RPCS, requests, send
from twofold_chassis import fields, postgres
from twofold_chassis.refusals import InvalidField
from twofold_chassis.settings import DatabaseSettings
from twofold_cli.embedded.postgres import OWNER, SYSTEM, EmbeddedPostgres
from twofold_registry.app import registry
from twofold_registry.migrate import migrate

# Of no tenant, although they name workspaces: the application cannot read them.
NOT_OF_TENANTS = {"changes", "pods"}
# Statements of the system role, and that of operators, who list all workspaces on its connections.
OF_THE_SYSTEM = system_statements() | {"list_workspaces"}
FURNISHED, ELSEWHERE = "furnished", "elsewhere"
# Rpcs whose requests make nothing, but take away what others have made.
TAKES_AWAY = ("Delete", "Revoke", "BatchRevoke")
# Every id in the furnished workspace is one of these, so that a parameter finds something, whatever it is compared with.
IDS = ("sama", "same", "samf")
PAST, FUTURE = datetime(2000, 1, 1, tzinfo=UTC), datetime(2100, 1, 1, tzinfo=UTC)
TENANTS_CONDITION = re.compile(r"(?:\w+\.)?workspace_id = \$1\b")
_COLUMNS_OF_THE_HEAD = {"epoch", "head_revision", "at"}

# By type: a value that finds what is in the furnished workspace.
BY_TYPE: Mapping[str, object] = {
    "text": IDS[1],
    "int4": 2**30,
    "int8": 2**40,
    "bool": False,
    "timestamptz": PAST,
    "date": date(2000, 1, 1),
    "interval": timedelta(days=1),
    "numeric": Decimal(1),
    "bytea": bytes(32),
}
# By statement and number, where that finds nothing.
PARAMETERS: Mapping[str, Mapping[int, object]] = {
    "list_audit_of_kind": {5: "user"},
    "list_grants_of_agent": {2: ""},
    "list_grants_of_user": {2: ""},
    "record_change": {21: ["user"]},
    "list_audit_of_resource": {5: "user"},
    "sum_usage": {3: FUTURE},
}
# Conditions that may be missing one at a time without a difference, and why.
NEEDLESS: Mapping[str, str] = {}


@dataclass(frozen=True)
class Databases:
    """One in which one workspace has everything, and an empty one."""

    furnished: DatabaseSettings
    empty: DatabaseSettings


@pytest.fixture(scope="module")
async def databases(postgres_server: EmbeddedPostgres) -> AsyncIterator[Databases]:
    names = [f"rls_{kind}_{uuid.uuid4().hex[:8]}" for kind in ("furnished", "empty")]
    made = Databases(*[settings_of_database(await postgres_server.create_database(name)) for name in names])
    await migrate(made.empty)
    async with (
        registry(settings_of(made.furnished)) as running,
        grpc.aio.insecure_channel(f"127.0.0.1:{running.port}") as channel,
    ):
        await _furnish(channel)
    yield made
    for name in names:
        await postgres_server.drop_database(name)


async def _furnish(channel: grpc.aio.Channel) -> None:
    """With what the requests of all rpcs make, besides three users and agents. Twice, so that their order is no matter."""
    api = Registry(channel)
    await api.make_workspace(FURNISHED)
    for each in IDS:
        await api.make_user(FURNISHED, each)
        await api.make_agent(FURNISHED, each)
        await api.grant(FURNISHED, each, each)
    first: Any = requests(FURNISHED, "someone", IDS[1])["CreateUser"]
    first.request_id = IDS[1]
    await api.users.CreateUser(first)
    for user in (*IDS, *IDS):
        for name, request in requests(FURNISHED, user, user).items():
            if name.startswith(TAKES_AWAY):
                continue
            for event in getattr(request, "events", ()):
                event.event_id = user
            try:
                await send(channel, RPCS[name], request)
            except grpc.aio.AioRpcError as error:
                if error.code() == grpc.StatusCode.INTERNAL:
                    raise


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
    """All tables with a workspace."""
    rows = await owner.fetch(
        "SELECT c.relname FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid"
        " WHERE c.relnamespace = 'registry'::regnamespace AND c.relkind IN ('r', 'p') AND a.attname = 'workspace_id'"
        " AND NOT a.attisdropped ORDER BY 1"
    )
    return [row["relname"] for row in rows]


async def tables_of_tenants(owner: Connection) -> list[str]:
    return [table for table in await tables(owner) if table not in NOT_OF_TENANTS]


async def test_c17_every_table_of_tenants_has_row_level_security_and_two_policies(owner: Connection) -> None:
    found = await tables_of_tenants(owner)
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
        if name not in OF_THE_SYSTEM and (TENANTS_CONDITION.search(text) or re.search(r"INSERT INTO registry\.", text))
    ]


def without_conditions(text: str, only: int | None = None) -> str:
    """The statement with all of its conditions on the workspace taken out, or one of them."""
    seen = iter(range(100))

    def replaced(found: re.Match[str]) -> str:
        return "($1::text IS NOT NULL)" if only in (None, next(seen)) else found.group()

    return TENANTS_CONDITION.sub(replaced, text)


async def test_every_statement_that_names_a_table_of_tenants_is_tried(owner: Connection) -> None:
    named = re.compile(rf"\b(?:FROM|JOIN|UPDATE|INTO)\s+registry\.(?:{'|'.join(await tables_of_tenants(owner))})\b")
    speaking = {name for name, text in ALL.items() if named.search(text)}
    assert speaking - OF_THE_SYSTEM == set(of_tenants())


@pytest.mark.parametrize("name", of_tenants())
async def test_c17_without_its_conditions_a_statement_shows_and_changes_nothing_of_others(
    owner: Connection, application: Connection, nothing: Connection, name: str
) -> None:
    stripped = without_conditions(ALL[name])
    found = await outcome(application, name, stripped, FURNISHED, sees=ELSEWHERE)
    if "INSERT INTO" in stripped:
        assert found == "InsufficientPrivilegeError"
    else:
        assert found == await outcome(nothing, name, stripped, FURNISHED)
        assert found != await outcome(owner, name, stripped, FURNISHED), "who may see everything has to see something"


@pytest.mark.parametrize("name", [name for name in of_tenants() if TENANTS_CONDITION.search(ALL[name])])
async def test_c17_without_policies_a_statement_shows_and_changes_nothing_of_others(
    owner: Connection, nothing: Connection, name: str
) -> None:
    assert await outcome(owner, name, ALL[name], ELSEWHERE) == await outcome(nothing, name, ALL[name], ELSEWHERE)


@pytest.mark.parametrize(
    ("name", "number"),
    [(name, number) for name in of_tenants() for number, _ in enumerate(TENANTS_CONDITION.findall(ALL[name]))],
)
async def test_a_condition_that_is_forgotten_is_noticed(
    owner: Connection, nothing: Connection, name: str, number: int
) -> None:
    if f"{name} {number}" in NEEDLESS:
        pytest.skip(NEEDLESS[f"{name} {number}"])
    forgotten = without_conditions(ALL[name], only=number)
    assert await outcome(owner, name, forgotten, ELSEWHERE) != await outcome(nothing, name, forgotten, ELSEWHERE)


async def outcome(connection: Connection, name: str, text: str, workspace_id: str, sees: str = "") -> object:
    """What a statement answers, but for the head, or its error; and whether anything in the furnished workspace changed."""
    transaction = connection.transaction()
    await transaction.start()
    try:
        before = await _everything(connection)
        await connection.execute("SELECT set_config('twofold.workspaces', $1, true)", sees)
        try:
            async with connection.transaction():
                statement = await connection.prepare(text)
                rows = await statement.fetch(*_parameters(name, statement, workspace_id))
                changed = statement.get_statusmsg()
        except asyncpg.PostgresError as error:
            return type(error).__name__
        answer = [{key: value for key, value in row.items() if key not in _COLUMNS_OF_THE_HEAD} for row in rows]
        return answer, changed, before == await _everything(connection)
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


def _parameters(name: str, statement: Any, workspace_id: str) -> list[object]:
    given = PARAMETERS.get(name, {})
    values: list[object] = []
    for number, kind in enumerate(statement.get_parameters(), start=1):
        value = BY_TYPE[kind.name.removesuffix("[]")]
        values.append(given.get(number, [value] if kind.kind == "array" else value))
    values[0] = workspace_id
    return values


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
