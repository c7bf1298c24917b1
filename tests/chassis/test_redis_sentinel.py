"""A master that sentinels name: whoever has to connect again finds the one that is master now."""

import asyncio
import uuid
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from redis.exceptions import RedisError
from structlog.testing import capture_logs

from tests.chassis.redis_servers import MASTER, SENTINEL_PASSWORD, Sentinel, Server, running, settings_of, watched
from tests.waiting import until
from twofold_chassis.redis import RedisUnavailable, losable, open_link
from twofold_chassis.redis_opening import Address, Opening, at
from twofold_chassis.redis_server import RedisServer
from twofold_chassis.settings import RedisSettings
from twofold_chassis.start import StartError

SET = "return redis.call('SET', KEYS[1], ARGV[1])"


@pytest.fixture
def folder(servers_folder: Path) -> Path:
    return servers_folder / f"sentinel-{uuid.uuid4().hex[:8]}"


async def test_what_redis_6_2_says_of_it_inside_a_script_is_understood() -> None:
    said = b"-ERR Error running script (call to f_0): @user_script:1: @user_script: 1: -READONLY You can't write\r\n"

    async def old(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while command := await reader.read(1000):
            writer.write(b"$11\r\nrole:master\r\n" if b"INFO" in command else said)
        writer.close()

    listening = await asyncio.start_server(old, "127.0.0.1", 0)
    address: Address = listening.sockets[0].getsockname()[:2]
    with capture_logs() as logs:
        server = RedisServer(Opening(RedisSettings(), at(address)), lambda _: None, budget_s=2)
        with pytest.raises(RedisUnavailable, match="READONLY"):
            await server.call(("EVAL", SET, 1, "a", "2"))
        assert server.generation == 2, "one connection that came, and went"
        await server.close()
    assert not [line for line in logs if "redis" in line["event"]]
    listening.close()


@pytest.fixture(scope="module")
async def group(servers_folder: Path) -> AsyncIterator[tuple[Server, Sentinel]]:
    """A master and its sentinel, for tests that leave them as they are."""
    async with watched(servers_folder / f"sentinel-{uuid.uuid4().hex[:8]}") as (master, _, sentinel):
        yield master, sentinel


def through(*sentinels: Sentinel, master: Server, **others: object) -> RedisSettings:
    places = ",".join(["127.0.0.1:1", *(f"{sentinel.host}:{sentinel.port}" for sentinel in sentinels)])
    own = {"port": 1, "sentinels": places, "sentinel_master": MASTER, "sentinel_password": SENTINEL_PASSWORD}
    return settings_of(master, **own | others)


async def test_when_the_master_is_killed_commands_go_to_the_one_that_is_promoted(folder: Path) -> None:
    async with watched(folder) as (master, replica, sentinel):
        link = await open_link(through(sentinel, master=master), must_keep=True)
        assert await link.call("SET", "kept", "1") == b"OK"
        assert await master.asked("WAIT", 1, 5000) == 1
        before = link.generation
        await master.kill()

        async def written() -> bool:
            return await losable(link.call("SET", "more", "2"), otherwise=None) == b"OK"

        await until(written)
        assert link.generation > before
        assert await link.call("GET", "kept") == b"1"
        assert await replica.asked("GET", "more") == b"2"
        await link.close()


async def test_a_master_that_has_become_a_replica_is_left(folder: Path) -> None:
    """It stays connected and refuses writes only."""
    one, other = Server(folder / "one"), Server(folder / "other")

    async def places() -> list[Address]:
        return [(one.host, one.port), (other.host, other.port)]

    async with running(one, other):
        opening = Opening(settings_of(one), places, masters_only=True)
        server = RedisServer(opening, lambda _: None, budget_s=2)
        assert await server.call(("SET", "a", "1")) == b"OK"
        before = server.generation
        await one.asked("REPLICAOF", other.host, other.port)
        with pytest.raises(RedisUnavailable):
            await server.call(("EVAL", SET, 1, "a", "2"))

        async def written() -> bool:
            return await losable(server.call(("SET", "a", "2")), otherwise=None) == b"OK"

        await until(written)
        assert server.generation > before
        assert await other.asked("GET", "a") == b"2"
        await server.close()


async def test_sentinels_that_do_not_know_the_master_or_are_not_there_stop_no_start(group: tuple[Server, Sentinel]) -> None:
    master, sentinel = group
    for settings, why in (
        (through(master=master), "127.0.0.1:1: Error"),
        (through(sentinel, master=master, sentinel_master="another"), "it knows no such master"),
        (through(sentinel, master=master, sentinel_password="wrong"), "password"),
    ):
        with capture_logs() as logs:
            link = await open_link(settings, must_keep=True)
            with pytest.raises(RedisUnavailable):
                await link.call("PING")
            await link.close()
        (line,) = [line for line in logs if "redis" in line["event"]]
        assert line["event"] == "redis is away"
        assert "no sentinel names a master" in line["reason"]
        assert why in line["reason"]


async def test_the_policy_of_the_master_counts_behind_sentinels_too(group: tuple[Server, Sentinel]) -> None:
    master, sentinel = group
    await master.asked("CONFIG", "SET", "maxmemory-policy", "allkeys-lru")
    try:
        with pytest.raises(StartError, match="allkeys-lru"):
            await open_link(through(sentinel, master=master), must_keep=True)
    finally:
        await master.asked("CONFIG", "SET", "maxmemory-policy", "noeviction")


async def test_opening_is_bounded_and_leaves_nothing_open() -> None:
    connected: list[asyncio.StreamWriter] = []

    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connected.append(writer)
        await reader.read()
        writer.close()

    listening = await asyncio.start_server(silent, "127.0.0.1", 0)
    address: Address = listening.sockets[0].getsockname()[:2]
    with pytest.raises((RedisError, OSError, TimeoutError)):
        await Opening(RedisSettings(), at(address)).open()
    async with asyncio.timeout(10):
        for writer in connected:
            await writer.wait_closed()
    assert connected
    listening.close()
