"""Agents on the wire; their settings are read in `agent_settings.py`, their other parts in `agent_parts.py`."""

from collections.abc import Sequence
from datetime import datetime

from google.protobuf.message import Message

from twofold.registry.v1 import agent_pb2 as pb
from twofold_chassis import fields
from twofold_chassis.refusals import InvalidField
from twofold_chassis.requests import Attempt, attempt
from twofold_chassis.urls import plain_url
from twofold_registry.agents import Agent, AgentFilters, AgentKey, AgentState, Observation, Reported, ReportOutcome
from twofold_registry.resources import Answer, Edit, Listing, Page, Read, Stored, Write
from twofold_registry.revisions import Revision
from twofold_registry.wire import agent_parts, agent_settings, forms, masks, pages
from twofold_registry.wire.forms import json_object, present

_NAME_BYTES_MAX = 255
_STATES = {
    pb.AGENT_STATE_DRAFT: AgentState.DRAFT,
    pb.AGENT_STATE_PUBLISHED: AgentState.PUBLISHED,
    pb.AGENT_STATE_PAUSED: AgentState.PAUSED,
    pb.AGENT_STATE_GONE: AgentState.GONE,
}
_STATE_FORMS = {state: form for form, state in _STATES.items()}
_OUTCOMES = {
    ReportOutcome.RECORDED: pb.REPORT_OUTCOME_RECORDED,
    ReportOutcome.OLDER_GENERATION: pb.REPORT_OUTCOME_OLDER_GENERATION,
    ReportOutcome.OLDER_OBSERVATION: pb.REPORT_OUTCOME_OLDER_OBSERVATION,
}


def new_agent(request: pb.CreateAgentRequest) -> Agent:
    present(request, "agent")
    draft = request.agent
    workspace_id = fields.identifier(draft.workspace_id, "agent.workspace_id")
    agent_id = fields.optional_identifier(draft.agent_id, "agent.agent_id") or fields.new_id()
    return Agent(
        workspace_id=workspace_id,
        agent_id=agent_id,
        display_name=_display_name(draft),
        url=plain_url(draft.url, "agent.url"),
        targets=agent_parts.targets(draft.targets),
        generation=1,
        price=agent_parts.price(draft.price),
        state=_first_state(draft),
        settings=agent_settings.settings(draft.settings, agent_id),
    )


def create_write(request: pb.CreateAgentRequest) -> Write:
    return forms.write(request, request.agent.workspace_id)


def agent_key(
    request: (
        pb.GetAgentRequest
        | pb.DeleteAgentRequest
        | pb.UndeleteAgentRequest
        | pb.PurgeAgentRequest
        | pb.ReportAgentStateRequest
    ),
) -> AgentKey:
    return AgentKey(
        fields.identifier(request.workspace_id, "workspace_id"),
        fields.identifier(request.agent_id, "agent_id"),
    )


def updated_key(request: pb.UpdateAgentRequest) -> AgentKey:
    present(request, "agent")
    return AgentKey(
        fields.identifier(request.agent.workspace_id, "agent.workspace_id"),
        fields.identifier(request.agent.agent_id, "agent.agent_id"),
    )


def agent_edit(request: pb.UpdateAgentRequest) -> Edit:
    draft = request.agent
    readers: masks.Readers = {
        "display_name": lambda: _display_name(draft),
        "url": lambda: plain_url(draft.url, "agent.url"),
        "targets": lambda: agent_parts.targets(draft.targets),
        "price": lambda: agent_parts.price(draft.price),
        **agent_parts.price_readers(draft.price),
        "state": lambda: _state(draft.state, "agent.state"),
        "settings": lambda: agent_settings.settings(draft.settings, draft.agent_id),
        **agent_settings.readers(draft.settings, draft.agent_id),
    }
    return masks.edit(request.update_mask, readers)


def update_write(request: pb.UpdateAgentRequest) -> Write:
    return forms.write(request, request.agent.workspace_id, request.agent.etag, "agent.etag")


def write(request: pb.DeleteAgentRequest | pb.UndeleteAgentRequest | pb.PurgeAgentRequest) -> Write:
    return forms.write(request, request.workspace_id, request.etag)


def observation(request: pb.ReportAgentStateRequest, now: datetime) -> Observation:
    """What was seen; `now` is what its time is measured against."""
    present(request, "observation")
    return agent_parts.observation(request.observation, now)


def report_attempt(request: pb.ReportAgentStateRequest) -> Attempt:
    return attempt(request.workspace_id, "ReportAgentState", request, "")


def listing(request: pb.ListAgentsRequest) -> Listing:
    prefix = fields.line(request.display_name_prefix, "display_name_prefix", bytes_max=_NAME_BYTES_MAX)
    filters = AgentFilters(
        state=_state(request.state, "state").value if request.state else None,
        display_name_prefix=prefix or None,
    )
    return pages.listing(request, fields.identifier(request.workspace_id, "workspace_id"), filters)


def agent_message(stored: Stored[Agent]) -> pb.Agent:
    value = stored.value
    return pb.Agent(
        workspace_id=value.workspace_id,
        agent_id=value.agent_id,
        display_name=value.display_name,
        url=value.url,
        targets=agent_parts.target_messages(value.targets),
        generation=value.generation,
        price=agent_parts.price_message(value.price),
        observations=agent_parts.observation_messages(value.observations),
        state=_STATE_FORMS[value.state],
        settings=agent_settings.settings_message(value.settings),
        create_time=fields.timestamp(stored.created_at),
        update_time=fields.timestamp(stored.updated_at),
        delete_time=forms.optional_timestamp(stored.deleted_at),
        purge_time=forms.optional_timestamp(stored.purge_at),
        etag=stored.etag,
    )


def agent_bytes(stored: Stored[Agent]) -> bytes:
    return agent_message(stored).SerializeToString()


def agent_json(stored: Stored[Agent]) -> str:
    return json_object(agent_message(stored))


def written(response: type[Message]) -> Answer[Stored[Agent]]:
    return forms.written(response, agent_message)


def got(read: Read[Stored[Agent]]) -> pb.GetAgentResponse:
    return pb.GetAgentResponse(agent=agent_message(read.value), revision_token=read.revision.token())


def batch(ids: Sequence[str], read: Read[Sequence[Stored[Agent]]]) -> pb.BatchGetAgentsResponse:
    found = pages.batch(ids, read.value, agent_message)
    return pb.BatchGetAgentsResponse(
        agents=found.messages,
        missing_ids=found.missing,
        omitted_ids=found.omitted,
        revision_token=read.revision.token(),
    )


def listed(asked: Listing, page: Page[Stored[Agent]]) -> pb.ListAgentsResponse:
    messages, token = pages.listed(asked, page, agent_message)
    return pb.ListAgentsResponse(agents=messages, next_page_token=token)


def reported(report: Reported, revision: Revision) -> bytes:
    response = pb.ReportAgentStateResponse(
        outcome=_OUTCOMES[report.outcome], generation=report.generation, revision_token=revision.token()
    )
    return response.SerializeToString()


def _display_name(draft: pb.Agent) -> str:
    return fields.line(draft.display_name, "agent.display_name", bytes_max=_NAME_BYTES_MAX, required=True)


def _first_state(draft: pb.Agent) -> AgentState:
    state = _state(draft.state, "agent.state") if draft.state else AgentState.PUBLISHED
    if state is AgentState.GONE:
        raise InvalidField("agent.state", "must not be that of an agent which is no more")
    return state


def _state(value: pb.AgentState.ValueType, field: str) -> AgentState:
    state = _STATES.get(value)
    if state is None:
        raise InvalidField(field, "is not a state that an agent can have")
    return state
