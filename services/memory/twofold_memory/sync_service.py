"""SyncService: read, ask, answer."""

from functools import partial

from twofold.memory.v1 import sync_pb2 as pb
from twofold.memory.v1 import sync_pb2_grpc as stubs
from twofold_chassis import fields
from twofold_chassis.edge import Context
from twofold_chassis.requests import attempt
from twofold_memory.audits import Audits
from twofold_memory.dead_letters import Replays
from twofold_memory.store.dead_letters import PostgresDeadLetters
from twofold_memory.sync_status import Sync
from twofold_memory.wire import dead_letters as wire
from twofold_memory.wire import sync as wire_sync


class SyncService(stubs.SyncServiceServicer):
    """The two memories, for operators."""

    def __init__(self, sync: Sync, dead_letters: PostgresDeadLetters, replays: Replays, audits: Audits) -> None:
        self._sync = sync
        self._dead_letters = dead_letters
        self._replays = replays
        self._audits = audits

    async def GetSyncStatus(self, request: pb.GetSyncStatusRequest, context: Context) -> pb.GetSyncStatusResponse:
        return wire_sync.status_response(await self._sync.status())

    async def ListDeadLetters(self, request: pb.ListDeadLettersRequest, context: Context) -> pb.ListDeadLettersResponse:
        workspace_id = fields.optional_identifier(request.workspace_id, "workspace_id")
        size, query = fields.page_size(request.page_size), ("ListDeadLetters", workspace_id, request.with_resolved)
        after = wire.after(request, query)
        found = await self._dead_letters.page(workspace_id, after, size + 1, with_resolved=request.with_resolved)
        return wire.list_response(found, size, query)

    async def GetDeadLetter(self, request: pb.GetDeadLetterRequest, context: Context) -> pb.GetDeadLetterResponse:
        return wire.get_response(await self._dead_letters.get(wire.name(request)))

    async def ReplayDeadLetter(self, request: pb.ReplayDeadLetterRequest, context: Context) -> pb.ReplayDeadLetterResponse:
        name, because = wire.name(request), wire.because(request, required=False)
        new_turn_id = fields.optional_identifier(request.new_turn_id, "new_turn_id") or fields.new_id()
        call = attempt(name.key.workspace_id, "ReplayDeadLetter", request, request.request_id)
        replay = partial(self._dead_letters.replay, call, name, new_turn_id, because, wire.replay_answer)
        return pb.ReplayDeadLetterResponse.FromString(await self._replays.make(name.key, replay))

    async def DiscardDeadLetter(
        self, request: pb.DiscardDeadLetterRequest, context: Context
    ) -> pb.DiscardDeadLetterResponse:
        name, because = wire.name(request), wire.because(request, required=True)
        call = attempt(name.key.workspace_id, "DiscardDeadLetter", request, request.request_id)
        answer = await self._dead_letters.discard(call, name, because, wire.discard_answer)
        return pb.DiscardDeadLetterResponse.FromString(answer)

    async def AuditConversations(
        self, request: pb.AuditConversationsRequest, context: Context
    ) -> pb.AuditConversationsResponse:
        report = await self._audits.audit(wire_sync.asked(request))
        return wire_sync.audit_response(report, only_findings=request.only_findings)
