"""Searching on the wire."""

from datetime import UTC, datetime, timedelta

from twofold.memory.v1 import search_pb2 as pb
from twofold_chassis import fields
from twofold_chassis.refusals import InvalidField, InvalidPageToken
from twofold_memory.searching import AROUND_MAX, Found, Hit, Order, Place, Search
from twofold_memory.wire.messages import messages_of

_QUERY_BYTES_MAX = 1024
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)
_MICROS_MAX = 2**53  # the year 2255
_ORDERS = {
    pb.SEARCH_ORDER_UNSPECIFIED: Order.NEWEST,
    pb.SEARCH_ORDER_NEWEST: Order.NEWEST,
    pb.SEARCH_ORDER_RELEVANCE: Order.RELEVANCE,
}


def search(request: pb.SearchMessagesRequest) -> Search:
    """What is looked for."""
    order = _ORDERS.get(request.order)
    if order is None:
        raise InvalidField("order", "must be one of the orders of the contract")
    start = fields.moment(request.start_time, "start_time") if request.HasField("start_time") else None
    end = fields.moment(request.end_time, "end_time") if request.HasField("end_time") else None
    if start is not None and end is not None and start >= end:
        raise InvalidField("end_time", "must be after start_time")
    words = fields.text(request.query, "query", bytes_max=_QUERY_BYTES_MAX, required=True)
    return Search(
        workspace_id=fields.identifier(request.workspace_id, "workspace_id"),
        user_id=fields.optional_identifier(request.user_id, "user_id"),
        thread_id=fields.optional_identifier(request.thread_id, "thread_id"),
        words=words,
        start=start,
        end=end,
        around=fields.whole(request.around, "around", least=0, most=AROUND_MAX),
        order=order,
        behind=_behind(request),
        count=fields.page_size(request.page_size),
    )


def response(request: pb.SearchMessagesRequest, found: Found) -> pb.SearchMessagesResponse:
    """A page."""
    following = ""
    if found.behind is not None:
        micros, created_at, thread_id, seq = found.behind
        following = fields.page_token(_query(request), [micros, (created_at - _EPOCH) // _MICROSECOND, thread_id, seq])
    return pb.SearchMessagesResponse(hits=map(_hit, found.hits), next_page_token=following)


def _hit(hit: Hit) -> pb.SearchHit:
    return pb.SearchHit(
        thread_id=hit.place.thread_id,
        user_id=hit.owner or "",
        message=messages_of([hit.entry])[0],
        snippet=hit.snippet,
        rank=hit.rank,
        before=messages_of(hit.before),
        after=messages_of(hit.after),
        truncated=hit.truncated,
    )


def _behind(request: pb.SearchMessagesRequest) -> Place | None:
    place = fields.page_place(request.page_token, _query(request), int, int, str, int)
    if place is None:
        return None
    rank, micros, thread_id, seq = place
    if micros >= _MICROS_MAX:
        raise InvalidPageToken("page_token", "is damaged")
    return Place(rank, _EPOCH + micros * _MICROSECOND, thread_id, seq)


def _query(request: pb.SearchMessagesRequest) -> tuple[object, ...]:
    return (
        "SearchMessages",
        request.workspace_id,
        request.user_id,
        request.thread_id,
        request.query,
        request.start_time.ToNanoseconds() if request.HasField("start_time") else None,
        request.end_time.ToNanoseconds() if request.HasField("end_time") else None,
        request.around,
        request.order,
    )
