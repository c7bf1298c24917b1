"""What this router knows of the registry's history, and what it may answer from that.

Everything kept here or in Redis carries the revision it was read at. It may be answered from for as long as two things hold.
No change since then has touched what it rests on: the floor of each such thing is the revision that changed it last, as the
stream of changes told; what no change was seen of has the floor `base`, behind which every change has been seen. And the
lease runs: a ping that was sent less than a lease ago was answered with the place that the stream has come to. So an answer
never is older than the lease, whatever Redis, clocks and networks do. See Gray & Cheriton, Leases, 1989.

All in one event loop; no time here is a wall clock's, but that of the database, which judges the ends of grants.
"""

import asyncio
import itertools
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import NamedTuple

from twofold_chassis.clocks import boot_s
from twofold_chassis.revisions import Revision

FLOORS_MAX = 200_000
_TRIMMED_AT_ONCE = 8
"""The share of the floors that goes when there are too many: only copies from before those are lost, not all."""
_PINGS_MAX = 64
_NEVER = float("-inf")
_MARGIN_S = 0.05

Thing = tuple[str, ...]
"""What an answer may rest on, e.g. ("user", workspace, user)."""


def workspace_thing(workspace_id: str) -> Thing:
    return ("workspace", workspace_id)


def plan_thing(workspace_id: str) -> Thing:
    return ("plan", workspace_id)


def user_thing(workspace_id: str, user_id: str) -> Thing:
    return ("user", workspace_id, user_id)


def agent_thing(workspace_id: str, agent_id: str) -> Thing:
    return ("agent", workspace_id, agent_id)


def route_thing(workspace_id: str, agent_id: str) -> Thing:
    return ("route", workspace_id, agent_id)


def permission_thing(workspace_id: str, user_id: str, agent_id: str) -> Thing:
    return ("permission", workspace_id, user_id, agent_id)


class Broken(Exception):  # noqa: N818  (a state, not an error)
    """What the stream tells does not fit what is known: it is opened anew."""


class OldPrimary(Broken):
    """The stream is of an epoch before ours: of a Postgres that should not be answering any more."""


class Place(NamedTuple):
    """How far the stream has come."""

    epoch: int
    revision: int
    tag: int


class Stamp(NamedTuple):
    """At which revision something was read."""

    epoch: int
    revision: int

    def token(self) -> bytes:
        return _token(self)


@lru_cache(maxsize=4096)  # many copies were read at the same revision
def _token(stamp: Stamp) -> bytes:
    return Revision(stamp.epoch, stamp.revision).token()


class StreamState(NamedTuple):
    """Whether changes are heard, since when that is so, and why they are not."""

    is_open: bool
    since: float
    trouble: str


class Knowledge:
    """The state; `lease_s` is how long an answered ping lets us answer, counted from when it was sent."""

    def __init__(self, *, lease_s: float, floors_max: int = FLOORS_MAX) -> None:
        self.lease_s = lease_s
        self._floors_max = floors_max
        self.place = Place(0, -1, 0)
        self.base = -1
        self.lease_until = _NEVER
        self.registered_until = _NEVER
        self.registered_since = _NEVER
        """Since when this router has been registered without a gap."""
        self.routers = 1
        self.stream = StreamState(is_open=False, since=boot_s(), trouble="the registry has not been heard yet")
        self.version = 0
        """Rises whenever a floor, the base or the epoch may have changed."""
        self.epochs = 0
        """How many have begun here: what was kept in one is of no use in the next."""
        self.newest_epoch = 0
        """The newest that was heard of, here or in an answer of the registry."""
        self._floors: dict[Thing, int] = {}  # by revision: the thing that changed last stands last
        self._pings: dict[int, float] = {}
        # The database's clock in seconds when the ping that holds the lease was answered, and when that was sent.
        self._database = (0.0, 0.0)
        self._moved = asyncio.Event()
        self.listeners: list[Callable[[Sequence[Thing] | None], None]] = []
        """Each hears what has changed, once that is known here; None: anything may have, unseen."""

    # What the stream tells -----------------------------------------------------------------------------------

    def opened(self) -> None:
        """A new stream: answers to pings of an earlier one do not count."""
        self._pings.clear()

    def lost(self, trouble: str, now: float) -> None:
        """The stream has ended."""
        self.stream = StreamState(is_open=False, since=now if self.stream.is_open else self.stream.since, trouble=trouble)

    def started(self, place: Place, *, resumed: bool) -> None:
        """The stream goes on behind this place. Raises OldPrimary, Broken."""
        if place.epoch < self.newest_epoch:
            raise OldPrimary(f"epoch {place.epoch} after {self.newest_epoch}")
        self.newest_epoch = place.epoch
        self.stream = StreamState(is_open=True, since=boot_s(), trouble="")
        self.version += 1
        if resumed:
            if place != self.place:
                raise Broken("resumed somewhere else")
            return
        if place.epoch > self.place.epoch:
            self.lease_until = _NEVER
            self.epochs += 1
        elif place.revision < self.place.revision:  # what has been heard since is told again, and not forgotten
            self.place = place
            return
        self.place, self.base = place, place.revision
        self._floors.clear()  # none is behind this place
        self._move()
        self._tell(None)

    def changed(self, revision: int, tag: int, things: Sequence[Thing]) -> None:
        """The next revision changed these. Raises Broken if it is not the next."""
        if revision != self.place.revision + 1:
            raise Broken(f"revision {revision} after {self.place.revision}")
        self.version += 1
        for thing in things:
            self._floors[thing] = max(revision, self._floors.pop(thing, -1))
        self.place = Place(self.place.epoch, revision, tag)
        if len(self._floors) > self._floors_max:
            self._trim()
        self._move()
        self._tell(things)

    def pinged(self, nonce: int, sent_at: float) -> None:
        """A ping was sent."""
        self._pings[nonce] = sent_at
        while len(self._pings) > _PINGS_MAX:
            del self._pings[next(iter(self._pings))]

    def checked(self, nonce: int, epoch: int, revision: int, database_s: float, registered_s: float, routers: int) -> bool:
        """Everything up to there has been told; True if that answers a ping. Raises Broken if that is not where we are."""
        if (epoch, revision) != (self.place.epoch, self.place.revision):
            raise Broken(f"checkpoint at {epoch}/{revision}, we are at {self.place.epoch}/{self.place.revision}")
        self.routers = max(1, routers)
        sent_at = self._pings.pop(nonce, None)
        if sent_at is None:  # nobody's ping: it says nothing of when it was read
            return False
        self._pings = {other: at for other, at in self._pings.items() if at > sent_at}
        if sent_at + self.lease_s > self.lease_until:
            self.lease_until = sent_at + self.lease_s
            self._database = (database_s, sent_at)
        if self.registered_until < sent_at:
            self.registered_since = sent_at
        self.registered_until = max(self.registered_until, sent_at + registered_s)
        self._move()
        return True

    def answered_in(self, epoch: int) -> None:
        """The registry has answered a question in this epoch: a stream of one before it is that of an old Postgres."""
        if epoch > self.newest_epoch:
            self.newest_epoch = epoch
            self._move()

    # What may be answered ------------------------------------------------------------------------------------

    def floor(self, things: Sequence[Thing]) -> int:
        """The oldest revision at which something that rests on these may have been read."""
        floor, floors = self.base, self._floors
        for thing in things:  # twice for each answer: a loop takes half the time of max() over a generator
            if thing in floors and floors[thing] > floor:
                floor = floors[thing]
        return floor

    def changed_at(self, thing: Thing) -> int | None:
        """The revision that changed it last, if that was heard and is not forgotten."""
        return self._floors.get(thing)

    @property
    def pinged_at(self) -> float | None:
        """When the ping was sent that holds the lease; None if none has been answered."""
        return None if self.lease_until == _NEVER else self.lease_until - self.lease_s

    @property
    def is_known(self) -> bool:
        """Whether a ping has ever been answered. Before that nothing may be answered."""
        return self.registered_until != _NEVER

    def until(self) -> float:
        """Until when copies may be answered from."""
        return min(self.lease_until, self.registered_until)

    def may_use(self, stamp: Stamp, things: Sequence[Thing], least: Revision | None, now: float) -> bool:
        """Whether a copy that was read at `stamp` may be answered from now."""
        return self.has_lease(now) and self.is_current(stamp, things) and (least is None or self.holds(stamp, least))

    def has_lease(self, now: float) -> bool:
        """Whether copies may be answered from at all."""
        return now < self.lease_until and now < self.registered_until

    def is_current(self, stamp: Stamp, things: Sequence[Thing]) -> bool:
        """Whether nothing has changed these since `stamp`: so it is for as long as the version stands."""
        return stamp.epoch == self.place.epoch and stamp.revision >= self.floor(things)

    def may_answer(self, stamp: Stamp, things: Sequence[Thing], least: Revision | None, sent_at: float, now: float) -> bool:
        """Whether what was read from the registry, asked at `sent_at`, may be answered now."""
        return (
            now < sent_at + self.lease_s
            and now < self.registered_until
            and stamp.epoch >= self.place.epoch
            and (stamp.epoch > self.place.epoch or stamp.revision >= self.floor(things))
            and (least is None or self.holds(stamp, least))
        )

    def has_passed(self, least: Revision) -> bool:
        """Whether the stream has come to this revision, so that the floors hold it."""
        return least.epoch == self.place.epoch and least.number <= self.place.revision

    def holds(self, stamp: Stamp, least: Revision) -> bool:
        """Whether what is no older than its floors, and was read at `stamp`, holds everything that `least` holds."""
        if least.epoch != stamp.epoch:
            return False
        # If the stream has passed it, the floors hold it, however old the own stamp is.
        return self.has_passed(least) or least.number <= stamp.revision

    def database_s(self, now: float) -> float:
        """What the database's clock says at most; at most a lease ahead of it."""
        read_s, sent_at = self._database
        return read_s + (now - sent_at)

    def sharing(self, now: float) -> int:
        """How many routers share what may be given out without asking; 0 if this one may not: others may not know it yet."""
        if not self.registered_since + self.lease_s + _MARGIN_S <= now < self.registered_until:
            return 0
        return self.routers

    async def until_passed(self, least: Revision, within_s: float) -> None:
        """Returns when the stream has come to this revision, or the time is over."""
        await self._wait(lambda: self.has_passed(least), within_s)

    async def until_old(self) -> None:
        """Returns when the stream is of an epoch before one that the registry answers in."""
        await self._wait(lambda: self.newest_epoch > self.place.epoch, None)

    async def until_known(self, within_s: float) -> None:
        """Returns when the first ping was answered, or the time is over."""
        await self._wait(lambda: self.is_known, within_s)

    def _trim(self) -> None:
        """Forgets the oldest floors. Both at once: nobody may see that they are gone before the base has risen."""
        for thing in list(itertools.islice(self._floors, max(1, len(self._floors) // _TRIMMED_AT_ONCE))):
            self.base = max(self.base, self._floors.pop(thing))

    def _tell(self, things: Sequence[Thing] | None) -> None:
        for listener in self.listeners:
            listener(things)

    def _move(self) -> None:
        self._moved.set()
        self._moved = asyncio.Event()

    async def _wait(self, is_so: Callable[[], bool], within_s: float | None) -> None:
        try:
            async with asyncio.timeout(within_s):
                while not is_so():
                    await self._moved.wait()
        except TimeoutError:
            return
