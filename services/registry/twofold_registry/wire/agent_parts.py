"""Parts of agents on the wire: their targets, their price, and what was observed of them."""

from collections.abc import Sequence
from datetime import datetime, timedelta

from twofold.registry.v1 import agent_pb2 as pb
from twofold_chassis import fields
from twofold_chassis.prices import Price
from twofold_chassis.refusals import InvalidField
from twofold_chassis.urls import plain_url
from twofold_registry.agents import (
    PRICE_MICROS_MAX,
    TARGETS_MAX,
    WEIGHT_MAX,
    Observation,
    ObservedState,
    Target,
    checked_targets,
)
from twofold_registry.wire import money
from twofold_registry.wire.forms import happened
from twofold_registry.wire.masks import Readers

_TARGETS = "agent.targets"
_CURRENCY = "agent.price.currency"
_TARGET_NAME_BYTES_MAX = 63
_MESSAGE_BYTES_MAX = 255
_GENERATION_MAX = 2**63 - 1
_AHEAD_MAX = timedelta(minutes=1)
_OBSERVED = {
    pb.OBSERVED_STATE_READY: ObservedState.READY,
    pb.OBSERVED_STATE_COLD: ObservedState.COLD,
    pb.OBSERVED_STATE_STARTING: ObservedState.STARTING,
    pb.OBSERVED_STATE_DRAINING: ObservedState.DRAINING,
    pb.OBSERVED_STATE_FAILING: ObservedState.FAILING,
}
_OBSERVED_FORMS = {state: form for form, state in _OBSERVED.items()}


def targets(drafts: Sequence[pb.AgentTarget]) -> tuple[Target, ...]:
    if len(drafts) > TARGETS_MAX:
        raise InvalidField(_TARGETS, f"has {len(drafts)} entries, at most {TARGETS_MAX} are allowed")
    return checked_targets(tuple(_target(draft, f"{_TARGETS}[{index}]") for index, draft in enumerate(drafts)), _TARGETS)


def target_messages(values: Sequence[Target]) -> list[pb.AgentTarget]:
    return [pb.AgentTarget(name=value.name, url=value.url, weight=value.weight) for value in values]


def price(draft: pb.AgentPrice) -> Price:
    return Price(
        per_message_micros=_micros(draft, "per_message_micros"),
        per_1000_input_tokens_micros=_micros(draft, "per_1000_input_tokens_micros"),
        per_1000_output_tokens_micros=_micros(draft, "per_1000_output_tokens_micros"),
        currency=money.currency(draft.currency, _CURRENCY),
    )


def price_readers(draft: pb.AgentPrice) -> Readers:
    """The single values of a price that an update can change, by path."""
    return {
        "price.per_message_micros": lambda: _micros(draft, "per_message_micros"),
        "price.per_1000_input_tokens_micros": lambda: _micros(draft, "per_1000_input_tokens_micros"),
        "price.per_1000_output_tokens_micros": lambda: _micros(draft, "per_1000_output_tokens_micros"),
        "price.currency": lambda: money.currency(draft.currency, _CURRENCY),
    }


def price_message(value: Price) -> pb.AgentPrice:
    return pb.AgentPrice(
        per_message_micros=value.per_message_micros,
        per_1000_input_tokens_micros=value.per_1000_input_tokens_micros,
        per_1000_output_tokens_micros=value.per_1000_output_tokens_micros,
        currency=value.currency,
    )


def observation(draft: pb.AgentObservation, now: datetime) -> Observation:
    """What was seen; `now` is what its time is measured against."""
    state = _OBSERVED.get(draft.state)
    if state is None:
        raise InvalidField("observation.state", "is not a state that a target can be seen in")
    return Observation(
        target=fields.line(draft.target, "observation.target", bytes_max=_TARGET_NAME_BYTES_MAX),
        state=state,
        generation=fields.whole(draft.generation, "observation.generation", least=1, most=_GENERATION_MAX),
        observed_at=_observed_at(draft, now),
        message=fields.line(draft.message, "observation.message", bytes_max=_MESSAGE_BYTES_MAX),
    )


def observation_messages(values: Sequence[Observation]) -> list[pb.AgentObservation]:
    return [
        pb.AgentObservation(
            target=value.target,
            state=_OBSERVED_FORMS[value.state],
            generation=value.generation,
            observe_time=fields.timestamp(value.observed_at),
            message=value.message,
        )
        for value in values
    ]


def _target(draft: pb.AgentTarget, field: str) -> Target:
    return Target(
        name=fields.identifier(draft.name, f"{field}.name", bytes_max=_TARGET_NAME_BYTES_MAX),
        url=plain_url(draft.url, f"{field}.url"),
        weight=fields.whole(draft.weight, f"{field}.weight", least=0, most=WEIGHT_MAX),
    )


def _micros(draft: pb.AgentPrice, name: str) -> int:
    return fields.whole(getattr(draft, name), f"agent.price.{name}", least=0, most=PRICE_MICROS_MAX)


def _observed_at(draft: pb.AgentObservation, now: datetime) -> datetime:
    return happened(draft, "observe_time", "observation.observe_time", now + _AHEAD_MAX)
