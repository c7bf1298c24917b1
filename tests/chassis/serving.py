"""A server with one service that does what its caller asks for by the request's text."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import grpc
from google.protobuf.message import DecodeError
from prometheus_client import CollectorRegistry

from twofold_chassis import call, refusals
from twofold_chassis.server import Face, Running, serving
from twofold_chassis.settings import ListenSettings, LogSettings

NAME = "test.Service"


def text_of(raw: bytes) -> str:
    if raw == b"no message":
        raise DecodeError("a secret of the library")
    return raw.decode()


def bytes_of(text: str | bytes) -> bytes:
    return text.encode() if isinstance(text, str) else text  # grpc encodes text itself, before it asks us


class Service:
    """`Do`, `Stream`, `Gather` and `Talk`: ok, refuse, fail, wait, context. `Watch` waits until the server ends."""

    def __init__(self) -> None:
        self.begun = asyncio.Event()
        self.gate = asyncio.Event()
        self.cancelled = asyncio.Event()
        self.gathered: list[str] = []
        self.whole = asyncio.Event()

    async def do(self, request: str, context: object) -> str:
        match request:
            case "refuse":
                raise refusals.Busy("somebody holds it", retry_after_s=0.5, thread_id="t", said="secret")
            case "invalid":
                raise refusals.InvalidField("messages[3].labels['secret']", "is a secret")
            case "fail":
                raise KeyError("a secret of the database")
            case "timeout":
                raise TimeoutError("not the call's own")
            case "wait":
                self.begun.set()
                try:
                    await self.gate.wait()
                except asyncio.CancelledError:
                    self.cancelled.set()
                    raise
            case "context":
                now = call.current()
                return f"{now.identity.actor} {now.identity.verified} {now.request_id} {now.left_s():.3f}"
        return request

    async def stream(self, request: str, context: object) -> AsyncIterator[str]:
        for index in range(3):
            yield f"{index}"
        yield await self.do(request, context)

    async def gather(self, requests: AsyncIterator[str], context: object) -> str:
        async for request in requests:
            self.gathered.append(await self.do(request, context))
        self.whole.set()
        return " ".join(self.gathered)

    async def talk(self, requests: AsyncIterator[str], context: object) -> AsyncIterator[str]:
        async for request in requests:
            yield await self.do(request, context)
        yield "bye"

    async def watch(self, request: str, context: object) -> AsyncIterator[str]:
        yield "begun"
        yield await call.unless_draining(self.do("wait", context))


def add(service: Service, server: grpc.aio.Server) -> None:
    coders: dict[str, Any] = {"request_deserializer": text_of, "response_serializer": bytes_of}
    handlers = {
        "Do": grpc.unary_unary_rpc_method_handler(service.do, **coders),
        "Stream": grpc.unary_stream_rpc_method_handler(service.stream, **coders),
        "Gather": grpc.stream_unary_rpc_method_handler(service.gather, **coders),
        "Talk": grpc.stream_stream_rpc_method_handler(service.talk, **coders),
        "Watch": grpc.unary_stream_rpc_method_handler(service.watch, **coders),
    }
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(NAME, handlers),))


async def well() -> bool:
    return True


@contextlib.asynccontextmanager
async def running(
    service: Service, check: Callable[[], Awaitable[bool]] = well, **listen: object
) -> AsyncIterator[tuple[Running, grpc.aio.Channel]]:
    settings = ListenSettings.model_validate({"port": 0, "drain_s": 0} | listen)
    faces = [Face(NAME, service, add)]
    async with (
        serving(settings, LogSettings(), faces=faces, check=check, metrics=CollectorRegistry()) as server,
        grpc.aio.insecure_channel(f"127.0.0.1:{server.port}", options=[("grpc.enable_retries", 0)]) as channel,
    ):
        yield server, channel


def do(channel: grpc.aio.Channel) -> Any:
    return channel.unary_unary(f"/{NAME}/Do", bytes_of, text_of)


def stream(channel: grpc.aio.Channel, method: str = "Stream") -> Any:
    return channel.unary_stream(f"/{NAME}/{method}", bytes_of, text_of)


def gather(channel: grpc.aio.Channel) -> Any:
    return channel.stream_unary(f"/{NAME}/Gather", bytes_of, text_of)


def talk(channel: grpc.aio.Channel) -> Any:
    return channel.stream_stream(f"/{NAME}/Talk", bytes_of, text_of)


def trailing(error: grpc.aio.AioRpcError) -> dict[str, str | bytes]:
    return dict(error.trailing_metadata() or ())
