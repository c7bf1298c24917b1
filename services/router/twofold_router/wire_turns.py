"""Proto ↔ domain for turns. Pure; requests are validated while they are read."""

import json
import re
from collections.abc import Sequence
from datetime import timedelta
from typing import TypeVar

from twofold.memory.v1 import message_pb2
from twofold.memory.v1 import turn_pb2 as memory_turn_pb2
from twofold.router.v1 import routing_pb2, turn_pb2
from twofold_chassis import fields
from twofold_chassis.refusals import InvalidField
from twofold_router import wire
from twofold_router.agents import Tool
from twofold_router.asks import Ask, Name, ToolResult
from twofold_router.conversations import Policy
from twofold_router.limits import Claim
from twofold_router.turn_events import Calls, Completed, Delta, Event, Started, Waiting

_MESSAGE_BYTES_MAX = 1024 * 1024
_INSTRUCTIONS_BYTES_MAX = 64 * 1024
_OPERATION_ID_BYTES_MAX = 250
_TOOLS_MAX = 128
_TOOLS_BYTES_MAX = 256 * 1024
_DESCRIPTION_BYTES_MAX = 16 * 1024
_PARAMETERS_BYTES_MAX = 64 * 1024
_RESULTS_MAX = 128
# What is said in a turn may have 2 MiB in all in memory: some of it stands around the results.
_RESULTS_BYTES_MAX = 2 * 1024 * 1024 - 128 * 1024
_QUEUE_WAIT, _QUEUE_WAIT_MAX = timedelta(seconds=30), timedelta(minutes=15)
_OFFSET_MAX = 1024 * 1024

_is_tool_name = re.compile(r"[a-zA-Z0-9_-]{1,64}").fullmatch
_POLICIES = {
    memory_turn_pb2.TURN_POLICY_UNSPECIFIED: Policy.REJECT,
    memory_turn_pb2.TURN_POLICY_REJECT: Policy.REJECT,
    memory_turn_pb2.TURN_POLICY_QUEUE: Policy.QUEUE,
    memory_turn_pb2.TURN_POLICY_TAKE_OVER: Policy.TAKE_OVER,
}
Response = TypeVar("Response", turn_pb2.RunResponse, turn_pb2.AttachResponse)


def ask(request: turn_pb2.RunRequest) -> Ask:
    """What a caller asks for."""
    given_id = fields.optional_identifier(request.operation_id, "operation_id", bytes_max=_OPERATION_ID_BYTES_MAX)
    operation_id = given_id or fields.new_id()
    thread_id = fields.optional_identifier(request.thread_id, "thread_id")
    results = _results(request.tool_results, thread_id)
    message = fields.text(request.message, "message", bytes_max=_MESSAGE_BYTES_MAX, required=not results)
    if results and message:
        raise InvalidField("message", "is not allowed with tool_results")
    policy = _POLICIES.get(request.turn_policy)
    if policy is None:
        raise InvalidField("turn_policy", "must be one of the policies of the contract")
    wait = _QUEUE_WAIT
    if request.HasField("queue_wait"):
        wait = fields.span(request.queue_wait, "queue_wait", most=_QUEUE_WAIT_MAX)
    return Ask(
        question=wire.question(request)._replace(claim=Claim(operation_id)),
        thread_id=thread_id,
        operation_id=operation_id,
        turn_is_new=given_id is None,
        message=message,
        instructions=fields.text(request.instructions, "instructions", bytes_max=_INSTRUCTIONS_BYTES_MAX),
        tools=_tools(request.tools),
        results=results,
        keep_running=request.keep_running,
        policy=policy,
        queue_wait_s=wait.total_seconds(),
    )


def attached(request: turn_pb2.AttachRequest) -> tuple[Name, str | None, int]:
    """Whose turn is listened to, and how much of its answer is known."""
    name, thread_id = _name(request)
    return name, thread_id, fields.whole(request.text_offset, "text_offset", least=0, most=_OFFSET_MAX)


def cancelled(request: turn_pb2.CancelTurnRequest) -> tuple[Name, str | None]:
    """Whose turn is to end."""
    return _name(request)


def run_response(event: Event) -> turn_pb2.RunResponse:
    """One event of a turn."""
    return _filled(turn_pb2.RunResponse(), event)


def attach_response(event: Event) -> turn_pb2.AttachResponse:
    """One event of a turn."""
    return _filled(turn_pb2.AttachResponse(), event)


def _name(request: turn_pb2.AttachRequest | turn_pb2.CancelTurnRequest) -> tuple[Name, str | None]:
    name = Name(
        fields.identifier(request.workspace_id, "workspace_id"),
        fields.identifier(request.user_id, "user_id"),
        fields.identifier(request.operation_id, "operation_id", bytes_max=_OPERATION_ID_BYTES_MAX),
    )
    return name, fields.optional_identifier(request.thread_id, "thread_id")


def _tools(given: Sequence[turn_pb2.Tool]) -> tuple[Tool, ...]:
    if len(given) > _TOOLS_MAX:
        raise InvalidField("tools", f"are {len(given)}, at most {_TOOLS_MAX} are allowed")
    tools: list[Tool] = []
    size = 0
    for index, tool in enumerate(given):
        path = f"tools[{index}]"
        if not _is_tool_name(tool.name):
            raise InvalidField(f"{path}.name", 'must be 1 to 64 of a-z, A-Z, 0-9, "_" and "-"')
        if any(tool.name == known.name for known in tools):
            raise InvalidField(f"{path}.name", "stands twice")
        tools.append(
            Tool(
                tool.name,
                fields.text(tool.description, f"{path}.description", bytes_max=_DESCRIPTION_BYTES_MAX),
                _json_object(tool.parameters_json, f"{path}.parameters_json"),
            )
        )
        size += tool.ByteSize()
    if size > _TOOLS_BYTES_MAX:
        raise InvalidField("tools", f"have {size} bytes together, at most {_TOOLS_BYTES_MAX} are allowed")
    return tuple(tools)


def _json_object(text: str, path: str) -> str:
    fields.text(text, path, bytes_max=_PARAMETERS_BYTES_MAX)
    if not text:
        return ""
    try:
        value = json.loads(text, parse_constant=_no_constant)
    except (ValueError, RecursionError):
        raise InvalidField(path, "is not JSON") from None
    if not isinstance(value, dict):
        raise InvalidField(path, "must be a JSON object")
    return text


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON")


def _results(given: Sequence[turn_pb2.ToolResult], thread_id: str | None) -> tuple[ToolResult, ...]:
    if not given:
        return ()
    if thread_id is None:
        raise InvalidField("tool_results", "need a thread_id: the calls stand in the conversation")
    if len(given) > _RESULTS_MAX:
        raise InvalidField("tool_results", f"are {len(given)}, at most {_RESULTS_MAX} are allowed")
    results: list[ToolResult] = []
    size = 0
    for index, result in enumerate(given):
        path = f"tool_results[{index}]"
        call_id = fields.identifier(result.tool_call_id, f"{path}.tool_call_id")
        if any(call_id == known.call_id for known in results):
            raise InvalidField(f"{path}.tool_call_id", "stands twice")
        results.append(ToolResult(call_id, fields.text(result.content, f"{path}.content", bytes_max=_MESSAGE_BYTES_MAX)))
        size += result.ByteSize()
    if size > _RESULTS_BYTES_MAX:
        raise InvalidField("tool_results", f"have {size} bytes together, at most {_RESULTS_BYTES_MAX} are allowed")
    return tuple(results)


def _filled(response: Response, event: Event) -> Response:
    if isinstance(event, Delta):
        response.delta.text, response.delta.offset = event.text, event.offset
    elif isinstance(event, Started):
        response.started.CopyFrom(_started(event))
    elif isinstance(event, Waiting):
        response.waiting.attempts = event.attempts
        response.waiting.duration.CopyFrom(wire.duration(event.waited_s))
        response.waiting.duration_max.CopyFrom(wire.duration(event.wait_max_s))
    elif isinstance(event, Calls):
        for call in event.calls:
            response.tool_calls.calls.add(id=call.id, type=call.type, name=call.name, arguments=call.arguments)
    else:
        response.completed.CopyFrom(_completed(event))
    return response


def _started(event: Started) -> turn_pb2.Started:
    source = event.route_source
    return turn_pb2.Started(
        operation_id=event.operation_id,
        context_messages=event.context_messages,
        context_preferences=event.context_preferences,
        context_source=message_pb2.ReadSource.ValueType(event.context_source),
        context_completeness=message_pb2.Completeness.ValueType(event.context_completeness),
        route_source=routing_pb2.ROUTE_SOURCE_UNSPECIFIED if source is None else wire.SOURCES[source],
        replayed=event.replayed,
        resolve_duration=wire.duration(event.resolve_s),
        context_duration=wire.duration(event.context_s),
        unheld=event.unheld,
        router=event.router,
    )


def _completed(event: Completed) -> turn_pb2.Completed:
    completed = turn_pb2.Completed(
        finish_reason=event.finish_reason,
        input_tokens=event.usage.input_tokens,
        output_tokens=event.usage.output_tokens,
        usage_recorded=event.usage_recorded,
        first_token_duration=wire.duration(event.first_token_s),
        agent_duration=wire.duration(event.agent_s),
        keep_duration=wire.duration(event.keep_s),
    )
    if event.receipt is not None:
        completed.first_seq = event.receipt.first_seq
        completed.last_seq = event.receipt.last_seq
        completed.durability = message_pb2.Durability.ValueType(event.receipt.durability)
        completed.thread_token = event.receipt.thread_token
    return completed
