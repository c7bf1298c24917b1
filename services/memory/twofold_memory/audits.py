"""Audits: whether a thread's window in Redis is what Postgres has, and whether what Postgres has is as it must be.

Redis is looked at first and Postgres after it: whatever a window may rightly tell was committed before it was told. So what
is found to be wrong is wrong; it is looked at again all the same, in case somebody is mending it at this moment.
"""

import asyncio
import contextlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import Enum
from typing import Protocol

from twofold_chassis import call
from twofold_chassis.refusals import Overloaded, Refusal, StoreUnavailable
from twofold_memory.draining import Drained
from twofold_memory.journaled import Journaled
from twofold_memory.threads import Entry, Head, Known, Snapshot, ThreadKey, unknown

SAMPLE_MAX = 500
_AT_ONCE = 2
_UNDER_WAY_MAX = 4
_ROUNDS = 3
_BETWEEN_S = 0.05
# What the last conversations may take that were begun in time.
_SPARE_S = 3.0


class WindowState(Enum):
    """How a window compares with Postgres; see the contract."""

    ABSENT = 1
    COLD = 2
    EQUAL = 3
    LAGGING = 4
    AHEAD = 5
    DIFFERENT = 6
    UNKNOWN = 7

    @property
    def wrong(self) -> bool:
        """Whether it must not be."""
        return self in (WindowState.AHEAD, WindowState.DIFFERENT)


@dataclass(frozen=True, slots=True)
class Held:
    """What Redis holds of a thread. `mark` is another one as soon as the window has changed, and empty without a window.

    `highest_seq`: the highest number that the window was ever told of. `lasting`: a part of it has no time to live.
    """

    mark: Sequence[bytes]
    epoch: int
    first_seq: int
    next_seq: int
    highest_seq: int
    owner: str | None
    erased: bool
    length: int
    lasting: bool
    entries: Sequence[Entry]
    waiting: Sequence[Journaled]

    @property
    def warm(self) -> bool:
        """Whether readers take it for a window."""
        return self.next_seq > 0 and not self.erased and self.length == self.next_seq - self.first_seq


@dataclass(frozen=True, slots=True)
class Truth:
    """The thread's head and those of its messages that the window claims to hold, in one snapshot."""

    head: Head
    entries: Sequence[Entry]


@dataclass(frozen=True, slots=True)
class Numbers:
    """Whether 1 … last_seq are given, each once, to messages of turns that cover them."""

    missing_count: int = 0
    missing_seq: int = 0
    stray_count: int = 0
    stray_seq: int = 0
    beyond_count: int = 0

    @property
    def sound(self) -> bool:
        """Whether nothing is wrong with them."""
        return not (self.missing_count or self.stray_count or self.beyond_count)


@dataclass(frozen=True, slots=True)
class Finding:
    """What was found of one thread. `numbers` is None if they could not be looked at, or Postgres has no such thread."""

    key: ThreadKey
    window: WindowState
    held: Held | None
    head: Head | None
    different_seq: int = 0
    leftovers: frozenset[str] = frozenset()
    numbers: Numbers | None = None
    window_after: WindowState | None = None
    waiting_after: int = 0

    @property
    def sound(self) -> bool:
        """Whether there is nothing to report."""
        if self.window.wrong or self.window is WindowState.UNKNOWN or self.leftovers:
            return False
        return self.head is None or (self.numbers is not None and self.numbers.sound)

    @property
    def waiting_count(self) -> int:
        """Turns that wait in the journal."""
        return len(self.held.waiting) if self.held else 0


@dataclass(frozen=True, slots=True)
class Asked:
    """What is to be audited: one thread, or those of a workspace (None: of all) that were changed last."""

    workspace_id: str | None
    thread_id: str | None
    sample_size: int
    repair: bool


@dataclass(frozen=True, slots=True)
class Report:
    """What was found; `truncated` if there was no time for all."""

    findings: Sequence[Finding]
    truncated: bool


class Store(Protocol):
    """The truth."""

    async def sample(self, workspace_id: str | None, count: int) -> Sequence[ThreadKey]:
        """Those that were changed last."""
        ...

    async def truth(self, key: ThreadKey, first_seq: int, next_seq: int) -> Truth | None:
        """The head and these messages; None if there is no such thread."""
        ...

    async def numbers(self, key: ThreadKey) -> Numbers:
        """Whether they are right."""
        ...


class Turns(Protocol):
    """The truth as reads see it."""

    async def newest(self, key: ThreadKey, count: int) -> Snapshot | None:
        """The thread and its newest messages, in one snapshot."""
        ...


class Cache(Protocol):
    """Windows, as an audit sees them."""

    async def held(self, key: ThreadKey) -> Held | None:
        """All that is held of a thread; None if nobody can know."""
        ...

    async def drop(self, key: ThreadKey, mark: Sequence[bytes], head: Head | None) -> bool:
        """Drops a window that is as it was seen; whether that is done."""
        ...


class Windows(Protocol):
    """Windows, as reads fill them."""

    messages_max: int

    async def fill(self, key: ThreadKey, snapshot: Snapshot) -> bool:
        """Replaces the window, unless it is newer."""
        ...

    async def fence(self, key: ThreadKey, epoch: int, erased: bool) -> bool:
        """Drops a window that is older than `epoch`, of an erased thread all there is."""
        ...


class Journal(Protocol):
    """Turns that wait for the truth."""

    async def known(self, key: ThreadKey, turn_ids: Sequence[str]) -> dict[str, Known]:
        """Those of the turns that the truth knows by now."""
        ...

    async def drain(self, key: ThreadKey) -> Drained:
        """Brings what may go of a thread's waiting turns into the store."""
        ...


class Audits:
    """Audits threads, a few at a time whoever asks."""

    def __init__(self, store: Store, turns: Turns, cache: Cache, windows: Windows, journal: Journal) -> None:
        self._store = store
        self._turns = turns
        self._cache = cache
        self._windows = windows
        self._journal = journal
        self._at_once = asyncio.Semaphore(_AT_ONCE)
        self._under_way = 0

    async def audit(self, asked: Asked) -> Report:
        """What is found.

        Raises ConversationUnknown (neither store knows the one asked for), Overloaded, StoreUnavailable.
        """
        if self._under_way >= _UNDER_WAY_MAX:
            raise Overloaded("other audits run", retry_after_s=1.0)
        self._under_way += 1
        try:
            return await (self._all(asked) if asked.thread_id is None else self._one(asked))
        finally:
            self._under_way -= 1

    async def _one(self, asked: Asked) -> Report:
        assert asked.workspace_id is not None
        assert asked.thread_id is not None
        key = ThreadKey(asked.workspace_id, asked.thread_id)
        async with self._at_once:
            finding = await self._audited(key, repair=asked.repair)
        if finding is None:
            raise unknown(key)
        return Report([finding], truncated=False)

    async def _all(self, asked: Asked) -> Report:
        current = call.current()
        waiting = list(await self._store.sample(asked.workspace_id, asked.sample_size))
        found: dict[ThreadKey, Finding] = {}
        order, in_time = list(waiting), True

        async def work() -> None:
            nonlocal in_time
            while waiting and in_time:
                async with self._at_once:
                    in_time = current.left_s() > _SPARE_S
                    if not in_time or not waiting:
                        return
                    key = waiting.pop(0)
                    finding = await self._audited(key, repair=asked.repair)
                    if finding is not None:
                        found[key] = finding

        workers = [asyncio.create_task(work()) for _ in range(_AT_ONCE)]
        try:
            await asyncio.gather(*workers)
        finally:
            for worker in workers:
                worker.cancel()
        return Report([found[key] for key in order if key in found], truncated=bool(waiting))

    async def _audited(self, key: ThreadKey, *, repair: bool) -> Finding | None:
        finding = await self._looked(key)
        nothing_held = finding.held is not None and not finding.held.mark and not finding.held.waiting
        if finding.head is None and nothing_held:
            return None
        if finding.head is not None:
            # Of an erased one nothing is left that could be numbered.
            finding = replace(finding, numbers=Numbers() if finding.head.erased else await self._numbers(key))
        return await self._repaired(finding) if repair else finding

    async def _numbers(self, key: ThreadKey) -> Numbers | None:
        try:
            return await self._store.numbers(key)
        except StoreUnavailable:
            return None  # it may have taken too long; if Postgres is gone, the next question tells

    async def _looked(self, key: ThreadKey) -> Finding:
        """Looks until two looks in a row agree about what seems wrong: somebody may be mending it."""
        finding = await self._compared(key)
        for _ in range(_ROUNDS):
            if finding.window in (WindowState.ABSENT, WindowState.COLD, WindowState.EQUAL) and not finding.leftovers:
                return finding
            if finding.held is None:
                return finding
            before = finding
            await asyncio.sleep(_BETWEEN_S)
            finding = await self._compared(key)
            finding = replace(finding, leftovers=before.leftovers & finding.leftovers)
            if _same(before, finding):
                return finding
        return replace(finding, window=WindowState.UNKNOWN) if finding.window.wrong else finding

    async def _compared(self, key: ThreadKey) -> Finding:
        held = await self._cache.held(key)
        seqs = (held.first_seq, held.next_seq) if held is not None and held.warm else (0, 0)
        truth = await self._store.truth(key, *seqs)
        head = None if truth is None else truth.head
        if held is None:
            return Finding(key, WindowState.UNKNOWN, None, head)
        state, seq = compared(held, truth)
        leftovers: frozenset[str] = frozenset()
        if held.waiting and truth is not None:
            leftovers = await self._leftovers(key, held.waiting)
        return Finding(key, state, held, head, seq, leftovers)

    async def _leftovers(self, key: ThreadKey, waiting: Sequence[Journaled]) -> frozenset[str]:
        known = await self._journal.known(key, [journaled.turn.turn_id for journaled in waiting])
        hashes = {turn_id: turn.payload_hash for turn_id, turn in known.items()}
        return frozenset(
            journaled.turn.turn_id
            for journaled in waiting
            if hashes.get(journaled.turn.turn_id) == journaled.turn.payload_hash
        )

    async def _repaired(self, finding: Finding) -> Finding:
        key = finding.key
        if finding.waiting_count:
            with contextlib.suppress(Refusal):  # what cannot be brought in still waits, and is told
                await self._journal.drain(key)
        if not finding.window.wrong and finding.window is not WindowState.LAGGING:
            if not finding.waiting_count:
                return finding
            return replace(finding, waiting_after=(await self._looked(key)).waiting_count)
        now = finding
        for _ in range(_ROUNDS):
            await self._renew(now)
            now = replace(await self._looked(key), numbers=finding.numbers)
            if not now.window.wrong:
                break
        return replace(finding, window_after=now.window, waiting_after=now.waiting_count)

    async def _renew(self, finding: Finding) -> None:
        """Drops a wrong window, if it is still what was compared, and fills it anew if there is to be one."""
        key, held = finding.key, finding.held
        if held is not None and finding.window.wrong and not await self._cache.drop(key, held.mark, finding.head):
            return
        if finding.numbers is not None and not finding.numbers.sound:
            return  # no window can be made of that
        snapshot = await self._turns.newest(key, self._windows.messages_max)
        if snapshot is None:
            return
        if snapshot.head.deleted:
            await self._windows.fence(key, snapshot.head.epoch, snapshot.head.erased)
        elif snapshot.entries:
            await self._windows.fill(key, snapshot)


def compared(held: Held, truth: Truth | None) -> tuple[WindowState, int]:
    """How a window compares with what Postgres had a moment later, and the first message that differs."""
    if not held.mark:
        return WindowState.ABSENT, 0
    if truth is None:
        return (WindowState.AHEAD if held.warm or held.highest_seq else WindowState.COLD), 0
    head = truth.head
    if held.epoch > head.epoch or (held.epoch == head.epoch and max(held.highest_seq + 1, held.next_seq) > head.next_seq):
        return WindowState.AHEAD, 0
    if held.lasting:
        return WindowState.DIFFERENT, 0
    if not held.warm:
        must_be_open = held.epoch == head.epoch and held.erased and not head.erased
        return (WindowState.DIFFERENT if must_be_open else WindowState.COLD), 0
    if held.epoch < head.epoch:
        return WindowState.LAGGING, 0
    if head.deleted or held.owner != head.owner:
        return WindowState.DIFFERENT, 0
    seq = _different_seq(held, truth)
    if seq:
        return WindowState.DIFFERENT, seq
    return (WindowState.EQUAL if held.next_seq == head.next_seq else WindowState.LAGGING), 0


def _different_seq(held: Held, truth: Truth) -> int:
    by_seq = {entry.seq: entry for entry in truth.entries}
    return next((entry.seq for entry in held.entries if by_seq.get(entry.seq) != entry), 0)


def _same(before: Finding, after: Finding) -> bool:
    """Whether both found the same of the same window."""
    if before.held is None or after.held is None:
        return False
    return (before.held.mark, before.window, before.leftovers) == (after.held.mark, after.window, after.leftovers)
