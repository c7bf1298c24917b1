"""The whole stack on one machine: Postgres, Redis, migrations and the three services, raised and brought down."""

import asyncio
import os
import sys
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError

from twofold_chassis.settings import RedisSettings
from twofold_chassis.start import StartError
from twofold_cli.embedded import EmbeddedPostgres, EmbeddedRedis, ServiceProcess
from twofold_cli.embedded.server import EmbeddedServer
from twofold_cli.environment import bare_environment, person_environment, settled
from twofold_cli.migrate import migrate_all
from twofold_cli.rooms import Rooms, named_ports, places_of, rooms_of
from twofold_cli.stack_folder import FOLDER, audit_key, ephemeral_folder, hold, ready_folder

PEERS = {"ROUTER__REGISTRY_TARGET": "registry", "ROUTER__MEMORY_TARGET": "memory"}
AUDIT_KEY = "REGISTRY__AUDIT_SIGNING_KEY"
# A service that takes longer to end has calls under way.
_QUIET_S = 1.0
_PING_S = 2.0

Say = Callable[[str], None]


class Stack:
    """A stack that is up. `environment` is what its services were started with, and what a client needs."""

    def __init__(
        self, folder: Path, named: Mapping[str, str], rooms: Rooms, *, lock: int, ephemeral: bool, cwd: Path | None
    ) -> None:
        self.folder = folder
        self._named = dict(named)
        # A server that the environment names is used, and is not ours to start, kill or stop.
        self._postgres = None if "DATABASE__URL" in named else EmbeddedPostgres(folder / "postgres")
        self._redis = None if "REDIS__HOST" in named else EmbeddedRedis(folder / "redis")
        self._audit_key = named.get(AUDIT_KEY) or audit_key(folder)
        places = places_of(rooms, ephemeral=ephemeral)
        self.registry, self.memory, self.router = (
            ServiceProcess(
                name,
                folder / "logs" / f"{name}.log",
                lambda: self.environment,
                place=places[name],
                folder=cwd,
                held=[lock],
                drain_s=rooms.drain_s(name),
            )
            for name in ("registry", "memory", "router")
        )

    @property
    def postgres(self) -> EmbeddedPostgres:
        if self._postgres is None:
            raise StartError("this stack uses the Postgres that DATABASE__URL names and has none of its own")
        return self._postgres

    @property
    def redis(self) -> EmbeddedRedis:
        if self._redis is None:
            raise StartError("this stack uses the Redis that REDIS__HOST names and has none of its own")
        return self._redis

    @property
    def servers(self) -> list[EmbeddedServer]:
        """Those that are ours, in the order in which they start."""
        return [server for server in (self._postgres, self._redis) if server is not None]

    @property
    def services(self) -> list[ServiceProcess]:
        return [self.registry, self.memory, self.router]

    @property
    def parts(self) -> list[EmbeddedServer | ServiceProcess]:
        """All that is ours, in the order in which it starts."""
        return [*self.servers, *self.services]

    @property
    def notes(self) -> list[str]:
        """What a person should know about where data, programs and ports are; empty in the usual case."""
        return [note for part in self.parts for note in part.notes]

    @property
    def environment(self) -> dict[str, str]:
        environment = self._named | {"PYTHONPATH": _module_path(self._named)}
        if self._postgres is not None:
            environment["DATABASE__URL"] = self._postgres.app_url
            environment["DATABASE__MIGRATE_URL"] = self._postgres.owner_url
            environment["DATABASE__SYSTEM_URL"] = environment["DATABASE__DIRECT_URL"] = self._postgres.system_url
        environment[AUDIT_KEY] = self._audit_key
        if self._redis is not None:
            environment["REDIS__HOST"] = self._redis.host
            environment["REDIS__PORT"] = str(self._redis.port)
            environment["REDIS__PASSWORD"] = self._redis.password
        for service in self.services:
            environment[f"{service.name.upper()}__PORT"] = str(service.port)
            environment[f"{service.name.upper()}__METRICS_PORT"] = str(service.metrics_port)
        targets = {service.name: service.target for service in self.services}
        return environment | {setting: targets[peer] for setting, peer in PEERS.items()}


@asynccontextmanager
async def raise_stack(
    folder: Path | None = None,
    *,
    ephemeral: bool = False,
    settings: Mapping[str, str] | None = None,
    environment: Mapping[str, str] | None = None,
    say: Say = lambda _: None,
    warn: Say = lambda _: None,
) -> AsyncIterator[Stack]:
    """Up and SERVING inside the block, gone after it; what fails is a StartError, and nothing is left behind.

    `ephemeral`: a folder of its own that is removed at the end, and free ports only. `settings` are given to
    the services besides. `environment` stands for the person's environment and `.env`, of which it then sees
    nothing. `say` is told each step, `warn` what a person should not miss. To be used from the main thread
    (see `Child`).
    """
    if ephemeral and folder is not None:
        raise ValueError("an ephemeral stack makes its own folder")
    named = settled(person_environment() if environment is None else environment) | dict(settings or {})
    rooms = rooms_of(named)
    async with AsyncExitStack() as undo:
        place = ephemeral_folder(undo) if ephemeral else ready_folder(folder or FOLDER)
        lock = await hold(place, undo, drain_s=max(map(rooms.drain_s, rooms.services)), warn=warn)
        cwd = None if environment is None else place
        stack = Stack(place, named, rooms, lock=lock, ephemeral=ephemeral, cwd=cwd)
        for setting in named_ports(rooms).values() if ephemeral else ():
            warn(f"{setting} is not used: an ephemeral stack takes free ports")
        if "REDIS__HOST" in named:
            await _warn_without_redis(rooms.redis, warn)
        await _start_servers(stack, undo, say)
        await migrate_all(stack.environment)
        say("schemas are up to date")
        await _start_services(stack, undo, say, warn)
        yield stack


async def _warn_without_redis(redis: RedisSettings, warn: Say) -> None:
    client = Redis(
        host=redis.host,
        port=redis.port,
        username=redis.username,
        password=redis.password.get_secret_value() if redis.password else None,
        db=redis.db,
        ssl=redis.tls,
        socket_timeout=_PING_S,
        socket_connect_timeout=_PING_S,
        retry=Retry(NoBackoff(), 0),
    )
    async with client:
        try:
            await client.ping()
        except (RedisError, OSError) as error:
            where = f"the Redis that REDIS__HOST names ({redis.host}:{redis.port})"
            warn(f"{where} cannot be used: {error} The services run without it, slower, until it answers.")


async def _start_servers(stack: Stack, undo: AsyncExitStack, say: Say) -> None:
    for server in stack.servers:
        undo.push_async_callback(server.stop)
        await server.start()
        say(f"{server.name} is up on {server.host}:{server.port}")


async def _start_services(stack: Stack, undo: AsyncExitStack, say: Say, warn: Say) -> None:
    for service in stack.services:
        undo.push_async_callback(_drained, service, warn)
    # The router last: it calls the other two.
    await _all_started(stack.registry, stack.memory)
    await _all_started(stack.router)
    for service in stack.services:
        say(f"{service.name} is serving on {service.target}")


async def _drained(service: ServiceProcess, warn: Say) -> None:
    ending = asyncio.create_task(service.terminate())
    if not (await asyncio.wait({ending}, timeout=_QUIET_S))[0]:
        warn(f"waiting for {service.name}, which has calls under way: up to {service.drain_s:g} s")
    await ending
    if service.cut:
        warn(f"{service.name} had to be killed: calls under way in it were cut")


async def _all_started(*services: ServiceProcess) -> None:
    """At the same time; the first that fails is told once all have finished trying."""
    results = await asyncio.gather(*(service.start() for service in services), return_exceptions=True)
    for failure in results:
        if failure is not None:
            raise failure


def _module_path(environment: Mapping[str, str]) -> str:
    """The services run the same code as we do, wherever they are started."""
    given = environment.get("PYTHONPATH", "").split(os.pathsep)
    return os.pathsep.join(dict.fromkeys(os.path.abspath(entry) for entry in [*given, *sys.path] if entry))


__all__ = ["FOLDER", "PEERS", "Stack", "bare_environment", "person_environment", "raise_stack"]
