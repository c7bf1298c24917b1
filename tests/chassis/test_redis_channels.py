"""Listening to channels: confirmed before it counts, found again by itself, and silent about nothing that may be missed."""

import asyncio
import contextlib
import uuid
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from benchmarks.chaos.proxy import FaultProxy
from tests.chassis.redis_servers import MASTER, SENTINEL_PASSWORD, cluster, settings_of, watched
from tests.waiting import until
from twofold_chassis.redis import RedisLink, RedisUnavailable
from twofold_chassis.redis_channels import RedisChannels
from twofold_chassis.settings import RedisSettings
from twofold_cli.embedded.redis import EmbeddedRedis


class Ear:
    """What one listener heard, and how often it may have missed something."""

    def __init__(self) -> None:
        self.told: list[bytes] = []
        self.misses = 0

    def heard(self, message: bytes) -> None:
        self.told.append(message)

    def missed(self) -> None:
        self.misses += 1

    async def hears(self, message: bytes) -> None:
        await until(lambda: message in self.told, f"{message!r} is heard")


@contextlib.asynccontextmanager
async def listening(settings: RedisSettings) -> AsyncIterator[tuple[RedisChannels, RedisLink]]:
    channels, link = RedisChannels(settings), RedisLink(settings)
    try:
        yield channels, link
    finally:
        await channels.close()
        await link.close()


@contextlib.asynccontextmanager
async def proxied(server: EmbeddedRedis) -> AsyncIterator[tuple[FaultProxy, RedisSettings]]:
    proxy = FaultProxy(server.host, server.port)
    await proxy.start()
    try:
        yield proxy, settings_of(server, port=proxy.port)
    finally:
        await proxy.stop()


async def test_what_is_published_after_subscribing_is_heard_by_each_listener_until_it_leaves(
    redis_settings: RedisSettings, workspace_id: str
) -> None:
    one, other = Ear(), Ear()
    async with listening(redis_settings) as (channels, link):
        await asyncio.gather(*(channels.subscribe(workspace_id, ear.heard, ear.missed) for ear in (one, other)))
        assert await link.call("PUBLISH", workspace_id, b"\x00first") == 1, "one connection, whoever listens"
        await asyncio.gather(one.hears(b"\x00first"), other.hears(b"\x00first"))
        channels.unsubscribe(workspace_id, one.heard)
        await link.call("PUBLISH", workspace_id, "second")
        await other.hears(b"second")
        assert one.told == [b"\x00first"]
        channels.unsubscribe(workspace_id, other.heard)
        channels.unsubscribe(workspace_id, other.heard)

        async def nobody() -> bool:
            return bool(await link.call("PUBLISH", workspace_id, "third") == 0)

        await until(nobody)
        await channels.subscribe(workspace_id, one.heard)
        await link.call("PUBLISH", workspace_id, "fourth")
        await one.hears(b"fourth")
    assert one.misses == other.misses == 0


async def test_who_leaves_and_comes_back_at_once_hears_what_is_published_after_that(
    redis_settings: RedisSettings, workspace_id: str
) -> None:
    async with listening(redis_settings) as (channels, link):
        for number in range(200):
            ear = Ear()
            await channels.subscribe(workspace_id, ear.heard)
            assert await link.call("PUBLISH", workspace_id, number) == 1
            await ear.hears(b"%d" % number)
            channels.unsubscribe(workspace_id, ear.heard)


async def test_thousands_of_channels_are_subscribed_to_at_once_and_again_on_another_connection(
    own_redis: EmbeddedRedis,
) -> None:
    ears = [Ear() for _ in range(2000)]
    async with (
        proxied(own_redis) as (proxy, settings),
        listening(settings) as (channels, _),
        listening(settings_of(own_redis)) as (_, link),
    ):
        await asyncio.gather(*(channels.subscribe(f"c{n}", ear.heard, ear.missed) for n, ear in enumerate(ears)))
        before = channels.generation
        proxy.reset()
        await until(lambda: all(ear.misses for ear in ears), "all are told that they may have missed something")
        assert channels.generation > before
        assert {ear.misses for ear in ears} == {1}
        for number in (0, 999, 1999):
            await link.call("PUBLISH", f"c{number}", "again")
            await ears[number].hears(b"again")


async def test_while_redis_is_away_subscribing_says_so_within_the_budget_and_nobody_is_left_behind(
    own_redis: EmbeddedRedis,
) -> None:
    ear, stays = Ear(), Ear()
    with capture_logs() as logs:
        async with listening(settings_of(own_redis, budget_ms=300)) as (channels, link):
            await channels.subscribe("stays", stays.heard, stays.missed)
            await own_redis.kill()
            await until(lambda: not channels.connected)
            with pytest.raises(RedisUnavailable):
                await channels.subscribe("comes", ear.heard, ear.missed)
            await own_redis.start()
            await until(lambda: stays.misses == 1)
            await until(link.answers)
            assert await link.call("PUBLISH", "comes", "x") == 0
            assert await link.call("PUBLISH", "stays", "x") == 1
            await stays.hears(b"x")
            assert (ear.told, ear.misses) == ([], 0)
    told = [line["event"] for line in logs if "channels" in line["event"]]
    assert told == ["channels of redis are not heard", "channels of redis are heard again"]


async def test_a_connection_that_is_given_up_is_followed_by_another(
    redis_settings: RedisSettings, workspace_id: str
) -> None:
    ear = Ear()
    async with listening(redis_settings) as (channels, link):
        await channels.subscribe(workspace_id, ear.heard, ear.missed)
        channels.give_up("for a test")
        assert not channels.connected
        await until(lambda: ear.misses == 1)
        assert await link.call("PUBLISH", workspace_id, "x") == 1
        await ear.hears(b"x")


async def test_a_connection_that_falls_silent_is_given_up(own_redis: EmbeddedRedis) -> None:
    ear = Ear()
    async with proxied(own_redis) as (proxy, settings), listening(settings) as (channels, _):
        await channels.subscribe("c", ear.heard, ear.missed)
        proxy.hold()
        await until(lambda: not channels.connected, "the silence is noticed")
        await proxy.heal()
        await until(lambda: ear.misses > 0, "it hears again")


async def test_a_listener_that_raises_ends_nothing(redis_settings: RedisSettings, workspace_id: str) -> None:
    def fails(message: bytes) -> None:
        raise ValueError(message)

    ear = Ear()
    async with listening(redis_settings) as (channels, link):
        await channels.subscribe(workspace_id, fails)
        await channels.subscribe(workspace_id, ear.heard)
        with capture_logs() as logs:
            for word in ("first", "second"):
                await link.call("PUBLISH", workspace_id, word)
                await ear.hears(word.encode())
        assert [line["event"] for line in logs] == ["a listener failed"] * 2


async def test_a_channel_that_the_user_may_not_hear_is_not_confirmed_and_others_are(own_redis: EmbeddedRedis) -> None:
    ear = Ear()
    async with listening(settings_of(own_redis)) as (_, admin):
        await admin.call("ACL", "SETUSER", "listener", "on", ">secret", "allcommands", "allkeys", "resetchannels", "&mine:*")
        settings = settings_of(own_redis, username="listener", password="secret", budget_ms=500)
        async with listening(settings) as (channels, _):
            await channels.subscribe("mine:1", ear.heard)
            with capture_logs() as logs, pytest.raises(RedisUnavailable):
                await channels.subscribe("theirs:1", ear.heard)
            assert [line["event"] for line in logs] == ["redis refused a command"]
            await admin.call("PUBLISH", "mine:1", "x")
            await ear.hears(b"x")


async def test_in_a_cluster_any_node_hears_all_and_another_one_is_found_when_it_dies(servers_folder: Path) -> None:
    async with cluster(servers_folder / f"channels-{uuid.uuid4().hex[:8]}") as nodes:
        # The seed is the one that dies: the others must have been learned from it.
        settings = settings_of(nodes[0], cluster=True)
        ears = {name: Ear() for name in ("a", "b", "c", "d", "e")}
        async with listening(settings) as (channels, link):
            for name, ear in ears.items():
                await channels.subscribe(name, ear.heard, ear.missed)
            for name, ear in ears.items():  # their slots lie at several nodes
                await link.call("PUBLISH", name, "x")
                await ear.hears(b"x")
            await nodes[0].kill()
            await until(lambda: all(ear.misses for ear in ears.values()))
            for name, ear in ears.items():
                await nodes[2].asked("PUBLISH", name, "y")
                await ear.hears(b"y")


async def test_behind_sentinels_the_one_that_is_master_now_is_listened_to(servers_folder: Path) -> None:
    async with watched(servers_folder / f"channels-{uuid.uuid4().hex[:8]}") as (master, replica, sentinel):
        places = f"{sentinel.host}:{sentinel.port}"
        settings = settings_of(master, port=1, sentinels=places, sentinel_master=MASTER, sentinel_password=SENTINEL_PASSWORD)
        ear = Ear()
        async with listening(settings) as (channels, _):
            await channels.subscribe("c", ear.heard, ear.missed)
            assert await master.asked("PUBLISH", "c", "x") == 1
            await ear.hears(b"x")
            await master.kill()
            await until(lambda: ear.misses == 1)
            assert await replica.asked("PUBLISH", "c", "y") == 1
            await ear.hears(b"y")


async def test_the_confirmation_of_a_former_subscription_says_nothing_of_the_newest() -> None:
    """Between the two it was given up: what is published then is not heard."""
    commands: asyncio.Queue[bytes] = asyncio.Queue()
    answers: list[asyncio.StreamWriter] = []

    async def redis(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        answers.append(writer)
        while command := await reader.read(1000):
            if b"INFO" in command:
                writer.write(b"$11\r\nrole:master\r\n")
            for word in command.split():
                if word in (b"SUBSCRIBE", b"UNSUBSCRIBE"):
                    commands.put_nowait(word)
        writer.close()

    def confirm(word: bytes) -> None:
        answers[-1].write(b"*3\r\n$%d\r\n%b\r\n$1\r\nc\r\n:1\r\n" % (len(word), word.lower()))

    listening = await asyncio.start_server(redis, "127.0.0.1", 0)
    port = listening.sockets[0].getsockname()[1]
    channels, first, second = RedisChannels(RedisSettings(port=port, budget_ms=5000)), Ear(), Ear()
    giving_up = asyncio.create_task(channels.subscribe("c", first.heard))
    assert await commands.get() == b"SUBSCRIBE"
    giving_up.cancel()
    subscribing = asyncio.create_task(channels.subscribe("c", second.heard))
    assert [await commands.get() for _ in range(2)] == [b"UNSUBSCRIBE", b"SUBSCRIBE"]
    confirm(b"SUBSCRIBE")
    confirm(b"UNSUBSCRIBE")
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(0.1):  # enough for what is wrong, and what is right has all the time it wants
            await asyncio.shield(subscribing)
    assert not subscribing.done()
    confirm(b"SUBSCRIBE")
    await subscribing
    assert second.told == []
    await channels.close()
    listening.close()
