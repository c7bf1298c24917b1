"""Refusal → gRPC status, with the details of google.rpc. The only place that knows gRPC codes of refusals."""

from collections.abc import Sequence

import grpc
from google.protobuf import any_pb2, duration_pb2
from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2

from twofold_chassis import refusals
from twofold_chassis.refusals import Reason, Refusal

DOMAIN = "twofold"
REASON_KEY = "twofold-reason"
DETAILS_KEY = "grpc-status-details-bin"

Metadata = Sequence[tuple[str, str | bytes]]

_CODES: tuple[tuple[type[Refusal], grpc.StatusCode], ...] = (
    (refusals.InvalidArgument, grpc.StatusCode.INVALID_ARGUMENT),
    (refusals.NotFound, grpc.StatusCode.NOT_FOUND),
    (refusals.AlreadyExists, grpc.StatusCode.ALREADY_EXISTS),
    (refusals.PermissionDenied, grpc.StatusCode.PERMISSION_DENIED),
    (refusals.FailedPrecondition, grpc.StatusCode.FAILED_PRECONDITION),
    (refusals.Aborted, grpc.StatusCode.ABORTED),
    (refusals.ResourceExhausted, grpc.StatusCode.RESOURCE_EXHAUSTED),
    (refusals.Unavailable, grpc.StatusCode.UNAVAILABLE),
    (refusals.DeadlineExceeded, grpc.StatusCode.DEADLINE_EXCEEDED),
    (refusals.OutOfRange, grpc.StatusCode.OUT_OF_RANGE),
    (refusals.Cancelled, grpc.StatusCode.CANCELLED),
)


def code(refusal: Refusal) -> grpc.StatusCode:
    """The gRPC code of a refusal; a kind that is not in the table is a defect and becomes INTERNAL."""
    for kind, value in _CODES:
        if isinstance(refusal, kind):
            return value
    return grpc.StatusCode.INTERNAL


def trailers(refusal: Refusal) -> Metadata:
    """Trailing metadata of a refusal: the reason as a word, and google.rpc.Status with all details."""
    reason = Reason.Name(refusal.reason)
    details = [_packed(error_details_pb2.ErrorInfo(reason=reason, domain=DOMAIN, metadata=refusal.metadata))]
    if isinstance(refusal, refusals.InvalidArgument):
        violation = error_details_pb2.BadRequest.FieldViolation(field=refusal.field, description=refusal.problem)
        details.append(_packed(error_details_pb2.BadRequest(field_violations=[violation])))
    if isinstance(refusal, refusals.QuotaExhausted):
        violations = [error_details_pb2.QuotaFailure.Violation(**quota._asdict()) for quota in refusal.quotas]
        details.append(_packed(error_details_pb2.QuotaFailure(violations=violations)))
    if refusal.retry_after_s is not None:
        delay = duration_pb2.Duration(nanos=0)
        delay.FromNanoseconds(round(refusal.retry_after_s * 1e9))
        details.append(_packed(error_details_pb2.RetryInfo(retry_delay=delay)))
    status = status_pb2.Status(code=code(refusal).value[0], message=refusal.message, details=details)
    return ((REASON_KEY, reason), (DETAILS_KEY, status.SerializeToString()))


def _packed(detail: Message) -> any_pb2.Any:
    packed = any_pb2.Any()
    packed.Pack(detail)
    return packed
