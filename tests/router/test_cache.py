"""Copies of routes in Redis: what is put is found again, and never takes the place of what may be newer."""

import asyncio
import json
from collections.abc import AsyncIterator

import pytest

from twofold_chassis.redis import RedisLink
from twofold_chassis.settings import RedisSettings
from twofold_router import keys
from twofold_router.agents import Limits
from twofold_router.cache import RedisRoutes, encode
from twofold_router.routes import AgentKey, AgentSettings, Route, Seen, Target

TARGETS = [{"name": "blue", "url": "http://b", "weight": 1}]


def route(stamp: bytes, url: str = "http://a") -> Route:
    settings = AgentSettings("Be kind. ☺", "model", True, 7, 99, Limits(1.5, 20.0))
    return Route(url, True, settings, stamp, 1234.5, False, (Target("blue", "http://b", 1),))


@pytest.fixture
async def link(redis_settings: RedisSettings) -> AsyncIterator[RedisLink]:
    opened = RedisLink(redis_settings)
    yield opened
    await opened.close()


@pytest.fixture
def agent(workspace_id: str) -> AgentKey:
    return AgentKey(workspace_id, "agent:{1}")


def test_a_key_is_readable_and_tagged_by_its_workspace() -> None:
    assert keys.route("acme", "agent/1") == "c:{acme}:route:agent%2F1"


async def test_what_is_put_is_found_again(link: RedisLink, agent: AgentKey) -> None:
    routes = RedisRoutes(link)
    assert await routes.get(agent) == Seen()
    assert await routes.put(agent, route(b"\0\xff{1}"), instead_of=b"", ttl_s=5)
    assert (await routes.get(agent)).route == route(b"\0\xff{1}")


async def test_a_copy_lives_as_long_as_it_is_given(link: RedisLink, agent: AgentKey) -> None:
    routes = RedisRoutes(link)
    await routes.put(agent, route(b"1"), instead_of=b"", ttl_s=0.1)
    await asyncio.sleep(0.15)
    assert await routes.get(agent) == Seen()


async def test_who_found_nothing_gives_way_to_who_was_faster(link: RedisLink, agent: AgentKey) -> None:
    routes = RedisRoutes(link)
    slow = await routes.get(agent)
    assert await routes.put(agent, route(b"2", "http://new"), instead_of=b"", ttl_s=5)
    assert not await routes.put(agent, route(b"1", "http://old"), instead_of=slow.mark, ttl_s=5)
    found = (await routes.get(agent)).route
    assert found is not None
    assert found.url == "http://new"


async def test_who_found_something_replaces_just_that(link: RedisLink, agent: AgentKey) -> None:
    routes = RedisRoutes(link)
    await routes.put(agent, route(b"1"), instead_of=b"", ttl_s=5)
    first, second = await routes.get(agent), await routes.get(agent)
    assert await routes.put(agent, route(b"3"), instead_of=first.mark, ttl_s=5)
    assert not await routes.put(agent, route(b"2"), instead_of=second.mark, ttl_s=5)
    found = (await routes.get(agent)).route
    assert found is not None
    assert found.stamp == b"3"


async def test_a_stamp_that_begins_like_another_is_not_taken_for_it(link: RedisLink, agent: AgentKey) -> None:
    routes = RedisRoutes(link)
    await routes.put(agent, route(b"1"), instead_of=b"", ttl_s=5)
    short = await routes.get(agent)
    await routes.put(agent, route(b"12"), instead_of=short.mark, ttl_s=5)
    assert not await routes.put(agent, route(b"3"), instead_of=short.mark, ttl_s=5)


def written(
    *,
    url: object = "http://a",
    settings: object = None,
    read_at: object = 1234.5,
    gone: object = False,
    targets: object = None,
) -> bytes:
    """A value of this version, as somebody may have written it."""
    if settings is None:
        settings = json.loads(encode(route(b"1"))[4:])[2]
    return (
        b"\x02\x00\x011" + json.dumps([url, True, settings, read_at, gone, TARGETS if targets is None else targets]).encode()
    )


@pytest.mark.parametrize(
    "value",
    [
        b"\x09\x00\x01xyz",
        b"\x02",
        b"\x01\x00\x011" + encode(route(b"1"))[4:],
        b"by hand",
        b"\x02\x00\x011",
        b"\x02\xff\xff1[]",
        b"\x02\x00\x011{}",
        b"\x02\x00\x0117",
        b"\x02\x00\x011[1, 2]",
        b"\x02\x00\x011\xff",
        b"\x02\x00\x011" + b"[" * 100_000,
        written(url=7),
        written(settings={}),
        written(settings={"limits": 1}),
        written(read_at="now"),
        written(gone=0),
        written(targets=[{"name": "a", "url": "http://a", "weight": "1"}]),
    ],
    ids=lambda value: repr(value[:40]),
)
async def test_a_copy_that_cannot_be_read_is_a_miss_and_is_replaced_by_who_saw_it(
    link: RedisLink, agent: AgentKey, value: bytes
) -> None:
    routes = RedisRoutes(link)
    await link.call("SET", keys.route(agent.workspace_id, agent.agent_id), value)
    seen = await routes.get(agent)
    assert (seen.route, seen.answered) == (None, True)
    assert not await routes.put(agent, route(b"1"), instead_of=b"", ttl_s=5)
    assert await routes.put(agent, route(b"2"), instead_of=seen.mark, ttl_s=5)
    assert (await routes.get(agent)).route == route(b"2")


async def test_who_saw_what_cannot_be_read_gives_way_to_what_came_since(link: RedisLink, agent: AgentKey) -> None:
    routes, key = RedisRoutes(link), keys.route(agent.workspace_id, agent.agent_id)
    await link.call("SET", key, b"\x09\x00\x01 an older reading of another version")
    seen = await routes.get(agent)
    await link.call("SET", key, b"\x09\x00\x01 a newer reading of another version")
    assert not await routes.put(agent, route(b"1"), instead_of=seen.mark, ttl_s=5)


async def test_a_value_written_by_hand_is_read(link: RedisLink, agent: AgentKey) -> None:
    await link.call("SET", keys.route(agent.workspace_id, agent.agent_id), written())
    assert (await RedisRoutes(link).get(agent)).route == route(b"1")


async def test_without_redis_there_is_no_copy_and_none_is_put(agent: AgentKey) -> None:
    link = RedisLink(RedisSettings(port=1))
    routes = RedisRoutes(link)
    assert await routes.get(agent) == Seen(answered=False)
    assert not await routes.put(agent, route(b"1"), instead_of=b"", ttl_s=5)
    await link.close()
