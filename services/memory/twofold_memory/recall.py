"""Recalling a window: from L1 where it is known to be right, else from Postgres; never a guess, never a false "empty".

A copy is called COMPLETE only if Postgres confirms in the same call, asked in parallel, that it ends at the newest
message of the current epoch. A stale copy (an outage, a paused writer, a lost script, a lagging replica) so costs one
more query and never a wrong answer.
"""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Protocol

from prometheus_client import CollectorRegistry, Counter

from twofold_chassis.gathering import Gathering
from twofold_chassis.refusals import HistoryChanged, Overloaded, StoreUnavailable
from twofold_memory import windows
from twofold_memory.encoding import turn_id_of, waiting_entries_of
from twofold_memory.journaled import Journaled, Looked
from twofold_memory.threads import (
    Completeness,
    Copy,
    Head,
    Known,
    Level,
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
# What a look at L1 comes to: it answers; there is no window; it is too short; Postgres knows better; Redis is away.
_LOOKS = ("HIT", "COLD", "SHORT", "STALE", "AWAY")


class Store(Protocol):
    """The truth."""

    async def heads(self, keys: Sequence[ThreadKey]) -> list[Head | None]:
        """What is known of each thread; None for one that does not exist."""
        ...

    async def newest(self, key: ThreadKey, count: int) -> Snapshot | None:
        """The thread and its newest messages, in one snapshot."""
        ...


class Journal(Protocol):
    """Turns that wait for the truth."""

    def copies(self, key: ThreadKey) -> list[Journaled]:
        """Those of the thread of which this worker has copies."""
        ...

    def met(self, key: ThreadKey) -> None:
        """Somebody has seen that turns of the thread wait."""
        ...

    async def known(self, key: ThreadKey, turn_ids: Sequence[str]) -> dict[str, Known]:
        """Those of the turns that the truth knows by now."""
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

    async def fence(self, key: ThreadKey, epoch: int, erased: bool) -> bool:
        """Drops a window that is older than `epoch`, of an erased thread all there is."""
        ...


class Recall:
    """The one way to the newest messages of a thread."""

    def __init__(
        self,
        store: Store,
        cache: Cache,
        journal: Journal,
        *,
        copies_are_settled: Callable[[], bool],
        confirm_s: float,
        metrics: CollectorRegistry,
    ) -> None:
        """`copies_are_settled`: whether no copy can be of a thread whose past has changed; else none answers alone."""
        self._store = store
        self._cache = cache
        self._journal = journal
        self._copies_are_settled = copies_are_settled
        self._confirm_s = confirm_s
        # While one confirmation is in flight, the next ones gather into one query.
        self._heads: Gathering[ThreadKey, Head | None] = Gathering(
            store.heads, batch_max=_BATCH_MAX, waiting_max=_WAITING_MAX, lanes=2
        )
        self._fills: dict[ThreadKey, asyncio.Task[bool]] = {}
        self._windows = Counter("twofold_memory_windows", "Windows recalled.", ("source", "completeness"), registry=metrics)
        looks = Counter("twofold_memory_window_looks", "Looks at L1 windows.", ("outcome",), registry=metrics)
        self._looks = {outcome: looks.labels(outcome) for outcome in _LOOKS}

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
        StoreUnavailable (Postgres does not answer, and no copy may stand in; or the token's turn cannot be found).
        """
        window, looked = None, None
        if level is not Level.VERIFIED and self._copies_are_settled():
            looked = await self._cache.look(key, count)
            # Asked once more: the look may have been the first one over a new connection.
            if self._copies_are_settled():
                window = _alone(looked, count, user_id, token)
        if window is not None:
            self._looks["HIT"].inc()
        else:
            window = await self._verified(key, count, user_id, looked)
            if token is not None and not await self._holds(key, window, token):
                # It may have come into Postgres between our questions: then a fresh answer has it.
                window = await self._verified(key, count, user_id, None)
                if not await self._holds(key, window, token):
                    raise StoreUnavailable("the turn of the thread token cannot be found just now", retry_after_s=0.5)
        self._windows.labels(window.source.name, window.completeness.name).inc()
        return window

    async def drain(self) -> None:
        """Returns when no fill is under way."""
        while self._fills:
            await asyncio.wait(self._fills.values())
        await self._heads.drain()

    async def _verified(self, key: ThreadKey, count: int, user_id: str | None, looked: Looked | None) -> Window:
        # Not asked for a copy that cannot be there.
        confirmation = None if self._cache.is_away else self._heads.ask(key)
        copy, listed, answered = looked or await self._cache.look(key, count)
        waiting = self._all_waiting(key, listed)
        window, owner, sure = None, None, True
        if confirmation is not None and copy is not None and copy.covers(count):
            owner = copy.owner
            try:
                async with asyncio.timeout(self._confirm_s):
                    head = await confirmation
            except (TimeoutError, StoreUnavailable, Overloaded):
                _check_visible(owner, user_id, key)
                window, sure = _window_of_copy(copy, count, Completeness.UNVERIFIED), False
                waiting = await self._not_held(key, copy, waiting)
            else:
                if head is not None and head.epoch == copy.epoch and copy.next_seq == head.next_seq:
                    if not head.visible_to(user_id):
                        raise unknown(key)
                    window = _window_of_copy(copy, count, Completeness.COMPLETE)
        asked = answered and confirmation is not None
        self._looks[_came_to(copy, count, answered=asked, served=window is not None)].inc()
        if window is None:
            try:
                window, owner = await self._cold(key, count, user_id, fill=answered)
            except StoreUnavailable:
                if not waiting:
                    raise
                window, sure = Window([], 0, 0, Source.L1, Completeness.PARTIAL), False
        if not answered and window.completeness is Completeness.COMPLETE:
            window = replace(window, completeness=Completeness.COMMITTED_ONLY)
        return await self._merged(key, count, user_id, window, owner, waiting, ask=sure) if waiting else window

    def _all_waiting(self, key: ThreadKey, listed: Sequence[Journaled]) -> Sequence[Journaled]:
        """What waits in Redis, and what waits only in this worker's memory."""
        copies = self._journal.copies(key)
        if listed or copies:
            self._journal.met(key)
        if not copies:
            return listed
        in_list = {journaled.key for journaled in listed}
        return [*listed, *(copy for copy in copies if copy.key not in in_list)]

    async def _not_held(self, key: ThreadKey, copy: Copy, waiting: Sequence[Journaled]) -> Sequence[Journaled]:
        """Those that are not in the copy, however far back: what it holds is stored, e.g. a turn that was said again.

        For when Postgres cannot be asked: behind the newest messages an older turn would be out of its order.
        """
        if not waiting:
            return waiting
        whole = (await self._cache.look(key, self._cache.messages_max)).copy or copy
        held = {turn_id_of(entry.frame) for entry in whole.entries}
        return [journaled for journaled in waiting if journaled.turn.turn_id not in held]

    async def _merged(
        self,
        key: ThreadKey,
        count: int,
        user_id: str | None,
        base: Window,
        owner: str | None,
        waiting: Sequence[Journaled],
        *,
        ask: bool,
    ) -> Window:
        """The window, and behind it the turns that wait and are not in it."""
        known: dict[str, Known] = {}
        if ask:
            try:
                # Asked after the base was read: what came in between is shown from the journal.
                known = await self._journal.known(key, [journaled.turn.turn_id for journaled in waiting])
            except (StoreUnavailable, Overloaded):
                base = replace(base, completeness=Completeness.UNVERIFIED)
        shown_before = {turn_id_of(entry.frame) for entry in base.entries}
        if base.epoch == 0:
            owner = waiting[0].turn.user_id  # it will make the conversation, if there is none
            if base.completeness is Completeness.PARTIAL:
                _check_own(waiting, user_id)
            else:
                _check_visible(owner, user_id, key)
        shown = [
            journaled
            for journaled in waiting
            if journaled.turn.turn_id not in shown_before
            and may_see(owner, journaled.turn.user_id)
            and _waits(journaled, known.get(journaled.turn.turn_id), base.as_of_seq)
        ]
        if not shown:
            return base
        entries = [entry for item in shown for entry in waiting_entries_of(item.turn.messages, item.turn.turn_id)]
        together, truncated = windows.whole([*base.entries, *entries], count)
        return replace(
            base,
            entries=together,
            truncated=truncated or base.truncated,
            source=Source.MERGED if base.source is Source.L2 else base.source,
            waiting_turn=shown[-1].turn.turn_id,
        )

    async def _cold(self, key: ThreadKey, count: int, user_id: str | None, *, fill: bool) -> tuple[Window, str | None]:
        # Asked after the look: an answer from before may confirm a copy, but must not replace one.
        snapshot = await self._store.newest(key, max(count, self._cache.messages_max) if fill else count)
        if snapshot is None:
            return Window([], 0, 0, Source.L2, Completeness.COMPLETE), None
        head = snapshot.head
        if fill:
            self._refill(key, snapshot)
        if not head.visible_to(user_id):
            raise unknown(key)
        entries, truncated = windows.whole(snapshot.entries, count)
        return Window(entries, head.epoch, head.next_seq - 1, Source.L2, Completeness.COMPLETE, truncated), head.owner

    async def _holds(self, key: ThreadKey, window: Window, token: ThreadToken) -> bool:
        """Whether the window is as new as the token. Raises HistoryChanged, StoreUnavailable."""
        if token.epoch > window.epoch or token.seq > window.as_of_seq:
            if window.completeness in (Completeness.UNVERIFIED, Completeness.PARTIAL):
                raise StoreUnavailable("the durable store does not answer, and the copy is older than the token")
            # A state that Postgres does not know (any more): a restored database, another history.
            raise HistoryChanged("the thread token is of a history that no longer exists")
        if not token.waits or token.turn_id in {turn_id_of(entry.frame) for entry in window.entries}:
            return True
        turn = (await self._journal.known(key, [token.turn_id])).get(token.turn_id)
        return turn is not None and turn.last_seq <= window.as_of_seq

    def _refill(self, key: ThreadKey, snapshot: Snapshot) -> None:
        """Fills the window behind the answer: one fill per thread at a time, a bounded number in all."""
        if key in self._fills or len(self._fills) >= _FILLS_MAX:
            return
        if snapshot.head.deleted:
            task = asyncio.create_task(self._cache.fence(key, snapshot.head.epoch, snapshot.head.erased))
        elif snapshot.entries:
            task = asyncio.create_task(self._cache.fill(key, snapshot))
        else:
            return
        self._fills[key] = task
        task.add_done_callback(lambda _: self._fills.pop(key))


def _alone(looked: Looked, count: int, user_id: str | None, token: ThreadToken | None) -> Window | None:
    """The copy alone, if it is there, large enough, and not older than the token."""
    copy = looked.copy
    if copy is None or not copy.covers(count) or not may_see(copy.owner, user_id):
        return None
    if token is not None:
        if token.epoch not in (0, copy.epoch) or copy.next_seq <= token.seq:
            return None
        if token.waits:
            return None  # Postgres says where its turn is by now
    if looked.waiting:
        return None
    return _window_of_copy(copy, count, Completeness.AS_OF)


def _came_to(copy: Copy | None, count: int, *, answered: bool, served: bool) -> str:
    """What a look at L1 came to: one of _LOOKS."""
    if served:
        return "HIT"
    if not answered:
        return "AWAY"
    if copy is None:
        return "COLD"
    return "STALE" if copy.covers(count) else "SHORT"


def _window_of_copy(copy: Copy, count: int, completeness: Completeness) -> Window:
    entries, truncated = windows.whole(copy.entries, count)
    return Window(entries, copy.epoch, copy.next_seq - 1, Source.L1, completeness, truncated)


def _check_visible(owner: str | None, user_id: str | None, key: ThreadKey) -> None:
    if not may_see(owner, user_id):
        raise unknown(key)


def _check_own(waiting: Sequence[Journaled], user_id: str | None) -> None:
    """For when nobody can know whose the conversation is: each user sees what was said for them, or nothing at all."""
    if user_id is not None and any(journaled.turn.user_id != user_id for journaled in waiting):
        raise StoreUnavailable("the durable store does not answer, and nobody else knows whose conversation it is")


def _waits(journaled: Journaled, known: Known | None, as_of_seq: int) -> bool:
    """Whether a turn of the journal is to be shown behind a window: not if it is dead, replaced, or in the window."""
    if known is None:
        return True
    return known.payload_hash == journaled.turn.payload_hash and not known.dead and known.first_seq > as_of_seq
