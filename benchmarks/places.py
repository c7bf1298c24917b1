"""Where it is measured: the stack, and the servers it is compared with, each started when it is first needed."""

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager

import grpc
import redis.asyncio

from benchmarks import textbook
from benchmarks.rows import Server
from twofold.client import Twofold
from twofold_cli.embedded import ServiceProcess
from twofold_cli.embedded.ports import free_port
from twofold_cli.stack import Stack, raise_stack
from twofold_cli.up import DEVELOPMENT

_END_S = 10


class Place:
    """The stack with a client on it, and what it is compared with."""

    def __init__(self, stack: Stack, twofold: Twofold, undo: AsyncExitStack) -> None:
        self.stack = stack
        self.twofold = twofold
        self._undo = undo
        self._echo: Server | None = None
        self._textbook: Server | None = None
        self._without_redis: tuple[Server, Twofold] | None = None

    @property
    def memory(self) -> Server:
        return server_of(self.stack.memory)

    @property
    def router(self) -> Server:
        return server_of(self.stack.router)

    @property
    def redis_url(self) -> str:
        """The stack's Redis, for others than the services."""
        redis = self.stack.redis
        return f"redis://:{redis.password}@{redis.host}:{redis.port}/0"

    async def redis_used(self) -> tuple[int, int]:
        """Bytes that the stack's Redis uses, and how many keys it holds."""
        async with redis.asyncio.Redis.from_url(self.redis_url) as client:
            return (await client.info("memory"))["used_memory"], await client.dbsize()

    async def echo(self) -> Server:
        """The bare echo, in a process of its own."""
        if self._echo is None:
            pid, ports = await self._process("benchmarks.echo", os.environ)
            self._echo = Server(f"127.0.0.1:{ports[0]}", pid)
        return self._echo

    async def textbook(self) -> Server:
        """The textbook memory on the stack's own servers, in a process and a database of its own."""
        if self._textbook is None:
            urls = await self.stack.postgres.create_database("textbook")
            where = {"TEXTBOOK_POSTGRES": urls.owner, "TEXTBOOK_REDIS": self.redis_url}
            pid, ports = await self._process(textbook.__name__, os.environ | where)
            self._textbook = Server(f"127.0.0.1:{ports[0]}", pid, f"http://127.0.0.1:{ports[1]}/metrics")
        return self._textbook

    async def settled(self) -> None:
        """Returns when the textbook has written the copies that it writes behind its answers."""
        if self._textbook is not None:
            async with grpc.aio.insecure_channel(self._textbook.target) as channel:
                settled: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(f"/{textbook.SERVICE}/Settled")
                await settled(b"")

    async def without_redis(self) -> tuple[Server, Twofold]:
        """A second memory worker on the same Postgres, for which nothing listens where its Redis should be."""
        if self._without_redis is None:
            nowhere = {"REDIS__HOST": "127.0.0.1", "REDIS__PORT": str(free_port())}
            server = await self._undo.enter_async_context(self.another_worker(nowhere))
            self._without_redis = server, await self._undo.enter_async_context(Twofold(memory=server.target))
        return self._without_redis

    @asynccontextmanager
    async def another_worker(self, environment: Mapping[str, str] | None = None) -> AsyncIterator[Server]:
        """One more memory worker on the same stores, or with an environment that differs."""
        worker = ServiceProcess(
            "memory",
            self.stack.folder / "logs" / "memory-another.log",
            lambda: {
                **self.stack.environment,
                "MEMORY__PORT": str(worker.port),
                "MEMORY__METRICS_PORT": str(worker.metrics_port),
                **(environment or {}),
            },
        )
        await worker.start()
        try:
            yield server_of(worker)
        finally:
            await worker.terminate()

    async def _process(self, module: str, environment: Mapping[str, str]) -> tuple[int, Sequence[str]]:
        """Starts a module that prints its ports; its process id and what it printed."""
        process = subprocess.Popen([sys.executable, "-m", module], env=environment, stdout=subprocess.PIPE, text=True)  # noqa: ASYNC220
        self._undo.push_async_callback(_ended, process)
        assert process.stdout is not None
        ports = (await asyncio.to_thread(process.stdout.readline)).split()
        if not ports:
            raise RuntimeError(f"{module} did not start")
        return process.pid, ports


@asynccontextmanager
async def measuring_place(*, told: Callable[[str], None] = lambda _: None) -> AsyncIterator[Place]:
    """A stack of its own with a client, gone after the block together with what was started for comparison."""
    async with AsyncExitStack() as undo:
        told("raising a stack")
        stack = await undo.enter_async_context(raise_stack(ephemeral=True, settings=DEVELOPMENT))
        registry, memory, router = (service.target for service in stack.services)
        twofold = Twofold(registry=registry, memory=memory, router=router)
        yield Place(stack, await undo.enter_async_context(twofold), undo)


def server_of(service: ServiceProcess) -> Server:
    """One of our services as a server to be measured."""
    return Server(service.target, service.pid, service.metrics_url)


async def _ended(process: "subprocess.Popen[str]") -> None:
    process.send_signal(signal.SIGTERM)
    try:
        await asyncio.to_thread(process.wait, _END_S)
    except subprocess.TimeoutExpired:
        process.kill()
        await asyncio.to_thread(process.wait)
    if process.stdout is not None:
        process.stdout.close()
