"""Pages: cursors out of tokens, which are a stranger's JSON, and pages that fit into one message."""

from collections.abc import Callable, Sequence
from typing import TypeVar

from google.protobuf.message import Message

from twofold_chassis import fields
from twofold_chassis.refusals import InvalidField, InvalidPageToken
from twofold_registry.resources import Page

Item = TypeVar("Item")
Form = TypeVar("Form", bound=Message)

PAGE_BYTES_MAX = 2 * 1024 * 1024
"""A page ends early before it outgrows what clients take in one message (4 MiB by default)."""
_INT64_MAX = 2**63 - 1


def ids_cursor(token: str, query: object, count: int) -> list[str] | None:
    """The `count` ids a page begins behind; None for the first page."""
    cursor = fields.page_cursor(token, query)
    if cursor is None:
        return None
    ids = [value for value in cursor if isinstance(value, str)]
    if len(ids) != count or len(cursor) != count:
        raise InvalidPageToken("page_token", "is damaged")
    try:
        return [fields.identifier(value, "page_token") for value in ids]
    except (InvalidField, UnicodeEncodeError):
        raise InvalidPageToken("page_token", "is damaged") from None


def numbers_cursor(token: str, query: object, count: int) -> list[int] | None:
    """The `count` numbers a page begins behind; None for the first page."""
    cursor = fields.page_cursor(token, query)
    if cursor is None:
        return None
    numbers = [value for value in cursor if type(value) is int and 0 <= value <= _INT64_MAX]
    if len(numbers) != count or len(cursor) != count:
        raise InvalidPageToken("page_token", "is damaged")
    return numbers


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
