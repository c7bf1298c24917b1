"""M19: behind PgBouncer in transaction mode, and on a Redis Cluster."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import grpc
import pytest
import redis.asyncio
from hypothesis import given
from hypothesis import strategies as st
from redis.crc import key_slot

from tests.memory.rooms import CALL_S, Memory, database_of, refused, seqs, serving, thread
from tests.waiting import until
from twofold.memory.v1.conversation_pb2 import DeleteConversationRequest
from twofold.memory.v1.preference_pb2 import GetPreferencesRequest, UpdatePreferencesRequest
from twofold_chassis.settings import RedisSettings
from twofold_cli.embedded.postgres import DatabaseUrls
from twofold_cli.embedded.redis import EmbeddedRedis
from twofold_memory import keys
from twofold_memory.cache.scripts import script
from twofold_memory.threads import ThreadKey

ID = st.text(min_size=1, max_size=60) | st.sampled_from(["{", "}", "{}", "a{b}c", "}{", "/", ":", "a/b", "~", "é" * 60])


async def the_basics(worker: Memory, workspace_id: str) -> None:
    key = thread(workspace_id)
    await asyncio.gather(
        *(worker.append(key, f"{index}", turn_id=f"t{index % 10}" if index < 10 else "") for index in range(30))
    )
    assert seqs(await worker.all_messages(key, page_size=7)) == list(range(1, 31))
    assert seqs((await worker.read(key, 50)).messages) == list(range(1, 31))
    async with refused(grpc.StatusCode.ALREADY_EXISTS, "REASON_REQUEST_REUSED"):
        await worker.append(key, "other", turn_id="t0")
    update = UpdatePreferencesRequest(workspace_id=workspace_id, user_id="ada", set={"a": "1"}, request_id="r")
    first = await worker.preferences.UpdatePreferences(update, timeout=CALL_S)
    assert await worker.preferences.UpdatePreferences(update, timeout=CALL_S) == first
    asked = GetPreferencesRequest(workspace_id=workspace_id, user_id="ada")
    assert list((await worker.preferences.GetPreferences(asked, timeout=CALL_S)).preferences) == list(first.preferences)
    gone = DeleteConversationRequest(workspace_id=workspace_id, thread_id=key.thread_id, request_id="d")
    await worker.conversations.DeleteConversation(gone, timeout=CALL_S)
    async with refused(grpc.StatusCode.NOT_FOUND, "REASON_CONVERSATION_UNKNOWN"):
        await worker.read(key)


async def test_m19_the_basics_hold_without_prepared_statements(
    room: Memory, memory_urls: DatabaseUrls, redis_settings: RedisSettings, workspace_id: str
) -> None:
    """M19: what PgBouncer needs before version 1.21; no setting of a session is relied on either."""
    database = database_of(memory_urls, prepared_statements=False)
    async with serving(database, redis_settings) as worker:
        await the_basics(worker, workspace_id)


@given(ID, ID)
def test_the_keys_of_a_thread_share_one_slot_and_those_of_a_user_too(workspace_id: str, other: str) -> None:
    """M19: each script touches one slot."""
    key = ThreadKey(workspace_id, other)
    names = [keys.thread_messages(key), keys.thread_head(key)]
    assert len({key_slot(name.encode()) for name in names}) == 1
    for name in (*names, keys.user_preferences(workspace_id, other)):
        tag = name[name.index("{") + 1 : name.index("}")]
        assert name.count("{") == name.count("}") == 1
        assert key_slot(name.encode()) == key_slot(tag.encode())
        assert name.isascii()
        assert len(name) < 300


@given(ID, ID, ID, ID)
def test_two_threads_never_share_a_key(one: str, two: str, three: str, four: str) -> None:
    same = (one, two) == (three, four)
    assert (keys.thread_head(ThreadKey(one, two)) == keys.thread_head(ThreadKey(three, four))) == same
    assert (keys.user_preferences(one, two) == keys.user_preferences(three, four)) == same


async def test_m19_every_script_runs_on_a_cluster(own_redis: EmbeddedRedis, key: ThreadKey) -> None:
    """M19: on a node in cluster mode that refuses what touches two slots."""
    await own_redis.stop()
    original = type(own_redis)._argv

    def argv(self: EmbeddedRedis, binaries: object, port: int) -> list[str]:
        return [*original(self, binaries, port), "--cluster-enabled", "yes"]  # type: ignore[arg-type]

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(type(own_redis), "_argv", argv)
        await own_redis.start()
    async with redis.asyncio.Redis(host=own_redis.host, port=own_redis.port, password=own_redis.password) as client:
        command: Callable[..., Awaitable[Any]] = client.execute_command
        await command("CLUSTER", "ADDSLOTSRANGE", 0, 16383)

        async def is_up() -> bool:
            return b"cluster_state:ok" in await command("CLUSTER", "INFO")

        await until(is_up)
        with pytest.raises(redis.ResponseError, match="slot"):
            await command("MGET", "a", "b")
        names = keys.all_of_thread(key)
        expected = {
            "extend": ((60_000, 10, 1000, "", 1, 1, 1, 1, "t1"), [b"OK"]),
            "look": ((10,), [[b"1", b"1", b"2", b"", [b"t1"]], None]),
            "fill": ((1, 3, 60_000, "", "t1", "t2"), b"FILLED"),
            "fence": ((2, 60_000, 0), b"FENCED"),
            "journal": (("turn", "00ff", "worker", 1, "{}", 64, 10**6, "", ""), [b"OK", 0, b""]),
            "waiting": ((), [b"turn", b"00ff\nworker\n1\n\n{}"]),
            "settle": ((60_000, 10, 1000, "", 1, "turn", "00ff"), 0),
        }
        for name, (arguments, answer) in expected.items():
            source = script(name, behind="window" if name in ("extend", "settle") else None).source
            assert await client.eval(source, 4, *names, *arguments) == answer
        put = script("put_preferences")
        name = keys.user_preferences(key.workspace_id, "ada")
        assert await client.eval(put.source, 1, name, "\0version", 1, 60_000, "a", "1:1:x") == 1
