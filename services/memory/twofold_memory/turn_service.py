"""TurnService: read, ask, answer."""

from twofold.memory.v1 import turn_pb2 as pb
from twofold.memory.v1 import turn_pb2_grpc as stubs
from twofold_chassis import fields
from twofold_chassis.edge import Context
from twofold_memory.open_turns import OpenTurns
from twofold_memory.wire import turns as wire
from twofold_memory.wire.messages import thread_key


class TurnService(stubs.TurnServiceServicer):
    """Turns that are opened before they are answered."""

    def __init__(self, turns: OpenTurns) -> None:
        self._turns = turns

    async def BeginTurn(self, request: pb.BeginTurnRequest, context: Context) -> pb.BeginTurnResponse:
        opening = wire.opening(request)
        begun = await self._turns.begin(opening)
        return wire.begin_response(opening, begun)

    async def HeartbeatTurn(self, request: pb.HeartbeatTurnRequest, context: Context) -> pb.HeartbeatTurnResponse:
        until = await self._turns.heartbeat(wire.heartbeat(request))
        return pb.HeartbeatTurnResponse(lease_expire_time=fields.timestamp(until))

    async def CommitTurn(self, request: pb.CommitTurnRequest, context: Context) -> pb.CommitTurnResponse:
        answer = wire.commit(request)
        kept = await self._turns.close(answer)
        return wire.commit_response(answer, kept)

    async def AbortTurn(self, request: pb.AbortTurnRequest, context: Context) -> pb.AbortTurnResponse:
        answer = wire.abort(request)
        kept = await self._turns.close(answer)
        return wire.abort_response(answer, kept)

    async def GetOpenTurn(self, request: pb.GetOpenTurnRequest, context: Context) -> pb.GetOpenTurnResponse:
        key = thread_key(request.workspace_id, request.thread_id)
        found = await self._turns.current(key, fields.optional_identifier(request.user_id, "user_id"))
        return wire.open_turn_response(found)

    async def ListUnrecordedUsage(
        self, request: pb.ListUnrecordedUsageRequest, context: Context
    ) -> pb.ListUnrecordedUsageResponse:
        min_age, after, size = wire.wanted_owed(request)
        return wire.owed_response(await self._turns.owed(min_age, after, size + 1), size)

    async def AcknowledgeUsage(self, request: pb.AcknowledgeUsageRequest, context: Context) -> pb.AcknowledgeUsageResponse:
        await self._turns.acknowledge(wire.acknowledged(request))
        return pb.AcknowledgeUsageResponse()
