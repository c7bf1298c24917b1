"""The link to Redis: within its budget, without blind repeats, and losable whatever happens."""

import asyncio
import hashlib
from collections.abc import AsyncIterator

import pytest
from pydantic import SecretStr
from redis.asyncio import Redis
from structlog.testing import capture_logs

from tests.waiting import until
from twofold_chassis.redis import RUN_ID, RedisLink, RedisNotAsked, RedisUnavailable, Script, losable
from twofold_chassis.settings import RedisSettings
from twofold_cli.embedded.redis import EmbeddedRedis

INCREMENT = Script("increment", "return redis.call('INCR', KEYS[1])", "")


@pytest.fixture(scope="module")
def increment() -> Script:
    return Script(INCREMENT.name, INCREMENT.source, hashlib.sha1(INCREMENT.source.encode()).hexdigest())


@pytest.fixture
async def link(redis_settings: RedisSettings) -> AsyncIterator[RedisLink]:
    link = RedisLink(redis_settings)
    yield link
    await link.close()


def settings_of(server: EmbeddedRedis, *, budget_ms: float = 5000, password: str | None = None) -> RedisSettings:
    secret = SecretStr(server.password if password is None else password)
    return RedisSettings(host=server.host, port=server.port, password=secret, budget_ms=budget_ms)


async def test_commands_of_many_callers_get_their_own_answers(link: RedisLink, workspace_id: str) -> None:
    async def use(number: int) -> None:
        await link.call("SET", f"{workspace_id}:{number}", number, "PX", 60_000)
        assert await link.call("GET", f"{workspace_id}:{number}") == b"%d" % number

    await asyncio.gather(*(use(number) for number in range(300)))


async def test_a_script_is_sent_when_the_server_does_not_know_it_and_then_runs_once(
    own_redis: EmbeddedRedis, increment: Script
) -> None:
    link = RedisLink(settings_of(own_redis))
    assert await link.run(increment, ["n"], []) == 1
    assert await link.run(increment, ["n"], []) == 2
    await link.call("SCRIPT", "FLUSH")
    answers = await asyncio.gather(*(link.run(increment, ["n"], []) for _ in range(8)))
    assert sorted(answers) == list(range(3, 11))
    await link.close()


async def test_a_silent_server_costs_the_budget_and_soon_nothing_and_is_used_again_when_it_answers(
    own_redis: EmbeddedRedis,
) -> None:
    link = RedisLink(settings_of(own_redis, budget_ms=50))
    assert await link.answers()
    loop = asyncio.get_running_loop()
    own_redis.pause()
    try:
        for _ in range(6):
            started = loop.time()
            with pytest.raises(RedisUnavailable):
                await link.call("PING")
            assert loop.time() - started < 0.9  # 50 ms, and what a busy machine needs; the silence itself lasts a second
        assert link.breaker.open
        refused = await asyncio.gather(*(link.call("PING") for _ in range(50)), return_exceptions=True)
        assert sum("not asked" in str(error) for error in refused) >= 49
    finally:
        own_redis.resume()
    await until(link.answers)
    assert not link.breaker.open
    await link.close()


async def test_answers_that_come_too_late_never_reach_another_caller(own_redis: EmbeddedRedis) -> None:
    """A connection with unread answers on it must not be used again."""
    link = RedisLink(settings_of(own_redis, budget_ms=30))
    for round_ in range(4):
        own_redis.pause()
        late = [asyncio.create_task(link.call("ECHO", f"late {round_} {number}")) for number in range(8)]
        await asyncio.wait(late)
        own_redis.resume()
        await until(link.answers)
        for number in range(20):
            echoed = await losable(link.call("ECHO", f"{round_} {number}"), otherwise=None)
            assert echoed in (None, f"{round_} {number}".encode())
        for task in late:
            assert isinstance(task.exception(), RedisUnavailable)
    await link.close()


async def test_cancelled_callers_do_not_poison_the_link(link: RedisLink, workspace_id: str) -> None:
    for index in range(60):
        doomed = [asyncio.create_task(link.call("ECHO", f"doomed {index}")) for _ in range(4)]
        kept = [asyncio.create_task(link.call("ECHO", f"kept {index} {part}")) for part in range(4)]
        for _ in range(index % 12):
            await asyncio.sleep(0)
        for task in doomed:
            task.cancel()
        assert await asyncio.gather(*kept) == [f"kept {index} {part}".encode() for part in range(4)]
        await asyncio.wait(doomed)
    assert not link.breaker.open


async def test_a_server_that_refuses_is_losable_too_and_is_told_to_operators(link: RedisLink, workspace_id: str) -> None:
    await link.call("SET", f"{workspace_id}:text", "x", "PX", 60_000)
    with capture_logs() as logs:
        link._logger = link._logger.new()
        assert await losable(link.call("LPUSH", f"{workspace_id}:text", "y"), otherwise="nothing") == "nothing"
    refused = [entry for entry in logs if "redis" in entry["event"]]
    assert [(entry["event"], entry["command"]) for entry in refused] == [("redis refused a command", "LPUSH")]
    assert await link.call("GET", f"{workspace_id}:text") == b"x"


async def test_a_wrong_password_is_told_once_and_so_is_its_end(own_redis: EmbeddedRedis) -> None:
    with capture_logs() as logs:
        link = RedisLink(settings_of(own_redis, password="wrong"))
        for _ in range(3):
            with pytest.raises(RedisUnavailable):
                await link.call("PING")
        async with Redis(host=own_redis.host, port=own_redis.port, password=own_redis.password) as client:
            await client.config_set("requirepass", "wrong")
        await until(link.answers)
        await link.close()
    events = [entry for entry in logs if entry["event"].startswith("redis is")]
    assert [entry["event"] for entry in events] == ["redis is away", "redis is back"]
    assert "password" in events[0]["reason"]
    assert "wrong" not in events[0]["reason"]


async def test_after_a_crash_the_link_comes_back_by_itself(own_redis: EmbeddedRedis) -> None:
    link = RedisLink(settings_of(own_redis))
    assert await link.answers()
    await own_redis.kill()
    assert not await link.answers()
    await own_redis.start()
    await until(link.answers)
    await link.close()


async def test_a_script_is_told_the_run_id_of_the_process_that_runs_it_also_after_a_restart(
    own_redis: EmbeddedRedis,
) -> None:
    source = "return ARGV[1]"
    script = Script("told", source, hashlib.sha1(source.encode()).hexdigest())
    link = RedisLink(settings_of(own_redis))

    async def run_id() -> str:
        told: bytes = await link.call("INFO", "server")
        return told.decode().split("run_id:")[1].split()[0]

    first = await link.run(script, ["key"], [RUN_ID])
    assert first.decode() == await run_id()
    await own_redis.kill()
    with pytest.raises(RedisUnavailable):
        await link.run(script, ["key"], [RUN_ID])
    await own_redis.start()
    await until(link.answers)
    second = await link.run(script, ["key"], [RUN_ID])
    assert second.decode() == await run_id()
    assert second != first
    assert await link.run(script, ["key"], ["plain"]) == b"plain"
    await link.close()


async def test_who_cannot_be_asked_says_that_nothing_was_sent(own_redis: EmbeddedRedis) -> None:
    link = RedisLink(settings_of(own_redis, budget_ms=50))
    await own_redis.kill()
    for _ in range(10):
        with pytest.raises(RedisNotAsked):
            await link.run(INCREMENT, ["key"], [RUN_ID])
    assert link.breaker.open
    await link.close()
