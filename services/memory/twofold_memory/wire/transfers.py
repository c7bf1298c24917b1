"""Imports and exports on the wire."""

from collections.abc import AsyncIterator

from twofold.errors.v1.reason_pb2 import Reason
from twofold.memory.v1 import transfer_pb2 as pb
from twofold_chassis import fields
from twofold_chassis.refusals import InvalidArgument, InvalidField
from twofold_memory.exports import Chunk, Selection
from twofold_memory.imports import CHUNK_BYTES_MAX, BadLine, Order, Progress, Summary, Told

_THREADS_MAX = 500
_LINES_MAX = 2**53


async def order(requests: AsyncIterator[pb.ImportConversationsRequest]) -> Order:
    """What is imported, out of the first request."""
    request = await anext(requests, None)
    if request is None or not request.HasField("header"):
        raise InvalidField("header", "is required in the first request")
    header = request.header
    if header.on_error not in pb.OnLineError.values():
        raise InvalidField("header.on_error", "must be one of the contract's")
    return Order(
        workspace_id=fields.identifier(header.workspace_id, "header.workspace_id"),
        import_id=fields.identifier(header.import_id, "header.import_id"),
        user_id=fields.optional_identifier(header.user_id, "header.user_id"),
        stop_at_error=header.on_error == pb.ON_LINE_ERROR_STOP,
        first_line=fields.whole(header.first_line, "header.first_line", least=0, most=_LINES_MAX) or 1,
    )


async def chunks(requests: AsyncIterator[pb.ImportConversationsRequest]) -> AsyncIterator[bytes]:
    """The text, out of all others."""
    async for request in requests:
        if request.WhichOneof("request") != "chunk":
            raise InvalidField("chunk", "is required in each request but the first")
        if len(request.chunk) > CHUNK_BYTES_MAX:
            raise InvalidField("chunk", f"has {len(request.chunk)} bytes, at most {CHUNK_BYTES_MAX} are allowed")
        yield request.chunk


def told(answer: Told) -> pb.ImportConversationsResponse:
    """What an import says."""
    match answer:
        case Progress():
            return pb.ImportConversationsResponse(progress=_progress(answer))
        case BadLine(line, refusal):
            error = pb.ImportLineError(line=line, reason=Reason.Name(refusal.reason), message=refusal.message)
            if isinstance(refusal, InvalidArgument):
                error.field, error.message = refusal.field, refusal.problem
            return pb.ImportConversationsResponse(line_error=error)
        case Summary(progress, stopped):
            return pb.ImportConversationsResponse(summary=pb.ImportSummary(progress=_progress(progress), stopped=stopped))


def _progress(progress: Progress) -> pb.ImportProgress:
    return pb.ImportProgress(
        next_line=progress.next_line,
        lines_read=progress.lines,
        conversations=progress.conversations,
        messages=progress.messages,
        messages_found=progress.found,
        errors=progress.errors,
    )


def selection(request: pb.ExportConversationsRequest) -> Selection:
    """What is exported."""
    if len(request.thread_ids) > _THREADS_MAX:
        raise InvalidField("thread_ids", f"are {len(request.thread_ids)}, at most {_THREADS_MAX} are allowed")
    since = fields.moment(request.updated_from, "updated_from") if request.HasField("updated_from") else None
    before = fields.moment(request.updated_before, "updated_before") if request.HasField("updated_before") else None
    if since is not None and before is not None and since >= before:
        raise InvalidField("updated_before", "must be later than updated_from")
    return Selection(
        workspace_id=fields.identifier(request.workspace_id, "workspace_id"),
        user_id=fields.optional_identifier(request.user_id, "user_id"),
        thread_ids=[fields.identifier(one, f"thread_ids[{index}]") for index, one in enumerate(request.thread_ids)],
        updated_from=since,
        updated_before=before,
        with_deleted=request.include_deleted,
    )


def behind(request: pb.ExportConversationsRequest) -> str:
    """The conversation that the export begins behind; empty: with the first one."""
    place = fields.page_place(request.page_token, _query(request), str)
    return place[0] if place else ""


def exported(request: pb.ExportConversationsRequest, chunk: Chunk) -> pb.ExportConversationsResponse:
    """A chunk of an export."""
    token = "" if chunk.behind is None else fields.page_token(_query(request), [chunk.behind])
    return pb.ExportConversationsResponse(chunk=chunk.data, next_page_token=token)


def _query(request: pb.ExportConversationsRequest) -> object:
    asked = pb.ExportConversationsRequest()
    asked.CopyFrom(request)
    asked.ClearField("page_token")
    return ("ExportConversations", asked.SerializeToString(deterministic=True))
