"""A worker that dies with turns in its hands: what the user typed is kept, by whichever worker is left."""

import asyncio
import contextlib
import os
import signal
from typing import Any

import asyncpg
import grpc

from tests.memory.rooms import Memory, connected, refused
from tests.memory.test_crashes import started
from tests.memory.test_open_turns import INTERRUPTED, QUEUE, begin, commit, end_lease, heartbeat, waiting
from tests.waiting import until
from twofold_chassis.settings import DatabaseSettings
from twofold_cli.embedded.redis import EmbeddedRedis
from twofold_memory.threads import ThreadKey


async def test_turns_of_a_worker_that_was_killed_are_swept_and_its_waiters_are_passed_over(
    memory_database: DatabaseSettings, redis_server: EmbeddedRedis, room: Memory, key: ThreadKey, sql: "asyncpg.Pool[Any]"
) -> None:
    """M14, M5: kill -9 between begin and commit."""
    environment = {
        "DATABASE__URL": memory_database.url.get_secret_value(),
        "DATABASE__MIGRATE": "false",
        "REDIS__HOST": redis_server.host,
        "REDIS__PORT": str(redis_server.port),
        "REDIS__PASSWORD": redis_server.password,
        "MEMORY__PORT": "0",
    }
    process, port = await started(os.environ | environment)
    try:
        async with connected(port) as worker:
            fence = (await begin(worker, key, "t1", "what the user typed")).fence
            await heartbeat(worker, key, "t1", fence, "half an ans")
            lost = asyncio.create_task(begin(worker, key, "t2", policy=QUEUE))
            await waiting(room, key, 1)
            process.send_signal(signal.SIGKILL)
            await process.wait()
            with contextlib.suppress(grpc.aio.AioRpcError):
                await lost
        await end_lease(sql, key, and_grace=True)

        async def is_closed() -> bool:
            return bool(await room.all_messages(key))

        await until(is_closed)
        stored = await room.all_messages(key)
        assert [(m.seq, m.content, m.status == INTERRUPTED) for m in stored] == [
            (1, "what the user typed", False),
            (2, "half an ans", True),
        ]
        async with refused(grpc.StatusCode.ABORTED, "REASON_TURN_SUPERSEDED"):
            await commit(room, key, "t1", fence, "too late")
        begun = await begin(room, key, "t3", policy=QUEUE)  # behind a waiter that nobody renews any more
        assert (await commit(room, key, "t3", begun.fence, "a")).first_seq == 3
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
