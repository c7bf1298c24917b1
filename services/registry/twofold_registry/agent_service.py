"""The gRPC face of agents."""

from datetime import UTC, datetime

from twofold.registry.v1 import agent_pb2 as pb
from twofold.registry.v1.agent_pb2_grpc import AgentServiceServicer
from twofold_chassis import fields
from twofold_chassis.edge import Context
from twofold_registry.agents import Agents
from twofold_registry.wire import agents as wire
from twofold_registry.wire import forms


class AgentService(AgentServiceServicer):
    """Reads, asks, answers."""

    def __init__(self, agents: Agents) -> None:
        self._agents = agents

    async def CreateAgent(self, request: pb.CreateAgentRequest, _: Context) -> pb.CreateAgentResponse:
        agent, write = wire.new_agent(request), wire.create_write(request)
        answer = await self._agents.create(agent, write, wire.written(pb.CreateAgentResponse))
        return pb.CreateAgentResponse.FromString(answer)

    async def GetAgent(self, request: pb.GetAgentRequest, _: Context) -> pb.GetAgentResponse:
        key, look = wire.agent_key(request), forms.look(request)
        return wire.got(await self._agents.get(key, look))

    async def BatchGetAgents(self, request: pb.BatchGetAgentsRequest, _: Context) -> pb.BatchGetAgentsResponse:
        workspace_id = fields.identifier(request.workspace_id, "workspace_id")
        ids, look = forms.ids(request.agent_ids, "agent_ids"), forms.look(request)
        return wire.batch(ids, await self._agents.batch_get(workspace_id, ids, look))

    async def ListAgents(self, request: pb.ListAgentsRequest, _: Context) -> pb.ListAgentsResponse:
        listing = wire.listing(request)
        return wire.listed(listing, await self._agents.list(listing))

    async def UpdateAgent(self, request: pb.UpdateAgentRequest, _: Context) -> pb.UpdateAgentResponse:
        key, write = wire.updated_key(request), wire.update_write(request)
        edit = wire.agent_edit(request)
        answer = await self._agents.update(key, edit, write, wire.written(pb.UpdateAgentResponse))
        return pb.UpdateAgentResponse.FromString(answer)

    async def DeleteAgent(self, request: pb.DeleteAgentRequest, _: Context) -> pb.DeleteAgentResponse:
        key, write = wire.agent_key(request), wire.write(request)
        answer = await self._agents.delete(key, write, wire.written(pb.DeleteAgentResponse))
        return pb.DeleteAgentResponse.FromString(answer)

    async def UndeleteAgent(self, request: pb.UndeleteAgentRequest, _: Context) -> pb.UndeleteAgentResponse:
        key, write = wire.agent_key(request), wire.write(request)
        answer = await self._agents.undelete(key, write, wire.written(pb.UndeleteAgentResponse))
        return pb.UndeleteAgentResponse.FromString(answer)

    async def PurgeAgent(self, request: pb.PurgeAgentRequest, _: Context) -> pb.PurgeAgentResponse:
        key, write = wire.agent_key(request), wire.write(request)
        answer = await self._agents.purge(key, write, forms.forgotten(pb.PurgeAgentResponse))
        return pb.PurgeAgentResponse.FromString(answer)

    async def ReportAgentState(self, request: pb.ReportAgentStateRequest, _: Context) -> pb.ReportAgentStateResponse:
        key = wire.agent_key(request)
        seen = wire.observation(request, datetime.now(UTC))
        answer = await self._agents.report(key, seen, wire.report_attempt(request), wire.reported)
        return pb.ReportAgentStateResponse.FromString(answer)
