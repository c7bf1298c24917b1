"""The history of sessions on the wire."""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

from twofold.registry.v1 import session_pb2 as pb
from twofold_chassis import fields
from twofold_chassis.refusals import InvalidField, InvalidPageToken
from twofold_registry.resources import Page
from twofold_registry.revisions import Revision, revision_of
from twofold_registry.sessions import CloseReason, Closing, Holding, Place, Session, SessionQuery, Tenure
from twofold_registry.wire import pages
from twofold_registry.wire.forms import happened
from twofold_registry.wire.pods import incarnation, incarnation_message

_EVENTS_MAX = 500
_FENCE_MAX = 2**63 - 1
_AHEAD_MAX = timedelta(hours=1)
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)
_REASONS = {
    pb.SESSION_CLOSE_REASON_CLIENT_LEFT: CloseReason.CLIENT_LEFT,
    pb.SESSION_CLOSE_REASON_REVOKED: CloseReason.REVOKED,
    pb.SESSION_CLOSE_REASON_POD_DEAD: CloseReason.POD_DEAD,
    pb.SESSION_CLOSE_REASON_IDLE: CloseReason.IDLE,
    pb.SESSION_CLOSE_REASON_TAKEN_OVER: CloseReason.TAKEN_OVER,
    pb.SESSION_CLOSE_REASON_DRAINED: CloseReason.DRAINED,
    pb.SESSION_CLOSE_REASON_CLOSED_BY_OTHERS: CloseReason.CLOSED_BY_OTHERS,
    pb.SESSION_CLOSE_REASON_ERROR: CloseReason.ERROR,
}
_REASON_FORMS = {reason: form for form, reason in _REASONS.items()}


def workspace_id(request: pb.RecordSessionsRequest) -> str:
    return fields.identifier(request.workspace_id, "workspace_id")


def told(request: pb.RecordSessionsRequest, now: datetime) -> list[Session]:
    """What each event tells; `now` is what their times are measured against."""
    if not 1 <= len(request.events) <= _EVENTS_MAX:
        raise InvalidField("events", f"has {len(request.events)} entries, must have 1 to {_EVENTS_MAX}")
    return [_told(event, f"events[{index}]", now) for index, event in enumerate(request.events)]


def recorded(conflicts: Sequence[int]) -> pb.RecordSessionsResponse:
    return pb.RecordSessionsResponse(conflicts=conflicts)


def list_query(request: pb.ListSessionsRequest) -> SessionQuery:
    query = SessionQuery(
        workspace_id=fields.identifier(request.workspace_id, "workspace_id"),
        user_id=fields.optional_identifier(request.user_id, "user_id"),
        agent_id=fields.optional_identifier(request.agent_id, "agent_id"),
        pod_id=fields.optional_identifier(request.pod_id, "pod_id"),
        open_only=request.open_only,
        start=fields.moment(request.start_time, "start_time") if request.HasField("start_time") else None,
        end=fields.moment(request.end_time, "end_time") if request.HasField("end_time") else None,
    )
    if query.start is not None and query.end is not None and query.end <= query.start:
        raise InvalidField("end_time", "must be later than start_time")
    return query


def list_place(request: pb.ListSessionsRequest, query: SessionQuery) -> tuple[Place | None, int]:
    """The session the page begins behind, and the size of the page."""
    size = fields.page_size(request.page_size)
    cursor = fields.page_place(request.page_token, query, int, str, int)
    if cursor is None:
        return None, size
    at_us, session_id, fence = cursor
    try:
        return Place(_EPOCH + at_us * _MICROSECOND, session_id, fence), size
    except OverflowError:
        raise InvalidPageToken("page_token", "is damaged") from None


def least_revision(request: pb.ListSessionsRequest) -> Revision | None:
    return revision_of(request.min_revision_token, "min_revision_token")


def listed(query: SessionQuery, page: Page[Session]) -> pb.ListSessionsResponse:
    messages, token = pages.filled(page, query, lambda each: _session_message(query.workspace_id, each), _cursor)
    return pb.ListSessionsResponse(sessions=messages, next_page_token=token)


def _cursor(session: Session) -> list[object]:
    return [(session.began_at - _EPOCH) // _MICROSECOND, *session.tenure]


def _told(event: pb.SessionEvent, field: str, now: datetime) -> Session:
    tenure = Tenure(
        fields.identifier(event.session_id, f"{field}.session_id"),
        fields.whole(event.fence, f"{field}.fence", least=0, most=_FENCE_MAX),
    )
    holding = _holding(event, field)
    at = happened(event, "event_time", f"{field}.event_time", now + _AHEAD_MAX)
    reason = _reason(event, f"{field}.close_reason")
    if event.kind == pb.SESSION_EVENT_KIND_OPENED:
        if reason is not None:
            raise InvalidField(f"{field}.close_reason", "must be left out of an event that opens")
        return Session(tenure, holding, opened_at=at)
    if event.kind == pb.SESSION_EVENT_KIND_CLOSED:
        if reason is None:
            raise InvalidField(f"{field}.close_reason", "is required in an event that closes")
        return Session(tenure, holding, closing=Closing(at, reason))
    raise InvalidField(f"{field}.kind", "must be OPENED or CLOSED")


def _holding(event: pb.SessionEvent, field: str) -> Holding:
    if not event.HasField("incarnation"):
        raise InvalidField(f"{field}.incarnation", "is required")
    return Holding(
        fields.identifier(event.user_id, f"{field}.user_id"),
        fields.identifier(event.agent_id, f"{field}.agent_id"),
        fields.identifier(event.pod_id, f"{field}.pod_id"),
        incarnation(event.incarnation, f"{field}.incarnation"),
    )


def _reason(event: pb.SessionEvent, field: str) -> CloseReason | None:
    if event.close_reason == pb.SESSION_CLOSE_REASON_UNSPECIFIED:
        return None
    if event.close_reason not in _REASONS:
        raise InvalidField(field, f"has no value {event.close_reason}")
    return _REASONS[event.close_reason]


def _session_message(workspace_id: str, session: Session) -> pb.Session:
    message = pb.Session(
        workspace_id=workspace_id,
        session_id=session.tenure.session_id,
        fence=session.tenure.fence,
        user_id=session.holding.user_id,
        agent_id=session.holding.agent_id,
        pod_id=session.holding.pod_id,
        incarnation=incarnation_message(session.holding.incarnation),
    )
    if session.opened_at is not None:
        message.open_time.CopyFrom(fields.timestamp(session.opened_at))
    if session.closing is not None:
        message.close_time.CopyFrom(fields.timestamp(session.closing.at))
        message.close_reason = _REASON_FORMS[session.closing.reason]
    return message
