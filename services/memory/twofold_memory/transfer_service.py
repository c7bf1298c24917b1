"""TransferService: read, ask, answer."""

from collections.abc import AsyncIterator
from contextlib import aclosing

from twofold.memory.v1 import transfer_pb2 as pb
from twofold.memory.v1 import transfer_pb2_grpc as stubs
from twofold_chassis.edge import Context
from twofold_memory.exports import Exports
from twofold_memory.imports import Imports
from twofold_memory.wire import transcripts
from twofold_memory.wire import transfers as wire


class TransferService(stubs.TransferServiceServicer):
    """Moving conversations in and out."""

    def __init__(self, imports: Imports, exports: Exports) -> None:
        self._imports = imports
        self._exports = exports

    async def ImportConversations(
        self, requests: AsyncIterator[pb.ImportConversationsRequest], context: Context
    ) -> AsyncIterator[pb.ImportConversationsResponse]:
        order = await wire.order(requests)
        async with aclosing(self._imports.run(order, wire.chunks(requests), transcripts.imported)) as answers:
            async for told in answers:
                yield wire.told(told)

    async def ExportConversations(
        self, request: pb.ExportConversationsRequest, context: Context
    ) -> AsyncIterator[pb.ExportConversationsResponse]:
        selection, behind = wire.selection(request), wire.behind(request)
        writer = transcripts.JsonLines(service_fields=request.include_service_fields, deleted=request.include_deleted)
        async with aclosing(self._exports.chunks(selection, behind, writer)) as chunks:
            async for chunk in chunks:
                yield wire.exported(request, chunk)
