"""Proto ↔ domain for the router's own face. Pure; requests are validated while they are read."""

from collections.abc import Sequence

from google.protobuf.duration_pb2 import Duration

from twofold.memory.v1 import message_pb2
from twofold.router.v1 import routing_pb2, turn_pb2
from twofold_chassis import fields
from twofold_chassis.refusals import InvalidField, Refusal
from twofold_chassis.revisions import revision_of
from twofold_router.copies import Source
from twofold_router.permissions import Verdict
from twofold_router.resolution import Question, Resolution, Ruling
from twofold_router.routes import AgentKey
from twofold_router.turns import Ask, Completed, Delta, Event, Started

_MESSAGE_BYTES_MAX = 1024 * 1024
_INSTRUCTIONS_BYTES_MAX = 64 * 1024
_OPERATION_ID_BYTES_MAX = 250
_PAIRS_MAX = 500

_BASES = {
    Verdict.GRANT: routing_pb2.PERMISSION_BASIS_GRANT,
    Verdict.ROLE: routing_pb2.PERMISSION_BASIS_ROLE,
}
_SOURCES = {
    Source.PROCESS: routing_pb2.ROUTE_SOURCE_PROCESS,
    Source.CACHE: routing_pb2.ROUTE_SOURCE_CACHE,
    Source.REGISTRY: routing_pb2.ROUTE_SOURCE_REGISTRY,
}


def question(request: routing_pb2.ResolveRequest | routing_pb2.CheckRequest | turn_pb2.RunRequest) -> Question:
    """Who wants to use which agent."""
    return Question(
        AgentKey(
            fields.identifier(request.workspace_id, "workspace_id"),
            fields.identifier(request.agent_id, "agent_id"),
        ),
        fields.identifier(request.user_id, "user_id"),
        revision_of(request.min_revision_token, "min_revision_token"),
    )


def questions(request: routing_pb2.BatchResolveRequest) -> list[Question]:
    """Who wants to use which agents."""
    workspace_id = fields.identifier(request.workspace_id, "workspace_id")
    if not 1 <= len(request.pairs) <= _PAIRS_MAX:
        raise InvalidField("pairs", f"must be 1 to {_PAIRS_MAX}")
    least = revision_of(request.min_revision_token, "min_revision_token")
    return [
        Question(
            AgentKey(workspace_id, fields.identifier(pair.agent_id, f"pairs[{index}].agent_id")),
            fields.identifier(pair.user_id, f"pairs[{index}].user_id"),
            least,
        )
        for index, pair in enumerate(request.pairs)
    ]


def ask(request: turn_pb2.RunRequest) -> Ask:
    """What a caller asks for."""
    operation_id = fields.optional_identifier(request.operation_id, "operation_id", bytes_max=_OPERATION_ID_BYTES_MAX)
    return Ask(
        question=question(request),
        thread_id=fields.optional_identifier(request.thread_id, "thread_id"),
        operation_id=operation_id or fields.new_id(),
        turn_is_new=operation_id is None,
        message=fields.text(request.message, "message", bytes_max=_MESSAGE_BYTES_MAX, required=True),
        instructions=fields.text(request.instructions, "instructions", bytes_max=_INSTRUCTIONS_BYTES_MAX),
    )


def resolve_response(resolution: Resolution) -> routing_pb2.ResolveResponse:
    """Yes, and there it lives."""
    response = routing_pb2.ResolveResponse()
    _fill(response, resolution)
    return response


def _fill(response: routing_pb2.ResolveResponse, resolution: Resolution) -> None:
    # Field by field, into the message where it stands: half the time of making messages of their own and copying them.
    ruling = resolution.ruling
    response.url = resolution.target.url
    response.basis = _BASES[ruling.verdict]
    response.source = _SOURCES[resolution.source]
    _set(response.route_age, resolution.age_s)
    response.revision_token = ruling.stamp.token()
    response.permission_source = _SOURCES[ruling.source]
    _set(response.permission_age, ruling.age_s)
    _set(response.valid_for, ruling.valid_s)
    response.generation = resolution.route.generation
    response.target_name = resolution.target.name


def _set(duration: Duration, seconds: float) -> None:
    duration.SetInParent()
    duration.seconds, micros = divmod(round(seconds * 1e6), 1_000_000)
    duration.nanos = micros * 1000


def check_response(ruling: Ruling) -> routing_pb2.CheckResponse:
    """Whether."""
    return routing_pb2.CheckResponse(
        allowed=ruling.verdict in _BASES,
        basis=_BASES.get(ruling.verdict, routing_pb2.PERMISSION_BASIS_UNSPECIFIED),
        source=_SOURCES[ruling.source],
        age=_duration(ruling.age_s),
        revision_token=ruling.stamp.token(),
        valid_for=_duration(ruling.valid_s),
    )


def batch_response(results: Sequence[Resolution | Refusal]) -> routing_pb2.BatchResolveResponse:
    """Each answer, or what it is refused with."""
    response = routing_pb2.BatchResolveResponse()
    for result in results:
        form = response.results.add()
        if isinstance(result, Resolution):
            _fill(form.answer, result)
        else:
            form.refusal.reason, form.refusal.message = result.reason, result.message
            if result.retry_after_s is not None:
                _set(form.refusal.retry_delay, result.retry_after_s)
    return response


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
        route_source=_SOURCES[event.route_source],
        replayed=event.replayed,
        resolve_duration=_duration(event.resolve_s),
        context_duration=_duration(event.context_s),
    )


def _completed(event: Completed) -> turn_pb2.Completed:
    completed = turn_pb2.Completed(
        finish_reason=event.finish_reason,
        input_tokens=event.usage.input_tokens,
        output_tokens=event.usage.output_tokens,
        usage_recorded=event.usage_recorded,
        first_token_duration=_duration(event.first_token_s),
        agent_duration=_duration(event.agent_s),
        keep_duration=_duration(event.keep_s),
    )
    if event.receipt is not None:
        completed.first_seq = event.receipt.first_seq
        completed.last_seq = event.receipt.last_seq
        completed.durability = message_pb2.Durability.ValueType(event.receipt.durability)
        completed.thread_token = event.receipt.thread_token
    return completed


def _duration(seconds: float) -> Duration:
    whole, micros = divmod(round(seconds * 1e6), 1_000_000)
    return Duration(seconds=whole, nanos=micros * 1000)
