"""Conversations in the shape of chat-completion APIs, one a line, as messages of the contract and back.

    {"thread_id": "…", "messages": [{"role": "user", "content": "…"},
      {"role": "assistant", "content": null, "tool_calls": [{"id": "…", "type": "function",
        "function": {"name": "…", "arguments": "{…}"}}]},
      {"role": "tool", "tool_call_id": "…", "name": "…", "content": "…"}, …]}

Nothing is interpreted: content has presence, arguments stay strings, so that what goes in comes out byte for byte.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from twofold.memory.v1 import message_pb2
from twofold_chassis.start import StartError

_ROLES = {
    "system": message_pb2.ROLE_SYSTEM,
    "user": message_pb2.ROLE_USER,
    "assistant": message_pb2.ROLE_ASSISTANT,
    "tool": message_pb2.ROLE_TOOL,
}
_NAMES = {value: name for name, value in _ROLES.items()}
_KEYS = {"role", "content", "tool_calls", "tool_call_id", "name"}


@dataclass(frozen=True, slots=True)
class Transcript:
    """One conversation; `sources` are its messages as they stand in the file, in this line."""

    thread_id: str
    sources: Sequence[dict[str, Any]]
    line: bytes

    def same_as(self, messages: Sequence[message_pb2.Message]) -> bool:
        """Whether these are its messages, byte for byte."""
        return self.says(list(map(source_of, messages)))

    def says(self, sources: Sequence[dict[str, Any]]) -> bool:
        """Whether these are its messages, as JSON."""
        return [_canonical(source) for source in self.sources] == [_canonical(source) for source in sources]


def read(path: Path) -> list[Transcript]:
    """All conversations of a file. Raises StartError that names the line."""
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise StartError(f"cannot read {path}: {error}") from None
    transcripts = [_transcript(number, line) for number, line in enumerate(lines, 1) if line.strip()]
    if not transcripts:
        raise StartError(f"{path} holds no conversation")
    return transcripts


def message_of(source: dict[str, Any]) -> message_pb2.Message:
    """A message of the file as one of the contract. Raises ValueError, KeyError or TypeError if it is none."""
    unknown = source.keys() - _KEYS
    if unknown:
        raise ValueError(f"{', '.join(sorted(unknown))} is not understood")
    message = message_pb2.Message(role=_ROLES[source["role"]], name=source.get("name", ""))
    message.tool_call_id = source.get("tool_call_id", "")
    if source.get("content") is not None:
        message.content = source["content"]
    for call in source.get("tool_calls") or ():
        function = call["function"]
        message.tool_calls.add(id=call["id"], type=call["type"], name=function["name"], arguments=function["arguments"])
    return message


def source_of(message: message_pb2.Message) -> dict[str, Any]:
    """A message of the contract in the shape of the file."""
    source: dict[str, Any] = {
        "role": _NAMES[message.role],
        "content": message.content if message.HasField("content") else None,
    }
    if message.tool_calls:
        source["tool_calls"] = [
            {"id": call.id, "type": call.type, "function": {"name": call.name, "arguments": call.arguments}}
            for call in message.tool_calls
        ]
    for key in ("tool_call_id", "name"):
        if value := getattr(message, key):
            source[key] = value
    return source


def _transcript(number: int, line: str) -> Transcript:
    try:
        value = json.loads(line)
        if not isinstance(value, dict):
            raise ValueError("a conversation must be an object with thread_id and messages")
        transcript = Transcript(value["thread_id"], value["messages"], line.encode())
        for source in transcript.sources:
            message_of(source)
    except KeyError as error:
        raise StartError(f"line {number}: {error} is missing or not known") from None
    except (ValueError, TypeError, AttributeError) as error:
        raise StartError(f"line {number}: {error}") from None
    return transcript


def _canonical(source: dict[str, Any]) -> bytes:
    present = {key: value for key, value in source.items() if value is not None or key == "content"}
    return json.dumps({"content": None, **present}, sort_keys=True, ensure_ascii=False).encode()
