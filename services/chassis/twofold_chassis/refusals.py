"""Why a call is refused, as exceptions of the domain.

A room raises a refusal by its name; `status.py` is the one place that knows which gRPC code each kind becomes. The kinds
below mirror the codes a caller can act on; rooms subclass them with a reason out of the closed list of the contract.
"""

from collections.abc import Sequence
from typing import ClassVar, NamedTuple

from twofold.errors.v1.reason_pb2 import Reason

__all__ = [
    "Aborted",
    "AlreadyExists",
    "Busy",
    "Cancelled",
    "DeadlineExceeded",
    "Draining",
    "EtagMismatch",
    "FailedPrecondition",
    "HistoryChanged",
    "InvalidArgument",
    "InvalidField",
    "InvalidPageToken",
    "InvalidToken",
    "NotFound",
    "OutOfRange",
    "Overloaded",
    "PeerUnavailable",
    "PermissionDenied",
    "Quota",
    "QuotaExhausted",
    "Reason",
    "Refusal",
    "RequestReused",
    "ResourceExhausted",
    "StoreUnavailable",
    "Unavailable",
    "VersionMismatch",
]


class Refusal(Exception):  # noqa: N818  (a refusal is an answer, not an error)
    """A call is refused. `metadata` are the ids it speaks of; they travel in ErrorInfo."""

    reason: ClassVar[Reason.ValueType] = Reason.REASON_INTERNAL

    def __init__(self, message: str, *, retry_after_s: float | None = None, **metadata: str) -> None:
        super().__init__(message)
        self.message = message
        self.retry_after_s = retry_after_s
        self.metadata = metadata

    def again(self) -> "Refusal":
        """The same refusal for another caller: an exception that is raised twice gathers both tracebacks."""
        other = type(self).__new__(type(self))
        other.args = self.args
        other.__dict__.update(self.__dict__)
        return other


class InvalidArgument(Refusal):
    """The request breaks a rule of the contract; `field` is the path of the field that does."""

    reason = Reason.REASON_INVALID_FIELD

    def __init__(self, field: str, problem: str) -> None:
        super().__init__(f"{field}: {problem}", field=field)
        self.field = field
        self.problem = problem


class InvalidField(InvalidArgument):
    """A field is missing or breaks its rule."""


class InvalidPageToken(InvalidArgument):
    """The page token is damaged or belongs to another query."""

    reason = Reason.REASON_INVALID_PAGE_TOKEN


class InvalidToken(InvalidArgument):
    """The revision or thread token is not one that was issued for this resource."""

    reason = Reason.REASON_INVALID_TOKEN


class NotFound(Refusal):
    """There is no such thing, said by who owns the truth."""


class AlreadyExists(Refusal):
    """The id or another unique value is taken."""


class RequestReused(AlreadyExists):
    """The request id was used before with another body or rpc."""

    reason = Reason.REASON_REQUEST_REUSED


class PermissionDenied(Refusal):
    """The caller may not do this."""

    reason = Reason.REASON_NOT_PERMITTED


class FailedPrecondition(Refusal):
    """The thing is in a state in which this cannot be done."""


class Aborted(Refusal):
    """Somebody else was faster."""


class EtagMismatch(Aborted):
    """The etag is not the current one."""

    reason = Reason.REASON_ETAG_MISMATCH


class VersionMismatch(Aborted):
    """The version is not the current one."""

    reason = Reason.REASON_VERSION_MISMATCH


class HistoryChanged(Aborted):
    """The token is of a history that no longer exists."""

    reason = Reason.REASON_HISTORY_CHANGED


class Busy(Aborted):
    """Others hold the row for too long; the same call may succeed when it is repeated."""

    reason = Reason.REASON_BUSY


class ResourceExhausted(Refusal):
    """A bound is reached."""


class Overloaded(ResourceExhausted):
    """Too much at once for this process."""

    reason = Reason.REASON_OVERLOADED


class Quota(NamedTuple):
    """A quota that is used up: of whom ("user:ada"), and which."""

    subject: str
    description: str


class QuotaExhausted(ResourceExhausted):
    """Quotas of the tenant are used up; without `retry_after_s` waiting does not help."""

    def __init__(
        self, message: str, quotas: Sequence[Quota], *, retry_after_s: float | None = None, **metadata: str
    ) -> None:
        super().__init__(message, retry_after_s=retry_after_s, **metadata)
        self.quotas = tuple(quotas)


class OutOfRange(Refusal):
    """What is asked for lies before or behind what there is."""


class Cancelled(Refusal):
    """Somebody has cancelled it."""


class Unavailable(Refusal):
    """Something that is needed does not answer; the same call may succeed later."""


class StoreUnavailable(Unavailable):
    """The durable store does not answer. `outcome` says of a write whether anything can have been kept."""

    reason = Reason.REASON_STORE_UNAVAILABLE


class PeerUnavailable(Unavailable):
    """A service behind this one does not answer."""

    reason = Reason.REASON_PEER_UNAVAILABLE


class Draining(Unavailable):
    """This process is about to end and takes nothing new."""

    reason = Reason.REASON_DRAINING


class DeadlineExceeded(Refusal):
    """Time ran out."""

    reason = Reason.REASON_DEADLINE
