"""The gRPC face of following all changes."""

from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing

from twofold.registry.v1 import change_pb2 as pb
from twofold.registry.v1.change_pb2_grpc import ChangeServiceServicer
from twofold_chassis import call
from twofold_chassis.edge import Context
from twofold_registry.routers import Routers
from twofold_registry.watching import Watching
from twofold_registry.wire import changes as wire


class ChangeService(ChangeServiceServicer):
    """Reads, asks, answers, again and again."""

    def __init__(self, watching: Watching, routers: Routers) -> None:
        self._watching = watching
        self._routers = routers

    async def Watch(self, requests: AsyncIterator[pb.WatchRequest], _: Context) -> AsyncGenerator[pb.WatchResponse, None]:
        order = await call.unless_draining(wire.opening(requests))
        async with (
            self._watching.watch(order, wire.commands(requests, order)) as watch,
            aclosing(watch.told()) as told,
        ):
            async for one in told:
                yield wire.told(one)

    async def ListRouters(self, request: pb.ListRoutersRequest, _: Context) -> pb.ListRoutersResponse:
        return wire.listed(await self._routers.list())
