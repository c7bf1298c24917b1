"""Conversations on the wire."""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

from google.protobuf.field_mask_pb2 import FieldMask

from twofold.memory.v1 import conversation_pb2 as pb
from twofold_chassis import fields
from twofold_chassis.refusals import InvalidField, InvalidPageToken
from twofold_memory.conversations import Edit, Filter, etag
from twofold_memory.threads import Conversation, ThreadKey
from twofold_memory.wire.messages import thread_key

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)
_MICROS_MAX = 2**53  # the year 2255
_TITLE_BYTES_MAX = 1024
_PATHS = ("title", "metadata")


def new_conversation(request: pb.CreateConversationRequest) -> Conversation:
    """The conversation that is to be made, with an id of the caller's or a new one."""
    given = _given(request)
    key = ThreadKey(
        fields.identifier(given.workspace_id, "conversation.workspace_id"),
        fields.optional_identifier(given.thread_id, "conversation.thread_id") or fields.new_id(),
    )
    return Conversation(
        key=key,
        user_id=fields.optional_identifier(given.user_id, "conversation.user_id"),
        title=title(given.title, "conversation.title"),
        metadata=fields.labels(given.metadata, "conversation.metadata"),
    )


def key_of(
    request: pb.GetConversationRequest | pb.DeleteConversationRequest | pb.UndeleteConversationRequest,
) -> ThreadKey:
    """The conversation that a request names."""
    return thread_key(request.workspace_id, request.thread_id)


def edited_key(request: pb.UpdateConversationRequest) -> ThreadKey:
    """The conversation that is to be changed."""
    given = _given(request)
    return ThreadKey(
        fields.identifier(given.workspace_id, "conversation.workspace_id"),
        fields.identifier(given.thread_id, "conversation.thread_id"),
    )


def edit(request: pb.UpdateConversationRequest) -> Edit:
    """The new values that the mask names."""
    paths = _paths(request.update_mask)
    given = request.conversation
    return Edit(
        title=title(given.title, "conversation.title") if "title" in paths else None,
        metadata=fields.labels(given.metadata, "conversation.metadata") if "metadata" in paths else None,
    )


def given_etag(value: str, field: str) -> str:
    """An etag as it was given; it is compared, not interpreted."""
    return fields.line(value, field, bytes_max=255)


def asked(request: pb.ListConversationsRequest) -> Filter:
    """Which conversations are to be listed."""
    since = fields.moment(request.updated_from, "updated_from") if request.HasField("updated_from") else None
    before = fields.moment(request.updated_before, "updated_before") if request.HasField("updated_before") else None
    if since is not None and before is not None and before <= since:
        raise InvalidField("updated_before", "must be later than updated_from")
    return Filter(
        user_id=fields.optional_identifier(request.user_id, "user_id"),
        updated_from=since,
        updated_before=before,
        metadata=fields.labels(request.metadata, "metadata"),
    )


def query(request: pb.ListConversationsRequest, asked: Filter) -> Sequence[object]:
    """What a page token is bound to."""
    labels = sorted(asked.metadata.items())
    return ("ListConversations", request.workspace_id, asked.user_id, asked.updated_from, asked.updated_before, labels)


def after(request: pb.ListConversationsRequest, query: Sequence[object]) -> tuple[datetime, str] | None:
    """Where the page begins."""
    place = fields.page_place(request.page_token, query, int, str)
    if place is None:
        return None
    micros, thread_id = place
    if micros >= _MICROS_MAX:
        raise InvalidPageToken("page_token", "is damaged")
    return _EPOCH + micros * _MICROSECOND, thread_id


def message(conversation: Conversation) -> pb.Conversation:
    """A conversation as it goes out."""
    assert conversation.created_at is not None
    assert conversation.updated_at is not None
    return pb.Conversation(
        workspace_id=conversation.key.workspace_id,
        thread_id=conversation.key.thread_id,
        user_id=conversation.user_id or "",
        title=conversation.title,
        metadata=conversation.metadata,
        message_count=conversation.message_count,
        create_time=fields.timestamp(conversation.created_at),
        update_time=fields.timestamp(conversation.updated_at),
        etag=etag(conversation),
        parent_thread_id=conversation.parent_thread_id or "",
        fork_seq=conversation.fork_seq,
        first_seq=conversation.first_seq,
    )


def list_response(found: Sequence[Conversation], size: int, query: Sequence[object]) -> pb.ListConversationsResponse:
    """A page; `found` has one more than `size` if there is another page."""
    page = found[:size]
    following = ""
    if len(found) > size:
        last = page[-1]
        assert last.listed_at is not None
        following = fields.page_token(query, [(last.listed_at - _EPOCH) // _MICROSECOND, last.key.thread_id])
    return pb.ListConversationsResponse(conversations=map(message, page), next_page_token=following)


def _given(request: pb.CreateConversationRequest | pb.UpdateConversationRequest) -> pb.Conversation:
    if not request.HasField("conversation"):
        raise InvalidField("conversation", "is required")
    return request.conversation


def title(value: str, field: str) -> str:
    """A title for people."""
    return fields.line(value, field, bytes_max=_TITLE_BYTES_MAX)


def _paths(mask: FieldMask) -> set[str]:
    if not mask.paths:
        raise InvalidField("update_mask", "is required")
    for path in mask.paths:
        if path not in _PATHS:
            raise InvalidField("update_mask", f"{path!r} cannot be updated, only {', '.join(_PATHS)} can")
    return set(mask.paths)
