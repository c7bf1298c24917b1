"""The gRPC face of agents."""

from datetime import UTC, datetime

from twofold.registry.v1 import agent_pb2 as pb
from twofold.registry.v1.agent_pb2_grpc import AgentServiceServicer
from twofold_chassis.edge import Context
from twofold_registry.agents import Agents
from twofold_registry.wire import agents as wire
from twofold_registry.wire import forms


class AgentService(AgentServiceServicer):
    """Reads, asks, answers."""

    def __init__(self, agents: Agents) -> None:
        self._agents = agents

    async def CreateAgent(self, request: pb.CreateAgentRequest, _: Context) -> pb.CreateAgentResponse:
        agent = wire.new_agent(request)
        answer = await self._agents.create(agent, wire.create_attempt(request), wire.created)
        return pb.CreateAgentResponse.FromString(answer)

    async def GetAgent(self, request: pb.GetAgentRequest, _: Context) -> pb.GetAgentResponse:
        key = wire.agent_key(request)
        return wire.got(await self._agents.get(key))

    async def ListAgents(self, request: pb.ListAgentsRequest, _: Context) -> pb.ListAgentsResponse:
        workspace_id, after, size = wire.list_place(request)
        return wire.listed(workspace_id, await self._agents.list(workspace_id, after, size))

    async def UpdateAgent(self, request: pb.UpdateAgentRequest, _: Context) -> pb.UpdateAgentResponse:
        key = wire.updated_key(request)
        edit = wire.agent_edit(request)
        etag = forms.etag(request.agent.etag, "agent.etag")
        answer = await self._agents.update(key, edit, etag, wire.update_attempt(request), wire.updated)
        return pb.UpdateAgentResponse.FromString(answer)

    async def DeleteAgent(self, request: pb.DeleteAgentRequest, _: Context) -> pb.DeleteAgentResponse:
        key = wire.agent_key(request)
        etag = forms.etag(request.etag, "etag")
        answer = await self._agents.delete(key, etag, wire.delete_attempt(request), wire.deleted)
        return pb.DeleteAgentResponse.FromString(answer)

    async def ReportAgentState(self, request: pb.ReportAgentStateRequest, _: Context) -> pb.ReportAgentStateResponse:
        key = wire.agent_key(request)
        seen = wire.observation(request, datetime.now(UTC))
        answer = await self._agents.report(key, seen, wire.report_attempt(request), wire.reported)
        return pb.ReportAgentStateResponse.FromString(answer)
