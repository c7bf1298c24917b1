"""The split of an agent's messages: by weight, the same everywhere, and moved for as few users as possible."""

from hypothesis import given, settings
from hypothesis import strategies as some

from twofold_router.agents import Limits
from twofold_router.routes import AgentKey, AgentSettings, Route, Target, preferred

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
