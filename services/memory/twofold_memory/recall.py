"""Recalling a window: from L1 where it is known to be right, else from Postgres; never a guess, never a false "empty".

A copy is called COMPLETE only if Postgres confirms in the same call, asked in parallel, that it ends at the newest
message of the current epoch. A stale copy (an outage, a paused writer, a lost script, a lagging replica) so costs one
more query and never a wrong answer.
"""

import asyncio
from collections.abc import Callable, Sequence
from typing import Protocol

from prometheus_client import CollectorRegistry, Counter

from twofold_chassis.gathering import Gathering
from twofold_chassis.refusals import HistoryChanged, Overloaded, StoreUnavailable
from twofold_memory import windows
from twofold_memory.threads import (
    Completeness,
    Copy,
    Head,
    Level,
    Looked,
    Snapshot,
    Source,
    ThreadKey,
    Window,
    may_see,
    unknown,
)
from twofold_memory.tokens import ThreadToken

_BATCH_MAX = 256
_WAITING_MAX = 4096
_FILLS_MAX = 256


class Store(Protocol):
    """The truth."""

    async def heads(self, keys: Sequence[ThreadKey]) -> list[Head | None]:
        """What is known of each thread; None for one that does not exist."""
        ...

    async def newest(self, key: ThreadKey, count: int) -> Snapshot | None:
        """The thread and its newest messages, in one snapshot."""
        ...


class Cache(Protocol):
    """The copy of the newest messages."""

    messages_max: int

    @property
    def is_away(self) -> bool:
        """Whether it is believed to be gone."""
        ...

    async def look(self, key: ThreadKey, count: int) -> Looked:
        """The window's newest messages."""
        ...

    async def fill(self, key: ThreadKey, snapshot: Snapshot) -> bool:
        """Replaces the window, unless it is newer."""
        ...

    async def fence(self, key: ThreadKey, epoch: int) -> bool:
        """Drops a window that is older than `epoch`."""
        ...


class Recall:
    """The one way to the newest messages of a thread."""

    def __init__(
        self,
        store: Store,
        cache: Cache,
        *,
        copies_are_settled: Callable[[], bool],
        confirm_s: float,
        metrics: CollectorRegistry,
    ) -> None:
        """`copies_are_settled`: whether no copy can be of a thread whose past has changed; else none answers alone."""
        self._store = store
        self._cache = cache
        self._copies_are_settled = copies_are_settled
        self._confirm_s = confirm_s
        # While one confirmation is in flight, the next ones gather into one query.
        self._heads: Gathering[ThreadKey, Head | None] = Gathering(
            store.heads, batch_max=_BATCH_MAX, waiting_max=_WAITING_MAX, lanes=2
        )
        self._fills: dict[ThreadKey, asyncio.Task[bool]] = {}
        self._windows = Counter("twofold_memory_windows", "Windows recalled.", ("source", "completeness"), registry=metrics)

    async def window(
        self,
        key: ThreadKey,
        count: int,
        *,
        user_id: str | None = None,
        level: Level = Level.VERIFIED,
        token: ThreadToken | None = None,
    ) -> Window:
        """The newest `count` messages at most, turns and tool pairs whole.

        Raises ConversationUnknown (deleted, or not this user's), HistoryChanged (the token is of another history),
        StoreUnavailable (Postgres does not answer, and no copy may stand in).
        """
        if level is Level.VERIFIED:
            window = await self._verified(key, count, user_id)
        elif not self._copies_are_settled():
            window = await self._verified(key, count, user_id)
            _check_token(window, token)
        else:
            looked = await self._cache.look(key, count)
            # Asked once more: the look may have been the first one over a new connection.
            copy = looked.copy if self._copies_are_settled() else None
            window = _as_of(copy, count, user_id, token) or await self._verified(key, count, user_id, looked)
            _check_token(window, token)
        self._windows.labels(window.source.name, window.completeness.name).inc()
        return window

    async def drain(self) -> None:
        """Returns when no fill is under way."""
        while self._fills:
            await asyncio.wait(self._fills.values())
        await self._heads.drain()

    async def _verified(self, key: ThreadKey, count: int, user_id: str | None, looked: Looked | None = None) -> Window:
        # Not asked for a copy that cannot be there.
        confirmation = None if self._cache.is_away else self._heads.ask(key)
        copy, answered = looked or await self._cache.look(key, count)
        if confirmation is not None and copy is not None and copy.covers(count):
            try:
                async with asyncio.timeout(self._confirm_s):
                    head = await confirmation
            except (TimeoutError, StoreUnavailable, Overloaded):
                if not may_see(copy.owner, user_id):
                    raise unknown(key) from None
                return _window_of_copy(copy, count, Completeness.UNVERIFIED)
            if head is not None and head.epoch == copy.epoch and copy.next_seq == head.next_seq:
                if not head.visible_to(user_id):
                    raise unknown(key)
                return _window_of_copy(copy, count, Completeness.COMPLETE)
        return await self._cold(key, count, user_id, fill=answered)

    async def _cold(self, key: ThreadKey, count: int, user_id: str | None, *, fill: bool) -> Window:
        # Asked after the look: an answer from before may confirm a copy, but must not replace one.
        snapshot = await self._store.newest(key, max(count, self._cache.messages_max) if fill else count)
        if snapshot is None:
            return Window([], 0, 0, Source.L2, Completeness.COMPLETE)
        if fill:
            self._refill(key, snapshot)
        if not snapshot.head.visible_to(user_id):
            raise unknown(key)
        entries, truncated = windows.whole(snapshot.entries, count)
        return Window(entries, snapshot.head.epoch, snapshot.head.next_seq - 1, Source.L2, Completeness.COMPLETE, truncated)

    def _refill(self, key: ThreadKey, snapshot: Snapshot) -> None:
        """Fills the window behind the answer: one fill per thread at a time, a bounded number in all."""
        if key in self._fills or len(self._fills) >= _FILLS_MAX:
            return
        if snapshot.head.deleted:
            task = asyncio.create_task(self._cache.fence(key, snapshot.head.epoch))
        elif snapshot.entries:
            task = asyncio.create_task(self._cache.fill(key, snapshot))
        else:
            return
        self._fills[key] = task
        task.add_done_callback(lambda _: self._fills.pop(key))


def _as_of(copy: Copy | None, count: int, user_id: str | None, token: ThreadToken | None) -> Window | None:
    """The copy alone, if it is there, large enough, and not older than the token."""
    if copy is None or not copy.covers(count) or not may_see(copy.owner, user_id):
        return None
    if token is not None and not (copy.epoch == token.epoch and copy.next_seq > token.seq):
        return None
    return _window_of_copy(copy, count, Completeness.AS_OF)


def _window_of_copy(copy: Copy, count: int, completeness: Completeness) -> Window:
    entries, truncated = windows.whole(copy.entries, count)
    return Window(entries, copy.epoch, copy.next_seq - 1, Source.L1, completeness, truncated)


def _check_token(window: Window, token: ThreadToken | None) -> None:
    """A state that Postgres does not know (any more) cannot be read "at least": a restored database, another history."""
    if token is None or window.completeness is Completeness.AS_OF:
        return
    if token.epoch > window.epoch or token.seq > window.as_of_seq:
        if window.completeness is Completeness.UNVERIFIED:
            raise StoreUnavailable("the durable store does not answer, and the copy is older than the token")
        raise HistoryChanged("the thread token is of a history that no longer exists")
