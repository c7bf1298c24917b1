"""Resolving, when something happens between what is read and what is answered; and whose word counts first."""

import asyncio
from collections.abc import Callable, Sequence
from typing import Any, Generic, TypeVar

import pytest

from twofold_chassis.clocks import boot_s
from twofold_chassis.refusals import HistoryChanged, PeerUnavailable, Refusal
from twofold_chassis.revisions import Revision
from twofold_chassis.urls import Home, UrlPolicy
from twofold_router import resolution as module
from twofold_router.agents import Limits as AgentLimits
from twofold_router.copies import Copies, Limiter, Source, Told, Truth, Unstamped
from twofold_router.counting import Limits
from twofold_router.knowledge import Knowledge, Place, Stamp, Thing, agent_thing, permission_thing, plan_thing
from twofold_router.limits import Claim, CountersAway, LimitReached, LimitsUnknown, Mark, Operation, Settled, Tally
from twofold_router.limits import Outcome as LimitOutcome
from twofold_router.outcomes import Outcomes
from twofold_router.permissions import NotPermitted, PairKey, Permission, Verdict
from twofold_router.resolution import AgentGone, AgentNotPublished, Question, Resolution, Resolver
from twofold_router.routes import AgentKey, AgentSettings, AgentUnknown, Route
from twofold_router.shares import Shares
from twofold_router.targets import Targets
from twofold_router.terms import CapReached, Limit, LimitKind, Terms, TermsKey

EPOCH, LEASE_S = 7, 600.0
AGENT = AgentKey("ws", "agent")
POLICY = UrlPolicy(("a", "b"), allow_loopback=False)
ADA = Question(AGENT, "ada")
AWAY = PeerUnavailable("away", retry_after_s=1.0, peer="registry")
Key = TypeVar("Key")
Value = TypeVar("Value")


def permission(verdict: Verdict = Verdict.GRANT, ends_s: float | None = None) -> Permission:
    return Permission(verdict, ends_s)


def route(**values: Any) -> Route:
    settings = AgentSettings("", "model", False, 1, 1, AgentLimits(1.0, 1.0))
    return Route(**{"url": "http://a", "published": True, "settings": settings, **values})


def terms(*limits: Limit, capped_month: str = "") -> Terms:
    return Terms(limits, capped_month, Home())


class FakeCounters:
    """Counts operations; what is to happen meanwhile, a test says."""

    def __init__(self) -> None:
        self.taken: set[str] = set()
        self.asked: list[str] = []
        self.during: Callable[[], None] = lambda: None
        self.refuses = self.is_away = False

    async def count(self, operation: Operation, limits: Sequence[Limit], *, peeks: bool = False) -> Tally:
        self.asked.append("peek" if peeks else "count")
        await asyncio.sleep(0)
        self.during()
        marks = [Mark(len(self.taken), 0, 0)] * 6
        if peeks:
            return Tally(LimitOutcome.PEEKED, 1000, marks)
        if operation.operation_id in self.taken:
            return Tally(LimitOutcome.DUPLICATE, 1000, marks)
        if self.refuses:
            return Tally(LimitOutcome.REFUSED, 1000, [Mark(1, 61_000, 61_000)] * 6)
        self.taken.add(operation.operation_id)
        return Tally(LimitOutcome.COUNTED, 1000, marks)

    async def settle(self, operation: Operation, at_s: float | None) -> Settled:
        raise NotImplementedError

    async def add(self, operation: Operation, at_s: float) -> None:
        raise NotImplementedError

    async def release(self, operation: Operation) -> None:
        self.asked.append("release")
        if self.is_away:
            raise CountersAway(asked=True)
        self.taken.discard(operation.operation_id)


class FakeTruth(Truth[Key, Value], Generic[Key, Value]):
    """Says the same until it is told otherwise."""

    def __init__(self, knowledge: Knowledge, rests_on: Callable[[Key], Sequence[Thing]], value: Value) -> None:
        self._knowledge = knowledge
        self._rests_on = rests_on
        self.value: Value | Refusal = value
        self.is_stamped = True
        self.asked: list[Key] = []
        self.during: Callable[[], None] = lambda: None

    def rests_on(self, key: Key) -> Sequence[Thing]:
        return self._rests_on(key)

    async def ask(self, key: Key, least: Revision | None) -> Told[Value] | Unstamped[Value]:
        self.asked.append(key)
        value, place = self.value, self._knowledge.place
        for _ in range(5):
            await asyncio.sleep(0)
        self.during()
        if isinstance(value, Refusal):
            raise value
        return (
            Told(value, Stamp(place.epoch, place.revision), is_no=False, read_s=5000.0)
            if self.is_stamped
            else Unstamped(value)
        )


class Nowhere:
    """No Redis."""

    async def get(self, epoch: int, key: Any) -> None:
        return None

    async def put(self, key: Any, told: Any, ttl_s: float) -> None:
        return None

    async def rebuilt(self, workspace_id: str) -> bool:
        return False


class Room:
    """A resolver with its surroundings, at revision 10 and with a lease; ada may use the agent."""

    def __init__(self, *, is_known: bool = True) -> None:
        self.knowledge = Knowledge(lease_s=LEASE_S)
        if is_known:
            self.knowledge.started(Place(EPOCH, 10, 1), resumed=False)
            self.knowledge.pinged(1, boot_s())
            self.knowledge.checked(1, EPOCH, 10, 5000.0, 3600.0, 1)
        self.permissions: FakeTruth[PairKey, Permission] = FakeTruth(
            self.knowledge, lambda key: (permission_thing(*key),), permission()
        )
        self.routes: FakeTruth[AgentKey, Route | None] = FakeTruth(self.knowledge, lambda key: (agent_thing(*key),), route())
        self.terms: FakeTruth[TermsKey, Terms | None] = FakeTruth(
            self.knowledge, lambda key: (plan_thing(key.workspace_id),), terms()
        )
        self.counters = FakeCounters()
        self.outcomes = Outcomes()
        self.counted: list[Source] = []
        options: dict[str, Any] = {"count": self.counted.append, "copies_max": 100, "read_s": 5.0}
        self.resolver = Resolver(
            self.knowledge,
            Copies(self.knowledge, self.permissions, Nowhere(), Limiter(64), **options),
            Copies(self.knowledge, self.routes, Nowhere(), Limiter(64), **options),
            Copies(self.knowledge, self.terms, Nowhere(), Limiter(64), **options),
            Targets(self.outcomes, POLICY, database_s=self.knowledge.database_s),
            Limits(
                self.counters,
                Nowhere(),
                Shares(cells=12, routers=lambda: 0, clock=lambda: 1000.0),
                note=lambda kind, decision: None,
                note_share=lambda decision: None,
            ),
        )

    def revoke(self, user_id: str = "ada") -> None:
        self.permissions.value = permission(Verdict.DENIED)
        revision = self.knowledge.place.revision + 1
        self.knowledge.changed(revision, revision, [permission_thing("ws", user_id, "agent")])


@pytest.fixture
def room() -> Room:
    return Room()


async def test_c1_what_is_revoked_while_the_route_is_read_is_not_answered(room: Room) -> None:
    await room.resolver.check(ADA)  # the permission is held, and the route is read
    room.routes.during = room.revoke
    with pytest.raises(NotPermitted):
        await room.resolver.resolve(ADA)
    assert len(room.permissions.asked) == 2


async def test_c1_what_is_revoked_while_another_of_the_batch_is_read_is_not_answered(room: Room) -> None:
    assert (await room.resolver.resolve(ADA)).url == "http://a"

    def revoke() -> None:  # while bob's is read; ada's was found before
        room.permissions.during = lambda: None
        room.revoke()

    room.permissions.during = revoke
    ada, bob = await room.resolver.resolve_all([ADA, Question(AGENT, "bob")])
    assert isinstance(ada, NotPermitted)
    assert isinstance(bob, Resolution)


async def test_a_route_that_changed_while_the_permission_was_read_is_read_again(room: Room) -> None:
    await room.resolver.resolve(Question(AGENT, "bob"))  # the route is held, and the permission is read

    def move() -> None:
        room.permissions.during = lambda: None
        room.routes.value = route(url="http://b")
        room.knowledge.changed(11, 11, [agent_thing(*AGENT)])

    room.permissions.during = move
    assert (await room.resolver.resolve(ADA)).url == "http://b"


async def test_an_answer_is_valid_no_longer_than_the_route_that_was_read_for_it(room: Room) -> None:
    room.knowledge.lease_until = room.knowledge.registered_until = boot_s() + 5000
    await room.resolver.check(ADA)
    assert (await room.resolver.check(ADA)).valid_s > LEASE_S
    assert (await room.resolver.resolve(ADA)).ruling.valid_s <= LEASE_S


async def test_an_answer_is_valid_no_longer_than_its_grant_and_its_lease(room: Room) -> None:
    room.permissions.value = permission(ends_s=5000.0 + 60)
    for _ in range(2):  # read, and held
        assert 0 < (await room.resolver.resolve(ADA)).ruling.valid_s <= 60
        assert 0 < (await room.resolver.check(ADA)).valid_s <= 60
    bob = Question(AGENT, "bob")
    room.permissions.value = permission()
    sent_at = boot_s() - 1
    room.knowledge.lease_until = sent_at + 100  # what is held is valid for less than what is read now
    assert (await room.resolver.check(bob)).valid_s > 100
    assert (await room.resolver.resolve(bob)).ruling.valid_s <= 99


async def test_c9_a_grant_that_has_ended_is_none(room: Room) -> None:
    room.permissions.value = permission(ends_s=5000.0)
    for _ in range(2):
        with pytest.raises(NotPermitted):
            await room.resolver.resolve(ADA)


@pytest.mark.parametrize(
    ("verdict", "held", "refusal"),
    [
        (Verdict.DENIED, AWAY, NotPermitted),
        (Verdict.DENIED, None, NotPermitted),
        (Verdict.AGENT_UNKNOWN, None, AgentUnknown),
        (Verdict.AGENT_GONE, AWAY, AgentGone),
        (Verdict.GRANT, AWAY, PeerUnavailable),
        (Verdict.GRANT, None, NotPermitted),  # deleted since: as the check says it
        (Verdict.ROLE, None, AgentUnknown),
        (Verdict.ROLE, route(gone=True), AgentGone),
        (Verdict.GRANT, route(published=False), AgentNotPublished),
        (AWAY, route(), PeerUnavailable),
        (AWAY, None, PeerUnavailable),
    ],
)
async def test_c9_the_permission_speaks_first(
    room: Room, verdict: Verdict | Refusal, held: Route | Refusal | None, refusal: type[Refusal]
) -> None:
    room.permissions.value = verdict if isinstance(verdict, Refusal) else permission(verdict)
    room.routes.value, room.routes.is_stamped = held, held is not None
    for _ in range(2):
        with pytest.raises(refusal):
            await room.resolver.resolve(ADA)
        (told,) = await room.resolver.resolve_all([ADA])
        assert type(told) is refusal


async def test_whom_nothing_is_permitted_costs_no_question_about_routes(room: Room) -> None:
    room.permissions.value = permission(Verdict.DENIED)
    room.routes.value, room.routes.is_stamped = None, False
    for _ in range(5):
        with pytest.raises(NotPermitted):
            await room.resolver.resolve(ADA)
    assert (len(room.permissions.asked), len(room.routes.asked)) == (1, 1)


@pytest.mark.parametrize("is_held", [False, True])
async def test_c4_a_token_of_an_older_history_is_said_to_be_one(room: Room, is_held: bool) -> None:
    if is_held:
        await room.resolver.resolve(ADA)
    old = Question(AGENT, "ada", Revision(EPOCH - 1, 1))
    for asked in (room.resolver.resolve(old), room.resolver.check(old), room.resolver.resolve_all([old])):
        with pytest.raises(HistoryChanged):
            await asked


async def test_c2_before_the_registry_was_heard_nothing_is_asked_or_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_FIRST_PING_S", 0.0)
    room = Room(is_known=False)
    for asked in (room.resolver.resolve(ADA), room.resolver.check(ADA)):
        with pytest.raises(PeerUnavailable) as caught:
            await asked
        assert caught.value.retry_after_s
    (told,) = await room.resolver.resolve_all([ADA])
    assert isinstance(told, PeerUnavailable)
    assert not room.permissions.asked


async def test_what_never_stands_still_is_not_known(room: Room) -> None:
    room.routes.during = room.revoke
    room.permissions.during = room.revoke
    with pytest.raises(PeerUnavailable):
        await room.resolver.resolve(ADA)


# What is counted between two looks.

HOURLY = Limit(LimitKind.USER_HOUR_MESSAGES, 5)
COUNTED_ADA = ADA._replace(claim=Claim("op"))


async def test_without_limits_and_without_an_id_nobody_is_asked(room: Room) -> None:
    await room.resolver.resolve(ADA)
    await room.resolver.resolve_all([ADA, ADA])
    assert not room.counters.asked


async def test_c1_what_is_revoked_while_it_is_counted_is_denied_and_taken_back(room: Room) -> None:
    room.counters.during = room.revoke
    with pytest.raises(NotPermitted):
        await room.resolver.resolve(COUNTED_ADA)
    assert (room.counters.asked, room.counters.taken) == (["count", "release"], set())


async def test_what_is_denied_and_cannot_be_taken_back_is_not_denied(room: Room) -> None:
    room.counters.during, room.counters.is_away = room.revoke, True
    with pytest.raises(LimitsUnknown):
        await room.resolver.resolve(COUNTED_ADA)


async def test_what_was_answered_before_stays_counted_when_a_repeat_is_denied(room: Room) -> None:
    await room.resolver.resolve(COUNTED_ADA)
    room.counters.during = room.revoke
    with pytest.raises(NotPermitted):
        await room.resolver.resolve(COUNTED_ADA)
    assert (room.counters.asked, room.counters.taken) == (["count", "count"], {"op"})


async def test_a_cap_that_is_reached_while_it_is_counted_takes_it_back(room: Room) -> None:
    def cap() -> None:
        room.terms.value = terms(HOURLY, capped_month="1970-01")
        room.knowledge.changed(11, 11, [plan_thing("ws")])

    room.counters.during = cap
    with pytest.raises(CapReached):
        await room.resolver.resolve(COUNTED_ADA)
    assert not room.counters.taken


async def test_a_route_that_changes_while_it_is_counted_is_answered_as_it_is_and_counted_once(room: Room) -> None:
    def move() -> None:
        room.routes.value = route(url="http://b")
        room.knowledge.changed(11, 11, [agent_thing("ws", "agent")])

    room.counters.during = move
    answer = await room.resolver.resolve(COUNTED_ADA)
    assert (answer.url, room.counters.asked) == ("http://b", ["count"])
    assert (answer.counted.operation_id, answer.counted.is_duplicate) == ("op", False)


async def test_a_limit_that_is_changed_counts_for_the_next(room: Room) -> None:
    await room.resolver.resolve(ADA)
    room.terms.value = terms(HOURLY)
    room.knowledge.changed(11, 11, [plan_thing("ws")])
    room.counters.refuses = True
    with pytest.raises(LimitReached) as told:
        await room.resolver.resolve(ADA)
    assert told.value.retry_after_s == 60.0


async def test_of_a_batch_what_is_revoked_while_it_is_counted_is_taken_back_and_the_rest_is_answered(room: Room) -> None:
    bob = Question(AGENT, "bob", claim=Claim("bobs"))
    room.counters.during = room.revoke
    denied, denied_too, answer = await room.resolver.resolve_all([COUNTED_ADA, ADA, bob])
    assert isinstance(denied, NotPermitted)
    assert isinstance(denied_too, NotPermitted)  # nothing was counted for it, and it is looked at last all the same
    assert isinstance(answer, Resolution)
    assert room.counters.taken == {"bobs"}


async def test_what_answers_rest_on_is_noted_once_for_each_answer_denials_among_them(room: Room) -> None:
    await room.resolver.resolve(COUNTED_ADA)
    assert room.counted == [Source.REGISTRY] * 3
    room.counted.clear()
    await room.resolver.resolve_all([ADA, COUNTED_ADA])
    assert room.counted == [Source.PROCESS] * 6
    room.counted.clear()
    room.revoke()
    with pytest.raises(NotPermitted):
        await room.resolver.resolve(ADA)
    assert room.counted == [Source.REGISTRY]
