"""Preferences: what a user wants to be remembered. A copy answers only if Postgres confirms its version."""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import NamedTuple, Protocol

from twofold_chassis.gathering import Gathering
from twofold_chassis.refusals import Overloaded, Reason, ResourceExhausted, StoreUnavailable, VersionMismatch
from twofold_memory.threads import Completeness, Source

_BATCH_MAX = 256
_WAITING_MAX = 4096
PREFERENCES_MAX = 200
VALUE_BYTES_MAX = 4096


class TooManyPreferences(ResourceExhausted):
    """A user may have so many preferences and no more."""

    reason = Reason.REASON_TOO_MANY


class UserKey(NamedTuple):
    """Whose preferences: a user of a workspace."""

    workspace_id: str
    user_id: str


@dataclass(frozen=True, slots=True)
class Preference:
    """One preference; `version` is that of the change that set it. From `expires_at` on it is not there any more."""

    key: str
    value: str
    version: int
    updated_at: datetime
    expires_at: datetime | None = None


@dataclass(frozen=True, slots=True)
class Preferences:
    """All preferences of a user, by key, at a version (0: there never was one)."""

    entries: Sequence[Preference] = ()
    version: int = 0

    def at(self, now: datetime) -> "Preferences":
        """Without those that have expired by then."""
        return replace(self, entries=[entry for entry in self.entries if entry.expires_at is None or entry.expires_at > now])


@dataclass(frozen=True, slots=True)
class Recalled:
    """Preferences, and what they may be relied on for."""

    preferences: Preferences
    source: Source
    completeness: Completeness


@dataclass(frozen=True, slots=True)
class Change:
    """Preferences to set and keys to remove; no key in both. Keys to set may expire.

    `expected`: versions of preferences as the caller has seen them, 0 for one that was not there.
    """

    set: Mapping[str, str]
    remove: Sequence[str]
    expire_times: Mapping[str, datetime] = field(default_factory=dict)
    expected: Mapping[str, int] = field(default_factory=dict)


class Store(Protocol):
    """The truth."""

    async def versions(self, users: Sequence[UserKey]) -> list[int]:
        """The version of each user's preferences; 0 if there never was one."""
        ...

    async def read(self, user: UserKey) -> Preferences:
        """All preferences, in one snapshot."""
        ...


class Cache(Protocol):
    """The copy. Never raises."""

    async def look(self, user: UserKey) -> Preferences | None:
        """The copy; None if there is none."""
        ...

    async def put(self, user: UserKey, preferences: Preferences) -> None:
        """Replaces the copy, unless it is as new."""
        ...


class PreferenceRecall:
    """The one way to a user's preferences."""

    def __init__(
        self, store: Store, cache: Cache, *, confirm_s: float, clock: Callable[[], datetime] = lambda: datetime.now(UTC)
    ) -> None:
        self._store = store
        self._cache = cache
        self._confirm_s = confirm_s
        self._clock = clock
        self._versions: Gathering[UserKey, int] = Gathering(
            store.versions, batch_max=_BATCH_MAX, waiting_max=_WAITING_MAX, lanes=2
        )

    async def read(self, user: UserKey) -> Recalled:
        """All that have not expired. Raises StoreUnavailable if Postgres does not answer and there is no copy."""
        recalled = await self._recalled(user)
        return replace(recalled, preferences=recalled.preferences.at(self._clock()))

    async def changed(self, user: UserKey, preferences: Preferences) -> None:
        """Tells the copy of a committed change."""
        await self._cache.put(user, preferences)

    async def drain(self) -> None:
        """Returns when no question is under way."""
        await self._versions.drain()

    async def _recalled(self, user: UserKey) -> Recalled:
        confirmation = self._versions.ask(user)
        copy = await self._cache.look(user)
        if copy is None:
            return await self._from_store(user)
        try:
            version = await asyncio.wait_for(confirmation, self._confirm_s)
        except (TimeoutError, StoreUnavailable, Overloaded):
            return Recalled(copy, Source.L1, Completeness.UNVERIFIED)
        if copy.version >= version:
            return Recalled(copy, Source.L1, Completeness.COMPLETE)
        return await self._from_store(user)

    async def _from_store(self, user: UserKey) -> Recalled:
        preferences = await self._store.read(user)
        if preferences.version:
            await self._cache.put(user, preferences)
        return Recalled(preferences, Source.L2, Completeness.COMPLETE)


def check_count(count: int) -> None:
    """Refuses more preferences than a user may have."""
    if count > PREFERENCES_MAX:
        raise TooManyPreferences(f"a user may have {PREFERENCES_MAX} preferences, this change would make them {count}")


def check_versions(current: Mapping[str, int], expected: Mapping[str, int]) -> None:
    """Refuses who has seen other versions than the current ones; a preference that is not there has version 0."""
    for key, version in expected.items():
        now = current.get(key, 0)
        if now != version:
            raise VersionMismatch(
                f"the version of the preference {key!r} is {now}, not {version}", key=key, version=str(now)
            )
