"""Resolve: who may use what, where it lives, and what is said when that cannot be known."""

import asyncio
from typing import Any, cast

import grpc
import pytest

from tests.router.conftest import Client, Start, refused
from tests.router.fakes import FakeRegistry
from twofold.registry.v1 import agent_pb2, permission_pb2
from twofold.router.v1 import routing_pb2
from twofold_chassis.refusals import Draining, HistoryChanged, InvalidToken, Overloaded, Reason, Unavailable
from twofold_chassis.settings import RedisSettings
from twofold_cli.embedded.redis import EmbeddedRedis

Code = grpc.StatusCode
CACHE, REGISTRY = routing_pb2.ROUTE_SOURCE_CACHE, routing_pb2.ROUTE_SOURCE_REGISTRY


async def test_who_has_a_grant_is_told_where_the_agent_lives(client: Client, registry: FakeRegistry, ws: str) -> None:
    answer = await client.resolve(ws)
    assert answer.url == registry.agents[ws, "agent"].url
    assert answer.basis == routing_pb2.PERMISSION_BASIS_GRANT
    assert answer.source == REGISTRY
    assert answer.revision_token == registry.token


async def test_who_has_a_role_is_told_so(client: Client, registry: FakeRegistry, ws: str) -> None:
    registry.grant(ws, "boss", "agent", permission_pb2.CHECK_REASON_ROLE)
    assert (await client.resolve(ws, user_id="boss")).basis == routing_pb2.PERMISSION_BASIS_ROLE


@pytest.mark.parametrize(
    "reason",
    [
        permission_pb2.CHECK_REASON_NO_GRANT,
        permission_pb2.CHECK_REASON_EXPIRED,
        permission_pb2.CHECK_REASON_WORKSPACE_UNKNOWN,
        permission_pb2.CHECK_REASON_USER_UNKNOWN,
    ],
)
async def test_every_denial_sounds_the_same(
    client: Client, registry: FakeRegistry, ws: str, reason: permission_pb2.CheckReason.ValueType
) -> None:
    registry.grant(ws, "bob", "agent", reason)
    with refused(Code.PERMISSION_DENIED, "REASON_NOT_PERMITTED") as told:
        await client.resolve(ws, user_id="bob")
    assert told.message == "user 'bob' may not use agent 'agent'"


async def test_a_forbidden_agent_sounds_like_one_that_does_not_exist(client: Client, ws: str) -> None:
    with refused(Code.PERMISSION_DENIED, "REASON_NOT_PERMITTED") as told:
        await client.resolve(ws, agent_id="none")
    assert told.message == "user 'ada' may not use agent 'none'"


async def test_a_denial_does_not_reveal_that_an_agent_is_paused(client: Client, registry: FakeRegistry, ws: str) -> None:
    registry.agents[ws, "agent"].state = agent_pb2.AGENT_STATE_PAUSED
    with refused(Code.PERMISSION_DENIED, "REASON_NOT_PERMITTED"):
        await client.resolve(ws, user_id="bob")


async def test_who_may_know_is_told_that_there_is_no_such_agent(client: Client, registry: FakeRegistry, ws: str) -> None:
    registry.grant(ws, "boss", "none", permission_pb2.CHECK_REASON_AGENT_UNKNOWN)
    with refused(Code.NOT_FOUND, "REASON_AGENT_UNKNOWN"):
        await client.resolve(ws, user_id="boss", agent_id="none")


async def test_an_agent_that_vanishes_between_the_two_readings_is_said_as_the_check_would(
    client: Client, registry: FakeRegistry, ws: str
) -> None:
    registry.grant(ws, "boss", "agent", permission_pb2.CHECK_REASON_ROLE)
    del registry.agents[ws, "agent"]
    with refused(Code.NOT_FOUND, "REASON_AGENT_UNKNOWN"):
        await client.resolve(ws, user_id="boss")
    with refused(Code.PERMISSION_DENIED, "REASON_NOT_PERMITTED"):
        await client.resolve(ws, user_id="ada")


@pytest.mark.parametrize("state", [agent_pb2.AGENT_STATE_DRAFT, agent_pb2.AGENT_STATE_PAUSED])
async def test_an_agent_that_is_not_published_takes_no_messages(
    client: Client, registry: FakeRegistry, ws: str, state: agent_pb2.AgentState.ValueType
) -> None:
    registry.agents[ws, "agent"].state = state
    with refused(Code.FAILED_PRECONDITION, "REASON_AGENT_NOT_PUBLISHED"):
        await client.resolve(ws)


async def test_an_agent_that_is_gone_says_so_to_who_may_use_it(client: Client, registry: FakeRegistry, ws: str) -> None:
    registry.agents[ws, "agent"].state = agent_pb2.AGENT_STATE_GONE
    for _ in range(2):  # from the registry, then from the copy
        with refused(Code.FAILED_PRECONDITION, "REASON_AGENT_GONE"):
            await client.resolve(ws)
    with refused(Code.PERMISSION_DENIED, "REASON_NOT_PERMITTED"):
        await client.resolve(ws, user_id="bob")


async def test_a_user_is_sent_to_the_one_target_that_takes_its_messages(
    client: Client, registry: FakeRegistry, ws: str
) -> None:
    agent = registry.agents[ws, "agent"]
    agent.targets.add(name="blue", url="http://blue", weight=0)
    agent.targets.add(name="green", url="http://green", weight=1)
    answers = [await client.resolve(ws) for _ in range(2)]
    assert [(answer.url, answer.source) for answer in answers] == [("http://green", REGISTRY), ("http://green", CACHE)]


async def test_what_the_registry_refuses_is_passed_on(client: Client, registry: FakeRegistry, ws: str) -> None:
    not_reached = Unavailable("not yet", retry_after_s=0.5)
    not_reached.reason = Reason.REASON_REVISION_NOT_REACHED  # type: ignore[misc]
    for refusal, code, reason in (
        (InvalidToken("min_revision_token", "is none"), Code.INVALID_ARGUMENT, "REASON_INVALID_TOKEN"),
        (HistoryChanged("gone"), Code.ABORTED, "REASON_HISTORY_CHANGED"),
        (not_reached, Code.UNAVAILABLE, "REASON_REVISION_NOT_REACHED"),
        (Overloaded("busy"), Code.RESOURCE_EXHAUSTED, "REASON_OVERLOADED"),
    ):
        registry.calls.refuse("Check", refusal, times=4)
        with refused(code, reason):
            await client.resolve(ws, min_revision_token=b"some")


@pytest.mark.parametrize("rpc", ["Check", "GetAgent"])
async def test_a_registry_that_fails_means_neither_denied_nor_unknown(
    client: Client, registry: FakeRegistry, ws: str, rpc: str
) -> None:
    registry.calls.refusals[rpc] = [ValueError("a defect")]  # type: ignore[list-item]
    with refused(Code.UNAVAILABLE, "REASON_PEER_UNAVAILABLE") as told:
        await client.resolve(ws)
    assert b"RetryInfo" in told.details


async def test_without_a_registry_nobody_is_allowed_denied_or_unknown(start: Start, ws: str) -> None:
    async with start(registry_target="127.0.0.1:1") as alone:
        with refused(Code.UNAVAILABLE, "REASON_PEER_UNAVAILABLE"):
            await alone.resolve(ws)


async def test_a_registry_that_hangs_is_waited_for_only_so_long(start: Start, registry: FakeRegistry, ws: str) -> None:
    registry.calls.gates["Check"] = asyncio.Event()
    async with start(peer_timeout_s=0.2) as hurried:
        with refused(Code.UNAVAILABLE, "REASON_PEER_UNAVAILABLE"):
            await hurried.resolve(ws)


async def test_a_warm_route_comes_from_the_cache_and_says_how_old_it_is(
    client: Client, registry: FakeRegistry, ws: str
) -> None:
    await client.resolve(ws)
    await asyncio.sleep(0.05)
    answer = await client.resolve(ws)
    assert answer.source == CACHE
    assert 0.04 < answer.route_age.ToMicroseconds() / 1e6 <= 5
    assert len(registry.calls.of("GetAgent")) == 1


async def test_the_permission_is_asked_each_time(client: Client, registry: FakeRegistry, ws: str) -> None:
    await client.resolve(ws)
    registry.grant(ws, "ada", "agent", permission_pb2.CHECK_REASON_NO_GRANT)
    with refused(Code.PERMISSION_DENIED, "REASON_NOT_PERMITTED"):
        await client.resolve(ws)
    assert len(registry.calls.of("Check")) == 2


async def test_a_route_is_read_again_when_its_copy_is_too_old(start: Start, registry: FakeRegistry, ws: str) -> None:
    async with start(route_ttl_s=0.2) as forgetful:
        await forgetful.resolve(ws)
        registry.publish(ws, "agent", "http://elsewhere")
        await asyncio.sleep(0.25)
        answer = await forgetful.resolve(ws)
    assert (answer.url, answer.source) == ("http://elsewhere", REGISTRY)


async def test_the_time_that_reading_took_counts_as_age(start: Start, registry: FakeRegistry, ws: str) -> None:
    registry.calls.gates["GetAgent"] = gate = asyncio.Event()
    async with start(route_ttl_s=0.2) as forgetful:
        resolving = asyncio.create_task(forgetful.resolve(ws))
        await asyncio.sleep(0.3)
        gate.set()
        await resolving
        assert (await forgetful.resolve(ws)).source == REGISTRY


async def test_who_asks_for_a_revision_is_not_given_an_older_copy(client: Client, registry: FakeRegistry, ws: str) -> None:
    await client.resolve(ws)
    registry.publish(ws, "agent", "http://moved")
    assert (await client.resolve(ws)).source == CACHE
    answer = await client.resolve(ws, min_revision_token=registry.token)
    assert (answer.url, answer.source) == ("http://moved", REGISTRY)
    assert registry.calls.of("Check")[-1].min_revision_token == registry.token
    # What was read so serves everybody, and who asks for the very revision that it was read at.
    assert (await client.resolve(ws)).url == "http://moved"
    assert (await client.resolve(ws, min_revision_token=registry.token)).source == CACHE


async def test_many_cold_resolves_at_once_read_the_route_once(client: Client, registry: FakeRegistry, ws: str) -> None:
    registry.calls.gates["GetAgent"] = gate = asyncio.Event()
    resolving = [asyncio.create_task(client.resolve(ws)) for _ in range(300)]
    await registry.calls.came("Check", 300)
    gate.set()
    answers = await asyncio.gather(*resolving)
    assert {answer.url for answer in answers} == {registry.agents[ws, "agent"].url}
    assert len(registry.calls.of("GetAgent")) == 1


async def test_the_first_caller_of_a_flight_may_leave_without_failing_the_others(
    client: Client, registry: FakeRegistry, ws: str
) -> None:
    registry.calls.gates["GetAgent"] = gate = asyncio.Event()
    first = asyncio.create_task(client.resolve(ws))
    await registry.calls.came("GetAgent")
    follower = asyncio.create_task(client.resolve(ws))
    await registry.calls.came("Check", 2)
    first.cancel()
    await asyncio.sleep(0.05)
    gate.set()
    assert (await follower).url == registry.agents[ws, "agent"].url
    assert len(registry.calls.of("GetAgent")) == 1


async def test_the_first_callers_deadline_does_not_bound_the_others(client: Client, registry: FakeRegistry, ws: str) -> None:
    registry.calls.gates["GetAgent"] = gate = asyncio.Event()
    first = asyncio.create_task(client.resolve(ws, timeout=0.3))
    await registry.calls.came("GetAgent")
    follower = asyncio.create_task(client.resolve(ws))
    await registry.calls.came("Check", 2)
    with pytest.raises(grpc.aio.AioRpcError):
        await first
    await asyncio.sleep(0.1)
    gate.set()
    assert (await follower).url == registry.agents[ws, "agent"].url


async def test_who_asks_for_a_revision_does_not_join_a_flight_that_began_before_it(
    client: Client, registry: FakeRegistry, ws: str
) -> None:
    registry.calls.gates["GetAgent"] = gate = asyncio.Event()
    early = asyncio.create_task(client.resolve(ws))
    await registry.calls.came("GetAgent")
    registry.publish(ws, "agent", "http://moved")
    late = asyncio.create_task(client.resolve(ws, min_revision_token=registry.token))
    await registry.calls.came("GetAgent", 2)
    gate.set()
    assert (await late).url == "http://moved"
    assert (await early).url != "http://moved"


async def test_without_redis_everything_is_read_from_the_registry(start: Start, registry: FakeRegistry, ws: str) -> None:
    async with start(redis=RedisSettings(port=1)) as without:
        assert [(await without.resolve(ws)).source for _ in range(3)] == [REGISTRY] * 3


async def test_a_redis_that_hangs_costs_its_budget_and_nothing_else(
    start: Start, own_redis: EmbeddedRedis, registry: FakeRegistry, ws: str
) -> None:
    redis = RedisSettings(host=own_redis.host, port=own_redis.port, password=own_redis.password, budget_ms=100)
    async with start(redis=redis) as hindered:
        await hindered.resolve(ws)
        own_redis.pause()
        began = asyncio.get_running_loop().time()
        assert (await hindered.resolve(ws)).source == REGISTRY
        assert asyncio.get_running_loop().time() - began < 1.0  # ten times the budget: a bound on a busy machine
        own_redis.resume()


async def test_the_caller_is_known_to_the_registry(client: Client, registry: FakeRegistry, ws: str) -> None:
    await client.resolve(ws)
    assert {(rpc, actor, request_id) for rpc, _, actor, request_id in registry.calls.seen} == {
        ("Check", "tester", "request-1"),
        ("GetAgent", "tester", "request-1"),
    }


@pytest.mark.parametrize("field", ["workspace_id", "user_id", "agent_id"])
@pytest.mark.parametrize("value", ["", "a\0b", "a\nb", "x" * 256])
async def test_ids_that_are_none_are_refused_by_name(client: Client, ws: str, field: str, value: str) -> None:
    with refused(Code.INVALID_ARGUMENT, "REASON_INVALID_FIELD") as told:
        await client.resolve(ws, **cast(dict[str, Any], {field: value}))
    assert field in told.message


async def test_a_token_that_is_too_long_is_refused(client: Client, ws: str) -> None:
    with refused(Code.INVALID_ARGUMENT, "REASON_INVALID_TOKEN"):
        await client.resolve(ws, min_revision_token=b"x" * 3073)


@pytest.mark.parametrize("rpc", ["Check", "GetAgent"])
async def test_a_registry_that_is_away_for_a_moment_is_asked_again(
    client: Client, registry: FakeRegistry, ws: str, rpc: str
) -> None:
    registry.calls.refuse(rpc, Draining("bye"), times=2)
    assert (await client.resolve(ws)).url
    assert len(registry.calls.of(rpc)) == 3
