"""C6, C8: limits while Redis is away, stands still, or has lost everything."""

import asyncio
import uuid
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any, NoReturn

import grpc
import pytest
from pydantic import SecretStr
from redis.asyncio import Redis

from tests.registry.stubs import Registry, settings_of
from tests.router.conftest import Client, Start, answered, refused
from tests.router.fakes import FakeRegistry
from tests.router.test_limits import limits_of, settle, used
from tests.waiting import until
from twofold.registry.v1 import agent_pb2, usage_pb2, workspace_pb2
from twofold.router.v1 import limit_pb2, routing_pb2
from twofold_chassis.refusals import Overloaded
from twofold_chassis.settings import DatabaseSettings, RedisSettings
from twofold_cli.embedded.redis import EmbeddedRedis
from twofold_registry.app import registry as served_registry
from twofold_router.counting import Limits
from twofold_router.limits import Cost, CountersAway, CountersLost, Operation, Settled, Tally
from twofold_router.permissions import PairKey
from twofold_router.shares import Shares
from twofold_router.terms import Limit, LimitKind

Code = grpc.StatusCode
COUNTED, SHARE = limit_pb2.LIMITS_SOURCE_COUNTED, limit_pb2.LIMITS_SOURCE_LOCAL_SHARE
# So short that a router may soon give out its share.
SOON = {"lease_ms": 300, "ping_ms": 30, "silence_ms": 20_000}
# Where nothing is given out of a share, a busy machine is no reason to ask the registry again.
PATIENT = {"lease_ms": 30_000, "rebuild_wait_ms": 5000}


def settings_of_redis(server: EmbeddedRedis, *, budget_ms: float = 300) -> RedisSettings:
    return RedisSettings(host=server.host, port=server.port, password=SecretStr(server.password), budget_ms=budget_ms)


async def warmed(client: Client, ws: str, **fields: Any) -> routing_pb2.ResolveResponse:
    """The first answer: who has just been registered may give nothing out."""
    answers: list[routing_pb2.ResolveResponse] = []

    async def answered() -> bool:
        try:
            answers.append(await client.resolve(ws, **fields))
        except grpc.aio.AioRpcError as error:
            assert error.code() is Code.UNAVAILABLE  # noqa: PT017
        return bool(answers)

    await until(answered, "a share may be given out")
    return answers[0]


async def test_c6_without_redis_warm_answers_go_on_for_as_long_as_the_share_lasts(
    start: Start, registry: FakeRegistry, ws: str
) -> None:
    registry.limit(ws, user_hour_messages=100)
    registry.grant(ws, "bob", "agent")
    await registry.changes.applied()
    async with start(redis=RedisSettings(port=1), **SOON) as alone:
        first = await warmed(alone, ws)
        assert (first.limits_source, first.degraded, first.limits[0].used) == (SHARE, True, 1)
        registry.calls.seen.clear()
        passed = 1
        with refused(Code.UNAVAILABLE, "REASON_REDIS_UNAVAILABLE") as told:
            while True:
                passed += 1
                assert (await alone.resolve(ws)).limits[0].used == passed
        assert b"RetryInfo" in told.details
        assert 1 < passed <= 10 + 1  # the last one did not; how many routers there are, other tests say
        assert not registry.calls.seen
        assert (await alone.resolve(ws, user_id="bob")).limits[0].used == 1


async def test_c7_without_redis_a_repeat_counts_once_too(start: Start, registry: FakeRegistry, ws: str) -> None:
    registry.limit(ws, user_hour_messages=1000)
    registry.grant(ws, "bob", "agent")
    await registry.changes.applied()
    async with start(redis=RedisSettings(port=1), **SOON) as alone:
        first = await warmed(alone, ws, operation_id="op")
        again = await alone.resolve(ws, operation_id="op")
        assert (again.duplicate, again.count_time, list(again.limits)) == (True, first.count_time, list(first.limits))
        with refused(Code.ALREADY_EXISTS, "REASON_REQUEST_REUSED"):
            await alone.resolve(ws, operation_id="op", cost=limit_pb2.OperationCost(tokens=1))
        with refused(Code.ALREADY_EXISTS, "REASON_REQUEST_REUSED"):
            await alone.resolve(ws, operation_id="op", user_id="bob")
        assert (await alone.resolve(ws, operation_id="second")).limits[0].used == 2
        release = limit_pb2.ReleaseOperationRequest(workspace_id=ws, user_id="ada", agent_id="agent", operation_id="second")
        await limits_of(alone).ReleaseOperation(release)
        assert (await alone.resolve(ws, operation_id="third")).limits[0].used == 2


async def test_c7_without_redis_two_that_ask_at_once_with_the_same_id_count_once() -> None:
    counters = AwayCounters()
    shares = Shares(cells=12, routers=lambda: 1, clock=lambda: 1e9)
    limits = Limits(counters, NeverRebuilt(), shares, note=lambda kind, how: None, note_share=lambda how: None)
    operation = Operation(PairKey("w", "ada", "agent"), "op")
    hourly = [Limit(LimitKind.USER_HOUR_MESSAGES, 1000)]
    asked = [asyncio.create_task(limits.count(operation, hourly)) for _ in range(2)]
    await until(lambda: counters.asked == 2, "both ask")
    counters.answers.set()
    told = await asyncio.gather(*asked)
    assert sorted(each.is_duplicate for each in told) == [False, True]
    second = await limits.count(operation._replace(operation_id="second"), hourly)
    assert second.limits[0].used == 2
    # And two that settle: the first one's word counts.
    other = operation._replace(operation_id="other")
    settled = await asyncio.gather(*(limits.settle(other, Cost(1, tokens)) for tokens in (5, 7)))
    assert sorted(each.is_duplicate for each in settled) == [False, True]
    await limits.close()


class AwayCounters:
    """Counters that do not answer."""

    def __init__(self) -> None:
        self.asked = 0
        self.answers = asyncio.Event()

    async def count(self, operation: Operation, limits: Sequence[Limit], *, peeks: bool = False) -> Tally:
        return await self._away()

    async def settle(self, operation: Operation, at_s: float | None) -> Settled:
        return await self._away()

    async def add(self, operation: Operation, at_s: float) -> None:
        await self._away()

    async def release(self, operation: Operation) -> None:
        await self._away()

    async def _away(self) -> NoReturn:
        self.asked += 1
        await self.answers.wait()
        await asyncio.sleep(0)
        raise CountersAway(asked=True)


async def test_counters_of_one_workspace_that_stay_lost_keep_nobody_elses_share() -> None:
    counters = LostCounters("lost")
    shares = Shares(cells=12, routers=lambda: 1, clock=lambda: 1e9)
    limits = Limits(counters, NeverRebuilt(), shares, note=lambda kind, how: None, note_share=lambda how: None)
    for number in range(150):  # more than are handed over at once
        shares.take(Operation(PairKey("lost", "ada", "agent"), f"op-{number}"), [])
    await limits.count(Operation(PairKey("well", "ada", "agent"), "op"), [])
    await until(lambda: counters.added == {"op"}, "the other workspace's is handed over")
    await limits.close()


class LostCounters(AwayCounters):
    """Counters that were away, and are there again but for those of one workspace."""

    def __init__(self, workspace_id: str) -> None:
        super().__init__()
        self.answers.set()
        self._lost = workspace_id
        self.added: set[str] = set()

    async def add(self, operation: Operation, at_s: float) -> None:
        if operation.pair.workspace_id == self._lost:
            raise CountersLost
        self.added.add(operation.operation_id)


class NeverRebuilt:
    async def rebuilt(self, workspace_id: str) -> bool:
        return False


async def test_a_router_that_others_may_not_know_yet_gives_nothing_out(
    start: Start, registry: FakeRegistry, ws: str
) -> None:
    registry.limit(ws, user_hour_messages=1000)
    await registry.changes.applied()
    async with start(redis=RedisSettings(port=1)) as young:  # its lease is half a minute
        with refused(Code.UNAVAILABLE, "REASON_REDIS_UNAVAILABLE"):
            await young.resolve(ws)
        registry.limit(ws)
        await registry.changes.applied()
        assert (await young.resolve(ws)).limits_source == limit_pb2.LIMITS_SOURCE_NONE


async def test_c6_a_redis_that_stands_still_refuses_nobody_and_what_passed_is_counted_when_it_goes_on(
    start: Start, own_redis: EmbeddedRedis, registry: FakeRegistry, ws: str
) -> None:
    registry.limit(ws, user_hour_messages=40)
    await registry.changes.applied()
    redis = settings_of_redis(own_redis, budget_ms=100)
    async with start(redis=redis, rebuild_wait_ms=5000, **SOON) as hindered:
        await until(lambda: _is_counted(hindered, ws), "Redis counts")
        before = (await used(hindered, ws))["user_hour_messages"]
        passed: list[routing_pb2.ResolveResponse] = []
        unknown = 0
        own_redis.pause()
        try:
            while not passed or unknown < 20:
                try:
                    passed.append(await hindered.resolve(ws, operation_id=f"op-{len(passed)}-{unknown}"))
                except grpc.aio.AioRpcError as error:  # it may have counted: never "over the limit"
                    assert dict(error.trailing_metadata() or ())["twofold-reason"] == "REASON_REDIS_UNAVAILABLE"  # noqa: PT017
                    unknown += 1
            assert {answer.limits_source for answer in passed} == {SHARE}
            first, cost = passed[0], limit_pb2.OperationCost(tokens=70)
            assert (await settle(hindered, ws, first.operation_id, cost=cost)).count_time == first.count_time
        finally:
            own_redis.resume()
        # Those that nobody could tell of were asked of Redis as well, and may have been counted there.
        expected = range(before + len(passed), before + len(passed) + unknown + 1)

        async def is_handed_over() -> bool:
            try:
                now = await used(hindered, ws)
            except grpc.aio.AioRpcError:
                return False
            return now["user_hour_messages"] in expected and now["workspace_day_tokens"] == 70

        await until(is_handed_over, "everything is counted once")
        again = await hindered.resolve(ws, operation_id=first.operation_id)
        assert again.duplicate
        assert (await used(hindered, ws))["user_hour_messages"] in expected


async def _is_counted(client: Client, ws: str) -> bool:
    try:
        return (await client.resolve(ws)).limits_source == COUNTED
    except grpc.aio.AioRpcError:
        return False


async def test_counters_that_are_lost_while_the_registry_is_busy_come_back_when_it_is_not(
    start: Start, registry: FakeRegistry, ws: str
) -> None:
    registry.limit(ws, user_hour_messages=100)
    await registry.changes.applied()
    registry.calls.refuse("ReadWindow", Overloaded("others read windows", retry_after_s=1.0), times=3)
    async with start(rebuild_wait_ms=5000) as patient:
        answer = await patient.resolve(ws)
        assert (answer.limits_source, answer.limits[0].used) == (COUNTED, 1)
    assert len(registry.calls.of("ReadWindow")) == 3 + 4


# With the real registry.


class House:
    """A registry over the session's database, and routers over a Redis of this test's own."""

    def __init__(self, api: Registry, target: str, ws: str, redis: RedisSettings, start: Start) -> None:
        self.api = api
        self.ws = ws
        self._target = target
        self._redis = redis
        self._start = start
        self.recorded = 0

    def router(self, **options: Any) -> Any:
        return self._start(redis=self._redis, registry_target=self._target, **{**SOON, "peer_timeout_s": 30, **options})

    async def limit(self, **amounts: int) -> bytes:
        kinds = workspace_pb2.LimitKind
        limits = [
            workspace_pb2.Limit(kind=kinds.Value(f"LIMIT_KIND_{name.upper()}"), amount=amount)
            for name, amount in amounts.items()
        ]
        workspace = workspace_pb2.Workspace(workspace_id=self.ws, settings=workspace_pb2.WorkspaceSettings(limits=limits))
        request = workspace_pb2.UpdateWorkspaceRequest(workspace=workspace)
        request.update_mask.paths.append("settings.limits")
        return (await self.api.workspaces.UpdateWorkspace(request)).revision_token

    async def record(self, answer: routing_pb2.ResolveResponse, *, tokens: int = 0) -> None:
        event = usage_pb2.UsageEvent(
            event_id=f"{answer.operation_id}/0",
            user_id="ada",
            agent_id="agent",
            event_time=answer.count_time,
            messages=1,
            input_tokens=tokens,
        )
        await self.api.usage.RecordUsage(usage_pb2.RecordUsageRequest(workspace_id=self.ws, events=[event]))
        self.recorded += 1


@pytest.fixture
async def house(
    database_settings: DatabaseSettings, own_redis: EmbeddedRedis, start: Start, registry: FakeRegistry
) -> AsyncIterator[House]:
    async with AsyncExitStack() as stack:
        running = await stack.enter_async_context(served_registry(settings_of(database_settings, lease_ms=300)))
        target = f"127.0.0.1:{running.port}"
        api = Registry(await stack.enter_async_context(grpc.aio.insecure_channel(target)))
        ws = f"ws-{uuid.uuid4().hex[:12]}"
        await api.make_workspace(ws)
        await api.make_user(ws, "ada")
        await api.make_agent(ws, "agent", state=agent_pb2.AGENT_STATE_PUBLISHED)
        await api.grant(ws, "ada", "agent")
        yield House(api, target, ws, settings_of_redis(own_redis, budget_ms=2000), start)


async def counted(client: Client, ws: str, **fields: Any) -> routing_pb2.ResolveResponse:
    """An answer that was counted where all routers count."""
    answers: list[routing_pb2.ResolveResponse] = []

    async def is_counted() -> bool:
        try:
            answers.append(await client.resolve(ws, **{"operation_id": uuid.uuid4().hex, **fields}))
        except grpc.aio.AioRpcError as error:
            assert error.code() is Code.UNAVAILABLE  # noqa: PT017
            return False
        return answers[-1].limits_source == COUNTED

    await until(is_counted, "Redis counts")
    return answers[-1]


async def test_c8_after_a_flush_in_mid_hour_no_less_is_used_than_is_known_and_never_nothing(
    house: House, own_redis: EmbeddedRedis
) -> None:
    token = await house.limit(user_hour_messages=1000, workspace_day_tokens=10**6)
    async with house.router(**PATIENT) as client:
        for number in range(6):
            answer = await counted(client, house.ws, min_revision_token=token)
            await house.record(answer, tokens=100)
            cost = limit_pb2.OperationCost(tokens=100)
            await settle(client, house.ws, answer.operation_id, cost=cost)
            if number == 2:
                old = answer
        in_flight = await client.resolve(house.ws, operation_id="in-flight")
        before = await used(client, house.ws)
        assert (before["user_hour_messages"], before["workspace_day_tokens"]) == (7, 600)
        await _flush(own_redis)
        after = await used(client, house.ws)
        assert (after["user_hour_messages"], after["workspace_day_tokens"]) == (6, 600)
        assert {name: after[name] for name in ("agent_hour_messages", "workspace_day_messages")} == {
            "agent_hour_messages": 6,
            "workspace_day_messages": 6,
        }
        # What was in flight comes back when it is settled, at its time; what is known is known to a repeat.
        cost = limit_pb2.OperationCost(tokens=50)
        settled = await settle(client, house.ws, "in-flight", cost=cost, operation_time=in_flight.count_time)
        assert (settled.duplicate, settled.count_time) == (False, in_flight.count_time)
        again = await client.resolve(house.ws, operation_id=old.operation_id)
        assert (again.duplicate, again.count_time) == (True, old.count_time)
        now = await used(client, house.ws)
        assert (now["user_hour_messages"], now["workspace_day_tokens"]) == (7, 650)


async def test_c8_while_counters_come_back_no_more_passes_than_the_limit_and_the_allowance(
    house: House, own_redis: EmbeddedRedis
) -> None:
    limit = 40
    token = await house.limit(user_hour_messages=limit)
    async with house.router(rebuild_wait_ms=0) as one, house.router(rebuild_wait_ms=0) as two:
        for client in (one, two):
            await house.record(await counted(client, house.ws, min_revision_token=token))
        passed = house.recorded + (await _spent(house, [one, two], 10))[0]
        for _ in range(3):
            await _flush(own_redis)
            passed += (await _spent(house, [one, two], 10))[0]
        is_reached = False
        while not is_reached:
            more, is_reached = await _spent(house, [one, two], 10)
            passed += more
        # Nothing was in flight at a loss; who was away for a while may have counted in its share.
        assert limit - 1 <= passed <= limit + max(limit // 10, 2)


async def _spent(house: House, clients: list[Client], count: int) -> tuple[int, bool]:
    """How many of so many attempts passed, each recorded at once; and whether the last one was over the limit."""
    passed, is_reached = 0, False
    for number in range(count):
        try:
            answer = await clients[number % len(clients)].resolve(house.ws, operation_id=uuid.uuid4().hex)
        except grpc.aio.AioRpcError as error:
            is_reached = error.code() is Code.RESOURCE_EXHAUSTED
            continue
        is_reached = False
        await house.record(answer)
        passed += 1
    return passed, is_reached


async def _flush(server: EmbeddedRedis) -> None:
    client = Redis(host=server.host, port=server.port, password=server.password)
    await client.flushall()
    await client.aclose()


async def test_c8_a_redis_that_was_restarted_empty_counts_from_what_is_known(house: House, own_redis: EmbeddedRedis) -> None:
    token = await house.limit(user_hour_messages=1000)
    async with house.router(**PATIENT) as client:
        await house.record(await counted(client, house.ws, min_revision_token=token))
        known = house.recorded
        await own_redis.kill()
        await own_redis.start()
        answer = await counted(client, house.ws)
        assert answer.limits[0].used > known
        assert answer.count_time.ToDatetime(tzinfo=UTC) > datetime.now(UTC) - timedelta(minutes=1)


async def test_many_routers_that_find_the_same_loss_set_it_up_once(house: House) -> None:
    token = await house.limit(user_hour_messages=1000)
    async with AsyncExitStack() as stack:
        clients = [await stack.enter_async_context(house.router(**PATIENT)) for _ in range(3)]
        for client in clients:  # until each has heard the registry
            await answered(partial(client.check, house.ws, min_revision_token=token))
        answers = await asyncio.gather(*(client.resolve(house.ws, min_revision_token=token) for client in clients * 3))
        assert {answer.limits_source for answer in answers} == {COUNTED}
        assert sorted(answer.limits[0].used for answer in answers) == list(range(1, 10))
