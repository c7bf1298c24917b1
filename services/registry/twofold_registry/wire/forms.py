"""Forms that values of several nouns take on the wire."""

from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Any

from google.protobuf.json_format import MessageToJson
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp

from twofold_chassis import fields
from twofold_chassis.refusals import InvalidField
from twofold_chassis.requests import attempt
from twofold_registry.resources import Answer, Kind, Look, Stored, Write
from twofold_registry.revisions import Revision, revision_of

BATCH_MAX = 500
_EARLIEST = datetime(2000, 1, 1, tzinfo=UTC)


def json_object(message: Message) -> str:
    """A message as the audit tells it: JSON with the field names of the contract."""
    return MessageToJson(message, preserving_proto_field_name=True, indent=None, sort_keys=True, ensure_ascii=False)


def optional_timestamp(value: datetime | None) -> Timestamp | None:
    """The wire's form of a time that may be unset."""
    return None if value is None else fields.timestamp(value)


def happened(message: Any, name: str, field: str, latest: datetime) -> datetime:
    """When something happened, as it is told in the field `name`: from the year 2000 on, and not after `latest`."""
    if not message.HasField(name):
        raise InvalidField(field, "is required")
    at = fields.moment(getattr(message, name), field)
    if not _EARLIEST <= at <= latest:
        raise InvalidField(field, f"must not lie before the year 2000 nor after {latest:%Y-%m-%dT%H:%M:%SZ}")
    return at


def present(request: Message, field: str) -> None:
    """Refuses a request without this message."""
    if not request.HasField(field):
        raise InvalidField(field, "is required")


def etag(value: str, field: str) -> str:
    """An etag that was given, or empty. Whether it is the current one only the store can tell."""
    return fields.line(value, field, bytes_max=fields.ID_BYTES_MAX)


def write(request: Any, scope: str, given_etag: str = "", field: str = "etag") -> Write:
    """How a write is asked for. `scope` is the workspace in which its request id is unique; `field` that of the etag."""
    rpc = request.DESCRIPTOR.name.removesuffix("Request")
    return Write(attempt(scope, rpc, request, request.request_id), etag(given_etag, field), request.validate_only)


def look(request: Any) -> Look:
    """How something is asked for."""
    return Look(request.show_deleted, least(request))


def least(request: Any) -> Revision | None:
    """How new what is read must be at least."""
    return revision_of(request.min_revision_token, "min_revision_token")


def ids(values: Sequence[str], field: str) -> list[str]:
    """The ids of a batch: 1 to 500, each once."""
    if not 1 <= len(values) <= BATCH_MAX:
        raise InvalidField(field, f"has {len(values)} entries, must have 1 to {BATCH_MAX}")
    seen = set()
    for index, value in enumerate(values):
        fields.identifier(value, f"{field}[{index}]")
        if value in seen:
            raise InvalidField(f"{field}[{index}]", "is in the batch already")
        seen.add(value)
    return list(values)


def written(response: type[Message], message: Callable[[Stored[Kind]], Message]) -> Answer[Stored[Kind]]:
    """Answers a write with the resource, in the response's field of its kind."""

    def answer(stored: Stored[Kind], revision: Revision) -> bytes:
        values: dict[str, Any] = {stored.value.kind: message(stored), "revision_token": _token(revision)}
        return response(**values).SerializeToString()

    return answer


def forgotten(response: type[Message]) -> Answer[None]:
    """Answers a write that leaves nothing."""

    def answer(_: None, revision: Revision) -> bytes:
        values: dict[str, Any] = {"revision_token": _token(revision)}
        return response(**values).SerializeToString()

    return answer


def _token(revision: Revision) -> bytes:
    """How new a read must be to see a write; empty for one that was only checked."""
    return revision.token() if revision.number else b""
