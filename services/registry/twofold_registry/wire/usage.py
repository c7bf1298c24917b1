"""Usage on the wire."""

import re
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

from twofold.registry.v1 import usage_pb2 as pb
from twofold_chassis import fields
from twofold_chassis.refusals import InvalidField
from twofold_registry.resources import Page
from twofold_registry.revisions import Revision, revision_of
from twofold_registry.usage import (
    TURN,
    Cell,
    Event,
    Group,
    Grouped,
    Operation,
    Totals,
    UsageQuery,
    Window,
    WindowQuery,
)
from twofold_registry.wire import money, pages
from twofold_registry.wire.forms import happened, present

_EVENTS_MAX = 500
_MESSAGES_MAX = 1_000_000_000
_TOKENS_MAX = 1_000_000_000_000
_AHEAD_MAX = timedelta(hours=1)
_WINDOW_MAX = timedelta(hours=26)
_CELL_MAX = timedelta(hours=2)
_CELLS_MAX = 1500
_WINDOW = timedelta(hours=1)
_OPERATIONS_MAX = timedelta(hours=1)
_UNIX = datetime(1970, 1, 1, tzinfo=UTC)
_SECOND = timedelta(seconds=1)
_is_kind = re.compile(r"[a-z0-9_.-]{1,64}").fullmatch
_GROUPS = {
    pb.USAGE_GROUP_USER: Group.USER,
    pb.USAGE_GROUP_AGENT: Group.AGENT,
    pb.USAGE_GROUP_KIND: Group.KIND,
    pb.USAGE_GROUP_DAY: Group.DAY,
    pb.USAGE_GROUP_MONTH: Group.MONTH,
}
# Whether cells are apart by user, and by agent.
_CELLS = {
    pb.WINDOW_GROUP_UNSPECIFIED: (True, True),
    pb.WINDOW_GROUP_USER: (True, False),
    pb.WINDOW_GROUP_AGENT: (False, True),
    pb.WINDOW_GROUP_WORKSPACE: (False, False),
}

Batch = pb.RecordUsageRequest | pb.StreamUsageRequest
Query = pb.GetUsageRequest | pb.QueryUsageRequest


def workspace_id(request: Batch) -> str:
    return fields.identifier(request.workspace_id, "workspace_id")


def events(request: Batch, now: datetime) -> list[Event]:
    """The events of a batch; `now` is what their times are measured against."""
    if not 1 <= len(request.events) <= _EVENTS_MAX:
        raise InvalidField("events", f"has {len(request.events)} entries, must have 1 to {_EVENTS_MAX}")
    latest = now + _AHEAD_MAX
    try:
        return [_event(event, latest) for event in request.events]
    except InvalidField:
        return [_named(event, index, latest) for index, event in enumerate(request.events)]


def _named(event: pb.UsageEvent, index: int, latest: datetime) -> Event:
    """Names the event that is refused; names for all of them cost as much as reading them."""
    try:
        return _event(event, latest)
    except InvalidField as refusal:
        raise InvalidField(f"events[{index}].{refusal.field}", refusal.problem) from None


def recorded(duplicates: Sequence[bool]) -> pb.RecordUsageResponse:
    return pb.RecordUsageResponse(duplicates=duplicates)


def stored(batch: int, duplicates: Sequence[bool]) -> pb.StreamUsageResponse:
    return pb.StreamUsageResponse(batch=batch, duplicates=duplicates)


def usage_query(request: Query) -> UsageQuery:
    present(request, "start_time")
    present(request, "end_time")
    query = UsageQuery(
        workspace_id=fields.identifier(request.workspace_id, "workspace_id"),
        start=fields.moment(request.start_time, "start_time"),
        end=fields.moment(request.end_time, "end_time"),
        user_id=fields.optional_identifier(request.user_id, "user_id"),
        agent_id=fields.optional_identifier(request.agent_id, "agent_id"),
        kind=_kind(request.kind, "kind") if request.kind else None,
        group=_group(request),
    )
    if query.end <= query.start:
        raise InvalidField("end_time", "must be later than start_time")
    return query


def _group(request: Query) -> Group:
    if isinstance(request, pb.GetUsageRequest):
        return Group.ALL
    if request.group_by not in _GROUPS:
        raise InvalidField("group_by", "must be one of USER, AGENT, KIND, DAY, MONTH")
    return _GROUPS[request.group_by]


def least_revision(request: Query) -> Revision | None:
    return revision_of(request.min_revision_token, "min_revision_token")


def group_place(request: pb.QueryUsageRequest, query: UsageQuery) -> tuple[str, int]:
    """The group the page begins behind, and the size of the page."""
    cursor = fields.page_place(request.page_token, query, str)
    return cursor[0] if cursor else "", fields.page_size(request.page_size)


def summed(totals: Totals) -> pb.GetUsageResponse:
    return pb.GetUsageResponse(
        events=totals.events,
        messages=totals.messages,
        input_tokens=totals.input_tokens,
        output_tokens=totals.output_tokens,
        costs=money.messages(totals.costs),
    )


def grouped(query: UsageQuery, page: Page[Grouped]) -> pb.QueryUsageResponse:
    messages, token = pages.filled(page, query, _grouped_message, lambda group: [group.name])
    return pb.QueryUsageResponse(groups=messages, next_page_token=token)


def _grouped_message(group: Grouped) -> pb.GroupedUsage:
    return pb.GroupedUsage(
        group=group.name,
        events=group.totals.events,
        messages=group.totals.messages,
        input_tokens=group.totals.input_tokens,
        output_tokens=group.totals.output_tokens,
        costs=money.messages(group.totals.costs),
    )


def window_query(request: pb.ReadWindowRequest, now: datetime) -> WindowQuery:
    """Which window; `now` is what its begin is measured against."""
    present(request, "cell")
    workspace = fields.identifier(request.workspace_id, "workspace_id")
    start = fields.moment(request.start_time, "start_time") if request.HasField("start_time") else now - _WINDOW
    if not now - _WINDOW_MAX <= start <= now:
        raise InvalidField("start_time", "must not lie more than 26 hours back, nor in the future")
    seconds = -(-fields.span(request.cell, "cell", most=_CELL_MAX) // _SECOND)
    cell = timedelta(seconds=seconds)
    begin = start - (start - _UNIX) % cell
    if (now - begin) / cell > _CELLS_MAX:
        raise InvalidField("cell", f"is too short: more than {_CELLS_MAX} of them since start_time")
    back = _OPERATIONS_MAX
    if request.HasField("operations_for"):
        back = fields.span(request.operations_for, "operations_for", most=_OPERATIONS_MAX)
    if request.group_by not in _CELLS:
        raise InvalidField("group_by", "must be one of USER, AGENT, WORKSPACE, or unset")
    return WindowQuery(workspace, begin, cell, now - back, *_CELLS[request.group_by])


def told(window: Window) -> pb.ReadWindowResponse:
    return pb.ReadWindowResponse(
        cells=map(_cell_message, window.cells),
        operations=map(_operation_message, window.operations),
        read_time=fields.timestamp(window.read_at),
    )


def _cell_message(cell: Cell) -> pb.UsageCell:
    return pb.UsageCell(
        start_time=fields.timestamp(cell.start),
        user_id=cell.user_id,
        agent_id=cell.agent_id,
        events=cell.events,
        messages=cell.messages,
        input_tokens=cell.input_tokens,
        output_tokens=cell.output_tokens,
        cost=money.message(cell.cost),
    )


def _operation_message(operation: Operation) -> pb.RecordedOperation:
    return pb.RecordedOperation(operation_id=operation.operation_id, event_time=fields.timestamp(operation.at))


def _kind(value: str, field: str) -> str:
    if _is_kind(value) is None:
        raise InvalidField(field, "must be 1 to 64 of a-z, 0-9, _, - and .")
    return value


def _event(event: pb.UsageEvent, latest: datetime) -> Event:
    return Event(
        event_id=_id(event.event_id, "event_id"),
        user_id=_id(event.user_id, "user_id"),
        agent_id=_id(event.agent_id, "agent_id"),
        thread_id=event.thread_id and _id(event.thread_id, "thread_id"),
        kind=_kind(event.kind, "kind") if event.kind else TURN,
        at=happened(event, "event_time", "event_time", latest),
        messages=fields.whole(event.messages, "messages", least=0, most=_MESSAGES_MAX),
        input_tokens=fields.whole(event.input_tokens, "input_tokens", least=0, most=_TOKENS_MAX),
        output_tokens=fields.whole(event.output_tokens, "output_tokens", least=0, most=_TOKENS_MAX),
    )


def _id(value: str, field: str) -> str:
    if 0 < len(value) <= fields.ID_BYTES_MAX and value.isascii() and value.isprintable():
        return value  # as nearly all are: in a third of the time
    return fields.identifier(value, field)
