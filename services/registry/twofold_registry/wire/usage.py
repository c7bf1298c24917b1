"""Usage on the wire."""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

from twofold.registry.v1 import usage_pb2 as pb
from twofold_chassis import fields
from twofold_chassis.refusals import InvalidField
from twofold_registry.usage import Event, Totals, UsageQuery
from twofold_registry.wire.forms import present

_EVENTS_MAX = 500
_MESSAGES_MAX = 1_000_000_000
_TOKENS_MAX = 1_000_000_000_000
_EARLIEST = datetime(2000, 1, 1, tzinfo=UTC)
_AHEAD_MAX = timedelta(hours=1)


def workspace_id(request: pb.RecordUsageRequest) -> str:
    return fields.identifier(request.workspace_id, "workspace_id")


def events(request: pb.RecordUsageRequest, now: datetime) -> list[Event]:
    """The events of a batch; `now` is what their times are measured against."""
    if not 1 <= len(request.events) <= _EVENTS_MAX:
        raise InvalidField("events", f"has {len(request.events)} entries, must have 1 to {_EVENTS_MAX}")
    return [_event(event, f"events[{index}]", now) for index, event in enumerate(request.events)]


def recorded(duplicates: Sequence[bool]) -> pb.RecordUsageResponse:
    return pb.RecordUsageResponse(duplicates=duplicates)


def usage_query(request: pb.GetUsageRequest) -> UsageQuery:
    present(request, "start_time")
    present(request, "end_time")
    query = UsageQuery(
        workspace_id=fields.identifier(request.workspace_id, "workspace_id"),
        start=fields.moment(request.start_time, "start_time"),
        end=fields.moment(request.end_time, "end_time"),
        user_id=fields.optional_identifier(request.user_id, "user_id"),
        agent_id=fields.optional_identifier(request.agent_id, "agent_id"),
    )
    if query.end <= query.start:
        raise InvalidField("end_time", "must be later than start_time")
    return query


def summed(totals: Totals) -> pb.GetUsageResponse:
    return pb.GetUsageResponse(
        events=totals.events,
        messages=totals.messages,
        input_tokens=totals.input_tokens,
        output_tokens=totals.output_tokens,
    )


def _event(event: pb.UsageEvent, field: str, now: datetime) -> Event:
    return Event(
        event_id=fields.identifier(event.event_id, f"{field}.event_id"),
        user_id=fields.identifier(event.user_id, f"{field}.user_id"),
        agent_id=fields.identifier(event.agent_id, f"{field}.agent_id"),
        thread_id=fields.optional_identifier(event.thread_id, f"{field}.thread_id") or "",
        at=_time(event, f"{field}.event_time", now),
        messages=fields.whole(event.messages, f"{field}.messages", least=0, most=_MESSAGES_MAX),
        input_tokens=fields.whole(event.input_tokens, f"{field}.input_tokens", least=0, most=_TOKENS_MAX),
        output_tokens=fields.whole(event.output_tokens, f"{field}.output_tokens", least=0, most=_TOKENS_MAX),
    )


def _time(event: pb.UsageEvent, field: str, now: datetime) -> datetime:
    if not event.HasField("event_time"):
        raise InvalidField(field, "is required")
    at = fields.moment(event.event_time, field)
    if not _EARLIEST <= at <= now + _AHEAD_MAX:
        raise InvalidField(field, "must not lie before the year 2000 nor more than 1 hour in the future")
    return at
