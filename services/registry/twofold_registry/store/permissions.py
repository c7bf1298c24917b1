"""Grants in Postgres."""

from collections.abc import Sequence
from datetime import datetime

from asyncpg import Record

from twofold_chassis import call
from twofold_chassis.postgres import Connection
from twofold_chassis.requests import Attempt
from twofold_registry.agents import AgentState
from twofold_registry.history import Item, ItemKind
from twofold_registry.permissions import Grant, Granted, GrantKey, GrantOrder, GrantQuery, RevokeOrder, Standing
from twofold_registry.resources import Answer, Page
from twofold_registry.revisions import Revision
from twofold_registry.store import rows
from twofold_registry.store.changes import Change, Changes, Deed
from twofold_registry.store.reads import Reads
from twofold_registry.store.statements import STATEMENTS
from twofold_registry.store.tenants import require_workspace
from twofold_registry.wire.permissions import grant_bytes, grant_json
from twofold_registry.workspaces import WorkspaceUnknown


class PostgresPermissions:
    """The truth about what was granted."""

    def __init__(self, reads: Reads, changes: Changes) -> None:
        self._reads = reads
        self._changes = changes

    async def list(self, query: GrantQuery, after: tuple[str, str], size: int, least: Revision | None) -> Page[Grant]:
        async def ask(connection: Connection) -> list[Grant]:
            found = await _listed(connection, query, after, size + 1)
            if not found:
                await require_workspace(connection, query.workspace_id)
            return found

        return rows.page(await self._reads.report(query.workspace_id, ask, least), size)

    async def grant(
        self, workspace_id: str, orders: Sequence[GrantOrder], attempt: Attempt, answer: Answer[Sequence[Granted]]
    ) -> bytes:
        async def make(change: Change) -> bytes:
            found = await _admitted(change, workspace_id, orders)
            due = [order for order, before in zip(orders, found, strict=True) if _differs(order, before)]
            if not due:
                return answer([Granted(grant, changed=False) for grant in found if grant], await change.head())
            stamp = await change.take_revision()
            made = {order.key: _made(order, stamp.at) for order in due}
            keys, expiries = list(made), [order.expires_at for order in due]
            values = (call.current().identity.actor, stamp.at, stamp.revision.number)
            await change.write("put_grants", workspace_id, *_ids(keys), expiries, *values)
            befores = dict(zip((order.key for order in orders), found, strict=True))
            deeds = [_deed("grant", key, befores[key], grant) for key, grant in made.items()]
            await change.record(stamp, workspace_id, deeds)
            stands = {key: made.get(key, before) for key, before in befores.items()}
            return answer([Granted(grant, key in made) for key, grant in stands.items() if grant], stamp.revision)

        return await self._changes.once(attempt, workspace_id, make)

    async def revoke(
        self,
        workspace_id: str,
        orders: Sequence[RevokeOrder],
        attempt: Attempt,
        answer: Answer[Sequence[bool]],
        *,
        wait: bool,
    ) -> bytes:
        async def make(change: Change) -> bytes:
            found = await _admitted(change, workspace_id, orders)
            due = [(order.key, before) for order, before in zip(orders, found, strict=True) if before]
            if not due:
                return answer([False] * len(orders), await change.head())
            stamp = await change.take_revision()
            await change.write("delete_grants", workspace_id, *_ids([key for key, _ in due]))
            deeds = [_deed("revoke", key, before, None) for key, before in due]
            await change.record(stamp, workspace_id, deeds, wait=wait)
            return answer([before is not None for before in found], stamp.revision)

        return await self._changes.once(attempt, workspace_id, make)


async def _admitted(
    change: Change, workspace_id: str, orders: Sequence[GrantOrder] | Sequence[RevokeOrder]
) -> list[Grant | None]:
    """The grant of each pair before the change, which is admitted."""
    if await change.lock_workspace(workspace_id) is None:
        raise WorkspaceUnknown(workspace_id)
    keys = [order.key for order in orders]
    found = await change.connection.fetch(STATEMENTS["pairs_with_grants"], workspace_id, *_ids(keys))
    standings = [_standing(row, key) for row, key in zip(found, keys, strict=True)]
    for order, standing in zip(orders, standings, strict=True):
        order.admit(standing)
    return [standing.grant for standing in standings]


def _standing(row: Record, key: GrantKey) -> Standing:
    state = AgentState(row["agent_state"]) if row["agent_state"] else None
    grant = rows.grant(row, key) if row["granted_at"] else None
    return Standing(row["user_lives"], state, grant, row["at"])


def _differs(order: GrantOrder, before: Grant | None) -> bool:
    return before is None or before.expires_at != order.expires_at


def _made(order: GrantOrder, at: datetime) -> Grant:
    order.check_expiry(at)  # once more: the time of the change is that of its revision
    return Grant(order.key, order.expires_at, call.current().identity.actor, at)


def _ids(keys: Sequence[GrantKey]) -> tuple[list[str], list[str]]:
    return [key.user_id for key in keys], [key.agent_id for key in keys]


def _deed(action: str, key: GrantKey, before: Grant | None, after: Grant | None) -> Deed:
    item = Item(ItemKind.PERMISSION, key.user_id, key.agent_id, grant_bytes(after) if after else None)
    return Deed(
        f"permission.{action}",
        key.audited_id,
        grant_json(before) if before else "",
        grant_json(after) if after else "",
        [item],
    )


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
