"""Proto ↔ domain for the router's own face. Pure; requests are validated while they are read."""

import contextlib
from collections.abc import Sequence

from twofold.router.v1 import routing_pb2, turn_pb2
from twofold_chassis import fields
from twofold_chassis.refusals import InvalidField, Refusal
from twofold_chassis.revisions import Revision, revision_of
from twofold_router import wire_limits
from twofold_router.copies import Source
from twofold_router.limits import UNCOUNTED
from twofold_router.permissions import Verdict
from twofold_router.resolution import Question, Resolution, Ruling
from twofold_router.routes import AgentKey, TargetState
from twofold_router.wire_limits import duration as duration  # for the other wires
from twofold_router.wire_limits import set_duration

_PAIRS_MAX = 500

_BASES = {
    Verdict.GRANT: routing_pb2.PERMISSION_BASIS_GRANT,
    Verdict.ROLE: routing_pb2.PERMISSION_BASIS_ROLE,
}
SOURCES = {
    Source.PROCESS: routing_pb2.ROUTE_SOURCE_PROCESS,
    Source.CACHE: routing_pb2.ROUTE_SOURCE_CACHE,
    Source.REGISTRY: routing_pb2.ROUTE_SOURCE_REGISTRY,
}
STATES = {state: routing_pb2.TargetState.Value(f"TARGET_STATE_{state.name}") for state in TargetState}


def question(
    request: routing_pb2.ResolveRequest | routing_pb2.CheckRequest | routing_pb2.ExplainRequest | turn_pb2.RunRequest,
) -> Question:
    """Who wants to use which agent."""
    return Question(
        AgentKey(
            fields.identifier(request.workspace_id, "workspace_id"),
            fields.identifier(request.agent_id, "agent_id"),
        ),
        fields.identifier(request.user_id, "user_id"),
        revision_of(request.min_revision_token, "min_revision_token"),
    )


def resolve_question(request: routing_pb2.ResolveRequest) -> Question:
    """The same, and what is asked of the limits."""
    peeks = wire_limits.peeks(request)
    workspace_id = fields.identifier(request.workspace_id, "workspace_id")
    least = revision_of(request.min_revision_token, "min_revision_token")
    return _question_of(workspace_id, request, "", least, peeks=peeks)


def questions(request: routing_pb2.BatchResolveRequest) -> list[Question]:
    """Who wants to use which agents."""
    peeks = wire_limits.peeks(request)
    workspace_id = fields.identifier(request.workspace_id, "workspace_id")
    if not 1 <= len(request.pairs) <= _PAIRS_MAX:
        raise InvalidField("pairs", f"must be 1 to {_PAIRS_MAX}")
    least = revision_of(request.min_revision_token, "min_revision_token")
    with contextlib.suppress(InvalidField):
        return [_question_of(workspace_id, pair, "", least, peeks=peeks) for pair in request.pairs]
    # Again, to say which: in good ones no time goes into the names of fields.
    return [
        _question_of(workspace_id, pair, f"pairs[{index}].", least, peeks=peeks) for index, pair in enumerate(request.pairs)
    ]


def _question_of(
    workspace_id: str,
    pair: routing_pb2.ResolveRequest | routing_pb2.UserAgent,
    path: str,
    least: Revision | None,
    *,
    peeks: bool,
) -> Question:
    return Question(
        AgentKey(workspace_id, fields.identifier(pair.agent_id, f"{path}agent_id")),
        fields.identifier(pair.user_id, f"{path}user_id"),
        least,
        wire_limits.claim(pair, path, peeks=peeks),
    )


def resolve_response(resolution: Resolution) -> routing_pb2.ResolveResponse:
    """Yes, and there it lives."""
    response = routing_pb2.ResolveResponse()
    _fill(response, resolution)
    return response


def _fill(response: routing_pb2.ResolveResponse, resolution: Resolution) -> None:
    # Field by field, into the message where it stands: half the time of making messages of their own and copying them.
    ruling, (target, state, cold_start_s), route, source, age_s, counted = resolution
    _fill_permission(response, ruling)
    response.url = target.url
    response.source = SOURCES[source]
    set_duration(response.route_age, age_s)
    set_duration(response.valid_for, ruling.valid_s)
    response.generation = route.generation
    if target.name:
        response.target_name = target.name
    response.state = STATES[state]
    if cold_start_s is not None:
        set_duration(response.cold_start, cold_start_s)
    wire_limits.fill(response, counted)


def _fill_permission(response: routing_pb2.ResolveResponse, ruling: Ruling) -> None:
    response.basis = _BASES[ruling.verdict]
    response.revision_token = ruling.stamp.token()
    response.permission_source = SOURCES[ruling.source]
    set_duration(response.permission_age, ruling.age_s)


def check_response(ruling: Ruling) -> routing_pb2.CheckResponse:
    """Whether."""
    response = routing_pb2.CheckResponse()
    if ruling.verdict in _BASES:
        response.allowed, response.basis = True, _BASES[ruling.verdict]
    response.source = SOURCES[ruling.source]
    set_duration(response.age, ruling.age_s)
    response.revision_token = ruling.stamp.token()
    set_duration(response.valid_for, ruling.valid_s)
    return response


def batch_response(results: Sequence[Resolution | Refusal]) -> routing_pb2.BatchResolveResponse:
    """Each answer, or what it is refused with."""
    response = routing_pb2.BatchResolveResponse()
    last: Resolution | Refusal | None = None
    last_answer = routing_pb2.ResolveResponse()
    for result in results:
        form = response.results.add()
        if isinstance(result, Resolution) and isinstance(last, Resolution) and _differ_in_permission_only(result, last):
            answer = form.answer
            answer.CopyFrom(last_answer)  # half the time of filling it again
            _fill_permission(answer, result.ruling)
        else:
            fill_result(form, result)
            last, last_answer = result, form.answer
    return response


def _differ_in_permission_only(one: Resolution, other: Resolution) -> bool:
    return (
        one.choice is other.choice
        and one.route is other.route
        and one.source is other.source
        and one.age_s == other.age_s
        and one.ruling.valid_s == other.ruling.valid_s
        and one.counted is UNCOUNTED is other.counted
    )


def fill_result(form: routing_pb2.ResolveResult, result: Resolution | Refusal) -> None:
    """An answer, or what it is refused with."""
    if isinstance(result, Resolution):
        _fill(form.answer, result)
        return
    form.refusal.reason, form.refusal.message = result.reason, result.message
    if result.retry_after_s is not None:
        set_duration(form.refusal.retry_delay, result.retry_after_s)
