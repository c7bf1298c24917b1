"""Proto ↔ domain for what the router asks of memory. Pure."""

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp

from twofold.memory.v1 import context_pb2, conversation_pb2, message_pb2, turn_pb2
from twofold_chassis import fields
from twofold_router.agents import Answer, Message, ToolCall, Usage
from twofold_router.conversations import (
    Context,
    Debt,
    Exchange,
    Hold,
    KeptTurn,
    Opened,
    Opening,
    Policy,
    Receipt,
    TurnKey,
    Wanted,
)
from twofold_router.ledger import Owed, UsageEvent

_MESSAGE_TOKENS_MAX = 1_000_000_000
# Labels of an answer, so that a replay can say them again.
_FINISH_REASON = "finish_reason"
_CAUSE = "interrupted_by"
# What memory takes of an answer that is not whole: beside its text there must be room for what stands around it.
_PARTIAL_BYTES_MAX = 1024 * 1024 - 4096
_REASON_BYTES_MAX = 1024

_ROLES = {
    message_pb2.ROLE_SYSTEM: "system",
    message_pb2.ROLE_USER: "user",
    message_pb2.ROLE_ASSISTANT: "assistant",
    message_pb2.ROLE_TOOL: "tool",
}
_ROLE_NUMBERS = {role: number for number, role in _ROLES.items()}
_POLICIES = {
    Policy.REJECT: turn_pb2.TURN_POLICY_REJECT,
    Policy.QUEUE: turn_pb2.TURN_POLICY_QUEUE,
    Policy.TAKE_OVER: turn_pb2.TURN_POLICY_TAKE_OVER,
}


def invoking_request(wanted: Wanted) -> context_pb2.InvokingRequest:
    """Which context a turn needs."""
    return context_pb2.InvokingRequest(
        workspace_id=wanted.workspace_id,
        thread_id=wanted.thread_id or "",
        user_id=wanted.user_id,
        message_count_max=wanted.messages_max,
        token_count_max=wanted.tokens_max,
        with_open_calls=wanted.open_calls,
    )


def context(response: context_pb2.InvokingResponse) -> Context:
    """What is known before a turn."""
    return Context(
        messages=tuple(_said(message) for message in response.messages),
        preferences=tuple((preference.key, preference.value) for preference in response.preferences),
        summary=response.summary.text,
        documents=tuple((document.title or document.document_id, document.url) for document in response.documents),
        text=response.text,
        source=response.source,
        completeness=response.completeness,
    )


def begin_request(opening: Opening) -> turn_pb2.BeginTurnRequest:
    """The turn that is to be opened."""
    request = turn_pb2.BeginTurnRequest(
        workspace_id=opening.turn.workspace_id,
        thread_id=opening.turn.thread_id,
        user_id=opening.user_id,
        request_id=opening.turn.operation_id,
        messages=[_word(word) for word in opening.words],
        lease_duration=_span(opening.lease_s),
        holder=opening.holder,
        policy=_POLICIES[opening.policy],
    )
    if opening.policy is Policy.QUEUE:
        request.queue_wait.CopyFrom(_span(opening.queue_wait_s))
    return request


def opened(opening: Opening, response: turn_pb2.BeginTurnResponse) -> Opened:
    """The turn as it is."""
    if response.state != turn_pb2.TURN_STATE_OPEN:
        return Opened(None, "")
    return Opened(Hold(opening.turn, response.fence), response.holder)


def heartbeat_request(hold: Hold, agent_id: str, partial: str, lease_s: float) -> turn_pb2.HeartbeatTurnRequest:
    """A sign of life, and the answer so far."""
    return turn_pb2.HeartbeatTurnRequest(
        **_named(hold), partial_messages=_partial(partial, agent_id, ""), lease_duration=_span(lease_s)
    )


def commit_request(hold: Hold, answer: Answer, debt: Debt) -> turn_pb2.CommitTurnRequest:
    """The answer, and what it took."""
    return turn_pb2.CommitTurnRequest(
        **_named(hold),
        response_messages=[_answered(answer, debt.agent_id)],
        usage=_usage(debt.usage),
        owed_usage=_owed(debt),
    )


def abort_request(hold: Hold, partial: str, cause: str, agent_id: str, debt: Debt | None) -> turn_pb2.AbortTurnRequest:
    """What there is of an answer."""
    request = turn_pb2.AbortTurnRequest(
        **_named(hold), partial_messages=_partial(partial, agent_id, cause), reason=cause[:_REASON_BYTES_MAX]
    )
    if debt is not None:
        request.usage.CopyFrom(_usage(debt.usage))
        request.owed_usage.CopyFrom(_owed(debt))
    return request


def closed(response: turn_pb2.CommitTurnResponse | turn_pb2.AbortTurnResponse) -> Receipt:
    """That a turn is closed now."""
    return Receipt(
        first_seq=response.first_seq,
        last_seq=response.last_seq,
        create_time=_moment(response.create_time),
        durability=message_pb2.DURABILITY_COMMITTED,
        thread_token=response.thread_token,
    )


def open_turn_request(turn: TurnKey, user_id: str) -> turn_pb2.GetOpenTurnRequest:
    """Which conversation is looked at."""
    return turn_pb2.GetOpenTurnRequest(workspace_id=turn.workspace_id, thread_id=turn.thread_id, user_id=user_id)


def get_turn_request(turn: TurnKey, user_id: str) -> conversation_pb2.GetTurnRequest:
    """Which turn is looked for."""
    return conversation_pb2.GetTurnRequest(
        workspace_id=turn.workspace_id, thread_id=turn.thread_id, turn_id=turn.operation_id, user_id=user_id
    )


def invoked_request(exchange: Exchange) -> context_pb2.InvokedRequest:
    """The exchange as memory takes it."""
    request = context_pb2.InvokedRequest(
        workspace_id=exchange.turn.workspace_id,
        thread_id=exchange.turn.thread_id,
        user_id=exchange.user_id,
        request_id=exchange.turn.operation_id,
        request_messages=[_word(word) for word in exchange.words],
    )
    if exchange.answer is not None:
        message = _answered(exchange.answer, exchange.agent_id)
        if exchange.cause:
            message.metadata[_CAUSE] = exchange.cause
        request.response_messages.append(message)
    if exchange.usage is not None:
        request.usage.CopyFrom(_usage(exchange.usage))
    return request


def receipt(response: context_pb2.InvokedResponse) -> Receipt:
    """That a turn is kept now."""
    return Receipt(
        first_seq=response.first_seq,
        last_seq=response.last_seq,
        create_time=_moment(response.create_time) if response.HasField("create_time") else None,
        durability=response.durability,
        thread_token=response.thread_token,
    )


def kept_turn(response: conversation_pb2.GetTurnResponse) -> KeptTurn:
    """A turn that was kept before. One without an answer, or with one that is marked as cut off, was interrupted."""
    first, last = response.messages[0], response.messages[-1]
    answer = last if last.role == message_pb2.ROLE_ASSISTANT else None
    words = response.messages if answer is None else response.messages[:-1]
    cause = "" if answer is None else answer.metadata.get(_CAUSE, "")
    return KeptTurn(
        receipt=Receipt(
            first_seq=first.seq,
            last_seq=last.seq,
            create_time=_moment(first.create_time),
            durability=message_pb2.DURABILITY_COMMITTED,
            thread_token=response.thread_token,
        ),
        words=tuple(_said(word) for word in words),
        agent_id=None if answer is None else answer.author,
        text="" if answer is None else answer.content,
        calls=() if answer is None else _said(answer).tool_calls,
        finish_reason="" if answer is None else answer.metadata.get(_FINISH_REASON, "stop"),
        usage=Usage(response.usage.input_tokens, response.usage.output_tokens) if response.HasField("usage") else None,
        interrupted=answer is None or answer.status == message_pb2.MESSAGE_STATUS_INTERRUPTED or bool(cause),
        cause=cause,
    )


def unrecorded_request(page_token: str, count: int, min_age_s: float) -> turn_pb2.ListUnrecordedUsageRequest:
    """A page of what is owed."""
    return turn_pb2.ListUnrecordedUsageRequest(min_age=_span(min_age_s), page_size=count, page_token=page_token)


def owed(form: turn_pb2.UnrecordedUsage) -> Owed:
    """What a turn consumed, of which the ledger may not know."""
    event = UsageEvent(
        event_id=form.owed_usage.event_id,
        workspace_id=form.workspace_id,
        user_id=form.owed_usage.user_id,
        agent_id=form.owed_usage.agent_id,
        thread_id=form.thread_id,
        event_time=_moment(form.owed_usage.event_time),
        usage=Usage(form.usage.input_tokens, form.usage.output_tokens),
    )
    return Owed(event, TurnKey(form.workspace_id, form.thread_id, form.turn_id))


def acknowledge_request(turns: Sequence[TurnKey]) -> turn_pb2.AcknowledgeUsageRequest:
    """The turns whose usage the ledger has."""
    return turn_pb2.AcknowledgeUsageRequest(
        turns=[
            turn_pb2.TurnName(workspace_id=turn.workspace_id, thread_id=turn.thread_id, turn_id=turn.operation_id)
            for turn in turns
        ]
    )


def _named(hold: Hold) -> dict[str, Any]:
    return {
        "workspace_id": hold.turn.workspace_id,
        "thread_id": hold.turn.thread_id,
        "turn_id": hold.turn.operation_id,
        "fence": hold.fence,
    }


def _said(message: message_pb2.Message) -> Message:
    return Message(
        role=_ROLES[message.role],
        content=message.content if message.HasField("content") else None,
        tool_calls=tuple(ToolCall(call.id, call.type, call.name, call.arguments) for call in message.tool_calls),
        tool_call_id=message.tool_call_id or None,
        name=message.name or None,
    )


def _word(word: Message) -> message_pb2.Message:
    return message_pb2.Message(
        role=_ROLE_NUMBERS[word.role], content=word.content, tool_call_id=word.tool_call_id or "", name=word.name or ""
    )


def _partial(text: str, agent_id: str, cause: str) -> list[message_pb2.Message]:
    if not text:
        return []
    message = message_pb2.Message(role=message_pb2.ROLE_ASSISTANT, content=_cut(text), author=agent_id)
    if cause:
        message.metadata[_CAUSE] = cause
    return [message]


def _cut(text: str) -> str:
    encoded = text.encode()
    return text if len(encoded) <= _PARTIAL_BYTES_MAX else encoded[:_PARTIAL_BYTES_MAX].decode(errors="ignore")


def _answered(answer: Answer, agent_id: str) -> message_pb2.Message:
    message = message_pb2.Message(
        role=message_pb2.ROLE_ASSISTANT,
        content=answer.text,
        tool_calls=[
            message_pb2.ToolCall(id=call.id, type=call.type, name=call.name, arguments=call.arguments)
            for call in answer.tool_calls
        ],
        author=agent_id,
        metadata={_FINISH_REASON: answer.finish_reason},
    )
    if answer.usage is not None and answer.usage.output_tokens <= _MESSAGE_TOKENS_MAX:
        message.token_count = answer.usage.output_tokens
    return message


def _usage(usage: Usage) -> conversation_pb2.TurnUsage:
    return conversation_pb2.TurnUsage(input_tokens=usage.input_tokens, output_tokens=usage.output_tokens)


def _owed(debt: Debt) -> turn_pb2.OwedUsage:
    return turn_pb2.OwedUsage(
        event_id=debt.event_id,
        user_id=debt.user_id,
        agent_id=debt.agent_id,
        event_time=fields.timestamp(debt.event_time),
    )


def _span(seconds: float) -> Duration:
    span = Duration()
    span.FromMicroseconds(max(1, round(seconds * 1e6)))
    return span


def _moment(time: Timestamp) -> datetime:
    return time.ToDatetime(tzinfo=UTC)
