"""Outcomes: which targets rest because they could not be dialled, what changes that, and who hears of it."""

from collections.abc import AsyncIterator, Sequence
from typing import Any, cast

import pytest
from hypothesis import settings
from hypothesis import strategies as some
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from tests.waiting import until
from twofold_chassis.clocks import boot_s
from twofold_chassis.redis import RedisLink, open_link
from twofold_chassis.refusals import NotFound, PeerUnavailable, Refusal
from twofold_chassis.settings import RedisSettings
from twofold_chassis.urls import Home, UrlPolicy
from twofold_router import keys
from twofold_router.agents import Limits
from twofold_router.copies import Held, Source
from twofold_router.knowledge import Stamp
from twofold_router.outcomes import Outcome, Outcomes, TargetKey, Told
from twofold_router.outcomes_redis import RedisBoard
from twofold_router.reporting import Report, Reporting
from twofold_router.routes import AgentKey, AgentSettings, Observation, Route, Target, TargetState
from twofold_router.targets import AgentNotReady, Choice, Targets, UrlForbidden

AGENT = AgentKey("acme", "helper")
SETTINGS = AgentSettings("", "model", False, 20, 8000, Limits(30.0, 60.0))
POLICY = UrlPolicy(("svc.cluster.local",), allow_loopback=False)
HOME = Home((), "")
USERS = [f"user-{number}" for number in range(400)]
WALL_S = 1_000_000.0
"""What the database's clock shows when the machine's shows 0."""


def key(name: str = "", generation: int = 1) -> TargetKey:
    return TargetKey(*AGENT, generation, name)


def outcomes(**options: Any) -> Outcomes:
    return Outcomes(drawn=lambda least, most: 1.0, **options)


def target(name: str, weight: int = 1, seen: Observation | None = None) -> Target:
    return Target(name, f"http://{name}.acme.svc.cluster.local", weight, seen)


def route(*targets: Target, generation: int = 1, **values: Any) -> Route:
    return Route("http://own.acme.svc.cluster.local", True, SETTINGS, generation, targets=targets, **values)


class Room:
    """Targets with what was heard of them, at a time that the test sets."""

    def __init__(self) -> None:
        self.now = 100.0
        self.outcomes = outcomes()
        self.targets = Targets(self.outcomes, POLICY, database_s=lambda now: WALL_S + now)

    def hear(
        self, what: Outcome, name: str = "", generation: int = 1, latency_s: float = 0.0, at: Route | None = None
    ) -> None:
        self.targets.hear(key(name, generation), what, latency_s, at, self.now)

    def choose(self, at: Route, user_id: str = "ada", home: Home | None = HOME, *, peek: bool = False) -> Choice:
        return self.targets.choose(AGENT, at, user_id, home, self.now, peek=peek)

    def split(self, at: Route) -> dict[str, str]:
        return {user_id: self.choose(at, user_id).target.name for user_id in USERS}

    def seen(self, state: TargetState, ago_s: float = 0.0) -> Observation:
        return Observation(state, WALL_S + self.now - ago_s)


@pytest.fixture
def room() -> Room:
    return Room()


# What lets a target rest ---------------------------------------------------------------------------------------


def test_a_target_that_could_not_be_dialled_rests_and_then_one_message_tries_it() -> None:
    heard = outcomes()
    heard.hear(key(), Outcome.DIAL_FAILED, 10.0)
    assert [heard.admits(key(), at) for at in (10.0, 10.99)] == [False, False]
    assert [heard.admits(key(), 11.0) for _ in range(3)] == [True, False, False]
    heard.hear(key(), Outcome.DIALED, 11.5)
    assert [heard.admits(key(), 11.5) for _ in range(3)] == [True, True, True]


def test_each_trial_that_fails_lets_it_rest_for_longer_up_to_a_bound() -> None:
    heard, now, rests = outcomes(), 10.0, []
    for _ in range(8):
        heard.hear(key(), Outcome.DIAL_FAILED, now)
        found = heard.find(key())
        assert found is not None
        rests.append(found.rests_until - now)
        now = found.rests_until
        assert heard.admits(key(), now)
    assert rests == [1, 2, 4, 8, 16, 30, 30, 30]


def test_rests_are_not_all_of_the_same_length() -> None:
    lengths = set()
    for number in range(50):
        heard = Outcomes()
        heard.hear(key(), Outcome.DIAL_FAILED, 0.0)
        found = heard.find(key())
        assert found is not None
        assert 0.8 <= found.rests_until <= 1.2, number
        lengths.add(found.rests_until)
    assert len(lengths) > 10


def test_a_trial_of_which_nothing_is_heard_is_followed_by_another() -> None:
    heard = outcomes()
    heard.hear(key(), Outcome.DIAL_FAILED, 0.0)
    assert [at for at in range(1, 6) if heard.admits(key(), float(at))] == [1, 2, 3, 4, 5]
    assert not heard.admits(key(), 5.5)


def test_the_failures_of_messages_that_left_together_count_once() -> None:
    heard = outcomes()
    for _ in range(500):
        heard.hear(key(), Outcome.DIAL_FAILED, 10.0)
    found = heard.find(key())
    assert found is not None
    assert (found.failures, found.rests_until) == (1, 11.0)


@pytest.mark.parametrize("outcome", [Outcome.ANSWER_FAILED, Outcome.DIALED, Outcome.FIRST_BYTE])
def test_nothing_but_a_failure_to_dial_lets_a_target_rest(outcome: Outcome) -> None:
    heard = outcomes()
    for _ in range(100):
        heard.hear(key(), outcome, 10.0)
        assert heard.admits(key(), 10.0)
    assert heard.failing == 0


def test_an_answer_that_failed_says_nothing_of_whether_it_can_be_dialled_now() -> None:
    heard = outcomes()
    heard.hear(key(), Outcome.DIAL_FAILED, 10.0)
    heard.hear(key(), Outcome.ANSWER_FAILED, 10.1)
    assert not heard.admits(key(), 10.2)


def test_a_trial_that_is_answered_badly_has_been_reached() -> None:
    heard = outcomes()
    heard.hear(key(), Outcome.DIAL_FAILED, 10.0)
    assert heard.admits(key(), 11.0)
    heard.hear(key(), Outcome.ANSWER_FAILED, 11.1)
    assert [heard.admits(key(), 11.2) for _ in range(3)] == [True, True, True]


@pytest.mark.parametrize("outcome", list(Outcome))
@pytest.mark.parametrize("other", [1, 3])
def test_what_is_heard_of_another_generation_changes_nothing_of_this_one(outcome: Outcome, other: int) -> None:
    fine, failing = outcomes(), outcomes()
    failing.hear(key(generation=2), Outcome.DIAL_FAILED, 10.0)
    for heard in (fine, failing):
        heard.hear(key(generation=other), outcome, 10.1)
    assert fine.admits(key(generation=2), 10.2)
    assert not failing.admits(key(generation=2), 10.2)


def test_who_peeks_takes_no_trial() -> None:
    heard = outcomes()
    heard.hear(key(), Outcome.DIAL_FAILED, 0.0)
    assert not heard.admits(key(), 0.5, peek=True)
    assert [heard.admits(key(), 1.0, peek=True) for _ in range(3)] == [True, True, True]
    assert heard.admits(key(), 1.0)


def test_of_more_targets_than_are_kept_those_heard_of_last_stay() -> None:
    heard = outcomes(targets_max=10)
    for number in range(1000):
        heard.hear(key(str(number)), Outcome.DIAL_FAILED, 0.0)
    assert heard.failing == 10
    assert [number for number in range(1000) if not heard.admits(key(str(number)), 0.0)] == list(range(990, 1000))
    assert len(heard.news()) == 10


class Against(RuleBasedStateMachine):
    """Outcomes against the plainest model: what was heard of each target of each generation, and nothing else."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.heard = outcomes()
        self.failures: dict[TargetKey, int] = {}
        self.until: dict[TargetKey, float] = {}
        self.tried: set[TargetKey] = set()

    names = some.sampled_from(["", "a", "b"])
    generations = some.integers(1, 3)

    @rule(seconds=some.floats(0, 40))
    def wait(self, seconds: float) -> None:
        self.now += seconds

    @rule(name=names, generation=generations)
    def fail(self, name: str, generation: int) -> None:
        at = key(name, generation)
        self.heard.hear(at, Outcome.DIAL_FAILED, self.now)
        if self.now >= self.until.get(at, 0.0) or at in self.tried:
            self.failures[at] = self.failures.get(at, 0) + 1
            self.until[at] = self.now + min(30.0, 2.0 ** (self.failures[at] - 1))
            self.tried.discard(at)

    @rule(name=names, generation=generations, outcome=some.sampled_from([Outcome.DIALED, Outcome.FIRST_BYTE]))
    def reach(self, name: str, generation: int, outcome: Outcome) -> None:
        at = key(name, generation)
        self.heard.hear(at, outcome, self.now)
        self.failures.pop(at, None)
        self.until.pop(at, None)
        self.tried.discard(at)

    @rule(name=names, generation=generations)
    def answer_badly(self, name: str, generation: int) -> None:
        at = key(name, generation)
        self.heard.hear(at, Outcome.ANSWER_FAILED, self.now)
        if at in self.tried:
            self.failures.pop(at, None)
            self.until.pop(at, None)
            self.tried.discard(at)

    @rule(name=names, generation=generations)
    def send(self, name: str, generation: int) -> None:
        at = key(name, generation)
        expected = self.now >= self.until.get(at, 0.0)
        assert self.heard.admits(at, self.now) == expected
        if expected and at in self.failures:
            self.until[at] = self.now + min(30.0, 2.0 ** (self.failures[at] - 1))
            self.tried.add(at)

    @invariant()
    def as_many_fail(self) -> None:
        assert self.heard.failing == len(self.failures)
        some = key("", 1)
        assert self.heard.fails(some.workspace_id, some.agent_id) == bool(self.failures)
        assert not self.heard.fails(some.workspace_id, "another")


Against.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
TestOutcomesAgainstAModel = Against.TestCase


# Which target takes a message ----------------------------------------------------------------------------------


def test_users_of_a_target_that_rests_go_to_the_others_by_weight_and_come_back(room: Room) -> None:
    agent = route(target("a", 2), target("b", 1), target("c", 1))
    before = room.split(agent)
    room.hear(Outcome.DIAL_FAILED, "a")
    during = room.split(agent)
    moved = [user_id for user_id in USERS if before[user_id] != during[user_id]]
    assert {before[user_id] for user_id in moved} == {"a"}
    assert len(moved) == sum(name == "a" for name in before.values())
    assert 0.3 < sum(during[user_id] == "b" for user_id in moved) / len(moved) < 0.7
    room.hear(Outcome.DIALED, "a")
    assert room.split(agent) == before


def test_only_a_user_of_the_target_tries_it_again(room: Room) -> None:
    agent = route(target("a"), target("b"))
    before = room.split(agent)
    room.hear(Outcome.DIAL_FAILED, "a")
    room.now += 1.5
    after = [(user_id, room.choose(agent, user_id)) for user_id in USERS]
    tried = [(user_id, choice.state) for user_id, choice in after if choice.target.name == "a"]
    assert [(before[user_id], state) for user_id, state in tried] == [("a", TargetState.FAILING)]


@pytest.mark.parametrize("names", [[""], ["a"], ["a", "b", "c"]])
def test_c9_an_agent_of_which_all_targets_rest_is_not_ready_and_says_when_to_come_again(
    room: Room, names: list[str]
) -> None:
    agent = route(*(target(name) for name in names if name))
    for name in names:
        room.hear(Outcome.DIAL_FAILED, name)
    with pytest.raises(AgentNotReady) as told:
        room.choose(agent)
    assert told.value.metadata["state"] == "failing"
    assert told.value.retry_after_s == 1.0
    room.now += told.value.retry_after_s - 0.01
    with pytest.raises(AgentNotReady):
        room.choose(agent)
    room.now += 0.01
    room.choose(agent)


def test_a_target_that_drains_is_sent_nothing_while_another_is_there_nor_alone(room: Room) -> None:
    agent = route(target("a", seen=room.seen(TargetState.DRAINING)), target("b"))
    assert set(room.split(agent).values()) == {"b"}
    with pytest.raises(AgentNotReady) as told:
        room.choose(route(target("a", seen=room.seen(TargetState.DRAINING))))
    assert (told.value.metadata["state"], told.value.retry_after_s) == ("draining", 1.0)
    room.now += 1
    room.hear(Outcome.DIALED, "a")  # who drains can be dialled
    assert set(room.split(agent).values()) == {"b"}


@pytest.mark.parametrize("state", [TargetState.COLD, TargetState.STARTING])
def test_what_must_be_started_takes_messages_and_says_how_long_to_wait(room: Room, state: TargetState) -> None:
    agent = route(seen=room.seen(state))
    assert room.choose(agent)[1:] == (state, 30.0)  # nobody knows better than the agent's own time limit
    room.now += 1
    room.hear(Outcome.DIALED, at=agent)  # by what stands before it, and starts it
    assert room.choose(agent)[1:] == (state, 30.0)
    room.hear(Outcome.FIRST_BYTE, latency_s=2.0, at=agent)
    assert room.choose(agent)[1:] == (TargetState.READY, None)


def test_how_long_a_start_took_is_what_the_next_one_is_said_to_take(room: Room) -> None:
    agent = route(seen=room.seen(TargetState.COLD))
    room.now += 1
    room.hear(Outcome.FIRST_BYTE, latency_s=4.5, at=agent)
    assert room.choose(agent)[1:] == (TargetState.READY, None)
    room.hear(Outcome.FIRST_BYTE, latency_s=0.1, at=agent)  # it was there: this was no start
    room.now += 60
    cold_again = route(seen=room.seen(TargetState.COLD))
    assert room.choose(cold_again)[1:] == (TargetState.COLD, 4.5)


def test_a_start_in_an_older_generation_says_nothing_of_this_one(room: Room) -> None:
    agent = route(seen=room.seen(TargetState.COLD), generation=2)
    room.now += 1
    room.hear(Outcome.FIRST_BYTE, generation=1, latency_s=4.5, at=agent)
    assert room.choose(agent)[1:] == (TargetState.COLD, 30.0)


def test_a_target_that_somebody_saw_fail_is_the_last_resort_and_only_for_a_while(room: Room) -> None:
    failing = room.seen(TargetState.FAILING)
    agent = route(target("a", seen=failing), target("b"))
    assert set(room.split(agent).values()) == {"b"}
    assert room.choose(route(target("a", seen=failing))).state is TargetState.FAILING
    room.hear(Outcome.DIAL_FAILED, "b")
    assert set(room.split(agent).values()) == {"a"}
    room.hear(Outcome.DIALED, "b")
    room.now += 60
    assert set(room.split(agent).values()) == {"a", "b"}


def test_what_was_reached_since_somebody_saw_it_fail_is_ready(room: Room) -> None:
    agent = route(target("a", seen=room.seen(TargetState.FAILING)), target("b"))
    room.now += 1
    room.hear(Outcome.DIALED, "a")
    assert set(room.split(agent).values()) == {"a", "b"}


# URLs ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "url",
    [
        "http://127.0.0.1:80", "http://localhost", "http://169.254.169.254", "http://metadata.google.internal",
        "http://agents.other.example", "ftp://own.acme.svc.cluster.local", "http://user@own.acme.svc.cluster.local",
        "http://own.acme.svc.cluster.local.", "http://OWN.acme.svc.cluster.local", "http://kubernetes.default.svc.cluster.local",
        "http://own.globex.svc.cluster.local", "", "nonsense",
    ],
)  # fmt: skip
@pytest.mark.parametrize("within", ["url", "targets"])
def test_c9_a_url_that_is_not_allowed_any_more_is_given_to_nobody(room: Room, url: str, within: str) -> None:
    agent = Route(url, True, SETTINGS, 1) if within == "url" else route(Target("a", url, 1))
    for _ in range(2):  # judged, and remembered
        with pytest.raises(UrlForbidden):
            room.choose(agent, home=Home((), "acme"))


def test_a_workspace_may_allow_its_own_hosts(room: Room) -> None:
    agent = Route("https://agents.acme.example", True, SETTINGS, 1)
    assert room.choose(agent, home=Home(("acme.example",), "acme")).target.url == agent.url
    with pytest.raises(UrlForbidden):
        room.choose(agent)


def test_while_developing_agents_live_on_this_machine() -> None:
    policy = UrlPolicy(("svc.cluster.local",), allow_loopback=True)
    targets = Targets(outcomes(), policy, database_s=lambda now: now)
    assert targets.choose(AGENT, Route("http://127.0.0.1:8900", True, SETTINGS, 1), "ada", HOME, 0.0)
    with pytest.raises(UrlForbidden):
        targets.choose(AGENT, Route("http://169.254.169.254", True, SETTINGS, 1), "ada", HOME, 0.0)


def test_a_refused_url_takes_no_trial(room: Room) -> None:
    agent = Route("http://agents.other.example", True, SETTINGS, 1)
    room.hear(Outcome.DIAL_FAILED)
    room.now += 1
    with pytest.raises(UrlForbidden):
        room.choose(agent)
    assert room.outcomes.admits(key(), room.now)


# Telling the registry and the other routers -------------------------------------------------------------------


class FakeRoutes:
    """The copies of routes: what is known of one agent."""

    def __init__(self, known: Route | None) -> None:
        self.known = known

    def peek(self, agent: AgentKey, now: float) -> Held[Route | None] | None:
        return None if self.known is None else Held(self.known, Stamp(1, 1), Source.PROCESS, now, None)


class FakeBoard:
    """Nobody else."""

    async def swap(self, failing: Sequence[Told], reached: Sequence[TargetKey]) -> Sequence[Told] | None:
        return None


class FakeObservations:
    """What the registry was told, and what it refuses with."""

    def __init__(self) -> None:
        self.told: list[tuple[TargetKey, TargetState, str]] = []
        self.refusal: Refusal | None = None

    async def tell(self, key: TargetKey, seen: Observation) -> None:
        self.told.append((key, seen.state, seen.message))
        if self.refusal is not None:
            raise self.refusal


class Router:
    """A router as far as this is concerned, whose clock is the machine's."""

    def __init__(self, board: Any, known: Route | None = None, **options: Any) -> None:
        self.outcomes = outcomes(rest_s=(1000.0, 3000.0))
        self.targets = Targets(self.outcomes, POLICY, database_s=lambda now: WALL_S + now)
        self.routes = FakeRoutes(known)
        self.registry = FakeObservations()
        self.counted: list[Outcome] = []
        self.reporting = Reporting(
            self.outcomes, self.targets, cast(Any, self.routes), board, self.registry, count=self.counted.append, **options
        )

    def hear(self, outcome: Outcome, name: str = "", latency_s: float = 0.0, generation: int = 1) -> None:
        self.reporting.hear(AGENT, Report(generation, name, outcome, latency_s))

    def takes(self, name: str = "") -> bool:
        return self.outcomes.admits(key(name), boot_s(), peek=True)


async def test_the_registry_hears_what_it_does_not_know_once() -> None:
    router = Router(FakeBoard(), route())
    for _ in range(3):
        router.hear(Outcome.DIAL_FAILED)
        await router.reporting.spread_once()
    assert router.registry.told == [(key(), TargetState.FAILING, "could not be dialled (failures in a row: 1)")]
    assert router.counted == [Outcome.DIAL_FAILED] * 3


async def test_the_registry_hears_that_a_target_was_started_and_how_long_it_took() -> None:
    router = Router(FakeBoard(), route(seen=Observation(TargetState.COLD, 0.0)))
    router.hear(Outcome.DIALED)
    router.hear(Outcome.FIRST_BYTE, latency_s=2.0)
    await router.reporting.spread_once()
    assert [(told[1], told[2]) for told in router.registry.told] == [(TargetState.READY, "started within 2.0 s")]


async def test_what_came_and_went_is_not_told_and_a_change_is_told_after_its_interval() -> None:
    router = Router(FakeBoard(), route(), told_again_s=0.0)
    router.hear(Outcome.DIAL_FAILED)
    router.hear(Outcome.DIALED)
    await router.reporting.spread_once()
    assert not router.registry.told
    router.hear(Outcome.DIAL_FAILED)
    await router.reporting.spread_once()
    router.routes.known = route(seen=Observation(TargetState.FAILING, WALL_S))
    router.hear(Outcome.DIALED)
    await router.reporting.spread_once()
    assert [told[1] for told in router.registry.told] == [TargetState.FAILING, TargetState.READY]


@pytest.mark.parametrize("known", [None, route(generation=2), route(target("a"))])
async def test_nothing_is_told_of_what_is_not_known_here(known: Route | None) -> None:
    router = Router(FakeBoard(), known)
    router.hear(Outcome.DIAL_FAILED)
    await router.reporting.spread_once()
    assert not router.registry.told
    assert not router.takes()  # it is heard all the same: who told it may be ahead of this router


@pytest.mark.parametrize("refusal", [NotFound("gone"), PeerUnavailable("away", retry_after_s=1.0)])
async def test_a_registry_that_refuses_or_is_away_changes_nothing(refusal: Refusal) -> None:
    router = Router(FakeBoard(), route(target("a"), target("b")))
    router.registry.refusal = refusal
    for name in ("a", "b"):
        router.hear(Outcome.DIAL_FAILED, name)
    await router.reporting.spread_once()
    await router.reporting.spread_once()
    assert len(router.registry.told) == 2
    assert not router.takes("a")


async def test_an_error_of_ours_does_not_end_the_spreading() -> None:
    class Faulty(FakeBoard):
        asked = 0

        async def swap(self, failing: Sequence[Told], reached: Sequence[TargetKey]) -> Sequence[Told] | None:
            self.asked += 1
            if self.asked == 1:
                raise RuntimeError("a defect")
            return None

    board = Faulty()
    async with Router(board, period_s=0.001).reporting.spreading():
        await until(lambda: board.asked > 1, "it goes on")


@pytest.fixture
async def link(redis_settings: RedisSettings) -> AsyncIterator[RedisLink]:
    link = await open_link(redis_settings)
    await link.call("DEL", keys.rests())
    yield link
    await link.call("DEL", keys.rests())
    await link.close()


async def test_what_one_router_cannot_dial_rests_at_the_others_until_one_reaches_it(link: RedisLink) -> None:
    here, there = (Router(RedisBoard(link)) for _ in range(2))
    here.hear(Outcome.DIAL_FAILED, "a")
    for router in (here, there):
        await router.reporting.spread_once()
    assert [router.takes("a") for router in (here, there)] == [False, False]
    assert there.takes("b")
    there.hear(Outcome.DIALED, "a")  # it had begun before
    for router in (there, here):
        await router.reporting.spread_once()
    assert [router.takes("a") for router in (here, there)] == [True, True]
    assert await link.call("HLEN", keys.rests()) == 0


async def test_what_others_have_found_is_of_one_generation(link: RedisLink) -> None:
    here, there = (Router(RedisBoard(link)) for _ in range(2))
    here.hear(Outcome.DIAL_FAILED, "a", generation=1)
    for router in (here, there):
        await router.reporting.spread_once()
    assert there.outcomes.admits(key("a", 2), boot_s())
    assert not there.outcomes.admits(key("a", 1), boot_s())


async def test_what_stands_there_is_bounded_and_ends_by_itself(link: RedisLink) -> None:
    router = Router(RedisBoard(link))
    board = RedisBoard(link)
    await board.swap([Told(key(str(number)), 20.0, 1) for number in range(1200)], [])
    assert await link.call("HLEN", keys.rests()) == 1000
    assert 0 < await link.call("PTTL", keys.rests()) <= 60_000
    await board.swap([], [key(str(number)) for number in range(1200)])
    assert await link.call("HLEN", keys.rests()) == 0
    await board.swap([Told(key("brief"), 0.001, 1)], [])

    async def nothing_rests() -> bool:
        return not await board.swap([], [])

    await until(nothing_rests)
    assert await link.call("HLEN", keys.rests()) == 0
    await router.reporting.spread_once()


async def test_what_cannot_be_read_there_is_as_good_as_nothing(link: RedisLink) -> None:
    await link.call(
        "HSET", keys.rests(), "nonsense", "9" * 16 + ":1", '["a",1]', "9" * 16 + ":1", '["a","b",1,"c"]', "never"
    )
    await link.call("HSET", keys.rests(), "{", "9" * 16 + ":1")
    assert await RedisBoard(link).swap([], []) == []


async def test_without_redis_each_router_finds_out_by_itself() -> None:
    away = await open_link(RedisSettings(port=1))
    router = Router(RedisBoard(away), route())
    router.hear(Outcome.DIAL_FAILED)
    await router.reporting.spread_once()
    assert not router.takes()
    assert len(router.registry.told) == 1
    await away.close()


def test_what_is_heard_here_while_others_are_asked_is_newer() -> None:
    heard = outcomes()
    heard.hear(key(), Outcome.DIALED, 10.0)
    heard.rest(Told(key(), 20.0, 3), asked_at=9.9, now=10.1)
    assert heard.admits(key(), 10.1)
    heard.rest(Told(key(), 20.0, 3), asked_at=10.05, now=10.1)
    assert not heard.admits(key(), 10.1)


def test_nobody_can_let_a_target_rest_for_longer_than_the_longest() -> None:
    heard = outcomes()
    heard.rest(Told(key(), 10**9, 10**6), asked_at=0.0, now=0.0)
    assert heard.admits(key(), 36.1)
