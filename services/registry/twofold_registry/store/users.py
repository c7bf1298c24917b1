"""Users in Postgres."""

from asyncpg import Record

from twofold_chassis.postgres import Connection
from twofold_chassis.refusals import AlreadyExists
from twofold_chassis.requests import Attempt
from twofold_registry.history import Item, ItemKind
from twofold_registry.resources import Answer, Edit, Page, Read, Stored
from twofold_registry.store import rows
from twofold_registry.store.changes import Change, Changes, Deed, unique
from twofold_registry.store.reads import Reads
from twofold_registry.store.statements import STATEMENTS
from twofold_registry.store.tenants import require_workspace
from twofold_registry.users import EmailTaken, IdentityTaken, User, UserExists, UserKey, UserUnknown
from twofold_registry.wire.users import user_bytes, user_json
from twofold_registry.workspaces import WorkspaceUnknown


class PostgresUsers:
    """The truth about users."""

    def __init__(self, reads: Reads, changes: Changes) -> None:
        self._reads = reads
        self._changes = changes

    async def get(self, key: UserKey) -> Read[Stored[User]]:
        return await self._reads.read(key.workspace_id, lambda connection: _got(connection, key))

    async def list(self, workspace_id: str, after: str, size: int) -> Page[Stored[User]]:
        async def ask(connection: Connection) -> list[Record]:
            found = await connection.fetch(STATEMENTS["list_users"], workspace_id, after, size + 1)
            if not found:
                await require_workspace(connection, workspace_id)
            return found

        found = await self._reads.read(workspace_id, ask)
        return rows.page([rows.user(row) for row in found], size)

    async def create(self, user: User, attempt: Attempt, answer: Answer[Stored[User]]) -> bytes:
        async def make(change: Change) -> bytes:
            if await change.lock_workspace(user.workspace_id) is None:
                raise WorkspaceUnknown(user.workspace_id)
            stamp = await change.take_revision()
            stored = Stored.new(user, stamp)
            with unique(_taken(user)):
                values = (*user.path, stamp.at, stamp.at, stamp.revision.number, *rows.user_values(user))
                await change.write("insert_user", *values)
            await change.record(stamp, user.workspace_id, [_deed("create", None, stored)])
            return answer(stored, stamp.revision)

        return await self._changes.once(attempt, user.workspace_id, make)

    async def update(self, key: UserKey, edit: Edit, etag: str, attempt: Attempt, answer: Answer[Stored[User]]) -> bytes:
        async def make(change: Change) -> bytes:
            before = await _locked(change, key)
            before.expect(etag)
            user = edit.applied(before.value)
            stamp = await change.take_revision()
            after = before.changed(user, stamp)
            with unique(_taken(user)):
                await change.write("update_user", *user.path, stamp.at, stamp.revision.number, *rows.user_values(user))
            await change.record(stamp, user.workspace_id, [_deed("update", before, after)])
            return answer(after, stamp.revision)

        return await self._changes.once(attempt, key.workspace_id, make)

    async def delete(self, key: UserKey, etag: str, attempt: Attempt, answer: Answer[None]) -> bytes:
        async def make(change: Change) -> bytes:
            before = await _locked(change, key)
            before.expect(etag)
            stamp = await change.take_revision()
            await change.write("delete_user", *before.value.path, stamp.at, stamp.revision.number)
            await change.record(stamp, key.workspace_id, [_deed("delete", before, None)])
            return answer(None, stamp.revision)

        return await self._changes.once(attempt, key.workspace_id, make)


async def _locked(change: Change, key: UserKey) -> Stored[User]:
    await change.lock_workspace(key.workspace_id)  # an unknown one has no users either
    return rows.user(await _row(change.connection, key))


async def _got(connection: Connection, key: UserKey) -> Read[Stored[User]]:
    row = await _row(connection, key)
    return rows.read(row, rows.user(row))


async def _row(connection: Connection, key: UserKey) -> Record:
    row = await connection.fetchrow(STATEMENTS["get_user"], key.workspace_id, key.user_id)
    if row is None:
        raise UserUnknown(key)
    return row


def _deed(action: str, before: Stored[User] | None, after: Stored[User] | None) -> Deed:
    user_id = told.value.user_id if (told := after or before) else ""
    item = Item(ItemKind.USER, user_id=user_id, after=user_bytes(after) if after else None)
    return Deed(f"user.{action}", user_id, user_json(before) if before else "", user_json(after) if after else "", [item])


def _taken(user: User) -> dict[str, AlreadyExists]:
    return {
        "user_ids_are_unique": UserExists(f"the user id {user.user_id!r} is taken", user_id=user.user_id),
        "emails_are_unique": EmailTaken(f"another user has the address {user.email}", user_id=user.user_id),
        "identities_are_unique": IdentityTaken(f"another user has the identity {user.identity_id!r}", user_id=user.user_id),
    }
