"""From every earlier state of the schema to the newest: what was is there; an upgrade that is cut off has not begun."""

import asyncio
from collections.abc import AsyncIterator, Mapping
from pathlib import Path

import asyncpg
import grpc
import pytest
from alembic.config import Config
from alembic.script import ScriptDirectory

import twofold_registry
from tests.databases import own_database, settings_of_database
from tests.registry.stubs import Connection, Registry, refused, settings_of
from tests.waiting import somebody_waits
from twofold.errors.v1.reason_pb2 import Reason
from twofold.registry.v1 import agent_pb2, usage_pb2, user_pb2
from twofold_chassis import migrations
from twofold_chassis.settings import DatabaseSettings
from twofold_chassis.start import StartError
from twofold_cli.embedded.postgres import EmbeddedPostgres
from twofold_registry.app import registry
from twofold_registry.audit import FIRST_LINK, Entry, Link, link_hash
from twofold_registry.revisions import Revision

FOLDER = Path(twofold_registry.__file__).parent / "migrations"
WORKSPACES = ("acme", "beta")
# What a registry of the first revision wrote: two workspaces, people, one of them deleted, agents, grants, usage, audit.
FIRST = """
UPDATE registry.registry_head SET revision = 9;
INSERT INTO registry.workspaces VALUES
    ('acme', 'Acme', 'acme-agents', '{acme.test}', now(), now(), NULL, 1),
    ('beta', 'Beta', '', '{}', now(), now(), NULL, 2),
    ('gone', 'Gone', '', '{}', now(), now(), now(), 9);
INSERT INTO registry.users VALUES
    ('acme', 'ann', 'ann@acme.test', 'auth|1', 'Ann', 'owner', now(), now(), NULL, 3),
    ('acme', 'bob', 'bob@acme.test', '', 'Bob', 'member', now(), now(), now(), 8),
    ('beta', 'ann', 'ann@acme.test', 'auth|1', 'Ann', 'member', now(), now(), NULL, 4);
INSERT INTO registry.agents VALUES
    ('acme', 'helper', 'Helper', 'http://helper.acme-agents.svc.cluster.local', 'published', 'Be kind.', 'm', 'messages',
    20, 4000, 10000000, 60000000, now(), now(), NULL, 5);
INSERT INTO registry.grants VALUES ('acme', 'ann', 'helper', now() + interval '9 days', 'olga', now(), 6);
INSERT INTO registry.usage_events
    (workspace_id, event_id, user_id, agent_id, thread_id, event_time, messages, input_tokens, output_tokens, body_hash)
SELECT 'acme', 'event-' || i, 'ann', 'helper', 't', now() - i * interval '1 day', 1, i, 2 * i,
    decode(repeat('ab', 32), 'hex')
FROM generate_series(1, 100) AS i;
INSERT INTO registry.audit_entries
SELECT w, i * 2 + (w = 'beta')::int, i % 2, 'olga', 'user.update', 'user', 'ann', '{"naïve": "' || i || '"}', '{}',
    'r-' || i,
    '2026-01-01'::timestamptz + i * interval '1.000001 s'
FROM unnest(ARRAY['acme', 'beta']) AS w, generate_series(1, 50) AS i;
INSERT INTO registry.requests VALUES ('acme', 'r-1', 'GetUser', decode('00', 'hex'), decode('00', 'hex'), now());
"""
# What must be as it was, in whatever columns it is by now.
KEPT: Mapping[str, str] = {
    "workspaces": "SELECT workspace_id, display_name, namespace, deleted_at, revision FROM registry.workspaces ORDER BY 1",
    "users": "SELECT workspace_id, user_id, email, identity_id, role, deleted_at FROM registry.users ORDER BY 1, 2",
    "agents": "SELECT workspace_id, agent_id, display_name, url, state, instructions FROM registry.agents ORDER BY 1, 2",
    "grants": "SELECT workspace_id, user_id, agent_id, expires_at, granted_by FROM registry.grants ORDER BY 1, 2, 3",
    "usage": "SELECT workspace_id, event_id, user_id, event_time, input_tokens FROM registry.usage_events ORDER BY 1, 2",
    "audit": "SELECT workspace_id, revision, ordinal, actor, before_json, request_id, created_at FROM registry.audit_entries"
    " ORDER BY 1, 2, 3",
    "requests": "SELECT workspace_id, request_id, rpc, answer FROM registry.requests ORDER BY 1, 2",
    "head": "SELECT epoch, revision FROM registry.registry_head",
}


def revisions() -> list[str]:
    """All of them, from the first to the head."""
    config = Config()
    config.set_main_option("script_location", str(FOLDER))
    return [script.revision for script in ScriptDirectory.from_config(config).walk_revisions()][::-1]


async def upgrade(database: DatabaseSettings, revision: str = "head") -> None:
    await migrations.upgrade(database, schema="registry", folder=FOLDER, revision=revision)


async def plainly_upgrade(database: DatabaseSettings, revision: str, own_folder: Path) -> None:
    """As a version of then did, whose grants and policies speak of no table that came later: without them."""
    await migrations.upgrade(database, schema="registry", folder=own_folder, revision=revision)


@pytest.fixture
def without_grants(tmp_path: Path) -> Path:
    """The migrations alone."""
    folder = tmp_path / "migrations"
    folder.mkdir()
    for name in ("env.py", "versions"):
        (folder / name).symlink_to(FOLDER / name)
    return folder


@pytest.fixture
async def empty(postgres_server: EmbeddedPostgres) -> AsyncIterator[DatabaseSettings]:
    async with own_database(postgres_server, "old") as urls:
        yield settings_of_database(urls)


async def connected(database: DatabaseSettings) -> Connection:
    return await asyncpg.connect(database.owner_url.get_secret_value())


async def kept(owner: Connection) -> dict[str, list[asyncpg.Record]]:
    return {name: await owner.fetch(statement) for name, statement in KEPT.items()}


async def first_data(database: DatabaseSettings, folder: Path) -> dict[str, list[asyncpg.Record]]:
    """A database of the first revision, with everything in it."""
    await plainly_upgrade(database, "0001", folder)
    owner = await connected(database)
    await owner.execute(FIRST)
    found = await kept(owner)
    await owner.close()
    assert all(found.values())
    return found


def test_the_revisions_follow_each_other() -> None:
    assert revisions() == [f"{number:04}" for number in range(1, len(revisions()) + 1)]


@pytest.mark.parametrize(
    "stops", [[], [revision for revision in revisions() if revision != "0001"]], ids=["at once", "stepwise"]
)
async def test_everything_of_the_first_revision_is_there_in_the_newest(
    empty: DatabaseSettings, without_grants: Path, stops: list[str]
) -> None:
    before = await first_data(empty, without_grants)
    owner = await connected(empty)
    for revision in stops:
        await plainly_upgrade(empty, revision, without_grants)
        assert await owner.fetchval("SELECT version_num FROM registry.alembic_version") == revision
        assert await kept(owner) == before
    await upgrade(empty)
    assert await owner.fetchval("SELECT version_num FROM registry.alembic_version") == revisions()[-1]
    assert await kept(owner) == before
    hashes = await owner.fetch("SELECT event_id, body_hash FROM registry.usage_keys WHERE workspace_id = 'acme'")
    assert {row["event_id"]: row["body_hash"] for row in hashes} == {
        f"event-{number}": b"\xab" * 32 for number in range(1, 101)
    }, "each still refuses another body"
    await owner.close()


async def test_the_audit_of_the_first_revision_becomes_a_chain_that_holds(
    empty: DatabaseSettings, without_grants: Path
) -> None:
    await first_data(empty, without_grants)
    await upgrade(empty)
    owner = await connected(empty)
    for workspace_id in WORKSPACES:
        rows = await owner.fetch("SELECT * FROM registry.audit_entries WHERE workspace_id = $1 ORDER BY seq", workspace_id)
        link = FIRST_LINK
        for row in rows:
            assert row["prev_hash"] == link.hash
            link = Link(row["seq"], link_hash(link.hash, workspace_id, _entry(row)))
            assert row["hash"] == link.hash
        assert [row["seq"] for row in rows] == list(range(1, 51))
        assert [(row["revision"], row["ordinal"]) for row in rows] == sorted(
            (row["revision"], row["ordinal"]) for row in rows
        )
        head = await owner.fetchrow("SELECT seq, hash FROM registry.audit_heads WHERE workspace_id = $1", workspace_id)
        assert head is not None
        assert tuple(head) == link
    await owner.close()


def _entry(row: asyncpg.Record) -> Entry:
    names = ("seq", "revision", "ordinal", "actor", "action", "resource_kind", "resource_id", "before_json", "after_json")
    return Entry(*(row[name] for name in (*names, "request_id", "created_at")))


async def test_a_registry_goes_on_with_what_the_first_revision_left(empty: DatabaseSettings, without_grants: Path) -> None:
    before = await first_data(empty, without_grants)
    async with (
        registry(settings_of(empty)) as running,
        grpc.aio.insecure_channel(f"127.0.0.1:{running.port}") as channel,
    ):
        api = Registry(channel)
        assert (await api.check("acme", "ann", "helper")).allowed
        assert not (await api.check("beta", "ann", "helper")).allowed
        assert not (await api.check("acme", "bob", "helper")).allowed
        agent = (await api.agents.GetAgent(agent_pb2.GetAgentRequest(workspace_id="acme", agent_id="helper"))).agent
        assert agent.settings.instructions == "Be kind."
        (head,) = before["head"]
        # Of this history still: a migration rewrites nothing.
        assert (await api.check("acme", "ann", "helper", Revision(head["epoch"], 9).token())).allowed
        with refused(grpc.StatusCode.ABORTED, Reason.REASON_HISTORY_CHANGED):
            await api.check("acme", "ann", "helper", Revision(head["epoch"] - 1, 9).token())
        await api.make_user("acme", "cyd")
        (*_, last) = await api.trail("acme")
        assert (last.seq, last.revision) == (51, 10)
        users = await api.users.ListUsers(user_pb2.ListUsersRequest(workspace_id="acme"))
        assert [user.user_id for user in users.users] == ["ann", "cyd"]
        request = usage_pb2.GetUsageRequest(workspace_id="acme")
        request.start_time.FromSeconds(agent.create_time.seconds - 365 * 86400)
        request.end_time.FromSeconds(agent.create_time.seconds + 86400)
        assert "5050" in str(await api.usage.GetUsage(request)), "all input tokens of then"


async def test_row_level_security_holds_for_what_was_there(empty: DatabaseSettings, without_grants: Path) -> None:
    await first_data(empty, without_grants)
    await upgrade(empty)
    application = await asyncpg.connect(empty.url.get_secret_value())
    tables = ("workspaces", "users", "audit_entries", "audit_heads", "usage_events")
    for table in tables:
        assert await application.fetchval(f"SELECT count(*) FROM registry.{table}") == 0
    async with application.transaction():
        await application.execute("SELECT set_config('twofold.workspaces', 'beta', true)")
        for table in tables:
            assert await application.fetchval(f"SELECT count(*) FROM registry.{table} WHERE workspace_id <> 'beta'") == 0
        assert await application.fetchval("SELECT count(*) FROM registry.audit_entries") == 50
    await application.close()


async def schema_of(owner: Connection) -> list[asyncpg.Record]:
    """All tables and columns."""
    return await owner.fetch(
        "SELECT table_name, column_name, data_type, is_nullable FROM information_schema.columns"
        " WHERE table_schema = 'registry' ORDER BY 1, 2"
    )


async def test_a_migration_that_fails_leaves_the_former_state(empty: DatabaseSettings, without_grants: Path) -> None:
    before = await first_data(empty, without_grants)
    owner = await connected(empty)
    schema = await schema_of(owner)
    # The chain of the audit is made, and then this is in the way.
    await owner.execute("CREATE TABLE registry.audit_heads (other int)")
    with pytest.raises(StartError, match="cannot migrate"):
        await upgrade(empty)
    await owner.execute("DROP TABLE registry.audit_heads")
    assert await schema_of(owner) == schema
    assert await kept(owner) == before
    assert await owner.fetchval("SELECT version_num FROM registry.alembic_version") == "0001"
    await upgrade(empty)
    assert await kept(owner) == before
    await owner.close()


async def test_a_migration_in_which_postgres_is_killed_leaves_the_former_state(
    own_postgres: EmbeddedPostgres, without_grants: Path
) -> None:
    database = settings_of_database(own_postgres)
    before = await first_data(database, without_grants)
    owner = await connected(database)
    schema = await schema_of(owner)
    # Whoever reads a table holds up its migration, in the middle of all.
    reader = owner.transaction()
    await reader.start()
    await owner.execute("LOCK TABLE registry.agents IN ACCESS SHARE MODE")
    upgrading = asyncio.create_task(upgrade(database))
    await somebody_waits(owner)
    await own_postgres.kill()
    with pytest.raises(StartError):
        await upgrading
    await own_postgres.start()
    owner = await connected(database)
    assert await schema_of(owner) == schema
    assert await kept(owner) == before
    await upgrade(database)
    assert await kept(owner) == before
    await owner.close()
