"""Channels to the peers: one each, opened as their clients do, which finds a peer that comes up late or comes back."""

from collections.abc import Sequence

import grpc
from google.protobuf.descriptor import ServiceDescriptor
from grpc_health.v1 import health_pb2, health_pb2_grpc

from twofold import channels
from twofold.memory.v1 import context_pb2, conversation_pb2
from twofold.memory.v1 import turn_pb2 as memory_turn_pb2
from twofold.registry.v1 import agent_pb2, change_pb2, permission_pb2, pod_pb2, session_pb2, usage_pb2

_HEALTH_S = 1.0

# What a service in a cluster wants otherwise than a client at a desk.
_OWN_OPTIONS = {
    "grpc.enable_http_proxy": 0,  # a proxy in the environment is not meant for us
    # A peer that vanished without a word is noticed before the next turn needs it; the servers allow a ping every 10 s.
    "grpc.keepalive_permit_without_calls": 1,
    "grpc.http2.max_pings_without_data": 0,
    # A peer that was restarted is found again within two seconds.
    "grpc.min_reconnect_backoff_ms": 1000,
    "grpc.max_reconnect_backoff_ms": 2000,
}


def _config(services: Sequence[ServiceDescriptor], *, once: Sequence[tuple[ServiceDescriptor, str]] = ()) -> str:
    return channels.service_config(
        [service.full_name for service in services],
        once=[(service.full_name, service.methods_by_name[method].name) for service, method in once],
    )


_CONTEXTS = context_pb2.DESCRIPTOR.services_by_name["ContextService"]

# All that the router asks may be asked twice: it reads, or its writes carry ids.
REGISTRY = _config(
    [
        permission_pb2.DESCRIPTOR.services_by_name["PermissionService"],
        change_pb2.DESCRIPTOR.services_by_name["ChangeService"],
        agent_pb2.DESCRIPTOR.services_by_name["AgentService"],
        usage_pb2.DESCRIPTOR.services_by_name["UsageService"],
        pod_pb2.DESCRIPTOR.services_by_name["PodService"],
        session_pb2.DESCRIPTOR.services_by_name["SessionHistoryService"],
    ]
)
_OPEN_TURNS = memory_turn_pb2.DESCRIPTOR.services_by_name["TurnService"]
# Opening and keeping repeat their calls themselves: they must know of each attempt whether it may have been heard.
MEMORY = _config(
    [conversation_pb2.DESCRIPTOR.services_by_name["ConversationService"], _CONTEXTS, _OPEN_TURNS],
    once=[(_CONTEXTS, "Invoked"), *((_OPEN_TURNS, rpc) for rpc in ("BeginTurn", "CommitTurn", "AbortTurn"))],
)


def channel(target: str, config: str) -> grpc.aio.Channel:
    """A channel to `target` with the service config of its peer; nothing is dialled yet."""
    options = {**dict(channels.options(config)), **_OWN_OPTIONS}
    return grpc.aio.insecure_channel(target, options=tuple(options.items()))


async def serves(peer: grpc.aio.Channel) -> bool:
    """Whether the peer says that it serves."""
    try:
        check = health_pb2_grpc.HealthStub(peer).Check  # type: ignore[attr-defined]  # its types know no methods
        answer = await check(health_pb2.HealthCheckRequest(), timeout=_HEALTH_S)
    except grpc.aio.AioRpcError:
        return False
    return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)
