"""The split of an agent's messages: by weight, the same everywhere, and moved for as few users as possible. And what is said
of an agent in each of its states, to whom."""

from collections.abc import Awaitable, Callable
from typing import Any, cast

import grpc
import pytest
from hypothesis import given, settings
from hypothesis import strategies as some

from tests.router.test_resolution import ADA, Room, permission, route
from tests.router.test_resolution import AGENT as AGENT_OF_ROOM
from twofold_chassis import status
from twofold_chassis.clocks import boot_s
from twofold_chassis.refusals import PeerUnavailable, Refusal, Unavailable
from twofold_router.agents import Limits
from twofold_router.outcomes import Outcome, TargetKey
from twofold_router.permissions import NotPermitted, Verdict
from twofold_router.resolution import AgentGone, AgentNotPublished
from twofold_router.routes import (
    AgentKey,
    AgentSettings,
    AgentUnknown,
    Observation,
    Route,
    Target,
    TargetState,
    preferred,
)
from twofold_router.targets import AgentNotReady, UrlForbidden

AGENT = AgentKey("acme", "helper")
SETTINGS = AgentSettings("", "model", False, 20, 8000, Limits(1, 1))
USERS = [f"user-{number}" for number in range(4000)]


def split(*targets: Target, agent: AgentKey = AGENT) -> dict[str, str]:
    """Where each user goes."""
    route = Route("http://own", True, SETTINGS, targets=targets)
    return {user_id: preferred(route.takers(), agent, user_id)[0].url for user_id in USERS}


def share(places: dict[str, str], url: str) -> float:
    return sum(place == url for place in places.values()) / len(places)


def test_without_targets_everybody_goes_to_the_agents_own_url() -> None:
    assert set(split().values()) == {"http://own"}


def test_each_target_gets_about_its_share_and_one_of_weight_0_nothing() -> None:
    places = split(Target("a", "http://a", 100), Target("b", "http://b", 300), Target("c", "http://c", 0))
    assert 0.22 < share(places, "http://a") < 0.28  # fixed users, so this never comes out otherwise
    assert share(places, "http://a") + share(places, "http://b") == 1


def test_the_order_of_targets_decides_nothing_and_the_agent_does() -> None:
    one, two = Target("a", "http://a", 1), Target("b", "http://b", 1)
    assert split(one, two) == split(two, one)
    assert split(one, two) != split(one, two, agent=AgentKey("acme", "other"))


@settings(deadline=None, max_examples=25)
@given(some.lists(some.integers(0, 1000), min_size=2, max_size=6).filter(any), some.integers(1, 1000))
def test_a_target_that_gets_more_takes_users_from_the_others_who_keep_the_rest(weights: list[int], more: int) -> None:
    targets = [Target(str(index), f"http://{index}", weight) for index, weight in enumerate(weights)]
    before = split(*targets)
    after = split(Target("0", "http://0", weights[0] + more), *targets[1:])
    assert all(after[user_id] in (before[user_id], "http://0") for user_id in USERS)


def test_where_a_user_goes_is_no_matter_of_the_process() -> None:
    places = split(Target("a", "http://a", 1), Target("b", "http://b", 1))
    assert "".join(places[user_id][-1] for user_id in USERS[:16]) == "babbbbaabbaaabbb"


# Whose word is which code --------------------------------------------------------------------------------------

AWAY = PeerUnavailable("away", retry_after_s=1.0, peer="registry")
URL = "http://a"
ALLOWS = (Verdict.GRANT, Verdict.ROLE)


def seen(state: TargetState) -> dict[str, Observation]:
    return {"seen": Observation(state, 5000.0)}


async def heard_nothing(room: Room) -> None:
    """Nobody has told anything of the target."""


async def could_not_dial(room: Room) -> None:
    room.outcomes.hear(TargetKey(*AGENT_OF_ROOM, 1, ""), Outcome.DIAL_FAILED, boot_s())


async def was_answered_badly(room: Room) -> None:
    for _ in range(100):
        room.outcomes.hear(TargetKey(*AGENT_OF_ROOM, 1, ""), Outcome.ANSWER_FAILED, boot_s())


async def could_not_dial_an_older_generation(room: Room) -> None:
    room.outcomes.hear(TargetKey(*AGENT_OF_ROOM, 0, ""), Outcome.DIAL_FAILED, boot_s())


ROUTES: dict[str, tuple[Any, Callable[[Room], Awaitable[None]], type[Refusal] | TargetState]] = {
    "ready": (route(generation=1), heard_nothing, TargetState.READY),
    "cold": (route(generation=1, **seen(TargetState.COLD)), heard_nothing, TargetState.COLD),
    "starting": (route(generation=1, **seen(TargetState.STARTING)), heard_nothing, TargetState.STARTING),
    "seen to fail": (route(generation=1, **seen(TargetState.FAILING)), heard_nothing, TargetState.FAILING),
    "answers badly": (route(generation=1), was_answered_badly, TargetState.READY),
    "failed before": (route(generation=1), could_not_dial_an_older_generation, TargetState.READY),
    "draining": (route(generation=1, **seen(TargetState.DRAINING)), heard_nothing, AgentNotReady),
    "rests": (route(generation=1), could_not_dial, AgentNotReady),
    "cold and rests": (route(generation=1, **seen(TargetState.COLD)), could_not_dial, AgentNotReady),
    "forbidden": (route(generation=1, url="http://169.254.169.254"), heard_nothing, UrlForbidden),
    "paused": (route(published=False), heard_nothing, AgentNotPublished),
    "gone": (route(gone=True), heard_nothing, AgentGone),
    "deleted": (None, heard_nothing, AgentUnknown),
    "not known": (AWAY, heard_nothing, PeerUnavailable),
}


@pytest.mark.parametrize("state", ROUTES)
@pytest.mark.parametrize("verdict", [*Verdict, AWAY], ids=str)
async def test_c9_every_verdict_and_every_state_has_its_own_code(state: str, verdict: Verdict | Refusal) -> None:
    room = Room()
    room.permissions.value = verdict if isinstance(verdict, Refusal) else permission(verdict)
    room.routes.value, happens, expected = ROUTES[state]
    room.routes.is_stamped = room.routes.value is not None
    await happens(room)
    if verdict not in ALLOWS:  # who is not allowed hears nothing of the agent, whatever is with it
        said = {Verdict.DENIED: NotPermitted, Verdict.AGENT_UNKNOWN: AgentUnknown, Verdict.AGENT_GONE: AgentGone}
        expected = said.get(cast(Verdict, verdict), PeerUnavailable)
    elif verdict is Verdict.GRANT and expected is AgentUnknown:
        expected = NotPermitted  # deleted between the two readings: as the check would say it
    for _ in range(2):  # read, and out of copies
        if isinstance(expected, TargetState):
            choice = (await room.resolver.resolve(ADA)).choice
            assert (choice.target.url, choice.state) == (URL, expected)
            assert (choice.cold_start_s is None) is (expected not in (TargetState.COLD, TargetState.STARTING))
            continue
        with pytest.raises(Refusal) as told:
            await room.resolver.resolve(ADA)
        assert type(told.value) is expected
        is_unsure = issubclass(expected, Unavailable)
        assert status.code(told.value) is CODES[expected]
        assert (told.value.retry_after_s is not None) is is_unsure


CODES: dict[type[Refusal], grpc.StatusCode] = {
    NotPermitted: grpc.StatusCode.PERMISSION_DENIED,
    AgentUnknown: grpc.StatusCode.NOT_FOUND,
    AgentGone: grpc.StatusCode.FAILED_PRECONDITION,
    AgentNotPublished: grpc.StatusCode.FAILED_PRECONDITION,
    UrlForbidden: grpc.StatusCode.FAILED_PRECONDITION,
    AgentNotReady: grpc.StatusCode.UNAVAILABLE,
    PeerUnavailable: grpc.StatusCode.UNAVAILABLE,
}
