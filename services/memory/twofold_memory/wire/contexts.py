"""Contexts on the wire."""

from collections.abc import Sequence
from dataclasses import dataclass

from twofold.memory.v1 import context_pb2 as pb
from twofold.memory.v1 import message_pb2
from twofold_chassis import fields
from twofold_memory import contexts, summaries, tokens
from twofold_memory.documents import Document
from twofold_memory.preferences import Recalled
from twofold_memory.threads import Level, ThreadKey, Window
from twofold_memory.tokens import ThreadToken
from twofold_memory.wire import documents, messages, preferences, reads
from twofold_memory.wire import summaries as summary_messages


@dataclass(frozen=True, slots=True)
class Invoking:
    """Which context is asked for."""

    workspace_id: str
    key: ThreadKey | None
    user_id: str | None
    count: int
    budget: int
    level: Level
    token: ThreadToken | None
    with_summary: bool
    with_documents: bool
    with_open_calls: bool


def invoking(request: pb.InvokingRequest) -> Invoking:
    """Reads the request."""
    key = reads.optional_thread_key(request)
    level, token = reads.level_and_token(request, key)
    return Invoking(
        workspace_id=request.workspace_id,
        key=key,
        user_id=fields.optional_identifier(request.user_id, "user_id"),
        count=reads.count(request),
        budget=reads.budget(request),
        level=level,
        token=token,
        with_summary=key is not None and not request.without_summary,
        with_documents=key is not None and not request.without_documents,
        with_open_calls=request.with_open_calls,
    )


def invoking_response(
    asked: Invoking,
    window: Window | None,
    summed_up: summaries.Recalled | None,
    recalled: Recalled | None,
    linked: Sequence[Document] | None,
) -> pb.InvokingResponse:
    """The context within its budget, as messages and as text.

    `summed_up` is None if no summary is wanted; `linked` if no documents are, or nobody could say which there are.
    """
    said = messages.messages_of(window.entries) if window else []
    lines = messages.lines_of(said)
    known = recalled.preferences.entries if recalled else []
    joined = contexts.joined(
        lines,
        [message.seq for message in said],
        known,
        summed_up.entries if summed_up else [],
        asked.budget,
        newest_seq=window.as_of_seq if window else 0,
        documents=linked or (),
        open_calls=asked.with_open_calls,
    )
    cut = joined.cut
    response = pb.InvokingResponse(
        messages=[said[index] for index in cut.lines],
        preferences=preferences.messages(cut.preferences),
        text=contexts.text_of([lines[index] for index in cut.lines], cut.preferences, cut.summary, cut.documents),
        token_count=cut.tokens,
        truncated=cut.truncated or (window is not None and window.truncated),
        summary=summary_messages.message(cut.summary) if cut.summary else None,
        gap_first_seq=joined.gap[0],
        gap_last_seq=joined.gap[1],
        documents=map(documents.message, cut.documents),
        documents_unknown=asked.with_documents and linked is None,
    )
    if summed_up is not None:
        response.summary_unknown = summed_up.completeness is None
        if summed_up.completeness is not None:
            response.summary_completeness = message_pb2.Completeness.ValueType(summed_up.completeness.value)
    if window is not None and asked.key is not None:
        response.source = message_pb2.ReadSource.ValueType(window.source.value)
        response.completeness = message_pb2.Completeness.ValueType(window.completeness.value)
        response.as_of_seq = window.as_of_seq
        response.thread_token = tokens.seal(
            asked.key, window.epoch, window.as_of_seq, window.waiting_turn, waits=bool(window.waiting_turn)
        )
    if recalled is not None:
        response.preferences_source = message_pb2.ReadSource.ValueType(recalled.source.value)
        response.preferences_completeness = message_pb2.Completeness.ValueType(recalled.completeness.value)
    return response
