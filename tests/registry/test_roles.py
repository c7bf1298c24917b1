"""What the service's own role may not do, and what nobody may."""

import asyncpg
import pytest

from tests.registry.stubs import Connection, Registry


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE registry.audit_entries SET actor = 'somebody else'",
        "DELETE FROM registry.audit_entries",
        "TRUNCATE registry.audit_entries",
        "UPDATE registry.usage_events SET messages = 0",
        "DELETE FROM registry.usage_events",
        "UPDATE registry.usage_keys SET body_hash = body_hash",
        "DELETE FROM registry.usage_keys",
        "DELETE FROM registry.usage_sums",
        "DELETE FROM registry.usage_totals",
        "UPDATE registry.usage_adjustments SET amount_micros = 1",
        "UPDATE registry.invoices SET line_count = 0",
        "UPDATE registry.invoice_lines SET amount_micros = 0",
        "DELETE FROM registry.invoice_lines",
        "SELECT registry.add_usage_partitions(12)",
        "DELETE FROM registry.users",
        "DELETE FROM registry.agents",
        "DELETE FROM registry.workspaces",
        "DELETE FROM registry.registry_head",
        "INSERT INTO registry.registry_head VALUES (false, 1, 1)",
        "CREATE TABLE registry.mine (id int)",
        "CREATE TABLE public.mine (id int)",
        "CREATE SCHEMA mine",
        "CREATE TEMPORARY TABLE mine (id int)",
        "ALTER TABLE registry.audit_entries DISABLE TRIGGER ALL",
        "DROP TRIGGER audit_is_append_only ON registry.audit_entries",
        "DROP TABLE registry.grants",
        "CREATE OR REPLACE FUNCTION registry.refuse_to_rewrite_audit() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN END'",
        "SELECT * FROM registry.alembic_version",
        "SET session_replication_role = replica",
    ],
)
async def test_the_services_role_only_does_what_the_service_does(application: Connection, statement: str) -> None:
    with pytest.raises(asyncpg.InsufficientPrivilegeError):
        await application.execute(statement)


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE registry.audit_entries SET actor = 'somebody else'",
        "DELETE FROM registry.audit_entries",
        "TRUNCATE registry.audit_entries",
    ],
)
async def test_not_even_the_owner_rewrites_the_audit(
    api: Registry, owner: Connection, workspace: str, statement: str
) -> None:
    before = await owner.fetchval("SELECT count(*) FROM registry.audit_entries")
    with pytest.raises(asyncpg.InsufficientPrivilegeError, match="append-only"):
        await owner.execute(statement)
    assert await owner.fetchval("SELECT count(*) FROM registry.audit_entries") == before > 0


async def test_there_is_one_head(owner: Connection) -> None:
    for statement in (
        "INSERT INTO registry.registry_head (epoch, revision) VALUES (1, 1)",
        "INSERT INTO registry.registry_head (singleton, epoch, revision) VALUES (false, 1, 1)",
    ):
        with pytest.raises(asyncpg.IntegrityConstraintViolationError):
            await owner.execute(statement)


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE registry.audit_heads SET seq = seq - 1",
        "UPDATE registry.audit_heads SET seq = 0, hash = decode(repeat('00', 32), 'hex')",
        "UPDATE registry.audit_heads SET hash = sha256('forged')",
        "UPDATE registry.audit_heads SET seq = seq + 1",
        "UPDATE registry.audit_heads SET workspace_id = 'another'",
        "INSERT INTO registry.audit_heads (workspace_id, seq) VALUES ('another', 5)",
        "DELETE FROM registry.audit_heads",
        "TRUNCATE registry.audit_heads",
    ],
)
async def test_the_end_of_a_chain_only_moves_on_not_even_the_owner_turns_it_back(
    api: Registry, owner: Connection, application: Connection, workspace: str, statement: str
) -> None:
    heads = "SELECT array_agg(h::text ORDER BY workspace_id) FROM registry.audit_heads h"
    before = await owner.fetchval(heads)
    with pytest.raises(asyncpg.InsufficientPrivilegeError, match="only moves on"):
        await owner.execute(statement)
    async with application.transaction():
        await application.execute("SELECT set_config('twofold.workspaces', $1, true)", workspace)
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            async with application.transaction():
                await application.execute(statement)
    assert await owner.fetchval(heads) == before
