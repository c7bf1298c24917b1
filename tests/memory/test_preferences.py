"""Preferences: durable, never mixed up, and from the copy only when Postgres confirms it (M16)."""

import asyncio
from collections.abc import Iterable, Mapping

import grpc
import redis.asyncio

from tests.memory.rooms import CALL_S, Memory, refused
from twofold.memory.v1.message_pb2 import Completeness, ReadSource
from twofold.memory.v1.preference_pb2 import (
    GetPreferencesRequest,
    GetPreferencesResponse,
    UpdatePreferencesRequest,
    UpdatePreferencesResponse,
)
from twofold_memory import keys

L1, L2 = ReadSource.READ_SOURCE_L1, ReadSource.READ_SOURCE_L2
Raw = redis.asyncio.Redis


async def update(
    room: Memory,
    workspace_id: str,
    values: Mapping[str, str] | None = None,
    remove: Iterable[str] = (),
    *,
    request_id: str = "",
    user_id: str = "ada",
) -> UpdatePreferencesResponse:
    request = UpdatePreferencesRequest(
        workspace_id=workspace_id, user_id=user_id, set=values or {}, remove=remove, request_id=request_id
    )
    return await room.preferences.UpdatePreferences(request, timeout=CALL_S)


async def get(room: Memory, workspace_id: str, *, user_id: str = "ada") -> GetPreferencesResponse:
    return await room.preferences.GetPreferences(
        GetPreferencesRequest(workspace_id=workspace_id, user_id=user_id), timeout=CALL_S
    )


def known(answer: GetPreferencesResponse | UpdatePreferencesResponse) -> dict[str, str]:
    return {entry.key: entry.value for entry in answer.preferences}


async def test_two_writers_of_different_keys_both_survive(room: Memory, other_room: Memory, workspace_id: str) -> None:
    """M16: also across workers, and the copy is not the older of the two."""
    await asyncio.gather(
        *(
            (room, other_room)[index % 2].preferences.UpdatePreferences(
                UpdatePreferencesRequest(workspace_id=workspace_id, user_id="ada", set={f"k{index:02}": f"v{index}"}),
                timeout=CALL_S,
            )
            for index in range(24)
        )
    )
    expected = {f"k{index:02}": f"v{index}" for index in range(24)}
    for worker in (room, other_room, room):
        answer = await get(worker, workspace_id)
        assert known(answer) == expected
        assert list(known(answer)) == sorted(expected)
        assert (answer.version, answer.completeness) == (24, Completeness.COMPLETENESS_COMPLETE)
    assert (await get(room, workspace_id)).source == L1


async def test_m16_they_survive_the_loss_of_the_copy_and_an_old_copy_put_back(
    room: Memory, workspace_id: str, raw_redis: Raw
) -> None:
    """M16: FLUSHALL, 31 days, a lagging replica."""
    await update(room, workspace_id, {"a": "1", "b": "2"})
    await get(room, workspace_id)
    name = keys.user_preferences(workspace_id, "ada")
    assert 0 < await raw_redis.pttl(name) <= 30 * 86_400_000
    old = await raw_redis.dump(name) or b""
    await update(room, workspace_id, {"a": "3"}, ["b"])
    await raw_redis.delete(name)
    answer = await get(room, workspace_id)
    assert (known(answer), answer.source) == ({"a": "3"}, L2)
    await raw_redis.restore(name, 60_000, old, replace=True)
    answer = await get(room, workspace_id)
    assert (known(answer), answer.source) == ({"a": "3"}, L2)
    assert (await get(room, workspace_id)).source == L1


async def test_a_copy_that_cannot_be_read_is_none(room: Memory, workspace_id: str, raw_redis: Raw) -> None:
    await update(room, workspace_id, {"a": "1"})
    name = keys.user_preferences(workspace_id, "ada")
    await raw_redis.hset(name, "a", "of another version")
    assert known(await get(room, workspace_id)) == {"a": "1"}
    await raw_redis.delete(name)
    await raw_redis.set(name, "x", px=60_000)
    assert known(await get(room, workspace_id)) == {"a": "1"}
    await raw_redis.delete(name)


async def test_a_partial_update_leaves_the_rest_as_it_is_and_versions_say_what_changed(
    room: Memory, workspace_id: str
) -> None:
    first = await update(room, workspace_id, {"a": "1", "b": "2", "c": "🙂\n:"})
    second = await update(room, workspace_id, {"a": "1", "b": "9"}, ["c", "never there"])
    assert known(second) == {"a": "1", "b": "9"}
    versions = {entry.key: entry.version for entry in second.preferences}
    assert versions == {"a": first.version, "b": second.version}
    unchanged = await update(room, workspace_id, {"a": "1"}, ["c"])
    assert unchanged.version == second.version
    assert known(await get(room, workspace_id)) == {"a": "1", "b": "9"}


async def test_a_repeat_gets_the_first_answer_and_changes_nothing(
    room: Memory, other_room: Memory, workspace_id: str
) -> None:
    first = await update(room, workspace_id, {"a": "1"}, request_id="r")
    await update(room, workspace_id, {"a": "2"})
    assert await update(other_room, workspace_id, {"a": "1"}, request_id="r") == first
    assert known(await get(room, workspace_id)) == {"a": "2"}
    async with refused(grpc.StatusCode.ALREADY_EXISTS, "REASON_REQUEST_REUSED"):
        await update(room, workspace_id, {"a": "3"}, request_id="r")


async def test_a_user_may_have_200_and_the_change_that_goes_beyond_is_refused_whole(room: Memory, workspace_id: str) -> None:
    await update(room, workspace_id, {f"k{index}": "v" for index in range(200)})
    async with refused(grpc.StatusCode.RESOURCE_EXHAUSTED, "REASON_TOO_MANY"):
        await update(room, workspace_id, {"one more": "v", "k0": "changed"})
    answer = await get(room, workspace_id)
    assert len(answer.preferences) == 200
    assert known(answer)["k0"] == "v"
    assert len((await update(room, workspace_id, {"one more": "v"}, ["k0"])).preferences) == 200


async def test_who_never_had_any_has_none_at_version_0(room: Memory, workspace_id: str) -> None:
    answer = await get(room, workspace_id)
    assert (len(answer.preferences), answer.version, answer.completeness) == (0, 0, Completeness.COMPLETENESS_COMPLETE)


async def test_users_whose_ids_would_meet_if_joined_carelessly_do_not_share(room: Memory, workspace_id: str) -> None:
    await update(room, f"{workspace_id}/a", {"x": "1"}, user_id="b")
    await update(room, workspace_id, {"x": "2"}, user_id="a/b")
    assert known(await get(room, f"{workspace_id}/a", user_id="b")) == {"x": "1"}
    assert known(await get(room, workspace_id, user_id="a/b")) == {"x": "2"}
