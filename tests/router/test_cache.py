"""Copies in Redis: what is put is found again, and never takes the place of what was read at a later revision."""

import asyncio
from collections.abc import AsyncIterator

import pytest

from twofold_chassis.redis import RedisLink
from twofold_chassis.settings import RedisSettings
from twofold_chassis.urls import Home
from twofold_router import keys
from twofold_router.agents import Limits
from twofold_router.cache import redis_permissions, redis_routes, redis_terms
from twofold_router.copies import Told
from twofold_router.knowledge import Stamp
from twofold_router.permissions import PairKey, Permission, Verdict
from twofold_router.routes import AgentKey, AgentSettings, Route, Target
from twofold_router.terms import Limit, LimitKind, Terms, TermsKey

EPOCH = 3


def route(revision: int, url: str = "http://a", *, epoch: int = EPOCH) -> Told[Route]:
    settings = AgentSettings("Be kind. ☺", "model", True, 7, 99, Limits(1.5, 20.0))
    return Told(Route(url, True, settings, 4, False, (Target("blue", "http://b", 1),)), Stamp(epoch, revision), is_no=False)


@pytest.fixture
async def link(redis_settings: RedisSettings) -> AsyncIterator[RedisLink]:
    opened = RedisLink(redis_settings)
    yield opened
    await opened.close()


@pytest.fixture
def agent(workspace_id: str) -> AgentKey:
    return AgentKey(workspace_id, "agent:{1}")


def test_keys_are_readable_and_tagged_by_their_workspace() -> None:
    assert keys.route(3, "acme", "agent/1") == "c:{acme}:3:route:agent%2F1"
    assert keys.permission(3, "acme", "ada:", "agent/1") == "c:{acme}:3:perm:ada%3A:agent%2F1"


async def test_what_is_put_is_found_again(link: RedisLink, agent: AgentKey) -> None:
    routes = redis_routes(link)
    assert await routes.get(EPOCH, agent) is None
    await routes.put(agent, route(2**40), 5)
    assert await routes.get(EPOCH, agent) == route(2**40)


async def test_terms_are_found_as_they_were_put(link: RedisLink, workspace_id: str) -> None:
    kept, key = redis_terms(link), TermsKey(workspace_id, "")
    limits = (Limit(LimitKind.USER_HOUR_MESSAGES, 47), Limit(LimitKind.WORKSPACE_DAY_MICROS, 10**15, is_shadow=True))
    told = Told(Terms(limits, "2026-03", Home(("example.com",), "acme")), Stamp(EPOCH, 9), is_no=False)
    await kept.put(key, told, 5)
    assert await kept.get(EPOCH, key) == told


@pytest.mark.parametrize("ends_s", [None, 1234.5])
@pytest.mark.parametrize("verdict", Verdict)
async def test_permissions_are_found_as_they_were_put(
    link: RedisLink, workspace_id: str, verdict: Verdict, ends_s: float | None
) -> None:
    permissions, pair = redis_permissions(link), PairKey(workspace_id, "ada", "agent")
    told = Told(Permission(verdict, ends_s), Stamp(EPOCH, 9), is_no=verdict is not Verdict.GRANT)
    await permissions.put(pair, told, 5)
    assert await permissions.get(EPOCH, pair) == told


async def test_a_copy_lives_as_long_as_it_is_given(link: RedisLink, agent: AgentKey) -> None:
    routes = redis_routes(link)
    await routes.put(agent, route(1), 0.1)
    await asyncio.sleep(0.15)
    assert await routes.get(EPOCH, agent) is None


@pytest.mark.parametrize(("before", "after"), [(5, 4), (5, 5), (10, 9), (100, 99)])
async def test_what_was_read_later_is_not_replaced(link: RedisLink, agent: AgentKey, before: int, after: int) -> None:
    routes = redis_routes(link)
    await routes.put(agent, route(before, "http://new"), 5)
    await routes.put(agent, route(after, "http://old"), 5)
    assert await routes.get(EPOCH, agent) == route(before, "http://new")


@pytest.mark.parametrize(("before", "after"), [(4, 5), (9, 10), (99, 100)])
async def test_what_was_read_earlier_is_replaced(link: RedisLink, agent: AgentKey, before: int, after: int) -> None:
    routes = redis_routes(link)
    await routes.put(agent, route(before, "http://old"), 5)
    await routes.put(agent, route(after, "http://new"), 5)
    assert await routes.get(EPOCH, agent) == route(after, "http://new")


async def test_histories_never_meet(link: RedisLink, agent: AgentKey) -> None:
    routes = redis_routes(link)
    await routes.put(agent, route(9), 5)
    assert await routes.get(EPOCH + 1, agent) is None
    await routes.put(agent, route(1, epoch=EPOCH + 1), 5)
    assert await routes.get(EPOCH + 1, agent) == route(1, epoch=EPOCH + 1)
    assert await routes.get(EPOCH, agent) == route(9)


AT_7 = b"0000000000000007"


@pytest.mark.parametrize(
    "value",
    [
        b"by hand",
        b"7",
        AT_7,
        b"+00000000000000" + b"07[false, []]",
        AT_7 + b"{}",
        AT_7 + b"[]",
        AT_7 + b"[false, 7]",
        AT_7 + b"[1, 2]",
        AT_7 + b"\xff",
        AT_7 + b"[" * 100_000,
        AT_7 + b'[false, {"url": 7}]',
        AT_7 + b'[false, {"url": "http://a", "published": true}]',
    ],
    ids=lambda value: repr(value[:40]),
)
async def test_a_copy_that_cannot_be_read_is_none_and_gives_way_to_a_later_one(
    link: RedisLink, agent: AgentKey, value: bytes
) -> None:
    routes = redis_routes(link)
    await link.call("SET", keys.route(EPOCH, *agent), value)
    assert await routes.get(EPOCH, agent) is None


async def test_without_redis_there_is_no_copy_and_none_is_put(agent: AgentKey) -> None:
    link = RedisLink(RedisSettings(port=1))
    routes = redis_routes(link)
    assert await routes.get(EPOCH, agent) is None
    await routes.put(agent, route(1), 5)
    await link.close()
