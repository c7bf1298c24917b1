"""Changes of messages on the wire."""

from collections.abc import Sequence

from twofold.memory.v1 import message_pb2
from twofold.memory.v1 import revision_pb2 as pb
from twofold_chassis import fields
from twofold_chassis.refusals import InvalidField, InvalidPageToken
from twofold_memory import revisions, tokens
from twofold_memory.revisions import (
    REASON_BYTES_MAX,
    REPLACEMENT_BYTES_MAX,
    Body,
    Kind,
    PopAnswer,
    Revised,
    Revising,
    RevisionPage,
)
from twofold_memory.threads import MESSAGE_BYTES_MAX, ROLE_RESULT, Entry
from twofold_memory.wire import parts
from twofold_memory.wire.messages import TOKENS_MAX, messages_of

_REVISION_MAX = 2**31 - 1


def edit(request: pb.EditMessageRequest) -> Revising:
    """What EditMessage changes."""
    reason, expected = _reason(request.reason), _expected(request)
    token_count = None
    if request.HasField("token_count"):
        token_count = fields.whole(request.token_count, "token_count", least=0, most=TOKENS_MAX)
    if not request.HasField("content"):
        if token_count is None:
            raise InvalidField("content", "is required without token_count")
        return Revising(
            Kind.EDIT,
            reason,
            lambda body: revisions.edited(body, body.content, body.rest, token_count),
            expected,
        )
    text, pieces = _content(request.content)
    return Revising(
        Kind.EDIT,
        reason,
        lambda body: revisions.edited(body, text, _with_parts(body.rest, pieces), token_count),
        expected,
    )


def redaction(request: pb.RedactMessageRequest) -> Revising:
    """What RedactMessage changes."""
    replacement = fields.text(request.replacement, "replacement", bytes_max=REPLACEMENT_BYTES_MAX) or None
    return Revising(Kind.REDACT, _reason(request.reason), lambda body: revisions.redacted(body, replacement, _bare(body)))


def deletion(request: pb.DeleteMessageRequest) -> Revising:
    """What DeleteMessage changes."""
    return Revising(Kind.DELETE, _reason(request.reason), revisions.deleted, _expected(request))


def reason_of(request: pb.PopTurnRequest) -> str:
    """Why a turn is taken back."""
    return _reason(request.reason)


def edit_answer(revised: Revised) -> bytes:
    """The answer of EditMessage. No answer holds content: it is kept for a day, and content may be redacted meanwhile."""
    return pb.EditMessageResponse(revision=revised.revision, thread_token=_token(revised)).SerializeToString()


def redaction_answer(revised: Revised) -> bytes:
    """The answer of RedactMessage."""
    return pb.RedactMessageResponse(revision=revised.revision, thread_token=_token(revised)).SerializeToString()


def deletion_answer(revised: Revised) -> bytes:
    """The answer of DeleteMessage."""
    return pb.DeleteMessageResponse(revision=revised.revision, thread_token=_token(revised)).SerializeToString()


def _pop_kept(revised: Revised) -> bytes:
    return pb.PopTurnResponse(turn_id=revised.turn_id, thread_token=_token(revised)).SerializeToString()


def _pop_turn_id(kept: bytes) -> str:
    return pb.PopTurnResponse.FromString(kept).turn_id


def _pop_whole(kept: bytes, entries: Sequence[Entry]) -> bytes:
    """Frames of messages are elements of its first field."""
    return b"".join((*[entry.frame for entry in entries], kept))


POP_ANSWER = PopAnswer(_pop_kept, _pop_turn_id, _pop_whole)


def after(request: pb.ListRevisionsRequest, query: Sequence[object]) -> int:
    """The revision behind which a page begins."""
    place = fields.page_place(request.page_token, query, int)
    if place is None:
        return 0
    behind: int = place[0]
    if behind > _REVISION_MAX:
        raise InvalidPageToken("page_token", "is damaged")
    return behind


def list_response(page: RevisionPage, query: Sequence[object]) -> pb.ListRevisionsResponse:
    """A page of revisions."""
    following = fields.page_token(query, [page.revisions[-1].revision]) if page.more else ""
    return pb.ListRevisionsResponse(revisions=map(_revision, page.revisions), next_page_token=following)


def _revision(revision: revisions.Revision) -> pb.Revision:
    return pb.Revision(
        revision=revision.revision,
        kind=pb.RevisionKind.ValueType(revision.kind),
        former=messages_of([revision.former])[0] if revision.former else None,
        actor=revision.actor,
        reason=revision.reason,
        create_time=fields.timestamp(revision.created_at),
    )


def _content(content: pb.NewContent) -> tuple[str | None, Sequence[message_pb2.Part]]:
    match content.WhichOneof("kind"):
        case "text":
            return fields.text(content.text, "content.text", bytes_max=MESSAGE_BYTES_MAX), ()
        case "parts" if content.parts.parts:
            parts.check(content.parts.parts, "content.parts.parts")
            return None, content.parts.parts
        case "parts":
            raise InvalidField("content.parts.parts", "must be at least one")
        case _:
            raise InvalidField("content", "must be text or parts")


def _with_parts(rest: bytes, pieces: Sequence[message_pb2.Part]) -> bytes:
    """A message's remainder with other parts."""
    if not rest and not pieces:
        return b""
    message = message_pb2.Message.FromString(rest)
    del message.parts[:]
    message.parts.extend(pieces)
    message.DiscardUnknownFields()
    encoded: bytes = message.SerializeToString(deterministic=True)
    return encoded


def _bare(body: Body) -> bytes:
    """What a redaction leaves: of a tool's result, which call it answers."""
    if body.role != ROLE_RESULT:
        return b""
    call = message_pb2.Message.FromString(body.rest).tool_call_id
    bare: bytes = message_pb2.Message(tool_call_id=call).SerializeToString()
    return bare


def _reason(value: str) -> str:
    return fields.line(value, "reason", bytes_max=REASON_BYTES_MAX)


def _expected(request: pb.EditMessageRequest | pb.DeleteMessageRequest) -> int | None:
    if not request.HasField("expected_revision"):
        return None
    return fields.whole(request.expected_revision, "expected_revision", least=0, most=_REVISION_MAX)


def _token(revised: Revised) -> bytes:
    return tokens.seal(revised.key, revised.epoch, revised.last_seq)
