"""The gRPC face of turns."""

from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import TYPE_CHECKING, Any

import grpc

from twofold.router.v1 import turn_pb2, turn_pb2_grpc
from twofold_router import wire_turns as wire
from twofold_router.turns import Turns

if TYPE_CHECKING:
    Context = grpc.aio.ServicerContext[Any, Any]


class TurnService(turn_pb2_grpc.TurnServiceServicer):
    """TurnService of the contract."""

    def __init__(self, turns: Turns) -> None:
        self._turns = turns

    async def Run(self, request: turn_pb2.RunRequest, context: "Context") -> AsyncGenerator[turn_pb2.RunResponse, None]:
        ask = wire.ask(request)
        async with aclosing(self._turns.run(ask)) as events:
            async for event in events:
                yield wire.run_response(event)

    async def Attach(
        self, request: turn_pb2.AttachRequest, context: "Context"
    ) -> AsyncGenerator[turn_pb2.AttachResponse, None]:
        name, thread_id, offset = wire.attached(request)
        async with aclosing(self._turns.attach(name, thread_id, offset)) as events:
            async for event in events:
                yield wire.attach_response(event)

    async def CancelTurn(self, request: turn_pb2.CancelTurnRequest, context: "Context") -> turn_pb2.CancelTurnResponse:
        name, thread_id = wire.cancelled(request)
        return turn_pb2.CancelTurnResponse(cancelled=await self._turns.cancel(name, thread_id))
