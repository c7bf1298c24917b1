"""The OpenAI-compatible chat completions protocol, as far as a turn needs it. Pure.

Reference: the "Create chat completion" and "chat.completion.chunk" objects of that API, and "Server-sent events" of the
HTML standard for the framing of the stream.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypeGuard

from twofold_chassis import fields
from twofold_chassis.refusals import InvalidField
from twofold_router.agents import AgentFailed, Answer, Message, Prompt, Tool, ToolCall, Usage

_DONE = b"[DONE]"
_TOKENS_MAX = 10**12
# What memory keeps of an answer: so many tool calls, their words like ids, and all of them encoded in 1 MiB. A KiB of it is
# for what stands beside them (who spoke, why it stopped), and the frame of a call takes less than this.
_TOOL_CALLS_MAX = 128
_TOOL_CALLS_BYTES_MAX = 1024 * 1024 - 1024
_TOOL_CALL_FRAME_BYTES = 32
_FINISH_REASON_LENGTH_MAX = 64


def request_body(prompt: Prompt) -> bytes:
    """The body of the request to an agent."""
    body: dict[str, object] = {
        "model": prompt.model,
        "messages": [_message(message) for message in prompt.messages],
        "stream": True,
        "stream_options": {"include_usage": True},
        "user": prompt.user_id,
    }
    if prompt.tools:
        body["tools"] = [_tool(tool) for tool in prompt.tools]
    return json.dumps(body, ensure_ascii=False, separators=(",", ":")).encode()


def _message(message: Message) -> dict[str, object]:
    said: dict[str, object] = {"role": message.role, "content": message.content}
    if message.name is not None:
        said["name"] = message.name
    if message.tool_calls:
        said["tool_calls"] = [
            {"id": call.id, "type": call.type, "function": {"name": call.name, "arguments": call.arguments}}
            for call in message.tool_calls
        ]
    if message.tool_call_id is not None:
        said["tool_call_id"] = message.tool_call_id
    return said


def _tool(tool: Tool) -> dict[str, object]:
    function: dict[str, object] = {"name": tool.name}
    if tool.description:
        function["description"] = tool.description
    if tool.parameters:
        function["parameters"] = json.loads(tool.parameters)
    return {"type": "function", "function": function}


class EventStream:
    """Takes a stream of server-sent events apart. Lines end with LF, CRLF or CR; all fields but `data` are ignored."""

    def __init__(self, *, event_bytes_max: int) -> None:
        self._event_bytes_max = event_bytes_max
        self._rest: list[bytes] = []  # of a line whose end has not come yet
        self._rest_size = 0
        self._held = False
        self._data: list[bytes] = []
        self._size = 0

    def feed(self, chunk: bytes) -> list[bytes]:
        """The data of the events that are complete with this chunk."""
        self._rest.append(chunk)
        self._rest_size += len(chunk)
        lines = self._lines() if self._held or b"\n" in chunk or b"\r" in chunk else []
        if self._rest_size > self._event_bytes_max:
            raise too_large()
        return [event for line in lines if (event := self._line(line)) is not None]

    def end(self) -> list[bytes]:
        """The data of a last event whose blank line did not come any more."""
        return self.feed(b"\n\n")

    def _lines(self) -> list[bytes]:
        text = b"".join(self._rest)
        # A CR at the end may be the first half of a CRLF: it waits for the next chunk.
        self._held = text.endswith(b"\r")
        lines = text.removesuffix(b"\r").replace(b"\r\n", b"\n").replace(b"\r", b"\n").split(b"\n")
        rest = lines.pop() + (b"\r" if self._held else b"")
        self._rest, self._rest_size = [rest], len(rest)
        return lines

    def _line(self, line: bytes) -> bytes | None:
        if not line:
            event = b"\n".join(self._data) if self._data else None
            self._data, self._size = [], 0
            return event
        name, _, value = line.partition(b":")
        if name.removeprefix(b"\xef\xbb\xbf") == b"data":
            value = value.removeprefix(b" ")
            self._size += len(value) + 1  # the line's end is part of the event, and an empty line takes room as well
            if self._size > self._event_bytes_max:
                raise too_large()
            self._data.append(value)
        return None


@dataclass(slots=True)
class _Call:
    """A tool call, as far as it has come."""

    id: str = ""
    type: str = ""
    name: str = ""
    arguments: list[str] = field(default_factory=list)

    def whole(self) -> ToolCall:
        if not self.id or not self.name:
            raise _broken("a tool call has no id or name")
        return ToolCall(self.id, self.type or "function", self.name, "".join(self.arguments))


class Hearing:
    """Puts an answer together out of the pieces in which it comes, and judges each."""

    def __init__(self, *, answer_bytes_max: int) -> None:
        self._bytes_left = answer_bytes_max
        self._texts: list[str] = []
        self._calls: dict[int, _Call] = {}
        self._calls_bytes_left = _TOOL_CALLS_BYTES_MAX
        self._finish_reason: str | None = None
        self._usage: Usage | None = None
        self.done = False

    @property
    def usage(self) -> Usage | None:
        """What the agent has said that it consumed."""
        return self._usage

    @property
    def begun(self) -> bool:
        """Whether the first token has come."""
        return bool(self._texts or self._calls)

    def event(self, data: bytes) -> str:
        """Takes the data of one event; returns the text in it, which may be empty."""
        if data.strip() == _DONE:
            self.done = True
            return ""
        chunk = _object(data)
        self._take_usage(chunk)
        choice = _choice(chunk)
        return "" if choice is None else self._piece(choice, _mapping(choice.get("delta") or {}))

    def whole(self, body: bytes) -> str:
        """Takes an answer that came in one piece; returns its text."""
        completion = _object(body)
        self._take_usage(completion)
        choice = _choice(completion)
        if choice is None:
            raise _broken("it holds no choice")
        text = self._piece(choice, _mapping(choice.get("message")))
        self.done = True
        return text

    def answer(self) -> Answer:
        """The whole answer. An agent that hangs up before it has said that it is done has failed."""
        if not self.done and self._finish_reason is None:
            raise AgentFailed("the agent hung up before its answer was complete")
        calls = tuple(self._calls[index].whole() for index in sorted(self._calls))
        text = "".join(self._texts)
        return Answer(
            text=None if calls and not text else text,
            tool_calls=calls,
            finish_reason=self._finish_reason or "stop",
            usage=self._usage,
        )

    def _piece(self, choice: Mapping[str, Any], said: Mapping[str, Any]) -> str:
        self._take_finish_reason(choice.get("finish_reason"))
        for position, call in enumerate(_list(said.get("tool_calls") or [])):
            self._take_call(position, _mapping(call))
        text = self._text(said.get("content"))
        if text:
            self._texts.append(text)
        return text

    def _take_call(self, position: int, call: Mapping[str, Any]) -> None:
        index = position if call.get("index") is None else call["index"]
        if not isinstance(index, int) or not 0 <= index < _TOOL_CALLS_MAX:
            raise _broken("a tool call has no valid index")
        function = _mapping(call.get("function") or {})
        if index not in self._calls:
            self._calls_bytes_left -= _TOOL_CALL_FRAME_BYTES
        known = self._calls.setdefault(index, _Call())
        known.id = known.id or self._word(call.get("id"))
        known.type = known.type or self._word(call.get("type"))
        known.name = known.name or self._word(function.get("name"))
        arguments = self._text(function.get("arguments"))
        known.arguments.append(arguments)
        self._calls_bytes_left -= len(arguments.encode())
        if self._calls_bytes_left < 0:
            raise AgentFailed("the agent's tool calls are too large")

    def _word(self, value: object) -> str:
        word = self._text(value)
        try:
            fields.line(word, "tool_call", bytes_max=fields.ID_BYTES_MAX)
        except InvalidField:
            raise _broken("a tool call has no valid id, type or name") from None
        self._calls_bytes_left -= len(word.encode())
        return word

    def _take_usage(self, chunk: Mapping[str, Any]) -> None:
        usage = chunk.get("usage")
        if isinstance(usage, dict):
            read, written = usage.get("prompt_tokens"), usage.get("completion_tokens")
            if _is_count(read) and _is_count(written):
                self._usage = Usage(read, written)

    def _take_finish_reason(self, reason: object) -> None:
        if reason is None:
            return
        if not isinstance(reason, str) or not reason.isprintable() or not 1 <= len(reason) <= _FINISH_REASON_LENGTH_MAX:
            raise _broken("its finish_reason is not a word")
        self._text(reason)
        self._finish_reason = reason

    def _text(self, value: object) -> str:
        """Text of the agent's, judged and counted."""
        if value is None:
            return ""
        if not isinstance(value, str):
            raise _broken("text is expected where there is none")
        try:
            self._bytes_left -= len(value.encode())
        except UnicodeEncodeError:  # half of a surrogate pair
            raise _broken("its text is not Unicode") from None
        if "\0" in value:
            raise _broken("its text holds NUL")
        if self._bytes_left < 0:
            raise too_large()
        return value


def too_large() -> AgentFailed:
    """The refusal of an answer that is larger than an answer may be."""
    return AgentFailed("the agent's answer is too large")


def _broken(problem: str) -> AgentFailed:
    return AgentFailed(f"the agent's answer is not a chat completion: {problem}")


def _object(data: bytes) -> Mapping[str, Any]:
    try:
        value = json.loads(data)
    except (ValueError, RecursionError):
        raise _broken("it is not JSON") from None
    value = _mapping(value)
    if value.get("error"):
        raise AgentFailed("the agent answered with an error")
    return value


def _choice(value: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """The one choice that was asked for; a chunk that only reports usage has none."""
    for choice in _list(value.get("choices") or []):
        if _mapping(choice).get("index", 0) == 0:
            return _mapping(choice)
    return None


def _mapping(value: object) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise _broken("an object is expected where there is none")
    return value


def _list(value: object) -> list[Any]:
    if not isinstance(value, list):
        raise _broken("a list is expected where there is none")
    return value


def _is_count(value: object) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= _TOKENS_MAX
