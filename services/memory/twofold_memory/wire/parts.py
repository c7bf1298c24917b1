"""Parts of messages on the wire: checked, and said in one line of text."""

import json
from collections.abc import Sequence

from twofold.memory.v1 import message_pb2
from twofold_chassis import fields
from twofold_chassis.refusals import InvalidField
from twofold_memory.threads import MESSAGE_BYTES_MAX

PARTS_MAX = 64
_LINE_BYTES_MAX = 255
_SIZE_MAX = 2**53

Reference = message_pb2.FileRef | message_pb2.ImageRef


def check(parts: Sequence[message_pb2.Part], path: str) -> None:
    """Refuses what breaks a rule of the contract."""
    if len(parts) > PARTS_MAX:
        raise InvalidField(path, f"are {len(parts)}, at most {PARTS_MAX} are allowed")
    for index, part in enumerate(parts):
        _check(part, f"{path}[{index}]")


def spoken(parts: Sequence[message_pb2.Part]) -> str:
    """The parts as text: what is text as it is, of the others what they are."""
    return " ".join(map(_spoken, parts))


def _check(part: message_pb2.Part, path: str) -> None:
    match part.WhichOneof("kind"):
        case "text":
            fields.text(part.text, f"{path}.text", bytes_max=MESSAGE_BYTES_MAX)
        case "file":
            _check_reference(part.file, f"{path}.file")
            fields.whole(part.file.size_bytes, f"{path}.file.size_bytes", least=0, most=_SIZE_MAX)
        case "image":
            _check_reference(part.image, f"{path}.image")
            fields.line(part.image.detail, f"{path}.image.detail", bytes_max=_LINE_BYTES_MAX)
        case "data":
            _check_data(part.data, f"{path}.data")
        case _:
            raise InvalidField(path, "must be text, a file, an image or data")


def _check_reference(reference: Reference, path: str) -> None:
    if not reference.url and not reference.file_id:
        raise InvalidField(f"{path}.url", "is required without file_id")
    fields.line(reference.url, f"{path}.url", bytes_max=MESSAGE_BYTES_MAX)
    for name, value in (("file_id", reference.file_id), ("media_type", reference.media_type), ("name", reference.name)):
        fields.line(value, f"{path}.{name}", bytes_max=_LINE_BYTES_MAX)


def _check_data(data: message_pb2.Data, path: str) -> None:
    fields.line(data.media_type, f"{path}.media_type", bytes_max=_LINE_BYTES_MAX)
    fields.text(data.json, f"{path}.json", bytes_max=MESSAGE_BYTES_MAX, required=True)
    try:
        # Numbers stay text: they are not ours to read, however long they are.
        json.loads(data.json, parse_int=str, parse_float=str, parse_constant=_no_json)
    except (ValueError, RecursionError):
        raise InvalidField(f"{path}.json", "is not JSON") from None


def _no_json(constant: str) -> None:
    raise ValueError(constant)


def _spoken(part: message_pb2.Part) -> str:
    match part.WhichOneof("kind"):
        case "file":
            return _named("file", part.file)
        case "image":
            return _named("image", part.image)
        case "data":
            return f"[data: {part.data.json}]"
        case _:
            return part.text


def _named(what: str, reference: Reference) -> str:
    # A "data:" URL is the image itself, and no name of it.
    url = "" if reference.url.startswith("data:") else reference.url
    name = reference.name or reference.file_id or url
    return f"[{what}: {name}]" if name else f"[{what}]"
