"""RevisionService: read, ask, answer."""

from twofold.memory.v1 import revision_pb2 as pb
from twofold.memory.v1 import revision_pb2_grpc as stubs
from twofold_chassis import fields
from twofold_chassis.edge import Context
from twofold_chassis.requests import attempt
from twofold_memory.changes import Changes
from twofold_memory.store.revisions import PostgresRevisions
from twofold_memory.wire import reads
from twofold_memory.wire import revisions as wire
from twofold_memory.wire.messages import thread_key


class RevisionService(stubs.RevisionServiceServicer):
    """Messages that change."""

    def __init__(self, revisions: PostgresRevisions, changes: Changes) -> None:
        self._revisions = revisions
        self._changes = changes

    async def EditMessage(self, request: pb.EditMessageRequest, context: Context) -> pb.EditMessageResponse:
        key, seq = thread_key(request.workspace_id, request.thread_id), reads.seq(request.seq)
        user_id, edit = fields.optional_identifier(request.user_id, "user_id"), wire.edit(request)
        call = attempt(key.workspace_id, "EditMessage", request, request.request_id)
        change = self._revisions.revise(call, key, user_id, seq, edit, wire.edit_answer)
        return pb.EditMessageResponse.FromString(await self._changes.make(change))

    async def RedactMessage(self, request: pb.RedactMessageRequest, context: Context) -> pb.RedactMessageResponse:
        key, seq = thread_key(request.workspace_id, request.thread_id), reads.seq(request.seq)
        user_id, redaction = fields.optional_identifier(request.user_id, "user_id"), wire.redaction(request)
        call = attempt(key.workspace_id, "RedactMessage", request, request.request_id)
        change = self._revisions.revise(call, key, user_id, seq, redaction, wire.redaction_answer)
        return pb.RedactMessageResponse.FromString(await self._changes.make(change))

    async def DeleteMessage(self, request: pb.DeleteMessageRequest, context: Context) -> pb.DeleteMessageResponse:
        key, seq = thread_key(request.workspace_id, request.thread_id), reads.seq(request.seq)
        user_id, deletion = fields.optional_identifier(request.user_id, "user_id"), wire.deletion(request)
        call = attempt(key.workspace_id, "DeleteMessage", request, request.request_id)
        change = self._revisions.revise(call, key, user_id, seq, deletion, wire.deletion_answer)
        return pb.DeleteMessageResponse.FromString(await self._changes.make(change))

    async def PopTurn(self, request: pb.PopTurnRequest, context: Context) -> pb.PopTurnResponse:
        key, reason = thread_key(request.workspace_id, request.thread_id), wire.reason_of(request)
        user_id = fields.optional_identifier(request.user_id, "user_id")
        expected = fields.optional_identifier(request.expected_turn_id, "expected_turn_id")
        call = attempt(key.workspace_id, "PopTurn", request, request.request_id)
        change = self._revisions.pop(call, key, user_id, expected, reason, wire.POP_ANSWER)
        return pb.PopTurnResponse.FromString(await self._changes.make(change))

    async def ListRevisions(self, request: pb.ListRevisionsRequest, context: Context) -> pb.ListRevisionsResponse:
        key, seq = thread_key(request.workspace_id, request.thread_id), reads.seq(request.seq)
        user_id, size = fields.optional_identifier(request.user_id, "user_id"), fields.page_size(request.page_size)
        query = ("ListRevisions", *key, seq, user_id)
        page = await self._revisions.page(key, user_id, seq, wire.after(request, query), size)
        return wire.list_response(page, query)
