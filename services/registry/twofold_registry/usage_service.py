"""The gRPC face of usage."""

from collections.abc import AsyncIterator
from contextlib import aclosing
from datetime import UTC, datetime

from twofold.registry.v1 import usage_pb2 as pb
from twofold.registry.v1.usage_pb2_grpc import UsageServiceServicer
from twofold_chassis import call
from twofold_chassis.edge import Context
from twofold_registry.usage import Usage
from twofold_registry.wire import usage as wire


class UsageService(UsageServiceServicer):
    """Reads, asks, answers."""

    def __init__(self, usage: Usage) -> None:
        self._usage = usage

    async def RecordUsage(self, request: pb.RecordUsageRequest, _: Context) -> pb.RecordUsageResponse:
        workspace_id = wire.workspace_id(request)
        events = wire.events(request, datetime.now(UTC))
        return wire.recorded(await self._usage.record(workspace_id, events))

    async def StreamUsage(
        self, requests: AsyncIterator[pb.StreamUsageRequest], _: Context
    ) -> AsyncIterator[pb.StreamUsageResponse]:
        batch, waiting = 0, aiter(requests)
        while (request := await call.unless_draining(anext(waiting, None))) is not None:
            batch += 1
            workspace_id = wire.workspace_id(request)
            events = wire.events(request, datetime.now(UTC))
            yield wire.stored(batch, await self._usage.record(workspace_id, events))

    async def GetUsage(self, request: pb.GetUsageRequest, _: Context) -> pb.GetUsageResponse:
        query = wire.usage_query(request)
        return wire.summed(await self._usage.totals(query, wire.least_revision(request)))

    async def QueryUsage(self, request: pb.QueryUsageRequest, _: Context) -> pb.QueryUsageResponse:
        query = wire.usage_query(request)
        after, size = wire.group_place(request, query)
        return wire.grouped(query, await self._usage.grouped(query, after, size, wire.least_revision(request)))

    async def ReadWindow(self, request: pb.ReadWindowRequest, _: Context) -> AsyncIterator[pb.ReadWindowResponse]:
        query = wire.window_query(request, datetime.now(UTC))
        async with aclosing(self._usage.window(query)) as parts:
            async for part in parts:
                yield wire.told(part)
