"""The copy of users' preferences in L1."""

from datetime import UTC, datetime, timedelta

from twofold_chassis.redis import RedisLink, Script, losable
from twofold_memory import keys
from twofold_memory.preferences import Preference, Preferences, UserKey

# A preference's key has no control characters, so this field can be none of them.
_VERSION_FIELD = "\0version"
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)


class RedisPreferences:
    """One hash a user: key → version:microseconds:value, the microseconds with @ and those of its expiry if it expires."""

    def __init__(self, link: RedisLink, *, ttl_s: float) -> None:
        self._link = link
        self._ttl_ms = round(ttl_s * 1000)
        self._put = Script.load("twofold_memory.cache.lua", "put_preferences")

    async def look(self, user: UserKey) -> Preferences | None:
        """The copy. None means there is none (that can be had), never that the user has no preferences."""
        reply = await losable(self._link.call("HGETALL", keys.user_preferences(*user)), otherwise=None)
        if not reply:
            return None
        fields = reply if isinstance(reply, dict) else dict(zip(reply[::2], reply[1::2], strict=True))
        version = fields.pop(_VERSION_FIELD.encode(), None)
        if version is None:
            return None
        try:
            entries = [_preference(key.decode(), value.decode()) for key, value in fields.items()]
            return Preferences(sorted(entries, key=lambda entry: entry.key.encode()), int(version))
        except (ValueError, OverflowError):
            return None  # written by another version, or by hand

    async def put(self, user: UserKey, preferences: Preferences) -> None:
        """Replaces the copy, unless it is as new. What cannot be done now, the next read does."""
        pairs = [part for entry in preferences.entries for part in (entry.key, _value(entry))]
        arguments: list[str | int] = [_VERSION_FIELD, preferences.version, self._ttl_ms, *pairs]
        await losable(self._link.run(self._put, (keys.user_preferences(*user),), arguments), otherwise=None)

    async def drop(self, user: UserKey, version: int) -> bool:
        """Puts an empty copy of this version in the place of every older one, and of late ones; whether that is sure."""
        arguments = (_VERSION_FIELD, version, self._ttl_ms)
        reply = await losable(self._link.run(self._put, (keys.user_preferences(*user),), arguments), otherwise=None)
        return reply is not None


def _value(entry: Preference) -> str:
    expiry = "" if entry.expires_at is None else f"@{(entry.expires_at - _EPOCH) // _MICROSECOND}"
    return f"{entry.version}:{(entry.updated_at - _EPOCH) // _MICROSECOND}{expiry}:{entry.value}"


def _preference(key: str, value: str) -> Preference:
    version, times, text = value.split(":", 2)
    micros, _, expiry = times.partition("@")
    expires_at = _EPOCH + int(expiry) * _MICROSECOND if expiry else None
    return Preference(key, text, int(version), _EPOCH + int(micros) * _MICROSECOND, expires_at)
