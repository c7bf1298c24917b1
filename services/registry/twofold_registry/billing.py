"""Billing: what is owed for a month, while it is open and once it is closed."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date, datetime
from typing import Protocol

from twofold_chassis.prices import Price
from twofold_chassis.refusals import FailedPrecondition, InvalidField, NotFound, Reason
from twofold_chassis.requests import Attempt
from twofold_registry import months
from twofold_registry.prices import Money
from twofold_registry.resources import Answer, Page
from twofold_registry.revisions import Revision

ADJUSTMENT = "adjustment"
"""Stands where a line of usage has the kind of its events."""


class InvoiceUnknown(NotFound):
    """The month has no invoice."""

    reason = Reason.REASON_INVOICE_UNKNOWN

    def __init__(self, month: date) -> None:
        name = months.named(month)
        super().__init__(f"there is no invoice of {name}", month=name)


class MonthOrder(FailedPrecondition):
    """Another month is in the way."""

    reason = Reason.REASON_MONTH_ORDER

    def __init__(self, problem: str, month: date) -> None:
        name = months.named(month)
        super().__init__(f"{name} {problem}", month=name)


@dataclass(frozen=True, slots=True)
class BillKey:
    """Which bill."""

    workspace_id: str
    month: date


@dataclass(frozen=True, slots=True)
class LinePlace:
    """Where a line stands in its bill; no two stand at the same place.

    `part`: 0 for usage, whose subject is the agent; 1 for adjustments, whose subject is their id.
    """

    part: int
    subject_id: str
    kind: str
    price: Price
    origin_month: date


@dataclass(frozen=True, slots=True)
class Line:
    """What is owed at one place of a bill."""

    place: LinePlace
    events: int
    messages: int
    input_tokens: int
    output_tokens: int
    amount_micros: int
    reason: str


@dataclass(frozen=True, slots=True)
class Bill:
    """A month as it stands, and a page of its lines. The totals are of all lines, and of the same moment."""

    month: date
    closed: bool
    totals: Sequence[Money]
    lines: Page[Line]


@dataclass(frozen=True, slots=True)
class Invoice:
    """A closed month."""

    key: BillKey
    totals: Sequence[Money]
    line_count: int
    closed_at: datetime
    closed_by: str


@dataclass(frozen=True, slots=True)
class Closing:
    """What came of the wish to close a month: its invoice, and whether it was open until then."""

    invoice: Invoice
    closed: bool


@dataclass(frozen=True, slots=True)
class Draft:
    """An adjustment to be made. `about` is None for the current month."""

    workspace_id: str
    about: date | None
    amount: Money
    reason: str


@dataclass(frozen=True, slots=True)
class Adjustment:
    """A credit or a debit, in the bill of `month`."""

    workspace_id: str
    adjustment_id: str
    about: date
    month: date
    amount: Money
    reason: str
    created_by: str
    created_at: datetime


def about_of(draft: Draft, current: date) -> date:
    """The month that an adjustment is about. Raises InvalidField for one that has not come yet."""
    if draft.about is not None and draft.about > current:
        raise InvalidField("adjustment.about_month", "must not lie in the future")
    return draft.about or current


def check_order(month: date, *, current: date, closed: date | None, waiting: date | None) -> None:
    """Whether a month that has no invoice can be closed now: it is over, and its turn.

    `closed` is the newest closed month, `waiting` the first open one before `month` that has something in it.
    """
    if month >= current:
        raise InvalidField("month", "is not over yet")
    if closed is not None and closed > month:
        raise MonthOrder("is closed already, and with it all months before", closed)
    if waiting is not None:
        raise MonthOrder("is to be closed before", waiting)


class Billing(Protocol):
    """What is owed."""

    async def bill(
        self, workspace_id: str, month: date | None, behind: LinePlace | None, size: int, least: Revision | None
    ) -> Bill:
        """The bill of a month (None: the current one), with up to `size` lines behind a place.

        Raises WorkspaceUnknown, RevisionNotReached, HistoryChanged.
        """
        ...

    async def close(self, key: BillKey, attempt: Attempt, answer: Answer[Closing]) -> bytes:
        """Raises WorkspaceUnknown, MonthOrder, InvalidField (not over yet), RequestReused."""
        ...

    async def invoice(
        self, key: BillKey, behind: LinePlace | None, size: int, least: Revision | None
    ) -> tuple[Invoice, Page[Line]]:
        """Raises WorkspaceUnknown, InvoiceUnknown, RevisionNotReached, HistoryChanged."""
        ...

    async def invoices(self, workspace_id: str, before: date, size: int, least: Revision | None) -> Page[Invoice]:
        """Those of earlier months, newest first. Raises WorkspaceUnknown, RevisionNotReached, HistoryChanged."""
        ...

    async def adjust(self, draft: Draft, attempt: Attempt, answer: Answer[Adjustment]) -> bytes:
        """Raises WorkspaceUnknown, InvalidField (a month in the future), RequestReused."""
        ...
