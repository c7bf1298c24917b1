"""The router as a server: it starts before its peers, and says what it can do."""

import asyncio
import re
import socket
from contextlib import AsyncExitStack
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from tests.router.conftest import Client, Start, answered, refused
from tests.router.fakes import FakeRegistry, registry_server
from tests.waiting import until
from twofold.router.v1 import routing_pb2
from twofold_chassis.settings import load
from twofold_router.settings import Settings

OPERATIONS = Path(__file__).parents[2] / "docs/operations.md"
ROUTING = "twofold.router.v1.RoutingService"


async def status(client: Client, service: str) -> int:
    check = health_pb2_grpc.HealthStub(client.channel).Check  # type: ignore[attr-defined]
    return int((await check(health_pb2.HealthCheckRequest(service=service))).status)


async def until_serving(client: Client, service: str, *, serving: bool = True) -> None:
    watch = health_pb2_grpc.HealthStub(client.channel).Watch  # type: ignore[attr-defined]
    async with asyncio.timeout(20):
        async for answer in watch(health_pb2.HealthCheckRequest(service=service)):
            if (answer.status == health_pb2.HealthCheckResponse.SERVING) is serving:
                return


async def test_a_router_that_starts_first_serves_as_soon_as_the_registry_does(start: Start, client: Client, ws: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as reserved:
        port = reserved.getsockname()[1]
    registry = FakeRegistry()  # type: ignore[abstract]
    registry.publish(ws, "agent", "http://a")
    registry.grant(ws, "ada", "agent")
    service = ROUTING
    async with start(registry_target=f"127.0.0.1:{port}", memory_target="127.0.0.1:1") as early:
        assert await status(early, service) == health_pb2.HealthCheckResponse.NOT_SERVING
        async with registry_server(registry, port=port):
            await until_serving(early, service)
            assert (await early.resolve(ws)).url == "http://a"
            assert await status(early, "twofold.router.v1.TurnService") == health_pb2.HealthCheckResponse.SERVING


async def test_a_router_serves_only_when_the_registry_has_told_it_how_far_it_is(
    start: Start, client: Client, registry: FakeRegistry, ws: str
) -> None:
    registry.changes.hold_checkpoints()
    async with start() as deaf:
        assert await status(deaf, ROUTING) == health_pb2.HealthCheckResponse.NOT_SERVING
        with refused(grpc.StatusCode.UNAVAILABLE, "REASON_PEER_UNAVAILABLE"):
            await deaf.resolve(ws)
        registry.changes.go_on()
        await until_serving(deaf, ROUTING)
        assert (await deaf.resolve(ws)).url


async def test_a_router_serves_without_its_lease_as_long_as_the_registry_does(start: Start, client: Client, ws: str) -> None:
    registry = FakeRegistry()  # type: ignore[abstract]
    registry.publish(ws, "agent", "http://a")
    registry.grant(ws, "ada", "agent")
    with socket.create_server(("127.0.0.1", 0)) as reserved:
        port = reserved.getsockname()[1]
    async with AsyncExitStack() as stack:
        ending = AsyncExitStack()
        await ending.enter_async_context(registry_server(registry, port=port))
        stack.push_async_exit(ending)
        left = await stack.enter_async_context(
            start(registry_target=f"127.0.0.1:{port}", lease_ms=300, ping_ms=50, silence_ms=250)
        )
        await until_serving(left, ROUTING)
        await answered(lambda: left.resolve(ws))
        registry.changes.hold_checkpoints()
        await asyncio.sleep(2.5)  # longer than the lease, and twice as long as between two looks at its health
        assert await status(left, ROUTING) == health_pb2.HealthCheckResponse.SERVING
        assert (await answered(lambda: left.resolve(ws))).permission_source == routing_pb2.ROUTE_SOURCE_REGISTRY
        await ending.aclose()
        await until_serving(left, ROUTING, serving=False)
        with refused(grpc.StatusCode.UNAVAILABLE, "REASON_PEER_UNAVAILABLE"):
            await left.resolve(ws)


def test_settings_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ROUTER__REGISTRY_TARGET", "registry:50051")
    monkeypatch.setenv("ROUTER__TURNS_MAX", "7")
    settings = load(Settings)
    assert (settings.router.registry_target, settings.router.turns_max) == ("registry:50051", 7)
    assert (settings.router.port, settings.router.memory_target) == (50053, "127.0.0.1:50052")


async def test_every_metric_of_the_room_is_explained_to_operators(start: Start, client: Client) -> None:
    async with start(metrics_port=0) as counted:
        told = set(re.findall(r"^# TYPE (twofold_router_\w+) ", await counted.metrics(), re.MULTILINE))
    explained = set(re.findall(r"^\| `(twofold_router_\w+)", OPERATIONS.read_text(encoding="utf-8"), re.MULTILINE))
    assert {name for name in told if not name.endswith("_created")} == explained


async def test_what_is_done_is_counted(start: Start, client: Client, ws: str) -> None:
    async with start(metrics_port=0) as counted:
        await counted.turn(ws)
        await counted.turn(ws)

        async def done_with() -> bool:
            return "twofold_router_turns_running 0.0" in await counted.metrics()

        await until(done_with)
        text = await counted.metrics()
    for line in (
        'twofold_router_copies_total{kind="permission",source="registry"} 1.0',
        'twofold_router_copies_total{kind="permission",source="process"} 1.0',
        'twofold_router_copies_total{kind="permission",source="cache"} 0.0',
        'twofold_router_copies_total{kind="route",source="registry"} 1.0',
        'twofold_router_copies_total{kind="route",source="process"} 1.0',
        'twofold_router_turns_total{outcome="completed"} 2.0',
    ):
        assert line in text.splitlines()
