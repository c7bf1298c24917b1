"""Calling another service: one channel per peer, the caller's identity and deadline passed on, refusals passed through."""

from collections.abc import Awaitable
from typing import TypeVar

import grpc
from google.rpc import error_details_pb2
from grpc_status import rpc_status

from twofold.errors.v1.reason_pb2 import Reason
from twofold_chassis import call, refusals
from twofold_chassis.refusals import Refusal
from twofold_chassis.status import DOMAIN

Answer = TypeVar("Answer")

_KINDS: dict[grpc.StatusCode, type[Refusal]] = {
    grpc.StatusCode.NOT_FOUND: refusals.NotFound,
    grpc.StatusCode.ALREADY_EXISTS: refusals.AlreadyExists,
    grpc.StatusCode.PERMISSION_DENIED: refusals.PermissionDenied,
    grpc.StatusCode.FAILED_PRECONDITION: refusals.FailedPrecondition,
    grpc.StatusCode.ABORTED: refusals.Aborted,
    grpc.StatusCode.RESOURCE_EXHAUSTED: refusals.ResourceExhausted,
    grpc.StatusCode.UNAVAILABLE: refusals.Unavailable,
    grpc.StatusCode.OUT_OF_RANGE: refusals.OutOfRange,
}


def metadata() -> tuple[tuple[str, str], ...]:
    """Metadata for a call made on behalf of the call that is being served."""
    current = call.current()
    return ((call.ACTOR_KEY, current.identity.actor), (call.REQUEST_ID_KEY, current.request_id))


def timeout_s(most: float) -> float:
    """The time a call to a peer may take: what the served call has left, at most `most`."""
    return min(most, call.current().left_s())


async def asked(peer: str, answer: Awaitable[Answer]) -> Answer:
    """The peer's answer, with its errors as refusals of our own.

    What the peer refuses by a reason of the contract is passed through. A peer that does not answer, or fails, is
    PeerUnavailable: it is never taken for "not found" or "not allowed".
    """
    try:
        return await answer
    except grpc.aio.AioRpcError as error:
        raise refusal_of(peer, error) from None


def refusal_of(peer: str, error: grpc.aio.AioRpcError) -> Refusal:
    """The refusal that a peer's error stands for."""
    code = error.code()
    if code is grpc.StatusCode.DEADLINE_EXCEEDED and call.current().left_s() <= 0:
        return refusals.DeadlineExceeded("the deadline of the call ran out")
    told = _told(peer, code, error)
    if told is not None:
        return told
    return refusals.PeerUnavailable(f"the {peer} does not answer", retry_after_s=1.0, peer=peer)


def _told(peer: str, code: grpc.StatusCode, error: grpc.aio.AioRpcError) -> Refusal | None:
    status = rpc_status.from_call(error)  # type: ignore[arg-type]  # it reads code, details and trailers, which an aio error has
    if status is None:
        return None
    info = error_details_pb2.ErrorInfo()
    retry = error_details_pb2.RetryInfo()
    invalid = error_details_pb2.BadRequest()
    for detail in status.details:
        for message in (info, retry, invalid):
            if detail.Is(message.DESCRIPTOR):
                detail.Unpack(message)
    if info.domain != DOMAIN or info.reason not in Reason.keys():  # noqa: SIM118  (an enum wrapper is no mapping)
        return None
    if code is grpc.StatusCode.INVALID_ARGUMENT and invalid.field_violations:
        violation = invalid.field_violations[0]
        return _reasoned(refusals.InvalidArgument(violation.field, violation.description), info.reason)
    kind = _KINDS.get(code)
    if kind is None:
        return None
    delay = retry.retry_delay.ToNanoseconds() / 1e9 or None
    return _reasoned(kind(status.message, retry_after_s=delay, **dict(info.metadata)), info.reason)


def _reasoned(refusal: Refusal, reason: str) -> Refusal:
    refusal.reason = Reason.Value(reason)  # type: ignore[misc]  # this one instance speaks with the peer's reason
    return refusal
