"""The registry, as the router asks it: permissions, agents, and the ledger of usage."""

import time

import grpc

from twofold.registry.v1 import agent_pb2, agent_pb2_grpc, permission_pb2, permission_pb2_grpc, usage_pb2, usage_pb2_grpc
from twofold_chassis import peers
from twofold_chassis.refusals import NotFound, Reason
from twofold_router import wire_peers as wire
from twofold_router.ledger import UsageEvent
from twofold_router.permissions import Verdict
from twofold_router.routes import AgentKey, AgentUnknown, Route

_PEER = "registry"


class RegistryPermissions:
    """Permissions, asked of their owner."""

    def __init__(self, channel: grpc.aio.Channel, *, timeout_s: float) -> None:
        self._stub = permission_pb2_grpc.PermissionServiceStub(channel)
        self._timeout_s = timeout_s

    async def check(self, agent: AgentKey, user_id: str, at_least: bytes) -> Verdict:
        """Whether the user may use the agent, at a revision at least as new as the token, if one is given."""
        request = permission_pb2.CheckRequest(
            workspace_id=agent.workspace_id, user_id=user_id, agent_id=agent.agent_id, min_revision_token=at_least
        )
        asked = self._stub.Check(request, timeout=peers.timeout_s(self._timeout_s), metadata=peers.metadata())
        return wire.verdict(await peers.asked(_PEER, asked))


class RegistryAgents:
    """Routes, asked of their owner."""

    def __init__(self, channel: grpc.aio.Channel, *, timeout_s: float) -> None:
        self._stub = agent_pb2_grpc.AgentServiceStub(channel)
        self._timeout_s = timeout_s

    async def get(self, agent: AgentKey) -> Route:
        """The agent's route as it is now. Refuses with AgentUnknown."""
        request = agent_pb2.GetAgentRequest(workspace_id=agent.workspace_id, agent_id=agent.agent_id)
        read_at = time.time()
        asked = self._stub.GetAgent(request, timeout=peers.timeout_s(self._timeout_s), metadata=peers.metadata())
        try:
            return wire.route(await peers.asked(_PEER, asked), read_at=read_at)
        except NotFound as refusal:
            if refusal.reason == Reason.REASON_AGENT_UNKNOWN:
                raise AgentUnknown(agent) from None
            raise


class RegistryLedger:
    """The ledger of usage, kept by the registry."""

    def __init__(self, channel: grpc.aio.Channel, *, timeout_s: float) -> None:
        self._stub = usage_pb2_grpc.UsageServiceStub(channel)
        self._timeout_s = timeout_s

    async def record(self, event: UsageEvent) -> None:
        """Records the event; the same one again counts once."""
        request = usage_pb2.RecordUsageRequest(workspace_id=event.workspace_id, events=[wire.usage_event(event)])
        asked = self._stub.RecordUsage(request, timeout=peers.timeout_s(self._timeout_s), metadata=peers.metadata())
        await peers.asked(_PEER, asked)
