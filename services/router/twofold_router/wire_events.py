"""Proto ↔ domain for events. Pure; requests are validated while they are read.

Events are told in the bytes in which they are kept: framing them costs a fraction of making messages of them.
"""

from collections.abc import Iterable, Sequence
from datetime import datetime

from google.protobuf.descriptor import FieldDescriptor

from twofold.router.v1 import event_pb2
from twofold_chassis import fields
from twofold_chassis.refusals import InvalidField
from twofold_router.event_streams import (
    AGENTS_MAX,
    Added,
    CaughtUp,
    Credit,
    Delivery,
    Left,
    Of,
    Opening,
    Refused,
    Removed,
    Start,
    Subscribed,
    Wanted,
    Wish,
)
from twofold_router.events import Appended, Batch, Entry, Gap, LogKey, NewEvent, Place, Reading, Reset

_EVENTS_MAX = 500
_PAYLOAD_BYTES_MAX = 64 * 1024
_PAYLOADS_BYTES_MAX = 1024 * 1024
_CREDITS_MAX = 1_000_000
_OFFSET_MAX = 2**53

_DELIVERIES = {
    Delivery.LIVE: event_pb2.EVENT_DELIVERY_LIVE,
    Delivery.DELAYED: event_pb2.EVENT_DELIVERY_DELAYED,
    Delivery.AWAY: event_pb2.EVENT_DELIVERY_AWAY,
}


def log_key(request: event_pb2.PublishRequest | event_pb2.ListEventsRequest) -> LogKey:
    """Whose log."""
    return LogKey(fields.identifier(request.workspace_id, "workspace_id"), fields.identifier(request.agent_id, "agent_id"))


def new_events(request: event_pb2.PublishRequest) -> list[NewEvent]:
    """What is published."""
    if not 1 <= len(request.events) <= _EVENTS_MAX:
        raise InvalidField("events", f"must be 1 to {_EVENTS_MAX}")
    events = [_new_event(event, f"events[{index}]") for index, event in enumerate(request.events)]
    size = sum(len(event.payload) for event in events)
    if size > _PAYLOADS_BYTES_MAX:
        raise InvalidField("events", f"have {size} bytes of payload, at most {_PAYLOADS_BYTES_MAX} are allowed")
    return events


def _new_event(event: event_pb2.AgentEvent, field: str) -> NewEvent:
    if len(event.payload) > _PAYLOAD_BYTES_MAX:
        raise InvalidField(f"{field}.payload", f"has {len(event.payload)} bytes, at most {_PAYLOAD_BYTES_MAX} are allowed")
    return NewEvent(
        fields.identifier(event.type, f"{field}.type"),
        event.payload,
        fields.line(event.content_type, f"{field}.content_type", bytes_max=fields.ID_BYTES_MAX),
    )


def publish_response(appended: Appended) -> event_pb2.PublishResponse:
    """Where they went."""
    return event_pb2.PublishResponse(
        log_epoch=appended.epoch,
        first_offset=appended.first,
        last_offset=appended.last,
        duplicate=appended.duplicate,
    )


def after(request: event_pb2.ListEventsRequest) -> Place | None:
    """The place to go on behind."""
    epoch = fields.optional_identifier(request.log_epoch, "log_epoch")
    offset = fields.whole(request.after_offset, "after_offset", least=0, most=_OFFSET_MAX)
    if epoch is None and offset:
        raise InvalidField("after_offset", "means nothing without log_epoch")
    return None if epoch is None else Place(epoch, offset)


def list_events_response(reading: Reading) -> event_pb2.ListEventsResponse:
    """A page."""
    return event_pb2.ListEventsResponse(
        events=[event_pb2.AgentEvent.FromString(_with_offset(entry)) for entry in reading.entries],
        log_epoch=reading.epoch,
        first_offset=reading.first,
        last_offset=reading.last,
    )


def opening(request: event_pb2.SubscribeRequest) -> Opening:
    """What a stream is about: its first request."""
    if not request.HasField("open"):
        raise InvalidField("open", "is required: the first request opens the stream")
    asked = request.open
    credit = fields.whole(asked.credits, "open.credits", least=0, most=_CREDITS_MAX)
    workspace_id = fields.identifier(asked.workspace_id, "open.workspace_id")
    wanted = _wanted(asked.agents, "open.agents")
    if asked.until_caught_up and not wanted:
        raise InvalidField("open.agents", "must not be empty with until_caught_up")
    return Opening(workspace_id, wanted, credit or None, asked.until_caught_up)


def wish(request: event_pb2.SubscribeRequest) -> Wish:
    """What a subscriber says later."""
    kind = request.WhichOneof("wish")
    if kind == "add":
        if not request.add.agents:
            raise InvalidField("add.agents", "is required")
        return Added(_wanted(request.add.agents, "add.agents"))
    if kind == "remove":
        agent_ids = request.remove.agent_ids
        if not 1 <= len(agent_ids) <= AGENTS_MAX:
            raise InvalidField("remove.agent_ids", f"must be 1 to {AGENTS_MAX}")
        return Removed([fields.identifier(one, f"remove.agent_ids[{index}]") for index, one in enumerate(agent_ids)])
    if kind == "credit":
        return Credit(fields.whole(request.credit.events, "credit.events", least=1, most=_CREDITS_MAX))
    if kind == "open":
        raise InvalidField("open", "must come first, and once")
    raise InvalidField("wish", "is required")


def _wanted(agents: Sequence[event_pb2.SubscribeAgent], field: str) -> list[Wanted]:
    if len(agents) > AGENTS_MAX:
        raise InvalidField(field, f"has {len(agents)} agents, at most {AGENTS_MAX} are allowed")
    wanted: dict[str, Wanted] = {}
    for index, agent in enumerate(agents):
        path = f"{field}[{index}]"
        agent_id = fields.identifier(agent.agent_id, f"{path}.agent_id")
        if agent_id in wanted:
            raise InvalidField(f"{path}.agent_id", "is there twice")
        wanted[agent_id] = Wanted(agent_id, _start(agent, path))
    return [*wanted.values()]


def _start(agent: event_pb2.SubscribeAgent, field: str) -> Start | Place:
    if agent.HasField("after"):
        return _place(agent.after, f"{field}.after")
    return Start.OLDEST if agent.oldest else Start.NOW


def _place(place: event_pb2.EventPlace, field: str) -> Place:
    return Place(
        fields.identifier(place.log_epoch, f"{field}.log_epoch"),
        fields.whole(place.offset, f"{field}.offset", least=0, most=_OFFSET_MAX),
    )


class Encoded:
    """A SubscribeResponse that is put together from stored bytes. It is serialised like a message, and nothing else."""

    __slots__ = ("_bytes",)

    def __init__(self, content: bytes) -> None:
        self._bytes = content

    def SerializeToString(self) -> bytes:  # noqa: N802  (the name the server calls)
        """The encoded message."""
        return self._bytes


def subscribe_responses(told: Sequence[Of] | Delivery) -> "Iterable[event_pb2.SubscribeResponse | Encoded]":
    """What a subscriber is told."""
    if isinstance(told, Delivery):
        yield event_pb2.SubscribeResponse(heartbeat=event_pb2.EventHeartbeat(delivery=_DELIVERIES[told]))
        return
    for one in told:
        if isinstance(one.told, Batch):
            batch = one.told
            if batch.encoded is None:
                batch.encoded = _batch(one.agent_id, batch)
            yield Encoded(batch.encoded)
        else:
            yield _told(one)


def _told(one: Of) -> event_pb2.SubscribeResponse:
    agent_id, told = one
    response = event_pb2.SubscribeResponse()
    if isinstance(told, Subscribed):
        response.subscribed.agent_id = agent_id
        _fill(response.subscribed.place, told.place)
    elif isinstance(told, CaughtUp):
        response.caught_up.agent_id = agent_id
        _fill(response.caught_up.place, told.place)
    elif isinstance(told, Gap):
        response.gap.agent_id, response.gap.log_epoch = agent_id, told.epoch
        response.gap.first_offset, response.gap.last_offset = told.first, told.last
    elif isinstance(told, Reset):
        response.reset.agent_id, response.reset.log_epoch = agent_id, told.epoch
    elif isinstance(told, Refused):
        refused, there = response.refused, told.refusal.there
        refused.agent_id, refused.reason, refused.message = agent_id, told.refusal.reason, told.refusal.message
        refused.log_epoch, refused.first_offset, refused.last_offset = there.epoch, there.first, there.last
    elif isinstance(told, Left):
        response.removed.agent_id = agent_id
    return response


def _fill(form: event_pb2.EventPlace, place: Place) -> None:
    form.log_epoch, form.offset = place


def form(event: NewEvent, published_at: datetime) -> bytes:
    """An event as it is kept: the message but for its offset."""
    message = event_pb2.AgentEvent(type=event.type, content_type=event.content_type, payload=event.payload)
    message.publish_time.FromDatetime(published_at)
    return message.SerializeToString()


def _tag(field: FieldDescriptor) -> bytes:
    return _varint(field.number << 3 | (0 if field.type == FieldDescriptor.TYPE_INT64 else 2))


def _varint(number: int) -> bytes:
    found = bytearray()
    while number > 0x7F:
        found.append(number & 0x7F | 0x80)
        number >>= 7
    found.append(number)
    return bytes(found)


_OFFSET_TAG = _tag(event_pb2.AgentEvent.DESCRIPTOR.fields_by_name["offset"])
_EVENT_TAG = _tag(event_pb2.EventBatch.DESCRIPTOR.fields_by_name["events"])
_BATCH_TAG = _tag(event_pb2.SubscribeResponse.DESCRIPTOR.fields_by_name["events"])


def _with_offset(entry: Entry) -> bytes:
    # Fields may stand in any order: the offset behind the rest.
    return entry.form + _OFFSET_TAG + _varint(entry.offset)


def _batch(agent_id: str, batch: Batch) -> bytes:
    """The encoded SubscribeResponse."""
    parts = [event_pb2.EventBatch(agent_id=agent_id, log_epoch=batch.epoch).SerializeToString()]
    for entry in batch.entries:
        event = _with_offset(entry)
        parts += (_EVENT_TAG, _varint(len(event)), event)
    body = b"".join(parts)
    return b"".join((_BATCH_TAG, _varint(len(body)), body))
