"""Registries over one Postgres, routers that follow them, a Redis for all routers; a fault proxy on each way between."""

import asyncio
import contextlib
import os
import sys
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from signal import SIGQUIT
from typing import Any, NamedTuple

import asyncpg
import redis.asyncio
from redis.exceptions import RedisError

from benchmarks.chaos.control.history import Away
from benchmarks.chaos.proxy import FaultProxy
from benchmarks.chaos.stack import connected
from twofold_chassis.clocks import boot_s
from twofold_chassis.start import StartError
from twofold_cli.embedded import EmbeddedPostgres, EmbeddedRedis, ServiceProcess
from twofold_cli.embedded.postgres import DatabaseUrls
from twofold_cli.embedded.server import EmbeddedServer
from twofold_cli.environment import bare_environment
from twofold_cli.stack_folder import ephemeral_folder

# All that is a limit of time is some times as long as usual: here everything shares a small machine.
SLOWER = 5
REGISTRIES = 2
ROUTERS = 3
_POD_LEASE_S, _BEATS = 2.0, 0.3
_LEASE_S, _PING_S, _SILENCE_S, _REDIS_S = 1.0, 0.25, 0.7, 0.05
_START_S = 60.0
_IMMEDIATE_S = 10.0
_POSTGRES_S = 5.0
_RESTART_ATTEMPTS = 20
_GONE_POLL_S = 0.01
# What compaction takes away is kept here, in the same database: an older copy of that has its own.
_MAKE_ARCHIVE = "CREATE TABLE chaos_archive AS SELECT * FROM registry.changes WITH NO DATA"
_COMPACT = (
    "UPDATE registry.registry_head SET compacted = revision",
    "WITH gone AS (DELETE FROM registry.changes RETURNING *) INSERT INTO chaos_archive SELECT * FROM gone",
)
# Small, so that copies of all of it are made in a moment.
_SMALL_WAL = ("ALTER SYSTEM SET max_wal_size = '64MB'", "ALTER SYSTEM SET min_wal_size = '32MB'")


class Times(NamedTuple):
    """The limits of time that the services run with, in seconds."""

    lease: float
    ping: float
    silence: float
    redis: float
    pod_lease: float


def times(slower: float = SLOWER) -> Times:
    """So many times as long as usual."""
    lease, ping, silence, redis_s = (slower * usual for usual in (_LEASE_S, _PING_S, _SILENCE_S, _REDIS_S))
    # Far shorter than usual, so that pods are found dead while a schedule lasts.
    return Times(lease, ping, silence, redis_s, max(_POD_LEASE_S, lease))


class Servers:
    """The stores, and where older copies of what they keep lie."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.postgres = EmbeddedPostgres(folder / "postgres", start_s=_START_S)
        self.redis = EmbeddedRedis(folder / "redis", start_s=_START_S)

    async def start(self) -> None:
        """Both."""
        await self.postgres.start()
        connection = await asyncpg.connect(self.postgres.superuser_url, timeout=_POSTGRES_S)
        for statement in (*_SMALL_WAL, "SELECT pg_reload_conf()"):
            await connection.execute(statement)
        await connection.close()
        await self.redis.start()

    async def stop(self) -> None:
        """Neither."""
        await self.redis.stop()
        await self.postgres.stop()

    async def copy(self, server: EmbeddedServer) -> None:
        """Keeps a copy of its files as they are at one moment: it stands still meanwhile, as in a snapshot of a disk."""
        server.pause()
        try:
            await _run("rm", "-rf", str(self._copy_of(server)))
            await _run("cp", "-a", str(server.folder.data), str(self._copy_of(server)))
        finally:
            server.resume()

    async def put_back(self, server: EmbeddedServer) -> None:
        """kill -9, and then it has the files of the copy."""
        await server.kill()
        await _run("rm", "-rf", str(server.folder.data))
        await _run("cp", "-a", str(self._copy_of(server)), str(server.folder.data))
        (server.folder.data / "postmaster.pid").unlink(missing_ok=True)

    async def stop_immediately(self) -> None:
        """Postgres without a checkpoint, as `pg_ctl stop -m immediate`."""
        await self.postgres.child.end((SIGQUIT, _IMMEDIATE_S))

    async def command(self, *command: str | int) -> Any:
        """What Redis says; None if it does not answer."""
        async with connected(self.redis) as client:
            try:
                return await client.execute_command(*command)  # type: ignore[no-untyped-call]
            except (RedisError, OSError):
                return None

    def client(self) -> redis.asyncio.Redis:
        """A client of Redis, not through any proxy."""
        return connected(self.redis)

    @staticmethod
    def _copy_of(server: EmbeddedServer) -> Path:
        return server.folder.path / "copy"


class Registry:
    """One process of the registry, and its own way to Postgres."""

    def __init__(self, number: int, folder: Path, servers: Servers, environment: Mapping[str, str]) -> None:
        self.number = number
        self.to_postgres = FaultProxy(servers.postgres.host, servers.postgres.port)
        self._environment = environment
        self._was_started = False
        self.process = ServiceProcess(
            "registry", folder / f"registry-{number}.log", self._settings, folder=folder, start_s=30.0, drain_s=10.0
        )

    async def start(self) -> None:
        """Serving."""
        await self.to_postgres.start()
        await self.process.start()
        self._was_started = True

    async def stop(self) -> None:
        """Gone, in order if it can be."""
        await self.process.terminate()
        await self.to_postgres.stop()

    def _settings(self) -> dict[str, str]:
        settings = dict(self._environment)
        for name in ("URL", "SYSTEM_URL", "DIRECT_URL"):
            url = settings[f"DATABASE__{name}"]
            port = url.rpartition(":")[2].partition("/")[0]
            settings[f"DATABASE__{name}"] = url.replace(f":{port}/", f":{self.to_postgres.port}/")
        return settings | {
            # The first start makes the schema; later ones must not take longer than they need.
            "DATABASE__MIGRATE": "false" if self._was_started else "true",
            "REGISTRY__PORT": str(self.process.port),
            "REGISTRY__METRICS_PORT": str(self.process.metrics_port),
        }


class Router:
    """One process of the router, and its own ways to Redis and to each registry."""

    def __init__(
        self, number: int, folder: Path, servers: Servers, registries: Sequence[Registry], environment: Mapping[str, str]
    ) -> None:
        self.number = number
        self.to_redis = FaultProxy(servers.redis.host, servers.redis.port)
        self.to_registries = [FaultProxy("127.0.0.1", registry.process.port) for registry in registries]
        self._environment = environment
        self.process = ServiceProcess(
            "router", folder / f"router-{number}.log", self._settings, folder=folder, start_s=30.0, drain_s=10.0
        )

    @property
    def proxies(self) -> Sequence[FaultProxy]:
        """All its ways."""
        return [self.to_redis, *self.to_registries]

    async def start(self) -> None:
        """Serving."""
        for proxy in self.proxies:
            await proxy.start()
        await self.process.start()

    async def stop(self) -> None:
        """Gone, in order if it can be."""
        await self.process.terminate()
        for proxy in self.proxies:
            await proxy.stop()

    def _settings(self) -> dict[str, str]:
        targets = ",".join(f"127.0.0.1:{proxy.port}" for proxy in self.to_registries)
        return dict(self._environment) | {
            "REDIS__PORT": str(self.to_redis.port),
            "ROUTER__REGISTRY_TARGET": f"ipv4:{targets}",
            "ROUTER__PORT": str(self.process.port),
            "ROUTER__METRICS_PORT": str(self.process.metrics_port),
        }


class World:
    """All of it, and which router can surely hear nothing of Postgres."""

    def __init__(
        self,
        servers: Servers,
        urls: DatabaseUrls,
        registries: list[Registry],
        routers: list[Router],
        limits: Times,
        folder: Path,
        environment: dict[str, str],
    ) -> None:
        self.servers = servers
        self.urls = urls
        self.registries = registries
        self.routers = routers
        self.times = limits
        self.folder = folder
        self.environment = environment
        self.aways: list[Away] = []
        self._down: set[object] = set()
        self._away_since: dict[int, float] = {}

    # Who hears of what -----------------------------------------------------------------------------------------

    def down(self, *parts: object) -> None:
        """These (Postgres, a registry, a proxy) let nothing pass from now on: said when it is so."""
        self._down.update(parts)
        self._look()

    def up(self, *parts: object) -> None:
        """These may let something pass from now on: said before they do."""
        self._down.difference_update(parts)
        self._look()

    def _look(self) -> None:
        now = boot_s()
        for router in self.routers:
            if not self._hears(router):
                self._away_since.setdefault(router.number, now)
            elif router.number in self._away_since:
                self.aways.append(Away(router.number, self._away_since.pop(router.number), now))

    def _hears(self, router: Router) -> bool:
        return self.servers.postgres not in self._down and any(
            not {registry, registry.to_postgres, way} & self._down
            for registry, way in zip(self.registries, router.to_registries, strict=True)
        )

    # What is done to it ----------------------------------------------------------------------------------------

    async def look_up(self) -> "asyncpg.Connection[Any]":
        """A connection to Postgres around all proxies."""
        return await asyncpg.connect(self.urls.superuser, timeout=_POSTGRES_S, command_timeout=_POSTGRES_S)

    async def leave_alone(self, connection: "asyncpg.Connection[Any]") -> None:
        """Nobody but this connection is connected to Postgres any more, nor can be."""
        for registry in self.registries:
            await registry.to_postgres.refuse()
            registry.to_postgres.reset()
        others = "FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
        while await connection.fetchval(f"SELECT count(pg_terminate_backend(pid)) {others}"):  # noqa: ASYNC110  (nobody tells)
            await asyncio.sleep(_GONE_POLL_S)

    async def compact(self) -> None:
        """No change of before is told to anybody any more, as if it had happened long ago."""
        connection = await self.look_up()
        try:
            async with connection.transaction():
                for statement in _COMPACT:
                    await connection.execute(statement)
        finally:
            await connection.close()

    async def restart(self, part: Registry | Router) -> None:
        """Serving again, as soon as what it needs lets it start."""
        for _ in range(_RESTART_ATTEMPTS):
            with contextlib.suppress(StartError):
                return await part.process.restart()
        name = f"{part.process.name}-{part.number}"
        raise StartError(f"{name} does not start again; its log:\n{part.process.child.log.tail()}")

    async def recover(self) -> None:
        """Everything is up and well, whatever was done to it before."""
        self.up(*self._down)
        for server in (self.servers.postgres, self.servers.redis):
            if server.running:
                server.resume()
            else:
                await server.start()
        for proxy in self.proxies:
            await proxy.heal()
        for part in self.parts:
            part.process.resume()
        for part in self.parts:
            if not part.process.running:
                await self.restart(part)

    @property
    def parts(self) -> Sequence[Registry | Router]:
        """All processes of ours."""
        return [*self.registries, *self.routers]

    @property
    def proxies(self) -> Iterable[FaultProxy]:
        """All ways."""
        yield from (registry.to_postgres for registry in self.registries)
        for router in self.routers:
            yield from router.proxies


@asynccontextmanager
async def raise_servers() -> AsyncIterator[Servers]:
    """The stores, in a folder of their own that is gone afterwards. Raises StartError."""
    async with AsyncExitStack() as undo:
        servers = Servers(ephemeral_folder(undo))
        undo.push_async_callback(servers.stop)
        await servers.start()
        yield servers


@asynccontextmanager
async def raise_world(servers: Servers, database: str, limits: Times, *, code: Path | None = None) -> AsyncIterator[World]:
    """Processes on a database of their own and an empty Redis; `code` stands for the services' own. Raises StartError."""
    urls = await servers.postgres.create_database(database)
    await servers.command("FLUSHALL")
    folder = servers.folder / f"world-{database}"
    folder.mkdir()
    environment = _environment(servers, urls, limits, code)
    registries = [Registry(number, folder, servers, environment) for number in range(REGISTRIES)]
    async with AsyncExitStack() as undo:
        undo.push_async_callback(servers.postgres.drop_database, database)
        for registry in registries:
            undo.push_async_callback(registry.stop)
            await registry.start()  # one after the other: the first makes the schema
        connection = await asyncpg.connect(urls.superuser, timeout=_POSTGRES_S)
        await connection.execute(_MAKE_ARCHIVE)
        await connection.close()
        routers = [Router(number, folder, servers, registries, environment) for number in range(ROUTERS)]
        for router in routers:
            undo.push_async_callback(router.stop)
        async with asyncio.TaskGroup() as group:
            for router in routers:
                group.create_task(router.start())
        yield World(servers, urls, registries, routers, limits, folder, environment)


def _environment(servers: Servers, urls: DatabaseUrls, limits: Times, code: Path | None) -> dict[str, str]:
    path = [str(code)] if code is not None else []
    return bare_environment() | {
        "PYTHONPATH": os.pathsep.join(dict.fromkeys([*path, *(os.path.abspath(entry) for entry in sys.path if entry)])),
        "DATABASE__URL": urls.app,
        "DATABASE__MIGRATE_URL": urls.owner,
        "DATABASE__SYSTEM_URL": urls.system,
        "DATABASE__DIRECT_URL": urls.system,
        "DATABASE__CONNECT_TIMEOUT_S": "2",
        "REDIS__HOST": servers.redis.host,
        "REDIS__PASSWORD": servers.redis.password,
        "REDIS__BUDGET_MS": _ms(limits.redis),
        "REGISTRY__LEASE_MS": _ms(limits.lease),
        "REGISTRY__DRAIN_S": "2",
        "ROUTER__LEASE_MS": _ms(limits.lease),
        "ROUTER__PING_MS": _ms(limits.ping),
        "ROUTER__SILENCE_MS": _ms(limits.silence),
        "ROUTER__PEER_TIMEOUT_S": f"{limits.lease:g}",
        "ROUTER__MEMORY_TARGET": "127.0.0.1:1",
        "ROUTER__POD_LEASE_MS": _ms(limits.pod_lease),
        "ROUTER__POD_HEARTBEAT_MS": _ms(limits.pod_lease * _BEATS),
        "ROUTER__DRAIN_S": "1",
        # As few as may be, so that there are gaps.
        "ROUTER__EVENT_LOG_ENTRIES_MAX": "500",
        "LOG__LEVEL": "warning",
    }


def _ms(seconds: float) -> str:
    return str(round(seconds * 1000))


async def _run(*command: str) -> None:
    process = await asyncio.create_subprocess_exec(*command)
    if await process.wait():
        raise OSError(f"{command[0]} ended with {process.returncode}")
