"""Preferences that expire are not there any more, on no path; and changes may name what their caller has seen."""

import asyncio
import re
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

import asyncpg
import grpc
import pytest
import redis.asyncio
from google.protobuf.timestamp_pb2 import Timestamp

from tests.memory.rooms import CALL_S, Memory, reason, refused
from tests.memory.test_preferences import L1, L2, get, known
from twofold.memory.v1.context_pb2 import InvokingRequest
from twofold.memory.v1.preference_pb2 import UpdatePreferencesRequest, UpdatePreferencesResponse
from twofold_chassis import postgres
from twofold_chassis.requests import Requests
from twofold_chassis.settings import DatabaseSettings
from twofold_memory import keys
from twofold_memory.preferences import Preference, PreferenceRecall, Preferences, UserKey
from twofold_memory.store.preferences import PostgresPreferences

Raw = redis.asyncio.Redis
Sql = asyncpg.Pool
HOUR = timedelta(hours=1)


async def update(
    room: Memory,
    workspace_id: str,
    values: Mapping[str, str],
    expiries: Mapping[str, timedelta] | None = None,
    *,
    expected: Mapping[str, int] | None = None,
    remove: Iterable[str] = (),
    request_id: str = "",
    at: datetime | None = None,
) -> UpdatePreferencesResponse:
    now = at or datetime.now(UTC)
    request = UpdatePreferencesRequest(
        workspace_id=workspace_id,
        user_id="ada",
        set=values,
        remove=remove,
        expected_versions=expected or {},
        request_id=request_id,
    )
    for name, offset in (expiries or {}).items():
        request.expire_times[name].FromDatetime(now + offset)
    return await room.preferences.UpdatePreferences(request, timeout=CALL_S)


async def pass_time(sql: "Sql[Any]", raw: Raw, workspace_id: str) -> None:
    """Whatever expires has expired, in Postgres and in the copy."""
    await sql.execute(
        "UPDATE memory.preferences SET expires_at = now() - interval '1 second'"
        " WHERE workspace_id = $1 AND expires_at IS NOT NULL",
        workspace_id,
    )
    name = keys.user_preferences(workspace_id, "ada")
    for key, value in (await raw.hgetall(name)).items():
        assert isinstance(value, bytes)
        await raw.hset(name, key, re.sub(rb"@\d+:", b"@1:", value, count=1))


async def test_what_has_expired_is_returned_by_no_path(
    room: Memory, workspace_id: str, sql: "Sql[Any]", raw_redis: Raw
) -> None:
    made = await update(room, workspace_id, {"a": "1", "b": "2"}, {"a": HOUR})
    (a, b) = made.preferences
    assert (a.HasField("expire_time"), b.HasField("expire_time")) == (True, False)
    for source in (L1, L1):
        answer = await get(room, workspace_id)
        assert (known(answer), answer.source) == ({"a": "1", "b": "2"}, source)
        assert answer.preferences[0].expire_time == a.expire_time
    await pass_time(sql, raw_redis, workspace_id)
    answer = await get(room, workspace_id)
    assert (known(answer), answer.source) == ({"b": "2"}, L1)
    context = await room.contexts.Invoking(InvokingRequest(workspace_id=workspace_id, user_id="ada"), timeout=CALL_S)
    assert [entry.key for entry in context.preferences] == ["b"]
    await raw_redis.delete(keys.user_preferences(workspace_id, "ada"))
    answer = await get(room, workspace_id)
    assert (known(answer), answer.source) == ({"b": "2"}, L2)


async def test_postgres_judges_by_its_own_clock(
    room: Memory, workspace_id: str, sql: "Sql[Any]", raw_redis: Raw, memory_database: DatabaseSettings
) -> None:
    """A worker whose clock is behind gets no more of it than others do."""
    await update(room, workspace_id, {"a": "1", "b": "2"}, {"a": HOUR})
    await pass_time(sql, raw_redis, workspace_id)
    pool = await postgres.open_pool(memory_database, name="preferences")
    try:
        kept = await PostgresPreferences(pool, Requests("memory")).read(UserKey(workspace_id, "ada"))
    finally:
        await postgres.close_pool(pool)
    assert [entry.key for entry in kept.entries] == ["b"]


async def test_a_copy_that_was_read_before_the_end_is_not_served_after_it() -> None:
    """By the clock of the worker, given and not waited for."""
    user, end = UserKey("ws", "ada"), datetime(2030, 1, 1, tzinfo=UTC)
    kept = Preferences([Preference("a", "1", 1, end - HOUR, end), Preference("b", "2", 1, end - HOUR)], 1)

    class Stores:
        async def versions(self, users: Any) -> list[int]:
            return [1 for _ in users]

        async def read(self, _: UserKey) -> Preferences:
            raise AssertionError("the copy is as new")

        async def look(self, _: UserKey) -> Preferences:
            return kept

        async def put(self, _: UserKey, __: Preferences) -> None:
            raise AssertionError("the copy is as new")

    now = end - timedelta(microseconds=1)
    recall = PreferenceRecall(Stores(), Stores(), confirm_s=60, clock=lambda: now)
    assert [entry.key for entry in (await recall.read(user)).preferences.entries] == ["a", "b"]
    now = end
    assert [entry.key for entry in (await recall.read(user)).preferences.entries] == ["b"]


async def test_setting_it_again_makes_it_stay_and_a_time_that_has_passed_makes_it_go(
    room: Memory, workspace_id: str
) -> None:
    first = await update(room, workspace_id, {"a": "1"}, {"a": HOUR})
    second = await update(room, workspace_id, {"a": "1"})
    assert second.version == first.version + 1
    assert not second.preferences[0].HasField("expire_time")
    third = await update(room, workspace_id, {"a": "1", "b": "2"}, {"a": -HOUR})
    assert known(third) == {"b": "2"}
    assert known(await get(room, workspace_id)) == {"b": "2"}
    moment = datetime.now(UTC)
    fourth = await update(room, workspace_id, {"c": "3"}, {"c": HOUR}, at=moment)
    assert (await update(room, workspace_id, {"c": "3"}, {"c": HOUR}, at=moment)).version == fourth.version


async def test_an_expired_one_does_not_count_and_setting_it_again_is_a_change(
    room: Memory, workspace_id: str, sql: "Sql[Any]", raw_redis: Raw
) -> None:
    values = {f"k{index}": "v" for index in range(200)}
    first = await update(room, workspace_id, values, {"k0": HOUR})
    await pass_time(sql, raw_redis, workspace_id)
    second = await update(room, workspace_id, {"one more": "v"})
    assert len(second.preferences) == 200
    third = await update(room, workspace_id, {"k0": "v"}, remove=["k1"], expected={"k0": 0})
    assert {entry.key: entry.version for entry in third.preferences}["k0"] == first.version + 2
    assert known(await get(room, workspace_id)) == known(third)


async def test_a_repeat_does_not_bring_back_what_has_expired_since(
    room: Memory, workspace_id: str, sql: "Sql[Any]", raw_redis: Raw
) -> None:
    at = datetime.now(UTC)
    first = await update(room, workspace_id, {"a": "1", "b": "2"}, {"a": HOUR}, request_id="r", at=at)
    assert set(known(first)) == {"a", "b"}
    answer = UpdatePreferencesResponse()
    answer.CopyFrom(first)
    answer.preferences[0].expire_time.CopyFrom(Timestamp(seconds=1))
    await sql.execute(
        "UPDATE memory.requests SET answer = $2 WHERE workspace_id = $1", workspace_id, answer.SerializeToString()
    )
    again = await update(room, workspace_id, {"a": "1", "b": "2"}, {"a": HOUR}, request_id="r", at=at)
    assert known(again) == {"b": "2"}


async def test_of_two_changes_that_expect_the_same_version_one_succeeds_and_the_other_changes_nothing(
    room: Memory, other_room: Memory, workspace_id: str
) -> None:
    """M15, for preferences."""
    seen = 0
    for round_ in range(5):
        told = await asyncio.gather(
            *(
                update((room, other_room)[index % 2], workspace_id, {"a": f"{round_}.{index}"}, expected={"a": seen})
                for index in range(4)
            ),
            return_exceptions=True,
        )
        (won,) = [answer for answer in told if isinstance(answer, UpdatePreferencesResponse)]
        lost = [reason(error) for error in told if isinstance(error, grpc.aio.AioRpcError)]
        assert lost == ["REASON_VERSION_MISMATCH"] * 3
        seen = won.preferences[0].version
        assert known(await get(room, workspace_id)) == known(won)


@pytest.mark.parametrize(("expected", "well"), [({"a": 1}, True), ({"a": 2}, False), ({"b": 0}, True), ({"b": 1}, False)])
async def test_what_is_expected_may_be_of_other_keys_than_are_changed(
    room: Memory, workspace_id: str, expected: Mapping[str, int], well: bool
) -> None:
    await update(room, workspace_id, {"a": "1"})
    if well:
        assert known(await update(room, workspace_id, {"c": "3"}, expected=expected)) == {"a": "1", "c": "3"}
        return
    async with refused(grpc.StatusCode.ABORTED, "REASON_VERSION_MISMATCH"):
        await update(room, workspace_id, {"c": "3"}, remove=["a"], expected=expected)
    assert known(await get(room, workspace_id)) == {"a": "1"}
