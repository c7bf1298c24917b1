"""Proto ↔ domain for limits. Pure; requests are validated while they are read."""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp

from twofold.router.v1 import limit_pb2, routing_pb2
from twofold_chassis import fields
from twofold_chassis.refusals import InvalidField
from twofold_chassis.revisions import Revision, revision_of
from twofold_router.knowledge import Stamp
from twofold_router.limits import Claim, Cost, Counted, LimitsSource, LimitStatus, Operation, Settled
from twofold_router.permissions import PairKey
from twofold_router.wire_terms import KINDS

OPERATION_ID_BYTES_MAX = 250
_AMOUNT_MAX = 10**15
_AHEAD_MAX = timedelta(hours=1)
_KINDS = {kind: form for form, kind in KINDS.items()}
_SOURCES = {source: limit_pb2.LimitsSource.Value(f"LIMITS_SOURCE_{source.name}") for source in LimitsSource}
_ONE_MESSAGE = Cost()
_MODES = frozenset(routing_pb2.ResolveMode.values())
_USUAL = {peeks: Claim(None, _ONE_MESSAGE, peeks) for peeks in (False, True)}

Resolving = routing_pb2.ResolveRequest | routing_pb2.BatchResolveRequest
Ending = limit_pb2.SettleOperationRequest | limit_pb2.ReleaseOperationRequest


def peeks(request: Resolving) -> bool:
    """Whether nothing is to be counted."""
    if request.mode not in _MODES:
        raise InvalidField("mode", "must be COUNT or PEEK")
    return request.mode == routing_pb2.RESOLVE_MODE_PEEK


def claim(request: routing_pb2.ResolveRequest | routing_pb2.UserAgent, path: str, *, peeks: bool) -> Claim:
    """What is asked of the limits; `path` stands before the names of the fields."""
    if not request.operation_id and not request.HasField("cost"):
        return _USUAL[peeks]
    operation_id = None
    if request.operation_id:
        operation_id = fields.identifier(request.operation_id, f"{path}operation_id", bytes_max=OPERATION_ID_BYTES_MAX)
        if peeks:
            raise InvalidField(f"{path}operation_id", "is not for who only peeks")
    return Claim(operation_id, _cost(request.cost, f"{path}cost") if request.HasField("cost") else _ONE_MESSAGE, peeks)


def fill(response: routing_pb2.ResolveResponse, counted: Counted) -> None:
    """What was counted, into the answer where it stands."""
    response.limits_source = _SOURCES[counted.source]
    if counted.source is LimitsSource.NONE:
        return
    response.degraded = counted.source is LimitsSource.LOCAL_SHARE
    response.operation_id = counted.operation_id
    response.duplicate = counted.is_duplicate
    if counted.at_s is not None:
        _set_time(response.count_time, counted.at_s)
    for limit in counted.limits:
        _fill_status(response.limits.add(), limit)


def asked_limits(request: limit_pb2.GetLimitsRequest) -> tuple[PairKey, Revision | None]:
    """Whose limits; a user or agent that is empty is none."""
    pair = PairKey(
        fields.identifier(request.workspace_id, "workspace_id"),
        fields.optional_identifier(request.user_id, "user_id") or "",
        fields.optional_identifier(request.agent_id, "agent_id") or "",
    )
    return pair, revision_of(request.min_revision_token, "min_revision_token")


def limits_response(limits: Sequence[LimitStatus], stamp: Stamp) -> limit_pb2.GetLimitsResponse:
    """How they stand."""
    response = limit_pb2.GetLimitsResponse(revision_token=stamp.token())
    for limit in limits:
        _fill_status(response.limits.add(), limit)
    return response


def operation(request: Ending) -> Operation:
    """Which operation is to be ended."""
    return Operation(
        PairKey(
            fields.identifier(request.workspace_id, "workspace_id"),
            fields.identifier(request.user_id, "user_id"),
            fields.identifier(request.agent_id, "agent_id"),
        ),
        fields.identifier(request.operation_id, "operation_id", bytes_max=OPERATION_ID_BYTES_MAX),
    )


def used(request: limit_pb2.SettleOperationRequest) -> Cost:
    """What it cost."""
    if not request.HasField("cost"):
        raise InvalidField("cost", "is required")
    return _cost(request.cost, "cost")


def operation_s(request: limit_pb2.SettleOperationRequest, now: datetime) -> float | None:
    """When it was, if that is said; `now` is what it is measured against."""
    if not request.HasField("operation_time"):
        return None
    at = fields.moment(request.operation_time, "operation_time")
    if at > now + _AHEAD_MAX:
        raise InvalidField("operation_time", "must not lie more than an hour in the future")
    if at.year < 2000:
        raise InvalidField("operation_time", "must not lie before the year 2000")
    return at.timestamp()


def settle_response(settled: Settled) -> limit_pb2.SettleOperationResponse:
    """What became of it."""
    response = limit_pb2.SettleOperationResponse(duplicate=settled.is_duplicate)
    _set_time(response.count_time, settled.at_s)
    return response


def count_time(counted: Counted) -> datetime | None:
    """The time that the operation's usage event must carry."""
    return None if counted.at_s is None else datetime.fromtimestamp(counted.at_s, UTC)


def set_duration(duration: Duration, seconds: float) -> None:
    """Into a message where it stands: one of nothing is there as well. Microseconds; `round` would take a third of it."""
    micros = int(seconds * 1e6 + 0.5)
    duration.seconds, duration.nanos = micros // 1_000_000, micros % 1_000_000 * 1000


def duration(seconds: float) -> Duration:
    """The wire's form of a length of time."""
    duration = Duration()
    set_duration(duration, seconds)
    return duration


def _cost(form: limit_pb2.OperationCost, field: str) -> Cost:
    messages = form.messages if form.HasField("messages") else 1
    return Cost(
        fields.whole(messages, f"{field}.messages", least=0, most=_AMOUNT_MAX),
        fields.whole(form.tokens, f"{field}.tokens", least=0, most=_AMOUNT_MAX),
        fields.whole(form.micros, f"{field}.micros", least=0, most=_AMOUNT_MAX),
    )


def _fill_status(form: limit_pb2.LimitStatus, limit: LimitStatus) -> None:
    form.kind, form.subject, form.limit = _KINDS[limit.kind], limit.subject, limit.amount
    form.used, form.remaining = limit.used, limit.remaining
    form.shadow, form.would_refuse = limit.is_shadow, limit.would_refuse
    set_duration(form.reset_delay, limit.reset_s)
    if limit.retry_s is not None:
        set_duration(form.retry_delay, limit.retry_s)


def _set_time(time: Timestamp, seconds: float) -> None:
    time.seconds, millis = divmod(round(seconds * 1000), 1000)
    time.nanos = millis * 1_000_000
