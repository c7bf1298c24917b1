"""Why a call was refused, read from the error that grpc raises: `reason` to branch on, `field` and `retry_after_s`.

The details of a refusal travel as google.rpc.Status in the trailing metadata. Its generated code is not among this
package's dependencies, and three fields of it are needed: they are read from the wire format here.
"""

from collections.abc import Iterator

import grpc
from google.protobuf.any_pb2 import Any
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import DecodeError

from twofold.errors.v1.reason_pb2 import Reason

_REASON_KEY = "twofold-reason"
_DETAILS_KEY = "grpc-status-details-bin"

# Field numbers of google.rpc.
_STATUS_DETAILS = 3
_BAD_REQUEST_FIELD_VIOLATIONS = 1
_FIELD_VIOLATION_FIELD = 1
_RETRY_INFO_RETRY_DELAY = 1

# Wire types: varint, 64 bit, length-delimited, 32 bit.
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5


def reason(error: grpc.aio.AioRpcError) -> Reason.ValueType:
    """Why; REASON_UNSPECIFIED if the error is not a refusal of Twofold's, or one of a newer version."""
    word = _trailing(error, _REASON_KEY)
    if isinstance(word, str) and word in Reason.keys():  # noqa: SIM118  (an enum wrapper is no mapping)
        return Reason.Value(word)
    return Reason.REASON_UNSPECIFIED


def field(error: grpc.aio.AioRpcError) -> str:
    """With INVALID_ARGUMENT the path of the field that breaks its rule; else empty."""
    for detail in _details(error, "google.rpc.BadRequest"):
        for violation in _values(detail, _BAD_REQUEST_FIELD_VIOLATIONS):
            for path in _values(violation, _FIELD_VIOLATION_FIELD):
                return path.decode("utf-8", errors="replace")
    return ""


def retry_after_s(error: grpc.aio.AioRpcError) -> float | None:
    """How many seconds to wait before the same call may succeed; None if the service did not say."""
    for detail in _details(error, "google.rpc.RetryInfo"):
        for delay in _values(detail, _RETRY_INFO_RETRY_DELAY):
            try:
                return Duration.FromString(delay).ToNanoseconds() / 1e9
            except DecodeError:
                return None
    return None


def _trailing(error: grpc.aio.AioRpcError, wanted: str) -> str | bytes | None:
    for key, value in error.trailing_metadata() or ():
        if key == wanted:
            return value
    return None


def _details(error: grpc.aio.AioRpcError, kind: str) -> Iterator[bytes]:
    """The bytes of the details of one kind."""
    status = _trailing(error, _DETAILS_KEY)
    if not isinstance(status, bytes):
        return
    for packed in _values(status, _STATUS_DETAILS):
        try:
            detail = Any.FromString(packed)
        except DecodeError:
            continue
        if detail.TypeName() == kind:
            yield detail.value


def _values(message: bytes, number: int) -> Iterator[bytes]:
    """The values of one length-delimited field of a message; what cannot be read ends the message."""
    position = 0
    try:
        while position < len(message):
            tag, position = _varint(message, position)
            start, position = _skip(message, position, tag & 7)
            if tag == number << 3 | _BYTES:
                yield message[start:position]
    except _MalformedError:
        return


def _skip(message: bytes, position: int, kind: int) -> tuple[int, int]:
    """Where the value at `position` begins and ends."""
    if kind == _BYTES:
        length, position = _varint(message, position)
    elif kind == _VARINT:
        length = _varint(message, position)[1] - position
    elif kind in (_FIXED64, _FIXED32):
        length = 8 if kind == _FIXED64 else 4
    else:
        raise _MalformedError
    if position + length > len(message):
        raise _MalformedError
    return position, position + length


def _varint(message: bytes, position: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        if position >= len(message):
            break
        byte = message[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
    raise _MalformedError


class _MalformedError(Exception):
    """These bytes are no message."""
