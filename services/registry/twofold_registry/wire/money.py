"""Months and amounts on the wire."""

import re
from collections.abc import Iterable
from datetime import date

from twofold.registry.v1 import usage_pb2 as pb
from twofold_chassis.prices import CURRENCY_DEFAULT
from twofold_chassis.refusals import InvalidField
from twofold_registry.months import FIRST
from twofold_registry.prices import Money, is_currency

_is_month = re.compile(r"([0-9]{4})-(0[1-9]|1[0-2])").fullmatch


def month(value: str, field: str) -> date:
    """A month, from the year 2000 on."""
    if not value:
        raise InvalidField(field, "is required")
    matched = _is_month(value)
    if matched is None or (found := date(int(matched[1]) or 1, int(matched[2]), 1)) < FIRST:
        raise InvalidField(field, 'is not a month like "2026-03", from "2000-01" on')
    return found


def optional_month(value: str, field: str) -> date | None:
    """A month or None."""
    return month(value, field) if value else None


def currency(value: str, field: str) -> str:
    """A currency; the usual one if none was given."""
    if value and not is_currency(value):
        raise InvalidField(field, "is not a code of three capital letters")
    return value or CURRENCY_DEFAULT


def message(money: Money) -> pb.Money:
    return pb.Money(currency=money.currency, amount_micros=money.amount_micros)


def messages(amounts: Iterable[Money]) -> list[pb.Money]:
    return list(map(message, amounts))
