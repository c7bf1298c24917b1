"""Documents that conversations have to do with: links to them. They lie elsewhere."""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import NamedTuple, Protocol

from twofold_chassis.gathering import Gathering
from twofold_chassis.refusals import Overloaded, Reason, ResourceExhausted, StoreUnavailable
from twofold_memory.threads import Completeness, ThreadKey, Window

DOCUMENTS_MAX = 100
_BATCH_MAX = 8
_WAITING_MAX = 4096
_POSTGRES_ANSWERED = (Completeness.COMPLETE, Completeness.COMMITTED_ONLY)


class TooManyDocuments(ResourceExhausted):
    """No more documents can be linked to this conversation."""

    reason = Reason.REASON_TOO_MANY


@dataclass(frozen=True, slots=True)
class Document:
    """A link. The times are set once it is stored."""

    document_id: str
    title: str
    url: str
    media_type: str
    metadata: Mapping[str, str]
    created_at: datetime | None = None
    updated_at: datetime | None = None


Answer = Callable[[Document], bytes]
"""Writes an answer down, so that a repeat of the call gets the very same bytes."""


class Asked(NamedTuple):
    """Whose documents, and for whom: None for anybody's eyes."""

    key: ThreadKey
    user_id: str | None


class Store(Protocol):
    """The truth."""

    async def linked(self, asked: Sequence[Asked]) -> list[list[Document]]:
        """The documents of each conversation by their ids; none of one that is not there for this user."""
        ...


class DocumentRecall:
    """The one way from documents to contexts. There is no copy of them."""

    def __init__(self, store: Store, *, confirm_s: float) -> None:
        self._confirm_s = confirm_s
        self._linked: Gathering[Asked, list[Document]] = Gathering(
            store.linked, batch_max=_BATCH_MAX, waiting_max=_WAITING_MAX, lanes=2
        )
        self._overdue: asyncio.Future[list[Document]] | None = None

    def ask(self, key: ThreadKey, user_id: str | None) -> "asyncio.Future[list[Document]]":
        """Asks, so that a window can be read meanwhile. Never raises."""
        return self._linked.ask(Asked(key, user_id))

    async def beside(self, window: Window, asked: "asyncio.Future[list[Document]]") -> Sequence[Document] | None:
        """What was asked for beside this window. None: nobody could say, never that there are none.

        Where the window came from a copy, nobody is held up for long, and not at all while an earlier answer is overdue.
        """
        if window.completeness not in _POSTGRES_ANSWERED:
            await asyncio.wait([asked], timeout=self._confirm_s if self._overdue is None or self._overdue.done() else 0)
            if not asked.done():
                self._overdue = asked
                return None
        try:
            return await asked
        except (StoreUnavailable, Overloaded):
            return None

    async def drain(self) -> None:
        """Returns when no question is under way."""
        await self._linked.drain()
