"""Tails: what all streams of this router that follow the same log share: one subscription to its nudges, and its readings.

Nudges are never trusted to be all: every tail that somebody follows is looked at now and then as well, so that what is lost
or late costs that long at most, and nothing else.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any, NamedTuple, Protocol

import structlog

from twofold_chassis import call
from twofold_chassis.alongside import alongside
from twofold_chassis.refusals import Overloaded
from twofold_router.events import Batch, Gap, LogKey, Logs, LogUnavailable, Nudges, Place, Reading, Reset, told_of

TAILS_MAX = 100_000
# As they are stored; as they are told they may be kept as well.
_KEPT_BYTES_EACH = 512 * 1024
_KEPT_BYTES_MAX = 16 * 1024 * 1024
_LOOKS_AT_ONCE = 64
_SLICES = 8


class Step(NamedTuple):
    """What whoever stands at a place is told next, and where he stands then. Shared by all who stand there."""

    told: Sequence[Batch | Gap | Reset]
    place: Place
    size: int


class Follower(Protocol):
    """Somebody who follows a tail."""

    @property
    def known(self) -> Place | None:
        """Up to where he knows the log; None if he knows nothing of it yet, or was told that it cannot be read."""
        ...

    def wake(self) -> None:
        """There may be something to be told."""
        ...


class _Flight(NamedTuple):
    news: int
    task: "asyncio.Task[Step]"


class Tail:
    """The end of one log, as far as this router knows it."""

    def __init__(self, log: LogKey, tails: "Tails") -> None:
        self.log = log
        self.followers: set[Follower] = set()
        # The newest place that is known of. It is no promise: a nudge may be older than what was read.
        self.head: Place | None = None
        # Rises with whatever says that there may be more: a reading that began before is not the answer to it.
        self._news = 0
        self._tails = tails
        self._listens = False
        self._is_closed = False
        self._opening: asyncio.Task[None] | None = None
        self._flights: dict[Place, _Flight] = {}
        # Steps are kept for those who are a little behind, the newest ones, until the next look at the log.
        self._kept: dict[Place, Step] = {}
        self._kept_bytes = 0

    def is_ahead_of(self, place: Place | None) -> bool:
        """Whether more is known of than who stands there has been told."""
        return self.head is None or _is_behind(place, self.head)

    async def listen(self) -> None:
        """Returns once nudges are heard: what is read after that misses nothing. Raises LogUnavailable."""
        if self._listens:
            return
        if self._opening is None:
            self._opening = call.begin_for_all(self._listen())
            self._opening.add_done_callback(_seen)
        await asyncio.shield(self._opening)

    async def step(self, place: Place) -> Step:
        """What follows a place, with all that was known to be news when it was asked for. Raises LogUnavailable."""
        kept = self._kept.get(place)
        if kept is not None:
            return kept
        flight = self._flights.get(place)
        if flight is None or flight.news != self._news:
            flight = self._flights[place] = _Flight(self._news, call.begin_for_all(self._read(place, self._news)))
            flight.task.add_done_callback(_seen)
        return await asyncio.shield(flight.task)

    async def look(self) -> None:
        """Looks whether there is more than is known of."""
        self._drop_kept()
        self._news += 1
        try:
            await self.listen()
            if self.head is not None:
                await self.step(self.head)
        except LogUnavailable:
            self._tails.failed()
            return
        self._wake_those_behind()

    def missed(self) -> None:
        """Whatever was to be heard of it may have been missed: the log must be read, whatever is known of it."""
        self._news += 1
        for follower in tuple(self.followers):
            follower.wake()

    def close(self) -> None:
        """Nobody follows it any more."""
        self._drop_kept()
        self._is_closed = True
        self._tails.nudges.leave(self.log, self._nudged)

    async def _listen(self) -> None:
        try:
            await self._tails.nudges.listen(self.log, self._nudged, self.missed)
            self._listens = True
        finally:
            self._opening = None
        if self._is_closed:
            self._tails.nudges.leave(self.log, self._nudged)

    def _nudged(self, place: Place) -> None:
        if not _is_behind(self.head, place):
            return
        self._news += 1
        self.head = place
        self._wake_those_behind()

    def _wake_those_behind(self) -> None:
        for follower in tuple(self.followers):
            if self.is_ahead_of(follower.known):
                follower.wake()

    async def _read(self, place: Place, news: int) -> Step:
        try:
            reading = await self._tails.logs.follow(self.log, place)
        except LogUnavailable:
            self._tails.failed()
            raise
        finally:
            flight = self._flights.get(place)
            if flight is not None and flight.news == news:
                del self._flights[place]
        self._read_to(reading, news)
        told, behind = told_of(place, reading)
        step = Step(told, behind, sum(len(entry.form) for entry in reading.entries))
        if told and len(self.followers) > 1 and not self._is_closed:
            self._keep(place, step)
        return step

    def _keep(self, place: Place, step: Step) -> None:
        """Keeps a step, and the newest ones before it, as much as one tail may keep and all together."""
        self._drop_kept(place)
        while self._kept and self._kept_bytes + step.size > _KEPT_BYTES_EACH:
            self._drop_kept(next(iter(self._kept)))
        if self._tails.may_keep(step.size):
            self._kept[place] = step
            self._kept_bytes += step.size

    def _read_to(self, reading: Reading, news: int) -> None:
        """A nudge that came meanwhile may tell of more than was read, or of what is long over: then it is read again."""
        head = self.head
        goes_on = head is not None and reading.epoch == head.epoch and reading.last > head.offset
        if head is None or goes_on or news == self._news:
            self.head = reading.head

    def _drop_kept(self, *places: Place) -> None:
        for place in places or tuple(self._kept):
            step = self._kept.pop(place, None)
            if step is not None:
                self._kept_bytes -= step.size
                self._tails.dropped(step.size)


class Tails:
    """All tails of a router.

    `poll_s` is how often each is looked at. What is kept for those behind is bounded for all together.
    """

    def __init__(self, logs: Logs, nudges: Nudges, *, poll_s: float) -> None:
        self.logs = logs
        self.nudges = nudges
        self._poll_s = poll_s
        self._tails: dict[LogKey, Tail] = {}
        self._kept_bytes = 0
        self._failures = 0
        self._changed: Callable[[], None] | None = None
        # Whether a log that was asked lately did not answer.
        self.away = False
        self._logger = structlog.get_logger("twofold.events")

    def __len__(self) -> int:
        return len(self._tails)

    @contextlib.asynccontextmanager
    async def looking(self) -> AsyncIterator[None]:
        """Looks at every tail now and then, until the block ends."""
        async with alongside(self._look_on()):
            yield

    def join(self, log: LogKey, follower: Follower) -> Tail:
        """The tail of a log, for somebody who follows it from now on. Raises Overloaded."""
        tail = self._tails.get(log)
        if tail is None:
            if len(self._tails) >= TAILS_MAX:
                raise Overloaded("too many agents are followed through this router", retry_after_s=1.0)
            tail = self._tails[log] = Tail(log, self)
        tail.followers.add(follower)
        return tail

    def leave(self, tail: Tail, follower: Follower) -> None:
        """He follows it no longer."""
        tail.followers.discard(follower)
        if not tail.followers and self._tails.get(tail.log) is tail:
            del self._tails[tail.log]
            tail.close()

    def missed(self) -> None:
        """Whatever was to be heard may have been missed."""
        for tail in tuple(self._tails.values()):
            tail.missed()

    def tell(self, changed: Callable[[], None]) -> None:
        """Calls it when `away` has changed."""
        self._changed = changed

    def failed(self) -> None:
        """A log was asked, and did not answer."""
        self._failures += 1
        self._set_away(True)

    def may_keep(self, size: int) -> bool:
        """Whether so much more may be kept; if so, it is."""
        if self._kept_bytes + size > _KEPT_BYTES_MAX:
            return False
        self._kept_bytes += size
        return True

    def dropped(self, size: int) -> None:
        """So much is kept no longer."""
        self._kept_bytes -= size

    async def _look_on(self) -> None:
        """Each tail once in a period, and not all at the same time."""
        at_once = asyncio.Semaphore(_LOOKS_AT_ONCE)

        async def look(tail: Tail) -> None:
            async with at_once:
                if tail.followers:
                    await self._look_at(tail)

        while True:
            tails, self._failures = [*self._tails.values()], 0
            for number in range(_SLICES):
                await asyncio.gather(asyncio.sleep(self._poll_s / _SLICES), *map(look, tails[number::_SLICES]))
            if not self._failures:
                self._set_away(False)

    async def _look_at(self, tail: Tail) -> None:
        try:
            await tail.look()
        except Exception as error:
            # Whatever it was, the next look must come: it is what finds out about everything else that went wrong.
            self._logger.error("a look at a log failed", exc_info=error)

    def _set_away(self, away: bool) -> None:
        if away is not self.away:
            self.away = away
            if self._changed is not None:
                self._changed()


def _is_behind(place: Place | None, head: Place) -> bool:
    """Whether there is more than who stands there has been told. Another epoch is more, whichever it is."""
    return place is None or place.epoch != head.epoch or place.offset < head.offset


def _seen(task: "asyncio.Task[Any]") -> None:
    if not task.cancelled():
        task.exception()  # those who waited for it may be gone: then nobody else looks at it
