"""Watching a conversation: its messages in order, each once, from a place on and then as they are committed.

A watcher only remembers where it is. What it has not got yet stays in Postgres and is read from there in small steps, so
that a slow one costs nothing but its place.
"""

import asyncio
import time
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass
from typing import Protocol

from twofold_chassis import call
from twofold_chassis.refusals import HistoryChanged, StoreUnavailable
from twofold_memory.followers import Followed, Followers
from twofold_memory.threads import Entry, Head, ThreadKey, unknown

STEP_MESSAGES_MAX = 100
STEP_BYTES_MAX = 256 * 1024
_HEARTBEAT_S = 15.0
_STEPS_AT_ONCE = 4


@dataclass(frozen=True, slots=True)
class Start:
    """Where to begin: behind a seq, None for the end. With an epoch it is where an earlier watch stood in that epoch."""

    seq: int | None
    epoch: int | None = None
    until_caught_up: bool = False


@dataclass(frozen=True, slots=True)
class Place:
    """How far a watcher has come."""

    epoch: int
    seq: int


@dataclass(frozen=True, slots=True)
class Batch(Place):
    """The next messages."""

    entries: Sequence[Entry]


@dataclass(frozen=True, slots=True)
class Changed(Place):
    """Something that came before has changed."""


@dataclass(frozen=True, slots=True)
class CaughtUp(Place):
    """Everything that was there has come."""


@dataclass(frozen=True, slots=True)
class Heartbeat(Place):
    """Nothing has happened for a while."""


Told = Batch | Changed | CaughtUp | Heartbeat


class Store(Protocol):
    """The truth."""

    async def heads(self, keys: Sequence[ThreadKey]) -> list[Head | None]:
        """What is known of each thread."""
        ...

    async def step(self, key: ThreadKey, after: int, count: int, bytes_max: int) -> list[Entry]:
        """The next messages after a seq, at least one if there are any."""
        ...


class Watches:
    """Everybody who watches at this worker."""

    def __init__(self, store: Store, followers: Followers, *, heartbeat_s: float = _HEARTBEAT_S) -> None:
        self._store = store
        self._followers = followers
        self._heartbeat_s = heartbeat_s
        # Many may be woken by one message: they read one after the other, and leave connections to everybody else.
        self._steps = asyncio.Semaphore(_STEPS_AT_ONCE)

    async def watch(self, key: ThreadKey, user_id: str | None, start: Start) -> AsyncGenerator[Told, None]:
        """Tells what is said, until the caller has enough or the server drains.

        Raises ConversationUnknown (also later, once it is deleted or erased), HistoryChanged (there is no such place),
        Overloaded, StoreUnavailable (Postgres has not answered for too long), Draining.
        """
        with self._followers.follow(key) as followed:
            head = await self._head(key, user_id)
            seq = _begin(start, head)
            if start.epoch is not None and start.epoch != head.epoch:
                yield Changed(head.epoch, seq)
            caught_up = False
            while True:
                while seq < head.next_seq - 1:
                    entries = await self._step(key, seq)
                    if not entries:
                        # The rest went with an ancestor that was erased, or with the conversation itself.
                        head = await self._head(key, user_id)
                        seq = head.next_seq - 1
                        break
                    seq = entries[-1].seq
                    yield Batch(head.epoch, seq, entries)
                if not caught_up:
                    caught_up = True
                    yield CaughtUp(head.epoch, seq)
                    if start.until_caught_up:
                        return
                newer = await self._next(key, user_id, followed)
                if newer is None:
                    yield Heartbeat(head.epoch, seq)
                    continue
                if (newer.epoch, newer.next_seq) < (head.epoch, head.next_seq):
                    # Learnt before the head that is known; or the database was set back.
                    newer = await self._head(key, user_id)
                if newer.next_seq - 1 < seq:
                    newer = await self._head(key, user_id)
                    _begin(Start(seq), newer)
                changed, head = newer.epoch != head.epoch, newer
                if changed:
                    yield Changed(head.epoch, seq)

    async def _head(self, key: ThreadKey, user_id: str | None) -> Head:
        (head,) = await self._store.heads([key])
        return _visible(key, user_id, head)

    async def _step(self, key: ThreadKey, after: int) -> list[Entry]:
        async with self._steps:
            return await self._store.step(key, after, STEP_MESSAGES_MAX, STEP_BYTES_MAX)

    async def _next(self, key: ThreadKey, user_id: str | None, followed: Followed) -> Head | None:
        """What is known of the thread as soon as it has changed; None if nothing has for a while."""
        try:
            async with asyncio.timeout(self._heartbeat_s):
                return _visible(key, user_id, await call.unless_draining(followed.changed()))
        except TimeoutError:
            if time.monotonic() - followed.asked_at > self._heartbeat_s:
                raise StoreUnavailable("the durable store does not answer", retry_after_s=1.0) from None
            return None


def _visible(key: ThreadKey, user_id: str | None, head: Head | None) -> Head:
    if head is None or not head.visible_to(user_id):
        raise unknown(key)
    return head


def _begin(start: Start, head: Head) -> int:
    """The seq to begin behind."""
    if start.seq is None:
        return head.next_seq - 1
    if start.seq >= head.next_seq or (start.epoch or 0) > head.epoch:
        raise HistoryChanged("the conversation has no such message")
    return start.seq
