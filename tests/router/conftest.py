"""A router in this process, with peers and agents that do as a test says."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Any, TypeVar

import aiohttp
import grpc
import pytest
from google.rpc import error_details_pb2
from grpc_status import rpc_status

from tests.router.fakes import FakeMemory, FakeRegistry, memory_server, registry_server
from tests.router.scripted import ScriptedAgents, scripted_agents
from twofold.router.v1 import routing_pb2, routing_pb2_grpc, turn_pb2, turn_pb2_grpc
from twofold_chassis.settings import RedisSettings
from twofold_router.app import router
from twofold_router.settings import RouterSettings, Settings

METADATA = (("twofold-actor", "tester"), ("x-request-id", "request-1"))
Value = TypeVar("Value")


async def answered(ask: Callable[[], Awaitable[Value]]) -> Value:
    """What it answers or is refused with. Asked again while nobody can tell: a busy machine may need longer than a lease."""
    async with asyncio.timeout(60):
        while True:
            try:
                return await ask()
            except grpc.aio.AioRpcError as error:
                if error.code() is not grpc.StatusCode.UNAVAILABLE:
                    raise


class Client:
    """What a caller of the router does."""

    def __init__(self, channel: grpc.aio.Channel, metrics_port: int | None = None) -> None:
        self.channel = channel
        self._metrics_port = metrics_port
        self._routing = routing_pb2_grpc.RoutingServiceStub(channel)
        self._turns = turn_pb2_grpc.TurnServiceStub(channel)

    async def resolve(self, workspace_id: str, /, *, timeout: float = 30, **fields: Any) -> routing_pb2.ResolveResponse:
        request = routing_pb2.ResolveRequest(
            **{"workspace_id": workspace_id, "user_id": "ada", "agent_id": "agent", **fields}
        )
        return await self._routing.Resolve(request, metadata=METADATA, timeout=timeout)

    async def check(self, workspace_id: str, /, **fields: Any) -> routing_pb2.CheckResponse:
        request = routing_pb2.CheckRequest(**{"workspace_id": workspace_id, "user_id": "ada", "agent_id": "agent", **fields})
        return await self._routing.Check(request, metadata=METADATA, timeout=30)

    async def explain(self, workspace_id: str, /, **fields: Any) -> routing_pb2.ExplainResponse:
        request = routing_pb2.ExplainRequest(
            **{"workspace_id": workspace_id, "user_id": "ada", "agent_id": "agent", **fields}
        )
        return await self._routing.Explain(request, metadata=METADATA, timeout=30)

    async def report(self, workspace_id: str, /, *outcomes: routing_pb2.Outcome) -> None:
        request = routing_pb2.ReportOutcomeRequest(workspace_id=workspace_id, outcomes=outcomes)
        await self._routing.ReportOutcome(request, metadata=METADATA, timeout=30)

    async def resolve_all(
        self, workspace_id: str, /, *pairs: tuple[str, str], **fields: Any
    ) -> list[routing_pb2.ResolveResult]:
        told = [routing_pb2.UserAgent(user_id=user_id, agent_id=agent_id) for user_id, agent_id in pairs]
        request = routing_pb2.BatchResolveRequest(workspace_id=workspace_id, pairs=told, **fields)
        return list((await self._routing.BatchResolve(request, metadata=METADATA, timeout=30)).results)

    def run(
        self, workspace_id: str, /, message: str = "you", *, timeout: float | None = 30, **fields: Any
    ) -> "grpc.aio.UnaryStreamCall[turn_pb2.RunRequest, turn_pb2.RunResponse]":
        request = turn_pb2.RunRequest(
            **{"workspace_id": workspace_id, "user_id": "ada", "agent_id": "agent", "message": message, **fields}
        )
        return self._turns.Run(request, metadata=METADATA, timeout=timeout)

    def attach(
        self, workspace_id: str, operation_id: str, /, *, timeout: float | None = 30, **fields: Any
    ) -> "grpc.aio.UnaryStreamCall[turn_pb2.AttachRequest, turn_pb2.AttachResponse]":
        request = turn_pb2.AttachRequest(
            **{"workspace_id": workspace_id, "user_id": "ada", "operation_id": operation_id, **fields}
        )
        return self._turns.Attach(request, metadata=METADATA, timeout=timeout)

    async def attached(self, workspace_id: str, operation_id: str, /, **fields: Any) -> "Turn":
        return Turn([event async for event in self.attach(workspace_id, operation_id, **fields)])

    async def cancel(self, workspace_id: str, operation_id: str, /, **fields: Any) -> bool:
        request = turn_pb2.CancelTurnRequest(
            **{"workspace_id": workspace_id, "user_id": "ada", "operation_id": operation_id, **fields}
        )
        return (await self._turns.CancelTurn(request, metadata=METADATA, timeout=30)).cancelled

    async def turn(self, workspace_id: str, /, message: str = "you", **fields: Any) -> "Turn":
        return Turn([event async for event in self.run(workspace_id, message, **fields)])

    async def metrics(self) -> str:
        async with aiohttp.ClientSession() as session:
            response = await session.get(f"http://127.0.0.1:{self._metrics_port}/metrics")
            return await response.text()


class Turn:
    """The events of a whole turn."""

    def __init__(self, events: Sequence[turn_pb2.RunResponse | turn_pb2.AttachResponse]) -> None:
        kinds = [event.WhichOneof("event") for event in events]
        order = ["started", "waiting", "delta", "tool_calls", "completed"]
        assert kinds == sorted(kinds, key=lambda kind: order.index(kind or ""))
        assert (kinds[0], kinds[-1]) == ("started", "completed")
        self.started = events[0].started
        self.waited = [event.waiting for event in events if event.HasField("waiting")]
        self.deltas = [event.delta.text for event in events if event.HasField("delta")]
        self.calls = [call for event in events for call in event.tool_calls.calls]
        self.completed = events[-1].completed

    @property
    def text(self) -> str:
        return "".join(self.deltas)


class Refused:
    """How a call was refused: filled when the block ends."""

    code: grpc.StatusCode
    reason: str
    message: str
    details: bytes
    metadata: dict[str, str]


@contextlib.contextmanager
def refused(code: grpc.StatusCode, reason: str) -> Any:
    """The block is refused with this status and this reason."""
    told = Refused()
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        yield told
    error = caught.value
    trailers = dict(error.trailing_metadata() or ())
    assert (error.code(), trailers.get("twofold-reason")) == (code, reason), error.details()
    told.code, told.reason, told.message = code, reason, error.details() or ""
    status = rpc_status.from_call(error)  # type: ignore[arg-type]
    assert status is not None
    told.details = status.SerializeToString()
    info = error_details_pb2.ErrorInfo()
    status.details[0].Unpack(info)
    told.metadata = dict(info.metadata)


@pytest.fixture(scope="session")
async def _registry() -> AsyncIterator[tuple[FakeRegistry, str]]:
    registry = FakeRegistry()  # type: ignore[abstract]  # only what the router asks
    async with registry_server(registry) as target:
        yield registry, target


@pytest.fixture(scope="session")
async def _memory() -> AsyncIterator[tuple[FakeMemory, str]]:
    memory = FakeMemory()  # type: ignore[abstract]
    async with memory_server(memory) as target:
        yield memory, target


@pytest.fixture(scope="session")
async def _agents() -> AsyncIterator[ScriptedAgents]:
    async with scripted_agents() as agents:
        yield agents


@pytest.fixture
def registry(_registry: tuple[FakeRegistry, str]) -> FakeRegistry:
    _registry[0].reset()
    return _registry[0]


@pytest.fixture
def memory(_memory: tuple[FakeMemory, str]) -> FakeMemory:
    _memory[0].reset()
    return _memory[0]


@pytest.fixture
def agents(_agents: ScriptedAgents) -> ScriptedAgents:
    _agents.reset()
    return _agents


Start = Callable[..., AbstractAsyncContextManager[Client]]


@pytest.fixture(scope="session")
def start(_registry: tuple[FakeRegistry, str], _memory: tuple[FakeMemory, str], redis_settings: RedisSettings) -> Start:
    """Starts a router of a test's own, with settings of its own."""

    # A machine that stands still for a second is no reason to ask the registry: what leases are about has its own tests.
    patient: dict[str, Any] = {"lease_ms": 30_000, "silence_ms": 20_000, "ping_ms": 50, "allow_loopback_urls": True}
    patient["url_suffixes"] = ("svc.cluster.local", "a", "green", "moved", "other", "paused")
    patient["rebuild_wait_ms"] = 5000

    @contextlib.asynccontextmanager
    async def started(redis: RedisSettings = redis_settings, **options: Any) -> AsyncIterator[Client]:
        chosen = {"port": 0, "drain_s": 0.2, "registry_target": _registry[1], "memory_target": _memory[1]}
        chosen |= {"detached_s": 0, "cold_start_s": 0, "usage_sweep_s": 3600}
        settings = Settings(redis=redis, router=RouterSettings(**chosen | patient | options))
        async with router(settings) as running, grpc.aio.insecure_channel(f"127.0.0.1:{running.port}") as channel:
            yield Client(channel, running.metrics_port)

    return started


@pytest.fixture(scope="session")
async def _client(start: Start) -> AsyncIterator[Client]:
    async with start() as client:
        yield client


@pytest.fixture
def client(_client: Client, registry: FakeRegistry, memory: FakeMemory, agents: ScriptedAgents) -> Client:
    """The session's router, with peers and agents as new."""
    return _client


@pytest.fixture
def ws(workspace_id: str, client: Client, registry: FakeRegistry, agents: ScriptedAgents) -> str:
    """A workspace where "ada" may use the agent "agent"."""
    registry.publish(workspace_id, "agent", agents.agent("agent"))
    registry.grant(workspace_id, "ada", "agent")
    return workspace_id
