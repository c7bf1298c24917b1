"""The gRPC face of routing."""

from typing import TYPE_CHECKING, Any

import grpc

from twofold.router.v1 import routing_pb2, routing_pb2_grpc
from twofold_router import wire, wire_explain, wire_routing
from twofold_router.explaining import Explainer
from twofold_router.reporting import Reporting
from twofold_router.resolution import Resolver

if TYPE_CHECKING:
    Context = grpc.aio.ServicerContext[Any, Any]


class RoutingService(routing_pb2_grpc.RoutingServiceServicer):
    """RoutingService of the contract."""

    def __init__(self, resolver: Resolver, reporting: Reporting, explainer: Explainer) -> None:
        self._resolver = resolver
        self._reporting = reporting
        self._explainer = explainer

    async def Resolve(self, request: routing_pb2.ResolveRequest, context: "Context") -> routing_pb2.ResolveResponse:
        question = wire.resolve_question(request)
        resolution = await self._resolver.resolve(question)
        return wire.resolve_response(resolution)

    async def Check(self, request: routing_pb2.CheckRequest, context: "Context") -> routing_pb2.CheckResponse:
        question = wire.question(request)
        return wire.check_response(await self._resolver.check(question))

    async def BatchResolve(
        self, request: routing_pb2.BatchResolveRequest, context: "Context"
    ) -> routing_pb2.BatchResolveResponse:
        questions = wire.questions(request)
        return wire.batch_response(await self._resolver.resolve_all(questions))

    async def ReportOutcome(
        self, request: routing_pb2.ReportOutcomeRequest, context: "Context"
    ) -> routing_pb2.ReportOutcomeResponse:
        for agent, report in wire_routing.reports(request):
            self._reporting.hear(agent, report)
        return routing_pb2.ReportOutcomeResponse()

    async def Explain(self, request: routing_pb2.ExplainRequest, context: "Context") -> routing_pb2.ExplainResponse:
        question = wire.question(request)
        return wire_explain.explain_response(await self._explainer.explain(question))
