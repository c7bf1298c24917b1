"""Bills on the wire."""

from collections.abc import Sequence
from datetime import date
from typing import NamedTuple

from twofold.registry.v1 import billing_pb2 as pb
from twofold_chassis import fields
from twofold_chassis.prices import Price
from twofold_chassis.refusals import InvalidField, InvalidPageToken
from twofold_chassis.requests import Attempt, attempt
from twofold_registry import months
from twofold_registry.billing import Adjustment, Bill, BillKey, Closing, Draft, Invoice, Line, LinePlace
from twofold_registry.prices import COST_MAX, Money
from twofold_registry.resources import Page
from twofold_registry.revisions import Revision
from twofold_registry.wire import money, pages
from twofold_registry.wire.forms import json_object, present

_REASON_BYTES_MAX = 1024
_AFTER_ALL = date(9999, 12, 1)
_PLACE_KINDS = (int, str, str, str, int, int, int, str, str)

Lines = Page[Line]


def workspace_id(request: pb.GetBillRequest | pb.ListInvoicesRequest | pb.GetCapsRequest) -> str:
    return fields.identifier(request.workspace_id, "workspace_id")


def bill_key(request: pb.CloseMonthRequest | pb.GetInvoiceRequest) -> BillKey:
    return BillKey(fields.identifier(request.workspace_id, "workspace_id"), money.month(request.month, "month"))


def close_attempt(request: pb.CloseMonthRequest) -> Attempt:
    return attempt(request.workspace_id, "CloseMonth", request, request.request_id)


def draft(request: pb.CreateAdjustmentRequest) -> Draft:
    present(request, "adjustment")
    asked = request.adjustment
    return Draft(
        workspace_id=fields.identifier(asked.workspace_id, "adjustment.workspace_id"),
        about=money.optional_month(asked.about_month, "adjustment.about_month"),
        amount=_amount(asked),
        reason=fields.line(asked.reason, "adjustment.reason", bytes_max=_REASON_BYTES_MAX, required=True),
    )


def _amount(asked: pb.Adjustment) -> Money:
    if not asked.HasField("amount"):
        raise InvalidField("adjustment.amount", "is required")
    field = "adjustment.amount.amount_micros"
    micros = fields.whole(asked.amount.amount_micros, field, least=-COST_MAX, most=COST_MAX)
    if not micros:
        raise InvalidField(field, "must not be 0")
    return Money(money.currency(asked.amount.currency, "adjustment.amount.currency"), micros)


def adjust_attempt(request: pb.CreateAdjustmentRequest) -> Attempt:
    return attempt(request.adjustment.workspace_id, "CreateAdjustment", request, request.request_id)


class Behind(NamedTuple):
    """A line of the bill of a month."""

    place: LinePlace
    month: date


def bill_place(request: pb.GetBillRequest) -> tuple[date | None, LinePlace | None, int]:
    """The month, the line the page begins behind, and the size of the page. Without a month it is that of the first page."""
    behind, size = line_place(request)
    asked = money.optional_month(request.month, "month")
    return (behind.month if behind and asked is None else asked), behind and behind.place, size


def line_place(request: pb.GetBillRequest | pb.GetInvoiceRequest) -> tuple[Behind | None, int]:
    """The line the page begins behind, and the size of the page."""
    cursor = fields.page_place(request.page_token, _lines_query(request), *_PLACE_KINDS)
    return None if cursor is None else _behind(cursor), fields.page_size(request.page_size)


def _behind(cursor: Sequence[object]) -> Behind:
    part, subject_id, kind, currency, per_message, per_input, per_output, origin, month = cursor
    if part not in (0, 1):
        raise InvalidPageToken("page_token", "is damaged")
    price = Price(per_message, per_input, per_output, currency)  # type: ignore[arg-type]  # page_place has looked at their kinds
    place = LinePlace(part, subject_id, kind, price, _month_of_token(origin))  # type: ignore[arg-type]
    return Behind(place, _month_of_token(month))


def _month_of_token(value: object) -> date:
    try:
        return money.month(str(value), "page_token")
    except InvalidField:
        raise InvalidPageToken("page_token", "is damaged") from None


def _cursor(line: Line, month: date) -> list[object]:
    place, price = line.place, line.place.price
    return [
        place.part,
        place.subject_id,
        place.kind,
        price.currency,
        price.per_message_micros,
        price.per_1000_input_tokens_micros,
        price.per_1000_output_tokens_micros,
        months.named(place.origin_month),
        months.named(month),
    ]


def _lines_query(request: pb.GetBillRequest | pb.GetInvoiceRequest) -> tuple[str, ...]:
    return type(request).__name__, request.workspace_id, request.month


def invoices_place(request: pb.ListInvoicesRequest) -> tuple[date, int]:
    """The month before which the page begins, and the size of the page."""
    cursor = fields.page_place(request.page_token, _invoices_query(request), str)
    size = fields.page_size(request.page_size)
    return (_month_of_token(cursor[0]) if cursor else _AFTER_ALL), size


def _invoices_query(request: pb.ListInvoicesRequest) -> tuple[str, ...]:
    return "ListInvoices", request.workspace_id


def billed(request: pb.GetBillRequest, bill: Bill) -> pb.GetBillResponse:
    lines, token = pages.filled(bill.lines, _lines_query(request), _line_message, lambda line: _cursor(line, bill.month))
    return pb.GetBillResponse(
        month=months.named(bill.month),
        closed=bill.closed,
        totals=money.messages(bill.totals),
        lines=lines,
        next_page_token=token,
    )


def invoiced(request: pb.GetInvoiceRequest, found: tuple[Invoice, Lines]) -> pb.GetInvoiceResponse:
    invoice, page = found
    lines, token = pages.filled(page, _lines_query(request), _line_message, lambda line: _cursor(line, invoice.key.month))
    return pb.GetInvoiceResponse(invoice=invoice_message(invoice), lines=lines, next_page_token=token)


def listed(request: pb.ListInvoicesRequest, page: Page[Invoice]) -> pb.ListInvoicesResponse:
    query = _invoices_query(request)
    messages, token = pages.filled(page, query, invoice_message, lambda invoice: [months.named(invoice.key.month)])
    return pb.ListInvoicesResponse(invoices=messages, next_page_token=token)


def invoice_message(invoice: Invoice) -> pb.Invoice:
    return pb.Invoice(
        workspace_id=invoice.key.workspace_id,
        month=months.named(invoice.key.month),
        totals=money.messages(invoice.totals),
        line_count=invoice.line_count,
        close_time=fields.timestamp(invoice.closed_at),
        closed_by=invoice.closed_by,
    )


def invoice_json(invoice: Invoice) -> str:
    return json_object(invoice_message(invoice))


def closed(closing: Closing, revision: Revision) -> bytes:
    return pb.CloseMonthResponse(
        invoice=invoice_message(closing.invoice), closed=closing.closed, revision_token=revision.token()
    ).SerializeToString()


def adjustment_message(adjustment: Adjustment) -> pb.Adjustment:
    return pb.Adjustment(
        workspace_id=adjustment.workspace_id,
        adjustment_id=adjustment.adjustment_id,
        about_month=months.named(adjustment.about),
        month=months.named(adjustment.month),
        amount=money.message(adjustment.amount),
        reason=adjustment.reason,
        created_by=adjustment.created_by,
        create_time=fields.timestamp(adjustment.created_at),
    )


def adjustment_json(adjustment: Adjustment) -> str:
    return json_object(adjustment_message(adjustment))


def adjusted(adjustment: Adjustment, revision: Revision) -> bytes:
    message = adjustment_message(adjustment)
    return pb.CreateAdjustmentResponse(adjustment=message, revision_token=revision.token()).SerializeToString()


def _line_message(line: Line) -> pb.BillLine:
    place, price = line.place, line.place.price
    message = pb.BillLine(
        about_month=months.named(place.origin_month),
        amount=money.message(Money(price.currency, line.amount_micros)),
    )
    if place.part:
        message.adjustment_id, message.reason = place.subject_id, line.reason
        return message
    message.agent_id, message.kind = place.subject_id, place.kind
    message.per_message_micros = price.per_message_micros
    message.per_1000_input_tokens_micros = price.per_1000_input_tokens_micros
    message.per_1000_output_tokens_micros = price.per_1000_output_tokens_micros
    message.events, message.messages = line.events, line.messages
    message.input_tokens, message.output_tokens = line.input_tokens, line.output_tokens
    return message
