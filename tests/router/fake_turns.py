"""Turns that are opened first, as memory keeps them: by a fence and a lease that ends when a test says so."""

from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from google.protobuf.message import Message

from twofold.memory.v1 import message_pb2, turn_pb2, turn_pb2_grpc
from twofold_chassis import fields
from twofold_chassis.refusals import Aborted, NotFound, Reason, RequestReused
from twofold_memory.wire import turns as memory_wire

if TYPE_CHECKING:
    from tests.router.fakes import FakeMemory

Key = tuple[str, str]


class TurnHeld(Aborted):
    reason = Reason.REASON_TURN_HELD


class TurnSuperseded(Aborted):
    reason = Reason.REASON_TURN_SUPERSEDED


class TurnUnknown(NotFound):
    reason = Reason.REASON_TURN_UNKNOWN


@dataclass
class Open:
    """A turn that is open."""

    request: turn_pb2.BeginTurnRequest
    fence: int
    holder: str
    alive: bool = True
    partial: list[message_pb2.Message] = field(default_factory=list)


class FakeTurns(turn_pb2_grpc.TurnServiceServicer):
    """Beside the fake memory, in whose dictionaries turns stand once they are closed."""

    def __init__(self, memory: "FakeMemory") -> None:
        self.memory = memory
        self.reset()

    def reset(self) -> None:
        self.open: dict[Key, Open] = {}
        self.closed: dict[tuple[str, str, str], tuple[turn_pb2.BeginTurnRequest, bytes]] = {}
        self.interrupted: set[tuple[str, str, str]] = set()
        self.owed: dict[tuple[str, str, str], turn_pb2.UnrecordedUsage] = {}
        self.fences = 0

    def end_lease(self, workspace_id: str, thread_id: str) -> None:
        """As if time had passed."""
        self.open[workspace_id, thread_id].alive = False

    async def BeginTurn(self, request: turn_pb2.BeginTurnRequest, context: Any) -> turn_pb2.BeginTurnResponse:
        await self.memory.calls.enter("BeginTurn", request)
        memory_wire.opening(request)  # judged as memory does
        key = (request.workspace_id, request.thread_id)
        self.memory.require_owner(key, request.user_id)
        self.memory.owners.setdefault(key, request.user_id)
        done = self.closed.get((*key, request.request_id))
        if done is None and self.memory.turn(key, request.request_id):
            raise RequestReused("another body")
        if done is not None:
            if _words(done[0]) != _words(request):
                raise RequestReused("another body")
            state = turn_pb2.TURN_STATE_COMMITTED
            if (*key, request.request_id) in self.interrupted:
                state = turn_pb2.TURN_STATE_INTERRUPTED
            return turn_pb2.BeginTurnResponse(turn_id=request.request_id, state=state, duplicate=True)
        current = self.open.get(key)
        if current is not None and current.request.request_id == request.request_id:
            if _words(current.request) != _words(request):
                raise RequestReused("another body")
            if not current.alive:
                current.fence, current.holder, current.alive = self._fence(), request.holder, True
            return self._begun(current, duplicate=True)
        if current is not None:
            if current.alive and request.policy != turn_pb2.TURN_POLICY_TAKE_OVER:
                raise TurnHeld("held", retry_after_s=1.0)
            self._interrupt(key, current)
        self.open[key] = Open(request, self._fence(), request.holder)
        return self._begun(self.open[key], duplicate=False)

    async def HeartbeatTurn(self, request: turn_pb2.HeartbeatTurnRequest, context: Any) -> turn_pb2.HeartbeatTurnResponse:
        await self.memory.calls.enter("HeartbeatTurn", request)
        memory_wire.heartbeat(request)
        current = self._held(request)
        current.partial = list(request.partial_messages) or current.partial
        current.alive = request.lease_duration.ToMilliseconds() > 1
        return turn_pb2.HeartbeatTurnResponse()

    async def CommitTurn(self, request: turn_pb2.CommitTurnRequest, context: Any) -> turn_pb2.CommitTurnResponse:
        await self.memory.calls.enter("CommitTurn", request)
        memory_wire.commit(request)
        first, last, created, duplicate = self._closed(request, list(request.response_messages))
        await self.memory.calls.leave("CommitTurn")
        return turn_pb2.CommitTurnResponse(
            first_seq=first, last_seq=last, thread_token=b"token", create_time=created, duplicate=duplicate
        )

    async def AbortTurn(self, request: turn_pb2.AbortTurnRequest, context: Any) -> turn_pb2.AbortTurnResponse:
        await self.memory.calls.enter("AbortTurn", request)
        memory_wire.abort(request)
        self.interrupted.add((request.workspace_id, request.thread_id, request.turn_id))
        first, last, created, duplicate = self._closed(request, list(request.partial_messages))
        return turn_pb2.AbortTurnResponse(
            first_seq=first, last_seq=last, thread_token=b"token", create_time=created, duplicate=duplicate
        )

    async def GetOpenTurn(self, request: turn_pb2.GetOpenTurnRequest, context: Any) -> turn_pb2.GetOpenTurnResponse:
        await self.memory.calls.enter("GetOpenTurn", request)
        key = (request.workspace_id, request.thread_id)
        self.memory.require_owner(key, request.user_id)
        if key not in self.open:
            raise TurnUnknown("none is open")
        found = self.open[key]
        return turn_pb2.GetOpenTurnResponse(turn_id=found.request.request_id, holder=found.holder)

    async def ListUnrecordedUsage(
        self, request: turn_pb2.ListUnrecordedUsageRequest, context: Any
    ) -> turn_pb2.ListUnrecordedUsageResponse:
        await self.memory.calls.enter("ListUnrecordedUsage", request)
        return turn_pb2.ListUnrecordedUsageResponse(usages=list(self.owed.values()))

    async def AcknowledgeUsage(
        self, request: turn_pb2.AcknowledgeUsageRequest, context: Any
    ) -> turn_pb2.AcknowledgeUsageResponse:
        await self.memory.calls.enter("AcknowledgeUsage", request)
        for turn in request.turns:
            self.owed.pop((turn.workspace_id, turn.thread_id, turn.turn_id), None)
        return turn_pb2.AcknowledgeUsageResponse()

    def _fence(self) -> int:
        self.fences += 1
        return self.fences

    def _begun(self, current: Open, *, duplicate: bool) -> turn_pb2.BeginTurnResponse:
        return turn_pb2.BeginTurnResponse(
            turn_id=current.request.request_id,
            state=turn_pb2.TURN_STATE_OPEN,
            fence=current.fence,
            holder=current.holder,
            duplicate=duplicate,
            thread_token=b"token",
        )

    def _held(self, request: Any) -> Open:
        current = self.open.get((request.workspace_id, request.thread_id))
        if current is None or (current.request.request_id, current.fence) != (request.turn_id, request.fence):
            raise TurnSuperseded("not open under this fence any more")
        return current

    def _closed(self, request: Any, said: list[message_pb2.Message]) -> tuple[int, int, Any, bool]:
        name = (request.workspace_id, request.thread_id, request.turn_id)
        body = _body(request)
        done = self.closed.get(name)
        if done is not None:
            if done[1] != body:
                raise RequestReused("closed with another body")
            stored = self.memory.turn(name[:2], request.turn_id)
            return stored[0].seq, stored[-1].seq, stored[0].create_time, True
        current = self._held(request)
        stored = self._store(name[:2], current, said or current.partial, interrupted=name in self.interrupted)
        self.closed[name] = (current.request, body)
        if request.HasField("usage"):
            self.memory.usages[name] = request.usage
        if request.HasField("owed_usage"):
            self.owed[name] = turn_pb2.UnrecordedUsage(
                workspace_id=name[0], thread_id=name[1], turn_id=name[2], owed_usage=request.owed_usage, usage=request.usage
            )
        return stored[0].seq, stored[-1].seq, stored[0].create_time, False

    def _interrupt(self, key: Key, current: Open) -> None:
        name = (*key, current.request.request_id)
        self.interrupted.add(name)
        self._store(key, current, current.partial, interrupted=True)
        self.closed[name] = (current.request, b"")

    def _store(
        self, key: Key, current: Open, said: list[message_pb2.Message], *, interrupted: bool
    ) -> list[message_pb2.Message]:
        del self.open[key]
        kept, now = self.memory.messages.setdefault(key, []), fields.timestamp(datetime.now(UTC))
        stored = []
        for index, message in enumerate([*current.request.messages, *said]):
            copy = message_pb2.Message(turn_id=current.request.request_id, turn_index=index, create_time=now)
            copy.MergeFrom(message)
            copy.seq = len(kept) + 1
            if interrupted and index >= len(current.request.messages):
                copy.status = message_pb2.MESSAGE_STATUS_INTERRUPTED
            kept.append(copy)
            stored.append(copy)
        return stored


def _words(request: turn_pb2.BeginTurnRequest) -> list[bytes]:
    return [message.SerializeToString(deterministic=True) for message in request.messages]


def _body(request: Message) -> bytes:
    return type(request).__name__.encode() + request.SerializeToString(deterministic=True)
