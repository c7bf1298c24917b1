"""Events on the wire."""

from collections.abc import Sequence

from twofold.memory.v1 import event_pb2 as pb
from twofold_chassis import fields
from twofold_chassis.refusals import InvalidField
from twofold_memory.events import (
    EVENTS_AT_ONCE_MAX,
    EVENTS_BYTES_MAX,
    PAYLOAD_BYTES_MAX,
    Event,
    EventPage,
    NewEvent,
    Recorded,
)


def new_events(request: pb.AppendEventsRequest) -> list[NewEvent]:
    """The events that are to be kept."""
    if not 1 <= len(request.events) <= EVENTS_AT_ONCE_MAX:
        raise InvalidField("events", f"are {len(request.events)}, must be 1 to {EVENTS_AT_ONCE_MAX}")
    events = [_new_event(event, f"events[{index}]") for index, event in enumerate(request.events)]
    size = sum(len(event.payload.encode()) for event in events)
    if size > EVENTS_BYTES_MAX:
        raise InvalidField("events", f"have payloads of {size} bytes together, at most {EVENTS_BYTES_MAX} are allowed")
    return events


def after(request: pb.ListEventsRequest, query: Sequence[object]) -> int:
    """The offset behind which the page begins."""
    begin = fields.whole(request.after_offset, "after_offset", least=0, most=2**63 - 1)
    place = fields.page_place(request.page_token, query, int)
    return begin if place is None else place[0]


def append_response(recorded: Recorded) -> pb.AppendEventsResponse:
    """Where the events stand."""
    return pb.AppendEventsResponse(
        first_offset=recorded.first_offset,
        last_offset=recorded.last_offset,
        create_time=fields.timestamp(recorded.created_at),
    )


def list_response(page: EventPage, query: Sequence[object]) -> pb.ListEventsResponse:
    """A page of events."""
    return pb.ListEventsResponse(
        events=map(_message, page.events),
        next_page_token=fields.page_token(query, [page.through_offset]) if page.more else "",
        through_offset=page.through_offset,
    )


def _new_event(event: pb.Event, path: str) -> NewEvent:
    return NewEvent(
        fields.identifier(event.kind, f"{path}.kind"),
        fields.text(event.payload, f"{path}.payload", bytes_max=PAYLOAD_BYTES_MAX),
    )


def _message(event: Event) -> pb.Event:
    return pb.Event(
        offset=event.offset,
        kind=event.kind,
        payload=event.payload,
        by_service=event.by_service,
        create_time=fields.timestamp(event.created_at),
    )
