"""Proto ↔ domain for what became of messages to targets. Pure; requests are validated while they are read."""

from datetime import timedelta

from twofold.router.v1 import routing_pb2
from twofold_chassis import fields
from twofold_chassis.refusals import InvalidField
from twofold_router.outcomes import Outcome
from twofold_router.reporting import Report
from twofold_router.routes import AgentKey

_OUTCOMES_MAX = 500
_NAME_BYTES_MAX = 63
_LATENCY_MAX = timedelta(hours=1)
_GENERATION_MAX = 2**53 - 1

_OUTCOMES = {
    routing_pb2.TARGET_OUTCOME_DIALED: Outcome.DIALED,
    routing_pb2.TARGET_OUTCOME_DIAL_FAILED: Outcome.DIAL_FAILED,
    routing_pb2.TARGET_OUTCOME_FIRST_BYTE: Outcome.FIRST_BYTE,
    routing_pb2.TARGET_OUTCOME_ANSWER_FAILED: Outcome.ANSWER_FAILED,
}


def reports(request: routing_pb2.ReportOutcomeRequest) -> list[tuple[AgentKey, Report]]:
    """What became of which messages."""
    workspace_id = fields.identifier(request.workspace_id, "workspace_id")
    if not 1 <= len(request.outcomes) <= _OUTCOMES_MAX:
        raise InvalidField("outcomes", f"must be 1 to {_OUTCOMES_MAX}")
    return [_report(workspace_id, form, f"outcomes[{index}]") for index, form in enumerate(request.outcomes)]


def _report(workspace_id: str, form: routing_pb2.Outcome, field: str) -> tuple[AgentKey, Report]:
    outcome = _OUTCOMES.get(form.outcome)
    agent = AgentKey(workspace_id, fields.identifier(form.agent_id, f"{field}.agent_id"))
    name = fields.line(form.target_name, f"{field}.target_name", bytes_max=_NAME_BYTES_MAX)
    generation = fields.whole(form.generation, f"{field}.generation", least=1, most=_GENERATION_MAX)
    if outcome is None:
        raise InvalidField(f"{field}.outcome", "is required")
    latency_s = 0.0
    if form.HasField("latency"):
        latency_s = fields.span(form.latency, f"{field}.latency", most=_LATENCY_MAX).total_seconds()
    return agent, Report(generation, name, outcome, latency_s)
