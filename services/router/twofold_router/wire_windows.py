"""Proto ↔ domain for what was used in a window of time. Pure."""

from collections.abc import AsyncIterable, Sequence

from google.protobuf.duration_pb2 import Duration

from twofold.registry.v1 import usage_pb2
from twofold_router.limits import Cost, Subject
from twofold_router.rebuilds import Span, Used, Window

Part = usage_pb2.ReadWindowResponse
Parts = AsyncIterable[Part]

_GROUPS = {
    Subject.USER: usage_pb2.WINDOW_GROUP_USER,
    Subject.AGENT: usage_pb2.WINDOW_GROUP_AGENT,
    Subject.WORKSPACE: usage_pb2.WINDOW_GROUP_WORKSPACE,
}
_NO_OPERATIONS = Duration(nanos=1000)  # as few as can be asked for


def window_request(workspace_id: str, span: Span) -> usage_pb2.ReadWindowRequest:
    """Which window is asked for."""
    request = usage_pb2.ReadWindowRequest(
        workspace_id=workspace_id,
        cell=Duration(seconds=span.cell_s),
        operations_for=Duration(seconds=span.operations_s) if span.operations_s else _NO_OPERATIONS,
        group_by=_GROUPS[span.subject],
    )
    request.start_time.FromNanoseconds(round(span.since_s * 1e6) * 1000)
    return request


def window(parts: Sequence[Part], subject: Subject) -> Window:
    """What all parts together tell."""
    used = [
        Used(cell.user_id if subject is Subject.USER else cell.agent_id, float(cell.start_time.seconds), _cost(cell))
        for part in parts
        for cell in part.cells
    ]
    operations = {each.operation_id: each.event_time.ToNanoseconds() / 1e9 for part in parts for each in part.operations}
    return Window(used, operations)


def _cost(cell: usage_pb2.UsageCell) -> Cost:
    return Cost(cell.messages, cell.input_tokens + cell.output_tokens, max(0, cell.cost.amount_micros))
