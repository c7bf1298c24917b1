"""Conversations as JSON Lines in the shape of chat-completion APIs: read into turns, and written again. The contract of the
shape stands at the head of transfer.proto.
"""

import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from hashlib import sha256
from typing import Any

from twofold.memory.v1 import message_pb2
from twofold_chassis import fields
from twofold_chassis.refusals import InvalidField
from twofold_memory.exports import Found
from twofold_memory.imports import Imported, Order
from twofold_memory.threads import (
    TURN_BYTES_MAX,
    TURN_MESSAGES_MAX,
    Conversation,
    Entry,
    NewTurn,
    ThreadKey,
)
from twofold_memory.wire.messages import messages_of, new_messages

Json = dict[str, Any]

# A part of a kind that the contract does not know is kept whole, as Data of this type.
FOREIGN_PART = "application/x-chat-completion-part+json"
# What a message has besides stands in its metadata under this and its name, as JSON.
_BESIDES = "json:"
_BESIDES_BYTES_MAX = 1024
_TITLE_BYTES_MAX = 1024
_ROLES = {
    "system": message_pb2.ROLE_SYSTEM,
    "developer": message_pb2.ROLE_SYSTEM,
    "user": message_pb2.ROLE_USER,
    "assistant": message_pb2.ROLE_ASSISTANT,
    "tool": message_pb2.ROLE_TOOL,
}
_NAMES = {number: name for name, number in _ROLES.items() if name != "developer"}
_STATUSES = {
    message_pb2.MESSAGE_STATUS_INTERRUPTED: "interrupted",
    message_pb2.MESSAGE_STATUS_DELETED: "deleted",
    message_pb2.MESSAGE_STATUS_REDACTED: "redacted",
}
_OF_CONVERSATIONS = {"thread_id", "user_id", "title", "metadata", "messages"}
_OF_MESSAGES = {"role", "content", "tool_calls", "tool_call_id", "name", "author", "token_count", "metadata"}
# What an export with the service's fields has, too: read over.
_SET_BY_THE_SERVICE = {"seq", "turn_id", "turn_index", "create_time", "status", "revision"}
_SET_OF_CONVERSATIONS = {"create_time", "update_time", "delete_time"}
# Names in the shape → fields of the reference; the first of each pair is that of the field.
_IMAGE = (("url", "url"), ("detail", "detail"), ("file_id", "file_id"), ("media_type", "media_type"), ("name", "name"))
_FILE = (("url", "file_data"), ("file_id", "file_id"), ("name", "filename"), ("media_type", "media_type"))


# In ------------------------------------------------------------------------------------------------------------------------


def imported(order: Order, number: int, line: bytes) -> Imported:
    """A line of an import: its conversation and the turns of that. Raises InvalidField with the path within the line."""
    try:
        return _imported(order, number, _parsed(line))
    except UnicodeEncodeError:
        raise InvalidField("", "holds half of a surrogate pair, which is no text") from None


def _parsed(line: bytes) -> Json:
    try:
        value = json.loads(line.removeprefix(b"\xef\xbb\xbf").decode(), parse_float=_finite, parse_constant=_no_number)
    except UnicodeDecodeError:
        raise InvalidField("", "is not UTF-8") from None
    except ValueError as error:
        raise InvalidField("", f"is not JSON: {error}") from None
    except RecursionError:
        raise InvalidField("", "is nested too deeply") from None
    return _object(value, "")


def _imported(order: Order, number: int, told: Json) -> Imported:
    unknown = sorted(told.keys() - _OF_CONVERSATIONS - _SET_OF_CONVERSATIONS)
    if unknown:
        raise InvalidField(unknown[0], "is not understood")
    mark = sha256(order.import_id.encode()).hexdigest()[:32]
    thread_id = _text(told, "thread_id") or f"import-{mark}-{number}"
    user_id = fields.optional_identifier(_text(told, "user_id"), "user_id") or order.user_id
    conversation = Conversation(
        key=ThreadKey(order.workspace_id, fields.identifier(thread_id, "thread_id")),
        user_id=user_id,
        title=fields.line(_text(told, "title"), "title", bytes_max=_TITLE_BYTES_MAX),
        metadata=fields.labels(_labels(told.get("metadata"), "metadata"), "metadata"),
    )
    if not isinstance(told.get("messages"), list):
        raise InvalidField("messages", "is required, and a list")
    messages = [
        (f"messages[{index}]", _message(_object(one, f"messages[{index}]"), f"messages[{index}]"))
        for index, one in enumerate(told["messages"])
        if not (isinstance(one, dict) and one.get("status") == "deleted")
    ]
    turns = [_turn(conversation, f"import-{mark}-{number}-{place}", some) for place, some in enumerate(_cut(messages), 1)]
    described = bool(conversation.title or conversation.metadata or not turns)
    return Imported(conversation, described, turns)


Given = tuple[str, message_pb2.Message]


def _cut(messages: Sequence[Given]) -> Iterator[list[Given]]:
    """Turns: each begins with what the user says, and is no larger than a turn may be."""
    turn: list[Given] = []
    size = 0
    for path, message in messages:
        bytes_ = message.ByteSize()
        if turn and (
            message.role == message_pb2.ROLE_USER or len(turn) == TURN_MESSAGES_MAX or size + bytes_ > TURN_BYTES_MAX
        ):
            yield turn
            turn, size = [], 0
        turn.append((path, message))
        size += bytes_
    if turn:
        yield turn


def _turn(conversation: Conversation, turn_id: str, messages: Sequence[Given]) -> NewTurn:
    new, digest, size = new_messages(messages, b"import", "messages", TURN_BYTES_MAX)
    return NewTurn(conversation.key, conversation.user_id, turn_id, digest, new, size)


def _message(told: Json, path: str) -> message_pb2.Message:
    role = told.get("role")
    if not isinstance(role, str) or role not in _ROLES:
        raise InvalidField(f"{path}.role", f"must be one of {', '.join(_ROLES)}")
    message = message_pb2.Message(
        role=_ROLES[role],
        tool_calls=_calls(told, path),
        tool_call_id=_text(told, "tool_call_id", path),
        name=_text(told, "name", path),
        author=_text(told, "author", path),
        metadata=_besides(told, path),
    )
    content = told.get("content")
    if isinstance(content, str):
        message.content = content
    elif isinstance(content, list):
        if not content:
            raise InvalidField(f"{path}.content", 'is an empty list; text that is empty is ""')
        message.parts.extend(_part(part, f"{path}.content[{index}]") for index, part in enumerate(content))
    elif content is not None:
        raise InvalidField(f"{path}.content", "must be text, null, or a list of parts")
    if told.get("token_count") is not None:
        message.token_count = _count(told["token_count"], f"{path}.token_count")
    return message


def _calls(told: Json, path: str) -> list[message_pb2.ToolCall]:
    given = told.get("tool_calls")
    if given is None:
        return []
    if not isinstance(given, list):
        raise InvalidField(f"{path}.tool_calls", "must be a list")
    return [_call(one, f"{path}.tool_calls[{index}]") for index, one in enumerate(given)]


def _call(value: object, path: str) -> message_pb2.ToolCall:
    call = _only(_object(value, path), {"id", "type", "function"}, path)
    function = _only(_object(call.get("function"), f"{path}.function"), {"name", "arguments"}, f"{path}.function")
    return message_pb2.ToolCall(
        id=_text(call, "id", path),
        type=_text(call, "type", path),
        name=_text(function, "name", f"{path}.function"),
        arguments=_text(function, "arguments", f"{path}.function"),
    )


def _part(value: object, path: str) -> message_pb2.Part:
    part = _object(value, path)
    match part:
        case {"type": "text", "text": str(text), **more} if not more:
            return message_pb2.Part(text=text)
        case {"type": "image_url", "image_url": dict(image), **more} if not more and _fits(image, _IMAGE):
            return message_pb2.Part(image=message_pb2.ImageRef(**_reference(image, _IMAGE)))
        case {"type": "file", "file": dict(file), **more} if not more and _fits(file, _FILE, size=True):
            size = file.get("size_bytes", 0)
            return message_pb2.Part(file=message_pb2.FileRef(**_reference(file, _FILE), size_bytes=size))
        case {"type": "json", "json": str(text), **more} if _fits(more, (("media_type", "media_type"),)):
            return message_pb2.Part(data=message_pb2.Data(media_type=more.get("media_type", ""), json=text))
    return message_pb2.Part(data=message_pb2.Data(media_type=FOREIGN_PART, json=_compact(part)))


def _fits(given: Json, names: Iterable[tuple[str, str]], *, size: bool = False) -> bool:
    """Whether a reference keeps all that is given, so that it comes out as it was."""
    known = {name for _, name in names}
    return all(
        (key in known and isinstance(value, str) and value != "")
        or (size and key == "size_bytes" and type(value) is int and 0 < value < 2**53)
        for key, value in given.items()
    )


def _reference(given: Json, names: Iterable[tuple[str, str]]) -> dict[str, Any]:
    return {field: given[name] for field, name in names if name in given}


def _besides(told: Json, path: str) -> dict[str, str]:
    """The metadata of a message, and in it all that the contract has no field for."""
    metadata = _labels(told.get("metadata"), f"{path}.metadata")
    for key in metadata:
        if key.startswith(_BESIDES):
            raise InvalidField(f"{path}.metadata", f"{key!r} begins with {_BESIDES!r}, which is for fields of other names")
    more = {name: value for name, value in told.items() if name not in _OF_MESSAGES | _SET_BY_THE_SERVICE}
    if told["role"] == "developer":
        more["role"] = "developer"
    for name, value in more.items():
        text = _compact(value)
        if len(text.encode()) > _BESIDES_BYTES_MAX:
            raise InvalidField(f"{path}.{name}", f"is no field of ours, and has more than {_BESIDES_BYTES_MAX} bytes")
        metadata[_BESIDES + name] = text
    return metadata


def _labels(value: object, path: str) -> dict[str, str]:
    if value is None:
        return {}
    labels = _object(value, path)
    for key, entry in labels.items():
        if not isinstance(entry, str):
            raise InvalidField(f"{path}.{key}", "must be text")
    return dict(labels)


def _object(value: object, path: str) -> Json:
    if not isinstance(value, dict):
        raise InvalidField(path, "must be an object")
    return value


def _only(value: Json, names: set[str], path: str) -> Json:
    for name in value:
        if name not in names:
            raise InvalidField(f"{path}.{name}", "is not understood")
    return value


def _text(value: Json, name: str, path: str = "") -> str:
    found = value.get(name)
    if found is None:
        return ""
    if not isinstance(found, str):
        raise InvalidField(f"{path}.{name}" if path else name, "must be text")
    return found


def _count(value: object, path: str) -> int:
    if type(value) is not int or not 0 <= value < 2**31:
        raise InvalidField(path, "must be a whole number that is not negative")
    return value


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"the number {text[:32]} is too large")
    return number


def _no_number(text: str) -> float:
    raise ValueError(f"{text} is no number of JSON")


# Out -----------------------------------------------------------------------------------------------------------------------


class JsonLines:
    """Writes conversations down, each as one line, compact."""

    def __init__(self, *, service_fields: bool, deleted: bool) -> None:
        self._service_fields = service_fields
        self._deleted = deleted

    def begins(self, found: Found) -> bytes:
        """What stands before the messages."""
        told: Json = {"thread_id": found.thread_id}
        for name, value in (("user_id", found.user_id), ("title", found.title), ("metadata", dict(found.metadata))):
            if value:
                told[name] = value
        if self._service_fields:
            times = (("create_time", found.created_at), ("update_time", found.updated_at), ("delete_time", found.deleted_at))
            told |= {name: _time(at) for name, at in times if at is not None}
        return _compact(told)[:-1].encode() + b',"messages":['

    def says(self, entries: Sequence[Entry], *, first: bool) -> Iterable[bytes]:
        """Some messages."""
        for message in messages_of(entries):
            if message.status != message_pb2.MESSAGE_STATUS_DELETED or self._deleted:
                yield (b"" if first else b",") + _compact(self._told(message)).encode()
                first = False

    def ends(self) -> bytes:
        """What stands behind the messages."""
        return b"]}\n"

    def _told(self, message: message_pb2.Message) -> Json:
        besides = _found_besides(message.metadata)
        labels = {
            key: message.metadata[key] for key in sorted(message.metadata.keys() - {_BESIDES + name for name in besides})
        }
        told: Json = {"role": besides.pop("role", _NAMES[message.role]), "content": _content(message)}
        if message.tool_calls:
            told["tool_calls"] = [
                {"function": {"arguments": call.arguments, "name": call.name}, "id": call.id, "type": call.type}
                for call in message.tool_calls
            ]
        for name, value in (("tool_call_id", message.tool_call_id), ("name", message.name), ("author", message.author)):
            if value:
                told[name] = value
        if message.HasField("token_count"):
            told["token_count"] = message.token_count
        if labels:
            told["metadata"] = labels
        told |= besides
        if self._service_fields:
            told |= _of_the_service(message)
        return told


def _content(message: message_pb2.Message) -> str | list[Json] | None:
    if message.parts:
        return [_told_part(part) for part in message.parts]
    if message.HasField("content"):
        return message.content
    # Nothing was put in its place: null would be no message.
    return "" if message.status == message_pb2.MESSAGE_STATUS_REDACTED and not message.tool_calls else None


def _told_part(part: message_pb2.Part) -> Json:
    match part.WhichOneof("kind"):
        case "text":
            return {"type": "text", "text": part.text}
        case "image":
            return {"type": "image_url", "image_url": _told_reference(part.image, _IMAGE)}
        case "file":
            size = {"size_bytes": part.file.size_bytes} if part.file.size_bytes else {}
            return {"type": "file", "file": _told_reference(part.file, _FILE) | size}
    if part.data.media_type == FOREIGN_PART:
        foreign = _read_again(part.data.json)
        if isinstance(foreign, dict):
            return foreign
    return (
        {"type": "json"} | ({"media_type": part.data.media_type} if part.data.media_type else {}) | {"json": part.data.json}
    )


def _told_reference(reference: message_pb2.ImageRef | message_pb2.FileRef, names: Iterable[tuple[str, str]]) -> Json:
    return {name: value for field, name in names if (value := getattr(reference, field))}


def _found_besides(metadata: Mapping[str, str]) -> Json:
    """The fields that an import has put into the metadata. What only looks like one stays there."""
    found: Json = {}
    for key in sorted(metadata):
        name = key.removeprefix(_BESIDES)
        if name == key or (name in _OF_MESSAGES | _SET_BY_THE_SERVICE and name != "role"):
            continue
        value = _read_again(metadata[key])
        if value is not _NOT_JSON and (name != "role" or value == "developer"):
            found[name] = value
    return found


_NOT_JSON = object()


def _read_again(text: str) -> Any:
    try:
        return json.loads(text, parse_float=_finite, parse_constant=_no_number)
    except (ValueError, RecursionError):
        return _NOT_JSON


def _of_the_service(message: message_pb2.Message) -> Json:
    told: Json = {"seq": message.seq, "turn_id": message.turn_id, "turn_index": message.turn_index}
    told["create_time"] = message.create_time.ToJsonString()
    if message.status:
        told["status"] = _STATUSES.get(message.status, str(message.status))
    if message.revision:
        told["revision"] = message.revision
    return told


def _time(at: datetime) -> str:
    return fields.timestamp(at).ToJsonString()


def _compact(value: object) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))
