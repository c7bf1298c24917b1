"""M5: what was acknowledged as COMMITTED is there after any crash, once; and what was not is there once or not at all."""

import asyncio
import contextlib
import json
import os
import signal
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from functools import partial

import grpc
import pytest
from redis.asyncio import Redis

from tests.memory.rooms import Memory, connected, database_of, reason, redis_of, seqs, serving, thread
from tests.waiting import until
from twofold.memory.v1.message_pb2 import Completeness, Durability
from twofold_chassis.settings import DatabaseSettings
from twofold_cli.embedded.postgres import EmbeddedPostgres
from twofold_cli.embedded.redis import EmbeddedRedis
from twofold_memory.threads import ThreadKey

WRITERS = 6
# Busy: an earlier attempt of the same turn is still on its way.
HONEST = ("REASON_STORE_UNAVAILABLE", "REASON_JOURNAL_FULL", "REASON_BUSY")


@dataclass
class Writer:
    """Appends turn after turn, each until it is acknowledged, and remembers what it was told."""

    memory: Memory
    key: ThreadKey
    name: str
    told: dict[str, tuple[int, int]] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)
    journaled: int = 0
    stop: bool = False

    async def run(self) -> None:
        index = 0
        while not self.stop:
            turn_id = f"{self.name}-{index}"
            try:
                answer = await self.memory.append(self.key, turn_id, "a", turn_id=turn_id, timeout=10)
            except grpc.aio.AioRpcError as error:
                self.failures.append(f"{reason(error)}: {error.code().name} {error.details()}")
                await asyncio.sleep(0.02)
            else:
                self.told[turn_id] = (answer.first_seq, answer.last_seq)
                self.journaled += answer.durability == Durability.DURABILITY_JOURNALED
                index += 1

    async def progress(self, turns: int = 5) -> None:
        """Returns when so many more turns have been acknowledged."""
        wanted = len(self.told) + turns
        await until(lambda: len(self.told) >= wanted)


@contextlib.asynccontextmanager
async def writing(memory: Memory, workspace_id: str) -> AsyncIterator[list[Writer]]:
    """Writers of three threads, at work until the block ends."""
    keys = [thread(workspace_id) for _ in range(3)]
    writers = [Writer(memory, keys[index % 3], f"w{index}") for index in range(WRITERS)]
    tasks = [asyncio.create_task(writer.run()) for writer in writers]
    try:
        await asyncio.gather(*(writer.progress() for writer in writers))
        yield writers
    finally:
        for writer in writers:
            writer.stop = True
        await asyncio.gather(*tasks)


async def agrees(memory: Memory, key: ThreadKey) -> bool:
    """Whether a window holds the end of what is stored. A turn whose writer was told nothing may come between the two."""
    window = await memory.read(key, 40)
    return seqs(window.messages) == seqs(await memory.all_messages(key))[-40:]


async def check(memory: Memory, writers: list[Writer]) -> None:
    for key in {writer.key for writer in writers}:
        await until_drained(memory, key)
        stored = await memory.all_messages(key)
        assert seqs(stored) == list(range(1, len(stored) + 1))
        found = {message.turn_id: message.seq for message in stored if message.turn_index == 0}
        assert len(found) * 2 == len(stored)
        for writer in writers:
            if writer.key == key:
                for turn_id, (first, last) in writer.told.items():
                    # One that was journaled was told no numbers.
                    assert (found[turn_id], last) == (first, first + 1) if last else turn_id in found
        await until(partial(agrees, memory, key))


async def until_drained(memory: Memory, key: ThreadKey) -> None:
    """Returns when no turn of the thread waits in the journal."""

    async def drained() -> bool:
        window = await memory.read(key, 500)
        return window.completeness == Completeness.COMPLETENESS_COMPLETE and all(seqs(window.messages))

    await until(drained)


Fault = Callable[[EmbeddedPostgres, EmbeddedRedis], Awaitable[None]]


async def kill_redis(_: EmbeddedPostgres, redis: EmbeddedRedis) -> None:
    await redis.kill()
    await redis.start()


async def flush_redis(_: EmbeddedPostgres, redis: EmbeddedRedis) -> None:
    async with Redis(host=redis.host, port=redis.port, password=redis.password) as client:
        await client.flushall()


async def kill_postgres(postgres: EmbeddedPostgres, _: EmbeddedRedis) -> None:
    await postgres.kill()
    await postgres.start()


async def kill_both(postgres: EmbeddedPostgres, redis: EmbeddedRedis) -> None:
    await redis.kill()
    await postgres.kill()
    await postgres.start()
    await redis.start()


async def test_m5_what_was_committed_survives_crashes_and_flushes_of_both_stores_under_writers(
    own_postgres: EmbeddedPostgres, own_redis: EmbeddedRedis, workspace_id: str
) -> None:
    """M5, M4, M1: each fault, one after the other."""
    database = await own_database(own_postgres)
    async with serving(database, redis_of(own_redis)) as memory, writing(memory, workspace_id) as writers:
        for fault in (kill_redis, flush_redis, kill_postgres, kill_both):
            await fault(own_postgres, own_redis)
            await asyncio.gather(*(writer.progress() for writer in writers))
            for writer in writers:
                assert all(failure.startswith(HONEST) for failure in writer.failures), writer.failures
                if fault in (kill_redis, flush_redis):
                    assert writer.failures == []  # Redis is not needed
                    assert writer.journaled == 0
        for writer in writers:
            writer.stop = True
        await check(memory, writers)


async def own_database(postgres: EmbeddedPostgres) -> DatabaseSettings:
    return database_of(await postgres.create_database("memory"), command_timeout_s=2)


async def started(environment: dict[str, str]) -> tuple[Process, int]:
    """A worker as a process, and its port."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "twofold_memory", env=os.environ | environment, stdout=PIPE, stderr=None
    )
    assert process.stdout is not None
    async with asyncio.timeout(30):
        while line := (await process.stdout.readline()).decode():
            if '"event": "serving"' in line or '"event":"serving"' in line:
                return process, json.loads(line)["port"]
    raise AssertionError("the worker did not start")


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
async def test_what_was_committed_survives_the_end_of_the_worker(
    memory_database: DatabaseSettings, redis_server: EmbeddedRedis, room: Memory, workspace_id: str, number: signal.Signals
) -> None:
    """M5: a crash, and an orderly end, which refuses nothing that it has accepted."""
    environment = {
        "DATABASE__URL": memory_database.url.get_secret_value(),
        "DATABASE__MIGRATE": "false",
        "REDIS__HOST": redis_server.host,
        "REDIS__PORT": str(redis_server.port),
        "REDIS__PASSWORD": redis_server.password,
        "MEMORY__PORT": "0",
        "LOG__SAMPLE_EVERY": "1000000",
        "LOG__LEVEL": "info",
    }
    process, port = await started(environment)
    try:
        async with connected(port) as worker, writing(worker, workspace_id) as writers:
            process.send_signal(number)
            await process.wait()
            for writer in writers:
                writer.stop = True
        assert process.returncode == (0 if number is signal.SIGTERM else -signal.SIGKILL)
        await check(room, writers)
        for writer in writers:  # what was cut off is found or done by a retry at another worker
            turn_id = f"{writer.name}-{len(writer.told)}"
            answer = await room.append(writer.key, turn_id, "a", turn_id=turn_id)
            writer.told[turn_id] = (answer.first_seq, answer.last_seq)
        await check(room, writers)
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
