"""Pods on the wire."""

from collections.abc import Sequence

from twofold.registry.v1 import pod_pb2 as pb
from twofold_chassis import fields
from twofold_chassis.refusals import InvalidField
from twofold_chassis.requests import Attempt, attempt
from twofold_registry.pods import Incarnation, Pod, PodKey, PodState
from twofold_registry.resources import Page
from twofold_registry.wire import pages

_PODS_MAX = 500
_LINE_BYTES_MAX = 255
_STATES = {
    PodState.LIVE: pb.POD_STATE_LIVE,
    PodState.DEAD: pb.POD_STATE_DEAD,
    PodState.UNKNOWN: pb.POD_STATE_UNKNOWN,
}
_KEPT_STATES = {pb.POD_STATE_LIVE: PodState.LIVE, pb.POD_STATE_DEAD: PodState.DEAD}


def registered_id(request: pb.RegisterPodRequest) -> str:
    return fields.identifier(request.pod_id, "pod_id")


def address(request: pb.RegisterPodRequest) -> str:
    return fields.line(request.address, "address", bytes_max=_LINE_BYTES_MAX)


def register_attempt(request: pb.RegisterPodRequest) -> Attempt:
    return attempt("", "RegisterPod", request, request.request_id)


def registered(value: Incarnation) -> bytes:
    return pb.RegisterPodResponse(incarnation=incarnation_message(value)).SerializeToString()


def pod_key(request: pb.CheckPodRequest | pb.MarkPodDeadRequest, above: str = "") -> PodKey:
    pod_id = fields.identifier(request.pod_id, f"{above}pod_id")
    if not request.HasField("incarnation"):
        raise InvalidField(f"{above}incarnation", "is required")
    return PodKey(pod_id, incarnation(request.incarnation, f"{above}incarnation"))


def pod_keys(request: pb.BatchCheckPodsRequest) -> list[PodKey]:
    if not 1 <= len(request.pods) <= _PODS_MAX:
        raise InvalidField("pods", f"has {len(request.pods)} entries, must have 1 to {_PODS_MAX}")
    return [pod_key(pod, f"pods[{index}].") for index, pod in enumerate(request.pods)]


def checked(states: Sequence[PodState]) -> pb.CheckPodResponse:
    return pb.CheckPodResponse(state=_STATES[states[0]])


def all_checked(states: Sequence[PodState]) -> pb.BatchCheckPodsResponse:
    return pb.BatchCheckPodsResponse(states=[_STATES[state] for state in states])


def dead_reason(request: pb.MarkPodDeadRequest) -> str:
    return fields.line(request.reason, "reason", bytes_max=_LINE_BYTES_MAX, required=True)


def listed_state(request: pb.ListPodsRequest) -> PodState | None:
    if request.state == pb.POD_STATE_UNSPECIFIED:
        return None
    if request.state not in _KEPT_STATES:
        raise InvalidField("state", "must be LIVE or DEAD, or left out")
    return _KEPT_STATES[request.state]


def list_place(request: pb.ListPodsRequest, state: PodState | None) -> tuple[str, int]:
    """The id the page begins behind, and the size of the page."""
    cursor = fields.page_place(request.page_token, _query(state), str)
    return cursor[0] if cursor else "", fields.page_size(request.page_size)


def listed(state: PodState | None, page: Page[Pod]) -> pb.ListPodsResponse:
    messages, token = pages.filled(page, _query(state), _pod_message, lambda pod: [pod.pod_id])
    return pb.ListPodsResponse(pods=messages, next_page_token=token)


def incarnation(message: pb.PodIncarnation, field: str) -> Incarnation:
    return Incarnation(
        fields.whole(message.epoch, f"{field}.epoch", least=1, most=2**63 - 1),
        fields.whole(message.number, f"{field}.number", least=1, most=2**63 - 1),
    )


def incarnation_message(value: Incarnation) -> pb.PodIncarnation:
    return pb.PodIncarnation(epoch=value.epoch, number=value.number)


def _pod_message(pod: Pod) -> pb.Pod:
    return pb.Pod(
        pod_id=pod.pod_id,
        address=pod.address,
        incarnation=incarnation_message(pod.incarnation),
        state=_STATES[pod.state],
        register_time=None if pod.registered_at is None else fields.timestamp(pod.registered_at),
        dead_time=None if pod.dead_at is None else fields.timestamp(pod.dead_at),
        dead_reason=pod.dead_reason,
        marked_by=pod.marked_by,
    )


def _query(state: PodState | None) -> tuple[str, PodState | None]:
    """What a page token is bound to."""
    return "pods", state
