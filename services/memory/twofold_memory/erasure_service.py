"""ErasureService: read, ask, answer."""

from dataclasses import replace

from twofold.memory.v1 import erasure_pb2 as pb
from twofold.memory.v1 import erasure_pb2_grpc as stubs
from twofold_chassis import call, fields
from twofold_chassis.edge import Context
from twofold_chassis.requests import Attempt, attempt
from twofold_memory.erasures import Erasures, Wish
from twofold_memory.store.erasures import PostgresErasures
from twofold_memory.store.retentions import PostgresRetentions
from twofold_memory.wire import erasures as wire


class ErasureService(stubs.ErasureServiceServicer):
    """Erasing, receipts, retention."""

    def __init__(self, erasures: Erasures, receipts: PostgresErasures, retentions: PostgresRetentions) -> None:
        self._erasures = erasures
        self._receipts = receipts
        self._retentions = retentions

    async def EraseConversation(
        self, request: pb.EraseConversationRequest, context: Context
    ) -> pb.EraseConversationResponse:
        wish = wire.conversation_wish(request, call.current().identity.actor)
        repeat = _attempt(wish, "EraseConversation", request)
        return pb.EraseConversationResponse(erasure=wire.receipt(await self._erasures.erase(repeat, wish)))

    async def EraseUser(self, request: pb.EraseUserRequest, context: Context) -> pb.EraseUserResponse:
        wish = wire.user_wish(request, call.current().identity.actor)
        repeat = _attempt(wish, "EraseUser", request)
        return pb.EraseUserResponse(erasure=wire.receipt(await self._erasures.erase(repeat, wish)))

    async def EraseWorkspace(self, request: pb.EraseWorkspaceRequest, context: Context) -> pb.EraseWorkspaceResponse:
        wish = wire.workspace_wish(request, call.current().identity.actor)
        repeat = _attempt(wish, "EraseWorkspace", request)
        return pb.EraseWorkspaceResponse(erasure=wire.receipt(await self._erasures.erase(repeat, wish)))

    async def GetErasure(self, request: pb.GetErasureRequest, context: Context) -> pb.GetErasureResponse:
        return pb.GetErasureResponse(erasure=wire.receipt(await self._receipts.get(wire.key(request))))

    async def ListErasures(self, request: pb.ListErasuresRequest, context: Context) -> pb.ListErasuresResponse:
        workspace_id = fields.identifier(request.workspace_id, "workspace_id")
        size, query = fields.page_size(request.page_size), ("ListErasures", workspace_id)
        found = await self._receipts.page(workspace_id, wire.before(request, query), size + 1)
        return wire.list_response(found, size, query)

    async def SetRetention(self, request: pb.SetRetentionRequest, context: Context) -> pb.SetRetentionResponse:
        workspace_id = fields.identifier(request.workspace_id, "workspace_id")
        days, etag = wire.days(request), fields.line(request.etag, "etag", bytes_max=255)
        answer = await self._retentions.set(
            attempt(workspace_id, "SetRetention", request, request.request_id),
            workspace_id,
            days,
            lambda found: wire.expect(found, etag),
            lambda now: pb.SetRetentionResponse(retention=wire.retention(now)).SerializeToString(),
        )
        return pb.SetRetentionResponse.FromString(answer)

    async def GetRetention(self, request: pb.GetRetentionRequest, context: Context) -> pb.GetRetentionResponse:
        found = await self._retentions.get(fields.identifier(request.workspace_id, "workspace_id"))
        return pb.GetRetentionResponse(retention=wire.retention(found))


def _attempt(
    wish: Wish, rpc: str, request: pb.EraseConversationRequest | pb.EraseUserRequest | pb.EraseWorkspaceRequest
) -> Attempt:
    """Its kept answer is about nothing that is erased: it must outlive the erasure."""
    return replace(attempt(wish.key.workspace_id, rpc, request, request.request_id), thread_id=None, user_id=None)
