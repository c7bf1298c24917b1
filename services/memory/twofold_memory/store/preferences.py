"""Preferences in Postgres."""

from collections.abc import Callable, Sequence

from twofold_chassis import postgres
from twofold_chassis.postgres import Connection, Pool
from twofold_chassis.requests import Attempt, Requests
from twofold_memory.preferences import Change, Preference, Preferences, UserKey, check_count, check_versions
from twofold_memory.store.statements import STATEMENTS

Answer = Callable[[Preferences], bytes]


class PostgresPreferences:
    """The truth about what users prefer."""

    def __init__(self, pool: Pool, requests: Requests) -> None:
        self._pool = pool
        self._requests = requests

    async def versions(self, users: Sequence[UserKey]) -> list[int]:
        """The version of each user's preferences; 0 if there never was one."""
        async with postgres.connection(self._pool) as connection:
            rows = await connection.fetch(
                STATEMENTS["preference_versions"], [user.workspace_id for user in users], [user.user_id for user in users]
            )
        found = {row["place"]: row["version"] for row in rows}
        return [found.get(place, 0) for place in range(1, len(users) + 1)]

    async def read(self, user: UserKey) -> Preferences:
        """All preferences, in one snapshot."""
        async with postgres.connection(self._pool) as connection:
            return await _read(connection, user)

    async def change(
        self, attempt: Attempt, user: UserKey, change: Change, answer: Answer
    ) -> tuple[bytes, Preferences | None]:
        """Sets and removes, all or none; returns the answer and, if anything was done now, all preferences after it.

        Raises TooManyPreferences, VersionMismatch, RequestReused.
        """
        changed: Preferences | None = None

        async def make() -> bytes:
            nonlocal changed
            changed = await _change(connection, user, change)
            return answer(changed)

        async with postgres.transaction(self._pool) as connection:
            return await self._requests.once(connection, attempt, make), changed

    async def sweep(self, count: int) -> int:
        """Removes some that have expired; how many."""
        async with postgres.transaction(self._pool) as connection:
            return len(await connection.fetch(STATEMENTS["sweep_preferences"], count))


async def _change(connection: Connection, user: UserKey, change: Change) -> Preferences:
    version = await connection.fetchval(STATEMENTS["lock_preferences"], *user) + 1
    # An expired one is not there: it has no version, and setting it again is a change.
    await connection.execute(STATEMENTS["remove_expired_preferences"], *user)
    if change.expected:
        seen = await connection.fetch(STATEMENTS["versions_of_preferences"], *user, list(change.expected))
        check_versions({row["key"]: row["version"] for row in seen}, change.expected)
    removed = await connection.fetch(STATEMENTS["remove_preferences"], *user, list(change.remove))
    names, values = list(change.set.keys()), list(change.set.values())
    expiries = [change.expire_times.get(name) for name in names]
    changed = await connection.fetch(STATEMENTS["set_preferences"], *user, names, values, expiries, version)
    if removed or changed:
        await connection.execute(STATEMENTS["set_preference_version"], *user, version)
    preferences = await _read(connection, user)
    check_count(len(preferences.entries))
    return preferences


async def _read(connection: Connection, user: UserKey) -> Preferences:
    rows = await connection.fetch(STATEMENTS["preferences"], *user)
    if not rows:
        return Preferences()
    entries = [
        Preference(row["key"], row["value"], row["version"], row["updated_at"], row["expires_at"])
        for row in rows
        if row["key"] is not None
    ]
    return Preferences(entries, rows[0]["version_of_all"])
