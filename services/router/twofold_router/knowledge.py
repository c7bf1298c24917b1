"""What this router knows of the registry's history, and what it may answer from that.

Everything kept here or in Redis carries the revision it was read at. It may be answered from for as long as two things hold.
No change since then has touched what it rests on: the floor of each such thing is the revision that changed it last, as the
stream of changes told; what no change was seen of has the floor `base`, behind which every change has been seen. And the
lease runs: a ping that was sent less than a lease ago was answered with the place that the stream has come to. So an answer
never is older than the lease, whatever Redis, clocks and networks do. See Gray & Cheriton, Leases, 1989.

All in one event loop; no time here is a wall clock's, but that of the database, which judges the ends of grants.
"""

import asyncio
from collections.abc import Callable, Sequence
from typing import NamedTuple

from twofold_chassis.revisions import Revision

FLOORS_MAX = 200_000
_PINGS_MAX = 64
_NEVER = float("-inf")

Thing = tuple[str, ...]
"""What an answer may rest on, e.g. ("user", workspace, user)."""


def workspace_thing(workspace_id: str) -> Thing:
    return ("workspace", workspace_id)


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
        return Revision(self.epoch, self.revision).token()


class Knowledge:
    """The state; `lease_s` is how long an answered ping lets us answer, counted from when it was sent."""

    def __init__(self, *, lease_s: float) -> None:
        self.lease_s = lease_s
        self.place = Place(0, -1, 0)
        self.base = -1
        self.lease_until = _NEVER
        self.registered_until = _NEVER
        self.routers = 1
        self.epochs = 0
        """How many have begun here: what was kept in one is of no use in the next."""
        self._floors: dict[Thing, int] = {}
        self._pings: dict[int, float] = {}
        # The database's clock in seconds when the ping that holds the lease was answered, and when that was sent.
        self._database = (0.0, 0.0)
        self._moved = asyncio.Event()

    # What the stream tells -----------------------------------------------------------------------------------

    def opened(self) -> None:
        """A new stream: answers to pings of an earlier one do not count."""
        self._pings.clear()

    def started(self, place: Place, *, resumed: bool) -> None:
        """The stream goes on behind this place. Raises OldPrimary."""
        if place.epoch < self.place.epoch:
            raise OldPrimary(f"epoch {place.epoch} after {self.place.epoch}")
        if resumed:
            if place != self.place:
                raise Broken("resumed somewhere else")
            return
        if place.epoch > self.place.epoch:
            self._floors.clear()
            self.lease_until = _NEVER
            self.epochs += 1
        self.place, self.base = place, place.revision
        self._floors = {thing: floor for thing, floor in self._floors.items() if floor > place.revision}

    def changed(self, revision: int, tag: int, things: Sequence[Thing]) -> None:
        """The next revision changed these. Raises Broken if it is not the next."""
        if revision != self.place.revision + 1:
            raise Broken(f"revision {revision} after {self.place.revision}")
        for thing in things:
            self._floors[thing] = revision
        self.place = Place(self.place.epoch, revision, tag)
        if len(self._floors) > FLOORS_MAX:  # both at once: nobody may see one without the other
            self.base = revision
            self._floors.clear()
        self._moved.set()
        self._moved = asyncio.Event()

    def pinged(self, nonce: int, sent_at: float) -> None:
        """A ping was sent."""
        self._pings[nonce] = sent_at
        while len(self._pings) > _PINGS_MAX:
            del self._pings[next(iter(self._pings))]

    def checked(self, nonce: int, epoch: int, revision: int, database_s: float, registered_s: float, routers: int) -> None:
        """Everything up to there has been told. Raises Broken if that is not where we are."""
        if (epoch, revision) != (self.place.epoch, self.place.revision):
            raise Broken(f"checkpoint at {epoch}/{revision}, we are at {self.place.epoch}/{self.place.revision}")
        self.routers = max(1, routers)
        sent_at = self._pings.pop(nonce, None)
        if sent_at is None:  # nobody's ping: it says nothing of when it was read
            return
        self._pings = {other: at for other, at in self._pings.items() if at > sent_at}
        if sent_at + self.lease_s > self.lease_until:
            self.lease_until = sent_at + self.lease_s
            self._database = (database_s, sent_at)
        self.registered_until = max(self.registered_until, sent_at + registered_s)
        self._moved.set()
        self._moved = asyncio.Event()

    # What may be answered ------------------------------------------------------------------------------------

    def floor(self, things: Sequence[Thing]) -> int:
        """The oldest revision at which something that rests on these may have been read."""
        return max(self.base, *(self._floors.get(thing, -1) for thing in things))

    def until(self) -> float:
        """Until when copies may be answered from."""
        return min(self.lease_until, self.registered_until)

    def may_use(self, stamp: Stamp, things: Sequence[Thing], least: Revision | None, now: float) -> bool:
        """Whether a copy that was read at `stamp` may be answered from now."""
        return (
            now < self.lease_until
            and now < self.registered_until
            and stamp.epoch == self.place.epoch
            and stamp.revision >= self.floor(things)
            # If the stream has passed it, the floors hold it, however old the copy's own stamp is.
            and (least is None or least.number <= self.place.revision or least.number <= stamp.revision)
        )

    def may_answer(self, stamp: Stamp, things: Sequence[Thing], least: Revision | None, sent_at: float, now: float) -> bool:
        """Whether what was read from the registry, asked at `sent_at`, may be answered now."""
        return (
            now < sent_at + self.lease_s
            and now < self.registered_until
            and stamp.epoch >= self.place.epoch
            and (stamp.epoch > self.place.epoch or stamp.revision >= self.floor(things))
            and (least is None or stamp.epoch > least.epoch or least.number <= stamp.revision)
        )

    def database_s(self, now: float) -> float:
        """What the database's clock says at most; at most a lease ahead of it."""
        read_s, sent_at = self._database
        return read_s + (now - sent_at)

    async def until_reached(self, revision: int, within_s: float) -> None:
        """Returns when the stream has come to this revision, or the time is over."""
        await self._wait(lambda: self.place.revision >= revision, within_s)

    async def until_known(self, within_s: float) -> None:
        """Returns when the first ping was answered, or the time is over."""
        await self._wait(lambda: self.registered_until != _NEVER, within_s)

    async def _wait(self, is_so: Callable[[], bool], within_s: float) -> None:
        try:
            async with asyncio.timeout(within_s):
                while not is_so():
                    await self._moved.wait()
        except TimeoutError:
            return
