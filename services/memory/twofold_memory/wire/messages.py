"""Messages and turns on the wire."""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from hashlib import sha256
from typing import TypeVar

from twofold.memory.v1 import context_pb2, conversation_pb2, message_pb2
from twofold_chassis import fields
from twofold_chassis.refusals import InvalidField
from twofold_memory import tokens, windows
from twofold_memory.contexts import Line
from twofold_memory.history import Page
from twofold_memory.threads import (
    MESSAGE_BYTES_MAX,
    TURN_BYTES_MAX,
    TURN_MESSAGES_MAX,
    Entry,
    JournaledTurn,
    KeptTurn,
    NewMessage,
    NewTurn,
    StoredTurn,
    ThreadKey,
    Usage,
    Wanted,
    Window,
)
from twofold_memory.wire import parts

_CALLS_MAX = 128
TOKENS_MAX = 1_000_000_000
_USAGE_TOKENS_MAX = 1_000_000_000_000
_SPEAKERS = {
    message_pb2.ROLE_SYSTEM: "system",
    message_pb2.ROLE_USER: "user",
    message_pb2.ROLE_ASSISTANT: "assistant",
    message_pb2.ROLE_TOOL: "tool",
}

Path = str
KeptResponse = TypeVar("KeptResponse", conversation_pb2.AppendTurnResponse, context_pb2.InvokedResponse)


def thread_key(workspace_id: str, thread_id: str) -> ThreadKey:
    """The thread that a request is about."""
    return ThreadKey(fields.identifier(workspace_id, "workspace_id"), fields.identifier(thread_id, "thread_id"))


def appended_turn(request: conversation_pb2.AppendTurnRequest) -> NewTurn:
    """The turn that AppendTurn stores."""
    usage = request.usage if request.HasField("usage") else None
    return _turn(
        request, [(f"messages[{index}]", message) for index, message in enumerate(request.messages)], usage, "messages"
    )


def exchange(request: context_pb2.InvokedRequest) -> NewTurn:
    """The turn that Invoked stores: what was asked, then what was answered."""
    for name, given in (("request_messages", request.request_messages), ("response_messages", request.response_messages)):
        if len(given) > TURN_MESSAGES_MAX:
            raise InvalidField(name, f"are {len(given)}, at most {TURN_MESSAGES_MAX} are allowed")
    messages = [(f"request_messages[{index}]", message) for index, message in enumerate(request.request_messages)]
    messages += [(f"response_messages[{index}]", message) for index, message in enumerate(request.response_messages)]
    return _turn(request, messages, request.usage if request.HasField("usage") else None, "response_messages")


def _turn(
    request: conversation_pb2.AppendTurnRequest | context_pb2.InvokedRequest,
    messages: Sequence[tuple[Path, message_pb2.Message]],
    usage: conversation_pb2.TurnUsage | None,
    field: str,
) -> NewTurn:
    key = thread_key(request.workspace_id, request.thread_id)
    user_id = fields.optional_identifier(request.user_id, "user_id")
    after = tokens.unseal(key, request.after_token, "after_token").turn_id if request.after_token else ""
    turn_id = fields.optional_identifier(request.request_id, "request_id") or fields.new_id()
    spent = given_usage(usage)
    if not 1 <= len(messages) <= TURN_MESSAGES_MAX:
        raise InvalidField(field, f"a turn has {len(messages)} messages, must have 1 to {TURN_MESSAGES_MAX}")
    new, digest, size = new_messages(messages, repr(spent).encode(), field, TURN_BYTES_MAX)
    return NewTurn(key, user_id, turn_id, digest, new, size, spent, after or None)


def wanted(request: conversation_pb2.AppendTurnRequest | context_pb2.InvokedRequest) -> Wanted:
    """What is to be done with a turn before the answer."""
    try:
        return Wanted(request.durability)
    except ValueError:
        raise InvalidField("durability", "must be one of the durabilities of the contract") from None


def new_messages(
    messages: Sequence[tuple[Path, message_pb2.Message]], besides: bytes, field: str, bytes_max: int
) -> tuple[list[NewMessage], bytes, int]:
    """Messages that are to be stored, a hash of them and of what is given `besides`, and their bytes together."""
    new = [_message(message, path) for path, message in messages]
    digest, size = sha256(besides), 0
    for _, message in messages:
        body = message.SerializeToString(deterministic=True)
        digest.update(len(body).to_bytes(8, "big"))
        digest.update(body)
        size += len(body)
    if size > bytes_max:
        raise InvalidField(field, f"have {size} bytes together, at most {bytes_max} are allowed")
    return new, digest.digest(), size


def given_usage(usage: conversation_pb2.TurnUsage | None) -> Usage | None:
    """What a turn consumed, if that is said."""
    if usage is None:
        return None
    return Usage(
        fields.whole(usage.input_tokens, "usage.input_tokens", least=0, most=_USAGE_TOKENS_MAX),
        fields.whole(usage.output_tokens, "usage.output_tokens", least=0, most=_USAGE_TOKENS_MAX),
    )


def _message(message: message_pb2.Message, path: Path) -> NewMessage:
    if message.role not in _SPEAKERS:
        raise InvalidField(f"{path}.role", "must be one of the roles of the contract")
    content = _content(message, path)
    token_count = None
    if message.HasField("token_count"):
        token_count = fields.whole(message.token_count, f"{path}.token_count", least=0, most=TOKENS_MAX)
    _check_output_only(message, path)
    return NewMessage(int(message.role), content, _rest(message, path), token_count)


def _content(message: message_pb2.Message, path: Path) -> str | None:
    if message.HasField("content"):
        if message.parts:
            raise InvalidField(f"{path}.content", "is not for a message with parts: its text is one of them")
        return fields.text(message.content, f"{path}.content", bytes_max=MESSAGE_BYTES_MAX)
    if not message.tool_calls and not message.parts:
        raise InvalidField(f"{path}.content", "is required in a message without tool_calls and parts")
    return None


def _check_output_only(message: message_pb2.Message, path: Path) -> None:
    for name, given in (
        ("seq", message.seq),
        ("turn_id", message.turn_id),
        ("turn_index", message.turn_index),
        ("create_time", message.HasField("create_time")),
        ("status", message.status),
        ("revision", message.revision),
    ):
        if given:
            raise InvalidField(f"{path}.{name}", "is set by the service and must be empty")


def _rest(message: message_pb2.Message, path: Path) -> bytes:
    """The remainder of a message, checked and encoded; most messages have none."""
    is_result = message.role == message_pb2.ROLE_TOOL
    if is_result or message.tool_call_id:
        if not is_result:
            raise InvalidField(f"{path}.tool_call_id", "is only for messages of ROLE_TOOL")
        fields.identifier(message.tool_call_id, f"{path}.tool_call_id")
    if message.tool_calls:
        _check_calls(message, path)
    fields.line(message.name, f"{path}.name", bytes_max=255)
    fields.line(message.author, f"{path}.author", bytes_max=255)
    if message.metadata:
        fields.labels(message.metadata, f"{path}.metadata")
    if message.parts:
        parts.check(message.parts, f"{path}.parts")
    if not (is_result or message.tool_calls or message.name or message.author or message.metadata or message.parts):
        return b""
    rest = message_pb2.Message()
    rest.CopyFrom(message)
    for name in ("role", "content", "token_count"):
        rest.ClearField(name)
    rest.DiscardUnknownFields()
    encoded: bytes = rest.SerializeToString(deterministic=True)
    if len(encoded) > MESSAGE_BYTES_MAX:
        raise InvalidField(path, f"has {len(encoded)} bytes besides its content, at most {MESSAGE_BYTES_MAX} are allowed")
    return encoded


def _check_calls(message: message_pb2.Message, path: Path) -> None:
    if message.role != message_pb2.ROLE_ASSISTANT:
        raise InvalidField(f"{path}.tool_calls", "are only for messages of ROLE_ASSISTANT")
    if len(message.tool_calls) > _CALLS_MAX:
        raise InvalidField(f"{path}.tool_calls", f"are {len(message.tool_calls)}, at most {_CALLS_MAX} are allowed")
    for index, call in enumerate(message.tool_calls):
        where = f"{path}.tool_calls[{index}]"
        fields.identifier(call.id, f"{where}.id")
        fields.identifier(call.type, f"{where}.type")
        fields.identifier(call.name, f"{where}.name")
        fields.text(call.arguments, f"{where}.arguments", bytes_max=MESSAGE_BYTES_MAX)


def messages_of(entries: Iterable[Entry]) -> list[message_pb2.Message]:
    """Stored messages as messages of the wire. (Any answer with `messages` as its first field would serve to parse them.)"""
    frames = b"".join(entry.frame for entry in entries)
    return list(conversation_pb2.GetTurnResponse.FromString(frames).messages)


def lines_of(messages: Sequence[message_pb2.Message]) -> list[Line]:
    """What a context must know of the messages. A deleted one counts as the result of a call that nobody made: it is left
    out, and its turn begins with the next message."""
    lines, begins = [], False
    for message in messages:
        is_deleted = message.status == message_pb2.MESSAGE_STATUS_DELETED
        begins = begins or message.turn_index == 0
        lines.append(
            Line(
                speaker=_SPEAKERS[message.role],
                text=_spoken(message),
                tokens=message.token_count if message.HasField("token_count") or is_deleted else None,
                starts_turn=begins,
                calls=[call.id for call in message.tool_calls],
                answers="" if is_deleted else message.tool_call_id if message.role == message_pb2.ROLE_TOOL else None,
                bytes=message.ByteSize(),
            )
        )
        begins = begins and is_deleted
    return lines


def _spoken(message: message_pb2.Message) -> str:
    said = [parts.spoken(message.parts) if message.parts else message.content]
    said += [f"[calls {call.name}({call.arguments})]" for call in message.tool_calls]
    return " ".join(piece for piece in said if piece)


def append_turn_response(turn: NewTurn, kept: KeptTurn | JournaledTurn) -> conversation_pb2.AppendTurnResponse:
    """The answer of an append."""
    return _kept(conversation_pb2.AppendTurnResponse(), turn, kept)


def invoked_response(turn: NewTurn, kept: KeptTurn | JournaledTurn) -> context_pb2.InvokedResponse:
    """The answer of an exchange that was kept."""
    return _kept(context_pb2.InvokedResponse(), turn, kept)


def _kept(response: KeptResponse, turn: NewTurn, kept: KeptTurn | JournaledTurn) -> KeptResponse:
    response.turn_id = turn.turn_id
    response.duplicate = kept.duplicate
    if isinstance(kept, JournaledTurn):
        response.durability = message_pb2.DURABILITY_JOURNALED
        response.weak = kept.weak
        response.thread_token = tokens.seal(turn.key, 0, 0, turn.turn_id, waits=True)
        return response
    response.first_seq = kept.first_seq
    response.last_seq = kept.last_seq
    response.durability = message_pb2.DURABILITY_COMMITTED
    response.thread_token = tokens.seal(turn.key, kept.epoch, kept.last_seq, turn.turn_id)
    response.create_time.FromDatetime(kept.created_at)
    response.order_unverified = kept.order_unverified
    return response


def get_turn_response(key: ThreadKey, turn: StoredTurn) -> conversation_pb2.GetTurnResponse:
    """One turn with its messages."""
    usage = None
    if turn.usage is not None:
        usage = conversation_pb2.TurnUsage(input_tokens=turn.usage.input_tokens, output_tokens=turn.usage.output_tokens)
    return conversation_pb2.GetTurnResponse(
        messages=messages_of(turn.entries), usage=usage, thread_token=tokens.seal(key, turn.epoch, turn.last_seq)
    )


def list_messages_response(page: Page, query: Sequence[object]) -> conversation_pb2.ListMessagesResponse:
    """A page of messages."""
    following = fields.page_token(query, [page.entries[-1].seq]) if page.more else ""
    return conversation_pb2.ListMessagesResponse(messages=messages_of(page.entries), next_page_token=following)


def get_message_response(message: Entry) -> conversation_pb2.GetMessageResponse:
    """One message."""
    return conversation_pb2.GetMessageResponse(message=messages_of([message])[0])


class EncodedWindow:
    """A ReadWindowResponse that is put together from stored bytes. It is serialised like a message, and nothing else."""

    def __init__(self, key: ThreadKey, window: Window, budget: int | None = None) -> None:
        self._key = key
        self._window, self._tokens = (window, 0) if budget is None else _within(window, budget)

    def SerializeToString(self) -> bytes:  # noqa: N802  (the name the server calls)
        """The encoded message: the frames of `messages`, then all other fields."""
        window = self._window
        remainder = conversation_pb2.ReadWindowResponse(
            source=message_pb2.ReadSource.ValueType(window.source.value),
            completeness=message_pb2.Completeness.ValueType(window.completeness.value),
            as_of_seq=window.as_of_seq,
            truncated=window.truncated,
            token_count=self._tokens,
            thread_token=tokens.seal(
                self._key, window.epoch, window.as_of_seq, window.waiting_turn, waits=bool(window.waiting_turn)
            ),
        )
        return b"".join((*[entry.frame for entry in window.entries], remainder.SerializeToString()))


def _within(window: Window, budget: int) -> tuple[Window, int]:
    """The window cut to a budget of tokens, and what it costs."""
    costs = [line.cost for line in lines_of(messages_of(window.entries))]
    kept = windows.within(window.entries, costs, budget)
    left_out = len(window.entries) - kept
    cut = replace(window, entries=window.entries[left_out:], truncated=window.truncated or left_out > 0)
    return cut, sum(costs[left_out:])
