"""Settings of agents on the wire. Defaults are filled in here, once, when they are written."""

from datetime import timedelta

from google.protobuf.duration_pb2 import Duration

from twofold.registry.v1 import agent_pb2 as pb
from twofold_chassis import fields
from twofold_chassis.refusals import InvalidField
from twofold_registry.agents import AgentSettings, ContextDelivery
from twofold_registry.wire.masks import Readers

_INSTRUCTIONS_BYTES_MAX = 64 * 1024
_MODEL_BYTES_MAX = 255
_MESSAGES_DEFAULT = 20
_MESSAGES_MAX = 100
_TOKENS_DEFAULT = 8_000
_TOKENS_MAX = 1_000_000
_FIRST_TOKEN_DEFAULT = timedelta(seconds=30)
_FIRST_TOKEN_MAX = timedelta(minutes=10)
_TURN_DEFAULT = timedelta(minutes=5)
_TURN_MAX = timedelta(hours=1)
_DELIVERIES = {
    pb.CONTEXT_DELIVERY_UNSPECIFIED: ContextDelivery.INSTRUCTIONS,
    pb.CONTEXT_DELIVERY_INSTRUCTIONS: ContextDelivery.INSTRUCTIONS,
    pb.CONTEXT_DELIVERY_MESSAGES: ContextDelivery.MESSAGES,
}
_DELIVERY_FORMS = {
    ContextDelivery.INSTRUCTIONS: pb.CONTEXT_DELIVERY_INSTRUCTIONS,
    ContextDelivery.MESSAGES: pb.CONTEXT_DELIVERY_MESSAGES,
}


def settings(draft: pb.AgentSettings, agent_id: str) -> AgentSettings:
    """The settings of the agent with this id."""
    return AgentSettings(
        instructions=_instructions(draft),
        model=_model(draft, agent_id),
        context_delivery=_delivery(draft),
        context_messages_max=_messages_max(draft),
        context_tokens_max=_tokens_max(draft),
        first_token_timeout=_first_token_timeout(draft),
        turn_timeout=_turn_timeout(draft),
    )


def readers(draft: pb.AgentSettings, agent_id: str) -> Readers:
    """The single settings that an update can change, by path."""
    return {
        "settings.instructions": lambda: _instructions(draft),
        "settings.model": lambda: _model(draft, agent_id),
        "settings.context_delivery": lambda: _delivery(draft),
        "settings.context_messages_max": lambda: _messages_max(draft),
        "settings.context_tokens_max": lambda: _tokens_max(draft),
        "settings.first_token_timeout": lambda: _first_token_timeout(draft),
        "settings.turn_timeout": lambda: _turn_timeout(draft),
    }


def settings_message(value: AgentSettings) -> pb.AgentSettings:
    return pb.AgentSettings(
        instructions=value.instructions,
        model=value.model,
        context_delivery=_DELIVERY_FORMS[value.context_delivery],
        context_messages_max=value.context_messages_max,
        context_tokens_max=value.context_tokens_max,
        first_token_timeout=_duration(value.first_token_timeout),
        turn_timeout=_duration(value.turn_timeout),
    )


def _instructions(draft: pb.AgentSettings) -> str:
    return fields.text(draft.instructions, "agent.settings.instructions", bytes_max=_INSTRUCTIONS_BYTES_MAX)


def _model(draft: pb.AgentSettings, agent_id: str) -> str:
    return fields.line(draft.model, "agent.settings.model", bytes_max=_MODEL_BYTES_MAX) or agent_id


def _delivery(draft: pb.AgentSettings) -> ContextDelivery:
    delivery = _DELIVERIES.get(draft.context_delivery)
    if delivery is None:
        raise InvalidField("agent.settings.context_delivery", "is not a known way")
    return delivery


def _messages_max(draft: pb.AgentSettings) -> int:
    field = "agent.settings.context_messages_max"
    return fields.whole_or_default(draft.context_messages_max, field, default=_MESSAGES_DEFAULT, most=_MESSAGES_MAX)


def _tokens_max(draft: pb.AgentSettings) -> int:
    field = "agent.settings.context_tokens_max"
    return fields.whole_or_default(draft.context_tokens_max, field, default=_TOKENS_DEFAULT, most=_TOKENS_MAX)


def _first_token_timeout(draft: pb.AgentSettings) -> timedelta:
    if not draft.HasField("first_token_timeout"):
        return _FIRST_TOKEN_DEFAULT
    return fields.span(draft.first_token_timeout, "agent.settings.first_token_timeout", most=_FIRST_TOKEN_MAX)


def _turn_timeout(draft: pb.AgentSettings) -> timedelta:
    if not draft.HasField("turn_timeout"):
        return _TURN_DEFAULT
    return fields.span(draft.turn_timeout, "agent.settings.turn_timeout", most=_TURN_MAX)


def _duration(value: timedelta) -> Duration:
    message = Duration()
    message.FromTimedelta(value)
    return message
