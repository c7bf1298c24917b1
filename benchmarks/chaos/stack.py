"""Real workers on a real Postgres and a pair of real Redis servers, each worker with fault proxies of its own between."""

import contextlib
import os
import sys
from collections.abc import AsyncIterator, Awaitable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from signal import SIGQUIT
from typing import Any

import redis.asyncio
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError

from benchmarks.chaos.proxy import FaultProxy
from twofold_chassis.start import StartError
from twofold_cli.embedded import EmbeddedPostgres, EmbeddedRedis, ServiceProcess
from twofold_cli.embedded.postgres import DatabaseUrls
from twofold_cli.environment import bare_environment
from twofold_cli.stack_folder import ephemeral_folder

# All that is a limit of time is some times as long as usual: here everything shares a small machine.
SLOWER = 5
REDIS_BUDGET_MS = 50 * SLOWER
CONFIRM_MS = 150 * SLOWER
# Small, so that windows are trimmed and read beyond.
WINDOW_EXCHANGES = 10
_COMMAND_S = 2.0
_IMMEDIATE_S = 10.0
_RESTART_ATTEMPTS = 20
# After a crash all files are read and written back, on a machine that is busy.
_START_S = 60.0


class PairedRedis(EmbeddedRedis):
    """One of two servers that share a password, so that either can stand in for the other."""

    def __init__(self, folder: Path, password: str) -> None:
        super().__init__(folder, start_s=_START_S)
        self._shared = password

    def _remembered(self) -> dict[str, Any]:
        return super()._remembered() | {"password": self._shared}


class RedisPair:
    """A server and its replica, which follows it through a proxy: held, it lags."""

    def __init__(self, folder: Path) -> None:
        password = os.urandom(16).hex()
        self.master, self.replica = (PairedRedis(folder / name, password) for name in ("redis-a", "redis-b"))
        self.password = password
        self._replication = FaultProxy(self.master.host, 0)

    async def start(self) -> None:
        """Both, the one following the other."""
        await self.master.start()
        await self.replica.start()
        await self._replication.start()
        await self._follow()

    async def stop(self) -> None:
        """Neither."""
        await self._replication.stop()
        await self.replica.stop()
        await self.master.stop()

    async def command(self, *command: str | int) -> Any:
        """What the server says; None if it does not answer."""
        return await _told(self.master, *command)

    def lag(self) -> None:
        """From now on the replica hears nothing."""
        self._replication.hold()

    async def promote(self) -> None:
        """The replica, whatever it knows, becomes the server. Where the old one goes is for later: `reunite`."""
        await _told(self.replica, "REPLICAOF", "NO", "ONE")
        self.master, self.replica = self.replica, self.master

    async def reunite(self) -> None:
        """The other one follows, and forgets what it alone knew."""
        if not self.replica.running:
            await self.replica.start()
        await self._follow()

    async def _follow(self) -> None:
        self._replication.lead_to(self.master.host, self.master.port)
        await self._replication.heal()
        await _told(self.master, "CONFIG", "SET", "repl-diskless-sync-delay", 0)
        await _told(self.replica, "CONFIG", "SET", "masterauth", self.password)
        await _told(self.replica, "REPLICAOF", self._replication_host, self._replication.port)

    @property
    def _replication_host(self) -> str:
        return self.master.host


class Worker:
    """One process of the memory service, and its own ways to the stores."""

    def __init__(self, number: int, folder: Path, postgres: EmbeddedPostgres, pair: RedisPair, environment: dict[str, str]):
        self.number = number
        self.to_postgres = FaultProxy(postgres.host, postgres.port)
        self.to_redis = FaultProxy(pair.master.host, pair.master.port)
        self._environment = environment
        self._was_started = False
        self.process = ServiceProcess(
            "memory", folder / f"memory-{number}.log", self._settings, folder=folder, start_s=30.0, drain_s=10.0
        )

    async def start(self) -> None:
        """Serving."""
        await self.to_postgres.start()
        await self.to_redis.start()
        await self.process.start()
        self._was_started = True

    async def stop(self) -> None:
        """Gone, in order if it can be."""
        await self.process.terminate()
        await self.to_postgres.stop()
        await self.to_redis.stop()

    async def restart(self) -> None:
        """Serving again, as soon as the stores let it start."""
        for _ in range(_RESTART_ATTEMPTS):
            with contextlib.suppress(StartError):
                return await self.process.restart()
        raise StartError(f"memory-{self.number} does not start again; its log:\n{self.process.child.log.tail()}")

    def _settings(self) -> dict[str, str]:
        url = self._environment["DATABASE__URL"]
        port = url.rpartition(":")[2].partition("/")[0]
        return self._environment | {
            "DATABASE__URL": url.replace(f":{port}/", f":{self.to_postgres.port}/"),
            # The first start makes the schema; later ones must not take longer than they need.
            "DATABASE__MIGRATE": "false" if self._was_started else "true",
            "REDIS__PORT": str(self.to_redis.port),
            "MEMORY__PORT": str(self.process.port),
            "MEMORY__METRICS_PORT": str(self.process.metrics_port),
        }


class Servers:
    """The stores."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.postgres = EmbeddedPostgres(folder / "postgres", start_s=_START_S)
        self.redis = RedisPair(folder)

    async def stop_immediately(self) -> None:
        """Postgres without a checkpoint, as `pg_ctl stop -m immediate`."""
        await self.postgres.child.end((SIGQUIT, _IMMEDIATE_S))


class Stack:
    """Servers, a database, and the workers on it."""

    def __init__(self, servers: Servers, urls: DatabaseUrls, workers: list[Worker]) -> None:
        self.servers = servers
        self.urls = urls
        self.workers = workers

    @property
    def postgres(self) -> EmbeddedPostgres:
        return self.servers.postgres

    @property
    def redis(self) -> RedisPair:
        return self.servers.redis

    def lead_to_redis(self, *workers: Worker) -> None:
        """These workers find the server that is the master now under the old address."""
        for worker in workers:
            worker.to_redis.lead_to(self.redis.master.host, self.redis.master.port)

    async def recover(self) -> None:
        """Everything is up and well, whatever was done to it before."""
        for server in (self.postgres, self.redis.master, self.redis.replica):
            if server.running:
                server.resume()
            else:
                await server.start()
        await self.redis.command("CONFIG", "SET", "maxmemory", 0)
        for worker in self.workers:
            await worker.to_postgres.heal()
            await worker.to_redis.heal()
            worker.process.resume()
        for worker in self.workers:
            if not worker.process.running:
                await worker.restart()


@asynccontextmanager
async def raise_servers() -> AsyncIterator[Servers]:
    """The stores, in a folder of their own that is gone afterwards. Raises StartError."""
    async with AsyncExitStack() as undo:
        servers = Servers(ephemeral_folder(undo))
        undo.push_async_callback(servers.postgres.stop)
        await servers.postgres.start()
        undo.push_async_callback(servers.redis.stop)
        await servers.redis.start()
        yield servers


@asynccontextmanager
async def raise_workers(
    servers: Servers, database: str, *, count: int = 2, code: Path | None = None
) -> AsyncIterator[Stack]:
    """Workers on a database of their own and an empty Redis; `code` stands for the service's own. Raises StartError."""
    urls = await servers.postgres.create_database(database)
    await servers.redis.command("FLUSHALL")
    folder = servers.folder / f"workers-{database}"
    folder.mkdir()
    environment = _environment(servers, urls, code)
    workers = [Worker(number, folder, servers.postgres, servers.redis, environment) for number in range(count)]
    async with AsyncExitStack() as undo:
        undo.push_async_callback(servers.postgres.drop_database, database)
        for worker in workers:
            undo.push_async_callback(worker.stop)
            await worker.start()  # one after the other: the first makes the schema
        yield Stack(servers, urls, workers)


def _environment(servers: Servers, urls: DatabaseUrls, code: Path | None) -> dict[str, str]:
    path = [str(code)] if code is not None else []
    return bare_environment() | {
        "PYTHONPATH": os.pathsep.join(dict.fromkeys([*path, *(os.path.abspath(entry) for entry in sys.path if entry)])),
        "DATABASE__URL": urls.app,
        "DATABASE__MIGRATE_URL": urls.owner,
        "DATABASE__CONNECT_TIMEOUT_S": "2",
        "REDIS__HOST": servers.redis.master.host,
        "REDIS__PASSWORD": servers.redis.password,
        "REDIS__BUDGET_MS": str(REDIS_BUDGET_MS),
        "MEMORY__CONFIRM_MS": str(CONFIRM_MS),
        "MEMORY__COMMIT_MS": str(CONFIRM_MS),
        "MEMORY__JOURNAL_MS": str(CONFIRM_MS),
        "MEMORY__MAX_THREAD_MESSAGES": str(WINDOW_EXCHANGES),
        "MEMORY__DRAIN_S": "2",
        "LOG__LEVEL": "warning",
    }


def connected(server: EmbeddedRedis) -> redis.asyncio.Redis:
    """A client of one server, not through any proxy."""
    return redis.asyncio.Redis(
        host=server.host,
        port=server.port,
        password=server.password,
        socket_timeout=_COMMAND_S,
        socket_connect_timeout=_COMMAND_S,
        retry=Retry(NoBackoff(), 0),
    )


async def _told(server: EmbeddedRedis, *command: str | int) -> Any:
    async with connected(server) as client:
        call: Awaitable[Any] = client.execute_command(*command)  # type: ignore[no-untyped-call]
        try:
            return await call
        except (RedisError, OSError):
            return None  # it may be down or stopped just now: then there is nothing to be done to it
