"""SummaryService: read, ask, answer."""

from twofold.memory.v1 import summary_pb2 as pb
from twofold.memory.v1 import summary_pb2_grpc as stubs
from twofold_chassis import fields
from twofold_chassis.edge import Context
from twofold_chassis.requests import attempt
from twofold_memory.store.summaries import PostgresSummaries
from twofold_memory.summaries import SummaryRecall
from twofold_memory.wire import reads
from twofold_memory.wire import summaries as wire
from twofold_memory.wire.messages import thread_key


class SummaryService(stubs.SummaryServiceServicer):
    """Summaries of conversations."""

    def __init__(self, summaries: PostgresSummaries, recall: SummaryRecall) -> None:
        self._summaries = summaries
        self._recall = recall

    async def PutSummary(self, request: pb.PutSummaryRequest, context: Context) -> pb.PutSummaryResponse:
        key, new = thread_key(request.workspace_id, request.thread_id), wire.new_summary(request)
        user_id = fields.optional_identifier(request.user_id, "user_id")
        call = attempt(key.workspace_id, "PutSummary", request, request.request_id)
        put = self._summaries.put(call, key, user_id, new, lambda kept: wire.put_response(kept).SerializeToString())
        return pb.PutSummaryResponse.FromString(await self._recall.changing(key, put))

    async def GetSummary(self, request: pb.GetSummaryRequest, context: Context) -> pb.GetSummaryResponse:
        key, summary_id = wire.named(request)
        user_id = fields.optional_identifier(request.user_id, "user_id")
        summary = await self._summaries.get(key, user_id, summary_id)
        return pb.GetSummaryResponse(summary=wire.message(summary))

    async def ListSummaries(self, request: pb.ListSummariesRequest, context: Context) -> pb.ListSummariesResponse:
        key = thread_key(request.workspace_id, request.thread_id)
        user_id = fields.optional_identifier(request.user_id, "user_id")
        query = ("ListSummaries", *key, user_id)
        size, before = fields.page_size(request.page_size), reads.seq_cursor(request.page_token, query)
        return wire.list_response(await self._summaries.page(key, user_id, before, size), query)

    async def DeleteSummary(self, request: pb.DeleteSummaryRequest, context: Context) -> pb.DeleteSummaryResponse:
        key, summary_id = wire.named(request)
        user_id = fields.optional_identifier(request.user_id, "user_id")
        call = attempt(key.workspace_id, "DeleteSummary", request, request.request_id)
        await self._recall.changing(key, self._summaries.delete(call, key, user_id, summary_id, b""))
        return pb.DeleteSummaryResponse()
