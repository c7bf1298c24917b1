"""Agents on the wire; their settings are read in `agent_settings.py`, their other parts in `agent_parts.py`."""

from datetime import datetime

from twofold.registry.v1 import agent_pb2 as pb
from twofold_chassis import fields
from twofold_chassis.refusals import InvalidField
from twofold_chassis.requests import Attempt, attempt
from twofold_registry.agents import Agent, AgentKey, AgentState, Observation, Reported, ReportOutcome
from twofold_registry.resources import Edit, Page, Read, Stored
from twofold_registry.revisions import Revision
from twofold_registry.urls import plain_url
from twofold_registry.wire import agent_parts, agent_settings, masks, pages
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


def create_attempt(request: pb.CreateAgentRequest) -> Attempt:
    return attempt(request.agent.workspace_id, "CreateAgent", request, request.request_id)


def agent_key(request: pb.GetAgentRequest | pb.DeleteAgentRequest | pb.ReportAgentStateRequest) -> AgentKey:
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
        "state": lambda: _state(draft),
        "settings": lambda: agent_settings.settings(draft.settings, draft.agent_id),
        **agent_settings.readers(draft.settings, draft.agent_id),
    }
    return masks.edit(request.update_mask, readers)


def update_attempt(request: pb.UpdateAgentRequest) -> Attempt:
    return attempt(request.agent.workspace_id, "UpdateAgent", request, request.request_id)


def delete_attempt(request: pb.DeleteAgentRequest) -> Attempt:
    return attempt(request.workspace_id, "DeleteAgent", request, request.request_id)


def observation(request: pb.ReportAgentStateRequest, now: datetime) -> Observation:
    """What was seen; `now` is what its time is measured against."""
    present(request, "observation")
    return agent_parts.observation(request.observation, now)


def report_attempt(request: pb.ReportAgentStateRequest) -> Attempt:
    return attempt(request.workspace_id, "ReportAgentState", request, "")


def list_place(request: pb.ListAgentsRequest) -> tuple[str, str, int]:
    """The workspace, the id the page begins behind, and the size of the page."""
    workspace_id = fields.identifier(request.workspace_id, "workspace_id")
    cursor = fields.page_place(request.page_token, _query(workspace_id), str)
    return workspace_id, cursor[0] if cursor else "", fields.page_size(request.page_size)


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
        etag=stored.etag,
    )


def agent_bytes(stored: Stored[Agent]) -> bytes:
    return agent_message(stored).SerializeToString()


def agent_json(stored: Stored[Agent]) -> str:
    return json_object(agent_message(stored))


def created(stored: Stored[Agent], revision: Revision) -> bytes:
    return pb.CreateAgentResponse(agent=agent_message(stored), revision_token=revision.token()).SerializeToString()


def got(read: Read[Stored[Agent]]) -> pb.GetAgentResponse:
    return pb.GetAgentResponse(agent=agent_message(read.value), revision_token=read.revision.token())


def listed(workspace_id: str, page: Page[Stored[Agent]]) -> pb.ListAgentsResponse:
    query = _query(workspace_id)
    messages, token = pages.filled(page, query, agent_message, lambda stored: [stored.value.agent_id])
    return pb.ListAgentsResponse(agents=messages, next_page_token=token)


def updated(stored: Stored[Agent], revision: Revision) -> bytes:
    return pb.UpdateAgentResponse(agent=agent_message(stored), revision_token=revision.token()).SerializeToString()


def deleted(_: None, revision: Revision) -> bytes:
    return pb.DeleteAgentResponse(revision_token=revision.token()).SerializeToString()


def reported(report: Reported, revision: Revision) -> bytes:
    response = pb.ReportAgentStateResponse(
        outcome=_OUTCOMES[report.outcome], generation=report.generation, revision_token=revision.token()
    )
    return response.SerializeToString()


def _query(workspace_id: str) -> tuple[str, str]:
    return "ListAgents", workspace_id


def _display_name(draft: pb.Agent) -> str:
    return fields.line(draft.display_name, "agent.display_name", bytes_max=_NAME_BYTES_MAX, required=True)


def _first_state(draft: pb.Agent) -> AgentState:
    state = _state(draft) if draft.state else AgentState.PUBLISHED
    if state is AgentState.GONE:
        raise InvalidField("agent.state", "must not be that of an agent which is no more")
    return state


def _state(draft: pb.Agent) -> AgentState:
    state = _STATES.get(draft.state)
    if state is None:
        raise InvalidField("agent.state", "is not a state that an agent can have")
    return state
