"""BranchService: read, ask, answer."""

from dataclasses import replace

from twofold.memory.v1 import branch_pb2 as pb
from twofold.memory.v1 import branch_pb2_grpc as stubs
from twofold_chassis import fields
from twofold_chassis.edge import Context
from twofold_chassis.requests import attempt
from twofold_memory.store.branches import PostgresBranches
from twofold_memory.wire import branches as wire
from twofold_memory.wire.messages import thread_key


class BranchService(stubs.BranchServiceServicer):
    """Conversations that begin as another one did."""

    def __init__(self, branches: PostgresBranches) -> None:
        self._branches = branches

    async def ForkConversation(self, request: pb.ForkConversationRequest, context: Context) -> pb.ForkConversationResponse:
        new = wire.new_branch(request)
        call = attempt(new.key.workspace_id, "ForkConversation", request, request.request_id)
        call = replace(call, thread_id=new.key.thread_id)  # the answer is about the branch, and is erased with it
        return pb.ForkConversationResponse.FromString(await self._branches.fork(call, new, wire.fork_answer))

    async def ListBranches(self, request: pb.ListBranchesRequest, context: Context) -> pb.ListBranchesResponse:
        key = thread_key(request.workspace_id, request.thread_id)
        user_id, size = fields.optional_identifier(request.user_id, "user_id"), fields.page_size(request.page_size)
        query = ("ListBranches", *key, user_id)
        found = await self._branches.page(key, user_id, wire.after(request, query), size + 1)
        return wire.list_response(found, size, query)
