"""The journal: where turns wait that were accepted while Postgres did not answer.

Each lies in Redis and, as a second copy, in the memory of the worker that took it in, until that worker has seen it in
Postgres. Anybody may drain a thread at any time, twice or at once: the turn's key, looked up under the thread's row lock,
decides what exists. Which waits for which is written in the turns themselves (`draining.py`).
"""

import asyncio
import contextlib
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence, Set
from dataclasses import dataclass, replace
from typing import Protocol

import cachetools
import structlog
from prometheus_client import CollectorRegistry, Counter, Gauge

from twofold_chassis import call
from twofold_chassis.breaker import Breaker
from twofold_chassis.refusals import Refusal, StoreUnavailable
from twofold_memory.draining import Drained, Waiter
from twofold_memory.journaled import EntryKey, Journaled
from twofold_memory.keys import JOURNAL_SHARDS
from twofold_memory.threads import JournaledTurn, JournalFull, KeptTurn, Known, NewTurn, ThreadKey

_ATTEMPTS = 3
_OWN_PERIOD_S = 0.25
_OTHERS_PERIOD_S = 1.0
_OTHERS_AGE_S = 2.0
_OVERDUE_S = 30.0
_INDEX_AGAIN_S = 30.0
_UNINDEX_AFTER_S = 60.0
_EMPTY_AGAIN = 5  # searches
_AT_ONCE = 8
_MET_AGAIN_S = 1.0
_MET_MAX = 10_000
_COPIES_MAX = 20_000
_COPIES_OF_A_WORKSPACE_MAX = 10_000
_COPIES_BYTES_MAX = 128 * 1024 * 1024
# Turns of others may take no more than this of the room for copies.
_ADOPTED_SHARE = 0.5
_LEAVING_S = 3.0


class Store(Protocol):
    """Postgres."""

    async def known(self, key: ThreadKey, turn_ids: Sequence[str]) -> dict[str, Known]:
        """Those of the turns that it knows."""
        ...

    async def drain(self, key: ThreadKey, waiters: Sequence[Waiter]) -> Drained:
        """Stores what may go in now."""
        ...


class Put(Protocol):
    """That a turn lies in the journal."""

    @property
    def prevs(self) -> frozenset[str]:
        """What it waits for."""
        ...

    @property
    def duplicate(self) -> bool:
        """Whether it had been there before."""
        ...


class Cache(Protocol):
    """Redis. None, and False of index, mean that nobody can know."""

    @property
    def weak(self) -> bool:
        """Whether what waits may be evicted."""
        ...

    async def counts(self, threads: Sequence[ThreadKey]) -> list[int | None]:
        """How many turns of each thread wait."""
        ...

    async def waiting(self, key: ThreadKey) -> list[Journaled] | None:
        """The turns of the thread that wait."""
        ...

    async def index(self, key: ThreadKey, token: str) -> bool:
        """Notes that turns of the thread may wait."""
        ...

    async def put(self, journaled: Journaled, *, after: str | None, again: bool) -> Put | None:
        """Puts a turn behind all that waits."""
        ...

    async def settle(
        self,
        key: ThreadKey,
        done: Sequence[EntryKey],
        stored: Mapping[EntryKey, KeptTurn],
        inserted: Mapping[EntryKey, Journaled],
    ) -> None:
        """Takes turns out of the journal and tells the window."""
        ...

    async def indexed(self, shard: int) -> dict[ThreadKey, str]:
        """The threads of a part of the index, with their tokens."""
        ...

    async def unindex(self, key: ThreadKey, token: str) -> None:
        """Forgets a thread."""
        ...


@dataclass(slots=True)
class _Copy:
    """A turn in this worker's memory, since when, and whether it is our own or adopted from a worker that is gone."""

    journaled: Journaled
    since: float


class Journal:
    """One worker's part in it."""

    def __init__(
        self,
        store: Store,
        cache: Cache,
        *,
        breaker: Breaker,
        put_s: float,
        metrics: CollectorRegistry,
        unreachable: type[Exception],
        told: Callable[[ThreadKey], None] = lambda key: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`breaker` hears that Postgres answers. `put_s` is what all attempts to put a turn into it may take. `unreachable`:
        what the cache raises when it is away.

        `told` hears of each thread that has got messages. `clock` is monotonic; nothing depends on the time of day.
        """
        self._store = store
        self._cache = cache
        self._breaker = breaker
        self._put_s = put_s
        self._unreachable = unreachable
        self._told = told
        self._clock = clock
        self.worker = uuid.uuid4().hex[:12]
        self._copies: dict[ThreadKey, dict[EntryKey, _Copy]] = {}
        self._copies_count = 0
        self._copies_bytes = 0
        self._of_workspace: dict[str, int] = {}
        self._drains: dict[ThreadKey, asyncio.Task[Drained]] = {}
        # When this worker first saw an entry of another one; when a thread was first seen empty, and with which token.
        self._seen: dict[ThreadKey, dict[EntryKey, float]] = {}
        self._empty: dict[ThreadKey, tuple[str, float]] = {}
        self._searches = 0
        self._met: cachetools.LRUCache[ThreadKey, float] = cachetools.LRUCache(_MET_MAX)
        self._meetings: set[asyncio.Task[None]] = set()
        self._at_once = asyncio.Semaphore(_AT_ONCE)
        self._logger = structlog.get_logger("twofold.journal")
        self._depth = Gauge("twofold_memory_journal_turns", "Turns that wait, copies of this worker.", registry=metrics)
        self._lag = Gauge("twofold_memory_journal_lag_seconds", "How long the oldest of these has waited.", registry=metrics)
        self._journaled = Counter("twofold_memory_journaled", "Turns that were put into the journal.", registry=metrics)
        self._drained = Counter(
            "twofold_memory_drained",
            "Turns that came out of the journal, by what became of them.",
            ("outcome",),
            registry=metrics,
        )

    @property
    def depth(self) -> int:
        """Turns of which this worker holds copies."""
        return self._copies_count

    @property
    def lag_s(self) -> float:
        """How long the oldest of these has waited; 0 without any."""
        oldest = min((copy.since for copies in self._copies.values() for copy in copies.values()), default=None)
        return 0.0 if oldest is None else self._clock() - oldest

    @property
    def remembered(self) -> int:
        """Threads of which this worker remembers what it saw of them in the index."""
        return len(self._seen) + len(self._empty)

    def holds(self, key: ThreadKey) -> bool:
        """Whether this worker has copies of turns of the thread."""
        return key in self._copies

    def copies(self, key: ThreadKey) -> list[Journaled]:
        """This worker's copies of the thread's turns, in the order in which they came."""
        return [copy.journaled for copy in self._copies.get(key, {}).values()]

    async def counts(self, threads: Sequence[ThreadKey]) -> list[int | None]:
        """How many turns of each thread wait, copies of this worker's included; None if nobody can know."""
        counts = await self._cache.counts(threads)
        if not self._copies:
            return counts
        return [
            None if count is None else max(count, len(self._copies.get(key, ())))
            for key, count in zip(threads, counts, strict=True)
        ]

    async def find(self, key: ThreadKey, turn_id: str) -> Journaled | None:
        """A turn that waits; None if there is none as far as anybody can know."""
        waiting = [*self.copies(key), *(await self._cache.waiting(key) or ())]
        return next((journaled for journaled in waiting if journaled.turn.turn_id == turn_id), None)

    async def known(self, key: ThreadKey, turn_ids: Sequence[str]) -> dict[str, Known]:
        """Those of the turns that Postgres knows by now. Raises Overloaded, StoreUnavailable."""
        return await self._store.known(key, turn_ids)

    def met(self, key: ThreadKey) -> None:
        """Somebody has seen that turns of the thread wait: it is noted, in case that was lost, and drained."""
        now = self._clock()
        if key in self._drains or now < self._met.get(key, 0.0):
            return
        self._met[key] = now + _MET_AGAIN_S
        task = asyncio.create_task(self._try(self._meet(key)))
        self._meetings.add(task)
        task.add_done_callback(self._meetings.discard)

    async def put(self, turn: NewTurn, *, unknown: bool) -> JournaledTurn:
        """Lets a turn wait; when this returns it lies in Redis and in this worker's memory.

        `unknown`: Postgres may have stored it already. Raises StoreUnavailable (NOT_STORED only if nothing that could have
        kept it was sent to either store), JournalFull, RequestReused, ConversationErased.
        """
        try:
            if not self._has_room(turn):
                raise JournalFull("too many turns wait for the durable store", retry_after_s=1.0)
            async with asyncio.timeout(self._put_s):
                for _ in range(_ATTEMPTS):
                    began = self._clock()
                    if not await self._cache.index(turn.key, _token()):
                        continue
                    earlier, unknown = unknown, True
                    try:
                        put = await self._cache.put(self._new(turn), after=turn.after, again=False)
                    except Refusal:
                        unknown = earlier  # it answered: this attempt has kept nothing
                        raise
                    if put is None:
                        continue
                    self._keep(replace(self._new(turn), prevs=put.prevs))
                    self._journaled.inc()
                    if self._clock() - began > _INDEX_AGAIN_S:
                        # We were stopped in between, for longer than an index entry of an empty thread is sure to live.
                        await self._cache.index(turn.key, _token())
                    return JournaledTurn(put.duplicate, self._cache.weak)
        except TimeoutError:
            pass
        except JournalFull:
            if not unknown:
                raise
        raise StoreUnavailable(
            "neither the durable store nor the journal answers",
            retry_after_s=1.0,
            outcome="UNKNOWN" if unknown else "NOT_STORED",
        )

    def _new(self, turn: NewTurn) -> Journaled:
        return Journaled(turn, frozenset(), self.worker, time.time_ns() // 1_000_000)

    async def drain(self, key: ThreadKey) -> Drained:
        """Brings what may go of a thread's waiting turns into Postgres. One at a time; who comes meanwhile gets the next.

        Cancelling changes nothing. Raises Busy, Overloaded, StoreUnavailable (also if nobody can know what waits).
        """
        running = self._drains.get(key)
        if running is not None:
            # It may have listed what waits before our turn came: so not its result, but one of a drain behind it.
            await asyncio.wait([running])
            running = self._drains.get(key)
        if running is None:
            running = call.begin_for_all(self._drain(key))
            self._drains[key] = running
            running.add_done_callback(lambda ended: self._ended(key, ended))
        return await asyncio.shield(running)

    async def none_before(self, key: ThreadKey) -> bool | None:
        """Whether nothing of the thread waits any more, after having tried to bring it in; None if nobody can know."""
        (count,) = await self.counts([key])
        sure = None if count is None else True
        if not count and not self.holds(key):
            return sure
        try:
            return False if (await self.drain(key)).held else sure
        except Refusal:
            return False

    @contextlib.asynccontextmanager
    async def drained(self) -> AsyncIterator[None]:
        """Drains as long as the block runs, and at its end what can be drained in a few seconds; the rest stays in Redis."""
        tasks = [asyncio.create_task(work) for work in (self._repeat_own(), self._repeat_others())]
        try:
            yield
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_LEAVING_S):
                    await self._drain_all(list(self._copies))
            while self._meetings or self._drains:
                await asyncio.wait([*self._meetings, *self._drains.values()])

    # Copies ----------------------------------------------------------------------------------------------------------------

    def _has_room(self, turn: NewTurn, share: float = 1.0) -> bool:
        """Whether a copy of the turn fits into this share of what this worker may hold."""
        return (
            self._copies_count < share * _COPIES_MAX
            and self._copies_bytes + turn.bytes <= share * _COPIES_BYTES_MAX
            and self._of_workspace.get(turn.key.workspace_id, 0) < share * _COPIES_OF_A_WORKSPACE_MAX
        )

    def _keep(self, journaled: Journaled) -> None:
        copies = self._copies.setdefault(journaled.turn.key, {})
        earlier = copies.get(journaled.key)
        if earlier is None:
            self._count(journaled, 1)
            copies[journaled.key] = _Copy(journaled, self._clock())
        else:
            copies[journaled.key] = _Copy(journaled, earlier.since)

    def _drop(self, key: ThreadKey, names: Iterable[EntryKey]) -> None:
        copies = self._copies.get(key, {})
        for name in names:
            copy = copies.pop(name, None)
            if copy is not None:
                self._count(copy.journaled, -1)
        if not copies:
            self._copies.pop(key, None)

    def _count(self, journaled: Journaled, change: int) -> None:
        workspace_id = journaled.turn.key.workspace_id
        self._copies_count += change
        self._copies_bytes += change * journaled.turn.bytes
        left = self._of_workspace.get(workspace_id, 0) + change
        if left:
            self._of_workspace[workspace_id] = left
        else:
            del self._of_workspace[workspace_id]
        self._depth.set(self._copies_count)

    # Draining --------------------------------------------------------------------------------------------------------------

    async def _drain(self, key: ThreadKey) -> Drained:
        listed = await self._cache.waiting(key)
        waiters = self._waiters(key, listed or [])
        if not waiters:
            if listed is None:
                raise StoreUnavailable(
                    "nobody can know what waits for the durable store", retry_after_s=1.0, outcome="UNKNOWN"
                )
            return Drained()
        async with self._at_once:
            try:
                drained = await self._store.drain(key, waiters)
            except Exception:
                # Whatever kept Postgres from it: what Redis has lost must lie there again.
                await self._put_back(key, listed)
                raise
        self._breaker.succeeded()
        done = [*drained.stored, *drained.refused]
        self._drop(key, done)
        if not drained.held:
            self._seen.pop(key, None)
        by_key = {waiter.journaled.key: waiter.journaled for waiter in waiters}
        await self._cache.settle(key, done, drained.stored, {name: by_key[name] for name in drained.inserted})
        if drained.held:
            await self._put_back(key, listed)
        if drained.inserted:
            self._told(key)
        for name in drained.stored:
            self._drained.labels("stored" if name in drained.inserted else "found").inc()
        for name, why in drained.refused.items():
            self._drained.labels(why.lower()).inc()
            if why != "ERASED":
                self._logger.error(
                    "a journaled turn is a dead letter", workspace_id=key.workspace_id, turn_id=name.turn_id, reason=why
                )
        return drained

    def _waiters(self, key: ThreadKey, listed: Sequence[Journaled]) -> list[Waiter]:
        """What waits in the list and what waits only in this worker's memory."""
        now = self._clock()
        copies, seen = self._copies.get(key, {}), self._seen.setdefault(key, {}) if listed else {}
        waiters = []
        for journaled in listed:
            copy = copies.get(journaled.key)
            prevs = [journaled.prevs] if copy is None else [journaled.prevs, copy.journaled.prevs]
            since = copy.since if copy is not None else seen.setdefault(journaled.key, now)
            waiters.append(Waiter(journaled, prevs, overdue=now - since > _OVERDUE_S))
        in_list = {journaled.key for journaled in listed}
        waiters += [
            Waiter(copy.journaled, [copy.journaled.prevs], overdue=now - copy.since > _OVERDUE_S)
            for name, copy in copies.items()
            if name not in in_list
        ]
        return waiters

    async def _put_back(self, key: ThreadKey, listed: Sequence[Journaled] | None) -> None:
        """Redis may have lost what waits: this worker's copies go back. Of a worker that is gone a copy is taken."""
        if listed is None:
            return
        now = self._clock()
        for journaled in listed:
            seen = self._seen.get(key, {}).get(journaled.key)
            if seen is not None and now - seen > _OTHERS_AGE_S and self._has_room(journaled.turn, _ADOPTED_SHARE):
                self._keep(journaled)
        in_list = {journaled.key for journaled in listed}
        missing = [journaled for journaled in self.copies(key) if journaled.key not in in_list]
        for journaled in missing:
            with contextlib.suppress(Refusal):  # another payload under its key, or no room: it stays here
                if not await self._cache.index(key, _token()):
                    return
                await self._cache.put(journaled, after=None, again=True)

    def _ended(self, key: ThreadKey, task: "asyncio.Task[Drained]") -> None:
        if self._drains.get(key) is task:
            del self._drains[key]
        if not task.cancelled():
            task.exception()  # its caller may be gone: then nobody else looks at it

    async def _meet(self, key: ThreadKey) -> None:
        with contextlib.suppress(JournalFull):
            await self._cache.index(key, _token())
        await self.drain(key)

    async def _repeat_own(self) -> None:
        while True:
            await asyncio.sleep(_OWN_PERIOD_S)
            self._lag.set(self.lag_s)
            await self._try(self._drain_all(list(self._copies)))

    async def _repeat_others(self) -> None:
        while True:
            await asyncio.sleep(_OTHERS_PERIOD_S)
            await self._try(self._search())

    async def _try(self, work: Awaitable[None]) -> None:
        try:
            await work
        except Refusal as refusal:
            self._logger.debug("the journal waits", reason=refusal.message)
        except self._unreachable:
            self._logger.debug("the journal cannot be searched")
        except Exception as error:
            # Whatever it was, the next round must come.
            self._logger.error("draining failed", exc_info=error)

    async def _each(self, threads: Iterable[ThreadKey], work: Callable[[ThreadKey], Awaitable[None]]) -> None:
        """Does it for each thread, a few at a time. What befalls one, or holds it up, is no hindrance to the others."""
        left = iter(threads)

        async def lane() -> None:
            for key in left:
                await self._try(work(key))

        await asyncio.gather(*(lane() for _ in range(_AT_ONCE)))

    async def _drain_all(self, threads: Iterable[ThreadKey]) -> None:
        """Drains threads; from the first sign that Postgres does not answer, what Redis may have lost goes back instead."""
        is_away = False

        async def one(key: ThreadKey) -> None:
            nonlocal is_away
            if is_away:
                await self._put_back(key, await self._cache.waiting(key))
                return
            try:
                await self.drain(key)
            except StoreUnavailable:
                is_away = True
                raise

        await self._each(threads, one)

    async def _search(self) -> None:
        """Looks through the index for turns of workers that are gone."""
        indexed: dict[ThreadKey, str] = {}
        is_whole = True
        for shard in range(JOURNAL_SHARDS):
            try:
                indexed |= await self._cache.indexed(shard)
            except self._unreachable:
                is_whole = False  # of a cluster, it may be one node that is away
        if is_whole:
            self._forget_all_but(indexed.keys())
        left: list[ThreadKey] = []

        async def look(key: ThreadKey) -> None:
            if await self._is_left(key, indexed[key]):
                left.append(key)

        self._searches += 1
        # Most of the index is threads of which all is stored: they are looked at now and then, until they are forgotten.
        at_all = self._searches % _EMPTY_AGAIN == 0
        await self._each(
            (key for key, token in indexed.items() if not self.holds(key) and (at_all or not self._was_empty(key, token))),
            look,
        )
        await self._drain_all(left)

    def _forget_all_but(self, indexed: Set[ThreadKey]) -> None:
        """What was seen of threads that are in the index no more."""
        for key in self._seen.keys() - indexed:
            del self._seen[key]
        for key in self._empty.keys() - indexed:
            del self._empty[key]

    def _was_empty(self, key: ThreadKey, token: str) -> bool:
        return key in self._empty and self._empty[key][0] == token

    async def _is_left(self, key: ThreadKey, token: str) -> bool:
        """Whether turns of the thread have waited for so long that their worker must be gone; forgets one without any."""
        listed = await self._cache.waiting(key)
        if listed is None:
            return False
        now = self._clock()
        if not listed:
            self._seen.pop(key, None)
            seen_token, since = self._empty.setdefault(key, (token, now))
            if seen_token != token:
                self._empty[key] = (token, now)
            elif now - since >= _UNINDEX_AFTER_S:
                del self._empty[key]
                await self._cache.unindex(key, token)
            return False
        self._empty.pop(key, None)
        seen = self._seen.setdefault(key, {})
        first_seen = [seen.setdefault(journaled.key, now) for journaled in listed]
        return now - min(first_seen) >= _OTHERS_AGE_S


def _token() -> str:
    return uuid.uuid4().hex
