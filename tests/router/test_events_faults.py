"""Events while Redis dies, forgets, goes back in time or is cut off: nothing is skipped in silence (C11, C12)."""

import asyncio
import contextlib
import os
import shutil
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import Any

import grpc
import pytest

from benchmarks.chaos.proxy import FaultProxy
from tests.chassis.redis_servers import cluster, settings_of
from tests.router.conftest import refused
from tests.router.event_serving import Router, Subscriber, events_router, of, outcome_of
from tests.waiting import until
from twofold.router.v1 import event_pb2, event_pb2_grpc
from twofold_chassis.redis import RedisLink
from twofold_chassis.settings import RedisSettings
from twofold_cli.embedded.redis import EmbeddedRedis
from twofold_router import keys

SOON: dict[str, Any] = {"event_poll_ms": 100, "event_probe_ms": 100}
MINUTE_MS = 60_000
# Else its windows are those of whoever else calls the same server from this process.
_OWN_CONNECTION = [("grpc.use_local_subchannel_pool", 1)]
WS = "ws"


@contextlib.asynccontextmanager
async def proxied(server: EmbeddedRedis) -> AsyncIterator[tuple[FaultProxy, RedisSettings]]:
    proxy = FaultProxy(server.host, server.port)
    await proxy.start()
    try:
        yield proxy, settings_of(server, port=proxy.port)
    finally:
        await proxy.stop()


@contextlib.asynccontextmanager
async def asked(settings: RedisSettings) -> AsyncIterator[RedisLink]:
    link = RedisLink(settings)
    yield link
    await link.close()


async def caught_up(subscriber: Subscriber, *agents: str) -> None:
    await subscriber.is_so(lambda it: sorted(it.caught_up) == sorted(agents), "it is caught up")


async def published(router: Router, agent: str, *payloads: str, request_id: str = "") -> event_pb2.PublishResponse:
    """Published once, however long Redis takes to come back. A repeat has the same request id."""
    request_id = request_id or uuid.uuid4().hex
    while True:
        try:
            return await router.publish(WS, agent, *payloads, request_id=request_id)
        except grpc.aio.AioRpcError as error:
            if error.code() is not grpc.StatusCode.UNAVAILABLE:
                raise
            await asyncio.sleep(0.02)


async def test_c11_redis_killed_and_started_again_is_a_reset_and_the_stream_stays(own_redis: EmbeddedRedis) -> None:
    async with (
        events_router(settings_of(own_redis, budget_ms=200), **SOON) as router,
        router.subscribed(WS, of("a"), of("idle")) as subscriber,
    ):
        await caught_up(subscriber, "a", "idle")
        before = await router.publish(WS, "a", "x", "y")
        await subscriber.told("a", "x", "y")
        await own_redis.kill()
        await subscriber.is_so(lambda it: "AWAY" in it.heartbeats, "it hears that Redis is away")
        outcomes = set()
        for _ in range(8):
            with refused(grpc.StatusCode.UNAVAILABLE, "REASON_REDIS_UNAVAILABLE") as refusal:
                await router.publish(WS, "a", "lost")
            outcomes.add(refusal.metadata["outcome"])
        assert outcomes == {"NOT_STORED"}
        with refused(grpc.StatusCode.UNAVAILABLE, "REASON_REDIS_UNAVAILABLE"):
            await router.list(WS, "a")
        await own_redis.start()
        await subscriber.is_so(lambda it: sorted(it.resets) == ["a", "idle"], "both begin anew")
        await subscriber.is_so(lambda it: it.heartbeats[-1] == "LIVE", "it hears that events come again")
        after = await published(router, "a", "z")
        assert (after.first_offset, after.log_epoch != before.log_epoch) == (1, True)
        await subscriber.told("a", "x", "y", "z")
        async with router.subscribed(WS, of("a", (before.log_epoch, 2)), until_caught_up=True) as late:
            await late.is_so(lambda it: it.has_ended, "it ends")
            assert late.refused["a"].log_epoch == after.log_epoch
        assert subscriber.gaps == []


async def test_c11_routers_agree_on_the_epoch_that_follows_a_loss(own_redis: EmbeddedRedis) -> None:
    """Each notices by itself, at its own time, through a connection of its own."""
    settings = settings_of(own_redis, budget_ms=200)
    async with (
        events_router(settings, **SOON) as one,
        events_router(settings, **SOON) as other,
        one.subscribed(WS, of("a"), of("b")) as at_one,
        other.subscribed(WS, of("a"), of("b")) as at_other,
    ):
        for subscriber in (at_one, at_other):
            await caught_up(subscriber, "a", "b")
        assert at_one.places == at_other.places
        await one.publish(WS, "a", "from one")
        await other.publish(WS, "a", "from the other")
        for subscriber in (at_one, at_other):
            await subscriber.told("a", "from one", "from the other")
        await own_redis.kill()
        await own_redis.start()
        await asyncio.gather(*(published(router, "b", "x") for router in (one, other)))
        for subscriber in (at_one, at_other):
            await subscriber.told("b", "x", "x")
            await subscriber.is_so(lambda it: sorted(it.resets) == ["a", "b"], "both begin anew, once")
        assert at_one.places == at_other.places


async def test_c11_a_flush_is_a_reset_whether_or_not_anything_is_published_behind_it(own_redis: EmbeddedRedis) -> None:
    settings = settings_of(own_redis)
    async with (
        asked(settings) as redis,
        events_router(settings, **SOON) as router,
        router.subscribed(WS, of("a"), of("b"), of("never-published")) as subscriber,
    ):
        await caught_up(subscriber, "a", "b", "never-published")
        for agent in ("a", "b"):
            await router.publish(WS, agent, "x")
            await subscriber.told(agent, "x")
        await redis.call("FLUSHALL")
        await router.publish(WS, "a", "y")
        await subscriber.told("a", "x", "y")
        await subscriber.is_so(lambda it: sorted(it.resets) == ["a", "b", "never-published"], "all begin anew")


async def test_c11_an_older_copy_of_redis_never_gives_an_offset_of_an_epoch_twice(own_redis: EmbeddedRedis) -> None:
    settings = settings_of(own_redis)
    async with events_router(settings, **SOON) as router:
        epoch = (await router.publish(WS, "a", "1", "2", request_id="first")).log_epoch
        await own_redis.stop()
        copy = Path(f"{own_redis.folder.data}-copy")
        shutil.copytree(own_redis.folder.data, copy)
        await own_redis.start()
        # This router has restarted as well: to it the log goes on in an epoch of its own, whose later part will be lost.
        second = (await published(router, "a", "1", "2", "3")).log_epoch
        assert second != epoch
        async with router.subscribed(WS, of("a", oldest=True)) as subscriber:
            await subscriber.told("a", "1", "2", "3")
            await own_redis.kill()
            _replace(own_redis.folder.data, copy)
            await own_redis.start()
            third = await published(router, "a", "other 3")
            assert third.log_epoch not in (epoch, second)
            assert third.first_offset == 1
            await subscriber.told("a", "1", "2", "3", "other 3")
            assert subscriber.resets[-1] == "a"
        for old in ((epoch, 2), (second, 2), (second, 3)):
            with refused(grpc.StatusCode.OUT_OF_RANGE, "REASON_OFFSET_OUT_OF_RANGE"):
                await router.list(WS, "a", old)


def _replace(data: Path, copy: Path) -> None:
    """The data as it was then, belonging to whom it did."""
    owner = data.stat()
    shutil.rmtree(data)
    shutil.copytree(copy, data)
    for folder, _, files in os.walk(data):
        for path in (folder, *(os.path.join(folder, name) for name in files)):
            os.chown(path, owner.st_uid, owner.st_gid)


# Of the second kind is a router as it is set up by default: the next connection takes longer than one call may.
@pytest.mark.parametrize(("probe_ms", "budget_ms"), [(100, None), (400, 50.0)])
async def test_c11_a_connection_that_is_open_and_deaf_is_found_and_meanwhile_the_timer_tells(
    own_redis: EmbeddedRedis, redis_settings: RedisSettings, probe_ms: int, budget_ms: float | None
) -> None:
    """It listens to another server: everything works, and nothing is heard. Then the address leads to the right one."""
    assert redis_settings.password is not None
    proxy = FaultProxy(redis_settings.host, redis_settings.port)
    await proxy.start()
    link = settings_of(own_redis)
    deaf = link.model_copy(
        update={
            "port": proxy.port,
            "password": redis_settings.password,
            "budget_ms": budget_ms or link.budget_ms,
        }
    )
    async with asked(link) as redis:
        await redis.call("ACL", "SETUSER", "default", f">{redis_settings.password.get_secret_value()}")
    try:
        async with (
            events_router(link, deaf, event_poll_ms=100, event_probe_ms=probe_ms) as router,
            router.subscribed(WS, of("a")) as subscriber,
        ):
            await caught_up(subscriber, "a")
            await until(lambda: router.count("event_deaf") == 1, "it is found out")
            assert router.count("event_probes_total", outcome="missed") >= 2
            await until(_is_not(router.serves), "health says so")
            await subscriber.is_so(lambda it: "DELAYED" in it.heartbeats, "subscribers are told")
            await router.publish(WS, "a", "x")
            await subscriber.told("a", "x")
            assert router.count("event_deaf") == 1, "the timer told it"
            proxy.lead_to(own_redis.host, own_redis.port)
            await until(router.serves, "health says so")
            assert router.count("event_deaf") == 0
            await subscriber.is_so(lambda it: it.heartbeats[-1] == "LIVE", "subscribers are told")
            await router.publish(WS, "a", "y")
            await subscriber.told("a", "x", "y")
            assert subscriber.resets == []
    finally:
        await proxy.stop()


def _is_not(serves: Callable[[], Awaitable[bool]]) -> Callable[[], Awaitable[bool]]:
    async def does_not() -> bool:
        return not await serves()

    return does_not


async def test_c11_a_connection_that_redis_ends_is_followed_by_one_that_hears(own_redis: EmbeddedRedis) -> None:
    """As sentinels end those of a master that is one no longer."""
    settings = settings_of(own_redis)
    async with (
        asked(settings) as redis,
        events_router(settings, event_poll_ms=MINUTE_MS, event_probe_ms=100) as router,
        router.subscribed(WS, of("a")) as subscriber,
    ):
        await caught_up(subscriber, "a")
        before = router.redis.generation
        await until(lambda: router.count("event_probes_total", outcome="heard") > 0)
        await redis.call("CLIENT", "KILL", "TYPE", "pubsub")
        await until(lambda: router.redis.generation > before + 1, "it listens again")
        await router.publish(WS, "a", "x")
        await subscriber.told("a", "x")


async def test_c11_what_is_published_while_channels_are_cut_is_told_when_they_are_heard_again(
    own_redis: EmbeddedRedis,
) -> None:
    """No timer comes to its help: the log is read because the connection is another one."""
    async with (
        proxied(own_redis) as (proxy, channels),
        events_router(settings_of(own_redis), channels, event_poll_ms=MINUTE_MS, event_probe_ms=MINUTE_MS) as router,
        router.subscribed(WS, of("a"), of("b")) as subscriber,
    ):
        await caught_up(subscriber, "a", "b")
        for number in range(3):
            await proxy.refuse()
            proxy.reset()
            await until(lambda: not router.redis.connected)
            await router.publish(WS, "a", str(number))
            await proxy.accept()
            await subscriber.told("a", *map(str, range(number + 1)))
        assert subscriber.gaps == []
        assert subscriber.resets == []


async def test_c11_an_answer_that_was_lost_leaves_one_event_however_often_it_is_published(own_redis: EmbeddedRedis) -> None:
    async with (
        proxied(own_redis) as (proxy, link),
        events_router(link.model_copy(update={"budget_ms": 300}), settings_of(own_redis), **SOON) as router,
        router.subscribed(WS, of("a")) as subscriber,
    ):
        await caught_up(subscriber, "a")
        for number in range(3):
            outcome = ""
            while outcome != "UNKNOWN":  # what is swallowed may be the answer to a look at the log
                proxy.swallow()
                try:
                    await router.publish(WS, "a", str(number), request_id=f"r{number}")
                except grpc.aio.AioRpcError as error:
                    outcome = outcome_of(error)
                await proxy.heal()
            await published(router, "a", str(number), request_id=f"r{number}")
        await subscriber.told("a", "0", "1", "2")


async def test_a_stream_that_is_opened_while_redis_is_away_begins_when_it_is_back(own_redis: EmbeddedRedis) -> None:
    async with events_router(settings_of(own_redis, budget_ms=200), **SOON) as router:
        await own_redis.kill()
        async with router.subscribed(WS, of("a"), of("b", ("epoch", 1))) as subscriber:
            await subscriber.is_so(lambda it: "AWAY" in it.heartbeats, "it hears that Redis is away")
            assert subscriber.places == {}
            await own_redis.start()
            await subscriber.is_so(lambda it: it.caught_up == ["a"] and list(it.refused) == ["b"], "it begins")
            await published(router, "a", "x")
            await subscriber.told("a", "x")


async def test_c12_a_stalled_subscriber_costs_a_bounded_amount_and_disturbs_nobody(redis_settings: RedisSettings) -> None:
    ws = f"ws-{uuid.uuid4().hex[:12]}"
    async with (
        events_router(redis_settings, event_poll_ms=MINUTE_MS) as router,
        router.subscribed(ws, of("a")) as other,
        grpc.aio.insecure_channel(f"127.0.0.1:{router.port}", options=_OWN_CONNECTION) as its_own,
    ):
        await caught_up(other, "a")
        stalled = Subscriber(event_pb2_grpc.EventServiceStub(its_own).Subscribe())
        await stalled.say(open=event_pb2.SubscribeOpen(workspace_id=ws, agents=[of("a")]))
        for _ in range(2):
            stalled.judge(await stalled.call.read())
        # 32 MiB; the log holds one of them.
        for number in range(64):
            await router.publish(ws, "a", *[str(number).ljust(65_536)] * 8)
            await other.is_so(partial(_was_told, 8 * (number + 1)), "the other one is told all")
        assert other.gaps == []
        while stalled.places["a"][1] < 512:
            stalled.judge(await stalled.call.read())
        ((_, first, last),) = stalled.gaps
        on_their_way = first - 1
        assert on_their_way * 65_536 < 8 * 1024 * 1024, "what gRPC has buffered on both sides, and one batch"
        assert last >= 512 - 16
        assert stalled.events == 512 - (last - first + 1)
        # One that goes while an answer to it is on its way is as any other that goes.
        leaves = Subscriber(event_pb2_grpc.EventServiceStub(its_own).Subscribe())
        await leaves.say(open=event_pb2.SubscribeOpen(workspace_id=ws, agents=[of("a")]))
        leaves.judge(await leaves.call.read())
        for number in range(64):
            await router.publish(ws, "a", *[str(number).ljust(65_536)] * 8)
        leaves.call.cancel()
        await until(lambda: router.ended("Cancelled") == 1, "it has gone")
        assert router.ended("Internal") == 0


def _was_told(least: int, subscriber: Subscriber) -> bool:
    return subscriber.events >= least


async def test_c11_what_was_evicted_or_deleted_by_hand_is_a_gap(redis_settings: RedisSettings) -> None:
    ws = f"ws-{uuid.uuid4().hex[:12]}"
    head, entries, _ = keys.event_log(ws, "a")
    async with (
        asked(redis_settings) as redis,
        events_router(redis_settings, **SOON) as router,
        router.subscribed(ws, of("a"), credit=1) as subscriber,
    ):
        await caught_up(subscriber, "a")
        await router.publish(ws, "a", *map(str, range(1, 11)))
        await subscriber.told("a", "1")
        await redis.call("XDEL", entries, "5-0", "6-0", "8-0")
        await subscriber.say(credit={"events": 3})
        await subscriber.told("a", "1", "2", "3", "4")
        await subscriber.say(credit={"events": 1})
        await subscriber.told("a", "1", "2", "3", "4", "7")
        await redis.call("DEL", entries)
        await subscriber.say(credit={"events": 10})
        await subscriber.is_so(lambda it: it.places["a"][1] == 10, "all is accounted for")
        assert subscriber.gaps == [("a", 5, 6), ("a", 8, 10)] or subscriber.gaps == [("a", 5, 6), ("a", 8, 8), ("a", 9, 10)]
        await router.publish(ws, "a", "11")
        await subscriber.told("a", "1", "2", "3", "4", "7", "11")
        await redis.call("DEL", head)
        await router.publish(ws, "a", "anew")
        await subscriber.told("a", "1", "2", "3", "4", "7", "11", "anew")
        assert subscriber.resets == ["a"]


async def test_c11_nothing_that_is_said_on_a_channel_is_ever_told(redis_settings: RedisSettings) -> None:
    ws = f"ws-{uuid.uuid4().hex[:12]}"
    async with (
        asked(redis_settings) as redis,
        events_router(redis_settings, event_poll_ms=MINUTE_MS) as router,
        router.subscribed(ws, of("a")) as subscriber,
    ):
        await caught_up(subscriber, "a")
        epoch = subscriber.places["a"][0]
        for forged in (f"7 {epoch}", "3 another", f"x {epoch}", "", "\xff", f"-1 {epoch}"):
            await redis.call("PUBLISH", keys.event_channel(ws, "a"), forged)
            await router.publish(ws, "a", forged)
        await subscriber.is_so(lambda it: it.events == 6, "what was published is told")
        assert (subscriber.gaps, subscriber.resets, subscriber.places["a"]) == ([], [], (epoch, 6))


async def test_logs_end_by_themselves_unless_somebody_follows_them(redis_settings: RedisSettings) -> None:
    ws = f"ws-{uuid.uuid4().hex[:12]}"
    async with asked(redis_settings) as redis, events_router(redis_settings, event_log_ttl_s=60, **SOON) as router:
        await router.publish(ws, "a", "x", request_id="r")
        for key in keys.event_log(ws, "a"):
            assert 50_000 < await redis.call("PTTL", key) <= 60_000
            await redis.call("PEXPIRE", key, 20_000)
        assert len((await router.list(ws, "a")).events) == 1
        assert await redis.call("PTTL", keys.event_log(ws, "a")[0]) <= 20_000, "who only reads keeps nothing"
        async with router.subscribed(ws, of("a"), of("b")) as subscriber:
            await caught_up(subscriber, "a", "b")
            for key in (*keys.event_log(ws, "a"), keys.event_log(ws, "b")[0]):
                assert await redis.call("PTTL", key) > 50_000
            await redis.call("PEXPIRE", keys.event_log(ws, "a")[0], 20_000)

            async def is_kept() -> bool:
                return bool(await redis.call("PTTL", keys.event_log(ws, "a")[0]) > 50_000)

            await until(is_kept)
            assert subscriber.resets == []


async def test_c11_in_a_cluster_each_log_lives_at_its_node_and_a_restarted_node_resets_its_own(
    servers_folder: Path,
) -> None:
    async with cluster(servers_folder / f"events-{uuid.uuid4().hex[:8]}") as nodes:
        settings = settings_of(nodes[0], cluster=True)
        agents = [f"agent-{number}" for number in range(12)]
        async with events_router(settings, **SOON) as router, router.subscribed(WS, *map(of, agents)) as subscriber:
            await caught_up(subscriber, *agents)
            for agent in agents:
                await router.publish(WS, agent, "x")
                await subscriber.told(agent, "x")
            there = (
                {agent for agent in agents if await nodes[1].asked("EXISTS", keys.event_log(WS, agent)[0]) == 1}
                if False
                else None
            )
            assert there is None
            await nodes[1].kill()
            await nodes[1].start()
            for agent in agents:
                await published(router, agent, "y")
                await subscriber.told(agent, "x", "y")
            assert 0 < len(set(subscriber.resets)) < len(agents), "those at one node of three"
