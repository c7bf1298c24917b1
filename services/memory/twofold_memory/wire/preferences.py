"""Preferences on the wire."""

from collections.abc import Sequence
from datetime import UTC, datetime

from twofold.memory.v1 import message_pb2
from twofold.memory.v1 import preference_pb2 as pb
from twofold_chassis import fields
from twofold_chassis.refusals import InvalidField
from twofold_memory.preferences import PREFERENCES_MAX, VALUE_BYTES_MAX, Change, Preference, Preferences, Recalled, UserKey


def user_key(workspace_id: str, user_id: str) -> UserKey:
    """Whose preferences a request is about."""
    return UserKey(fields.identifier(workspace_id, "workspace_id"), fields.identifier(user_id, "user_id"))


def change(request: pb.UpdatePreferencesRequest) -> Change:
    """What is to be set and removed."""
    count = len(request.set) + len(request.remove)
    if not 1 <= count <= PREFERENCES_MAX:
        raise InvalidField("set", f"with remove there are {count} entries, must be 1 to {PREFERENCES_MAX}")
    values = {
        fields.identifier(key, "set.key"): fields.text(value, f"set[{key!r}]", bytes_max=VALUE_BYTES_MAX)
        for key, value in request.set.items()
    }
    removed = [fields.identifier(key, f"remove[{index}]") for index, key in enumerate(request.remove)]
    for index, key in enumerate(removed):
        if key in values:
            raise InvalidField(f"remove[{index}]", "is also in set")
    for key in request.expire_times:
        if key not in values:
            raise InvalidField(f"expire_times[{key!r}]", "is not in set")
    expiries = {key: fields.moment(time, f"expire_times[{key!r}]") for key, time in request.expire_times.items()}
    return Change(values, removed, expiries, _expected(request))


def _expected(request: pb.UpdatePreferencesRequest) -> dict[str, int]:
    if len(request.expected_versions) > PREFERENCES_MAX:
        raise InvalidField(
            "expected_versions", f"has {len(request.expected_versions)} entries, at most {PREFERENCES_MAX} are allowed"
        )
    return {
        fields.identifier(key, "expected_versions.key"): fields.whole(
            version, f"expected_versions[{key!r}]", least=0, most=2**63 - 1
        )
        for key, version in request.expected_versions.items()
    }


def messages(preferences: Sequence[Preference]) -> list[pb.Preference]:
    """Preferences as they go out."""
    return [
        pb.Preference(
            key=entry.key,
            value=entry.value,
            version=entry.version,
            update_time=fields.timestamp(entry.updated_at),
            expire_time=None if entry.expires_at is None else fields.timestamp(entry.expires_at),
        )
        for entry in preferences
    ]


def get_response(recalled: Recalled) -> pb.GetPreferencesResponse:
    """All preferences, and what they may be relied on for."""
    return pb.GetPreferencesResponse(
        preferences=messages(recalled.preferences.entries),
        version=recalled.preferences.version,
        source=message_pb2.ReadSource.ValueType(recalled.source.value),
        completeness=message_pb2.Completeness.ValueType(recalled.completeness.value),
    )


def update_response(preferences: Preferences) -> pb.UpdatePreferencesResponse:
    """All preferences after a change."""
    return pb.UpdatePreferencesResponse(preferences=messages(preferences.entries), version=preferences.version)


def repeated(answer: bytes, now: datetime) -> pb.UpdatePreferencesResponse:
    """An answer as it was written down, perhaps a day ago, without what has expired since."""
    response = pb.UpdatePreferencesResponse.FromString(answer)
    alive = [entry for entry in response.preferences if not entry.HasField("expire_time") or _is_to_come(entry, now)]
    del response.preferences[:]
    response.preferences.extend(alive)
    return response


def _is_to_come(entry: pb.Preference, now: datetime) -> bool:
    return entry.expire_time.ToDatetime(tzinfo=UTC) > now
