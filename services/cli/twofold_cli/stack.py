"""The whole stack on one machine: Postgres, Redis, migrations and the three services, raised and brought down."""

import asyncio
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

from dotenv import dotenv_values

from twofold_chassis.start import StartError
from twofold_cli.embedded import EmbeddedPostgres, EmbeddedRedis, ServiceProcess
from twofold_cli.embedded.child import server_account
from twofold_cli.embedded.folder import ASIDE, make_folder, may_enter, reserve, sign
from twofold_cli.embedded.server import EmbeddedServer
from twofold_cli.migrate import migrate_all

FOLDER = Path(".twofold")
# Where people expect them; others are taken where these are not free.
PORTS = {"registry": (50051, 9101), "memory": (50052, 9102), "router": (50053, 9103)}
PEERS = {"ROUTER__REGISTRY_TARGET": "registry", "ROUTER__MEMORY_TARGET": "memory"}


def person_environment() -> dict[str, str]:
    """What the services would read by themselves: `.env` here, and the environment, which wins."""
    written = {name: value for name, value in dotenv_values(".env").items() if value is not None}
    return written | dict(os.environ)


def bare_environment() -> dict[str, str]:
    """The environment without any of our settings, all of which have two underscores: for tests."""
    return {name: value for name, value in os.environ.items() if "__" not in name}


class Stack:
    """A stack that is up. `environment` is what its services were started with, and what a client needs."""

    def __init__(self, folder: Path, named: Mapping[str, str], *, usual_ports: bool, cwd: Path | None) -> None:
        self.folder = folder
        self._named = dict(named)
        # A server that the environment names is used, and is not ours to start, kill or stop.
        self._postgres = None if named.get("DATABASE__URL") else EmbeddedPostgres(folder / "postgres")
        self._redis = None if named.get("REDIS__HOST") else EmbeddedRedis(folder / "redis")
        self.registry = self._service("registry", usual_ports, cwd)
        self.memory = self._service("memory", usual_ports, cwd)
        self.router = self._service("router", usual_ports, cwd)

    def _service(self, name: str, usual_ports: bool, cwd: Path | None) -> ServiceProcess:
        port, metrics_port = PORTS[name] if usual_ports else (None, None)
        log = self.folder / "logs" / f"{name}.log"
        return ServiceProcess(name, log, lambda: self.environment, port=port, metrics_port=metrics_port, folder=cwd)

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
        """What a person should know about where data and programs are; empty in the usual case."""
        return [note for server in self.servers for note in server.notes]

    @property
    def environment(self) -> dict[str, str]:
        environment = self._named | {"PYTHONPATH": _module_path(self._named)}
        if self._postgres is not None:
            environment["DATABASE__URL"] = self._postgres.app_url
            environment["DATABASE__MIGRATE_URL"] = self._postgres.owner_url
        if self._redis is not None:
            environment["REDIS__HOST"] = self._redis.host
            environment["REDIS__PORT"] = str(self._redis.port)
            environment["REDIS__PASSWORD"] = self._redis.password
        for service in self.services:
            environment[f"{service.name.upper()}__PORT"] = str(service.port)
            environment[f"{service.name.upper()}__METRICS_PORT"] = str(service.metrics_port)
        targets = {service.name: service.target for service in self.services}
        return environment | {setting: targets[peer] for setting, peer in PEERS.items()}

    async def wait(self) -> None:
        """Until something ends that nobody told to: StartError naming it, with the last lines of its log."""
        deaths = {asyncio.create_task(part.died()): part for part in self.parts}
        try:
            done, _ = await asyncio.wait(deaths, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in deaths:
                task.cancel()
        first = next(iter(done))
        part = deaths[first]
        raise StartError(f"{part.name} {_end_of(first.result())}; its log ends:\n{part.child.log.tail()}")


@asynccontextmanager
async def raise_stack(
    folder: Path | None = None,
    *,
    ephemeral: bool = False,
    settings: Mapping[str, str] | None = None,
    environment: Mapping[str, str] | None = None,
    say: Callable[[str], None] = lambda _: None,
) -> AsyncIterator[Stack]:
    """Up and SERVING inside the block, gone after it; what fails is a StartError, and nothing is left behind.

    `ephemeral`: a folder of its own that is removed at the end, and free ports only. `settings` are given to
    the services besides. `environment` stands for the person's environment and `.env`, of which it then sees
    nothing. `say` is told each step. To be used from the main thread (see `Child`).
    """
    if ephemeral and folder is not None:
        raise ValueError("an ephemeral stack makes its own folder")
    named = dict(person_environment() if environment is None else environment) | dict(settings or {})
    async with AsyncExitStack() as undo:
        place = _ephemeral_folder(undo) if ephemeral else _folder(folder or FOLDER)
        await _hold(place, undo)
        cwd = None if environment is None else place
        stack = Stack(place, named, usual_ports=not ephemeral, cwd=cwd)
        await _start_servers(stack, undo, say)
        await migrate_all(stack.environment)
        say("schemas are up to date")
        await _start_services(stack, undo, say)
        yield stack


def _folder(folder: Path) -> Path:
    folder = folder.absolute()
    # The servers' account must be able to pass through, but not to look around.
    make_folder(folder, 0o700 if server_account() is None else 0o711)
    return folder


def _ephemeral_folder(undo: AsyncExitStack) -> Path:
    path = _folder(Path(tempfile.mkdtemp(prefix="twofold-")))
    if not may_enter(server_account(), path):
        path.rmdir()
        path = _folder(Path(tempfile.mkdtemp(prefix="twofold-", dir=ASIDE)))
    undo.callback(shutil.rmtree, path)
    return path


async def _hold(folder: Path, undo: AsyncExitStack) -> None:
    """One stack per folder."""
    lock = await reserve(folder, "another stack")
    undo.callback(os.close, lock)
    sign(lock, os.getpid())
    make_folder(folder / "logs", 0o700)


async def _start_servers(stack: Stack, undo: AsyncExitStack, say: Callable[[str], None]) -> None:
    for server in stack.servers:
        undo.push_async_callback(server.stop)
        await server.start()
        say(f"{server.name} is up on {server.host}:{server.port}")


async def _start_services(stack: Stack, undo: AsyncExitStack, say: Callable[[str], None]) -> None:
    for service in stack.services:
        undo.push_async_callback(service.terminate)
    # The router last: it calls the other two.
    await _all_started(stack.registry, stack.memory)
    await _all_started(stack.router)
    for service in stack.services:
        say(f"{service.name} is serving on {service.target}")


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


def _end_of(code: int) -> str:
    if code < 0:
        return f"was ended by {signal.Signals(-code).name}"
    return f"ended with exit code {code}"
