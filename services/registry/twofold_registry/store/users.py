"""Users in Postgres."""

from collections.abc import Sequence
from datetime import timedelta

from twofold_chassis.refusals import AlreadyExists
from twofold_registry.history import Item, ItemKind
from twofold_registry.resources import Key, Order, Stored
from twofold_registry.store import rows
from twofold_registry.store.changes import Change, Changes
from twofold_registry.store.reads import Reads
from twofold_registry.store.resources import PostgresResources, Statements, Table
from twofold_registry.store.statements import STATEMENTS
from twofold_registry.users import EmailTaken, IdentityTaken, LastOwner, User, UserExists, UserKey, UserUnknown
from twofold_registry.wire.users import user_bytes, user_json
from twofold_registry.workspaces import Workspace


class PostgresUsers(PostgresResources[User]):
    """The truth about users."""

    def __init__(self, reads: Reads, changes: Changes, grace: timedelta) -> None:
        super().__init__(_TABLE, reads, changes, grace)

    async def _check(
        self, change: Change, workspace: Stored[Workspace] | None, before: User | None, after: User | None
    ) -> None:
        if before is None or not before.runs_workspace or (after is not None and after.runs_workspace):
            return
        if not await change.connection.fetchval(STATEMENTS["other_owner"], *before.path):
            raise LastOwner(f"the user {before.user_id!r} is the last owner", user_id=before.user_id)


def _items(before: Stored[User] | None, after: Stored[User] | None) -> Sequence[Item]:
    (one, *_) = [each for each in (after, before) if each]
    return [Item(ItemKind.USER, user_id=one.value.user_id, after=user_bytes(after) if after else None)]


def _taken(user: User) -> dict[str, AlreadyExists]:
    return {
        "user_ids_are_unique": UserExists(f"the user id {user.user_id!r} is taken", user_id=user.user_id),
        "emails_are_unique": EmailTaken(f"another user has the address {user.email}", user_id=user.user_id),
        "identities_are_unique": IdentityTaken(f"another user has the identity {user.identity_id!r}", user_id=user.user_id),
    }


def _unknown(key: Key) -> UserUnknown:
    return UserUnknown(UserKey(*key))


_TABLE = Table(
    kind="user",
    statements=Statements(
        get="get_user",
        batch_get="batch_get_users",
        insert="insert_user",
        update="update_user",
        delete="delete_user",
        undelete="undelete_user",
        purge="purge_user",
        listings={
            Order.ID: "list_users",
            Order.ID_DESC: "list_users_desc",
            Order.TIME: "list_users_by_time",
            Order.TIME_DESC: "list_users_by_time_desc",
        },
    ),
    stored=rows.user,
    values=rows.user_values,
    told=user_json,
    items=_items,
    unknown=_unknown,
    taken=_taken,
)
