"""Where Redis may evict what has no TTL: refused at the start, told while running, and always known."""

import pytest
from pydantic import SecretStr
from redis.asyncio import Redis
from structlog.testing import capture_logs

from tests.waiting import until
from twofold_chassis.redis import RedisLink, RedisUnavailable, open_link
from twofold_chassis.settings import RedisSettings
from twofold_chassis.start import StartError
from twofold_cli.embedded.redis import EmbeddedRedis

WARNING = "redis may evict what must stay"


def settings_of(server: EmbeddedRedis, **others: object) -> RedisSettings:
    own = {"host": server.host, "port": server.port, "password": SecretStr(server.password), "budget_ms": 5000}
    return RedisSettings.model_validate(own | others)


async def set_policy(server: EmbeddedRedis, policy: str) -> None:
    async with Redis(host=server.host, port=server.port, password=server.password) as client:
        await client.config_set("maxmemory-policy", policy)


async def reconnected(link: RedisLink, server: EmbeddedRedis) -> None:
    """Until another connection of the link answers."""
    generation = link.generation
    async with Redis(host=server.host, port=server.port, password=server.password) as client:
        await client.client_kill_filter(_type="normal", skipme=True)

    async def by_another() -> bool:
        return await link.answers() and link.generation != generation

    await until(by_another)


@pytest.mark.parametrize("policy", ["allkeys-lru", "allkeys-lfu", "allkeys-random"])
async def test_a_room_that_keeps_something_there_does_not_start_and_is_told_what_to_do(
    own_redis: EmbeddedRedis, policy: str
) -> None:
    await set_policy(own_redis, policy)
    with pytest.raises(StartError) as told:
        await open_link(settings_of(own_redis), must_keep=True)
    text = str(told.value)
    for said in (f"{own_redis.host}:{own_redis.port}", policy, "no maxmemory", "noeviction", "REDIS__ALLOW_EVICTION=true"):
        assert said in text
    link = await open_link(settings_of(own_redis))
    assert await link.answers(), "who only keeps copies there starts"
    await link.close()


@pytest.mark.parametrize("policy", ["noeviction", "volatile-lru", "volatile-ttl"])
async def test_where_only_what_has_a_ttl_may_go_nothing_is_said(own_redis: EmbeddedRedis, policy: str) -> None:
    await set_policy(own_redis, policy)
    with capture_logs() as logs:
        link = await open_link(settings_of(own_redis), must_keep=True)
        assert await link.answers()
        assert not link.weak
        await link.close()
    assert not [line for line in logs if "redis" in line["event"]]


async def test_who_is_told_to_go_on_does_and_knows(own_redis: EmbeddedRedis) -> None:
    await set_policy(own_redis, "allkeys-lru")
    with capture_logs() as logs:
        link = await open_link(settings_of(own_redis, allow_eviction=True), must_keep=True)
        assert await link.answers()
        assert link.weak
        await set_policy(own_redis, "noeviction")
        await reconnected(link, own_redis)
        assert not link.weak, "each connection is looked at"
        await link.close()
    assert [(entry["event"], entry["log_level"]) for entry in logs if entry["event"] == WARNING] == [(WARNING, "warning")]


async def test_a_server_that_comes_later_kills_nobody_but_is_told_once(own_redis: EmbeddedRedis) -> None:
    await set_policy(own_redis, "allkeys-lru")
    await own_redis.kill()
    with capture_logs() as logs:
        link = await open_link(settings_of(own_redis), must_keep=True)
        assert not link.weak
        await own_redis.start()
        await until(link.answers)
        assert not link.weak, "a restart has read its settings again"
        for _ in range(2):
            await set_policy(own_redis, "allkeys-lru")
            await reconnected(link, own_redis)
            assert link.weak
        await link.close()
    assert [(entry["event"], entry["log_level"]) for entry in logs if entry["event"] == WARNING] == [(WARNING, "error")]


async def test_a_policy_that_is_not_told_counts_as_one_that_evicts(own_redis: EmbeddedRedis) -> None:
    async with Redis(host=own_redis.host, port=own_redis.port, password=own_redis.password) as client:
        await client.acl_setuser("app", enabled=True, passwords=["+word"], keys=["*"], categories=["+@all", "-@dangerous"])
    settings = settings_of(own_redis, username="app", password=SecretStr("word"))
    with pytest.raises(StartError, match="INFO does not tell its maxmemory-policy"):
        await open_link(settings, must_keep=True)
    async with Redis(host=own_redis.host, port=own_redis.port, password=own_redis.password) as client:
        await client.acl_setuser(
            "app", enabled=True, passwords=["+word"], keys=["*"], categories=["+@all", "-@dangerous"], commands=["+info"]
        )
    link = await open_link(settings, must_keep=True)
    assert await link.answers()
    await link.close()


async def test_nobody_there_stops_no_start() -> None:
    link = await open_link(RedisSettings(port=1), must_keep=True)
    with pytest.raises(RedisUnavailable):
        await link.call("PING")
    assert not link.weak
    await link.close()
