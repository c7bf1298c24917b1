"""Pages that fit into one message."""

from collections.abc import Callable, Sequence
from typing import TypeVar

from google.protobuf.message import Message

from twofold_chassis import fields
from twofold_registry.resources import Page

Item = TypeVar("Item")
Form = TypeVar("Form", bound=Message)

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
