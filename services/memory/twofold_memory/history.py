"""History: a thread's past, from Postgres: single turns, pages of messages, and its end."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from twofold_chassis.requests import Attempt
from twofold_memory import windows
from twofold_memory.purges import Purge, Purges
from twofold_memory.threads import Entry, Head, StoredTurn, ThreadKey, TurnUnknown, unknown


class Turns(Protocol):
    """The truth about what was said."""

    async def heads(self, keys: Sequence[ThreadKey]) -> list[Head | None]:
        """What is known of each thread."""
        ...

    async def turn(self, key: ThreadKey, turn_id: str) -> StoredTurn | None:
        """One turn."""
        ...

    async def page(self, key: ThreadKey, *, after: int | None, before: int | None, count: int) -> list[Entry]:
        """Messages after a seq in order, or before one in reverse order."""
        ...


class Conversations(Protocol):
    """The truth about which conversations there are."""

    async def delete(self, attempt: Attempt, key: ThreadKey, given_etag: str, answer: bytes) -> int | None:
        """Hides one; returns the epoch from which on copies are valid."""
        ...


@dataclass(frozen=True, slots=True)
class Page:
    """Some messages, and whether there are more behind the last one."""

    entries: Sequence[Entry]
    more: bool


class History:
    """A thread's past."""

    def __init__(self, turns: Turns, conversations: Conversations, purges: Purges) -> None:
        self._turns = turns
        self._conversations = conversations
        self._purges = purges
        self._deletions: set[asyncio.Task[None]] = set()

    async def turn(self, key: ThreadKey, turn_id: str, user_id: str | None = None) -> StoredTurn:
        """One turn with its messages. Raises ConversationUnknown, TurnUnknown."""
        await self._visible(key, user_id)
        turn = await self._turns.turn(key, turn_id)
        if turn is None:
            raise TurnUnknown(f"the conversation has no turn {turn_id!r}", turn_id=turn_id)
        return turn

    async def page(self, key: ThreadKey, size: int, *, newest_first: bool, beyond: int | None) -> Page:
        """Messages beyond a seq, in the asked direction. A page ends before it gets too large, but not before its first."""
        head = await self._visible(key)
        if newest_first:
            found = await self._turns.page(key, after=None, before=beyond or head.next_seq, count=size + 1)
        else:
            found = await self._turns.page(key, after=beyond or 0, before=None, count=size + 1)
        fitting = windows.fitting(found[:size])
        return Page(found[:fitting], fitting < len(found))

    async def delete(self, attempt: Attempt, key: ThreadKey, given_etag: str) -> None:
        """Hides the conversation and drops its window. Cancelling changes nothing: no window outlives its conversation.

        Raises ConversationUnknown, EtagMismatch, RequestReused.
        """
        task = asyncio.create_task(self._delete(attempt, key, given_etag))
        self._deletions.add(task)
        task.add_done_callback(self._deletions.discard)
        await asyncio.shield(task)

    async def drain(self) -> None:
        """Returns when no deletion is under way."""
        while self._deletions:
            await asyncio.wait(self._deletions)

    async def _delete(self, attempt: Attempt, key: ThreadKey, given_etag: str) -> None:
        epoch = await self._conversations.delete(attempt, key, given_etag, b"")
        if epoch is None:
            # A repeat: whether the first time came as far as the window, nobody knows.
            (head,) = await self._turns.heads([key])
            epoch = head.epoch if head else 0
        await self._purges.do(Purge(key, epoch))

    async def _visible(self, key: ThreadKey, user_id: str | None = None) -> Head:
        (head,) = await self._turns.heads([key])
        if head is None or not head.visible_to(user_id):
            raise unknown(key)
        return head
