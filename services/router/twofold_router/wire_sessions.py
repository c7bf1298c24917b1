"""Proto ↔ domain for sessions and pods: the router's own face, and what it tells the registry. Pure."""

from collections.abc import AsyncIterator, Callable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp

from twofold.registry.v1 import pod_pb2
from twofold.registry.v1 import session_pb2 as history_pb2
from twofold.router.v1 import session_pb2 as pb
from twofold_chassis import fields
from twofold_chassis.refusals import InvalidArgument, InvalidField
from twofold_chassis.revisions import revision_of
from twofold_router.pods import (
    Ack,
    Alive,
    Announce,
    Close,
    Closed,
    Delivery,
    Done,
    Drain,
    Fenced,
    Heartbeat,
    HeldSession,
    Hello,
    Leave,
    Open,
    Opened,
    PodState,
    Reannounce,
    Refused,
    Said,
    Told,
    Touch,
    Welcome,
    Wrong,
)
from twofold_router.session_history import SessionEvent
from twofold_router.sessions import (
    CloseReason,
    Incarnation,
    LinkedPod,
    Message,
    PodLife,
    Sent,
    Session,
    SessionKey,
    Wanted,
)

_PAYLOAD_BYTES_MAX = 64 * 1024
_SESSIONS_MAX = 100_000
_ANNOUNCED_MAX = 500
_NUMBER_MAX = 2**63 - 1
_FENCE_MAX = 2**53 - 1  # what a script in Redis counts exactly
_UNIX = datetime(1970, 1, 1, tzinfo=UTC)

_REASONS = {
    history_pb2.SESSION_CLOSE_REASON_CLIENT_LEFT: CloseReason.CLIENT_LEFT,
    history_pb2.SESSION_CLOSE_REASON_REVOKED: CloseReason.REVOKED,
    history_pb2.SESSION_CLOSE_REASON_POD_DEAD: CloseReason.POD_DEAD,
    history_pb2.SESSION_CLOSE_REASON_IDLE: CloseReason.IDLE,
    history_pb2.SESSION_CLOSE_REASON_TAKEN_OVER: CloseReason.TAKEN_OVER,
    history_pb2.SESSION_CLOSE_REASON_DRAINED: CloseReason.DRAINED,
    history_pb2.SESSION_CLOSE_REASON_CLOSED_BY_OTHERS: CloseReason.CLOSED_BY_OTHERS,
    history_pb2.SESSION_CLOSE_REASON_ERROR: CloseReason.ERROR,
}
_REASON_MESSAGES = {reason: message for message, reason in _REASONS.items()}
_STATES = {pod_pb2.POD_STATE_LIVE: PodState.LIVE, pod_pb2.POD_STATE_DEAD: PodState.DEAD}


# What a pod says --------------------------------------------------------------------------------------------------------


async def hello(requests: AsyncIterator[pb.PodLinkRequest]) -> Hello:
    """The first message."""
    async for request in requests:
        if request.WhichOneof("said") != "hello":
            break
        said = request.hello
        known = _incarnation(said.incarnation, "hello.incarnation") if said.HasField("incarnation") else None
        return Hello(
            fields.identifier(said.pod_id, "hello.pod_id"),
            known,
            fields.line(said.address, "hello.address", bytes_max=fields.ID_BYTES_MAX),
            fields.whole(said.session_count, "hello.session_count", least=0, most=_SESSIONS_MAX if known else 0),
            fields.optional_identifier(said.request_id, "hello.request_id") or "",
        )
    raise InvalidField("hello", "is required, first")


async def said(requests: AsyncIterator[pb.PodLinkRequest]) -> AsyncIterator[Said]:
    """The messages behind the first."""
    async for request in requests:
        kind = request.WhichOneof("said")
        read = _SAID.get(kind or "")
        if read is None:
            raise InvalidField(kind or "said", "is sent once, first" if kind else "is required")
        yield read(request)


def _announce(request: pb.PodLinkRequest) -> Announce:
    sessions = request.announce.sessions
    if not 1 <= len(sessions) <= _ANNOUNCED_MAX:
        raise InvalidField("announce.sessions", f"must be 1 to {_ANNOUNCED_MAX}")
    return Announce([_held(one, f"announce.sessions[{index}]") for index, one in enumerate(sessions)])


def _held(one: pb.HeldSession, path: str) -> HeldSession:
    opened = fields.moment(one.open_time, f"{path}.open_time")
    return HeldSession(
        _key(one, f"{path}."),
        fields.identifier(one.user_id, f"{path}.user_id"),
        fields.identifier(one.agent_id, f"{path}.agent_id"),
        fields.whole(one.fence, f"{path}.fence", least=1, most=_FENCE_MAX),
        (opened - _UNIX) // timedelta(milliseconds=1),
    )


def _heartbeat(request: pb.PodLinkRequest) -> Heartbeat:
    beat = request.heartbeat
    nonce = fields.whole(beat.nonce, "heartbeat.nonce", least=1, most=2**64 - 1)
    return Heartbeat(nonce, fields.whole(beat.session_count, "heartbeat.session_count", least=0, most=_SESSIONS_MAX))


def _ack(request: pb.PodLinkRequest) -> Ack:
    return Ack(fields.whole(request.ack.delivery, "ack.delivery", least=1, most=2**64 - 1))


def _call(read: Callable[[Any], Said], name: str) -> Callable[[pb.PodLinkRequest], Said]:
    """Reads a call of the pod; one that breaks a rule is refused by itself, and does not end the link."""

    def one(request: pb.PodLinkRequest) -> Said:
        call = getattr(request, name)
        try:
            fields.whole(call.call_id, f"{name}.call_id", least=1, most=2**64 - 1)
            return read(call)
        except InvalidArgument as refusal:
            return Wrong(call.call_id, refusal)

    return one


def _open(call: pb.PodOpen) -> Open:
    return Open(
        call.call_id,
        _key(call, "open."),
        fields.identifier(call.user_id, "open.user_id"),
        fields.identifier(call.agent_id, "open.agent_id"),
        call.take_over,
        revision_of(call.min_revision_token, "open.min_revision_token"),
    )


def _touch(call: pb.PodTouch) -> Touch:
    return Touch(call.call_id, _key(call, "touch."), fields.whole(call.fence, "touch.fence", least=1, most=_FENCE_MAX))


def _close(call: pb.PodClose) -> Close:
    fence = fields.whole(call.fence, "close.fence", least=1, most=_FENCE_MAX)
    return Close(call.call_id, _key(call, "close."), fence, _reason(call.reason, "close.reason"), call.give_up)


_SAID: dict[str, Callable[[pb.PodLinkRequest], Said]] = {
    "announce": _announce,
    "heartbeat": _heartbeat,
    "open": _call(_open, "open"),
    "touch": _call(_touch, "touch"),
    "close": _call(_close, "close"),
    "ack": _ack,
    "leave": lambda _: Leave(),
}


# What a pod is told -----------------------------------------------------------------------------------------------------


def told(one: Told) -> pb.PodLinkResponse:
    """One message to a pod."""
    match one:
        case Alive(nonce):
            return pb.PodLinkResponse(alive=pb.PodAlive(nonce=nonce))
        case Delivery(number, key, message):
            delivery = pb.PodDelivery(
                delivery=number, **key._asdict(), message_id=message.message_id, payload=message.payload
            )
            return pb.PodLinkResponse(delivery=delivery)
        case Opened():
            return pb.PodLinkResponse(opened=_opened(one))
        case Done(call_id):
            return pb.PodLinkResponse(done=pb.PodDone(call_id=call_id))
        case Refused():
            return pb.PodLinkResponse(refused=_refused(one))
        case Closed(key, fence, reason):
            closed = pb.PodClosed(**key._asdict(), fence=fence, reason=_REASON_MESSAGES[reason])
            return pb.PodLinkResponse(closed=closed)
        case Drain(reason):
            return pb.PodLinkResponse(drain=pb.PodDrain(reason=reason))
        case Reannounce():
            return pb.PodLinkResponse(reannounce=pb.PodReannounce())
        case Fenced(reason):
            return pb.PodLinkResponse(fenced=pb.PodFenced(reason=reason))
        case Welcome():
            return pb.PodLinkResponse(welcome=_welcome(one))


def _welcome(one: Welcome) -> pb.PodWelcome:
    return pb.PodWelcome(
        router_id=one.router_id,
        incarnation=incarnation_message(one.incarnation),
        heartbeat_interval=_duration(one.heartbeat_s),
        lease_duration=_duration(one.lease_s),
        sessions_max=one.sessions_max,
    )


def _opened(one: Opened) -> pb.PodOpened:
    return pb.PodOpened(
        call_id=one.call_id,
        fence=one.fence,
        open_time=_time(one.opened_ms),
        valid_for=_duration(one.valid_s),
        listed=one.listed,
    )


def _refused(one: Refused) -> pb.PodRefused:
    form = pb.PodRefused(call_id=one.call_id, reason=one.refusal.reason, message=one.refusal.message)
    if one.refusal.retry_after_s is not None:
        form.retry_delay.CopyFrom(_duration(one.refusal.retry_after_s))
    return form


# For everybody else -----------------------------------------------------------------------------------------------------


def session_key(request: pb.GetSessionRequest | pb.CloseSessionRequest) -> SessionKey:
    """Which session."""
    return _key(request, "")


def closing(request: pb.CloseSessionRequest) -> tuple[SessionKey, CloseReason, int | None]:
    """What is to be closed, why, and under which fence, if only under one."""
    fence = fields.whole(request.fence, "fence", least=0, most=_NUMBER_MAX) or None
    reason = _reason(request.reason, "reason") if request.reason else CloseReason.CLOSED_BY_OTHERS
    return _key(request, ""), reason, fence


def wanted(request: pb.ListSessionsRequest | pb.CountSessionsRequest) -> Wanted:
    """Which sessions are looked for."""
    return Wanted(
        fields.identifier(request.workspace_id, "workspace_id"),
        fields.optional_identifier(request.user_id, "user_id"),
        fields.optional_identifier(request.agent_id, "agent_id"),
        fields.optional_identifier(request.pod_id, "pod_id"),
    )


def page(request: pb.ListSessionsRequest) -> tuple[Wanted, str, int]:
    """Which sessions, behind which id, and how many."""
    asked = wanted(request)
    place = fields.page_place(request.page_token, ("sessions", asked), str)
    return asked, place[0] if place else "", fields.page_size(request.page_size)


def message(request: pb.SendToSessionRequest) -> tuple[SessionKey | Wanted, Message]:
    """What is sent, and where to."""
    workspace_id = fields.identifier(request.workspace_id, "workspace_id")
    if len(request.payload) > _PAYLOAD_BYTES_MAX:
        raise InvalidField("payload", f"has {len(request.payload)} bytes, at most {_PAYLOAD_BYTES_MAX} are allowed")
    sent = Message(fields.optional_identifier(request.message_id, "message_id") or "", request.payload)
    if request.WhichOneof("target") == "sessions_of":
        of = request.sessions_of
        user_id = fields.identifier(of.user_id, "sessions_of.user_id")
        return Wanted(workspace_id, user_id, fields.identifier(of.agent_id, "sessions_of.agent_id")), sent
    if request.WhichOneof("target") is None:
        raise InvalidField("session_id", "or sessions_of is required")
    return SessionKey(workspace_id, fields.identifier(request.session_id, "session_id")), sent


def drain(request: pb.DrainPodRequest) -> tuple[str, str]:
    """Which pod, and why."""
    reason = fields.line(request.reason, "reason", bytes_max=fields.ID_BYTES_MAX)
    return fields.identifier(request.pod_id, "pod_id"), reason


def pods_page(request: pb.ListLinkedPodsRequest) -> tuple[str, int]:
    """Behind which pod, and how many."""
    place = fields.page_place(request.page_token, "pods", str)
    return place[0] if place else "", fields.page_size(request.page_size)


def get_response(session: Session, pod: LinkedPod) -> pb.GetSessionResponse:
    return pb.GetSessionResponse(session=_session(session), pod_address=pod.address)


def list_response(asked: Wanted, sessions: Sequence[Session], after: str) -> pb.ListSessionsResponse:
    token = fields.page_token(("sessions", asked), [after]) if after else ""
    return pb.ListSessionsResponse(sessions=map(_session, sessions), next_page_token=token)


def send_response(sent: Sent) -> pb.SendToSessionResponse:
    return pb.SendToSessionResponse(sessions=sent.sessions, sent=sent.sent)


def pods_response(pods: Sequence[LinkedPod], after: str, size: int) -> pb.ListLinkedPodsResponse:
    """The page of all pods that stands behind one."""
    behind = [pod for pod in pods if pod.life.pod_id > after]
    token = fields.page_token("pods", [behind[size - 1].life.pod_id]) if len(behind) > size else ""
    return pb.ListLinkedPodsResponse(pods=map(_linked, behind[:size]), next_page_token=token)


def _session(session: Session) -> pb.Session:
    return pb.Session(
        **session.key._asdict(),
        user_id=session.user_id,
        agent_id=session.agent_id,
        pod_id=session.life.pod_id,
        incarnation=incarnation_message(session.life.incarnation),
        fence=session.fence,
        open_time=_time(session.opened_ms),
        touch_time=_time(session.touched_ms),
    )


def _linked(pod: LinkedPod) -> pb.LinkedPod:
    return pb.LinkedPod(
        pod_id=pod.life.pod_id,
        incarnation=incarnation_message(pod.life.incarnation),
        address=pod.address,
        router_id=pod.router_id,
        lease_left=_duration(pod.left_ms / 1000),
    )


# To the registry --------------------------------------------------------------------------------------------------------


def incarnation_message(incarnation: Incarnation) -> pod_pb2.PodIncarnation:
    return pod_pb2.PodIncarnation(**incarnation._asdict())


def life(pod_id: str, form: pod_pb2.PodIncarnation) -> PodLife:
    """The life that the registry has given."""
    return PodLife(pod_id, Incarnation(form.epoch, form.number))


def check_pod(one: PodLife) -> pod_pb2.CheckPodRequest:
    return pod_pb2.CheckPodRequest(pod_id=one.pod_id, incarnation=incarnation_message(one.incarnation))


def pod_states(response: pod_pb2.BatchCheckPodsResponse) -> list[PodState]:
    """What the registry says; what is not known here is not known."""
    return [_STATES.get(state, PodState.UNKNOWN) for state in response.states]


def history_event(event: SessionEvent) -> history_pb2.SessionEvent:
    """The event as the registry takes it."""
    session, closed = event.session, event.reason is not None
    form = history_pb2.SessionEvent(
        session_id=session.key.session_id,
        fence=session.fence,
        kind=history_pb2.SESSION_EVENT_KIND_CLOSED if closed else history_pb2.SESSION_EVENT_KIND_OPENED,
        user_id=session.user_id,
        agent_id=session.agent_id,
        pod_id=session.life.pod_id,
        incarnation=incarnation_message(session.life.incarnation),
        event_time=_time(event.at_ms),
    )
    if event.reason is not None:
        form.close_reason = _REASON_MESSAGES[event.reason]
    return form


def _key(form: Any, path: str) -> SessionKey:
    return SessionKey(
        fields.identifier(form.workspace_id, f"{path}workspace_id"),
        fields.identifier(form.session_id, f"{path}session_id"),
    )


def _incarnation(form: pod_pb2.PodIncarnation, path: str) -> Incarnation:
    return Incarnation(
        fields.whole(form.epoch, f"{path}.epoch", least=1, most=_NUMBER_MAX),
        fields.whole(form.number, f"{path}.number", least=1, most=_NUMBER_MAX),
    )


def _reason(value: history_pb2.SessionCloseReason.ValueType, field: str) -> CloseReason:
    if value not in _REASONS:
        raise InvalidField(field, "is required, and one of the list")
    return _REASONS[value]


def _time(ms: int) -> Timestamp:
    return Timestamp(seconds=ms // 1000, nanos=ms % 1000 * 1_000_000)


def _duration(seconds: float) -> Duration:
    whole, micros = divmod(round(seconds * 1e6), 1_000_000)
    return Duration(seconds=whole, nanos=micros * 1000)
