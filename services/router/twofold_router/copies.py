"""Copies of what the registry says: in this process, and behind that in Redis, where all routers share them.

A copy that was lost, or that is old, costs time and nothing else: whether it may be answered from is judged by the revision
that it was read at (knowledge.py), when it is found and once more just before the answer leaves.
"""

import asyncio
import math
import random
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Generic, NamedTuple, Protocol, TypeVar

from twofold_chassis import call
from twofold_chassis.call import Call
from twofold_chassis.clocks import boot_s
from twofold_chassis.refusals import Overloaded, PeerUnavailable, Refusal
from twofold_chassis.revisions import Revision
from twofold_router.flights import Flights
from twofold_router.knowledge import Knowledge, Place, Stamp, Thing

_ROUNDS_MAX = 5
_KEPT_S = 600.0
_DENIED_KEPT_S = 30.0
_JITTER = 0.1
_PUTS_MAX = 64
_NO_SHARE = 8
"""Refusals have an eighth of the room: whoever asks for what does not exist does not push out what is used."""

Key = TypeVar("Key")
Asked = TypeVar("Asked", contravariant=True)
Value = TypeVar("Value")
Some = TypeVar("Some", covariant=True)


class Source(StrEnum):
    """Where an answer came from."""

    PROCESS = "process"
    CACHE = "cache"
    REGISTRY = "registry"


class Told(NamedTuple, Generic[Some]):
    """What the registry told, at which revision. `is_no`: it is a refusal, kept for a shorter time.

    `read_s` is when it was read, in seconds since 1970 by the database's clock; copies are kept without it.
    """

    value: Some
    stamp: Stamp
    is_no: bool
    read_s: float = 0.0


class Unstamped(NamedTuple, Generic[Some]):
    """What the registry told without saying at which revision: that there is no such thing. It is not kept."""

    value: Some


@dataclass(slots=True)
class Held(Generic[Value]):
    """Something to be answered from. `sent_at` is set if it was read for this answer: when the registry was asked. Then
    `read_s` says when it was read by the database's clock.

    `read_at` is when that was, or when it was found in Redis; `kept_until` when it goes. `current_at` is the last version of
    what is known that was seen to have changed nothing it rests on: while that version stands, this need not be looked up
    again.
    """

    value: Value
    stamp: Stamp
    source: Source
    read_at: float
    sent_at: float | None
    current_at: int = -1
    kept_until: float = math.inf
    read_s: float = 0.0


class Truth(Protocol[Asked, Some]):
    """Who owns it."""

    def rests_on(self, key: Asked) -> Sequence[Thing]:
        """The things whose changes may change it."""
        ...

    async def ask(self, key: Asked, least: Revision | None) -> Told[Some] | Unstamped[Some]:
        """What it is now. Raises PeerUnavailable and what the registry refuses."""
        ...


class Shared(Protocol[Asked, Value]):
    """Redis: neither method raises because it is away."""

    async def get(self, epoch: int, key: Asked) -> Told[Value] | None:
        """A copy, of whatever age."""
        ...

    async def put(self, key: Asked, told: Told[Value], ttl_s: float) -> None:
        """Keeps a copy, unless there is a newer one."""
        ...


class Limiter:
    """How many questions to the registry may be under way at once; the rest is refused at once."""

    def __init__(self, most: int) -> None:
        self._left = most

    async def run(self, work: Callable[[], Awaitable[Value]]) -> Value:
        if self._left <= 0:
            raise Overloaded("too many questions to the registry are under way", retry_after_s=0.1)
        self._left -= 1
        try:
            return await work()
        finally:
            self._left += 1


class Copies(Generic[Key, Value]):
    """Copies of one kind."""

    def __init__(
        self,
        knowledge: Knowledge,
        truth: Truth[Key, Value],
        shared: Shared[Key, Value],
        limiter: Limiter,
        *,
        count: Callable[[Source], None],
        copies_max: int,
        read_s: float,
    ) -> None:
        self._knowledge = knowledge
        self._truth = truth
        self._shared = shared
        self._limiter = limiter
        self._count = count
        self._read_s = read_s
        # What is read after that may not be answered any more.
        self._ask_s = min(read_s, knowledge.lease_s)
        self._yes: _Kept[Key, Value] = _Kept(copies_max)
        self._no: _Kept[Key, Value] = _Kept(max(1, copies_max // _NO_SHARE))
        self._epochs = 0
        self._flights: Flights[tuple[int, Key, Revision | None], Held[Value]] = Flights()
        self._puts: set[asyncio.Task[None]] = set()

    def peek(self, key: Key, now: float) -> Held[Value] | None:
        """A copy in this process; whether it may be answered from, `may_answer` tells."""
        if self._epochs != self._knowledge.epochs:
            self._yes.clear()
            self._no.clear()
            self._epochs = self._knowledge.epochs
        return self._yes.find(key, now) or self._no.find(key, now)

    async def shared(self, key: Key) -> Told[Value] | None:
        """A copy in Redis, of whatever age."""
        return await self._shared.get(self._knowledge.place.epoch, key)

    def rests_on(self, key: Key) -> Sequence[Thing]:
        """What such a fact rests on."""
        return self._truth.rests_on(key)

    def find(self, key: Key, least: Revision | None, now: float) -> Held[Value] | None:
        """A copy in this process that may be answered from now."""
        held = self.peek(key, now)
        return held if held is not None and self.may_answer(key, held, least, now) else None

    async def get(self, key: Key, least: Revision | None) -> Held[Value]:
        """A copy, or what the registry says now. Whoever answers from it looks once more whether that may be answered.

        Of many that want the same one reads, with a deadline of its own: whoever it was for may leave. Raises what the
        registry refuses, PeerUnavailable, Overloaded.
        """
        held = self.find(key, least, boot_s())
        if held is not None:
            return held
        # A revision that the stream has passed needs no reading of its own: the floors hold it.
        ahead = None if least is None or self._knowledge.has_passed(least) else least
        return await self._flights.join((self._knowledge.epochs, key, ahead), lambda: self._read(key, ahead))

    def may_answer(self, key: Key, held: Held[Value], least: Revision | None, now: float) -> bool:
        """Whether it may still be answered from. Nothing may be awaited between this and the answer."""
        knowledge = self._knowledge
        if held.sent_at is not None:
            return knowledge.may_answer(held.stamp, self._truth.rests_on(key), least, held.sent_at, now)
        if not knowledge.has_lease(now):
            return False
        if held.current_at != knowledge.version:
            if not knowledge.is_current(held.stamp, self._truth.rests_on(key)):
                return False
            held.current_at = knowledge.version
        return least is None or knowledge.holds(held.stamp, least)

    def answered(self, held: Held[Value]) -> None:
        """Counts that an answer rests on it."""
        self._count(held.source)

    async def close(self) -> None:
        """Ends what is under way."""
        await self._flights.close()
        for put in self._puts:
            put.cancel()
        await asyncio.gather(*self._puts, return_exceptions=True)

    async def _read(self, key: Key, least: Revision | None) -> Held[Value]:
        # The reading belongs to all who wait for it: its time is its own, not what its first caller has left.
        first = call.current()
        call.enter(Call(first.identity, first.request_id, time.monotonic() + self._read_s))
        try:
            async with asyncio.timeout(self._read_s):
                return await self._shared_or_asked(key, least)
        except TimeoutError:
            raise PeerUnavailable("the registry does not answer", retry_after_s=1.0, peer="registry") from None

    async def _shared_or_asked(self, key: Key, least: Revision | None) -> Held[Value]:
        knowledge, things = self._knowledge, self._truth.rests_on(key)
        if knowledge.has_lease(boot_s()):
            found = await self._shared.get(knowledge.place.epoch, key)
            now = boot_s()
            if found is not None and knowledge.may_use(found.stamp, things, least, now):
                return self._keep(key, Held(found.value, found.stamp, Source.CACHE, now, None), is_no=found.is_no)
        for _ in range(_ROUNDS_MAX):
            place, sent_at = knowledge.place, boot_s()
            async with asyncio.timeout(self._ask_s):
                told = await self._limiter.run(lambda: self._truth.ask(key, least))
            stamp = told.stamp if isinstance(told, Told) else _stamp_at_least(place, least)
            read_s = told.read_s if isinstance(told, Told) else 0.0
            held = Held(told.value, stamp, Source.REGISTRY, sent_at, sent_at, read_s=read_s)
            knowledge.answered_in(stamp.epoch)
            if not knowledge.may_answer(stamp, things, least, sent_at, boot_s()):
                continue  # something changed while it was read: it is neither kept nor answered
            if isinstance(told, Told) and stamp.epoch == knowledge.place.epoch:
                self._keep(key, replace(held, sent_at=None, read_s=0.0), is_no=told.is_no)
                self._share(key, told)
            return held
        raise _cannot_tell()

    def _keep(self, key: Key, held: Held[Value], *, is_no: bool) -> Held[Value]:
        kept, other = (self._no, self._yes) if is_no else (self._yes, self._no)
        other.drop(key)
        kept.put(key, replace(held, source=Source.PROCESS, kept_until=held.read_at + _kept_s(is_no=is_no)))
        return held

    def _share(self, key: Key, told: Told[Value]) -> None:
        """Puts it into Redis, behind the answer; not at all where too many are being put, or nobody might use it."""
        if len(self._puts) >= _PUTS_MAX or not self._knowledge.has_lease(boot_s()):
            return
        put = call.begin_for_all(self._put(key, told))
        self._puts.add(put)
        put.add_done_callback(self._puts.discard)

    async def _put(self, key: Key, told: Told[Value]) -> None:
        await self._shared.put(key, told, _kept_s(is_no=told.is_no))


class _Kept(Generic[Key, Value]):
    """At most so many; those that were found last."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._kept: OrderedDict[Key, Held[Value]] = OrderedDict()

    def find(self, key: Key, now: float) -> Held[Value] | None:
        held = self._kept.get(key)
        if held is None:
            return None
        if now >= held.kept_until:
            del self._kept[key]
            return None
        self._kept.move_to_end(key)
        return held

    def put(self, key: Key, held: Held[Value]) -> None:
        self._kept[key] = held
        self._kept.move_to_end(key)
        if len(self._kept) > self._most:
            self._kept.popitem(last=False)

    def drop(self, key: Key) -> None:
        self._kept.pop(key, None)

    def clear(self) -> None:
        self._kept.clear()


def _stamp_at_least(place: Place, least: Revision | None) -> Stamp:
    # It was read after all that was known when it was asked for, and not before the revision that was asked for.
    known = Stamp(place.epoch, place.revision)
    return known if least is None else max(known, Stamp(least.epoch, least.number))


def _kept_s(*, is_no: bool) -> float:
    return (_DENIED_KEPT_S if is_no else _KEPT_S) * random.uniform(1 - _JITTER, 1 + _JITTER)


def _cannot_tell() -> Refusal:
    return PeerUnavailable("what the registry says changes faster than it can be read", retry_after_s=0.1, peer="registry")
