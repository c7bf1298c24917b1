"""A deleted conversation is not read any more, whatever Redis was doing meanwhile and whatever it comes back with."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import grpc
import pytest
import redis.asyncio

from tests.memory.rooms import CALL_S, Memory, redis_of, refused, serving, thread
from tests.waiting import until
from twofold.memory.v1.conversation_pb2 import DeleteConversationRequest
from twofold.memory.v1.message_pb2 import Completeness, ReadLevel
from twofold_chassis.settings import DatabaseSettings
from twofold_cli.embedded.redis import EmbeddedRedis
from twofold_memory import keys
from twofold_memory.threads import ThreadKey

GONE = (grpc.StatusCode.NOT_FOUND, "REASON_CONVERSATION_UNKNOWN")


@asynccontextmanager
async def raw(server: EmbeddedRedis) -> AsyncIterator[redis.asyncio.Redis]:
    async with redis.asyncio.Redis(host=server.host, port=server.port, password=server.password) as client:
        yield client


async def delete(room: Memory, key: ThreadKey) -> None:
    request = DeleteConversationRequest(workspace_id=key.workspace_id, thread_id=key.thread_id)
    await room.conversations.DeleteConversation(request, timeout=CALL_S)


async def is_gone(room: Memory, key: ThreadKey, token: bytes) -> None:
    """From the first read on, at every level."""
    for _ in range(20):
        for level in (ReadLevel.READ_LEVEL_ANY, ReadLevel.READ_LEVEL_VERIFIED):
            async with refused(*GONE):
                await room.read(key, level=level)
        async with refused(*GONE):
            await room.read(key, token=token)


@pytest.mark.parametrize("fault", ["pause", "kill"])
async def test_a_deletion_while_redis_is_away_holds_from_the_first_read_on_and_takes_the_window_away(
    memory_database: DatabaseSettings, own_redis: EmbeddedRedis, workspace_id: str, fault: str
) -> None:
    key, other = thread(workspace_id), thread(workspace_id)
    async with serving(memory_database, redis_of(own_redis, budget_ms=200)) as room:
        token = (await room.append(key, "secret", "answer")).thread_token
        kept = await room.append(other, "q", "a")
        if fault == "pause":
            own_redis.pause()
        else:
            await own_redis.kill()
        await delete(room, key)
        if fault == "pause":
            own_redis.resume()
        else:
            await own_redis.start()
        await is_gone(room, key, token)

        async def window_is_gone() -> bool:
            async with raw(own_redis) as client:
                return not await client.exists(keys.thread_messages(key))

        await until(window_is_gone)

        async def copies_answer_again() -> bool:
            window = await room.read(other, token=kept.thread_token)
            return window.completeness == Completeness.COMPLETENESS_AS_OF

        await until(copies_answer_again)


@pytest.mark.parametrize("is_read", [True, False])
async def test_a_redis_that_comes_back_with_the_window_of_a_deleted_conversation_shows_it_to_nobody_and_loses_it(
    memory_database: DatabaseSettings, own_redis: EmbeddedRedis, workspace_id: str, is_read: bool
) -> None:
    """As after a failover to a replica that lags, or a restored snapshot: the deletion had been done on the old one."""
    key = thread(workspace_id)
    async with serving(memory_database, redis_of(own_redis, budget_ms=200)) as room:
        token = (await room.append(key, "secret", "answer")).thread_token
        names = (keys.thread_messages(key), keys.thread_head(key))
        async with raw(own_redis) as client:
            old = [await client.dump(name) or b"" for name in names]
        await delete(room, key)
        await own_redis.kill()
        await own_redis.start()
        async with raw(own_redis) as client:
            for name, value in zip(names, old, strict=True):
                await client.restore(name, 3_600_000, value, replace=True)
        if is_read:
            await is_gone(room, key, token)

        async def window_is_gone() -> bool:
            async with raw(own_redis) as client:
                return not await client.exists(names[0])

        await until(window_is_gone)
