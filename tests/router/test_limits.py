"""Limits, through the router: what is counted, what refuses, and what is said of it."""

import asyncio
from datetime import UTC, datetime, timedelta
from typing import Any

import grpc
import pytest
from google.rpc import error_details_pb2, status_pb2

from tests.router.conftest import Client, Start, refused
from tests.router.fakes import FakeRegistry
from twofold.errors.v1.reason_pb2 import Reason
from twofold.registry.v1 import billing_pb2, workspace_pb2
from twofold.router.v1 import limit_pb2, limit_pb2_grpc, routing_pb2, routing_pb2_grpc
from twofold_chassis import fields

Code = grpc.StatusCode
COUNTED, NONE = limit_pb2.LIMITS_SOURCE_COUNTED, limit_pb2.LIMITS_SOURCE_NONE
PEEK = routing_pb2.RESOLVE_MODE_PEEK
USER_HOUR = workspace_pb2.LIMIT_KIND_USER_HOUR_MESSAGES
AGENT_HOUR = workspace_pb2.LIMIT_KIND_AGENT_HOUR_MESSAGES


def details(told: Any, kind: type[Any]) -> Any:
    """The detail of this kind of a refusal; None if there is none."""
    for detail in status_pb2.Status.FromString(told.details).details:
        if detail.Is(kind.DESCRIPTOR):
            found = kind()
            detail.Unpack(found)
            return found
    return None


def limits_of(client: Client) -> limit_pb2_grpc.LimitServiceStub:
    return limit_pb2_grpc.LimitServiceStub(client.channel)


async def used(client: Client, ws: str, **names: str) -> dict[str, int]:
    """What was used of each kind, by its name."""
    asked: dict[str, Any] = {"user_id": "ada", "agent_id": "agent", **names}
    request = limit_pb2.GetLimitsRequest(workspace_id=ws, **asked)
    statuses = (await limits_of(client).GetLimits(request)).limits
    return {workspace_pb2.LimitKind.Name(each.kind).removeprefix("LIMIT_KIND_").lower(): each.used for each in statuses}


async def test_without_limits_and_without_an_id_nothing_is_counted(client: Client, ws: str) -> None:
    answer = await client.resolve(ws)
    assert (answer.limits_source, answer.operation_id, list(answer.limits)) == (NONE, "", [])
    assert not answer.HasField("count_time")
    assert set((await used(client, ws)).values()) == {0}


async def test_a_limit_admits_so_many_and_refuses_the_next(client: Client, registry: FakeRegistry, ws: str) -> None:
    registry.limit(ws, user_hour_messages=3)
    await registry.changes.applied()
    for count in (1, 2, 3):
        answer = await client.resolve(ws)
        (status,) = answer.limits
        assert (status.kind, status.subject, status.limit) == (USER_HOUR, "user:ada", 3)
        assert (status.used, status.remaining) == (count, 3 - count)
        assert 3600 - 300 <= status.reset_delay.seconds <= 3900
        assert (answer.limits_source, answer.degraded, bool(answer.operation_id)) == (COUNTED, False, True)
        assert abs(answer.count_time.ToDatetime(tzinfo=UTC) - datetime.now(UTC)) < timedelta(minutes=1)
    with refused(Code.RESOURCE_EXHAUSTED, "REASON_LIMIT_REACHED") as told:
        await client.resolve(ws)
    (violation,) = details(told, error_details_pb2.QuotaFailure).violations
    assert (violation.subject, violation.description) == ("user:ada", "user_hour_messages: 3 of 3 used")
    assert 3600 - 300 <= details(told, error_details_pb2.RetryInfo).retry_delay.seconds <= 3900
    assert (await used(client, ws))["user_hour_messages"] == 3
    registry.grant(ws, "bob", "agent")
    assert (await client.resolve(ws, user_id="bob")).limits[0].used == 1


async def test_all_limits_count_together_or_not_at_all(client: Client, registry: FakeRegistry, ws: str) -> None:
    registry.limit(ws, user_hour_messages=9, agent_hour_messages=2, workspace_day_tokens=100)
    await registry.changes.applied()
    await client.resolve(ws, cost=limit_pb2.OperationCost(tokens=60))
    with refused(Code.RESOURCE_EXHAUSTED, "REASON_LIMIT_REACHED") as told:
        await client.resolve(ws, cost=limit_pb2.OperationCost(tokens=41))
    (violation,) = details(told, error_details_pb2.QuotaFailure).violations
    assert violation.subject == f"workspace:{ws}"
    assert await used(client, ws) == {
        "user_hour_messages": 1,
        "user_minute_messages": 1,
        "agent_hour_messages": 1,
        "workspace_day_messages": 1,
        "workspace_day_tokens": 60,
        "workspace_day_micros": 0,
    }


async def test_c7_refused_moves_no_counter_and_many_at_once_are_admitted_no_more_than_the_limit(
    client: Client, registry: FakeRegistry, ws: str
) -> None:
    registry.limit(ws, user_hour_messages=10)
    await registry.changes.applied()
    outcomes = await asyncio.gather(*(client.resolve(ws) for _ in range(40)), return_exceptions=True)
    assert sum(isinstance(outcome, routing_pb2.ResolveResponse) for outcome in outcomes) == 10
    assert (await used(client, ws))["user_hour_messages"] == 10


async def test_c7_a_repeat_counts_once_and_is_answered_as_at_first(client: Client, registry: FakeRegistry, ws: str) -> None:
    registry.limit(ws, user_hour_messages=2)
    await registry.changes.applied()
    first = await client.resolve(ws, operation_id="op")
    await client.resolve(ws, operation_id="other")
    for again in await asyncio.gather(*(client.resolve(ws, operation_id="op") for _ in range(5))):
        assert (again.duplicate, again.operation_id) == (True, "op")
        assert (again.count_time, list(again.limits)) == (first.count_time, list(first.limits))
    assert not first.duplicate
    assert (await used(client, ws))["user_hour_messages"] == 2


@pytest.mark.parametrize(
    "other", [{"user_id": "bob"}, {"agent_id": "second"}, {"cost": limit_pb2.OperationCost(tokens=1)}], ids=str
)
async def test_an_operation_id_is_not_used_for_something_else(
    client: Client, registry: FakeRegistry, ws: str, other: dict[str, Any]
) -> None:
    registry.publish(ws, "second", registry.agents[ws, "agent"].url)
    registry.grant(ws, "bob", "agent")
    registry.grant(ws, "ada", "second")
    await client.resolve(ws, operation_id="op")
    with refused(Code.ALREADY_EXISTS, "REASON_REQUEST_REUSED"):
        await client.resolve(ws, operation_id="op", **other)


async def test_an_operation_with_an_id_is_counted_without_any_limit(client: Client, registry: FakeRegistry, ws: str) -> None:
    answer = await client.resolve(ws, operation_id="op")
    assert (answer.limits_source, answer.operation_id, list(answer.limits)) == (COUNTED, "op", [])
    registry.limit(ws, user_hour_messages=1)  # set in mid-hour: it knows what was used
    await registry.changes.applied()
    with refused(Code.RESOURCE_EXHAUSTED, "REASON_LIMIT_REACHED"):
        await client.resolve(ws)


async def test_a_shadow_counts_and_refuses_nobody(client: Client, registry: FakeRegistry, ws: str) -> None:
    registry.limit(ws, user_hour_messages=1, shadow=True)
    await registry.changes.applied()
    told = [(await client.resolve(ws)).limits[0] for _ in range(3)]
    assert [(each.used, each.would_refuse, each.shadow) for each in told] == [
        (1, False, True),
        (2, True, True),
        (3, True, True),
    ]
    assert told[1].retry_delay.seconds >= 3300


async def test_who_peeks_counts_nothing_and_is_not_refused(client: Client, registry: FakeRegistry, ws: str) -> None:
    registry.limit(ws, user_hour_messages=1)
    await registry.changes.applied()
    for _ in range(2):
        (status,) = (await client.resolve(ws, mode=PEEK)).limits
        assert (status.used, status.would_refuse) == (0, False)
    await client.resolve(ws)
    (status,) = (await client.resolve(ws, mode=PEEK)).limits
    assert (status.used, status.remaining, status.would_refuse) == (1, 0, True)
    with refused(Code.INVALID_ARGUMENT, "REASON_INVALID_FIELD") as told:
        await client.resolve(ws, mode=PEEK, operation_id="op")
    assert "operation_id" in told.message


async def test_one_that_costs_more_than_the_limit_is_refused_for_ever(
    client: Client, registry: FakeRegistry, ws: str
) -> None:
    registry.limit(ws, workspace_day_tokens=10)
    await registry.changes.applied()
    with refused(Code.RESOURCE_EXHAUSTED, "REASON_LIMIT_REACHED") as told:
        await client.resolve(ws, cost=limit_pb2.OperationCost(tokens=11))
    assert details(told, error_details_pb2.RetryInfo) is None
    assert "(0 of 10 used, and this operation costs more than 10)" in told.message


@pytest.mark.parametrize("name", ["messages", "tokens", "micros"])
@pytest.mark.parametrize("amount", [-1, 10**15 + 1, -(2**63), 2**63 - 1])
async def test_costs_that_are_negative_or_huge_are_refused_by_name(client: Client, ws: str, name: str, amount: int) -> None:
    cost = limit_pb2.OperationCost(**{name: amount})
    with refused(Code.INVALID_ARGUMENT, "REASON_INVALID_FIELD") as told:
        await client.resolve(ws, cost=cost)
    assert f"cost.{name}" in told.message
    asked = limit_pb2.SettleOperationRequest(workspace_id=ws, user_id="ada", agent_id="agent", operation_id="op", cost=cost)
    with refused(Code.INVALID_ARGUMENT, "REASON_INVALID_FIELD") as told:
        await limits_of(client).SettleOperation(asked)
    assert f"cost.{name}" in told.message


# What an operation really cost.


async def settle(client: Client, ws: str, operation_id: str = "op", **values: Any) -> limit_pb2.SettleOperationResponse:
    asked = {"user_id": "ada", "agent_id": "agent", "operation_id": operation_id, **values}
    return await limits_of(client).SettleOperation(limit_pb2.SettleOperationRequest(workspace_id=ws, **asked))


async def test_settling_puts_what_was_used_in_the_place_of_what_was_claimed_once(
    client: Client, registry: FakeRegistry, ws: str
) -> None:
    registry.limit(ws, workspace_day_tokens=1000)
    await registry.changes.applied()
    counted = await client.resolve(ws, operation_id="op", cost=limit_pb2.OperationCost(tokens=500))
    settled = await settle(client, ws, cost=limit_pb2.OperationCost(tokens=1800, micros=7))
    assert (settled.duplicate, settled.count_time) == (False, counted.count_time)
    again = await settle(client, ws, cost=limit_pb2.OperationCost(tokens=1))
    assert (again.duplicate, again.count_time) == (True, counted.count_time)
    now = await used(client, ws)
    assert (now["workspace_day_tokens"], now["workspace_day_micros"], now["user_hour_messages"]) == (1800, 7, 1)
    with refused(Code.RESOURCE_EXHAUSTED, "REASON_LIMIT_REACHED"):
        await client.resolve(ws)
    assert (await client.resolve(ws, operation_id="op", cost=limit_pb2.OperationCost(tokens=500))).duplicate


async def test_what_is_settled_without_being_known_is_added_at_its_time(client: Client, ws: str) -> None:
    yesterday = datetime.now(UTC) - timedelta(hours=30)
    earlier = datetime.now(UTC) - timedelta(hours=2)
    for operation_id, at in (("old", yesterday), ("earlier", earlier), ("new", None)):
        time = None if at is None else fields.timestamp(at)
        cost = limit_pb2.OperationCost(tokens=10)
        assert not (await settle(client, ws, operation_id, cost=cost, operation_time=time)).duplicate
    now = await used(client, ws)
    assert (now["user_hour_messages"], now["workspace_day_messages"], now["workspace_day_tokens"]) == (1, 2, 20)


async def test_what_is_released_was_never_counted(client: Client, registry: FakeRegistry, ws: str) -> None:
    registry.limit(ws, user_hour_messages=1)
    await registry.changes.applied()
    release = limit_pb2.ReleaseOperationRequest(workspace_id=ws, user_id="ada", agent_id="agent", operation_id="op")
    for _ in range(2):
        assert not (await client.resolve(ws, operation_id="op")).duplicate
        await limits_of(client).ReleaseOperation(release)
        await limits_of(client).ReleaseOperation(release)
        assert set((await used(client, ws)).values()) == {0}
    await client.resolve(ws, operation_id="op")
    await settle(client, ws, cost=limit_pb2.OperationCost())
    await limits_of(client).ReleaseOperation(release)  # it was begun, and stays
    assert (await used(client, ws))["user_hour_messages"] == 1


async def test_an_operation_is_ended_by_whose_it_is_alone(client: Client, ws: str) -> None:
    await client.resolve(ws, operation_id="op")
    with refused(Code.ALREADY_EXISTS, "REASON_REQUEST_REUSED"):
        await settle(client, ws, cost=limit_pb2.OperationCost(), user_id="bob")
    release = limit_pb2.ReleaseOperationRequest(workspace_id=ws, user_id="ada", agent_id="other", operation_id="op")
    with refused(Code.ALREADY_EXISTS, "REASON_REQUEST_REUSED"):
        await limits_of(client).ReleaseOperation(release)
    assert (await used(client, ws))["user_hour_messages"] == 1


# Batches, caps, and who asks.


async def test_each_pair_of_a_batch_counts_by_itself(client: Client, registry: FakeRegistry, ws: str) -> None:
    registry.limit(ws, user_hour_messages=2)
    registry.grant(ws, "bob", "agent")
    await registry.changes.applied()
    users = ["ada", "ada", "ada", "bob", "eve"]
    pairs = [routing_pb2.UserAgent(user_id=user_id, agent_id="agent") for user_id in users]
    request = routing_pb2.BatchResolveRequest(workspace_id=ws, pairs=pairs)
    for pair, operation_id in zip(request.pairs, ("a", "b", "c", "d", "e"), strict=True):
        pair.operation_id = operation_id
    stub = routing_pb2_grpc.RoutingServiceStub(client.channel)
    results = (await stub.BatchResolve(request)).results
    reasons = [Reason.Name(result.refusal.reason) for result in results]
    assert reasons == ["REASON_UNSPECIFIED"] * 2 + ["REASON_LIMIT_REACHED", "REASON_UNSPECIFIED", "REASON_NOT_PERMITTED"]
    assert results[2].refusal.retry_delay.seconds >= 3300
    assert [result.answer.operation_id for result in results] == ["a", "b", "", "d", ""]
    again = (await stub.BatchResolve(request)).results
    assert [result.answer.duplicate for result in again] == [True, True, False, True, False]
    assert (
        (await used(client, ws))["user_hour_messages"],
        (await used(client, ws, user_id="bob"))["user_hour_messages"],
    ) == (2, 1)
    request.mode = PEEK
    for pair in request.pairs:
        pair.ClearField("operation_id")
    peeked = (await stub.BatchResolve(request)).results
    assert [limit.would_refuse for result in peeked for limit in result.answer.limits] == [True, True, True, False]
    assert (await used(client, ws))["agent_hour_messages"] == 3


async def test_an_id_of_a_batch_that_stands_there_twice_counts_for_one(
    client: Client, registry: FakeRegistry, ws: str
) -> None:
    registry.grant(ws, "bob", "agent")
    pairs = [routing_pb2.UserAgent(user_id=each, agent_id="agent", operation_id="op") for each in ("ada", "ada", "bob")]
    stub = routing_pb2_grpc.RoutingServiceStub(client.channel)
    results = (await stub.BatchResolve(routing_pb2.BatchResolveRequest(workspace_id=ws, pairs=pairs))).results
    assert [result.answer.duplicate for result in results[:2]] == [False, True]
    assert Reason.Name(results[2].refusal.reason) == "REASON_REQUEST_REUSED"


async def test_a_hard_cap_of_this_month_stops_all_until_it_ends(client: Client, registry: FakeRegistry, ws: str) -> None:
    now = datetime.now(UTC)
    last = (now.replace(day=1) - timedelta(days=1)).strftime("%Y-%m")
    for state, month in ((billing_pb2.CAP_STATE_SOFT, f"{now:%Y-%m}"), (billing_pb2.CAP_STATE_HARD, last)):
        registry.cap(ws, state, month)
        await registry.changes.applied()
        await client.resolve(ws)
    registry.cap(ws, billing_pb2.CAP_STATE_HARD, f"{now:%Y-%m}")
    await registry.changes.applied()
    for _ in range(2):  # from the registry, then from the copy
        with refused(Code.RESOURCE_EXHAUSTED, "REASON_CAP_REACHED") as told:
            await client.resolve(ws, operation_id="op")
    left_s = details(told, error_details_pb2.RetryInfo).retry_delay.seconds
    end = (now.replace(day=28) + timedelta(days=4)).replace(day=1, hour=0, minute=0, second=0)
    assert abs((now + timedelta(seconds=left_s) - end).total_seconds()) < 60
    assert details(told, error_details_pb2.QuotaFailure).violations[0].subject == f"workspace:{ws}"
    with refused(Code.PERMISSION_DENIED, "REASON_NOT_PERMITTED"):
        await client.resolve(ws, user_id="eve")
    assert set((await used(client, ws)).values()) == {0}


async def test_limits_without_a_user_or_an_agent_are_those_of_the_others(
    client: Client, registry: FakeRegistry, ws: str
) -> None:
    registry.limit(ws, user_hour_messages=5)
    registry.limit(ws, user_id="vip", user_hour_messages=50)
    await registry.changes.applied()
    assert set(await used(client, ws, user_id="", agent_id="")) == {
        "workspace_day_messages",
        "workspace_day_tokens",
        "workspace_day_micros",
    }
    request = limit_pb2.GetLimitsRequest(workspace_id=ws, user_id="vip", min_revision_token=registry.token)
    statuses = (await limits_of(client).GetLimits(request)).limits
    assert {each.kind: (each.limit, each.subject) for each in statuses}[USER_HOUR] == (50, "user:vip")
    assert AGENT_HOUR not in {each.kind for each in statuses}
    registry.workspaces_are_unknown = True
    with refused(Code.NOT_FOUND, "REASON_WORKSPACE_UNKNOWN"):
        await limits_of(client).GetLimits(limit_pb2.GetLimitsRequest(workspace_id=f"{ws}-nowhere"))


async def test_a_workspace_that_vanishes_is_said_as_the_check_would(client: Client, registry: FakeRegistry, ws: str) -> None:
    registry.workspaces_are_unknown = True
    with refused(Code.PERMISSION_DENIED, "REASON_NOT_PERMITTED"):
        await client.resolve(ws)


async def test_a_resolve_that_is_denied_counts_nothing(client: Client, registry: FakeRegistry, ws: str) -> None:
    registry.limit(ws, agent_hour_messages=1)
    await registry.changes.applied()
    with refused(Code.PERMISSION_DENIED, "REASON_NOT_PERMITTED"):
        await client.resolve(ws, user_id="eve", operation_id="op")
    assert set((await used(client, ws, user_id="eve")).values()) == {0}


async def test_c7_a_repeat_after_a_revoke_is_denied(client: Client, registry: FakeRegistry, ws: str) -> None:
    await client.resolve(ws, operation_id="op")
    registry.revoke(ws, "ada", "agent")
    await registry.changes.applied()
    with refused(Code.PERMISSION_DENIED, "REASON_NOT_PERMITTED"):
        await client.resolve(ws, operation_id="op")
    assert (await used(client, ws))["user_hour_messages"] == 1


async def test_what_a_router_counts_another_knows(client: Client, registry: FakeRegistry, start: Start, ws: str) -> None:
    registry.limit(ws, user_hour_messages=2)
    await registry.changes.applied()
    async with start() as other:
        await client.resolve(ws, operation_id="op")
        assert (await other.resolve(ws, operation_id="op")).duplicate
        assert (await other.resolve(ws)).limits[0].used == 2
        with refused(Code.RESOURCE_EXHAUSTED, "REASON_LIMIT_REACHED"):
            await client.resolve(ws)


async def test_limits_are_told_in_metrics(start: Start, registry: FakeRegistry, ws: str) -> None:
    registry.limit(ws, user_hour_messages=1)
    await registry.changes.applied()
    async with start(metrics_port=0) as counted:
        await counted.resolve(ws)
        with refused(Code.RESOURCE_EXHAUSTED, "REASON_LIMIT_REACHED"):
            await counted.resolve(ws)
        told = await counted.metrics()
    assert 'twofold_router_limits_total{decision="passed",kind="user_hour_messages"} 1.0' in told
    assert 'twofold_router_limits_total{decision="refused",kind="user_hour_messages"} 1.0' in told
    assert 'twofold_router_limit_rebuilds_total{outcome="complete"} 1.0' in told


async def test_where_scripts_may_not_ask_for_the_time_the_routers_clock_counts(
    start: Start, registry: FakeRegistry, ws: str
) -> None:
    registry.limit(ws, user_hour_messages=1)
    await registry.changes.applied()
    async with start(redis_time=False) as own:
        answer = await own.resolve(ws)
        assert abs(answer.count_time.ToDatetime(tzinfo=UTC) - datetime.now(UTC)) < timedelta(minutes=1)
        with refused(Code.RESOURCE_EXHAUSTED, "REASON_LIMIT_REACHED"):
            await own.resolve(ws)
