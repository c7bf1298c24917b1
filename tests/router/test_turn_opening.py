"""A turn in memory: opened before the agent is called, kept alive, gone on with, and done without while Postgres is away."""

import asyncio
import json

import grpc
from aiohttp import web

from tests.router.conftest import Client, Start, refused
from tests.router.fakes import FakeMemory, FakeRegistry
from tests.router.scripted import Heard, ScriptedAgents
from tests.router.test_turn_attach import Slowly, until_said
from tests.waiting import until
from twofold.memory.v1 import message_pb2, turn_pb2
from twofold.registry.v1.workspace_pb2 import LimitKind
from twofold.router.v1 import event_pb2, event_pb2_grpc, limit_pb2, limit_pb2_grpc
from twofold_chassis.refusals import Overloaded, StoreUnavailable

Code = grpc.StatusCode
NOT_STORED = StoreUnavailable("no Postgres", outcome="NOT_STORED")


async def test_the_users_words_are_safe_before_the_agent_is_called(
    client: Client, memory: FakeMemory, agents: ScriptedAgents, ws: str
) -> None:
    slowly = Slowly(agents)
    events = aiter(client.run(ws, "My words.", thread_id="t", operation_id="op"))
    await until_said(events, "öne")
    opened = memory.open_turns.open[ws, "t"].request
    assert (opened.request_id, opened.user_id) == ("op", "ada")
    assert [(message.role, message.content) for message in opened.messages] == [(message_pb2.ROLE_USER, "My words.")]
    rpcs = [rpc for rpc, *_ in memory.calls.seen if rpc in ("BeginTurn", "Invoking")]
    assert rpcs == ["BeginTurn", "Invoking"]
    slowly.goes_on.set()
    await until_said(events, " two")


async def test_a_turn_is_kept_alive_with_its_answer_so_far(
    start: Start, memory: FakeMemory, agents: ScriptedAgents, ws: str
) -> None:
    slowly = Slowly(agents)
    async with start(turn_lease_s=0.6) as client:
        events = aiter(client.run(ws, thread_id="t", operation_id="op"))
        await until_said(events, "öne")
        await memory.calls.came("HeartbeatTurn", 2)
        first, second = memory.calls.of("HeartbeatTurn")[:2]
        assert [message.content for message in first.partial_messages] == ["öne"]
        assert not second.partial_messages  # nothing new
        assert first.lease_duration.ToMilliseconds() == 600
        slowly.goes_on.set()
        await until_said(events, " two")
        assert (await anext(events)).completed.last_seq == 2


async def test_a_memory_that_has_too_much_to_do_for_a_sign_of_life_ends_no_turn(
    start: Start, memory: FakeMemory, agents: ScriptedAgents, ws: str
) -> None:
    memory.calls.refuse("HeartbeatTurn", Overloaded("all connections are in use", retry_after_s=0.5))
    slowly = Slowly(agents)
    async with start(turn_lease_s=0.6) as client:
        events = aiter(client.run(ws, thread_id="t", operation_id="op"))
        await until_said(events, "öne")
        await memory.calls.came("HeartbeatTurn", 2)
        slowly.goes_on.set()
        await until_said(events, " two")
        assert (await anext(events)).completed.last_seq == 2


async def test_a_turn_that_was_taken_over_hangs_up_on_its_agent_and_counts_what_it_used(
    start: Start, registry: FakeRegistry, memory: FakeMemory, agents: ScriptedAgents, ws: str
) -> None:
    Slowly(agents)
    async with start(turn_lease_s=0.6) as client:
        events = aiter(client.run(ws, thread_id="t", operation_id="op"))
        await until_said(events, "öne")
        await memory.calls.came("HeartbeatTurn")
        agents.agent("agent")
        overtaken = agents.heard[-1]
        taking = await client.turn(ws, "No, this.", thread_id="t", turn_policy=turn_pb2.TURN_POLICY_TAKE_OVER)
        async with asyncio.timeout(20):
            await overtaken.hung_up.wait()
        with refused(Code.ABORTED, "REASON_TURN_SUPERSEDED"):
            await anext(events)
    assert taking.text == "Hello, No, this.."
    assert registry.events[ws, "op/0"].output_tokens == 1
    assert [message.content for message in memory.messages[ws, "t"]] == ["you", "öne", "No, this.", "Hello, No, this.."]


async def test_another_turn_is_refused_or_waits_as_its_caller_wants(
    client: Client, memory: FakeMemory, agents: ScriptedAgents, ws: str
) -> None:
    slowly = Slowly(agents)
    events = aiter(client.run(ws, thread_id="t", operation_id="op"))
    await until_said(events, "öne")
    with refused(Code.ABORTED, "REASON_TURN_HELD"):
        await client.turn(ws, "Me, too.", thread_id="t")
    slowly.goes_on.set()
    await until_said(events, " two")
    async for _ in events:
        pass
    agents.agent("agent")
    await client.turn(ws, thread_id="t", turn_policy=turn_pb2.TURN_POLICY_QUEUE, queue_wait={"seconds": 7})
    asked = memory.calls.of("BeginTurn")[-1]
    assert (asked.policy, asked.queue_wait.seconds) == (turn_pb2.TURN_POLICY_QUEUE, 7)


async def test_of_a_turn_that_is_cancelled_while_memory_opens_it_nobody_can_tell_whether_it_is_kept(
    client: Client, memory: FakeMemory, agents: ScriptedAgents, ws: str
) -> None:
    memory.calls.gates["BeginTurn"] = gate = asyncio.Event()
    running = asyncio.create_task(client.turn(ws, thread_id="t", operation_id="op"))
    await memory.calls.came("BeginTurn")
    assert await client.cancel(ws, "op")
    with refused(Code.CANCELLED, "REASON_TURN_CANCELLED") as told:
        await running
    assert told.metadata["outcome"] == "UNKNOWN"
    gate.set()
    assert not agents.heard


async def test_a_turn_whose_router_died_is_gone_on_with_once_its_lease_has_ended(
    client: Client, memory: FakeMemory, agents: ScriptedAgents, ws: str
) -> None:
    words = [message_pb2.Message(role=message_pb2.ROLE_USER, content="you")]
    dead = turn_pb2.BeginTurnRequest(
        workspace_id=ws, thread_id="t", user_id="ada", request_id="op", messages=words, holder="10.0.0.9:50053/run"
    )
    await memory.open_turns.BeginTurn(dead, None)
    with refused(Code.ABORTED, "REASON_BUSY") as told:
        await client.turn(ws, thread_id="t", operation_id="op")
    assert told.metadata["router"] == "10.0.0.9:50053"
    assert not agents.heard
    memory.open_turns.end_lease(ws, "t")
    turn = await client.turn(ws, thread_id="t", operation_id="op")
    assert (turn.text, turn.started.replayed) == ("Hello, you.", False)
    assert [message.content for message in memory.messages[ws, "t"]] == ["you", "Hello, you."]


async def test_while_postgres_is_away_a_new_turn_goes_on_and_its_exchange_is_journaled(
    client: Client, registry: FakeRegistry, memory: FakeMemory, ws: str
) -> None:
    for operation_id in ("", "op"):
        memory.calls.refuse("BeginTurn", NOT_STORED)
        turn = await client.turn(ws, thread_id="t", operation_id=operation_id)
        assert (turn.text, turn.started.unheld, turn.completed.usage_recorded) == ("Hello, you.", True, True)
    assert len(memory.calls.of("Invoked")) == 2
    assert [message.content for message in memory.messages[ws, "t"]] == ["you", "Hello, you."] * 2


async def test_while_postgres_is_away_an_operation_that_may_have_been_answered_is_not_begun_again(
    client: Client, memory: FakeMemory, agents: ScriptedAgents, ws: str
) -> None:
    await client.turn(ws, thread_id="t", operation_id="op")
    memory.calls.refuse("BeginTurn", NOT_STORED)
    with refused(Code.UNAVAILABLE, "REASON_STORE_UNAVAILABLE"):
        await client.turn(ws, thread_id="t", operation_id="op")
    assert len(agents.heard) == 1


async def test_while_postgres_is_away_what_an_agent_said_before_it_failed_is_journaled_and_marked(
    client: Client, memory: FakeMemory, agents: ScriptedAgents, ws: str
) -> None:
    async def cut(heard: Heard) -> web.StreamResponse:
        response = await heard.stream()
        await response.write(b'data: {"choices": [{"index": 0, "delta": {"content": "Hel"}}]}\n\n')
        await response.write_eof()
        return response

    agents.agent("agent", cut)
    memory.calls.refuse("BeginTurn", NOT_STORED)
    with refused(Code.UNAVAILABLE, "REASON_AGENT_FAILED") as told:
        await client.turn(ws, thread_id="t", operation_id="op")
    assert told.metadata["outcome"] == "INTERRUPTED"
    assert [message.content for message in memory.messages[ws, "t"]] == ["you", "Hel"]
    events = aiter(client.attach(ws, "op-unknown", thread_id="t"))
    with refused(Code.NOT_FOUND, "REASON_OPERATION_UNKNOWN"):
        await anext(events)


async def test_an_answer_that_finds_postgres_gone_is_journaled(start: Start, memory: FakeMemory, ws: str) -> None:
    memory.calls.refuse("CommitTurn", NOT_STORED, times=4)
    async with start(keep_s=0.5) as client:
        turn = await client.turn(ws, thread_id="t", operation_id="op")
    assert (turn.text, turn.started.unheld, turn.completed.usage_recorded) == ("Hello, you.", False, True)
    (kept,) = memory.calls.of("Invoked")
    assert [message.content for message in (*kept.request_messages, *kept.response_messages)] == ["you", "Hello, you."]
    assert kept.request_id == "op"


async def test_a_turn_in_the_way_of_a_deleted_conversation_is_refused_before_the_agent_is_called(
    client: Client, memory: FakeMemory, agents: ScriptedAgents, ws: str
) -> None:
    memory.owners[ws, "t"] = "bob"
    with refused(Code.NOT_FOUND, "REASON_CONVERSATION_UNKNOWN"):
        await client.turn(ws, thread_id="t")
    assert not agents.heard


async def test_a_permission_that_has_ended_meanwhile_is_asked_for_again_before_the_agent_is_called(
    start: Start, registry: FakeRegistry, memory: FakeMemory, agents: ScriptedAgents, ws: str
) -> None:
    """Of a turn that waited in memory for longer than the answer of the registry was valid."""
    memory.calls.gates["BeginTurn"] = gate = asyncio.Event()
    async with start(lease_ms=1000, silence_ms=700, ping_ms=50) as client:
        waiting = asyncio.create_task(client.turn(ws, thread_id="t", operation_id="op"))
        await memory.calls.came("BeginTurn")
        registry.revoke(ws, "ada", "agent")
        await asyncio.sleep(1.2)  # past what was said to be valid
        gate.set()
        with refused(Code.PERMISSION_DENIED, "REASON_NOT_PERMITTED") as told:
            await waiting
    assert told.metadata["outcome"] == "OPEN"
    assert not agents.heard


async def test_an_agent_that_starts_is_dialled_until_it_answers(
    start: Start, registry: FakeRegistry, agents: ScriptedAgents, ws: str
) -> None:
    registry.move(ws, "agent", "http://127.0.0.1:1")
    async with start(cold_start_s=30) as client:
        events = aiter(client.run(ws, thread_id="t", operation_id="op", min_revision_token=registry.token))
        assert (await anext(events)).HasField("started")
        waiting = (await anext(events)).waiting
        assert (waiting.attempts, waiting.duration_max.seconds) == (1, 30)
        registry.move(ws, "agent", agents.agent("agent"))
        said = [event async for event in events]
    assert "".join(event.delta.text for event in said) == "Hello, you."
    assert said[-1].HasField("completed")


async def test_a_message_to_an_agent_that_rests_waits_for_it_as_well(
    start: Start, registry: FakeRegistry, agents: ScriptedAgents, ws: str
) -> None:
    registry.move(ws, "agent", "http://127.0.0.1:1")
    async with start(cold_start_s=0.5) as client:
        with refused(Code.UNAVAILABLE, "REASON_AGENT_UNREACHABLE"):
            await client.turn(ws, min_revision_token=registry.token)
        with refused(Code.UNAVAILABLE, "REASON_AGENT_NOT_READY"):
            await client.turn(ws)
        waiting = asyncio.create_task(client.turn(ws, operation_id="op"))
        registry.move(ws, "agent", agents.agent("agent"))
        assert (await waiting).text == "Hello, you."


async def test_an_http_error_is_no_reason_to_ask_again(start: Start, agents: ScriptedAgents, ws: str) -> None:
    """Not even 503: whoever says it may have begun."""

    async def busy(heard: Heard) -> web.StreamResponse:
        return web.Response(status=503)

    agents.agent("agent", busy)
    async with start(cold_start_s=30) as client:
        with refused(Code.UNAVAILABLE, "REASON_AGENT_FAILED"):
            await client.turn(ws, thread_id="t")
    assert len(agents.heard) == 1


async def limits_used(client: Client, ws: str) -> dict[str, int]:
    request = limit_pb2.GetLimitsRequest(workspace_id=ws, user_id="ada", agent_id="agent")
    answer = await limit_pb2_grpc.LimitServiceStub(client.channel).GetLimits(request, timeout=30)
    names = {LimitKind.LIMIT_KIND_WORKSPACE_DAY_MESSAGES: "messages", LimitKind.LIMIT_KIND_WORKSPACE_DAY_TOKENS: "tokens"}
    return {names[limit.kind]: limit.used for limit in answer.limits if limit.kind in names}


async def test_c7_a_turn_is_settled_with_what_it_used_and_given_back_if_nothing_was_sent(
    client: Client, registry: FakeRegistry, agents: ScriptedAgents, ws: str
) -> None:
    """C7: used = what was admitted, and what it took."""
    registry.limit(ws, WORKSPACE_DAY_MESSAGES=100, WORKSPACE_DAY_TOKENS=10_000)

    async def until_used(messages: int, tokens: int) -> None:
        async def so_much() -> bool:
            return await limits_used(client, ws) == {"messages": messages, "tokens": tokens}

        await until(so_much)

    await client.turn(ws, thread_id="t", min_revision_token=registry.token)  # 7 and 3 tokens
    await until_used(1, 10)
    registry.move(ws, "agent", "http://127.0.0.1:1")
    with refused(Code.UNAVAILABLE, "REASON_AGENT_UNREACHABLE"):
        await client.turn(ws, thread_id="t", min_revision_token=registry.token)
    await until_used(1, 10)
    Slowly(agents)
    registry.move(ws, "agent", f"{agents.url}/agent")
    events = aiter(client.run(ws, operation_id="op", min_revision_token=registry.token))
    await until_said(events, "öne")
    await until_used(2, 10)
    await client.cancel(ws, "op")
    await until_used(2, 12)  # a token each for "you" and "öne"


async def test_the_end_of_a_turn_is_told_to_who_listens_to_the_agent(
    client: Client, registry: FakeRegistry, agents: ScriptedAgents, ws: str
) -> None:
    events = event_pb2_grpc.EventServiceStub(client.channel)

    async def told() -> list[tuple[str, dict[str, object]]]:
        listed = await events.ListEvents(event_pb2.ListEventsRequest(workspace_id=ws, agent_id="agent"), timeout=30)
        return [(event.type, json.loads(event.payload)) for event in listed.events]

    async def so_many(count: int) -> None:
        async def there() -> bool:
            return len(await told()) == count

        await until(there)

    for _ in range(2):
        await client.turn(ws, thread_id="t", operation_id="op")
    Slowly(agents)
    running = client.run(ws, operation_id="op-2")
    await until_said(aiter(running), "öne")
    await client.cancel(ws, "op-2")
    await so_many(2)
    assert await told() == [
        (
            "turn.completed",
            {
                "operation_id": "op",
                "user_id": "ada",
                "thread_id": "t",
                "first_seq": 1,
                "last_seq": 2,
                "input_tokens": 7,
                "output_tokens": 3,
            },
        ),
        (
            "turn.failed",
            {"operation_id": "op-2", "user_id": "ada", "input_tokens": 1, "output_tokens": 1, "cause": "turn_cancelled"},
        ),
    ]
