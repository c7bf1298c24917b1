"""Summaries on the wire."""

from collections.abc import Sequence

from twofold.memory.v1 import summary_pb2 as pb
from twofold_chassis import fields
from twofold_chassis.refusals import InvalidField
from twofold_memory.summaries import TEXT_BYTES_MAX, NewSummary, Summary, SummaryPage
from twofold_memory.threads import ThreadKey
from twofold_memory.wire.messages import thread_key

_SEQ_MAX = 2**63 - 1
_TOKENS_MAX = 1_000_000_000


def new_summary(request: pb.PutSummaryRequest) -> NewSummary:
    """The summary that is to be kept."""
    if not request.HasField("summary"):
        raise InvalidField("summary", "is required")
    given = request.summary
    first = fields.whole(given.first_seq, "summary.first_seq", least=1, most=_SEQ_MAX)
    last = fields.whole(given.last_seq, "summary.last_seq", least=1, most=_SEQ_MAX)
    if last < first:
        raise InvalidField("summary.last_seq", f"is {last}, must not be below first_seq, which is {first}")
    tokens = None
    if given.HasField("token_count"):
        tokens = fields.whole(given.token_count, "summary.token_count", least=0, most=_TOKENS_MAX)
    return NewSummary(
        summary_id=fields.optional_identifier(given.summary_id, "summary.summary_id") or fields.new_id(),
        first_seq=first,
        last_seq=last,
        text=fields.text(given.text, "summary.text", bytes_max=TEXT_BYTES_MAX, required=True),
        token_count=tokens,
        model=fields.line(given.model, "summary.model", bytes_max=255),
        author=fields.line(given.author, "summary.author", bytes_max=255),
        metadata=fields.labels(given.metadata, "summary.metadata"),
    )


def named(request: pb.GetSummaryRequest | pb.DeleteSummaryRequest) -> tuple[ThreadKey, str]:
    """Which summary a request is about."""
    return thread_key(request.workspace_id, request.thread_id), fields.identifier(request.summary_id, "summary_id")


def message(summary: Summary) -> pb.Summary:
    """A summary as it goes out."""
    return pb.Summary(
        summary_id=summary.summary_id,
        first_seq=summary.first_seq,
        last_seq=summary.last_seq,
        text=summary.text,
        token_count=summary.token_count,
        model=summary.model,
        author=summary.author,
        metadata=summary.metadata,
        stale=summary.stale,
        create_time=fields.timestamp(summary.created_at),
    )


def put_response(summary: Summary) -> pb.PutSummaryResponse:
    """What was kept, without the words: answers are remembered for a day, and words are where erasures look for them."""
    kept = message(summary)
    kept.ClearField("text")
    kept.ClearField("metadata")
    return pb.PutSummaryResponse(summary=kept)


def list_response(page: SummaryPage, query: Sequence[object]) -> pb.ListSummariesResponse:
    """A page of summaries."""
    following = fields.page_token(query, [page.entries[-1].version]) if page.more else ""
    return pb.ListSummariesResponse(summaries=map(message, page.entries), next_page_token=following)
