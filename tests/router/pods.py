"""Pods of tests, sessions as others see them, and a registry and routers for both."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
from pydantic import SecretStr
from redis.asyncio import Redis

from tests.databases import settings_of_database
from tests.router.test_revocation import House, a_house
from tests.waiting import until
from twofold.pod import HeldSession, PodLink
from twofold.router.v1 import session_pb2 as pb
from twofold.router.v1.session_pb2_grpc import SessionServiceStub
from twofold_chassis.settings import RedisSettings
from twofold_cli.embedded.postgres import EmbeddedPostgres
from twofold_cli.embedded.redis import EmbeddedRedis
from twofold_router.app import router
from twofold_router.settings import RouterSettings, Settings

# A machine that stands still for a second is no reason to end a lease: what those are about says so.
PATIENT = {
    "lease_ms": 20_000,
    "silence_ms": 10_000,
    "ping_ms": 50,
    "pod_lease_ms": 30_000,
    "pod_heartbeat_ms": 50,
    "peer_timeout_s": 5,
}


class Sessions:
    """What everybody but a pod asks a router."""

    def __init__(self, channel: grpc.aio.Channel, port: int, ws: str) -> None:
        self.stub = SessionServiceStub(channel)
        self.target = f"127.0.0.1:{port}"
        self.ws = ws

    async def get(self, session_id: str) -> pb.GetSessionResponse:
        return await self.stub.GetSession(pb.GetSessionRequest(workspace_id=self.ws, session_id=session_id), timeout=20)

    async def page(self, **wanted: Any) -> pb.ListSessionsResponse:
        return await self.stub.ListSessions(pb.ListSessionsRequest(workspace_id=self.ws, **wanted), timeout=20)

    async def ids(self, **wanted: Any) -> set[str]:
        page = await self.page(page_size=500, **wanted)
        assert not page.next_page_token
        return {session.session_id for session in page.sessions}

    async def count(self, **wanted: Any) -> int:
        request = pb.CountSessionsRequest(workspace_id=self.ws, **wanted)
        return (await self.stub.CountSessions(request, timeout=20)).count

    async def close(self, session_id: str, **values: Any) -> bool:
        request = pb.CloseSessionRequest(workspace_id=self.ws, session_id=session_id, **values)
        return (await self.stub.CloseSession(request, timeout=20)).told

    async def send(self, payload: bytes, **values: Any) -> pb.SendToSessionResponse:
        request = pb.SendToSessionRequest(workspace_id=self.ws, payload=payload, **values)
        return await self.stub.SendToSession(request, timeout=20)

    async def pods(self) -> set[str]:
        listed = await self.stub.ListLinkedPods(pb.ListLinkedPodsRequest(page_size=500), timeout=20)
        return {pod.pod_id for pod in listed.pods}


class Pod(PodLink):
    """A pod that remembers what it was told."""

    def __init__(self, *targets: str, pod_id: str) -> None:
        self.got: list[tuple[str, str, bytes]] = []
        self.over: list[tuple[str, str]] = []
        self.drained: list[str] = []
        super().__init__(
            targets,
            pod_id=pod_id,
            address=f"{pod_id}:80",
            delivered=self._got,
            closed=self._over,
            drain=self._drained,
            actor="pod",
        )

    async def _got(self, session: HeldSession, message_id: str, payload: bytes) -> None:
        self.got.append((session.session_id, message_id, payload))

    async def _over(self, session: HeldSession, reason: str) -> None:
        self.over.append((session.session_id, reason))

    async def _drained(self, reason: str) -> None:
        self.drained.append(reason)

    async def hears(self, session: HeldSession, reason: str) -> None:
        """Returns when it was told that the session is over, and why."""
        await until(lambda: (session.session_id, reason) in self.over, f"{session.session_id} {reason}: {self.over}")


class Cloud:
    """A registry, a Redis, and routers that have both."""

    def __init__(self, house: House, server: EmbeddedRedis, stack: contextlib.AsyncExitStack) -> None:
        self.house = house
        self.ws = house.ws
        self.redis = house.redis
        self.server = server
        self._stack = stack

    async def asked(self, *command: str | int) -> Any:
        """The reply of Redis to one command."""
        async with Redis(host=self.server.host, port=self.server.port, password=self.server.password, protocol=2) as client:
            return await client.execute_command(*command)  # type: ignore[no-untyped-call]

    def silence(self) -> None:
        """Redis stands still until it is resumed: when the test is over, at the latest."""
        self.server.pause()
        self._stack.callback(self.server.resume)

    async def router(self, **options: Any) -> Sessions:
        return await self._stack.enter_async_context(self.routing(**options))

    @contextlib.asynccontextmanager
    async def routing(self, *, redis: RedisSettings | None = None, **options: Any) -> AsyncIterator[Sessions]:
        chosen = {"port": 0, "drain_s": 0, "registry_target": f"127.0.0.1:{self.house.port}", "memory_target": "127.0.0.1:1"}
        settings = Settings(redis=redis or self.redis, router=RouterSettings(**chosen | PATIENT | options))
        async with router(settings) as running, grpc.aio.insecure_channel(f"127.0.0.1:{running.port}") as channel:
            yield Sessions(channel, running.port, self.ws)

    async def pod(self, *routers: Sessions, pod_id: str = "gate-1") -> Pod:
        pod = Pod(*(router.target for router in routers), pod_id=pod_id)
        await self._stack.enter_async_context(pod)
        await pod.linked()
        return pod

    async def open(self, pod: Pod, user_id: str = "ada", **values: Any) -> HeldSession:
        return await pod.open(self.ws, user_id=user_id, agent_id="agent", timeout_s=30, **values)


@contextlib.asynccontextmanager
async def a_ground(postgres: EmbeddedPostgres, folder: Path, name: str) -> AsyncIterator[tuple[House, EmbeddedRedis]]:
    """A registry and a Redis for the tests of a module."""
    redis = EmbeddedRedis(folder / f"redis-{name}")
    await redis.start()
    try:
        database = settings_of_database(await postgres.create_database(name))
        settings = RedisSettings(host=redis.host, port=redis.port, password=SecretStr(redis.password), budget_ms=2000)
        async with a_house(database, settings, name) as house:
            yield house, redis
    finally:
        await redis.stop()


@contextlib.asynccontextmanager
async def a_cloud(ground: tuple[House, EmbeddedRedis], ws: str) -> AsyncIterator[Cloud]:
    """A workspace of a test's own, where "ada" may use "agent", and an empty Redis."""
    base, redis = ground
    if not redis.running:
        await redis.start()
    async with contextlib.AsyncExitStack() as stack:
        house = House(stack, base.database, base.redis, base.port, ws)
        await house.furnish()
        await house.grant()
        cloud = Cloud(house, redis, stack)
        await cloud.asked("FLUSHALL")
        yield cloud


async def settled(*pods: Pod) -> None:
    """Returns when each pod has said once more how many sessions it holds, and was answered."""
    marks = {pod: pod._good_until for pod in pods}
    await until(lambda: all(pod._good_until > mark for pod, mark in marks.items()))
    await asyncio.sleep(0)
