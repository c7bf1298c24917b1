"""The server of a service: gRPC with health, reflection and metrics, an orderly end, and a start that explains itself."""

import asyncio
import contextlib
import gc
import os
import signal
import socket
import sys
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Any, Protocol
from urllib.parse import quote

import grpc
import prometheus_client
import structlog
from grpc_health.v1 import health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from grpc_reflection.v1alpha.reflection import aio as reflection_aio
from prometheus_client import CollectorRegistry

from twofold_chassis import logs
from twofold_chassis.edge import Edge, Metrics, Serializer
from twofold_chassis.health import Check, Health
from twofold_chassis.settings import ListenSettings, LogSettings, ServiceSettings, Settings, load
from twofold_chassis.start import StartError

try:
    import fcntl
except ImportError:  # not on Windows
    fcntl = None  # type: ignore[assignment]

_NOTICE_S = 0.1
_COLLECT_AFTER = 20_000
_LEFT_S = 0.5
_HEALTH = "grpc.health.v1.Health"
_REFLECTION = ("grpc.reflection.v1.ServerReflection", "grpc.reflection.v1alpha.ServerReflection")


@dataclass(frozen=True, slots=True)
class Face:
    """One gRPC service: its full name, its servicer, and the generated function that adds it to a server, or to an edge.

    `well`, if given, says whether it can do its job while the others can: its own entry of health.
    """

    name: str
    servicer: Any
    add: Callable[[Any, Any], None]
    well: Callable[[], bool] | None = None


class Running(Protocol):
    """A server that serves."""

    @property
    def port(self) -> int:
        """The port it listens on."""
        ...

    @property
    def metrics_port(self) -> int | None:
        """The port of its metrics, if it has one."""
        ...


@dataclass(frozen=True, slots=True)
class _Running:
    port: int
    metrics_port: int | None


@contextlib.asynccontextmanager
async def serving(
    listen: ListenSettings,
    log: LogSettings,
    *,
    faces: Sequence[Face],
    check: Check,
    metrics: CollectorRegistry,
    serializers: Mapping[str, Serializer] | None = None,
) -> AsyncIterator[Running]:
    """Serves `faces` until the block ends, then drains: NOT_SERVING, a short notice, running calls finish within drain_s
    while new ones are refused as Draining.

    `check` says whether the service can do its job. `serializers` replace the response serializer of single rpcs, by full
    method name ("/package.Service/Method"). Raises StartError if a port is taken.
    """
    health = Health([face.name for face in faces], own={face.name: face.well for face in faces if face.well is not None})
    edge = Edge(
        Metrics(metrics),
        log,
        deadline_s=listen.deadline_s,
        stream_deadline_s=listen.stream_deadline_s,
        serializers=serializers or {},
    )
    for face in faces:
        face.add(face.servicer, edge)
    # Only Linux spreads connections over those who share a port.
    count = listen.listeners if sys.platform == "linux" else 1
    servers = [_server(edge, faces, health, listen, shares_its_port=count > 1) for _ in range(count)]
    with _bound(servers, listen) as port, _metrics_served(listen, metrics) as metrics_port:
        async with health.watching(check):
            await asyncio.gather(*(server.start() for server in servers))
            try:
                yield _Running(port, metrics_port)
            finally:
                await health.drain()
                await asyncio.sleep(_NOTICE_S)  # a balancer that watches health may still be sending
                await edge.drain(listen.drain_s)
                # Health watches end here, calls that reached the transport but never us, and those that do not let go.
                await asyncio.gather(*(server.stop(_LEFT_S) for server in servers))


def main(kind: type[Settings], app: Callable[[Settings], AbstractAsyncContextManager[Running]], *, service: str) -> None:
    """The main function of a service: settings, start, serve until SIGTERM or SIGINT, drain.

    Exits non-zero with one sentence if the start fails.
    """
    try:
        settings = load(kind)
        logs.configure(settings.log, service=service)
        with asyncio.Runner(loop_factory=_new_loop) as runner:
            runner.run(_serve(settings, app, service))
    except StartError as error:
        print(f"twofold-{service}: {error}", file=sys.stderr)
        raise SystemExit(1) from None
    except KeyboardInterrupt:  # before the signals were ours
        raise SystemExit(128 + signal.SIGINT) from None


async def _serve(settings: Settings, app: Callable[[Settings], AbstractAsyncContextManager[Running]], service: str) -> None:
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    logger = structlog.get_logger("twofold.server")
    async with app(settings) as running:
        # What is there now stays: the collector need not look at it again and again, nor at each few calls' objects.
        gc.collect()
        gc.freeze()
        gc.set_threshold(_COLLECT_AFTER, 20, 20)
        logger.info("serving", service=service, port=running.port, metrics_port=running.metrics_port)
        await stop.wait()
        logger.info("draining", service=service)
    logger.info("stopped", service=service)


def _new_loop() -> asyncio.AbstractEventLoop:
    """The faster loop, where there is one."""
    try:
        import uvloop
    except ImportError:
        return asyncio.new_event_loop()
    return uvloop.new_event_loop()


def _server(
    edge: Edge, faces: Sequence[Face], health: Health, listen: ListenSettings, *, shares_its_port: bool
) -> grpc.aio.Server:
    options = [*_options(listen), ("grpc.so_reuseport", int(shares_its_port))]
    server = grpc.aio.server(options=options)
    server.add_generic_rpc_handlers((edge,))
    health_pb2_grpc.add_HealthServicer_to_server(health.servicer, server)
    _add_reflection(server, [*(face.name for face in faces), _HEALTH, *_REFLECTION])
    return server


def _options(listen: ListenSettings) -> list[tuple[str, int]]:
    return [
        ("grpc.max_receive_message_length", listen.message_bytes_max),
        ("grpc.max_send_message_length", listen.message_bytes_max),
        ("grpc.max_concurrent_streams", listen.streams_max),
        ("grpc.max_metadata_size", 16 * 1024),
        ("grpc.keepalive_time_ms", 60_000),
        ("grpc.keepalive_timeout_ms", 20_000),
        ("grpc.http2.min_ping_interval_without_data_ms", 10_000),  # the clients' keepalive is 30 s
        ("grpc.keepalive_permit_without_calls", 1),
    ]


@contextlib.contextmanager
def _bound(servers: Sequence[grpc.aio.Server], listen: ListenSettings) -> Iterator[int]:
    """Binds all servers to one port. grpc.aio takes one call per server and turn of the event loop: with several, calls of
    several connections arrive together, and share batches and round trips.

    Servers that share a port must all allow it, and so would let in another process of the same user: a lock keeps that out.
    """
    address = f"{listen.host}:{listen.port}"
    family = socket.AF_INET6 if ":" in listen.host else socket.AF_INET
    taken = StartError(f"cannot listen on {address}: the port is taken or the address is not of this machine")
    with contextlib.ExitStack() as cleanup:
        try:
            if listen.port:
                cleanup.enter_context(_locked(address))
            # We try before gRPC's core does, which would write to stderr, in its own form, what it finds wrong.
            socket.create_server((listen.host.strip("[]"), listen.port), family=family).close()
            port = servers[0].add_insecure_port(address)
            if port == 0 or any(server.add_insecure_port(f"{listen.host}:{port}") != port for server in servers[1:]):
                raise taken
        except (OSError, RuntimeError):
            raise taken from None
        yield port


@contextlib.contextmanager
def _locked(address: str) -> Iterator[None]:
    """Raises OSError if another process of ours has the address. The lock ends with the process, at the latest."""
    if fcntl is None:
        yield
        return
    user = os.getuid()
    with open(os.path.join(tempfile.gettempdir(), f"twofold-{user}-port-{quote(address, safe='')}.lock"), "a") as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield


@contextlib.contextmanager
def _metrics_served(listen: ListenSettings, metrics: CollectorRegistry) -> Any:
    if listen.metrics_port is None:
        yield None
        return
    try:
        server, thread = prometheus_client.start_http_server(listen.metrics_port, addr=listen.host, registry=metrics)
    except OSError as error:
        raise StartError(f"cannot serve metrics on {listen.host}:{listen.metrics_port}: {error.strerror}") from None
    try:
        yield server.server_port
    finally:
        server.shutdown()
        server.server_close()
        thread.join(timeout=5)


def _add_reflection(server: grpc.aio.Server, names: Sequence[str]) -> None:
    # The library knows only v1alpha; v1 has the same messages under another name, and current tools ask for it first.
    servicer = reflection_aio.ReflectionServicer(names)
    reflection_pb2_grpc.add_ServerReflectionServicer_to_server(servicer, server)  # type: ignore[no-untyped-call]
    handler = grpc.stream_stream_rpc_method_handler(
        servicer.ServerReflectionInfo,
        request_deserializer=reflection_pb2.ServerReflectionRequest.FromString,
        response_serializer=reflection_pb2.ServerReflectionResponse.SerializeToString,
    )
    server.add_generic_rpc_handlers(
        (grpc.method_handlers_generic_handler(_REFLECTION[0], {"ServerReflectionInfo": handler}),)
    )


__all__ = ["Face", "Running", "ServiceSettings", "main", "serving"]
