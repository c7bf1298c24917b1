"""The registry, as pods' keepers ask it: lives of pods, the verdict on them, and the history of sessions."""

from collections.abc import Sequence

import grpc

from twofold.registry.v1 import pod_pb2, pod_pb2_grpc, session_pb2, session_pb2_grpc
from twofold_chassis import peers
from twofold_router import wire_sessions as wire
from twofold_router.pods import PodState
from twofold_router.session_history import SessionEvent
from twofold_router.sessions import PodLife

_PEER = "registry"


class RegistryPods:
    """Pods, asked of who keeps them."""

    def __init__(self, channel: grpc.aio.Channel, *, timeout_s: float) -> None:
        self._stub = pod_pb2_grpc.PodServiceStub(channel)
        self._timeout_s = timeout_s

    async def register(self, pod_id: str, address: str, request_id: str) -> PodLife:
        request = pod_pb2.RegisterPodRequest(pod_id=pod_id, address=address, request_id=request_id)
        asked = self._stub.RegisterPod(request, timeout=peers.timeout_s(self._timeout_s), metadata=peers.metadata())
        return wire.life(pod_id, (await peers.asked(_PEER, asked)).incarnation)

    async def states(self, lives: Sequence[PodLife]) -> list[PodState]:
        request = pod_pb2.BatchCheckPodsRequest(pods=map(wire.check_pod, lives))
        asked = self._stub.BatchCheckPods(request, timeout=peers.timeout_s(self._timeout_s), metadata=peers.metadata())
        return wire.pod_states(await peers.asked(_PEER, asked))

    async def mark_dead(self, life: PodLife, reason: str) -> None:
        request = pod_pb2.MarkPodDeadRequest(
            pod_id=life.pod_id, incarnation=wire.incarnation_message(life.incarnation), reason=reason
        )
        asked = self._stub.MarkPodDead(request, timeout=peers.timeout_s(self._timeout_s), metadata=peers.metadata())
        await peers.asked(_PEER, asked)


class RegistryHistory:
    """The history of sessions, kept by the registry."""

    def __init__(self, channel: grpc.aio.Channel, *, timeout_s: float) -> None:
        self._stub = session_pb2_grpc.SessionHistoryServiceStub(channel)
        self._timeout_s = timeout_s

    async def record(self, workspace_id: str, events: Sequence[SessionEvent]) -> None:
        request = session_pb2.RecordSessionsRequest(workspace_id=workspace_id, events=map(wire.history_event, events))
        asked = self._stub.RecordSessions(request, timeout=peers.timeout_s(self._timeout_s), metadata=peers.metadata())
        await peers.asked(_PEER, asked)
