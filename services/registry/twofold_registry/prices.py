"""What usage costs, in whole micro-units (millionths) of a currency."""

import re
from dataclasses import dataclass

from twofold_registry.agents import Price

COST_MAX = 10**15
"""What one event can cost, and one adjustment can add or take away."""

FREE = Price()
"""The price of an agent that never was."""

_SCALE = 1000
_is_code = re.compile(r"[A-Z]{3}").fullmatch


def is_currency(code: str) -> bool:
    """Whether it is written like a code of ISO 4217."""
    return _is_code(code) is not None


def cost_micros(price: Price, messages: int, input_tokens: int, output_tokens: int) -> int:
    """What that much costs at a price: half a micro-unit is rounded up. It may be more than COST_MAX.

    Rounded once, for an event; whatever is summed are these whole numbers, so sums agree however they are grouped.
    """
    thousandths = (
        _SCALE * messages * price.per_message_micros
        + input_tokens * price.per_1000_input_tokens_micros
        + output_tokens * price.per_1000_output_tokens_micros
    )
    return (thousandths + _SCALE // 2) // _SCALE


@dataclass(frozen=True, slots=True)
class Money:
    """An amount in one currency."""

    currency: str
    amount_micros: int
