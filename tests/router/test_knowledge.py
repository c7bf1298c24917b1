"""What may be answered from copies: a model of the registry's history, of streams that lose and mix up what they carry, and
of copies from any time; and each rule broken once, which the same model must find.

Time is counted, not waited for. Whatever is admitted must be what the registry said at some moment of the last lease.
"""

import asyncio
import random
from collections.abc import Callable, Iterator, Sequence
from typing import ClassVar, NamedTuple

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from twofold_chassis.revisions import Revision
from twofold_router.knowledge import (
    Broken,
    Knowledge,
    OldPrimary,
    Place,
    Stamp,
    Thing,
    agent_thing,
    permission_thing,
    route_thing,
    user_thing,
    workspace_thing,
)

LEASE = 10.0
REGISTERED = 24.0

WS, HELPER = workspace_thing("ws"), agent_thing("ws", "helper")
KEYS = ("ann", "ben")
THINGS: tuple[Thing, ...] = (
    WS,
    HELPER,
    *(user_thing("ws", user) for user in KEYS),
    *(permission_thing("ws", user, "helper") for user in KEYS),
    route_thing("ws", "helper"),
)


def rests_on(key: str) -> Sequence[Thing]:
    return permission_thing("ws", key, "helper"), user_thing("ws", key), HELPER, WS


class Changed(NamedTuple):
    revision: int
    tag: int
    thing: Thing


class Moment(NamedTuple):
    """The registry from `at` until the next moment. `off`: what is switched off; who rests on any of it is denied."""

    at: float
    epoch: int
    revision: int
    compacted: int
    changes: tuple[Changed, ...]
    off: frozenset[Thing]

    def allows(self, key: str) -> bool:
        return self.off.isdisjoint(rests_on(key))

    def place(self, revision: int) -> Place:
        return Place(self.epoch, revision, next((one.tag for one in self.changes if one.revision == revision), 0))


class Start(NamedTuple):
    place: Place
    resumed: bool


class Checkpoint(NamedTuple):
    nonce: int
    epoch: int
    revision: int
    database_s: float
    registered_s: float


Message = Start | Changed | Checkpoint | None
"""None: the stream cannot go on."""


class Stream:
    """One stream: what was said to the registry, and what it has told, neither of which has come yet."""

    def __init__(self, router: int, epoch: int, told_to: int) -> None:
        self.router = router
        self.epoch = epoch
        self.told_to = told_to
        self.said: list[int] = []
        self.told: list[Message] = []
        self.has_started = False


class Read(NamedTuple):
    key: str
    least: Revision | None
    sent_at: float


class Answered(NamedTuple):
    read: Read
    stamp: Stamp
    allowed: bool


class Copy(NamedTuple):
    key: str
    stamp: Stamp
    allowed: bool


class Row(NamedTuple):
    expires_at: float
    acked: tuple[int, int]


class Lied(AssertionError):  # noqa: N818
    """Something was admitted that must not be."""


Make = Callable[["World"], Knowledge]


class World:
    """A registry, a router, and what is under way between them. Every step takes a number that decides what it does."""

    def __init__(self, make: Make) -> None:
        self.now = 100.0
        self.admitted = 0
        self.moments = [Moment(0.0, 1, 0, 0, (), frozenset())]
        self.rows: dict[int, Row] = {}
        self.router = 0
        self.nonce = 0
        self.make = make
        self.stream: Stream | None = None
        self.asked: list[Read] = []
        self.coming: list[Answered] = []
        self.landed: list[Answered] = []
        self.copies: list[Copy] = []
        self.current: dict[tuple[int, str, Stamp], bool] = {}
        self.tokens: list[Revision] = []
        self.returned = 0  # the moment that a waiting revoke has returned for
        self.epoch_at = 0.0
        self.knowledge = make(self)

    @property
    def head(self) -> Moment:
        return self.moments[-1]

    # The registry ----------------------------------------------------------------------------------------------

    def step_change(self, number: int) -> None:
        head, thing = self.head, THINGS[number % len(THINGS)]
        changed = Changed(head.revision + 1, len(self.moments) * 7 + 1, thing)
        self.moments.append(
            head._replace(at=self.now, revision=changed.revision, changes=(*head.changes, changed), off=head.off ^ {thing})
        )
        self.tokens.append(Revision(head.epoch, changed.revision))

    def step_compact(self, number: int) -> None:
        head = self.head
        kept = head.changes[number % (len(head.changes) + 1) :]
        compacted = kept[0].revision - 1 if kept else head.revision
        self.moments.append(head._replace(at=self.now, compacted=compacted, changes=kept))

    def step_restore(self, number: int) -> None:
        """Another Postgres, with the state of now or of earlier; nobody is registered there."""
        old = self.moments[-1 - number % min(4, len(self.moments))]
        self.moments.append(old._replace(at=self.now, epoch=self.head.epoch + 1))
        self.rows, self.epoch_at = {}, self.now

    def step_serve(self, number: int) -> None:
        """A question is answered, in one statement."""
        if not self.asked:
            return
        read, head = self.asked.pop(number % len(self.asked)), self.head
        if not self.is_registered() or (
            read.least is not None and (read.least.epoch != head.epoch or read.least.number > head.revision)
        ):
            return
        self.coming.append(Answered(read, Stamp(head.epoch, head.revision), head.allows(read.key)))

    def step_look(self, number: int) -> None:
        """The stream's process looks at the database: some pings have come by now."""
        stream, head = self.stream, self.head
        if stream is None:
            return
        arrived = number % (len(stream.said) + 1)
        pinged, stream.said = stream.said[:arrived], stream.said[arrived:]
        row = self.rows.get(stream.router)
        if head.epoch != stream.epoch or head.compacted > stream.told_to or row is None or row.expires_at <= self.now:
            stream.told.append(None)
            return
        if row.expires_at - self.now < REGISTERED / 2 and number % 2:
            row = self.rows[stream.router] = row._replace(expires_at=self.now + REGISTERED)
        stream.told.extend(change for change in head.changes if change.revision > stream.told_to)
        stream.told_to = head.revision
        nonce = pinged[-1] if pinged else 0
        stream.told.append(Checkpoint(nonce, head.epoch, head.revision, self.database_s, row.expires_at - self.now))

    @property
    def database_s(self) -> float:
        return 5000.0 * self.head.epoch + self.now  # every Postgres has a clock of its own

    def is_registered(self) -> bool:
        row = self.rows.get(self.router)
        return row is not None and row.expires_at > self.now

    # The network -----------------------------------------------------------------------------------------------

    def step_tick(self, number: int) -> None:
        self.now += (0.5, 1.0, 2.0, 4.0, 9.5, LEASE, 30.0)[number % 7]

    def step_lose(self, number: int) -> None:
        if self.stream is not None and self.stream.told:
            del self.stream.told[number % len(self.stream.told)]

    def step_repeat(self, number: int) -> None:
        if self.stream is not None and self.stream.told:
            at = number % len(self.stream.told)
            self.stream.told.insert(at, self.stream.told[at])

    def step_swap(self, number: int) -> None:
        if self.stream is not None and len(self.stream.told) > 1:
            told, at = self.stream.told, number % (len(self.stream.told) - 1)
            told[at], told[at + 1] = told[at + 1], told[at]

    def step_deliver(self, number: int) -> None:
        for _ in range(1 + number % 6):
            if self.stream is None or not self.stream.told:
                return
            try:
                self._hear(self.stream, self.stream.told.pop(0))
            except Broken:
                self.stream = None

    def step_land(self, number: int) -> None:
        """An answer comes: it is kept if it may be answered."""
        if not self.coming:
            return
        answer = self.coming.pop(number % len(self.coming))
        if self._may_answer(answer):
            self.landed = [*self.landed[-5:], answer]
            if answer.stamp.epoch == self.knowledge.place.epoch:
                self._keep(Copy(answer.read.key, answer.stamp, answer.allowed))

    # The router ------------------------------------------------------------------------------------------------

    def step_open(self, number: int) -> None:
        head, known = self.head, self.knowledge.place
        self.knowledge.opened()
        self.rows[self.router] = Row(self.now + REGISTERED, self.rows.get(self.router, Row(0, (0, 0))).acked)
        resumed = known.epoch == head.epoch and known.tag > 0 and head.place(known.revision).tag == known.tag
        revision = known.revision if resumed else head.compacted + number % (head.revision - head.compacted + 1)
        if known.epoch == head.epoch and not resumed:
            revision = head.compacted if number % 2 else head.revision
        self.stream = Stream(self.router, head.epoch, revision)
        self.stream.told.append(Start(head.place(revision), resumed))

    def step_ping(self, _: int) -> None:
        if self.stream is not None and self.stream.has_started:
            self.nonce += 1
            self.knowledge.pinged(self.nonce, self.now)
            self.stream.said.append(self.nonce)

    def step_ask(self, number: int) -> None:
        if self.knowledge.is_known:
            self.asked.append(Read(KEYS[number % 2], self._token(number // 2), self.now))

    def step_restart(self, _: int) -> None:
        self.router += 1
        self.knowledge, self.stream = self.make(self), None
        self.asked, self.coming, self.landed, self.current = [], [], [], {}

    def step_copy(self, number: int) -> None:
        """Another router has kept in Redis what it read, some time ago."""
        moment, key = self.moments[-1 - number // 2 % min(5, len(self.moments))], KEYS[number % 2]
        self._keep(Copy(key, Stamp(moment.epoch, moment.revision), moment.allows(key)))

    def _keep(self, copy: Copy) -> None:
        self.copies = [*self.copies[-7:], copy]

    def _token(self, number: int) -> Revision | None:
        return self.tokens[-1 - number // 2 % len(self.tokens)] if number % 2 and self.tokens else None

    def _hear(self, stream: Stream, message: Message) -> None:
        if message is None or (not stream.has_started and not isinstance(message, Start)):
            raise Broken("it ends")
        match message:
            case Start(place, resumed):
                self.knowledge.started(place, resumed=resumed)
                stream.has_started = True
            case Changed(revision, tag, thing):
                self.knowledge.changed(revision, tag, [thing])
                self._ack()
            case Checkpoint(nonce, epoch, revision, database_s, registered_s):
                self.knowledge.checked(nonce, epoch, revision, database_s, registered_s, 1)
                self._ack()

    def _ack(self) -> None:
        row, acked = self.rows.get(self.router), (self.knowledge.place.epoch, self.knowledge.place.revision)
        if row is not None and row.acked < acked:
            self.rows[self.router] = row._replace(acked=acked)

    # What must be so -------------------------------------------------------------------------------------------

    def judge(self) -> None:
        """Everything that could be answered now is true."""
        self._return_revokes()
        knowledge = self.knowledge
        for copy in self.copies:
            is_current = knowledge.is_current(copy.stamp, rests_on(copy.key))
            if is_current != self.current.setdefault((knowledge.version, copy.key, copy.stamp), is_current):
                raise Lied(f"{copy} is current or not in one version of what is known")
            for least in (None, *self.tokens[-3:]):
                if knowledge.may_use(copy.stamp, rests_on(copy.key), least, self.now):
                    if copy.stamp.epoch != knowledge.place.epoch:
                        raise Lied(f"C3: {copy} in epoch {knowledge.place.epoch}")
                    ahead_s = knowledge.database_s(self.now) - self.database_s
                    if copy.stamp.epoch == self.head.epoch and not 0 <= ahead_s <= LEASE:
                        raise Lied(f"the database's clock is {ahead_s} ahead")
                    self._require_true(copy.key, copy.stamp, copy.allowed, least)
        for answer in self.landed:
            if self._may_answer(answer):
                self._require_true(answer.read.key, answer.stamp, answer.allowed, answer.read.least)

    def _may_answer(self, answer: Answered) -> bool:
        read = answer.read
        return self.knowledge.may_answer(answer.stamp, rests_on(read.key), read.least, read.sent_at, self.now)

    def _require_true(self, key: str, stamp: Stamp, allowed: bool, least: Revision | None) -> None:
        self.admitted += 1
        moments = [moment for index, moment in self._of_the_lease() if index >= self.returned]
        if all(moment.allows(key) != allowed for moment in moments):
            raise Lied(f"C1: {key} {allowed} at {stamp}, now {self.now}: {moments}")
        if least is not None and not any(
            moment.allows(key) == allowed and moment.epoch == least.epoch and moment.revision >= least.number
            for moment in moments
        ):
            raise Lied(f"C4: {key} {allowed} at {stamp} for {least}, now {self.now}: {moments}")

    def _of_the_lease(self) -> Iterator[tuple[int, Moment]]:
        until = float("inf")
        for index in reversed(range(len(self.moments))):
            if until <= self.now - LEASE:
                return
            yield index, self.moments[index]
            until = self.moments[index].at

    def _return_revokes(self) -> None:
        """Whoever waits for all routers waits no longer: all that are registered know, or the lease has run out."""
        rows = [row for row in self.rows.values() if row.expires_at > self.now]
        for index in range(len(self.moments) - 1, self.returned, -1):
            moment = self.moments[index]
            place, is_settled = (moment.epoch, moment.revision), self.now > self.epoch_at + LEASE
            if self.now >= moment.at + LEASE or (is_settled and all(row.acked >= place for row in rows)):
                self.returned = index
                return


STEPS: dict[str, int] = {  # and how often each comes
    "change": 8,
    "compact": 1,
    "restore": 1,
    "serve": 6,
    "look": 12,
    "tick": 8,
    "lose": 2,
    "repeat": 1,
    "swap": 2,
    "deliver": 14,
    "land": 6,
    "open": 3,
    "ping": 10,
    "ask": 5,
    "restart": 1,
    "copy": 8,
}
Step = tuple[str, int]


def play(make: Make, steps: Sequence[Step]) -> World:
    world = World(make)
    for name, number in steps:
        getattr(world, f"step_{name}")(number)
        world.judge()
    return world


def sound(_: World, floors_max: int = 200_000) -> Knowledge:
    return Knowledge(lease_s=LEASE, floors_max=floors_max)


@pytest.mark.parametrize("floors_max", [200_000, 2], ids=["all floors", "few floors"])
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.lists(
        st.tuples(st.sampled_from([name for name, often in STEPS.items() for _ in range(often)]), st.integers(0, 40)),
        max_size=80,
    )
)
def test_c1_c3_c4_what_is_admitted_was_so_at_some_moment_of_the_last_lease(floors_max: int, steps: list[Step]) -> None:
    play(lambda world: sound(world, floors_max), steps)


def walks(seed: int, count: int, **often: int) -> Iterator[list[Step]]:
    drawn, often = random.Random(seed), STEPS | often
    for _ in range(count):
        yield [(name, drawn.randrange(41)) for name in drawn.choices(list(often), list(often.values()), k=120)]


def test_long_walks_admit_much_and_nothing_untrue() -> None:
    worlds = [play(lambda world: sound(world, 3), walk) for walk in walks(1, 150)]
    assert sum(world.admitted for world in worlds) > 1000


# Each rule broken once ---------------------------------------------------------------------------------------------


class Planted(Knowledge):
    """A fault is planted in it. `often`: the steps that it takes, so that it is found soon."""

    often: ClassVar[dict[str, int]] = {}

    def __init__(self, world: World) -> None:
        super().__init__(lease_s=LEASE, floors_max=3)
        self._world = world


class ZeroForUnseen(Planted):
    def floor(self, things: Sequence[Thing]) -> int:
        return max(-1, *(self._floors.get(thing, -1) for thing in things))


class BaseIsKept(Planted):
    def started(self, place: Place, *, resumed: bool) -> None:
        base = self.base
        super().started(place, resumed=resumed)
        self.base = base if base >= 0 else self.base


class LeaseFromThePong(Planted):
    def checked(self, nonce: int, *told: float) -> bool:
        self._pings = dict.fromkeys(self._pings, self._world.now)
        return super().checked(nonce, *told)  # type: ignore[arg-type]


class GapsAreTaken(Planted):
    often: ClassVar = {"lose": 12}

    def changed(self, revision: int, tag: int, things: Sequence[Thing]) -> None:
        self.place = self.place._replace(revision=revision - 1)
        super().changed(revision, tag, things)


class CheckpointsBeforeTheirChanges(Planted):
    often: ClassVar = {"lose": 12, "swap": 8}

    def checked(self, nonce: int, epoch: int, revision: int, *told: float) -> bool:
        return super().checked(nonce, self.place.epoch, self.place.revision, *told)  # type: ignore[arg-type]


class EpochsMeet(Planted):
    def may_use(self, stamp: Stamp, *asked: object) -> bool:
        return super().may_use(stamp._replace(epoch=self.place.epoch), *asked)  # type: ignore[arg-type]


class TokensAreIgnored(Planted):
    def holds(self, stamp: Stamp, least: Revision) -> bool:
        return True


class TokensOfOtherHistories(Planted):
    def holds(self, stamp: Stamp, least: Revision) -> bool:
        return least.number <= max(self.place.revision, stamp.revision)


class VersionStandsWhenSomethingChanges(Planted):
    def changed(self, revision: int, tag: int, things: Sequence[Thing]) -> None:
        version = self.version
        super().changed(revision, tag, things)
        self.version = version


class VersionStandsWhenAStreamStarts(Planted):
    def started(self, place: Place, *, resumed: bool) -> None:
        version = self.version
        super().started(place, resumed=resumed)
        self.version = version


class TrimmedBelowTheBase(Planted):
    often: ClassVar = {"change": 16, "deliver": 30}

    def _trim(self) -> None:
        base = self.base
        super()._trim()
        self.base = base


class LeaseOutlivesTheEpoch(Planted):
    def started(self, place: Place, *, resumed: bool) -> None:
        lease_until = self.lease_until
        super().started(place, resumed=resumed)
        self.lease_until = lease_until


class ReadsBelowTheFloor(Planted):
    def may_answer(self, stamp: Stamp, things: Sequence[Thing], *asked: object) -> bool:
        floor, self.floor = self.floor, lambda things: -1  # type: ignore[method-assign]
        try:
            return super().may_answer(stamp, things, *asked)  # type: ignore[arg-type]
        finally:
            self.floor = floor  # type: ignore[method-assign]


class ReadsWithoutAnEnd(Planted):
    def may_answer(self, *asked: object) -> bool:
        *rest, _sent_at, now = asked
        return super().may_answer(*rest, now, now)  # type: ignore[arg-type, call-arg]


@pytest.mark.parametrize("planted", Planted.__subclasses__(), ids=lambda planted: planted.__name__)
def test_a_planted_fault_is_found(planted: type[Planted]) -> None:
    assert any(lies(planted, walk) for walk in walks(2, 4000, **planted.often))


def lies(planted: type[Planted], steps: list[Step]) -> bool:
    try:
        play(planted, steps)
    except Lied:
        return True
    return False


# One by one -----------------------------------------------------------------------------------------------------------

EPOCH = 7
ANN = rests_on("ann")


def following(**options: int) -> Knowledge:
    """Knows everything up to revision 10, and holds a lease from 100 on and a registration until 160."""
    knowledge = Knowledge(lease_s=LEASE, **options)
    knowledge.opened()
    knowledge.started(Place(EPOCH, 10, 1), resumed=False)
    knowledge.pinged(1, 100.0)
    assert knowledge.checked(1, EPOCH, 10, 5000.0, 60.0, 2)
    return knowledge


def test_before_the_first_answered_ping_nothing_may_be_answered() -> None:
    knowledge = Knowledge(lease_s=LEASE)
    assert not knowledge.may_use(Stamp(0, 5), ANN, None, 0.0)
    knowledge.started(Place(EPOCH, 10, 1), resumed=False)
    assert not knowledge.checked(0, EPOCH, 10, 5000.0, 60.0, 1)  # answers nobody
    assert not knowledge.is_known
    assert not knowledge.may_use(Stamp(EPOCH, 10), ANN, None, 0.0)
    assert not knowledge.may_answer(Stamp(EPOCH, 10), ANN, None, 0.0, 0.0)


def test_nothing_is_answered_after_the_registration_has_run_out() -> None:
    knowledge = following()
    knowledge.pinged(2, 155.0)
    knowledge.checked(2, EPOCH, 10, 5055.0, 3.0, 1)
    for now, may in ((159.9, True), (160.0, False)):  # what was told first still holds
        assert knowledge.may_use(Stamp(EPOCH, 10), ANN, None, now) is may
        assert knowledge.may_answer(Stamp(EPOCH, 10), ANN, None, 158.0, now) is may


def test_nothing_is_shared_before_all_others_know_of_this_router_nor_after_its_registration() -> None:
    knowledge = Knowledge(lease_s=LEASE)
    knowledge.started(Place(EPOCH, 10, 1), resumed=False)
    assert knowledge.sharing(0.0) == 0
    for nonce, sent_at in ((1, 100.0), (2, 120.0)):
        knowledge.pinged(nonce, sent_at)
        knowledge.checked(nonce, EPOCH, 10, 5000.0, 60.0, 3)
    assert [knowledge.sharing(now) for now in (100.0, 110.0, 110.1, 179.9, 180.0)] == [0, 0, 3, 3, 0]
    knowledge.pinged(3, 200.0)  # it was not registered in between: others may have stopped counting it
    knowledge.checked(3, EPOCH, 10, 5100.0, 60.0, 2)
    assert [knowledge.sharing(now) for now in (205.0, 210.1)] == [0, 2]


def test_a_lease_counts_from_when_the_ping_was_sent_and_never_goes_back() -> None:
    knowledge = following()
    knowledge.pinged(2, 104.0)
    knowledge.pinged(3, 106.0)
    knowledge.checked(3, EPOCH, 10, 5007.0, 60.0, 1)
    knowledge.checked(2, EPOCH, 10, 5008.0, 60.0, 1)
    assert knowledge.until() == 116.0
    assert knowledge.database_s(110.0) == 5011.0
    knowledge.pinged(4, 108.0)
    knowledge.opened()  # who answers now has not been asked
    assert not knowledge.checked(4, EPOCH, 10, 5009.0, 60.0, 1)
    assert knowledge.until() == 116.0


def test_a_change_touches_what_rests_on_it_and_nothing_else() -> None:
    knowledge = following()
    knowledge.changed(11, 2, [permission_thing("ws", "ben", "helper")])
    knowledge.changed(12, 3, [user_thing("ws", "ben"), user_thing("other", "ann"), route_thing("ws", "helper")])
    assert knowledge.floor(ANN) == 10
    assert knowledge.floor(rests_on("ben")) == 12
    knowledge.changed(13, 4, [HELPER])
    assert knowledge.floor(ANN) == knowledge.floor(rests_on("ben")) == 13


def test_a_revision_that_the_stream_has_passed_is_held_by_any_usable_copy() -> None:
    knowledge = following()
    knowledge.changed(11, 2, [user_thing("ws", "ben")])
    for number, may in ((11, True), (12, False)):
        assert knowledge.may_use(Stamp(EPOCH, 10), ANN, Revision(EPOCH, number), 101.0) is may
    assert knowledge.may_use(Stamp(EPOCH, 12), ANN, Revision(EPOCH, 12), 101.0)


@pytest.mark.parametrize("epoch", [EPOCH - 1, EPOCH + 1])
def test_no_copy_is_used_for_a_revision_of_another_history(epoch: int) -> None:
    knowledge = following()
    assert not knowledge.may_use(Stamp(EPOCH, 10), ANN, Revision(epoch, 1), 101.0)
    assert not knowledge.may_answer(Stamp(EPOCH, 10), ANN, Revision(epoch, 1), 101.0, 101.0)


def test_what_was_read_in_a_newer_epoch_may_be_answered_and_makes_the_stream_an_old_one() -> None:
    knowledge = following()
    assert knowledge.may_answer(Stamp(EPOCH + 1, 1), ANN, Revision(EPOCH + 1, 1), 101.0, 101.0)
    assert not knowledge.may_use(Stamp(EPOCH + 1, 1), ANN, None, 101.0)
    knowledge.answered_in(EPOCH + 1)
    with pytest.raises(OldPrimary):
        knowledge.started(Place(EPOCH, 10, 1), resumed=True)
    knowledge.started(Place(EPOCH + 1, 3, 1), resumed=False)
    assert not knowledge.may_use(Stamp(EPOCH + 1, 3), ANN, None, 101.0)  # no lease goes over


def test_a_stream_that_goes_on_somewhere_else_is_broken() -> None:
    knowledge = following()
    for place in (Place(EPOCH, 9, 1), Place(EPOCH, 10, 2)):
        with pytest.raises(Broken):
            knowledge.started(place, resumed=True)
    knowledge.started(Place(EPOCH, 10, 1), resumed=True)
    for revision in (10, 12):
        with pytest.raises(Broken):
            knowledge.changed(revision, 1, [WS])
    for epoch, revision in ((EPOCH, 9), (EPOCH, 11), (EPOCH + 1, 10)):
        with pytest.raises(Broken):
            knowledge.checked(1, epoch, revision, 5000.0, 60.0, 1)


def test_a_past_that_is_told_again_takes_nothing_back() -> None:
    knowledge = following()
    for revision in (11, 12):
        knowledge.changed(revision, revision, [HELPER])
    knowledge.started(Place(EPOCH, 9, 9), resumed=False)
    assert knowledge.floor(ANN) == 12
    for revision in (10, 11):
        knowledge.changed(revision, revision, [HELPER])
        assert knowledge.floor(ANN) == 12


def test_too_many_floors_cost_the_oldest_copies_only() -> None:
    knowledge = following(floors_max=16)
    for revision in range(11, 28):
        knowledge.changed(revision, revision, [user_thing("ws", str(revision))])
    assert knowledge.base == 12
    assert knowledge.floor(rests_on("27")) == 27
    assert not knowledge.may_use(Stamp(EPOCH, 11), ANN, None, 101.0)
    assert knowledge.may_use(Stamp(EPOCH, 12), ANN, None, 101.0)


async def test_waiting_for_the_stream_ends_when_it_has_come_there_or_the_time_is_over() -> None:
    knowledge = following()
    least = Revision(EPOCH, 11)
    await knowledge.until_passed(least, 0.0)
    assert not knowledge.has_passed(least)
    waiting = asyncio.create_task(knowledge.until_passed(least, 60.0))
    await asyncio.sleep(0)
    knowledge.changed(11, 2, [WS])
    await waiting
    assert knowledge.has_passed(least)
    assert not knowledge.has_passed(Revision(EPOCH + 1, 1))
