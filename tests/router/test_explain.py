"""Explain: what people are told of a decision, also where nothing can be decided."""

import asyncio
from typing import Any

import grpc
import pytest
from hypothesis import given
from hypothesis import strategies as some

from tests.router.conftest import Client, Start, answered, refused
from tests.router.fakes import FakeRegistry, registry_server
from tests.waiting import until
from twofold.registry.v1 import agent_pb2, permission_pb2
from twofold.router.v1 import limit_pb2, routing_pb2
from twofold_chassis.refusals import Overloaded, Reason, StoreUnavailable
from twofold_chassis.revisions import Revision
from twofold_chassis.settings import RedisSettings
from twofold_router.explaining import why_not
from twofold_router.knowledge import Knowledge, Place, Stamp

Code = grpc.StatusCode
PROCESS, CACHE, REGISTRY = (
    routing_pb2.ROUTE_SOURCE_PROCESS,
    routing_pb2.ROUTE_SOURCE_CACHE,
    routing_pb2.ROUTE_SOURCE_REGISTRY,
)
DIALED, DIAL_FAILED = routing_pb2.TARGET_OUTCOME_DIALED, routing_pb2.TARGET_OUTCOME_DIAL_FAILED


def facts_of(told: routing_pb2.ExplainResponse) -> dict[str, routing_pb2.ExplainedFact]:
    return {fact.name: fact for fact in told.facts}


def outcome(what: routing_pb2.TargetOutcome.ValueType, *, target_name: str = "", generation: int = 1) -> routing_pb2.Outcome:
    return routing_pb2.Outcome(agent_id="agent", target_name=target_name, generation=generation, outcome=what)


async def test_of_what_nobody_has_asked_for_it_says_that_there_is_no_copy_and_what_the_registry_says(
    client: Client, registry: FakeRegistry, ws: str
) -> None:
    told = await client.explain(ws)
    assert [(fact.name, len(fact.copies)) for fact in told.facts] == [("permission", 0), ("route", 0), ("terms", 0)]
    assert told.decision.answer.url == registry.agents[ws, "agent"].url
    assert (told.decision.answer.source, told.decision.answer.permission_source) == (REGISTRY, REGISTRY)
    assert told.summary.startswith(
        f"Allowed for user 'ada', agent 'agent', by a grant: messages go to {told.decision.answer.url}"
    )


async def test_it_says_which_copies_there_are_and_that_they_may_be_answered_from(
    client: Client, registry: FakeRegistry, ws: str
) -> None:
    await client.resolve(ws)

    async def everywhere() -> bool:
        return all(len(fact.copies) == 2 for fact in (await client.explain(ws)).facts)

    await until(everywhere)  # Redis is given its copy behind the answer
    told = await client.explain(ws)
    facts = facts_of(told)
    for fact in facts.values():
        assert [one.source for one in fact.copies] == [PROCESS, CACHE]
        for one in fact.copies:
            assert (one.usable, one.why_not, one.epoch) == (True, "", registry.changes.epoch)
            assert fact.floor <= one.revision <= registry.changes.revision.number
        assert max([told.lease.base_revision, *(thing.revision for thing in fact.rests_on)]) == fact.floor
    assert facts["permission"].copies[0].value == "a grant"
    assert facts["route"].copies[0].value == f"published, generation 1: {registry.agents[ws, 'agent'].url}"
    assert {(thing.kind, *thing.ids) for thing in facts["permission"].rests_on} == {
        ("permission", ws, "ada", "agent"),
        ("user", ws, "ada"),
        ("agent", ws, "agent"),
        ("workspace", ws),
    }
    assert told.decision.answer.source == PROCESS


async def test_it_says_why_a_copy_may_not_be_answered_from(client: Client, registry: FakeRegistry, ws: str) -> None:
    await client.resolve(ws)
    registry.revoke(ws, "ada", "agent")
    await registry.changes.applied()
    told = await client.explain(ws)
    fact = facts_of(told)["permission"]
    revision = registry.changes.revision.number
    assert fact.floor == revision
    assert not fact.copies[0].usable
    assert f"these have changed since: permission at {revision}" in fact.copies[0].why_not
    assert facts_of(told)["route"].copies[0].usable
    assert told.decision.refusal.reason == Reason.REASON_NOT_PERMITTED
    assert told.summary.startswith("Refused for user 'ada', agent 'agent': REASON_NOT_PERMITTED")
    assert [target.url for target in told.targets] == [registry.agents[ws, "agent"].url]  # operators may know


async def test_it_says_that_a_copy_does_not_hold_the_token(client: Client, registry: FakeRegistry, ws: str) -> None:
    await client.resolve(ws)
    ahead = registry.changes.revision._replace(number=registry.changes.revision.number + 9)
    told = await client.explain(ws, min_revision_token=ahead.token())
    assert "does not hold the revision" in facts_of(told)["permission"].copies[0].why_not
    assert told.decision.refusal.reason == Reason.REASON_REVISION_NOT_REACHED
    old = registry.changes.revision._replace(epoch=registry.changes.epoch - 1)
    told = await client.explain(ws, min_revision_token=old.token())
    assert told.decision.refusal.reason == Reason.REASON_HISTORY_CHANGED


async def test_what_resolve_refuses_with_stands_in_the_answer(client: Client, registry: FakeRegistry, ws: str) -> None:
    registry.grant(ws, "boss", "none", permission_pb2.CHECK_REASON_AGENT_UNKNOWN)
    registry.publish(ws, "paused", "http://paused")
    registry.declare(ws, "paused", agent_pb2.AGENT_STATE_PAUSED)
    registry.publish(ws, "gone", "http://paused")
    registry.declare(ws, "gone", agent_pb2.AGENT_STATE_GONE)
    registry.publish(ws, "abroad", "http://169.254.169.254")
    for agent_id in ("paused", "gone", "abroad"):
        registry.grant(ws, "ada", agent_id)
    for user_id, agent_id, reason in (
        ("bob", "agent", Reason.REASON_NOT_PERMITTED),
        ("boss", "none", Reason.REASON_AGENT_UNKNOWN),
        ("ada", "paused", Reason.REASON_AGENT_NOT_PUBLISHED),
        ("ada", "gone", Reason.REASON_AGENT_GONE),
        ("ada", "abroad", Reason.REASON_URL_FORBIDDEN),
    ):
        told = await client.explain(ws, user_id=user_id, agent_id=agent_id)
        assert told.decision.refusal.reason == reason
        assert Reason.Name(reason) in told.summary
    (gone,) = (await client.explain(ws, agent_id="gone")).targets
    assert (gone.state, gone.takes_messages) == (routing_pb2.TARGET_STATE_GONE, False)
    (abroad,) = (await client.explain(ws, agent_id="abroad")).targets
    assert not abroad.takes_messages
    assert "its URL is not allowed" in abroad.why


@pytest.mark.parametrize(
    ("refusal", "reason"),
    [
        (Overloaded("busy", retry_after_s=0.5), Reason.REASON_OVERLOADED),
        (StoreUnavailable("no Postgres", retry_after_s=0.5), Reason.REASON_STORE_UNAVAILABLE),
        (ValueError("a defect"), Reason.REASON_PEER_UNAVAILABLE),
    ],
)
async def test_a_registry_that_cannot_answer_is_told_of_and_fails_nothing(
    client: Client, registry: FakeRegistry, ws: str, refusal: Any, reason: Any
) -> None:
    registry.calls.refuse("Check", refusal, times=9)
    told = await client.explain(ws)
    assert told.decision.refusal.reason == reason
    assert told.decision.refusal.retry_delay.ToMilliseconds() > 0
    assert told.lease.holds


async def test_a_registry_that_hangs_leaves_time_to_tell_so(client: Client, registry: FakeRegistry, ws: str) -> None:
    registry.calls.gates["Check"] = gate = asyncio.Event()
    request = routing_pb2.ExplainRequest(workspace_id=ws, user_id="ada", agent_id="agent")
    told = await client._routing.Explain(request, timeout=2)
    assert told.decision.refusal.reason == Reason.REASON_PEER_UNAVAILABLE
    gate.set()


async def test_without_the_registry_for_longer_than_a_lease_it_says_so_in_words_and_fields(start: Start, ws: str) -> None:
    registry = FakeRegistry()  # type: ignore[abstract]
    registry.publish(ws, "agent", "http://a")
    registry.grant(ws, "ada", "agent")
    async with registry_server(registry) as target:
        stopped = start(registry_target=target, lease_ms=600, ping_ms=50, silence_ms=300)
        router = await stopped.__aenter__()
        await answered(lambda: router.resolve(ws))
        told = await router.explain(ws)
        assert (told.lease.length.ToMilliseconds(), told.lease.stream_open) == (600, True)
    try:

        async def is_over() -> bool:
            return not (await router.explain(ws)).lease.holds

        await until(is_over)
        with refused(Code.UNAVAILABLE, "REASON_PEER_UNAVAILABLE") as resolved:
            await router.resolve(ws)
        assert b"RetryInfo" in resolved.details
        told = await router.explain(ws)
    finally:
        await stopped.__aexit__(None, None, None)
    assert told.decision.refusal.reason == Reason.REASON_PEER_UNAVAILABLE
    assert told.decision.refusal.retry_delay.ToMilliseconds() > 0
    assert told.summary.startswith("Nobody can tell for user 'ada', agent 'agent': REASON_PEER_UNAVAILABLE")
    assert "Ask again in" in told.summary
    lease = told.lease
    assert (lease.holds, lease.stream_open, lease.left.ToMilliseconds()) == (False, False, 0)
    assert lease.ping_age.ToMilliseconds() > lease.length.ToMilliseconds()
    assert lease.registered_left.ToMilliseconds() > 0
    assert "the registry does not answer" in lease.stream_trouble
    assert lease.words.startswith("Copies may not be answered from: the registry's last word was asked for")
    for fact in told.facts:
        assert [(one.source, one.usable) for one in fact.copies][:1] == [(PROCESS, False)]
        assert "too old" in fact.copies[0].why_not
    assert [target.url for target in told.targets] == ["http://a"]


async def test_before_the_registrys_first_word_it_says_that(
    start: Start, client: Client, registry: FakeRegistry, ws: str
) -> None:
    registry.changes.hold_checkpoints()
    async with start() as deaf:
        told = await deaf.explain(ws)
        assert "has given no word yet" in told.lease.words
        assert not told.lease.HasField("ping_age")
        assert not told.lease.HasField("registered_left")
        assert told.decision.refusal.reason == Reason.REASON_PEER_UNAVAILABLE


async def test_without_redis_it_says_so_and_why(start: Start, client: Client, ws: str) -> None:
    assert ((await client.explain(ws)).redis.trouble, (await client.explain(ws)).redis.believed_gone) == ("", False)
    async with start(redis=RedisSettings(port=1)) as without:
        await without.resolve(ws)
        told = await without.explain(ws)
        assert told.redis.trouble
        assert told.decision.answer.source == PROCESS
        assert [[one.source for one in fact.copies] for fact in told.facts] == [[PROCESS]] * 3

        async def is_believed_gone() -> bool:
            return (await without.explain(ws)).redis.believed_gone

        await until(is_believed_gone)


async def test_without_redis_limits_are_not_told_and_refuse_nothing(
    start: Start, client: Client, registry: FakeRegistry, ws: str
) -> None:
    registry.limit(ws, user_hour_messages=1)
    async with start(redis=RedisSettings(port=1)) as without:
        told = await without.explain(ws)
        assert told.decision.answer.url
        assert told.decision.answer.limits_source == limit_pb2.LIMITS_SOURCE_NONE
        assert "How the limits stand cannot be told" in told.summary


async def test_each_target_is_told_of_with_what_was_heard_and_seen_of_it(
    client: Client, registry: FakeRegistry, ws: str
) -> None:
    agent = registry.agents[ws, "agent"]
    for name, weight in (("a", 500), ("b", 500), ("off", 0), ("cold", 1), ("leaving", 1)):
        agent.targets.add(name=name, url=f"http://{name}.acme.svc.cluster.local", weight=weight)
    for name, state in (("cold", agent_pb2.OBSERVED_STATE_COLD), ("leaving", agent_pb2.OBSERVED_STATE_DRAINING)):
        agent.observations.add(target=name, state=state, generation=1, message=f"{name} it is").observe_time.GetCurrentTime()
    registry.move(ws, "agent", "http://moved")
    chosen = (await client.resolve(ws)).target_name
    assert chosen in ("a", "b")
    await client.report(ws, outcome(DIAL_FAILED, target_name=chosen, generation=2))
    other = (await client.resolve(ws)).target_name
    told = await client.explain(ws)
    targets = {target.name: target for target in told.targets}
    assert next(iter(targets)) == chosen
    assert list(targets)[-1] == "off"
    assert told.generation == 2
    assert [name for name, target in targets.items() if target.chosen] == [other]
    failing = targets[chosen]
    assert (failing.state, failing.takes_messages) == (routing_pb2.TARGET_STATE_FAILING, False)
    assert failing.dial_failures == 1
    assert failing.rest_left.ToMilliseconds() > 0
    assert "could not be dialled" in failing.why
    assert (targets["off"].takes_messages, targets["off"].why) == (False, "its weight is 0")
    assert (targets["cold"].state, targets["cold"].seen_message) == (routing_pb2.TARGET_STATE_COLD, "cold it is")
    assert targets["leaving"].seen_state == routing_pb2.TARGET_STATE_DRAINING
    assert not targets["leaving"].takes_messages


async def test_it_counts_nothing_and_tries_no_target(client: Client, registry: FakeRegistry, ws: str) -> None:
    registry.limit(ws, user_hour_messages=2)
    await client.resolve(ws, min_revision_token=registry.token)
    for _ in range(5):
        told = await client.explain(ws)
        assert told.decision.HasField("answer")
        assert told.decision.answer.limits[0].used == 1
    await client.resolve(ws)
    told = await client.explain(ws)
    assert told.decision.answer.limits[0].used == 2
    assert "limits are reached: user_hour_messages (2 of 2 used)" in told.summary
    with refused(Code.RESOURCE_EXHAUSTED, "REASON_LIMIT_REACHED"):
        await client.resolve(ws)


async def test_what_it_finds_ready_to_be_tried_is_still_to_be_tried(client: Client, registry: FakeRegistry, ws: str) -> None:
    await client.report(ws, outcome(DIAL_FAILED))
    with refused(Code.UNAVAILABLE, "REASON_AGENT_NOT_READY") as told:
        await client.resolve(ws)
    assert b"RetryInfo" in told.details

    async def may_be_tried() -> bool:
        return (await client.explain(ws)).targets[0].takes_messages

    await until(may_be_tried)
    for _ in range(3):
        assert (await client.explain(ws)).decision.answer.state == routing_pb2.TARGET_STATE_FAILING
    assert (await client.resolve(ws)).state == routing_pb2.TARGET_STATE_FAILING
    with refused(Code.UNAVAILABLE, "REASON_AGENT_NOT_READY"):
        await client.resolve(ws)
    await client.report(ws, outcome(DIALED))
    assert (await client.resolve(ws)).state == routing_pb2.TARGET_STATE_READY


async def test_outcomes_of_what_does_not_exist_are_taken_and_reveal_nothing(
    client: Client, registry: FakeRegistry, ws: str
) -> None:
    nowhere = routing_pb2.Outcome(agent_id="none", generation=9, outcome=DIAL_FAILED)
    await client.report(ws, *[nowhere] * 500)
    await client.report("no such workspace", nowhere)
    with refused(Code.PERMISSION_DENIED, "REASON_NOT_PERMITTED"):
        await client.resolve(ws, agent_id="none")
    assert {rpc for rpc, *_ in registry.calls.seen} <= {"Check", "GetAgent", "GetTerms"}
    with refused(Code.INVALID_ARGUMENT, "REASON_INVALID_FIELD"):
        await client.report(ws, *[nowhere] * 501)


PAIR = (("permission", "ws", "ada", "a"), ("workspace", "ws"))


@given(
    stamp=some.builds(Stamp, some.integers(6, 8), some.integers(0, 12)),
    least=some.none() | some.builds(Revision, some.integers(6, 8), some.integers(0, 14)),
    changed=some.lists(some.sampled_from(PAIR), max_size=3),
    now=some.sampled_from([100.0, 100.5, 101.0, 200.0]),
    registered_s=some.sampled_from([0.2, 60.0]),
)
def test_there_is_a_reason_exactly_when_a_copy_may_not_be_answered_from(
    stamp: Stamp, least: Revision | None, changed: list[tuple[str, ...]], now: float, registered_s: float
) -> None:
    knowledge = Knowledge(lease_s=1.0)
    knowledge.started(Place(7, 5, 1), resumed=False)
    for revision, thing in enumerate(changed, start=6):
        knowledge.changed(revision, revision, [thing])
    knowledge.pinged(1, 100.0)
    knowledge.checked(1, 7, 5 + len(changed), 0.0, registered_s, 1)
    may = knowledge.may_use(stamp, PAIR, least, now)
    assert (why_not(knowledge, stamp, PAIR, least, now) == "") is may
