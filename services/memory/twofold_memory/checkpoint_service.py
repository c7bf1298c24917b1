"""CheckpointService: read, ask, answer."""

from twofold.memory.v1 import checkpoint_pb2 as pb
from twofold.memory.v1 import checkpoint_pb2_grpc as stubs
from twofold_chassis import fields
from twofold_chassis.edge import Context
from twofold_chassis.requests import attempt
from twofold_memory.store.checkpoints import PostgresCheckpoints
from twofold_memory.wire import checkpoints as wire
from twofold_memory.wire import reads
from twofold_memory.wire.messages import thread_key


class CheckpointService(stubs.CheckpointServiceServicer):
    """States of agents."""

    def __init__(self, checkpoints: PostgresCheckpoints) -> None:
        self._checkpoints = checkpoints

    async def PutCheckpoint(self, request: pb.PutCheckpointRequest, context: Context) -> pb.PutCheckpointResponse:
        key, new = thread_key(request.workspace_id, request.thread_id), wire.new_checkpoint(request)
        user_id = fields.optional_identifier(request.user_id, "user_id")
        expected_head_id = fields.optional_identifier(request.expected_head_id, "expected_head_id")
        call = attempt(key.workspace_id, "PutCheckpoint", request, request.request_id)
        answer = await self._checkpoints.put(
            call,
            key,
            user_id,
            new,
            expected_head_id,
            lambda put: pb.PutCheckpointResponse(checkpoint=wire.kept(put)).SerializeToString(),
        )
        return pb.PutCheckpointResponse.FromString(answer)

    async def GetCheckpoint(self, request: pb.GetCheckpointRequest, context: Context) -> pb.GetCheckpointResponse:
        key = thread_key(request.workspace_id, request.thread_id)
        user_id = fields.optional_identifier(request.user_id, "user_id")
        checkpoint_id = fields.optional_identifier(request.checkpoint_id, "checkpoint_id")
        found = await self._checkpoints.get(key, user_id, checkpoint_id, wire.line(request.line, "line"))
        return pb.GetCheckpointResponse(checkpoint=wire.message(found))

    async def ListCheckpoints(self, request: pb.ListCheckpointsRequest, context: Context) -> pb.ListCheckpointsResponse:
        key, line = thread_key(request.workspace_id, request.thread_id), wire.line(request.line, "line")
        user_id = fields.optional_identifier(request.user_id, "user_id")
        query = ("ListCheckpoints", *key, user_id, line, request.with_data)
        size, before = fields.page_size(request.page_size), reads.seq_cursor(request.page_token, query)
        page = await self._checkpoints.page(key, user_id, line, before, size, with_data=request.with_data)
        return wire.list_response(page, query)

    async def ForkCheckpoint(self, request: pb.ForkCheckpointRequest, context: Context) -> pb.ForkCheckpointResponse:
        key = thread_key(request.workspace_id, request.thread_id)
        user_id = fields.optional_identifier(request.user_id, "user_id")
        checkpoint_id = fields.identifier(request.checkpoint_id, "checkpoint_id")
        new_line = fields.identifier(request.new_line, "new_line")
        new_id = fields.optional_identifier(request.new_checkpoint_id, "new_checkpoint_id") or fields.new_id()
        call = attempt(key.workspace_id, "ForkCheckpoint", request, request.request_id)
        answer = await self._checkpoints.fork(
            call,
            key,
            user_id,
            checkpoint_id,
            new_line,
            new_id,
            lambda made: pb.ForkCheckpointResponse(checkpoint=wire.kept(made)).SerializeToString(),
        )
        return pb.ForkCheckpointResponse.FromString(answer)

    async def PinCheckpoint(self, request: pb.PinCheckpointRequest, context: Context) -> pb.PinCheckpointResponse:
        key = thread_key(request.workspace_id, request.thread_id)
        user_id = fields.optional_identifier(request.user_id, "user_id")
        checkpoint_id = fields.identifier(request.checkpoint_id, "checkpoint_id")
        call = attempt(key.workspace_id, "PinCheckpoint", request, request.request_id)
        answer = await self._checkpoints.pin(
            call,
            key,
            user_id,
            checkpoint_id,
            request.pinned,
            lambda now: pb.PinCheckpointResponse(checkpoint=wire.kept(now)).SerializeToString(),
        )
        return pb.PinCheckpointResponse.FromString(answer)

    async def DeleteCheckpoints(
        self, request: pb.DeleteCheckpointsRequest, context: Context
    ) -> pb.DeleteCheckpointsResponse:
        key, line = thread_key(request.workspace_id, request.thread_id), wire.line(request.line, "line")
        user_id = fields.optional_identifier(request.user_id, "user_id")
        keep_newest = wire.keep_newest(request)
        call = attempt(key.workspace_id, "DeleteCheckpoints", request, request.request_id)
        answer = await self._checkpoints.delete(
            call, key, user_id, line, keep_newest, lambda deleted: wire.delete_response(deleted).SerializeToString()
        )
        return pb.DeleteCheckpointsResponse.FromString(answer)
