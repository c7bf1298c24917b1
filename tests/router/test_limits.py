"""Limits, through the router: what is counted, what refuses, and what is said of it."""

from datetime import UTC, datetime
from typing import Any

import grpc
from google.rpc import error_details_pb2, status_pb2

from tests.router.conftest import Client, refused
from tests.router.fakes import FakeRegistry
from twofold.registry.v1 import workspace_pb2
from twofold.router.v1 import limit_pb2, limit_pb2_grpc, routing_pb2

Code = grpc.StatusCode
COUNTED, NONE = limit_pb2.LIMITS_SOURCE_COUNTED, limit_pb2.LIMITS_SOURCE_NONE
PEEK = routing_pb2.RESOLVE_MODE_PEEK
USER_HOUR = workspace_pb2.LIMIT_KIND_USER_HOUR_MESSAGES
AGENT_HOUR = workspace_pb2.LIMIT_KIND_AGENT_HOUR_MESSAGES
DAY_TOKENS = workspace_pb2.LIMIT_KIND_WORKSPACE_DAY_TOKENS


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
        assert abs(answer.count_time.ToDatetime(tzinfo=UTC) - datetime.now(UTC)).total_seconds() < 60
    with refused(Code.RESOURCE_EXHAUSTED, "REASON_LIMIT_REACHED") as told:
        await client.resolve(ws)
    (violation,) = details(told, error_details_pb2.QuotaFailure).violations
    assert (violation.subject, violation.description) == ("user:ada", "user_hour_messages: 3 of 3 used")
    assert 3600 - 300 <= details(told, error_details_pb2.RetryInfo).retry_delay.seconds <= 3900
    assert (await used(client, ws))["user_hour_messages"] == 3
    registry.grant(ws, "bob", "agent")
    assert (await client.resolve(ws, user_id="bob")).limits[0].used == 1
