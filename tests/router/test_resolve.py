"""Resolve: who may use what, where it lives, and what is said when that cannot be known."""

import asyncio
from typing import Any, cast

import grpc
import pytest

from tests.router.conftest import Client, Start, refused
from tests.router.fakes import FakeRegistry
from twofold.registry.v1 import agent_pb2, permission_pb2
from twofold.router.v1 import routing_pb2
from twofold_chassis.refusals import (
    Draining,
    HistoryChanged,
    InvalidToken,
    Overloaded,
    Reason,
    StoreUnavailable,
    Unavailable,
)
from twofold_chassis.settings import RedisSettings
from twofold_cli.embedded.redis import EmbeddedRedis

Code = grpc.StatusCode
PROCESS, CACHE, REGISTRY = (
    routing_pb2.ROUTE_SOURCE_PROCESS,
    routing_pb2.ROUTE_SOURCE_CACHE,
    routing_pb2.ROUTE_SOURCE_REGISTRY,
)


async def test_who_has_a_grant_is_told_where_the_agent_lives(client: Client, registry: FakeRegistry, ws: str) -> None:
    answer = await client.resolve(ws)
    assert answer.url == registry.agents[ws, "agent"].url
    assert answer.basis == routing_pb2.PERMISSION_BASIS_GRANT
    assert (answer.source, answer.permission_source) == (REGISTRY, REGISTRY)
    assert answer.revision_token == registry.token
    assert answer.generation == 1
    assert not answer.target_name


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
    registry.declare(ws, "agent", agent_pb2.AGENT_STATE_PAUSED)
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
    registry.remove(ws, "agent")
    with refused(Code.NOT_FOUND, "REASON_AGENT_UNKNOWN"):
        await client.resolve(ws, user_id="boss")
    with refused(Code.PERMISSION_DENIED, "REASON_NOT_PERMITTED"):
        await client.resolve(ws, user_id="ada")


@pytest.mark.parametrize("state", [agent_pb2.AGENT_STATE_DRAFT, agent_pb2.AGENT_STATE_PAUSED])
async def test_an_agent_that_is_not_published_takes_no_messages(
    client: Client, registry: FakeRegistry, ws: str, state: agent_pb2.AgentState.ValueType
) -> None:
    registry.declare(ws, "agent", state)
    with refused(Code.FAILED_PRECONDITION, "REASON_AGENT_NOT_PUBLISHED"):
        await client.resolve(ws)


async def test_an_agent_that_is_gone_says_so_to_who_may_use_it(client: Client, registry: FakeRegistry, ws: str) -> None:
    registry.declare(ws, "agent", agent_pb2.AGENT_STATE_GONE)
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
    assert {(answer.url, answer.target_name) for answer in answers} == {("http://green", "green")}
    assert [answer.source for answer in answers] == [REGISTRY, PROCESS]


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
            await client.resolve(ws, min_revision_token=registry.token)


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


async def test_the_caller_is_known_to_the_registry(client: Client, registry: FakeRegistry, ws: str) -> None:
    await client.resolve(ws)
    assert {(rpc, actor, request_id) for rpc, _, actor, request_id in registry.calls.seen} == {
        ("Check", "tester", "request-1"),
        ("GetAgent", "tester", "request-1"),
        ("GetTerms", "tester", "request-1"),
    }


@pytest.mark.parametrize("field", ["workspace_id", "user_id", "agent_id"])
@pytest.mark.parametrize("value", ["", "a\0b", "a\nb", "x" * 256])
async def test_ids_that_are_none_are_refused_by_name(client: Client, ws: str, field: str, value: str) -> None:
    with refused(Code.INVALID_ARGUMENT, "REASON_INVALID_FIELD") as told:
        await client.resolve(ws, **cast(dict[str, Any], {field: value}))
    assert field in told.message


@pytest.mark.parametrize("rpc", ["Check", "GetAgent"])
async def test_a_registry_that_is_away_for_a_moment_is_asked_again(
    client: Client, registry: FakeRegistry, ws: str, rpc: str
) -> None:
    registry.calls.refuse(rpc, Draining("bye"), times=2)
    assert (await client.resolve(ws)).url
    assert len(registry.calls.of(rpc)) == 3


async def test_a_warm_answer_comes_from_this_process_and_says_how_old_it_is(
    client: Client, registry: FakeRegistry, ws: str
) -> None:
    await client.resolve(ws)
    await asyncio.sleep(0.05)
    answer = await client.resolve(ws)
    assert (answer.source, answer.permission_source) == (PROCESS, PROCESS)
    for age in (answer.route_age, answer.permission_age):
        assert 0.04 < age.ToMicroseconds() / 1e6 < 20
    assert 0 < answer.valid_for.ToMicroseconds() / 1e6 <= 30
    assert (len(registry.calls.of("Check")), len(registry.calls.of("GetAgent"))) == (1, 1)


async def test_a_router_that_knows_nothing_yet_finds_what_others_have_kept(
    start: Start, client: Client, registry: FakeRegistry, ws: str
) -> None:
    first = await client.resolve(ws)
    async with start() as other:
        found = await other.resolve(ws)
        assert (found.source, found.permission_source) == (CACHE, CACHE)
        assert (found.url, found.revision_token) == (first.url, first.revision_token)
        assert (await other.resolve(ws)).source == PROCESS
    assert (len(registry.calls.of("Check")), len(registry.calls.of("GetAgent"))) == (1, 1)


async def test_what_was_kept_is_not_answered_when_something_it_rests_on_has_changed(
    client: Client, registry: FakeRegistry, ws: str
) -> None:
    await client.resolve(ws)
    registry.move(ws, "agent", "http://moved")
    await registry.changes.applied()
    answer = await client.resolve(ws)
    assert (answer.url, answer.generation) == ("http://moved", 2)
    assert (answer.source, answer.permission_source) == (REGISTRY, PROCESS)  # no permission rests on an agent's URL
    registry.revoke(ws, "ada", "agent")
    await registry.changes.applied()
    with refused(Code.PERMISSION_DENIED, "REASON_NOT_PERMITTED"):
        await client.resolve(ws)
    registry.grant(ws, "ada", "agent")
    await registry.changes.applied()
    answer = await client.resolve(ws)
    assert (answer.source, answer.permission_source) == (PROCESS, REGISTRY)


@pytest.mark.parametrize(
    "reason",
    [
        permission_pb2.CHECK_REASON_USER_UNKNOWN,
        permission_pb2.CHECK_REASON_WORKSPACE_UNKNOWN,
    ],
)
async def test_a_change_of_user_or_workspace_is_one_of_their_permissions(
    client: Client, registry: FakeRegistry, ws: str, reason: permission_pb2.CheckReason.ValueType
) -> None:
    await client.resolve(ws)
    registry.grant(ws, "ada", "agent", reason)
    await registry.changes.applied()
    with refused(Code.PERMISSION_DENIED, "REASON_NOT_PERMITTED"):
        await client.resolve(ws)


async def test_what_happens_elsewhere_is_no_reason_to_ask_again(client: Client, registry: FakeRegistry, ws: str) -> None:
    first = await client.resolve(ws)
    registry.grant(ws, "bob", "agent")
    registry.publish(ws, "other", "http://other")
    registry.grant(ws + "-2", "ada", "agent")
    await registry.changes.applied()
    answer = await client.resolve(ws, min_revision_token=registry.token)
    assert (answer.source, answer.permission_source) == (PROCESS, PROCESS)
    assert answer.revision_token == first.revision_token


async def test_a_denial_is_kept_until_it_is_none(client: Client, registry: FakeRegistry, ws: str) -> None:
    for _ in range(2):
        with refused(Code.PERMISSION_DENIED, "REASON_NOT_PERMITTED"):
            await client.resolve(ws, user_id="bob")
    assert len(registry.calls.of("Check")) == 1
    registry.grant(ws, "bob", "agent")
    assert (await client.resolve(ws, user_id="bob", min_revision_token=registry.token)).url


async def test_a_grant_that_ends_by_itself_ends_in_the_copy_as_well(client: Client, registry: FakeRegistry, ws: str) -> None:
    for_s = 0.4
    registry.grant(ws, "bob", "agent", for_s=for_s)
    while not (await client.check(ws, user_id="bob")).allowed:  # over before it was asked for: the machine is busy
        for_s *= 2
        registry.grant(ws, "bob", "agent", for_s=for_s)
        await registry.changes.applied()
    asked = len(registry.calls.of("Check"))
    async with asyncio.timeout(20):
        with refused(Code.PERMISSION_DENIED, "REASON_NOT_PERMITTED"):
            while True:
                await client.resolve(ws, user_id="bob")
    assert len(registry.calls.of("Check")) == asked


async def test_who_asks_for_a_revision_is_not_given_an_older_copy(client: Client, registry: FakeRegistry, ws: str) -> None:
    await client.resolve(ws)
    registry.changes.hold_changes()
    registry.move(ws, "agent", "http://moved")
    registry.revoke(ws, "bob", "agent")
    assert (await client.resolve(ws)).url != "http://moved"  # for a lease: nobody has said that it heard of it
    answer = await client.resolve(ws, min_revision_token=registry.token)
    assert (answer.url, answer.source, answer.permission_source) == ("http://moved", REGISTRY, REGISTRY)
    assert answer.revision_token == registry.calls.of("Check")[-1].min_revision_token == registry.token


async def test_a_revision_of_another_history_is_said_to_be_that(client: Client, registry: FakeRegistry, ws: str) -> None:
    await client.resolve(ws)
    old = registry.changes.revision._replace(epoch=registry.changes.epoch - 1)
    with refused(Code.ABORTED, "REASON_HISTORY_CHANGED"):
        await client.resolve(ws, min_revision_token=old.token())


async def test_a_revision_that_is_none_yet_is_not_reached(client: Client, registry: FakeRegistry, ws: str) -> None:
    ahead = registry.changes.revision._replace(number=registry.changes.revision.number + 9)
    with refused(Code.UNAVAILABLE, "REASON_REVISION_NOT_REACHED"):
        await client.resolve(ws, min_revision_token=ahead.token())


async def test_what_changed_while_it_was_read_is_read_again(client: Client, registry: FakeRegistry, ws: str) -> None:
    registry.calls.gates["Check"] = gate = asyncio.Event()
    resolving = asyncio.create_task(client.resolve(ws))
    await registry.calls.came("Check")
    registry.revoke(ws, "ada", "agent")
    await registry.changes.applied()
    gate.set()
    with refused(Code.PERMISSION_DENIED, "REASON_NOT_PERMITTED"):
        await resolving
    assert len(registry.calls.of("Check")) == 2


async def test_many_cold_resolves_at_once_ask_once(client: Client, registry: FakeRegistry, ws: str) -> None:
    registry.calls.gates["GetAgent"] = gate = asyncio.Event()
    resolving = [asyncio.create_task(client.resolve(ws)) for _ in range(300)]
    await registry.calls.came("GetAgent")
    gate.set()
    answers = await asyncio.gather(*resolving)
    assert {answer.url for answer in answers} == {registry.agents[ws, "agent"].url}
    assert (len(registry.calls.of("Check")), len(registry.calls.of("GetAgent"))) == (1, 1)


async def test_the_first_caller_of_a_flight_may_leave_without_failing_the_others(
    client: Client, registry: FakeRegistry, ws: str
) -> None:
    registry.calls.gates["GetAgent"] = gate = asyncio.Event()
    first = asyncio.create_task(client.resolve(ws))
    await registry.calls.came("GetAgent")
    follower = asyncio.create_task(client.resolve(ws))
    await asyncio.sleep(0.05)
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
    with pytest.raises(grpc.aio.AioRpcError):
        await first
    await asyncio.sleep(0.1)
    gate.set()
    assert (await follower).url == registry.agents[ws, "agent"].url
    assert len(registry.calls.of("GetAgent")) == 1


async def test_who_asks_for_a_revision_does_not_join_a_flight_that_began_before_it(
    client: Client, registry: FakeRegistry, ws: str
) -> None:
    registry.calls.gates["GetAgent"] = gate = asyncio.Event()
    early = asyncio.create_task(client.resolve(ws))
    await registry.calls.came("GetAgent")
    registry.changes.hold_changes()
    registry.move(ws, "agent", "http://moved")
    late = asyncio.create_task(client.resolve(ws, min_revision_token=registry.token))
    await registry.calls.came("GetAgent", 2)
    gate.set()
    assert (await late).url == "http://moved"
    assert (await early).url != "http://moved"


async def test_no_more_than_so_many_questions_are_under_way(start: Start, registry: FakeRegistry, ws: str) -> None:
    registry.calls.gates["Check"] = gate = asyncio.Event()
    async with start(cold_reads_max=3, redis=RedisSettings(port=1)) as narrow:
        users = [asyncio.create_task(narrow.check(ws, user_id=f"user-{number}")) for number in range(3)]
        await registry.calls.came("Check", 3)
        with refused(Code.RESOURCE_EXHAUSTED, "REASON_OVERLOADED") as told:
            await narrow.check(ws, user_id="one more")
        assert b"RetryInfo" in told.details
        gate.set()
        assert [answer.allowed for answer in await asyncio.gather(*users)] == [False] * 3
        assert not (await narrow.check(ws, user_id="one more")).allowed


async def test_without_redis_what_this_process_knows_is_answered(start: Start, registry: FakeRegistry, ws: str) -> None:
    async with start(redis=RedisSettings(port=1)) as without:
        assert [(await without.resolve(ws)).source for _ in range(3)] == [REGISTRY, PROCESS, PROCESS]


async def test_a_redis_that_hangs_costs_its_budget_and_nothing_else(
    start: Start, own_redis: EmbeddedRedis, registry: FakeRegistry, ws: str
) -> None:
    redis = RedisSettings(host=own_redis.host, port=own_redis.port, password=own_redis.password, budget_ms=100)
    registry.grant(ws, "bob", "agent")
    async with start(redis=redis) as hindered:
        await hindered.resolve(ws)
        own_redis.pause()
        began = asyncio.get_running_loop().time()
        assert (await hindered.resolve(ws)).permission_source == PROCESS
        assert (await hindered.resolve(ws, user_id="bob")).permission_source == REGISTRY
        assert asyncio.get_running_loop().time() - began < 1.5  # a multiple of the budget: a bound on a busy machine
        own_redis.resume()


async def test_a_check_answers_with_a_denial_and_asks_for_no_route(client: Client, registry: FakeRegistry, ws: str) -> None:
    yes, no, again = await client.check(ws), await client.check(ws, user_id="bob"), await client.check(ws)
    assert (yes.allowed, yes.basis, yes.source) == (True, routing_pb2.PERMISSION_BASIS_GRANT, REGISTRY)
    assert (no.allowed, no.basis, no.source) == (False, routing_pb2.PERMISSION_BASIS_UNSPECIFIED, REGISTRY)
    assert (again.allowed, again.source, again.revision_token) == (True, PROCESS, registry.token)
    assert 0 < again.valid_for.ToMicroseconds() / 1e6 <= 30
    assert not registry.calls.of("GetAgent")


async def test_a_batch_answers_each_pair_as_alone(client: Client, registry: FakeRegistry, ws: str) -> None:
    registry.publish(ws, "paused", "http://paused")
    registry.declare(ws, "paused", agent_pb2.AGENT_STATE_PAUSED)
    registry.grant(ws, "ada", "paused")
    pairs = [("ada", "agent"), ("bob", "agent"), ("ada", "paused"), ("ada", "none"), ("ada", "agent")]
    first, *refusals, last = await client.resolve_all(ws, *pairs)
    assert first.answer.url == last.answer.url == registry.agents[ws, "agent"].url
    assert [Reason.Name(result.refusal.reason) for result in refusals] == [
        "REASON_NOT_PERMITTED",
        "REASON_AGENT_NOT_PUBLISHED",
        "REASON_NOT_PERMITTED",
    ]
    assert refusals[0].refusal.message == "user 'bob' may not use agent 'agent'"
    assert len(registry.calls.of("Check")) == 4


async def test_a_pair_that_cannot_be_known_fails_no_other_of_its_batch(
    client: Client, registry: FakeRegistry, ws: str
) -> None:
    await client.resolve(ws)
    registry.calls.refuse("Check", StoreUnavailable("not now", retry_after_s=0.5), times=4)
    known, unknown = await client.resolve_all(ws, ("ada", "agent"), ("bob", "agent"))
    assert known.answer.source == PROCESS
    assert unknown.refusal.reason == Reason.REASON_STORE_UNAVAILABLE
    assert unknown.refusal.retry_delay.ToMilliseconds() > 0


async def test_a_batch_of_500_asks_a_few_at_a_time(client: Client, registry: FakeRegistry, ws: str) -> None:
    pairs = [(f"user-{number}", "agent") for number in range(500)]
    results = await client.resolve_all(ws, *pairs)
    assert {result.refusal.reason for result in results} == {Reason.REASON_NOT_PERMITTED}  # none was too much
    with refused(Code.INVALID_ARGUMENT, "REASON_INVALID_FIELD"):
        await client.resolve_all(ws, *pairs, ("one", "more"))


@pytest.mark.parametrize("token", [b"nonsense", b"x" * 3073])
async def test_a_token_that_is_none_is_refused(client: Client, registry: FakeRegistry, ws: str, token: bytes) -> None:
    with refused(Code.INVALID_ARGUMENT, "REASON_INVALID_TOKEN"):
        await client.resolve(ws, min_revision_token=token)
    assert not registry.calls.seen
