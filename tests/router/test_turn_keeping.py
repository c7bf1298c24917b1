"""Run, when it is interrupted or repeated: kept once, counted once, and the agent is not asked twice."""

import asyncio

import grpc
import pytest
from aiohttp import web

from tests.router.conftest import Client, Start, refused
from tests.router.fakes import FakeMemory, FakeRegistry
from tests.router.scripted import Heard, ScriptedAgents, delta, finish, usage
from twofold.memory.v1 import conversation_pb2, message_pb2
from twofold_chassis.refusals import Busy, Draining, Overloaded, Refusal, StoreUnavailable, Unavailable

Code = grpc.StatusCode


async def until_recorded(registry: FakeRegistry, count: int = 1) -> None:
    await registry.calls.came("RecordUsage", count)


async def test_a_retry_replays_the_kept_answer_and_does_not_ask_the_agent(
    client: Client, registry: FakeRegistry, memory: FakeMemory, agents: ScriptedAgents, ws: str
) -> None:
    async def lengthy(heard: Heard) -> web.StreamResponse:
        return await heard.say(delta("Once "), delta("only."), finish("length"), usage(5, 2))

    agents.agent("agent", lengthy)
    first = await client.turn(ws, thread_id="t", operation_id="op")
    again = await client.turn(ws, thread_id="t", operation_id="op")
    assert again.started.replayed
    assert (again.started.context_messages, again.started.context_preferences) == (0, 0)
    assert again.deltas == ["Once only."]
    for field in (
        "finish_reason",
        "first_seq",
        "last_seq",
        "durability",
        "thread_token",
        "input_tokens",
        "output_tokens",
        "usage_recorded",
    ):
        assert getattr(again.completed, field) == getattr(first.completed, field), field
    assert len(agents.heard) == 1
    assert len(memory.messages[ws, "t"]) == 2


async def test_a_retry_records_the_very_same_usage_event(client: Client, registry: FakeRegistry, ws: str) -> None:
    for _ in range(3):
        assert (await client.turn(ws, thread_id="t", operation_id="op")).completed.usage_recorded
    events = [request.events[0] for request in registry.calls.of("RecordUsage")]
    assert len(events) == 3
    assert events[0] == events[1] == events[2]


async def test_a_turn_whose_usage_was_not_recorded_succeeds_and_says_so_and_its_retry_records_it(
    client: Client, registry: FakeRegistry, ws: str
) -> None:
    registry.calls.refuse("RecordUsage", Unavailable("not now"), times=1000)
    first = await client.turn(ws, thread_id="t", operation_id="op")
    assert (first.text, first.completed.usage_recorded) == ("Hello, you.", False)
    registry.calls.refusals.clear()
    assert (await client.turn(ws, thread_id="t", operation_id="op")).completed.usage_recorded
    assert list(registry.events) == [(ws, "op/0")]


async def test_an_operation_that_is_repeated_without_a_thread_is_answered_and_counted_once(
    client: Client, registry: FakeRegistry, agents: ScriptedAgents, ws: str
) -> None:
    for _ in range(2):
        turn = await client.turn(ws, operation_id="op")
        assert (turn.text, turn.completed.usage_recorded) == ("Hello, you.", True)
    assert len(agents.heard) == 1
    assert list(registry.events) == [(ws, "op/0")]


async def test_an_operation_id_that_was_used_for_another_message_is_refused(
    client: Client, registry: FakeRegistry, agents: ScriptedAgents, ws: str
) -> None:
    await client.turn(ws, "one", thread_id="t", operation_id="op")
    registry.publish(ws, "other", agents.agent("other"))
    registry.grant(ws, "ada", "other")
    for other in ({"message": "two"}, {"message": "one", "agent_id": "other"}):
        with refused(Code.ALREADY_EXISTS, "REASON_REQUEST_REUSED"):
            await client.turn(ws, thread_id="t", operation_id="op", **other)
    assert len(agents.heard) == 1
    assert len(registry.calls.of("RecordUsage")) == 1


async def test_a_turn_id_that_is_of_no_exchange_is_refused(client: Client, memory: FakeMemory, ws: str) -> None:
    memory.messages[ws, "t"] = [message_pb2.Message(role=message_pb2.ROLE_ASSISTANT, content="you", turn_id="op")]
    memory.usages[ws, "t", "op"] = conversation_pb2.TurnUsage()
    with refused(Code.ALREADY_EXISTS, "REASON_REQUEST_REUSED"):
        await client.turn(ws, thread_id="t", operation_id="op")


async def test_a_replay_needs_permission_like_any_turn(client: Client, registry: FakeRegistry, ws: str) -> None:
    await client.turn(ws, thread_id="t", operation_id="op")
    registry.revoke(ws, "ada", "agent")
    await registry.changes.applied()
    with refused(Code.PERMISSION_DENIED, "REASON_NOT_PERMITTED"):
        await client.turn(ws, thread_id="t", operation_id="op")


async def test_an_answered_turn_is_kept_and_counted_though_its_caller_has_gone(
    client: Client, registry: FakeRegistry, memory: FakeMemory, agents: ScriptedAgents, ws: str
) -> None:
    memory.calls.gates["CommitTurn"] = gate = asyncio.Event()
    running = client.run(ws, thread_id="t", operation_id="op")
    events, text = aiter(running), ""
    while text != "Hello, you.":
        text += (await anext(events)).delta.text
    await memory.calls.came("CommitTurn")
    running.cancel()
    await asyncio.sleep(0.1)
    gate.set()
    await until_recorded(registry)
    assert [message.content for message in memory.messages[ws, "t"]] == ["you", "Hello, you."]
    assert (await client.turn(ws, thread_id="t", operation_id="op")).text == "Hello, you."
    assert len(agents.heard) == 1


async def test_a_retry_waits_for_a_first_call_that_is_still_being_kept(
    client: Client, memory: FakeMemory, agents: ScriptedAgents, ws: str
) -> None:
    memory.calls.gates["CommitTurn"] = gate = asyncio.Event()
    first = asyncio.create_task(client.turn(ws, thread_id="t", operation_id="op"))
    await memory.calls.came("CommitTurn")
    first.cancel()
    retry = client.run(ws, thread_id="t", operation_id="op")
    events = aiter(retry)
    assert (await anext(events)).started.operation_id == "op"  # it has joined what is being kept
    gate.set()
    told = [event async for event in events]
    assert (told[0].delta.text, told[-1].completed.last_seq) == ("Hello, you.", 2)
    assert len(agents.heard) == 1


async def test_the_callers_deadline_does_not_bound_the_keeping(
    client: Client, registry: FakeRegistry, memory: FakeMemory, ws: str
) -> None:
    memory.calls.gates["CommitTurn"] = gate = asyncio.Event()
    with pytest.raises(grpc.aio.AioRpcError):
        [event async for event in client.run(ws, thread_id="t", timeout=0.5)]
    await asyncio.sleep(0.3)
    gate.set()
    await until_recorded(registry)
    assert len(memory.calls.of("CommitTurn")) == 1
    assert len(memory.messages[ws, "t"]) == 2


async def test_a_router_that_ends_keeps_what_was_answered_first(
    start: Start, registry: FakeRegistry, memory: FakeMemory, ws: str
) -> None:
    memory.calls.gates["CommitTurn"] = gate = asyncio.Event()
    async with start(drain_s=0.1) as ending:
        running = asyncio.create_task(ending.turn(ws, thread_id="t"))
        await memory.calls.came("CommitTurn")
        asyncio.get_running_loop().call_later(0.6, gate.set)
    await asyncio.gather(running, return_exceptions=True)
    assert [message.status for message in memory.messages[ws, "t"]] == [0, 0]
    assert len(registry.events) == 1


async def test_a_memory_that_is_away_for_a_moment_does_not_lose_an_answered_turn(
    client: Client, memory: FakeMemory, agents: ScriptedAgents, ws: str
) -> None:
    memory.calls.refuse("CommitTurn", StoreUnavailable("restarting"), times=2)
    turn = await client.turn(ws, thread_id="t", operation_id="op")
    assert turn.completed.last_seq == 2
    requests = memory.calls.of("CommitTurn")
    assert len(requests) == 3
    assert requests[0] == requests[2]
    assert len(agents.heard) == 1


async def test_a_memory_that_keeps_but_answers_too_late_leaves_the_outcome_open_and_a_retry_tells(
    start: Start, registry: FakeRegistry, memory: FakeMemory, agents: ScriptedAgents, ws: str
) -> None:
    memory.calls.late["CommitTurn"] = late = asyncio.Event()
    async with start(keep_s=0.8) as hurried:
        with refused(Code.UNAVAILABLE, "REASON_PEER_UNAVAILABLE") as told:
            await hurried.turn(ws, thread_id="t", operation_id="op")
        assert told.metadata == {"peer": "memory", "outcome": "UNKNOWN"}
        assert b"RetryInfo" in told.details
        late.set()
        again = await hurried.turn(ws, thread_id="t", operation_id="op")
    assert (again.started.replayed, again.text, again.completed.usage_recorded) == (True, "Hello, you.", True)
    assert len(agents.heard) == 1
    assert list(registry.events) == [(ws, "op/0")]


async def test_one_answer_that_does_not_come_leaves_time_to_ask_again_and_to_count(
    start: Start, registry: FakeRegistry, memory: FakeMemory, ws: str
) -> None:
    memory.calls.late["CommitTurn"] = asyncio.Event()

    async def answer_from_the_second_time_on() -> None:
        await memory.calls.came("CommitTurn", 2)
        memory.calls.late["CommitTurn"].set()

    answering = asyncio.create_task(answer_from_the_second_time_on())
    async with start(keep_s=3.0) as hurried:
        turn = await hurried.turn(ws, thread_id="t", operation_id="op")
    await answering
    assert (turn.completed.last_seq, turn.completed.usage_recorded) == (2, True)
    assert list(registry.events) == [(ws, "op/0")]


@pytest.mark.parametrize(
    "refusal", [Busy("the row is held"), Overloaded("too much")], ids=lambda refusal: type(refusal).__name__
)
async def test_a_memory_that_is_busy_for_a_moment_does_not_lose_an_answered_turn(
    client: Client, memory: FakeMemory, ws: str, refusal: Refusal
) -> None:
    memory.calls.refuse("CommitTurn", refusal)
    assert (await client.turn(ws, thread_id="t")).completed.last_seq == 2


@pytest.mark.parametrize(
    ("refusals", "reason", "outcome"),
    [
        ([StoreUnavailable("no", outcome="NOT_STORED")], "REASON_STORE_UNAVAILABLE", "NOT_STORED"),
        ([Busy("held"), Draining("bye")], "REASON_DRAINING", "NOT_STORED"),
        ([Draining("cut off", outcome="UNKNOWN"), Draining("bye")], "REASON_DRAINING", "UNKNOWN"),
        (
            [StoreUnavailable("lost", outcome="UNKNOWN"), StoreUnavailable("no", outcome="NOT_STORED")],
            "REASON_STORE_UNAVAILABLE",
            "UNKNOWN",
        ),
    ],
)
async def test_an_answer_that_cannot_be_kept_says_whether_it_may_have_been(
    start: Start, memory: FakeMemory, ws: str, refusals: list[Refusal], reason: str, outcome: str
) -> None:
    for rpc in ("CommitTurn", "Invoked"):  # nor does the journal take it
        memory.calls.refusals[rpc] = [*refusals, *refusals[-1:] * 4]
    async with start(keep_s=2.0) as hurried:
        with refused(Code.UNAVAILABLE, reason) as told:
            await hurried.turn(ws, thread_id="t")
    assert told.metadata["outcome"] == outcome


async def test_an_operation_that_is_on_its_way_is_joined_by_the_same_call_and_refused_to_another(
    client: Client, memory: FakeMemory, agents: ScriptedAgents, ws: str
) -> None:
    told = asyncio.Event()

    async def waiting(heard: Heard) -> web.StreamResponse:
        await told.wait()
        return await heard.say(delta("once"), finish())

    agents.agent("agent", waiting)
    first = asyncio.create_task(client.turn(ws, thread_id="t", operation_id="op"))
    await memory.calls.came("BeginTurn")
    second = asyncio.create_task(client.turn(ws, thread_id="t", operation_id="op"))
    with refused(Code.ALREADY_EXISTS, "REASON_REQUEST_REUSED"):
        await client.turn(ws, "other", thread_id="t", operation_id="op")
    told.set()
    assert [(await turn).text for turn in (first, second)] == ["once", "once"]
    assert (await client.turn(ws, thread_id="t", operation_id="op")).started.replayed
    assert (len(agents.heard), len(memory.calls.of("CommitTurn"))) == (1, 1)


async def test_operations_that_are_others_do_not_wait_for_each_other(
    client: Client, registry: FakeRegistry, agents: ScriptedAgents, ws: str
) -> None:
    registry.grant(ws, "bob", "agent")
    four = asyncio.Barrier(4)

    async def together(heard: Heard) -> web.StreamResponse:
        await four.wait()
        return await heard.say(delta("x"), finish())

    agents.agent("agent", together)
    async with asyncio.timeout(20):
        await asyncio.gather(
            client.turn(ws, thread_id="t", operation_id="op"),
            client.turn(ws, thread_id="t-2", operation_id="op-2"),
            client.turn(ws, operation_id="op-3"),
            client.turn(ws, operation_id="op-4", user_id="bob"),
        )


async def test_a_turn_whose_agent_was_not_reached_is_gone_on_with_under_the_same_operation(
    client: Client, registry: FakeRegistry, memory: FakeMemory, agents: ScriptedAgents, ws: str
) -> None:
    registry.move(ws, "agent", "http://127.0.0.1:1")
    with refused(Code.UNAVAILABLE, "REASON_AGENT_UNREACHABLE"):
        await client.turn(ws, thread_id="t", operation_id="op", min_revision_token=registry.token)
    registry.move(ws, "agent", agents.agent("agent"))
    turn = await client.turn(ws, thread_id="t", operation_id="op", min_revision_token=registry.token)
    assert (turn.text, turn.started.replayed) == ("Hello, you.", False)
    assert [message.content for message in memory.messages[ws, "t"]] == ["you", "Hello, you."]


@pytest.mark.parametrize("rpc", ["BeginTurn", "Invoking", "CommitTurn", "RecordUsage"])
async def test_a_peer_that_is_away_for_a_moment_is_asked_again(
    client: Client, registry: FakeRegistry, memory: FakeMemory, agents: ScriptedAgents, ws: str, rpc: str
) -> None:
    for peer in (registry, memory):
        peer.calls.refuse(rpc, Draining("bye"))
    turn = await client.turn(ws, thread_id="t", operation_id="op")
    assert turn.completed.usage_recorded
    assert len(registry.calls.of(rpc) + memory.calls.of(rpc)) == 2
    assert len(agents.heard) == 1
