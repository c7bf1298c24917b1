"""The gRPC face of pods."""

from twofold.registry.v1 import pod_pb2 as pb
from twofold.registry.v1.pod_pb2_grpc import PodServiceServicer
from twofold_chassis.edge import Context
from twofold_registry.pods import Pods
from twofold_registry.wire import pods as wire


class PodService(PodServiceServicer):
    """Reads, asks, answers."""

    def __init__(self, pods: Pods) -> None:
        self._pods = pods

    async def RegisterPod(self, request: pb.RegisterPodRequest, _: Context) -> pb.RegisterPodResponse:
        pod_id, address = wire.registered_id(request), wire.address(request)
        answer = await self._pods.register(pod_id, address, wire.register_attempt(request), wire.registered)
        return pb.RegisterPodResponse.FromString(answer)

    async def CheckPod(self, request: pb.CheckPodRequest, _: Context) -> pb.CheckPodResponse:
        key = wire.pod_key(request)
        return wire.checked(await self._pods.check([key]))

    async def BatchCheckPods(self, request: pb.BatchCheckPodsRequest, _: Context) -> pb.BatchCheckPodsResponse:
        keys = wire.pod_keys(request)
        return wire.all_checked(await self._pods.check(keys))

    async def MarkPodDead(self, request: pb.MarkPodDeadRequest, _: Context) -> pb.MarkPodDeadResponse:
        key = wire.pod_key(request)
        return pb.MarkPodDeadResponse(marked=await self._pods.mark_dead(key, wire.dead_reason(request)))

    async def ListPods(self, request: pb.ListPodsRequest, _: Context) -> pb.ListPodsResponse:
        state = wire.listed_state(request)
        after, size = wire.list_place(request, state)
        return wire.listed(state, await self._pods.list(state, after, size))
