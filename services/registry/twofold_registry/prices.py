"""What usage costs, in whole micro-units (millionths) of a currency."""

import re
from dataclasses import dataclass

COST_MAX = 10**15
"""What one event can cost, and one adjustment can add or take away."""

_is_code = re.compile(r"[A-Z]{3}").fullmatch


def is_currency(code: str) -> bool:
    """Whether it is written like a code of ISO 4217."""
    return _is_code(code) is not None


@dataclass(frozen=True, slots=True)
class Money:
    """An amount in one currency."""

    currency: str
    amount_micros: int
