"""History: a thread's past, from Postgres: single turns, single messages, pages of messages."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from twofold_memory import windows
from twofold_memory.journaled import Journaled
from twofold_memory.threads import (
    ConversationUnknown,
    Entry,
    Head,
    MessageUnknown,
    StoredTurn,
    ThreadKey,
    TurnOnItsWay,
    TurnUnknown,
    may_see,
    unknown,
)


class Turns(Protocol):
    """The truth about what was said."""

    async def heads(self, keys: Sequence[ThreadKey]) -> list[Head | None]:
        """What is known of each thread."""
        ...

    async def turn(self, key: ThreadKey, turn_id: str) -> StoredTurn | None:
        """One turn."""
        ...

    async def message(self, key: ThreadKey, seq: int) -> Entry | None:
        """One message."""
        ...

    async def page(self, key: ThreadKey, *, after: int | None, before: int | None, count: int) -> list[Entry]:
        """Messages after a seq in order, or before one in reverse order."""
        ...


class Journal(Protocol):
    """Turns that wait for the truth."""

    async def find(self, key: ThreadKey, turn_id: str) -> Journaled | None:
        """One that waits, as far as anybody can know."""
        ...


@dataclass(frozen=True, slots=True)
class Page:
    """Some messages, and whether there are more behind the last one."""

    entries: Sequence[Entry]
    more: bool


class History:
    """A thread's past."""

    def __init__(self, turns: Turns, journal: Journal) -> None:
        self._turns = turns
        self._journal = journal

    async def turn(self, key: ThreadKey, turn_id: str, user_id: str | None = None) -> StoredTurn:
        """One turn with its messages. Raises ConversationUnknown, TurnUnknown, TurnOnItsWay (it waits in the journal)."""
        try:
            await self._visible(key, user_id)
            turn = await self._turns.turn(key, turn_id)
            if turn is None:
                raise TurnUnknown(f"the conversation has no turn {turn_id!r}", turn_id=turn_id)
        except (ConversationUnknown, TurnUnknown):
            waiting = await self._journal.find(key, turn_id)
            if waiting is None or not may_see(waiting.turn.user_id, user_id):
                raise
            raise TurnOnItsWay("the turn is accepted and still on its way", retry_after_s=0.2, turn_id=turn_id) from None
        return turn

    async def message(self, key: ThreadKey, seq: int, user_id: str | None = None) -> Entry:
        """One message. Raises ConversationUnknown, MessageUnknown."""
        await self._visible(key, user_id)
        message = await self._turns.message(key, seq)
        if message is None:
            raise MessageUnknown(f"the conversation has no message {seq}", thread_id=key.thread_id, seq=str(seq))
        return message

    async def page(
        self, key: ThreadKey, size: int, *, newest_first: bool, beyond: int | None, user_id: str | None = None
    ) -> Page:
        """Messages beyond a seq, in the asked direction. A page ends before it gets too large, but not before its first."""
        head = await self._visible(key, user_id)
        if newest_first:
            before = head.next_seq if beyond is None else beyond
            found = await self._turns.page(key, after=None, before=before, count=size + 1)
        else:
            found = await self._turns.page(key, after=beyond or 0, before=None, count=size + 1)
        fitting = windows.fitting(found[:size])
        return Page(found[:fitting], fitting < len(found))

    async def _visible(self, key: ThreadKey, user_id: str | None = None) -> Head:
        (head,) = await self._turns.heads([key])
        if head is None or not head.visible_to(user_id):
            raise unknown(key)
        return head
