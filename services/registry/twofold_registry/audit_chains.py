"""Chains of the audit, walked from one end to the other: to prove that they are whole, and to take them elsewhere.

A walk goes in batches. Each is read in one view of the database together with the end of the chain, and nothing is held
between two of them: entries that are there do not change, and those that come meanwhile are walked over as well.
"""

import asyncio
import contextlib
import enum
from collections.abc import AsyncGenerator, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from twofold_chassis import call
from twofold_chassis.refusals import Overloaded
from twofold_registry.audit import FIRST_LINK, Chained, Link, link_hash
from twofold_registry.audit_keys import AuditKeys, SignedHead

PLACES_AT_ONCE = 500
_WALKS_MAX = 32
_READING_MAX = 2


class FaultKind(enum.Enum):
    """What is wrong with a place of a chain."""

    HASH = enum.auto()
    PREV_HASH = enum.auto()
    MISSING = enum.auto()
    EXTRA = enum.auto()
    ORDER = enum.auto()
    HEAD = enum.auto()
    BEHIND_HEAD = enum.auto()
    KNOWN_HEAD = enum.auto()
    SIGNATURE = enum.auto()


class Fault(NamedTuple):
    """A place that is not as it was written. `revision` is 0 where no entry stands."""

    kind: FaultKind
    seq: int
    revision: int
    message: str


class Progress(NamedTuple):
    """How far a walk is: behind this entry, of that revision; the newest entry stands at `head_seq`."""

    end: Link
    revision: int
    head_seq: int


@dataclass(frozen=True, slots=True)
class Result:
    """How a walk ended; without a fault all is well."""

    count: int
    progress: Progress
    fault: Fault | None


@dataclass(frozen=True, slots=True)
class Batch:
    """Some places of a chain as they were at one moment.

    `last` is the place up to which was asked. `following` is the place of the next entry below it that did not fit in any
    more. `lowest` is the first place of all that is taken, `behind` the first one behind the end.
    """

    last: int
    head: Link | None
    lowest: int | None
    behind: int | None
    entries: Sequence[Chained]
    following: int | None


class Kept(NamedTuple):
    """An entry of a chain as it is kept: its place and hash, and where its change stands in the history."""

    link: Link
    order: tuple[int, int]


class Walk:
    """The verification of one chain, batch by batch."""

    def __init__(self, workspace_id: str, after: Link, known: Link | None) -> None:
        self._workspace_id = workspace_id
        self._known = known
        self._order = (0, 0)
        self._head_seq = 0
        self.end = after
        self.count = 0
        self.done = False

    @property
    def progress(self) -> Progress:
        return Progress(self.end, self._order[0], self._head_seq)

    def go_on(self, kept: Kept | None) -> Fault | None:
        """Begins behind what was verified before, if that is what is kept there."""
        place, revision = self.end.seq, kept.order[0] if kept else 0
        if kept is None or kept.link != self.end:
            message = f"the chain does not hold the entry that was verified at {place}"
            return Fault(FaultKind.KNOWN_HEAD, place, revision, message)
        self._order = kept.order
        return self._rewritten(self.end, revision)

    def step(self, batch: Batch) -> Fault | None:
        """Goes over the next places; the first fault in them, in the order of the places."""
        if batch.head is None:
            return Fault(FaultKind.HEAD, 0, 0, "the end of the chain is not kept")
        self._head_seq = batch.head.seq
        if batch.lowest is not None and batch.lowest < 1:
            return Fault(FaultKind.EXTRA, batch.lowest, 0, f"an entry stands at {batch.lowest}, before the first place")
        places = [chained.entry.seq for chained in batch.entries]
        for chained, following in zip(batch.entries, [*places[1:], batch.following], strict=False):
            fault = self._look(chained, following, batch.head)
            if fault is not None:
                return fault
        return self._close(batch, batch.head) if batch.following is None else None

    def _look(self, chained: Chained, following: int | None, head: Link) -> Fault | None:
        entry, place = chained.entry, self.end.seq + 1

        def fault(kind: FaultKind, message: str) -> Fault:
            return Fault(kind, entry.seq, entry.revision, message)

        if entry.seq > head.seq:
            if place <= head.seq:
                return _missing(place)
            return fault(FaultKind.BEHIND_HEAD, f"the entry at {entry.seq} stands behind the end of the chain at {head.seq}")
        if entry.seq != place:
            return _missing(place)
        if following == place:
            return fault(FaultKind.EXTRA, f"several entries stand at {place}")
        if chained.prev_hash != self.end.hash:
            return fault(FaultKind.PREV_HASH, f"the entry at {place} does not follow the one before it")
        computed = link_hash(chained.prev_hash, self._workspace_id, entry)
        if computed != chained.hash:
            return fault(FaultKind.HASH, f"the hash of the entry at {place} is not that of its content")
        if (entry.revision, entry.ordinal) <= self._order:
            return fault(FaultKind.ORDER, f"the revision of the entry at {place} is not behind that of the one before it")
        rewritten = self._rewritten(Link(place, computed), entry.revision)
        if rewritten is not None:
            return rewritten
        self.end, self._order = Link(place, computed), (entry.revision, entry.ordinal)
        self.count += 1
        return None

    def _rewritten(self, link: Link, revision: int) -> Fault | None:
        """Whether the known head stands at this place, and is another one."""
        if self._known is None or self._known.seq != link.seq or self._known == link:
            return None
        message = f"another entry stood at {link.seq} when the head was signed: history was rewritten"
        return Fault(FaultKind.KNOWN_HEAD, link.seq, revision, message)

    def _close(self, batch: Batch, head: Link) -> Fault | None:
        """Looks at what is not there, when all that was asked for has been gone over."""
        if self.end.seq < min(head.seq, batch.last):
            return _missing(self.end.seq + 1)
        if self.end.seq < head.seq:
            return None
        self.done = True
        if self.end != head:
            message = "the end of the chain is not that of its newest entry"
            return Fault(FaultKind.HEAD, head.seq, self._order[0], message)
        if batch.behind is not None:
            message = f"the entry at {batch.behind} stands behind the end of the chain at {head.seq}"
            return Fault(FaultKind.BEHIND_HEAD, batch.behind, 0, message)
        if self._known is not None and self._known.seq > head.seq:
            message = f"the chain ends at {head.seq}; when the head was signed it ended at {self._known.seq}: it was cut off"
            return Fault(FaultKind.KNOWN_HEAD, self._known.seq, 0, message)
        return None


def _missing(place: int) -> Fault:
    return Fault(FaultKind.MISSING, place, 0, f"the entry at {place} is missing")


def _signature_fault(signed: SignedHead | None, keys: AuditKeys) -> Fault | None:
    if signed is None or keys.vouches(signed):
        return None
    return Fault(FaultKind.SIGNATURE, signed.head.seq, 0, "the head was not signed by a key of this service, or was changed")


class Store(Protocol):
    """The chains that are kept."""

    async def batch(self, workspace_id: str, after: int, last: int) -> Batch:
        """The places behind `after` up to `last`, as many as fit into a message. Raises WorkspaceUnknown."""
        ...

    async def kept(self, workspace_id: str, seq: int) -> Kept | None:
        """What is kept at this place. Raises WorkspaceUnknown."""
        ...


class Chains:
    """Walks over chains. Of those that are under way, which have a batch each in memory, few read at the same time, as each
    would take all that the database gives; one that is told to somebody slow is in nobody's way."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._under_way = 0
        self._reading = asyncio.Semaphore(_READING_MAX)

    async def verify(
        self, workspace_id: str, after: Link | None, signed: SignedHead | None, keys: AuditKeys
    ) -> AsyncGenerator[Progress | Result, None]:
        """How far it is, and at the end the result. `after` was verified before; the chain must hold the signed head.

        Raises WorkspaceUnknown, AuditKeyMissing, Overloaded, Draining.
        """
        with self._slot():
            walk = Walk(workspace_id, after or FIRST_LINK, signed.head.link if signed else None)
            fault = _signature_fault(signed, keys)
            if fault is None and after is not None:
                fault = walk.go_on(await self._store.kept(workspace_id, after.seq))
            while fault is None and not walk.done:
                fault = walk.step(await self._next(workspace_id, walk.end.seq))
                yield walk.progress
            yield Result(walk.count, walk.progress, fault)

    async def export(self, workspace_id: str, after: int) -> AsyncGenerator[Sequence[Chained], None]:
        """All entries behind a place, as they stand there. Raises WorkspaceUnknown, Overloaded, Draining."""
        with self._slot():
            while True:
                batch = await self._next(workspace_id, after)
                if batch.entries:
                    yield batch.entries
                if batch.following is not None:
                    after = batch.entries[-1].entry.seq
                elif batch.head is None or batch.last >= batch.head.seq:
                    return
                else:
                    after = batch.last

    async def _next(self, workspace_id: str, after: int) -> Batch:
        return await call.unless_draining(self._read(workspace_id, after))

    async def _read(self, workspace_id: str, after: int) -> Batch:
        async with self._reading:
            return await self._store.batch(workspace_id, after, after + PLACES_AT_ONCE)

    @contextlib.contextmanager
    def _slot(self) -> Iterator[None]:
        if self._under_way >= _WALKS_MAX:
            raise Overloaded("too many walks over chains of the audit are under way", retry_after_s=5.0)
        self._under_way += 1
        try:
            yield
        finally:
            self._under_way -= 1
