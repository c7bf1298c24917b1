"""Forms that values of several nouns take on the wire."""

from google.protobuf.json_format import MessageToJson
from google.protobuf.message import Message

from twofold_chassis import fields
from twofold_chassis.refusals import InvalidField


def json_object(message: Message) -> str:
    """A message as the audit tells it: JSON with the field names of the contract."""
    return MessageToJson(message, preserving_proto_field_name=True, indent=None, sort_keys=True, ensure_ascii=False)


def present(request: Message, field: str) -> None:
    """Refuses a request without this message."""
    if not request.HasField(field):
        raise InvalidField(field, "is required")


def etag(value: str, field: str) -> str:
    """An etag that was given, or empty. Whether it is the current one only the store can tell."""
    return fields.line(value, field, bytes_max=fields.ID_BYTES_MAX)
