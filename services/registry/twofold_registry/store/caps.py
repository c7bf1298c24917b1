"""Caps in Postgres. Usage is summed where it is recorded; here it is compared, and who follows is told of crossings."""

from datetime import date
from typing import NamedTuple

from asyncpg import Record

from twofold_chassis import postgres
from twofold_chassis.postgres import Connection, Pool
from twofold_chassis.requests import Attempt
from twofold_registry.caps import Cap, Caps, CapState, StoredCaps, Told, Used
from twofold_registry.history import Item, ItemKind
from twofold_registry.resources import Answer, Read
from twofold_registry.revisions import Revision
from twofold_registry.store import rows
from twofold_registry.store.changes import Change, Changes, Deed
from twofold_registry.store.reads import Reads
from twofold_registry.store.statements import STATEMENTS
from twofold_registry.sweeps import one_by_one
from twofold_registry.wire.caps import caps_json
from twofold_registry.workspaces import WorkspaceUnknown


class PostgresCaps:
    """The truth about caps."""

    def __init__(self, reads: Reads, changes: Changes, system: Pool) -> None:
        self._reads = reads
        self._changes = changes
        self._system = system

    async def get(self, workspace_id: str, least: Revision | None) -> Read[StoredCaps]:
        async def ask(connection: Connection) -> Read[StoredCaps]:
            row = await _row(connection, workspace_id)
            if not row["lives"]:
                raise WorkspaceUnknown(workspace_id)
            return rows.read(row, _stored(workspace_id, row))

        return await self._reads.read(workspace_id, ask, least)

    async def set(self, caps: Caps, etag: str, attempt: Attempt, answer: Answer[StoredCaps]) -> bytes:
        async def make(change: Change) -> bytes:
            await require_locked(change, caps.workspace_id)
            months = await months_of(change, caps.workspace_id)
            await lock_month(change, caps.workspace_id, months.current)
            before = await standing(change.connection, caps.workspace_id)
            before.expect(etag)
            used = (await standing(change.connection, caps.workspace_id, caps.currency)).used
            stamp = await change.take_revision()
            told = Told(caps.state(used), used.month)
            after = StoredCaps(caps, used, told, stamp.at, stamp.revision.number)
            await change.write("put_caps", *_values(after))
            deeds = [_deed("set", caps_json(before) if before.told else "", after)]
            if (before.told or Told(CapState.NONE, told.month)).is_crossed_by(told.state, told.month):
                deeds.append(_crossing(before, after))
            await change.record(stamp, caps.workspace_id, deeds)
            return answer(after, stamp.revision)

        return await self._changes.once(attempt, caps.workspace_id, make)

    async def renew(self, at_most: int) -> int:
        """Takes back what was told of months that are over, of at most so many workspaces; returns of how many.

        For a sweep: the first event of the new month does the same.
        """
        async with postgres.connection(self._system) as connection:
            found = await connection.fetch(STATEMENTS["caps_of_past_months"], at_most)
        await one_by_one([row["workspace_id"] for row in found], self._renew)
        return len(found)

    async def _renew(self, workspace_id: str) -> None:
        async def make(change: Change) -> bytes:
            if await change.lock_workspace(workspace_id) is not None:
                await settle(change, workspace_id)
            return b""

        await self._changes.once(Attempt(workspace_id, "RenewCaps", None, b""), workspace_id, make)


class Months(NamedTuple):
    """The current month by the database's clock, and the first one that is open; None if none was ever closed."""

    current: date
    open: date | None


async def months_of(change: Change, workspace_id: str) -> Months:
    """The months of a workspace that is locked."""
    row = await change.connection.fetchrow(STATEMENTS["billing_months"], workspace_id)
    assert row is not None
    return Months(row["current_month"], row["open_month"])


async def require_locked(change: Change, workspace_id: str) -> None:
    """Locks the workspace. Raises WorkspaceUnknown."""
    if await change.lock_workspace(workspace_id) is None:
        raise WorkspaceUnknown(workspace_id)


async def require_past_locked(change: Change, workspace_id: str) -> None:
    """Locks the workspace, also one that is deleted: what it used is owed. Raises WorkspaceUnknown."""
    if not await change.lock_past_workspace(workspace_id):
        raise WorkspaceUnknown(workspace_id)


async def lock_month(change: Change, workspace_id: str, month: date) -> None:
    """Waits for those who are past the gate of a month and keeps all others waiting: its sums stand still until the end."""
    await change.write("lock_month", workspace_id, month)


async def standing(connection: Connection, workspace_id: str, currency: str | None = None) -> StoredCaps:
    """The caps and how the current month stands, its money in their currency or in another. Raises WorkspaceUnknown."""
    return _stored(workspace_id, await _row(connection, workspace_id, currency))


async def settle(change: Change, workspace_id: str) -> None:
    """Tells those who follow if a cap was crossed. The last lock of a change, whose workspace is locked."""
    stored = await standing(change.connection, workspace_id)
    if stored.is_crossed:
        stamp = await change.take_revision()
        await change.record(stamp, workspace_id, [await told(change, stored)])


async def told(change: Change, stored: StoredCaps) -> Deed:
    """Notes that those who follow are told of a crossing at the revision that is taken; returns the deed to be recorded."""
    await change.write("cross_caps", stored.caps.workspace_id, stored.state.value, stored.used.month)
    return _crossing(stored, stored)


async def _row(connection: Connection, workspace_id: str, currency: str | None = None) -> Record:
    row = await connection.fetchrow(STATEMENTS["caps_and_use"], workspace_id, currency)
    if row is None:
        raise WorkspaceUnknown(workspace_id)
    return row


def _stored(workspace_id: str, row: Record) -> StoredCaps:
    used = Used(row["current_month"], row["messages"], int(row["tokens"]), row["cost_micros"])
    if row["state"] is None or not row["lives"]:  # nobody follows the caps of one that is deleted
        return StoredCaps(Caps(workspace_id), used)
    caps = Caps(
        workspace_id=workspace_id,
        messages=Cap(row["messages_soft"], row["messages_hard"]),
        tokens=Cap(row["tokens_soft"], row["tokens_hard"]),
        cost_micros=Cap(row["cost_soft_micros"], row["cost_hard_micros"]),
        currency=row["currency"],
    )
    return StoredCaps(caps, used, Told(CapState(row["state"]), row["month"]), row["updated_at"], row["revision"])


def _values(stored: StoredCaps) -> tuple[object, ...]:
    caps = stored.caps
    return (
        caps.workspace_id,
        caps.messages.soft,
        caps.messages.hard,
        caps.tokens.soft,
        caps.tokens.hard,
        caps.cost_micros.soft,
        caps.cost_micros.hard,
        caps.currency,
        stored.state.value,
        stored.used.month,
        stored.set_at,
        stored.revision,
    )


def _crossing(before: StoredCaps, after: StoredCaps) -> Deed:
    return _deed("cross", caps_json(before, told=True), after)


def _deed(action: str, before: str, after: StoredCaps) -> Deed:
    return Deed(f"caps.{action}", after.caps.workspace_id, before, caps_json(after), [Item(ItemKind.PLAN)])
