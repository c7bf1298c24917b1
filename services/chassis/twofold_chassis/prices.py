"""What the use of an agent costs, in whole micro-units (millionths) of a currency.

The registry bills by it, and routers hold it against limits on money: both arrive at the same number.
"""

from dataclasses import dataclass

CURRENCY_DEFAULT = "USD"

_SCALE = 1000


@dataclass(frozen=True, slots=True)
class Price:
    """What the use of an agent costs, in millionths of the currency's unit."""

    per_message_micros: int = 0
    per_1000_input_tokens_micros: int = 0
    per_1000_output_tokens_micros: int = 0
    currency: str = CURRENCY_DEFAULT


FREE = Price()


def cost_micros(price: Price, messages: int, input_tokens: int, output_tokens: int) -> int:
    """What that much costs at a price: half a micro-unit is rounded up.

    Rounded once, for an event; whatever is summed are these whole numbers, so sums agree however they are grouped.
    """
    thousandths = (
        _SCALE * messages * price.per_message_micros
        + input_tokens * price.per_1000_input_tokens_micros
        + output_tokens * price.per_1000_output_tokens_micros
    )
    return (thousandths + _SCALE // 2) // _SCALE
