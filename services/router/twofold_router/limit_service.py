"""The gRPC face of limits."""

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import grpc

from twofold.router.v1 import limit_pb2, limit_pb2_grpc
from twofold_router import wire_limits as wire
from twofold_router.counting import Limits
from twofold_router.standing import Standing

if TYPE_CHECKING:
    Context = grpc.aio.ServicerContext[Any, Any]


class LimitService(limit_pb2_grpc.LimitServiceServicer):
    """LimitService of the contract."""

    def __init__(self, limits: Limits, standing: Standing) -> None:
        self._limits = limits
        self._standing = standing

    async def GetLimits(self, request: limit_pb2.GetLimitsRequest, context: "Context") -> limit_pb2.GetLimitsResponse:
        pair, least = wire.asked_limits(request)
        return wire.limits_response(*await self._standing.of(pair, least))

    async def SettleOperation(
        self, request: limit_pb2.SettleOperationRequest, context: "Context"
    ) -> limit_pb2.SettleOperationResponse:
        operation, used = wire.operation(request), wire.used(request)
        at_s = wire.operation_s(request, datetime.now(UTC))
        return wire.settle_response(await self._limits.settle(operation, used, at_s=at_s))

    async def ReleaseOperation(
        self, request: limit_pb2.ReleaseOperationRequest, context: "Context"
    ) -> limit_pb2.ReleaseOperationResponse:
        await self._limits.release(wire.operation(request))
        return limit_pb2.ReleaseOperationResponse()
