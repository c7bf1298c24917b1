"""Pages and batches that fit into one message."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any, Generic, NamedTuple, TypeVar

from google.protobuf.message import Message

from twofold_chassis import fields
from twofold_chassis.refusals import InvalidField, InvalidPageToken
from twofold_registry.resources import Kind, Listing, Order, Page, Stored
from twofold_registry.wire import forms

Item = TypeVar("Item")
Form = TypeVar("Form", bound=Message)

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)
PAGE_BYTES_MAX = 2 * 1024 * 1024
"""A page ends early before it outgrows what clients take in one message (4 MiB by default)."""


def filled(
    page: Page[Item], query: object, message: Callable[[Item], Form], cursor: Callable[[Item], object]
) -> tuple[Sequence[Form], str]:
    """The messages of a page and the token of the next one; `cursor` is the place of an item."""
    messages: list[Form] = []
    room = PAGE_BYTES_MAX
    for item in page.items:
        made = message(item)
        room -= made.ByteSize()
        if room < 0 and messages:
            return messages, fields.page_token(query, cursor(page.items[len(messages) - 1]))
        messages.append(made)
    return messages, fields.page_token(query, cursor(page.items[-1])) if page.more else ""


def listing(request: Any, workspace_id: str, filters: tuple[object, ...]) -> Listing:
    """Which page of a listing is asked for; the class of the filters tells one listing from another."""
    order = _order(request.order_by)
    size = fields.page_size(request.page_size)
    asked = Listing(workspace_id, filters, forms.look(request), order, order.start, size)
    kinds: tuple[type[str] | type[int], ...] = (int, str) if order.is_by_time else (str,)
    place = fields.page_place(request.page_token, _query(asked), *kinds)
    return replace(asked, after=_after(place)) if place else asked


def listed(asked: Listing, page: Page[Stored[Kind]], message: Callable[[Stored[Kind]], Form]) -> tuple[Sequence[Form], str]:
    """The messages of a page of a listing, and the token of the next one."""
    return filled(page, _query(asked), message, lambda stored: _cursor(asked.order.place(stored)))


class Batch(NamedTuple, Generic[Form]):
    """What a batch of ids found: each id is in one of the three."""

    messages: Sequence[Form]
    missing: Sequence[str]
    omitted: Sequence[str]


def batch(ids: Sequence[str], found: Sequence[Stored[Kind]], message: Callable[[Stored[Kind]], Form]) -> Batch[Form]:
    """The answer to a batch, in the order of its ids, as far as it fits into one message."""
    there = {stored.value.path[-1]: stored for stored in found}
    messages: list[Form] = []
    omitted: list[str] = []
    room = PAGE_BYTES_MAX
    for each in ids:
        if each not in there:
            continue
        made = message(there[each])
        room -= made.ByteSize()
        if room < 0:
            omitted.append(each)
        else:
            messages.append(made)
    return Batch(messages, [each for each in ids if each not in there], omitted)


def _order(value: str) -> Order:
    if not value:
        return Order.ID
    try:
        return Order(value)
    except ValueError:
        raise InvalidField("order_by", f"must be one of {', '.join(order.value for order in Order)}") from None


def _query(asked: Listing) -> tuple[object, ...]:
    return asked.filters, asked.workspace_id, asked.look.show_deleted, asked.order.value


def _cursor(place: tuple[object, ...]) -> list[object]:
    return [(each - _EPOCH) // _MICROSECOND if isinstance(each, datetime) else each for each in place]


def _after(place: Sequence[Any]) -> tuple[object, ...]:
    try:
        return tuple(_EPOCH + each * _MICROSECOND if isinstance(each, int) else each for each in place)
    except OverflowError:  # a forged one
        raise InvalidPageToken("page_token", "is damaged") from None
