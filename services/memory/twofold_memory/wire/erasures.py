"""Erasures and retention on the wire."""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from hashlib import sha256

from twofold.memory.v1 import erasure_pb2 as pb
from twofold_chassis import fields
from twofold_chassis.refusals import EtagMismatch, InvalidPageToken
from twofold_memory.erasures import Erasure, ErasureKey, Kind, Retention, Wish

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)
_MICROS_MAX = 2**53  # the year 2255
_DAYS_MAX = 36_500
_KINDS = {
    Kind.CONVERSATION: pb.ERASURE_KIND_CONVERSATION,
    Kind.USER: pb.ERASURE_KIND_USER,
    Kind.WORKSPACE: pb.ERASURE_KIND_WORKSPACE,
    Kind.RETENTION: pb.ERASURE_KIND_RETENTION,
}


def conversation_wish(request: pb.EraseConversationRequest, actor: str) -> Wish:
    """One conversation is to be erased."""
    return Wish(
        _new_key(request),
        Kind.CONVERSATION,
        actor,
        thread_id=fields.identifier(request.thread_id, "thread_id"),
    )


def user_wish(request: pb.EraseUserRequest, actor: str) -> Wish:
    """A user is to be erased."""
    return Wish(_new_key(request), Kind.USER, actor, user_id=fields.identifier(request.user_id, "user_id"))


def workspace_wish(request: pb.EraseWorkspaceRequest, actor: str) -> Wish:
    """A workspace is to be erased."""
    return Wish(_new_key(request), Kind.WORKSPACE, actor)


def key(request: pb.GetErasureRequest) -> ErasureKey:
    """The erasure that is asked for."""
    return ErasureKey(
        fields.identifier(request.workspace_id, "workspace_id"), fields.identifier(request.erasure_id, "erasure_id")
    )


def before(request: pb.ListErasuresRequest, query: Sequence[object]) -> tuple[datetime, str] | None:
    """The erasure that the page begins behind."""
    place = fields.page_place(request.page_token, query, int, str)
    if place is None:
        return None
    micros, erasure_id = place
    if micros >= _MICROS_MAX:
        raise InvalidPageToken("page_token", "is damaged")
    return _EPOCH + micros * _MICROSECOND, erasure_id


def receipt(erasure: Erasure) -> pb.Erasure:
    """A receipt as it goes out."""
    return pb.Erasure(
        workspace_id=erasure.key.workspace_id,
        erasure_id=erasure.key.erasure_id,
        kind=_KINDS[erasure.kind],
        thread_id=erasure.thread_id or "",
        user_id=erasure.user_id or "",
        state=_state(erasure.done_at),
        stores=[
            _store(pb.ERASED_STORE_POSTGRES, erasure.rows_gone_at, erasure.rows),
            _store(pb.ERASED_STORE_WINDOWS, erasure.windows_gone_at, {"conversations": erasure.windows}),
            _store(pb.ERASED_STORE_JOURNAL, erasure.windows_gone_at, {"conversations": erasure.windows}),
            _store(pb.ERASED_STORE_PREFERENCE_COPIES, erasure.copies_gone_at, {"users": erasure.copies}),
        ],
        conversation_count=erasure.conversations,
        epoch=erasure.epoch or 0,
        actor=erasure.actor,
        create_time=fields.timestamp(erasure.asked_at),
        complete_time=None if erasure.done_at is None else fields.timestamp(erasure.done_at),
    )


def list_response(found: Sequence[Erasure], size: int, query: Sequence[object]) -> pb.ListErasuresResponse:
    """A page; `found` has one more than `size` if there is another page."""
    page = found[:size]
    following = ""
    if len(found) > size:
        last = page[-1]
        following = fields.page_token(query, [(last.asked_at - _EPOCH) // _MICROSECOND, last.key.erasure_id])
    return pb.ListErasuresResponse(erasures=map(receipt, page), next_page_token=following)


def days(request: pb.SetRetentionRequest) -> int:
    """How long conversations are to be kept."""
    return fields.whole(request.days, "days", least=0, most=_DAYS_MAX)


def retention(found: Retention) -> pb.Retention:
    """A retention as it goes out."""
    return pb.Retention(
        workspace_id=found.workspace_id,
        days=found.days,
        etag=_etag(found),
        update_time=None if found.updated_at is None else fields.timestamp(found.updated_at),
    )


def expect(found: Retention, given: str) -> None:
    """Refuses if the caller gave an etag and it is not the current one."""
    if given and given != _etag(found):
        raise EtagMismatch("the retention was changed by somebody else; read it again, then decide")


def _etag(found: Retention) -> str:
    name = f"retention/{len(found.workspace_id)}/{found.workspace_id}/{found.version}"
    return sha256(name.encode()).hexdigest()[:16]


def _new_key(request: pb.EraseConversationRequest | pb.EraseUserRequest | pb.EraseWorkspaceRequest) -> ErasureKey:
    given = fields.optional_identifier(request.erasure_id, "erasure_id")
    return ErasureKey(fields.identifier(request.workspace_id, "workspace_id"), given or fields.new_id())


def _state(gone_at: datetime | None) -> "pb.ErasureState.ValueType":
    return pb.ERASURE_STATE_PENDING if gone_at is None else pb.ERASURE_STATE_DONE


def _store(store: "pb.ErasedStore.ValueType", gone_at: datetime | None, counts: Mapping[str, int]) -> pb.StoreReceipt:
    return pb.StoreReceipt(store=store, state=_state(gone_at), counts=counts)
