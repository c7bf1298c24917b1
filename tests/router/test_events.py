"""Events as their callers see them: published once, told in order, and never lost in silence."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from functools import partial
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from tests.router.conftest import METADATA, Client, refused
from tests.router.event_serving import Router, Subscriber, events_router, of, said
from tests.waiting import until
from twofold.router.v1 import event_pb2, event_pb2_grpc
from twofold_chassis.settings import RedisSettings

MINUTE_MS = 60_000


@pytest.fixture(scope="module")
async def router(redis_settings: RedisSettings) -> AsyncIterator[Router]:
    """One that looks at logs so seldom that whatever is told in time was told by a nudge."""
    async with events_router(redis_settings, event_poll_ms=MINUTE_MS) as router:
        yield router


@pytest.fixture
def ws(workspace_id: str) -> str:
    return workspace_id


async def test_what_is_published_is_told_to_each_subscriber_in_order(router: Router, ws: str) -> None:
    async with router.subscribed(ws, of("a")) as one, router.subscribed(ws, of("a"), of("b")) as other:
        await one.is_so(lambda it: it.caught_up == ["a"], "it is caught up")
        await other.is_so(lambda it: sorted(it.caught_up) == ["a", "b"], "it is caught up")
        first = await router.publish(ws, "a", "x", "y")
        await router.publish(ws, "b", "elsewhere")
        second = await router.publish(ws, "a", "z")
        assert (first.first_offset, first.last_offset, second.first_offset) == (1, 2, 3)
        assert first.log_epoch == second.log_epoch
        assert not first.duplicate
        await one.told("a", "x", "y", "z")
        await other.told("a", "x", "y", "z")
        await other.told("b", "elsewhere")
        assert [*one.resets, *one.gaps, *other.resets, *other.gaps] == []


async def test_an_event_is_told_as_it_was_published(router: Router, ws: str) -> None:
    event = event_pb2.AgentEvent(type="plan.changed", content_type="application/cbor", payload=b"\x00\xff", offset=99)
    await router.publish_events(ws, "a", [event])
    (listed,) = (await router.list(ws, "a")).events
    call = router.stream()
    agents = [of("a", oldest=True)]
    await call.write(said(open={"workspace_id": ws, "agents": agents, "until_caught_up": True}))
    (told,) = [event async for response in call for event in response.events.events]
    assert told == listed
    assert (told.offset, told.type, told.content_type, told.payload) == (1, "plan.changed", "application/cbor", b"\x00\xff")
    assert told.publish_time.seconds > 0


async def test_the_same_request_publishes_once_and_another_one_under_its_id_is_refused(router: Router, ws: str) -> None:
    async with router.subscribed(ws, of("a")) as subscriber:
        await subscriber.is_so(lambda it: it.caught_up == ["a"], "it is caught up")
        answers = await asyncio.gather(*(router.publish(ws, "a", "x", "y", request_id="r") for _ in range(5)))
        assert {(answer.first_offset, answer.last_offset) for answer in answers} == {(1, 2)}
        assert sorted(answer.duplicate for answer in answers) == [False, True, True, True, True]
        for others in (("x",), ("x", "z"), ("xy", "")):
            with refused(grpc.StatusCode.ALREADY_EXISTS, "REASON_REQUEST_REUSED"):
                await router.publish(ws, "a", *others, request_id="r")
        assert not (await router.publish(ws, "b", "x", request_id="r")).duplicate, "another log"
        await router.publish(ws, "a", "z", request_id="s")
        await subscriber.told("a", "x", "y", "z")


async def test_request_ids_are_known_for_a_thousand_batches_and_no_longer(router: Router, ws: str) -> None:
    await router.publish(ws, "a", "first", request_id="first")
    await asyncio.gather(*(router.publish(ws, "a", "x", request_id=f"r{n}") for n in range(999)))
    assert (await router.publish(ws, "a", "first", request_id="first")).duplicate
    await router.publish(ws, "a", "one more", request_id="one more")
    assert (await router.publish(ws, "a", "first", request_id="first")).first_offset == 1002


async def test_c11_resuming_replays_exactly_what_followed(router: Router, ws: str) -> None:
    epoch = (await router.publish(ws, "a", *(f"e{n}" for n in range(1, 8)))).log_epoch
    for offset in range(8):
        async with router.subscribed(ws, of("a", (epoch, offset)), until_caught_up=True) as subscriber:
            await subscriber.is_so(lambda it: it.has_ended, "it ends")
            assert subscriber.error is None
            assert subscriber.payloads == {"a": [f"e{n}" for n in range(offset + 1, 8)]}
            assert subscriber.places == {"a": (epoch, 7)}


async def test_c11_a_place_that_is_not_in_the_log_is_out_of_range_for_its_agent_alone(router: Router, ws: str) -> None:
    epoch = (await router.publish(ws, "a", *["x"] * 500)).log_epoch
    for _ in range(2):
        await router.publish(ws, "a", *["x"] * 500)
    await router.publish(ws, "well", "y")
    for wanted in ((epoch, 499), (epoch, 1501), ("another", 700), ("another", 0), (epoch, 2**53)):
        async with router.subscribed(ws, of("a", wanted), of("none", wanted), of("well", oldest=True)) as subscriber:
            await subscriber.told("well", "y")
            await subscriber.is_so(lambda it: sorted(it.refused) == ["a", "none"], "both are refused")
            told = subscriber.refused["a"]
            assert (told.log_epoch, told.first_offset, told.last_offset) == (epoch, 501, 1500)
            assert subscriber.refused["none"].last_offset == 0
            # It may be wanted again, from a place that is there.
            await subscriber.say(add={"agents": [of("a", (epoch, 1499))]})
            await subscriber.told("a", "x")
        with refused(grpc.StatusCode.OUT_OF_RANGE, "REASON_OFFSET_OUT_OF_RANGE") as refusal:
            await router.list(ws, "a", wanted)
        assert refusal.metadata == {"log_epoch": epoch, "first_offset": "501", "last_offset": "1500"}


async def test_history_is_had_in_pages(router: Router, ws: str) -> None:
    nothing = await router.list(ws, "a")
    assert (list(nothing.events), nothing.log_epoch, nothing.first_offset, nothing.last_offset) == ([], "", 1, 0)
    epoch = (await router.publish(ws, "a", *(str(n) for n in range(1, 8)))).log_epoch
    found, after = [], None
    while (page := await router.list(ws, "a", after, page_size=3)).events:
        assert (page.log_epoch, page.first_offset, page.last_offset) == (epoch, 1, 7)
        found.append([int(event.payload) for event in page.events])
        after = (epoch, page.events[-1].offset)
    assert found == [[1, 2, 3], [4, 5, 6], [7]]


async def test_a_page_of_large_events_ends_early_and_loses_none(router: Router, ws: str) -> None:
    await router.publish(ws, "a", *(str(n) * 64 * 1024 for n in range(1, 9)))
    found, after = [], None
    while (page := await router.list(ws, "a", after)).events:
        assert page.ByteSize() < 300 * 1024
        found += [int(event.payload[:1]) for event in page.events]
        after = (page.log_epoch, page.events[-1].offset)
    assert found == [*range(1, 9)]
    async with router.subscribed(ws, of("a", oldest=True)) as subscriber:
        await subscriber.is_so(lambda it: it.events == 8, "all are told")


async def test_a_log_keeps_its_newest_events_within_its_bounds(redis_settings: RedisSettings, ws: str) -> None:
    async with events_router(redis_settings, event_log_entries_max=500) as router:
        for number in range(6):
            await router.publish(ws, "many", *(f"{number}.{n}" for n in range(100)))
        page = await router.list(ws, "many")
        assert (page.first_offset, page.last_offset) == (101, 600)
        await router.publish(ws, "large", "small", *["x" * 60_000] * 10)
        await router.publish(ws, "large", *["x" * 60_000] * 10)
        page = await router.list(ws, "large")
        assert (page.first_offset, page.last_offset) == (5, 21), "1 MiB is kept, with what belongs to each event"
        # What one call has published stays together, whatever it costs.
        await router.publish(ws, "large", *["y" * 65_536] * 16)
        page = await router.list(ws, "large")
        assert (page.first_offset, page.last_offset) == (22, 37)


async def test_c11_whoever_comes_back_too_late_in_a_stream_is_told_the_gap(router: Router, ws: str) -> None:
    """The stream has no credits while its log goes on."""
    async with router.subscribed(ws, of("a"), credit=2) as subscriber:
        await subscriber.is_so(lambda it: it.caught_up == ["a"], "it is caught up")
        await router.publish(ws, "a", *["x"] * 10)
        await subscriber.told("a", "x", "x")
        for _ in range(3):
            await router.publish(ws, "a", *["y"] * 500)
        assert subscriber.events == 2
        await subscriber.say(credit={"events": 1})
        await subscriber.is_so(lambda it: it.events == 3, "one more is told")
        assert subscriber.gaps == [("a", 3, 510)]
        await subscriber.say(credit={"events": 1000})
        await subscriber.is_so(lambda it: it.events == 1002, "all that is left is told")
        assert subscriber.places["a"][1] == 1510


async def test_credits_are_counted_in_events_of_all_agents(router: Router, ws: str) -> None:
    async with router.subscribed(ws, of("a"), of("b"), credit=3) as subscriber:
        await subscriber.is_so(lambda it: sorted(it.caught_up) == ["a", "b"], "it is caught up")
        await asyncio.gather(*(router.publish(ws, agent, "1", "2", "3", "4") for agent in ("a", "b")))
        for told, more in ((3, 1), (4, 3), (7, 1), (8, 1)):
            await subscriber.is_so(partial(_was_told, told), f"{told} are told")
            await router.publish(ws, "elsewhere", "time passes")
            assert subscriber.events == told
            await subscriber.say(credit={"events": more})


def _was_told(least: int, subscriber: Subscriber) -> bool:
    return subscriber.events >= least


async def test_agents_come_and_go_while_a_stream_lasts(router: Router, ws: str) -> None:
    await router.publish(ws, "b", "before")
    async with router.subscribed(ws) as subscriber:
        await subscriber.say(add={"agents": [of("a"), of("b", oldest=True)]})
        await subscriber.told("b", "before")
        await subscriber.say(remove={"agent_ids": ["b", "never-there"]})
        await subscriber.is_so(lambda it: it.removed == ["b"], "it is removed")
        await router.publish(ws, "b", "unheard")
        await router.publish(ws, "a", "x")
        await subscriber.told("a", "x")
        assert subscriber.payloads["b"] == ["before"]
        await subscriber.say(add={"agents": [of("b", oldest=True)]})
        await subscriber.told("b", "before", "before", "unheard")


async def test_c11_thousands_of_agents_are_followed_through_one_router(router: Router, ws: str) -> None:
    agents = [f"agent-{number}" for number in range(1000)]
    async with (
        router.subscribed(ws, *map(of, agents)) as one,
        router.subscribed(f"{ws}-2", *map(of, agents)) as other,
        router.subscribed(ws, *map(of, agents)) as twin,
    ):
        for subscriber in (one, other, twin):
            await subscriber.is_so(lambda it: len(it.caught_up) == 1000, "it is caught up")
        assert router.count("event_logs_followed") == 2000
        await asyncio.gather(*(router.publish(ws, agent, agent) for agent in agents[::10]))
        for subscriber in (one, twin):
            await subscriber.is_so(lambda it: it.events == 100, "all are told")
            assert all(subscriber.payloads[agent] == [agent] for agent in agents[::10])
        assert other.events == 0
        await one.say(add={"agents": [of("one-more")]})
        await one.is_so(lambda it: it.has_ended, "that is too many")
        assert one.error is not None
        assert one.error.code() is grpc.StatusCode.INVALID_ARGUMENT
    await until(lambda: router.count("event_logs_followed") == 0, "nothing is followed any more")


@pytest.mark.parametrize(
    ("later", "field"),
    [
        ({"open": {"workspace_id": "x"}}, "open"),
        ({}, "wish"),
        ({"credit": {}}, "credit.events"),
        ({"credit": {"events": -1}}, "credit.events"),
        ({"add": {}}, "add.agents"),
        ({"add": {"agents": [of("a"), of("a")]}}, "add.agents[1].agent_id"),
        ({"add": {"agents": [of("a", ("", 1))]}}, "add.agents[0].after.log_epoch"),
        ({"add": {"agents": [of("a", ("x", -1))]}}, "add.agents[0].after.offset"),
        ({"remove": {}}, "remove.agent_ids"),
        ({"remove": {"agent_ids": ["a", ""]}}, "remove.agent_ids[1]"),
    ],
)
async def test_what_cannot_be_meant_ends_the_stream_by_the_name_of_its_field(
    router: Router, ws: str, later: dict[str, object], field: str
) -> None:
    async with router.subscribed(ws, of("a")) as subscriber:
        await subscriber.say(**later)
        await subscriber.is_so(lambda it: it.has_ended, "it ends")
        assert subscriber.error is not None
        assert subscriber.error.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert (subscriber.error.details() or "").startswith(f"{field}:")


@pytest.mark.parametrize(
    "first", [{}, {"credit": {"events": 1}}, {"open": {}}, {"open": {"workspace_id": "w", "credits": -1}}]
)
async def test_a_stream_that_does_not_open_is_refused(router: Router, first: dict[str, object]) -> None:
    call = router.stream()
    await call.write(said(**first))
    with refused(grpc.StatusCode.INVALID_ARGUMENT, "REASON_INVALID_FIELD"):
        await call.read()


async def test_a_stream_without_any_request_is_refused(router: Router) -> None:
    call = router.stream()
    await call.done_writing()
    with refused(grpc.StatusCode.INVALID_ARGUMENT, "REASON_INVALID_FIELD"):
        await call.read()


async def test_ending_the_requests_ends_nothing(router: Router, ws: str) -> None:
    """As grpcurl does: one request, and then it listens."""
    async with router.subscribed(ws, of("a")) as subscriber:
        await subscriber.call.done_writing()
        await subscriber.is_so(lambda it: it.caught_up == ["a"], "it is caught up")
        await router.publish(ws, "a", "x")
        await subscriber.told("a", "x")


async def test_an_idle_stream_says_that_it_lives(redis_settings: RedisSettings, ws: str) -> None:
    async with events_router(redis_settings, event_heartbeat_s=0.05) as router, router.subscribed(ws, of("a")) as subscriber:
        await subscriber.is_so(lambda it: len(it.heartbeats) >= 3, "it hears heartbeats")
        assert set(subscriber.heartbeats) == {"LIVE"}


async def test_no_more_streams_are_served_than_may_be(redis_settings: RedisSettings, ws: str) -> None:
    async with events_router(redis_settings, event_subscribers_max=1) as router:
        async with router.subscribed(ws, of("a")) as subscriber:
            await subscriber.is_so(lambda it: it.caught_up == ["a"], "it is caught up")
            async with router.subscribed(ws, of("a")) as another:
                await another.is_so(lambda it: it.has_ended, "it ends")
                assert another.error is not None
                assert another.error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
            assert router.count("event_subscribers") == 1
        await until(lambda: router.count("event_subscribers") == 0)
        async with router.subscribed(ws, of("a")) as subscriber:
            await subscriber.is_so(lambda it: it.caught_up == ["a"], "it is caught up")


async def test_a_router_that_ends_sends_its_subscribers_elsewhere_at_once(redis_settings: RedisSettings, ws: str) -> None:
    async with contextlib.AsyncExitStack() as lasting:
        async with events_router(redis_settings, drain_s=60) as router:
            channel = await lasting.enter_async_context(grpc.aio.insecure_channel(f"127.0.0.1:{router.port}"))
            call: Any = event_pb2_grpc.EventServiceStub(channel).Subscribe()
            await call.write(said(open={"workspace_id": ws, "agents": [of("a")]}))
            assert (await call.read()).HasField("subscribed")
            assert (await call.read()).HasField("caught_up")
        with refused(grpc.StatusCode.UNAVAILABLE, "REASON_DRAINING"):
            await call.read()


async def test_what_is_counted_of_events_can_be_scraped(redis_settings: RedisSettings, ws: str) -> None:
    async with (
        events_router(redis_settings, event_probe_ms=50) as router,
        router.subscribed(ws, of("a"), credit=1) as subscriber,
    ):
        await subscriber.is_so(lambda it: it.caught_up == ["a"], "it is caught up")
        await router.publish(ws, "a", "four", "five!")
        await router.publish(ws, "a", "four", "five!", request_id="r")
        await router.publish(ws, "a", "four", "five!", request_id="r")
        await subscriber.told("a", "four")
        assert router.count("events_published_total") == 4
        assert router.count("event_bytes_published_total") == 18
        assert router.count("events_delivered_total") == 1
        await until(lambda: router.count("event_probes_total", outcome="heard") > 0)
        assert router.count("event_deaf") == 0


async def test_the_whole_router_serves_events_and_says_in_its_health_whether_they_come_at_once(
    client: Client, ws: str
) -> None:
    events = event_pb2_grpc.EventServiceStub(client.channel)
    call: Any = events.Subscribe(metadata=METADATA)
    await call.write(said(open={"workspace_id": ws, "agents": [of("a", oldest=True)]}))
    assert (await call.read()).subscribed.agent_id == "a"
    published = [event_pb2.AgentEvent(type="x")]
    await events.Publish(event_pb2.PublishRequest(workspace_id=ws, agent_id="a", events=published), metadata=METADATA)
    while not (told := await call.read()).HasField("events"):
        pass
    assert [event.type for event in told.events.events] == ["x"]
    call.cancel()
    check = health_pb2_grpc.HealthStub(client.channel).Check  # type: ignore[attr-defined]  # its types know no methods
    answer = await check(health_pb2.HealthCheckRequest(service="twofold.router.v1.EventService"))
    assert answer.status == health_pb2.HealthCheckResponse.SERVING
