"""Grants in Postgres, and the facts that a check asks."""

from datetime import datetime

from asyncpg import Record

from twofold_chassis import call
from twofold_chassis.postgres import Connection
from twofold_chassis.requests import Attempt
from twofold_registry.agents import AgentUnknown
from twofold_registry.history import Item, ItemKind
from twofold_registry.permissions import Facts, Grant, GrantKey, GrantQuery
from twofold_registry.resources import Answer, Page, Read
from twofold_registry.revisions import Revision
from twofold_registry.store import rows
from twofold_registry.store.changes import Change, Changes, Deed
from twofold_registry.store.reads import Reads
from twofold_registry.store.statements import STATEMENTS
from twofold_registry.store.tenants import require_workspace
from twofold_registry.users import Role, UserUnknown
from twofold_registry.wire.permissions import grant_bytes, grant_json
from twofold_registry.workspaces import WorkspaceUnknown


class PostgresPermissions:
    """The truth about who may use what."""

    def __init__(self, reads: Reads, changes: Changes) -> None:
        self._reads = reads
        self._changes = changes

    async def facts(self, key: GrantKey, least: Revision | None) -> Read[Facts]:
        async def ask(connection: Connection) -> Read[Facts]:
            row = await connection.fetchrow(STATEMENTS["check_facts"], key.workspace_id, key.user_id, key.agent_id)
            assert row is not None
            return rows.read(row, _facts(row))

        read = await self._reads.read(key.workspace_id, ask)
        read.revision.satisfies(least)
        return read

    async def list(self, query: GrantQuery, after: tuple[str, str], size: int) -> Page[Grant]:
        async def ask(connection: Connection) -> list[Grant]:
            found = await _listed(connection, query, after, size + 1)
            if not found:
                await require_workspace(connection, query.workspace_id)
            return found

        return rows.page(await self._reads.read(query.workspace_id, ask), size)

    async def grant(self, key: GrantKey, expires_at: datetime | None, attempt: Attempt, answer: Answer[Grant]) -> bytes:
        async def make(change: Change) -> bytes:
            before = await _locked(change, key)
            stamp = await change.take_revision()
            grant = Grant(key, expires_at, call.current().identity.actor, stamp.at)
            values = (expires_at, grant.granted_by, grant.granted_at, stamp.revision.number)
            await change.write("put_grant", key.workspace_id, key.user_id, key.agent_id, *values)
            await change.record(stamp, key.workspace_id, [_deed("grant", key, before, grant)])
            return answer(grant, stamp.revision)

        return await self._changes.once(attempt, key.workspace_id, make)

    async def revoke(self, key: GrantKey, attempt: Attempt, answer: Answer[bool]) -> bytes:
        async def make(change: Change) -> bytes:
            before = await _locked(change, key)
            if before is None:
                return answer(False, await change.head())
            stamp = await change.take_revision()
            await change.write("delete_grant", key.workspace_id, key.user_id, key.agent_id)
            await change.record(stamp, key.workspace_id, [_deed("revoke", key, before, None)])
            return answer(True, stamp.revision)

        return await self._changes.once(attempt, key.workspace_id, make)


def _facts(row: Record) -> Facts:
    return Facts(
        workspace_lives=row["workspace_lives"],
        role=None if row["role"] is None else Role(row["role"]),
        agent_lives=row["agent_lives"],
        granted=row["granted"],
        expires_at=row["expires_at"],
        at=row["at"],
    )


def _deed(action: str, key: GrantKey, before: Grant | None, after: Grant | None) -> Deed:
    item = Item(ItemKind.PERMISSION, key.user_id, key.agent_id, grant_bytes(after) if after else None)
    return Deed(
        f"permission.{action}",
        key.audited_id,
        grant_json(before) if before else "",
        grant_json(after) if after else "",
        [item],
    )


async def _locked(change: Change, key: GrantKey) -> Grant | None:
    if await change.lock_workspace(key.workspace_id) is None:
        raise WorkspaceUnknown(key.workspace_id)
    row = await change.connection.fetchrow(STATEMENTS["pair_with_grant"], key.workspace_id, key.user_id, key.agent_id)
    assert row is not None
    if not row["user_lives"]:
        raise UserUnknown(key.user)
    if not row["agent_lives"]:
        raise AgentUnknown(key.agent)
    return None if row["granted_at"] is None else rows.grant(row, key)


async def _listed(connection: Connection, query: GrantQuery, after: tuple[str, str], size: int) -> list[Grant]:
    if query.user_id is not None:
        values = (query.workspace_id, *after, size, query.user_id, query.agent_id)
        found = await connection.fetch(STATEMENTS["list_grants_of_user"], *values)
    elif query.agent_id is not None:
        found = await connection.fetch(
            STATEMENTS["list_grants_of_agent"], query.workspace_id, after[0], size, query.agent_id
        )
    else:
        found = await connection.fetch(STATEMENTS["list_grants"], query.workspace_id, *after, size)
    return [rows.listed_grant(row) for row in found]
