"""Months, in which everything is billed. They are those of UTC; a month is the date of its first day."""

from datetime import UTC, date, datetime

FIRST = date(2000, 1, 1)
"""No event is older."""


def month_of(at: datetime) -> date:
    """The month in which something happened."""
    utc = at.astimezone(UTC)
    return date(utc.year, utc.month, 1)


def after(month: date) -> date:
    """The next month."""
    return date(month.year + month.month // 12, month.month % 12 + 1, 1)


def begin_of(month: date) -> datetime:
    """Its first moment."""
    return datetime(month.year, month.month, 1, tzinfo=UTC)


def is_begin(at: datetime) -> bool:
    """Whether this is the first moment of a month."""
    return at == begin_of(month_of(at))


def booked(origin: date, open_month: date | None) -> date:
    """The month in whose bill something of the month `origin` stands; `open_month` is the first open one, None: all are."""
    return origin if open_month is None else max(origin, open_month)


def named(month: date) -> str:
    """As people write it: "2026-03"."""
    return f"{month.year:04}-{month.month:02}"
