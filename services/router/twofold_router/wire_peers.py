"""Proto ↔ domain for what the router asks of the registry and of memory. Pure."""

from collections.abc import Callable
from datetime import UTC, datetime

from google.protobuf.timestamp_pb2 import Timestamp

from twofold.memory.v1 import context_pb2, conversation_pb2, message_pb2
from twofold.registry.v1 import agent_pb2, change_pb2, permission_pb2, usage_pb2
from twofold_chassis import fields
from twofold_chassis.revisions import revision_of
from twofold_router.agents import Answer, Limits, Message, ToolCall, Usage
from twofold_router.conversations import Context, Exchange, KeptTurn, Receipt, TurnKey, Wanted
from twofold_router.copies import Told
from twofold_router.knowledge import (
    Place,
    Stamp,
    Thing,
    agent_thing,
    permission_thing,
    plan_thing,
    route_thing,
    user_thing,
    workspace_thing,
)
from twofold_router.ledger import UsageEvent
from twofold_router.outcomes import TargetKey
from twofold_router.permissions import Permission, Verdict
from twofold_router.routes import AgentSettings, Observation, Route, Target, TargetState

_MESSAGE_TOKENS_MAX = 1_000_000_000
_FINISH_REASON = "finish_reason"  # kept as a label of the answer, so that a replay can say it again

_ROLES = {
    message_pb2.ROLE_SYSTEM: "system",
    message_pb2.ROLE_USER: "user",
    message_pb2.ROLE_ASSISTANT: "assistant",
    message_pb2.ROLE_TOOL: "tool",
}


def opening(router: change_pb2.WatchRouter, known: Place) -> change_pb2.WatchOpen:
    """Who follows the changes, and from where."""
    opened = change_pb2.WatchOpen(router=router)
    if known.epoch:
        opened.place.CopyFrom(change_pb2.WatchPlace(epoch=known.epoch, revision=known.revision, tag=known.tag))
    return opened


def place(form: change_pb2.WatchPlace) -> Place:
    """A place in the history."""
    return Place(form.epoch, form.revision, form.tag)


def changed_things(change: change_pb2.WatchChange) -> list[Thing]:
    """What a revision changed."""
    return [_THINGS[item.kind](item) for item in change.items if item.kind in _THINGS]


def checkpoint(form: change_pb2.WatchCheckpoint) -> tuple[int, int, int, float, float, int]:
    """What `Knowledge.checked` takes."""
    read_s = form.read_time.ToNanoseconds() / 1e9
    return form.nonce, form.epoch, form.revision, read_s, form.registered_ms / 1000, form.routers


_THINGS: dict[change_pb2.WatchItemKind.ValueType, Callable[[change_pb2.WatchItem], Thing]] = {
    change_pb2.WATCH_ITEM_KIND_WORKSPACE: lambda item: workspace_thing(item.workspace_id),
    change_pb2.WATCH_ITEM_KIND_PLAN: lambda item: plan_thing(item.workspace_id),
    change_pb2.WATCH_ITEM_KIND_USER: lambda item: user_thing(item.workspace_id, item.user_id),
    change_pb2.WATCH_ITEM_KIND_AGENT: lambda item: agent_thing(item.workspace_id, item.agent_id),
    change_pb2.WATCH_ITEM_KIND_ROUTE: lambda item: route_thing(item.workspace_id, item.agent_id),
    change_pb2.WATCH_ITEM_KIND_PERMISSION: lambda item: permission_thing(item.workspace_id, item.user_id, item.agent_id),
}

_VERDICTS = {
    permission_pb2.CHECK_REASON_GRANT: Verdict.GRANT,
    permission_pb2.CHECK_REASON_ROLE: Verdict.ROLE,
    permission_pb2.CHECK_REASON_AGENT_UNKNOWN: Verdict.AGENT_UNKNOWN,
    permission_pb2.CHECK_REASON_AGENT_GONE: Verdict.AGENT_GONE,
}


def permission(response: permission_pb2.CheckResponse) -> Told[Permission]:
    """What the registry says of a user and an agent."""
    ends_s = response.expire_time.ToNanoseconds() / 1e9 if response.HasField("expire_time") else None
    value = Permission(_VERDICTS.get(response.reason, Verdict.DENIED), ends_s, response.read_time.ToNanoseconds() / 1e9)
    return Told(value, _stamp(response.revision_token), is_no=not response.allowed)


def _stamp(token: bytes) -> Stamp:
    revision = revision_of(token, "revision_token")
    assert revision is not None, "the registry says at which revision it was asked"
    return Stamp(revision.epoch, revision.number)


def told_route(response: agent_pb2.GetAgentResponse) -> Told[Route | None]:
    """Where an agent lives."""
    return Told(route(response), _stamp(response.revision_token), is_no=False)


def route(response: agent_pb2.GetAgentResponse) -> Route:
    """What a turn needs of an agent."""
    agent = response.agent
    settings = agent.settings
    # One of a state that is not known here, a newer registry's, says nothing.
    seen = {each.target: _observation(each) for each in agent.observations if each.state in _OBSERVED}
    return Route(
        url=agent.url,
        published=agent.state == agent_pb2.AGENT_STATE_PUBLISHED,
        settings=AgentSettings(
            instructions=settings.instructions,
            model=settings.model,
            as_messages=settings.context_delivery == agent_pb2.CONTEXT_DELIVERY_MESSAGES,
            context_messages_max=settings.context_messages_max,
            context_tokens_max=settings.context_tokens_max,
            limits=Limits(
                first_token_s=settings.first_token_timeout.ToMicroseconds() / 1e6,
                turn_s=settings.turn_timeout.ToMicroseconds() / 1e6,
            ),
        ),
        generation=agent.generation,
        gone=agent.state == agent_pb2.AGENT_STATE_GONE,
        targets=tuple(Target(target.name, target.url, target.weight, seen.get(target.name)) for target in agent.targets),
        seen=seen.get(""),
    )


def observation_request(key: TargetKey, seen: Observation) -> agent_pb2.ReportAgentStateRequest:
    """What the registry is told of a target."""
    observation = agent_pb2.AgentObservation(
        target=key.name,
        state=agent_pb2.ObservedState.Value(f"OBSERVED_STATE_{seen.state.name}"),
        generation=key.generation,
        message=seen.message,
    )
    observation.observe_time.FromNanoseconds(round(seen.seen_s * 1e9))
    return agent_pb2.ReportAgentStateRequest(workspace_id=key.workspace_id, agent_id=key.agent_id, observation=observation)


def _observation(form: agent_pb2.AgentObservation) -> Observation:
    return Observation(_OBSERVED[form.state], form.observe_time.ToNanoseconds() / 1e9, form.message)


_OBSERVED = {
    agent_pb2.OBSERVED_STATE_READY: TargetState.READY,
    agent_pb2.OBSERVED_STATE_COLD: TargetState.COLD,
    agent_pb2.OBSERVED_STATE_STARTING: TargetState.STARTING,
    agent_pb2.OBSERVED_STATE_DRAINING: TargetState.DRAINING,
    agent_pb2.OBSERVED_STATE_FAILING: TargetState.FAILING,
}


def usage_event(event: UsageEvent) -> usage_pb2.UsageEvent:
    """The event as the registry takes it."""
    return usage_pb2.UsageEvent(
        event_id=event.event_id,
        user_id=event.user_id,
        agent_id=event.agent_id,
        thread_id=event.thread_id or "",
        event_time=fields.timestamp(event.event_time),
        messages=1,
        input_tokens=event.usage.input_tokens,
        output_tokens=event.usage.output_tokens,
    )


def invoking_request(wanted: Wanted) -> context_pb2.InvokingRequest:
    """Which context a turn needs."""
    return context_pb2.InvokingRequest(
        workspace_id=wanted.workspace_id,
        thread_id=wanted.thread_id or "",
        user_id=wanted.user_id,
        message_count_max=wanted.messages_max,
        token_count_max=wanted.tokens_max,
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


def get_turn_request(turn: TurnKey, user_id: str) -> conversation_pb2.GetTurnRequest:
    """Which turn is looked for."""
    return conversation_pb2.GetTurnRequest(
        workspace_id=turn.workspace_id, thread_id=turn.thread_id, turn_id=turn.operation_id, user_id=user_id
    )


def invoked_request(exchange: Exchange) -> context_pb2.InvokedRequest:
    """The exchange as memory takes it."""
    question = message_pb2.Message(role=message_pb2.ROLE_USER, content=exchange.message)
    return context_pb2.InvokedRequest(
        workspace_id=exchange.turn.workspace_id,
        thread_id=exchange.turn.thread_id,
        user_id=exchange.user_id,
        request_id=exchange.turn.operation_id,
        request_messages=[question],
        response_messages=[_answered(exchange.answer, exchange.agent_id)],
        usage=conversation_pb2.TurnUsage(
            input_tokens=exchange.usage.input_tokens, output_tokens=exchange.usage.output_tokens
        ),
    )


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
    """A turn that was kept before."""
    first, last = response.messages[0], response.messages[-1]
    return KeptTurn(
        receipt=Receipt(
            first_seq=first.seq,
            last_seq=last.seq,
            create_time=_moment(first.create_time),
            durability=message_pb2.DURABILITY_COMMITTED,
            thread_token=response.thread_token,
        ),
        message=first.content if first.role == message_pb2.ROLE_USER else None,
        agent_id=last.author if last.role == message_pb2.ROLE_ASSISTANT else None,
        text=last.content,
        finish_reason=last.metadata.get(_FINISH_REASON, "stop"),
        usage=Usage(response.usage.input_tokens, response.usage.output_tokens),
    )


def _said(message: message_pb2.Message) -> Message:
    return Message(
        role=_ROLES[message.role],
        content=message.content if message.HasField("content") else None,
        tool_calls=tuple(ToolCall(call.id, call.type, call.name, call.arguments) for call in message.tool_calls),
        tool_call_id=message.tool_call_id or None,
        name=message.name or None,
    )


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


def _moment(time: Timestamp) -> datetime:
    return time.ToDatetime(tzinfo=UTC)
