"""The embedded Redis, really started, killed and paused."""

import os
import signal
import socket
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio
from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import AuthenticationError
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError

from twofold_chassis.start import StartError
from twofold_cli.embedded import EmbeddedRedis
from twofold_cli.embedded.processes import command_line, is_alive


@pytest_asyncio.fixture
async def redis(folder: Path) -> AsyncIterator[EmbeddedRedis]:
    server = EmbeddedRedis(folder / "redis")
    await server.start()
    yield server
    await server.stop()


def client(server: EmbeddedRedis, password: str | None = None, timeout_s: float = 10.0) -> Redis:
    return Redis(
        host=server.host,
        port=server.port,
        password=password if password is not None else server.password,
        socket_timeout=timeout_s,
        socket_connect_timeout=timeout_s,
        decode_responses=True,
        retry=Retry(NoBackoff(), 0),
    )


async def written_down(connection: Redis) -> None:
    """Until what was said is in the append-only file: a write may wait for the fsync before it."""
    while True:
        info = await connection.info("persistence")
        if info["aof_buffer_length"] == 0 and info["aof_pending_bio_fsync"] == 0:
            return


async def test_it_keeps_what_it_is_told_and_evicts_nothing(redis: EmbeddedRedis) -> None:
    async with client(redis) as connection:
        settings = await connection.config_get("*")
    assert settings["appendonly"] == "yes"
    assert settings["appendfsync"] == "everysec"
    assert settings["maxmemory-policy"] == "noeviction"
    assert settings["save"] == ""
    assert settings["bind"] == "127.0.0.1"


async def test_it_asks_for_a_password_that_only_we_can_read(redis: EmbeddedRedis) -> None:
    async with client(redis, password="wrong") as connection:
        with pytest.raises(AuthenticationError):
            await connection.ping()
    assert redis.password not in command_line(redis.pid)
    for name in ("state.json", "redis.conf", "server.log"):
        assert (redis.folder.path / name).stat().st_mode & 0o777 == 0o600


async def test_what_was_written_survives_a_kill_and_comes_back_on_the_same_port(redis: EmbeddedRedis) -> None:
    port, pid = redis.port, redis.pid
    async with client(redis) as connection:
        await connection.set("kept", "1")
        await written_down(connection)
    await redis.kill()
    assert not is_alive(pid)
    async with client(redis) as connection:
        with pytest.raises(RedisConnectionError):
            await connection.ping()
    await redis.start()
    assert redis.port == port
    async with client(redis) as connection:
        assert await connection.get("kept") == "1"


async def test_a_later_process_finds_the_old_data_port_and_password(redis: EmbeddedRedis, folder: Path) -> None:
    port, password = redis.port, redis.password
    async with client(redis) as connection:
        await connection.set("kept", "1")
    await redis.stop()
    later = EmbeddedRedis(folder / "redis")
    await later.start()
    try:
        assert (later.port, later.password) == (port, password)
        async with client(later) as connection:
            assert await connection.get("kept") == "1"
    finally:
        await later.stop()


async def test_a_later_process_takes_another_port_when_the_old_one_is_taken(redis: EmbeddedRedis, folder: Path) -> None:
    port = redis.port
    await redis.stop()
    with socket.create_server(("127.0.0.1", port)):
        later = EmbeddedRedis(folder / "redis")
        await later.start()
        assert later.port != port
        await later.stop()


async def test_a_second_server_on_the_same_folder_is_refused_by_name(redis: EmbeddedRedis, folder: Path) -> None:
    with pytest.raises(StartError, match=rf"process {redis.pid}\).*already running.*{folder}"):
        await EmbeddedRedis(folder / "redis").start()


async def test_a_server_that_cannot_start_says_why_in_its_own_words(redis: EmbeddedRedis) -> None:
    async with client(redis) as connection:
        await connection.set("kept", "1")
    await redis.stop()
    for path in redis.folder.data.rglob("*.manifest"):
        path.write_text("nonsense\n")
    with pytest.raises(StartError, match=r"(?s)did not start.*manifest"):
        await redis.start()


async def test_while_paused_nothing_answers_and_afterwards_everything_goes_on(redis: EmbeddedRedis) -> None:
    redis.pause()
    async with client(redis, timeout_s=0.2) as connection:
        with pytest.raises(RedisTimeoutError):
            await connection.ping()
    redis.resume()
    async with client(redis) as connection:
        assert await connection.ping()


async def test_a_paused_server_can_be_stopped(redis: EmbeddedRedis) -> None:
    redis.pause()
    await redis.stop()
    assert not redis.running


async def test_a_death_nobody_asked_for_is_noticed(redis: EmbeddedRedis) -> None:
    os.kill(redis.pid, signal.SIGKILL)
    assert await redis.child.died() == -signal.SIGKILL
    assert not redis.running


async def test_where_the_servers_account_cannot_go_data_is_put_aside(closed_folder: Path) -> None:
    server = EmbeddedRedis(closed_folder / "redis")
    await server.start()
    try:
        assert server.folder.path.is_relative_to("/var/tmp")
        assert "nobody" in server.notes[0]
    finally:
        await server.stop()
        server.folder.remove()


async def test_the_name_of_its_folder_may_hold_anything(folder: Path) -> None:
    server = EmbeddedRedis(folder / 'a "b\\c')
    await server.start()
    try:
        async with client(server) as connection:
            assert (await connection.config_get("dir"))["dir"] == str(server.folder.data)
    finally:
        await server.stop()
