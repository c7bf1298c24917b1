"""Proto ↔ domain for turns. Pure; requests are validated while they are read."""

from twofold.memory.v1 import message_pb2
from twofold.router.v1 import turn_pb2
from twofold_chassis import fields
from twofold_router import wire
from twofold_router.turns import Ask, Completed, Delta, Event, Started

_MESSAGE_BYTES_MAX = 1024 * 1024
_INSTRUCTIONS_BYTES_MAX = 64 * 1024
_OPERATION_ID_BYTES_MAX = 250


def ask(request: turn_pb2.RunRequest) -> Ask:
    """What a caller asks for."""
    operation_id = fields.optional_identifier(request.operation_id, "operation_id", bytes_max=_OPERATION_ID_BYTES_MAX)
    return Ask(
        question=wire.question(request),
        thread_id=fields.optional_identifier(request.thread_id, "thread_id"),
        operation_id=operation_id or fields.new_id(),
        turn_is_new=operation_id is None,
        message=fields.text(request.message, "message", bytes_max=_MESSAGE_BYTES_MAX, required=True),
        instructions=fields.text(request.instructions, "instructions", bytes_max=_INSTRUCTIONS_BYTES_MAX),
    )


def run_response(event: Event) -> turn_pb2.RunResponse:
    """One event of a turn."""
    if isinstance(event, Delta):
        return turn_pb2.RunResponse(delta=turn_pb2.Delta(text=event.text))
    if isinstance(event, Started):
        return turn_pb2.RunResponse(started=_started(event))
    return turn_pb2.RunResponse(completed=_completed(event))


def _started(event: Started) -> turn_pb2.Started:
    return turn_pb2.Started(
        operation_id=event.operation_id,
        context_messages=event.context_messages,
        context_preferences=event.context_preferences,
        context_source=message_pb2.ReadSource.ValueType(event.context_source),
        context_completeness=message_pb2.Completeness.ValueType(event.context_completeness),
        route_source=wire.SOURCES[event.route_source],
        replayed=event.replayed,
        resolve_duration=wire.duration(event.resolve_s),
        context_duration=wire.duration(event.context_s),
    )


def _completed(event: Completed) -> turn_pb2.Completed:
    completed = turn_pb2.Completed(
        finish_reason=event.finish_reason,
        input_tokens=event.usage.input_tokens,
        output_tokens=event.usage.output_tokens,
        usage_recorded=event.usage_recorded,
        first_token_duration=wire.duration(event.first_token_s),
        agent_duration=wire.duration(event.agent_s),
        keep_duration=wire.duration(event.keep_s),
    )
    if event.receipt is not None:
        completed.first_seq = event.receipt.first_seq
        completed.last_seq = event.receipt.last_seq
        completed.durability = message_pb2.Durability.ValueType(event.receipt.durability)
        completed.thread_token = event.receipt.thread_token
    return completed
