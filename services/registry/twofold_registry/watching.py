"""Watching: every change of metadata, each once, in order and without a gap, for those who keep a copy of it.

One look at the database serves all who watch at this process: it reads the head, what has changed since, and who is
registered, in one statement. Pings that had arrived before a look are answered from it, never from anything older. What was
read is kept for all in one bounded buffer; a watcher has no memory of its own but its place, and one that falls behind the
buffer is told so and cut.
"""

import asyncio
import contextlib
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import NamedTuple, Protocol

import structlog

from twofold_chassis import call
from twofold_chassis.clocks import boot_s
from twofold_chassis.refusals import Reason, Refusal, ResourceExhausted
from twofold_registry.history import Item
from twofold_registry.routers import RouterKey, Routers

BUFFER_BYTES_MAX = 16 * 1024 * 1024
LOOK_ROWS_MAX = 1000
LOOK_BYTES_MAX = 4 * 1024 * 1024
_LOOK_EACH_S = 1.0
_TOLD_AT_ONCE = 16
_AFTER_FAILURE_S = 0.25
_THING_BYTES = 200
"""What it costs besides the resource: ids, and what Python adds."""


class TooManyWatchers(ResourceExhausted):
    """As many watch at this process as may."""

    reason = Reason.REASON_TOO_MANY


class Place(NamedTuple):
    """A place in the history. `tag` tells it from the same place in a past that was rewritten."""

    epoch: int
    revision: int
    tag: int


class Thing(NamedTuple):
    """One thing that was changed, or that is there."""

    workspace_id: str
    item: Item

    @property
    def size(self) -> int:
        """About how many bytes it takes."""
        return _THING_BYTES + len(self.item.after or b"")


@dataclass(frozen=True, slots=True, eq=False)
class Changed:
    """One revision. Told apart by identity: what is made of it for one watcher serves all."""

    revision: int
    tag: int
    at: datetime
    wait: bool
    things: Sequence[Thing]

    @property
    def size(self) -> int:
        """About how many bytes it takes."""
        return sum(thing.size for thing in self.things)


class Look(NamedTuple):
    """What one statement saw. `is_all`: `changes` reach to the head. `routers`: for how many ms each is registered."""

    head: Place
    compacted: int
    at: datetime
    routers: Mapping[RouterKey, int]
    changes: Sequence[Changed]
    is_all: bool


class Opened(NamedTuple):
    """Where a stream begins, and whether that is the place that was asked for."""

    place: Place
    resumed: bool


class State(NamedTuple):
    """A part of what is there."""

    things: Sequence[Thing]


class Checkpoint(NamedTuple):
    """Everything up to `revision` has been told. `nonce` is that of the newest ping this answers, or 0."""

    nonce: int
    epoch: int
    revision: int
    at: datetime
    registered_ms: int
    routers: int


class Resync(NamedTuple):
    """The stream cannot go on."""

    why: str


EPOCH, COMPACTED, SLOW, UNREGISTERED = Resync("epoch"), Resync("compacted"), Resync("slow"), Resync("unregistered")
Told = State | Opened | Changed | Checkpoint | Resync


class Open(NamedTuple):
    """Who begins to watch, and from where."""

    router: RouterKey | None
    place: Place | None
    wants_state: bool
    until_caught_up: bool = False


class Ping(NamedTuple):
    """Asks for a checkpoint."""

    nonce: int


class Ack(NamedTuple):
    """Everything up to there is applied."""

    epoch: int
    revision: int


class Leave(NamedTuple):
    """The router will answer nothing any more."""


Command = Ping | Ack | Leave


class Feed(Protocol):
    """The changes that are kept. Each look is one statement."""

    async def open_at(self, place: Place | None) -> Opened:
        """Where a stream begins that names this place, or none. Renews the epoch if the past was rewritten since."""
        ...

    async def look(self, after: int) -> Look:
        """What has changed since revision `after`, whole revisions of at most about 1,000 rows and 4 MiB."""
        ...

    def state(self) -> contextlib.AbstractAsyncContextManager[tuple[Place, AsyncIterator[Sequence[Thing]]]]:
        """Everything there is at one place, in parts. Raises Overloaded if too many are being read."""
        ...


class Watching:
    """All who watch at this process."""

    def __init__(self, feed: Feed, routers: Routers, *, watchers_max: int, buffer_bytes_max: int = BUFFER_BYTES_MAX) -> None:
        self._feed = feed
        self._routers = routers
        self._watchers_max = watchers_max
        self._buffer_bytes_max = buffer_bytes_max
        self._count = 0
        self._live: set[Watch] = set()
        self._woken = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._logger = structlog.get_logger("twofold.watching")
        # What is kept for all: the changes of this epoch behind `_oldest`, up to `_latest.head`.
        self._changes: deque[Changed] = deque()
        self._bytes = 0
        self._oldest = 0
        self._epoch = 0
        self._latest: Look | None = None

    def wake(self) -> None:
        """Something may have changed."""
        self._woken.set()

    @contextlib.asynccontextmanager
    async def watch(self, order: Open, commands: AsyncIterator[Command]) -> AsyncIterator["Watch"]:
        """A watch that listens to its commands, until the block ends. Raises TooManyWatchers."""
        if self._count >= self._watchers_max:
            raise TooManyWatchers(f"{self._watchers_max} watch at this process", retry_after_s=1.0)
        watch = Watch(self, self._feed, self._routers, order)
        self._count += 1
        hearing = asyncio.create_task(watch.hear(commands))
        try:
            yield watch
        finally:
            # Before anything is waited for, as it may be cancelled again: a router that stayed would be renewed for ever.
            self._count -= 1
            self._live.discard(watch)
            if not self._live and self._task is not None:
                self._task.cancel()
                self._task = None
            hearing.cancel()
            await asyncio.wait([hearing])

    def join(self, watch: "Watch", place: Place) -> bool:
        """Serves the watch from now on, which stands there; False if what is kept for all does not go on from it.

        Looking goes on from there if nobody was looking.
        """
        if self._task is None:
            self._begin_at(place)
            self._task = call.begin_for_all(self._look_on(place))
        self.wake()
        # Of another epoch: it has ended while the watch caught up, or those before the watch are yet to hear of that.
        if place.epoch != self._epoch or place.revision < self._oldest:
            return False
        self._live.add(watch)
        return True

    def since(self, revision: int) -> Sequence[Changed] | None:
        """The next changes behind a revision; None if what is kept does not reach back to it.

        Some only: who takes its time with them must not keep in memory what is not kept for all any more.
        """
        if revision < self._oldest:
            return None
        missing = self._changes[-1].revision - revision if self._changes else 0
        first = len(self._changes) - missing
        return [self._changes[first + index] for index in range(min(missing, _TOLD_AT_ONCE))]

    @property
    def latest(self) -> Look | None:
        """The latest look that reached to the head."""
        return self._latest

    async def _look_on(self, place: Place) -> None:
        failed = False
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_LOOK_EACH_S):
                    await self._woken.wait()
            self._woken.clear()
            try:
                place = await self._look(place)
                await self._renew_routers()  # apart: what was read stays read, whether or not this can be done
                failed = False
            except Exception as error:
                if not failed:
                    told = error.message if isinstance(error, Refusal) else type(error).__name__
                    self._logger.warning("changes cannot be read", error=told, exc_info=not isinstance(error, Refusal))
                failed = True
                self._woken.set()
                await asyncio.sleep(_AFTER_FAILURE_S)

    async def _look(self, place: Place) -> Place:
        asked = [(watch, watch.pinged) for watch in self._live]
        look = await self._feed.look(place.revision)
        lost = _lost(place, look)
        if lost is not None:
            for watch in list(self._live):
                watch.end(lost)
            self._begin_at(look.head)
            return look.head
        for change in look.changes:
            self._changes.append(change)
            self._bytes += change.size
        while self._bytes > self._buffer_bytes_max and len(self._changes) > 1:
            gone = self._changes.popleft()
            self._bytes -= gone.size
            self._oldest = gone.revision
        if not look.is_all:
            self._woken.set()  # pings wait for a look that reaches the head
            last = look.changes[-1]
            return Place(place.epoch, last.revision, last.tag)
        self._latest = look
        for watch, pinged in asked:
            watch.looked(look, pinged)
        return look.head

    async def _renew_routers(self) -> None:
        if self._latest is not None:
            here = [watch.router for watch in self._live if watch.router is not None]
            await self._routers.renew(here, self._latest.routers)

    def _begin_at(self, place: Place) -> None:
        self._changes.clear()
        self._bytes, self._oldest, self._epoch, self._latest = 0, place.revision, place.epoch, None


def _lost(place: Place, look: Look) -> Resync | None:
    if look.head.epoch != place.epoch or look.head.revision < place.revision:
        return EPOCH
    if look.head.revision == place.revision and look.head.tag != place.tag:
        return EPOCH
    return COMPACTED if look.compacted > place.revision else None


class _Pinged(NamedTuple):
    """How many pings have come, and the nonce of the newest: a nonce may come twice."""

    number: int
    nonce: int


_NO_PING = _Pinged(0, 0)


class Watch:
    """One who watches."""

    def __init__(self, watching: Watching, feed: Feed, routers: Routers, order: Open) -> None:
        self.router = order.router
        self.pinged = _NO_PING
        self._order = order
        self._watching = watching
        self._feed = feed
        self._routers = routers
        self._answered = _NO_PING
        self._due = _NO_PING
        self._woken = asyncio.Event()
        self._ended: Resync | Exception | None = None

    async def hear(self, commands: AsyncIterator[Command]) -> None:
        """Does what the watcher says, until it has said all; what is wrong with it ends the stream."""
        try:
            async for command in commands:
                match command:
                    case Ping(nonce):
                        self.pinged = _Pinged(self.pinged.number + 1, nonce)
                        self._watching.wake()
                    case Ack(epoch, revision):
                        if self.router is not None:
                            self._routers.ack(self.router, epoch, revision)
                    case Leave():
                        router, self.router = self.router, None  # from now on nobody misses its registration
                        if router is not None:
                            await self._routers.leave(router)
        except Exception as error:  # noqa: BLE001  (the stream raises it)
            self.end(error)

    def end(self, why: Resync | Exception) -> None:
        """Ends the stream with this."""
        self._ended = self._ended or why
        self._woken.set()

    def looked(self, look: Look, pinged: "_Pinged") -> None:
        """A look has reached the head, and had begun when that ping was the newest."""
        self._due = pinged
        if self.router is not None and self.router not in look.routers:
            self.end(UNREGISTERED)
        self._woken.set()

    async def told(self) -> AsyncGenerator[Told, None]:
        """What the watcher is told, until it cannot go on or the server ends. Raises what a command was refused for."""
        if self.router is not None:
            await self._routers.register(self.router)  # before anything is read
        opened = await self._feed.open_at(self._order.place)
        if self._order.wants_state and not opened.resumed:
            async with self._feed.state() as (place, parts):
                async for things in parts:
                    yield State(things)
            opened = Opened(place, resumed=False)
        yield opened
        revision = opened.place.revision
        async for told in self._caught_up(opened.place):
            if isinstance(told, Changed):
                revision = told.revision
            yield told
            if isinstance(told, Resync):
                return
        checked = boot_s() - _LOOK_EACH_S
        while True:
            await call.unless_draining(self._woken.wait())
            self._woken.clear()
            if isinstance(self._ended, Exception):
                raise self._ended
            changes, latest, pinged = self._watching.since(revision), self._watching.latest, self._due
            if self._ended is not None or changes is None:
                yield self._ended or SLOW
                return
            for change in changes:
                yield change
                revision = change.revision
            if len(changes) == _TOLD_AT_ONCE:
                self._woken.set()  # there may be more
            if latest is None or latest.head.revision != revision:
                continue  # reading has only begun, or goes on
            if pinged != self._answered or boot_s() - checked >= _LOOK_EACH_S:
                yield self._checkpoint(latest, pinged)
                checked = boot_s()
                if self._order.until_caught_up:
                    return

    async def _caught_up(self, place: Place) -> AsyncGenerator[Changed | Resync, None]:
        """What lies between the place and what is kept for all, read for this watcher alone."""
        revision, tag = place.revision, place.tag
        while True:
            look = await self._feed.look(revision)
            lost = _lost(Place(place.epoch, revision, tag), look)
            if lost is not None:
                yield lost
                return
            for change in look.changes:
                yield change
                revision, tag = change.revision, change.tag
            if look.is_all and self._watching.join(self, Place(place.epoch, revision, tag)):
                return

    def _checkpoint(self, look: Look, pinged: "_Pinged") -> Checkpoint:
        nonce, self._answered = pinged.nonce if pinged != self._answered else 0, pinged
        registered_ms = look.routers.get(self.router, 0) if self.router is not None else 0
        return Checkpoint(nonce, look.head.epoch, look.head.revision, look.at, registered_ms, len(look.routers))
