"""The registry, as the router asks it: permissions, agents, and the ledger of usage."""

from collections.abc import Sequence

import grpc

from twofold.registry.v1 import agent_pb2, agent_pb2_grpc, permission_pb2, permission_pb2_grpc, usage_pb2, usage_pb2_grpc
from twofold_chassis import peers
from twofold_chassis.refusals import FailedPrecondition, NotFound, PeerUnavailable, Reason
from twofold_chassis.revisions import Revision
from twofold_router import wire_peers as wire
from twofold_router.copies import Told, Unstamped
from twofold_router.knowledge import Thing, agent_thing, permission_thing, route_thing, user_thing, workspace_thing
from twofold_router.ledger import UsageEvent
from twofold_router.outcomes import TargetKey
from twofold_router.permissions import PairKey, Permission
from twofold_router.routes import AgentKey, Observation, Route

_PEER = "registry"


class RegistryPermissions:
    """Permissions, asked of their owner, who answers only while this router is registered: else no revoke waits for it."""

    def __init__(self, channel: grpc.aio.Channel, *, router_id: str, incarnation: str, timeout_s: float) -> None:
        self._stub = permission_pb2_grpc.PermissionServiceStub(channel)
        self._router = {"router_id": router_id, "router_incarnation": incarnation}
        self._timeout_s = timeout_s

    def rests_on(self, key: PairKey) -> Sequence[Thing]:
        workspace_id, user_id, agent_id = key
        return (
            permission_thing(workspace_id, user_id, agent_id),
            user_thing(workspace_id, user_id),
            agent_thing(workspace_id, agent_id),
            workspace_thing(workspace_id),
        )

    async def ask(self, key: PairKey, least: Revision | None) -> Told[Permission]:
        request = permission_pb2.CheckRequest(**key._asdict(), min_revision_token=_token(least), **self._router)
        asked = self._stub.Check(request, timeout=peers.timeout_s(self._timeout_s), metadata=peers.metadata())
        try:
            return wire.permission(await peers.asked(_PEER, asked))
        except FailedPrecondition as refusal:
            if refusal.reason == Reason.REASON_ROUTER_NOT_REGISTERED:
                raise PeerUnavailable("this router is not registered yet", retry_after_s=0.2, peer=_PEER) from None
            raise


class RegistryAgents:
    """Routes, asked of their owner."""

    def __init__(self, channel: grpc.aio.Channel, *, timeout_s: float) -> None:
        self._stub = agent_pb2_grpc.AgentServiceStub(channel)
        self._timeout_s = timeout_s

    def rests_on(self, key: AgentKey) -> Sequence[Thing]:
        return route_thing(*key), agent_thing(*key), workspace_thing(key.workspace_id)

    async def ask(self, key: AgentKey, least: Revision | None) -> Told[Route | None] | Unstamped[Route | None]:
        request = agent_pb2.GetAgentRequest(
            workspace_id=key.workspace_id, agent_id=key.agent_id, min_revision_token=_token(least)
        )
        asked = self._stub.GetAgent(request, timeout=peers.timeout_s(self._timeout_s), metadata=peers.metadata())
        try:
            return wire.told_route(await peers.asked(_PEER, asked))
        except NotFound as refusal:
            if refusal.reason == Reason.REASON_AGENT_UNKNOWN:
                return Unstamped(None)
            raise


class RegistryObservations:
    """What was seen of targets, told to the registry."""

    def __init__(self, channel: grpc.aio.Channel, *, timeout_s: float) -> None:
        self._stub = agent_pb2_grpc.AgentServiceStub(channel)
        self._timeout_s = timeout_s

    async def tell(self, key: TargetKey, seen: Observation) -> None:
        request = wire.observation_request(key, seen)
        asked = self._stub.ReportAgentState(request, timeout=self._timeout_s, metadata=peers.metadata())
        await peers.asked(_PEER, asked)


class RegistryLedger:
    """The ledger of usage, kept by the registry."""

    def __init__(self, channel: grpc.aio.Channel, *, timeout_s: float) -> None:
        self._stub = usage_pb2_grpc.UsageServiceStub(channel)
        self._timeout_s = timeout_s

    async def record(self, workspace_id: str, events: Sequence[UsageEvent]) -> None:
        """Records the events of a workspace, all or none; the same once more count once."""
        request = usage_pb2.RecordUsageRequest(
            workspace_id=workspace_id, events=[wire.usage_event(event) for event in events]
        )
        asked = self._stub.RecordUsage(request, timeout=peers.timeout_s(self._timeout_s), metadata=peers.metadata())
        await peers.asked(_PEER, asked)


def _token(least: Revision | None) -> bytes:
    return b"" if least is None else least.token()
