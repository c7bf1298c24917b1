"""Streams of events: what one caller follows, from where, and how fast it may come.

A stream holds a place in each log, and at most a small queue of what its caller has not taken yet: a caller that takes
nothing costs that much and nothing more, and is told as a gap what the logs drop meanwhile.
"""

import asyncio
import contextlib
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable, Collection, Sequence
from enum import Enum
from itertools import islice
from typing import NamedTuple, Protocol

from twofold_chassis.refusals import InvalidField, Overloaded, Refusal
from twofold_router.event_tails import Step, Tail, Tails
from twofold_router.events import (
    Batch,
    Entry,
    Gap,
    LogKey,
    LogUnavailable,
    OffsetOutOfRange,
    Place,
    Reading,
    Reset,
    check_within,
)

AGENTS_MAX = 1000
_QUEUE_BYTES_MAX = 256 * 1024
_TOLD_MAX = 1000
_READS_AT_ONCE = 16
# What comes within this time behind something that was just told is told together: a message costs the same with one event
# and with many. The first one waits for nothing.
_REST_S = 0.005
_REST_BYTES_MAX = 64 * 1024


class Start(Enum):
    """From where, if not from behind a place."""

    NOW = "now"
    OLDEST = "oldest"


class Wanted(NamedTuple):
    """Of which agent, and from where."""

    agent_id: str
    start: Start | Place


class Opening(NamedTuple):
    """What a stream is about. `credits` is None if any number of events may come."""

    workspace_id: str
    wanted: Sequence[Wanted]
    credits: int | None
    until_caught_up: bool


class Added(NamedTuple):
    """More agents."""

    wanted: Sequence[Wanted]


class Removed(NamedTuple):
    """Fewer agents."""

    agent_ids: Sequence[str]


class Credit(NamedTuple):
    """So many more events may come."""

    events: int


Wish = Added | Removed | Credit


class Subscribed(NamedTuple):
    """What is behind this place is told."""

    place: Place


class CaughtUp(NamedTuple):
    """All that was there has been told."""

    place: Place


class Refused(NamedTuple):
    """It cannot be told from there."""

    refusal: OffsetOutOfRange


class Left(NamedTuple):
    """It was taken off the stream."""


class Delivery(Enum):
    """How events come."""

    LIVE = "live"
    DELAYED = "delayed"
    AWAY = "away"


class Of(NamedTuple):
    """Something that is told of an agent."""

    agent_id: str
    told: Batch | Gap | Reset | Subscribed | CaughtUp | Refused | Left


class Counted(Protocol):
    """What is counted of streams."""

    def delivered(self, events: int) -> None:
        """Events were handed out."""
        ...

    def gap(self) -> None:
        """Events were announced as missing."""
        ...

    def reset(self) -> None:
        """A log was announced to begin anew."""
        ...


class _Cursor:
    """Where a stream stands in the log of one agent."""

    __slots__ = ("agent_id", "is_caught_up", "is_unread", "place", "start", "stream", "tail")

    def __init__(self, stream: "EventStream", agent_id: str, start: Start | Place) -> None:
        self.stream = stream
        self.agent_id = agent_id
        self.start = start
        self.tail: Tail | None = None
        self.place: Place | None = None
        self.is_caught_up = False
        # Whether its log did not answer when it was asked last: what it would have said is owed.
        self.is_unread = False

    @property
    def known(self) -> Place | None:
        return None if self.is_unread else self.place

    def wake(self) -> None:
        self.stream.wake(self)


class EventStream:
    """The events that one caller follows. `next` is called by one task; the rest at any time."""

    def __init__(
        self, tails: Tails, opening: Opening, delivery: Callable[[], Delivery], counted: Counted, *, heartbeat_s: float
    ) -> None:
        self._tails = tails
        self._workspace_id = opening.workspace_id
        self._credits = opening.credits
        self._until_caught_up = opening.until_caught_up
        self._delivery = delivery
        self._counted = counted
        self._heartbeat_s = heartbeat_s
        self._cursors: dict[str, _Cursor] = {}
        self._behind: OrderedDict[_Cursor, None] = OrderedDict()
        self._queue: list[Of] = []
        self._taken = asyncio.Event()
        self._said = Delivery.LIVE
        self._rests_until = 0.0
        # How many logs are read at once: fewer where there was no room for what was read of the last ones.
        self._at_once = _READS_AT_ONCE
        self._failure: BaseException | None = None
        self._news = asyncio.Event()
        try:
            self._add(opening.wanted, "open.agents")
        except Refusal:
            self.close()
            raise

    async def next(self) -> Sequence[Of] | Delivery | None:
        """What is to be told next; None when all is told that was wanted. Raises what a wish was refused with."""
        while True:
            self._news.clear()
            if self._failure is not None:
                raise self._failure
            if self._queue:
                told, self._queue = self._queue, []
                self._taken.set()
                return told
            if self._next_behind():
                await self._rest()
                await self._read()
                continue
            if self._until_caught_up and self._all_caught_up():
                return None
            if (delivery := self._delivery()) is not self._said:
                self._said = delivery
                return delivery
            try:
                async with asyncio.timeout(self._heartbeat_s):
                    await self._news.wait()
            except TimeoutError:
                return self._delivery()

    async def until_taken(self) -> None:
        """Returns when the caller has taken enough to wish for more: what wishes lead to waits for it as well."""
        while len(self._queue) >= _TOLD_MAX:
            self._taken.clear()
            await self._taken.wait()

    def obey(self, wish: Wish) -> None:
        """Does what the caller wishes. Raises InvalidField, Overloaded."""
        if isinstance(wish, Credit):
            if self._credits is not None:
                self._credits += wish.events
        elif isinstance(wish, Added):
            self._add(wish.wanted, "add.agents")
        else:
            self._queue += [Of(agent_id, Left()) for agent_id in self._remove(wish.agent_ids)]
        self._news.set()

    def fail(self, error: BaseException) -> None:
        """Ends the stream with this error."""
        self._failure = error
        self._news.set()

    def look_again(self) -> None:
        """How events come may have changed."""
        self._news.set()

    def close(self) -> None:
        """Nothing is followed any more."""
        self._remove(tuple(self._cursors))

    def wake(self, cursor: _Cursor) -> None:
        """There may be something to be told of this agent."""
        if cursor not in self._behind:
            self._behind[cursor] = None
            self._news.set()

    def _add(self, wanted: Sequence[Wanted], field: str) -> None:
        if len(self._cursors.keys() | {one.agent_id for one in wanted}) > AGENTS_MAX:
            raise InvalidField(field, f"at most {AGENTS_MAX} agents may be on one stream")
        self._remove([one.agent_id for one in wanted])
        for agent_id, start in wanted:
            cursor = _Cursor(self, agent_id, start)
            cursor.tail = self._tails.join(LogKey(self._workspace_id, agent_id), cursor)
            self._cursors[agent_id] = cursor
            self.wake(cursor)

    def _remove(self, agent_ids: Collection[str]) -> list[str]:
        """Takes agents off, and returns those that were there."""
        gone = [agent_id for agent_id in agent_ids if self._drop(agent_id)]
        if gone:
            # What waits of them would be told behind their end.
            of_them = frozenset(gone)
            self._queue = [told for told in self._queue if told.agent_id not in of_them]
        return gone

    def _drop(self, agent_id: str) -> bool:
        cursor = self._cursors.pop(agent_id, None)
        if cursor is None:
            return False
        self._behind.pop(cursor, None)
        if cursor.tail is not None:
            self._tails.leave(cursor.tail, cursor)
            cursor.tail = None
        return True

    def _next_behind(self) -> list[_Cursor]:
        """The next ones to be read. Without credits those of which nothing has been told yet: that costs none."""
        return [*islice((cursor for cursor in self._behind if self._credits != 0 or cursor.place is None), self._at_once)]

    async def _rest(self) -> None:
        left_s = self._rests_until - asyncio.get_running_loop().time()
        if left_s > 0:
            await asyncio.sleep(left_s)

    async def _read(self) -> None:
        """Reads what some agents have to tell, and queues as much of it as may be."""
        some = self._next_behind()
        for cursor in some:
            del self._behind[cursor]
        if len(some) == 1:
            found = [await self._found(some[0])]
        else:
            found = await asyncio.gather(*map(self._found, some))
        size, catches_up, had_room = 0, False, 0
        for cursor, step in zip(some, found, strict=True):
            if cursor.tail is None or step is None:
                continue  # taken off meanwhile, or to be looked at again when its log is
            if size <= _QUEUE_BYTES_MAX and self._credits != 0:
                size += step.size
                had_room += 1
                catches_up |= not cursor.is_caught_up
                self._take(cursor, step)
            if cursor.tail.is_ahead_of(cursor.place):
                self.wake(cursor)
            elif not cursor.is_caught_up and cursor.place is not None:
                cursor.is_caught_up = True
                self._queue.append(Of(cursor.agent_id, CaughtUp(cursor.place)))
        self._at_once = min(_READS_AT_ONCE, max(1, had_room if size > _QUEUE_BYTES_MAX else 2 * self._at_once))
        if 0 < size < _REST_BYTES_MAX and not catches_up:
            self._rests_until = asyncio.get_running_loop().time() + _REST_S

    async def _found(self, cursor: _Cursor) -> Step | None:
        """What an agent has to tell; None while it cannot be said: the next look at its log wakes the cursor."""
        tail = cursor.tail
        assert tail is not None
        try:
            await tail.listen()
            if cursor.place is None:
                self._begin(cursor, await self._tails.logs.head(tail.log, begin=True))
                if cursor.place is None:
                    return None
            step = await tail.step(cursor.place)
        except LogUnavailable:
            cursor.is_unread = True
            self._tails.failed()
            return None
        cursor.is_unread = False
        return step

    def _begin(self, cursor: _Cursor, there: Reading) -> None:
        if cursor.tail is None:
            return  # taken off meanwhile
        start, agent_id = cursor.start, cursor.agent_id
        if isinstance(start, Place):
            try:
                check_within(start, there)
            except OffsetOutOfRange as refusal:
                self._drop(agent_id)
                self._queue.append(Of(agent_id, Refused(refusal)))
                return
            cursor.place = start
        else:
            cursor.place = there.head if start is Start.NOW else Place(there.epoch, there.first - 1)
        self._queue.append(Of(agent_id, Subscribed(cursor.place)))

    def _take(self, cursor: _Cursor, step: Step) -> None:
        """Queues a step, or as much of it as there are credits for."""
        for told in step.told:
            if isinstance(told, Batch):
                told = self._within_credits(told)
                self._counted.delivered(len(told.entries))
                cursor.place = Place(told.epoch, told.entries[-1].offset)
            elif isinstance(told, Gap):
                self._counted.gap()
                cursor.place = Place(told.epoch, told.last)
            else:
                self._counted.reset()
                cursor.place = Place(told.epoch, 0)
            self._queue.append(Of(cursor.agent_id, told))
            if self._credits == 0:
                return
        cursor.place = step.place

    def _within_credits(self, batch: Batch) -> Batch:
        if self._credits is None:
            return batch
        entries: Sequence[Entry] = batch.entries[: self._credits]
        self._credits -= len(entries)
        return batch if len(entries) == len(batch.entries) else Batch(batch.epoch, entries)

    def _all_caught_up(self) -> bool:
        return all(cursor.is_caught_up for cursor in self._cursors.values())


class EventStreams:
    """All streams of a router, at most `streams_max`."""

    def __init__(self, tails: Tails, counted: Counted, *, streams_max: int, heartbeat_s: float) -> None:
        self._tails = tails
        self._counted = counted
        self._streams_max = streams_max
        self._heartbeat_s = heartbeat_s
        self._streams: set[EventStream] = set()
        self._deaf = False
        tails.tell(self._look_again)

    def __len__(self) -> int:
        return len(self._streams)

    @contextlib.asynccontextmanager
    async def open(self, opening: Opening) -> AsyncIterator[EventStream]:
        """A stream, until the block ends. Raises Overloaded, InvalidField."""
        if len(self._streams) >= self._streams_max:
            raise Overloaded("too many streams of events in this process", retry_after_s=1.0)
        stream = EventStream(self._tails, opening, self.delivery, self._counted, heartbeat_s=self._heartbeat_s)
        self._streams.add(stream)
        try:
            yield stream
        finally:
            self._streams.discard(stream)
            stream.close()

    def delivery(self) -> Delivery:
        """How events come."""
        if self._tails.away:
            return Delivery.AWAY
        return Delivery.DELAYED if self._deaf else Delivery.LIVE

    def heard(self, hears: bool) -> None:
        """Whether nudges are heard now. When they are again, whatever was to be heard before may have been missed."""
        was_deaf, self._deaf = self._deaf, not hears
        if was_deaf and hears:
            self._tails.missed()
        if was_deaf is hears:
            self._look_again()

    def _look_again(self) -> None:
        for stream in tuple(self._streams):
            stream.look_again()
