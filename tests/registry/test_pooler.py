"""Behind a pooler in transaction mode: nothing of a call stays on its connection, and a real PgBouncer will do."""

import asyncio
import contextlib
import os
import re
import shutil
import socket
import subprocess
import time
import uuid
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from urllib.parse import urlsplit

import asyncpg
import grpc
import pytest

from tests.databases import own_database, settings_of_database
from tests.registry.stubs import Registry, settings_of
from tests.registry.test_tenancy import RPCS, asked, requests, send
from twofold_chassis import postgres
from twofold_chassis.postgres import Connection, Pool
from twofold_chassis.settings import DatabaseSettings
from twofold_cli.embedded.child import server_account
from twofold_cli.embedded.ports import LOOPBACK, free_port
from twofold_cli.embedded.postgres import DatabaseUrls, EmbeddedPostgres
from twofold_registry.app import registry

# Not everywhere is there one, or one that is new enough: TWOFOLD_PGBOUNCER names another than that on PATH.
PGBOUNCER = os.environ.get("TWOFOLD_PGBOUNCER") or shutil.which("pgbouncer")
PREPARES_SINCE = (1, 21)
AWAY = (grpc.StatusCode.INTERNAL, grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.UNKNOWN, grpc.StatusCode.DEADLINE_EXCEEDED)
# But for "jit", which the driver itself sets and sets back while it asks for types, and the portal of this very statement.
LEFT_BEHIND = """
    SELECT ARRAY(SELECT name FROM pg_settings WHERE source = 'session' AND name <> 'jit') AS settings,
        coalesce(current_setting('twofold.workspaces', true), '') AS workspaces,
        ARRAY(SELECT pg_listening_channels()) AS channels,
        ARRAY(SELECT mode FROM pg_locks WHERE locktype = 'advisory' AND pid = pg_backend_pid()) AS locks,
        ARRAY(SELECT name FROM pg_cursors WHERE name <> '') AS cursors,
        ARRAY(SELECT relname::text FROM pg_class WHERE relpersistence = 't' AND relkind = 'r') AS tables
"""
NOTHING: tuple[object, ...] = ([], "", [], [], [], [])


async def everything(channel: grpc.aio.Channel, workspace_id: str, user: str, agent: str) -> list[grpc.StatusCode]:
    """Calls every rpc of a workspace; what the answers were."""
    codes = []
    for name in sorted(requests("w", "u", "a")):
        try:
            await send(channel, RPCS[name], asked(name, workspace_id, user, agent))
            codes.append(grpc.StatusCode.OK)
        except grpc.aio.AioRpcError as error:
            codes.append(error.code())
            if error.code() in AWAY:
                raise
    return codes


async def furnished(channel: grpc.aio.Channel) -> str:
    api = Registry(channel)
    workspace_id = (await api.make_workspace("")).workspace_id
    await api.make_user(workspace_id, "ann")
    await api.make_agent(workspace_id, "helper")
    await api.grant(workspace_id, "ann", "helper")
    return workspace_id


async def test_no_call_leaves_anything_on_its_connection(
    database_settings: DatabaseSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    given_back = postgres._release
    found: list[tuple[object, ...]] = []

    async def look_and_give_back(pool: Pool, acquired: Connection) -> None:
        if not acquired.is_closed() and not acquired.is_in_transaction():
            row = await acquired.fetchrow(LEFT_BEHIND)
            assert row is not None
            found.append(tuple(row))
        await given_back(pool, acquired)

    async with (
        registry(settings_of(database_settings)) as running,
        grpc.aio.insecure_channel(f"127.0.0.1:{running.port}") as channel,
    ):
        workspace_id = await furnished(channel)
        monkeypatch.setattr(postgres, "_release", look_and_give_back)
        codes = await everything(channel, workspace_id, "ann", "helper")
        codes += await everything(channel, workspace_id, "nob", "nohelp")
        monkeypatch.undo()
    assert len(found) >= len(codes) // 2
    assert set(map(repr, found)) == {repr(NOTHING)}
    assert grpc.StatusCode.OK in codes
    assert grpc.StatusCode.NOT_FOUND in codes


async def test_what_is_left_behind_would_be_seen(database_settings: DatabaseSettings) -> None:
    pool = await postgres.open_pool(database_settings, name="test")
    for leave in (
        "SELECT set_config('twofold.workspaces', 'acme', false)",
        "SELECT pg_advisory_lock(1)",
        "LISTEN changes",
        "SET statement_timeout = '1s'",
    ):
        async with postgres.connection(pool) as connection:
            await connection.execute(leave)
            row = await connection.fetchrow(LEFT_BEHIND)
            assert row is not None
            assert repr(tuple(row)) != repr(NOTHING), leave
            await connection.execute("RESET ALL; UNLISTEN *; SELECT pg_advisory_unlock_all()")
    await postgres.close_pool(pool)


# The real one -----------------------------------------------------------------------------------------------


def version() -> tuple[int, ...]:
    """That of the PgBouncer of this machine; of none, the oldest."""
    if PGBOUNCER is None:
        return (0,)
    told = subprocess.run([PGBOUNCER, "--version"], capture_output=True, text=True, check=True, timeout=20).stdout
    found = re.search(r"(\d+)\.(\d+)", told)
    assert found is not None, told
    return tuple(map(int, found.groups()))


@pytest.fixture(params=[False, True], ids=["without prepared statements", "with prepared statements"])
def prepares(request: pytest.FixtureRequest) -> bool:
    if PGBOUNCER is None:
        pytest.skip("there is no PgBouncer on PATH, and TWOFOLD_PGBOUNCER names none")
    if request.param and version() < PREPARES_SINCE:
        pytest.skip("this PgBouncer is older than 1.21, which was the first to know prepared statements")
    return bool(request.param)


@pytest.fixture
async def urls(postgres_server: EmbeddedPostgres) -> AsyncIterator[DatabaseUrls]:
    async with own_database(postgres_server, "pooled") as made:
        yield made


@pytest.fixture
def bouncer(servers_folder: Path, urls: DatabaseUrls, prepares: bool) -> Iterator[int]:
    """The port of a PgBouncer that lends two connections for each role, from transaction to transaction."""
    for _ in range(3):  # a port that was free may be somebody else's a moment later
        port, folder = free_port(), servers_folder / f"pgbouncer-{uuid.uuid4().hex[:8]}"
        process = _start(folder, port, urls, prepares=prepares)
        if _listens(port, process):
            break
        process.kill()
        process.wait(20)
    else:
        pytest.fail(f"PgBouncer does not listen: {(folder / 'stderr').read_text()}")
    yield port
    process.terminate()
    process.wait(20)


def _start(folder: Path, port: int, urls: DatabaseUrls, *, prepares: bool) -> "subprocess.Popen[bytes]":
    folder.mkdir(mode=0o755)
    behind = urlsplit(urls.app)
    users = {(urlsplit(url).username, urlsplit(url).password) for url in (urls.app, urls.system)}
    (folder / "users.txt").write_text("".join(f'"{name}" "{password}"\n' for name, password in users))
    settings = {
        "listen_addr": LOOPBACK,
        "listen_port": port,
        "unix_socket_dir": "",
        "auth_type": "scram-sha-256",
        "auth_file": folder / "users.txt",
        "pool_mode": "transaction",
        "default_pool_size": 2,
        "max_client_conn": 200,
    }
    if prepares:
        settings["max_prepared_statements"] = 100
    lines = [f"{name} = {value}" for name, value in settings.items()]
    database = f"* = host={behind.hostname} port={behind.port}"
    (folder / "pgbouncer.ini").write_text("\n".join(["[databases]", database, "[pgbouncer]", *lines, ""]))
    account = server_account()
    assert PGBOUNCER is not None
    with (folder / "stderr").open("wb") as stderr:
        return subprocess.Popen(
            [PGBOUNCER, str(folder / "pgbouncer.ini")],
            stderr=stderr,
            user=account.uid if account else None,
            group=account.gid if account else None,
        )


def _listens(port: int, process: "subprocess.Popen[bytes]") -> bool:
    """Whether it does within ten seconds."""
    ends = time.monotonic() + 10
    while process.poll() is None and time.monotonic() < ends:
        with contextlib.suppress(OSError), socket.create_connection((LOOPBACK, port), timeout=1):
            return True
        time.sleep(0.02)
    return False


async def until_it_listens(url: str) -> None:
    async with asyncio.timeout(20):
        while True:
            try:
                connection = await asyncpg.connect(url, statement_cache_size=0)
            except OSError:
                await asyncio.sleep(0.02)
                continue
            await connection.close()
            return


async def test_a_real_pgbouncer_serves_the_registry(urls: DatabaseUrls, bouncer: int, prepares: bool) -> None:
    def pooled(url: str) -> str:
        parts = urlsplit(url)
        return parts._replace(netloc=f"{parts.username}:{parts.password}@{LOOPBACK}:{bouncer}").geturl()

    await until_it_listens(pooled(urls.app))
    changes = {"url": pooled(urls.app), "system_url": pooled(urls.system)}
    database = settings_of_database(urls, **changes, prepared_statements=prepares)
    async with (
        registry(settings_of(database)) as running,
        grpc.aio.insecure_channel(f"127.0.0.1:{running.port}") as channel,
    ):
        workspaces = await asyncio.gather(*(furnished(channel) for _ in range(6)))
        codes = await asyncio.gather(*(everything(channel, workspace_id, "ann", "helper") for workspace_id in workspaces))
        for told in codes:
            assert told.count(grpc.StatusCode.OK) > len(told) // 2
        api = Registry(channel)
        for workspace_id in workspaces:
            trail = await api.trail(workspace_id)
            assert [entry.seq for entry in trail] == list(range(1, len(trail) + 1))
    connection = await asyncpg.connect(pooled(urls.app), statement_cache_size=0)
    assert await connection.fetchval("SELECT count(*) FROM registry.users") == 0, (
        "no workspace is named on a lent connection"
    )
    await connection.close()
