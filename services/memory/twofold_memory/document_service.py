"""DocumentService: read, ask, answer."""

from twofold.memory.v1 import document_pb2 as pb
from twofold.memory.v1 import document_pb2_grpc as stubs
from twofold_chassis import fields
from twofold_chassis.edge import Context
from twofold_chassis.requests import attempt
from twofold_memory.store.documents import PostgresDocuments
from twofold_memory.wire import documents as wire
from twofold_memory.wire.messages import thread_key


class DocumentService(stubs.DocumentServiceServicer):
    """Documents linked to conversations."""

    def __init__(self, documents: PostgresDocuments) -> None:
        self._documents = documents

    async def LinkDocument(self, request: pb.LinkDocumentRequest, context: Context) -> pb.LinkDocumentResponse:
        key = thread_key(request.workspace_id, request.thread_id)
        user_id = fields.optional_identifier(request.user_id, "user_id")
        document = wire.document(request)
        call = attempt(key.workspace_id, "LinkDocument", request, request.request_id)
        answer = await self._documents.link(
            call,
            key,
            user_id,
            document,
            lambda linked: pb.LinkDocumentResponse(document=wire.message(linked)).SerializeToString(),
        )
        return pb.LinkDocumentResponse.FromString(answer)

    async def UnlinkDocument(self, request: pb.UnlinkDocumentRequest, context: Context) -> pb.UnlinkDocumentResponse:
        key = thread_key(request.workspace_id, request.thread_id)
        user_id = fields.optional_identifier(request.user_id, "user_id")
        document_id = fields.identifier(request.document_id, "document_id")
        call = attempt(key.workspace_id, "UnlinkDocument", request, request.request_id)
        await self._documents.unlink(call, key, user_id, document_id, b"")
        return pb.UnlinkDocumentResponse()

    async def ListDocuments(self, request: pb.ListDocumentsRequest, context: Context) -> pb.ListDocumentsResponse:
        key = thread_key(request.workspace_id, request.thread_id)
        user_id = fields.optional_identifier(request.user_id, "user_id")
        size = fields.page_size(request.page_size)
        found = await self._documents.page(key, user_id, wire.after(request), size + 1)
        return wire.list_response(request, found, size)
