"""The stack with services that only say SERVING: what is tested is how it rises, what it gives them, how it falls."""

import asyncio
import contextlib
import json
import os
import shutil
import signal
import socket
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import asyncpg
import pytest
import pytest_asyncio

from tests.waiting import until
from twofold_chassis.start import StartError
from twofold_cli.embedded import EmbeddedPostgres, EmbeddedRedis, ServiceProcess
from twofold_cli.embedded.ports import free_port
from twofold_cli.embedded.processes import is_alive
from twofold_cli.embedded.server import EmbeddedServer
from twofold_cli.rooms import PORTS
from twofold_cli.stack import Stack, bare_environment, raise_stack
from twofold_cli.watch import DEATHS_MAX, keep_up

VANISH_S = 60.0
DUMMY = Path(__file__).with_name("dummy_service.py")


@pytest.fixture(scope="module")
def dummies() -> Iterator[dict[str, str]]:
    """An environment in which `python -m twofold_registry` and its like are dummies."""
    with tempfile.TemporaryDirectory() as path:
        for name in PORTS:
            package = Path(path) / f"twofold_{name}"
            package.mkdir()
            run = f"import runpy\nrunpy.run_path({str(DUMMY)!r}, init_globals={{'NAME': {name!r}}}, run_name='__main__')\n"
            (package / "__main__.py").write_text(run)
            (package / "__init__.py").touch()
        yield bare_environment() | {"PYTHONPATH": os.pathsep.join([path, *map(os.path.abspath, sys.path)])}


@pytest_asyncio.fixture(scope="module")
async def stack(dummies: dict[str, str]) -> AsyncIterator[Stack]:
    settings = {"MEMORY__THREAD_TTL_HOURS": "7"}
    async with raise_stack(ephemeral=True, environment=dummies, settings=settings) as raised:
        yield raised


def seen_by(service: ServiceProcess) -> dict[str, str]:
    lines = service.child.log.path.read_text().splitlines()
    seen: dict[str, str] = json.loads(next(line for line in reversed(lines) if line.startswith("{")))
    return seen


async def test_services_are_told_where_everything_is(stack: Stack) -> None:
    seen = seen_by(stack.router)
    assert seen["DATABASE__URL"] == stack.postgres.app_url
    assert seen["DATABASE__MIGRATE_URL"] == stack.postgres.owner_url
    assert (seen["REDIS__HOST"], seen["REDIS__PORT"]) == (stack.redis.host, str(stack.redis.port))
    assert seen["REDIS__PASSWORD"] == stack.redis.password
    assert seen["ROUTER__REGISTRY_TARGET"] == stack.registry.target
    assert seen["ROUTER__MEMORY_TARGET"] == stack.memory.target
    assert seen["ROUTER__METRICS_PORT"] == str(stack.router.metrics_port)
    assert seen_by(stack.memory)["MEMORY__THREAD_TTL_HOURS"] == "7"


async def test_the_schemas_are_there_before_the_services(stack: Stack) -> None:
    connection = await asyncpg.connect(stack.postgres.owner_url)
    schemas = {row["nspname"] for row in await connection.fetch("SELECT nspname FROM pg_namespace")}
    await connection.close()
    assert {"registry", "memory"} <= schemas


async def test_a_service_comes_back_where_it_was(stack: Stack) -> None:
    target, pid = stack.memory.target, stack.memory.pid
    await stack.memory.kill()
    assert not is_alive(pid)
    await stack.memory.restart()
    assert stack.memory.target == target
    assert stack.memory.pid != pid


async def test_a_service_drains_when_it_is_told_to_end(stack: Stack) -> None:
    await stack.memory.terminate()
    assert stack.memory.child.log.tail().endswith("drained")
    await stack.memory.restart()


@contextlib.asynccontextmanager
async def kept_up(stack: Stack) -> AsyncIterator[tuple[asyncio.Task[None], list[str]]]:
    """The task that keeps it up, and what a person is told meanwhile."""
    told: list[str] = []
    task = asyncio.create_task(keep_up(stack, told.append))
    await asyncio.sleep(0)
    try:
        yield task, told
    finally:
        task.cancel()
        await asyncio.wait([task])


async def killed(part: EmbeddedServer | ServiceProcess, told: list[str], times: int = 1) -> None:
    for _ in range(times):
        lines, pid = len(told), part.pid
        os.kill(pid, signal.SIGKILL)
        await until(lambda lines=lines: len(told) >= lines + 2)  # type: ignore[misc]
        assert part.pid != pid


async def test_what_dies_comes_back_where_it_was_and_a_person_is_told(stack: Stack) -> None:
    async with kept_up(stack) as (task, told):
        for part in (stack.redis, stack.postgres, stack.registry):
            port = part.port
            await killed(part, told)
            assert part.port == port
        assert not task.done()
    for name in ("Redis", "Postgres", "registry"):
        assert f"{name} was ended by SIGKILL: starting it again" in told
        assert f"{name} is back" in told


async def test_only_a_death_that_nobody_asked_for_is_mended(stack: Stack) -> None:
    async with kept_up(stack) as (task, told):
        await stack.redis.kill()
        await stack.redis.start()
        await stack.registry.restart()
        assert not task.done()
        assert told == []


async def test_a_service_that_dies_too_often_ends_the_stack_in_its_own_words(stack: Stack) -> None:
    async with kept_up(stack) as (task, told):
        await killed(stack.registry, told, times=DEATHS_MAX)
        os.kill(stack.registry.pid, signal.SIGKILL)
        with pytest.raises(StartError, match=r"(?s)^registry was ended by SIGKILL, 4 times.*REGISTRY__PORT"):
            await task
    await stack.registry.restart()


async def test_what_does_not_start_again_at_once_is_tried_again(stack: Stack) -> None:
    async with kept_up(stack) as (task, told):
        path = stack.redis.folder.path / "state.json"
        state = path.read_text()
        path.write_text("[]")
        os.kill(stack.redis.pid, signal.SIGKILL)
        await until(lambda: "Redis did not start again: starting it again" in told)
        path.write_text(state)
        await until(lambda: told[-1] == "Redis is back")
        assert not task.done()


async def test_without_a_redis_that_dies_too_often_the_stack_goes_on(stack: Stack) -> None:
    async with kept_up(stack) as (task, told):
        await killed(stack.redis, told, times=DEATHS_MAX)
        os.kill(stack.redis.pid, signal.SIGKILL)
        await until(lambda: told[-1].startswith("the stack goes on without Redis"))
        assert not task.done()
    await stack.redis.start()


async def test_a_second_stack_on_the_same_folder_is_refused_by_name(stack: Stack, dummies: dict[str, str]) -> None:
    with pytest.raises(StartError, match=rf"another stack \(process {os.getpid()}\).*{stack.folder}"):
        async with raise_stack(stack.folder, environment=dummies):
            pass
    assert all(part.running for part in stack.parts)


async def test_nothing_is_left_of_an_ephemeral_stack(dummies: dict[str, str]) -> None:
    async with raise_stack(ephemeral=True, environment=dummies) as raised:
        pids = [part.pid for part in raised.parts]
    assert not any(map(is_alive, pids))
    assert not raised.folder.exists()


async def test_a_service_that_cannot_start_is_named_in_its_own_words_and_nothing_is_left(
    folder: Path, dummies: dict[str, str]
) -> None:
    with pytest.raises(StartError, match=r"(?s)memory ended while it was starting.*no heart for it"):
        async with raise_stack(folder / "project", environment=dummies, settings={"DUMMY__FAIL": "memory"}):
            pass
    for name in ("postgres", "redis"):
        assert not is_alive(int((folder / "project" / name / "lock").read_text()))


async def test_data_stays_in_the_folder_and_taken_ports_are_avoided(folder: Path, dummies: dict[str, str]) -> None:
    async with raise_stack(folder / "project", environment=dummies) as raised:
        connection = await asyncpg.connect(raised.postgres.owner_url)
        await connection.execute("CREATE TABLE kept AS SELECT 1 AS n")
        await connection.close()
        registry_port = raised.registry.port
    with socket.create_server(("127.0.0.1", registry_port)):
        async with raise_stack(folder / "project", environment=dummies) as raised:
            assert raised.registry.port != registry_port
            assert f"50051 is taken: registry is on {raised.registry.port}" in raised.notes
            connection = await asyncpg.connect(raised.postgres.owner_url)
            assert await connection.fetchval("SELECT n FROM kept") == 1
            await connection.close()


async def test_a_named_place_is_where_a_service_is_or_the_start_ends(folder: Path, dummies: dict[str, str]) -> None:
    port = free_port(host="127.0.0.2")
    named = dummies | {"REGISTRY__HOST": "127.0.0.2", "REGISTRY__PORT": str(port)}
    async with raise_stack(folder / "project", environment=named) as raised:
        assert raised.registry.target == f"127.0.0.2:{port}"
        assert seen_by(raised.router)["ROUTER__REGISTRY_TARGET"] == raised.registry.target
    with (
        socket.create_server(("127.0.0.2", port)),
        pytest.raises(StartError, match=f"REGISTRY__PORT names port {port}, which is taken on 127.0.0.2"),
    ):
        async with raise_stack(folder / "project", environment=named):
            pass


async def test_a_service_whose_end_is_forced_is_named(folder: Path, dummies: dict[str, str]) -> None:
    told: list[str] = []
    async with raise_stack(ephemeral=True, environment=dummies, warn=told.append) as raised:
        raised.memory.drain_s = 0.2
        raised.memory.pause()
        raised.memory.resume = lambda: None  # type: ignore[method-assign]
    assert raised.memory.cut
    assert not raised.router.cut
    assert told == ["memory had to be killed: calls under way in it were cut"]


async def test_a_redis_of_the_environment_that_does_not_answer_is_told(folder: Path, dummies: dict[str, str]) -> None:
    told: list[str] = []
    named = {"REDIS__HOST": "127.0.0.1", "REDIS__PORT": str(free_port())}
    async with raise_stack(ephemeral=True, environment=dummies | named, warn=told.append) as raised:
        assert raised.router.running
    assert len(told) == 1
    assert "without it, slower" in told[0]


async def test_servers_that_the_environment_names_are_used_and_left_alone(folder: Path, dummies: dict[str, str]) -> None:
    postgres, redis = EmbeddedPostgres(folder / "postgres"), EmbeddedRedis(folder / "redis")
    try:
        await postgres.start()
        await redis.start()
        named = {
            "DATABASE__URL": postgres.app_url,
            "DATABASE__MIGRATE_URL": postgres.owner_url,
            "REDIS__HOST": redis.host,
            "REDIS__PORT": str(redis.port),
            "REDIS__PASSWORD": redis.password,
        }
        async with raise_stack(ephemeral=True, environment=dummies | named) as raised:
            assert raised.servers == []
            assert named.items() <= seen_by(raised.router).items()
            with pytest.raises(StartError, match="DATABASE__URL names"):
                raised.postgres.pause()
        assert postgres.running
        assert redis.running
    finally:
        await redis.stop()
        await postgres.stop()


async def parent_of_a_stack() -> tuple[asyncio.subprocess.Process, Path, list[int]]:
    """Another process with an ephemeral stack of the real services: it, the stack's folder, and its processes."""
    parent = await asyncio.create_subprocess_exec(
        sys.executable,
        str(Path(__file__).with_name("stack_parent.py")),
        env=bare_environment(),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
        process_group=0,
    )
    assert parent.stdout is not None
    folder, *pids = (await parent.stdout.readline()).decode().split()
    return parent, Path(folder), [int(pid) for pid in pids]


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a child of its parent's sudden death")
async def test_the_whole_stack_vanishes_with_a_parent_that_is_killed() -> None:
    parent, folder, pids = await parent_of_a_stack()
    try:
        assert len(pids) > 5
        assert all(map(is_alive, pids))
        parent.kill()
        await parent.communicate()
        await until(lambda: not any(map(is_alive, pids)))
    finally:
        shutil.rmtree(folder)


async def test_ctrl_c_at_the_terminal_brings_it_down_in_order() -> None:
    parent, folder, pids = await parent_of_a_stack()
    os.killpg(parent.pid, signal.SIGINT)
    await asyncio.wait_for(parent.communicate(), VANISH_S)
    assert not any(map(is_alive, pids))
    assert not folder.exists()
