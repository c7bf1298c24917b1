"""Attach, CancelTurn, and what becomes of a turn whose callers leave."""

import asyncio
from collections.abc import AsyncIterator

import grpc
import pytest
from aiohttp import web

from tests.router.conftest import Client, Start, refused
from tests.router.fakes import FakeMemory, FakeRegistry
from tests.router.scripted import Heard, ScriptedAgents, delta, finish, sse, usage
from twofold.memory.v1 import message_pb2
from twofold.router.v1 import turn_pb2

Code = grpc.StatusCode
INTERRUPTED = message_pb2.MESSAGE_STATUS_INTERRUPTED
Events = AsyncIterator[turn_pb2.RunResponse | turn_pb2.AttachResponse]


class Slowly:
    """An agent that says "one" and "two" only when it is told to, and sees whether it is hung up on."""

    def __init__(self, agents: ScriptedAgents, *, first: str = "öne") -> None:
        self.agents = agents
        self.first = first
        self.goes_on = asyncio.Event()
        agents.agent("agent", self.answer)

    async def answer(self, heard: Heard) -> web.StreamResponse:
        response = await heard.stream()
        await response.write(sse(delta(self.first)))
        await self.goes_on.wait()
        await response.write(sse(delta(" two")) + sse(finish()) + sse(usage(7, 3)) + b"data: [DONE]\n\n")
        return response

    async def hung_up(self) -> None:
        async with asyncio.timeout(20):
            await self.agents.heard[-1].hung_up.wait()


async def until_said(events: Events, text: str) -> str:
    """Reads until so much is said; returns what was."""
    said = ""
    while said != text:
        said += (await anext(events)).delta.text
    return said


async def test_who_attaches_is_told_what_was_said_and_what_comes(client: Client, agents: ScriptedAgents, ws: str) -> None:
    slowly = Slowly(agents)
    first = client.run(ws, thread_id="t", operation_id="op")
    await until_said(aiter(first), "öne")
    whole = [aiter(client.attach(ws, "op")), aiter(client.attach(ws, "op", thread_id="t"))]
    for events in whole:
        assert (await anext(events)).started.operation_id == "op"
        await until_said(events, "öne")
    rest = aiter(client.attach(ws, "op", text_offset=len("öne".encode())))
    assert not (await anext(rest)).started.replayed
    slowly.goes_on.set()
    for events, offset in ((rest, 4), *((each, 4) for each in whole)):
        told = [event async for event in events]
        assert [(event.delta.text, event.delta.offset) for event in told[:-1]] == [(" two", offset)]
        assert (told[-1].completed.output_tokens, told[-1].completed.last_seq) == (3, 2)
    assert len(agents.heard) == 1


async def test_a_turn_whose_caller_was_cut_off_is_attached_to_and_goes_on(
    start: Start, memory: FakeMemory, agents: ScriptedAgents, ws: str
) -> None:
    slowly = Slowly(agents)
    async with start(detached_s=30) as client:
        first = client.run(ws, thread_id="t", operation_id="op")
        await until_said(aiter(first), "öne")
        first.cancel()
        events = aiter(client.attach(ws, "op", text_offset=4))
        await anext(events)
        slowly.goes_on.set()
        assert [event.delta.text async for event in events if event.HasField("delta")] == [" two"]
    assert [message.content for message in memory.messages[ws, "t"]] == ["you", "öne two"]


async def test_a_turn_that_is_to_keep_running_comes_to_its_end_without_anybody(
    client: Client, memory: FakeMemory, registry: FakeRegistry, agents: ScriptedAgents, ws: str
) -> None:
    slowly = Slowly(agents)
    first = client.run(ws, thread_id="t", operation_id="op", keep_running=True)
    await until_said(aiter(first), "öne")
    first.cancel()
    slowly.goes_on.set()
    await registry.calls.came("RecordUsage")
    assert [message.content for message in memory.messages[ws, "t"]] == ["you", "öne two"]
    assert (await client.attached(ws, "op", thread_id="t")).text == "öne two"


async def test_a_turn_that_nobody_listens_to_any_more_is_cancelled_after_a_while(
    start: Start, memory: FakeMemory, agents: ScriptedAgents, ws: str
) -> None:
    slowly = Slowly(agents)
    async with start(detached_s=0.2) as client:
        first, second = client.run(ws, thread_id="t", operation_id="op"), client.run(ws, thread_id="t", operation_id="op")
        for call in (first, second):
            await until_said(aiter(call), "öne")
        first.cancel()
        await asyncio.sleep(0.5)  # longer than a turn is left alone: but this one has a listener yet
        assert not agents.heard[-1].hung_up.is_set()
        second.cancel()
        await slowly.hung_up()
        await memory.calls.came("AbortTurn")
        with refused(Code.CANCELLED, "REASON_TURN_CANCELLED"):
            await client.attached(ws, "op")
    kept = memory.messages[ws, "t"][1]
    assert (kept.content, kept.status, kept.metadata["interrupted_by"]) == ("öne", INTERRUPTED, "turn_cancelled")


async def test_cancelling_reaches_the_agent_keeps_what_it_said_and_tells_who_listens(
    client: Client, memory: FakeMemory, registry: FakeRegistry, agents: ScriptedAgents, ws: str
) -> None:
    slowly = Slowly(agents)
    running = client.run(ws, thread_id="t", operation_id="op", keep_running=True)
    events = aiter(running)
    await until_said(events, "öne")
    assert await client.cancel(ws, "op")
    await slowly.hung_up()
    with refused(Code.CANCELLED, "REASON_TURN_CANCELLED") as told:
        await anext(events)
    assert told.metadata["outcome"] == "INTERRUPTED"
    kept = [(message.content, message.status == INTERRUPTED) for message in memory.messages[ws, "t"]]
    assert kept == [("you", False), ("öne", True)]
    assert registry.events[ws, "op/0"].output_tokens == 1  # an estimate of what there was
    for _ in range(2):
        assert await client.cancel(ws, "op")  # the same again says the same
    # The operation has ended: it is told again as it ended, and its agent is not asked.
    with refused(Code.ABORTED, "REASON_TURN_INTERRUPTED") as ended:
        await client.turn(ws, thread_id="t", operation_id="op")
    assert (ended.metadata["cause"], ended.metadata["outcome"]) == ("turn_cancelled", "INTERRUPTED")
    assert len(agents.heard) == 1


async def test_a_cancelled_turn_whose_agent_was_not_reached_is_closed_as_well(
    start: Start, registry: FakeRegistry, memory: FakeMemory, ws: str
) -> None:
    registry.move(ws, "agent", "http://127.0.0.1:1")
    async with start(cold_start_s=60) as client:
        events = aiter(client.run(ws, thread_id="t", operation_id="op", min_revision_token=registry.token))
        while not (await anext(events)).HasField("waiting"):
            pass
        assert await client.cancel(ws, "op")
        with refused(Code.CANCELLED, "REASON_TURN_CANCELLED"):
            while True:
                await anext(events)
    assert [message.content for message in memory.messages[ws, "t"]] == ["you"]
    assert not registry.events


async def test_an_answered_turn_is_not_cancelled_any_more(
    client: Client, memory: FakeMemory, agents: ScriptedAgents, ws: str
) -> None:
    memory.calls.gates["CommitTurn"] = gate = asyncio.Event()
    running = asyncio.create_task(client.turn(ws, thread_id="t", operation_id="op"))
    await memory.calls.came("CommitTurn")
    cancelling = asyncio.create_task(client.cancel(ws, "op"))
    gate.set()
    assert not await cancelling
    assert (await running).text == "Hello, you."


async def test_what_has_ended_is_told_from_memory_by_any_router(
    start: Start, client: Client, agents: ScriptedAgents, ws: str
) -> None:
    first = await client.turn(ws, thread_id="t", operation_id="op")
    Slowly(agents, first="Hel")
    broken = client.run(ws, thread_id="t", operation_id="op-2")
    await until_said(aiter(broken), "Hel")
    assert await client.cancel(ws, "op-2")
    async with start() as other:
        for offset, rest in ((0, ["Hello, you."]), (7, ["you."]), (11, [])):
            turn = await other.attached(ws, "op", thread_id="t", text_offset=offset)
            assert (turn.started.replayed, turn.deltas) == (True, rest)
            assert turn.completed.first_seq == first.completed.first_seq
        assert not await other.cancel(ws, "op", thread_id="t")
        events = aiter(other.attach(ws, "op-2", thread_id="t"))
        assert [(await anext(events)).WhichOneof("event") for _ in range(2)] == ["started", "delta"]
        with refused(Code.ABORTED, "REASON_TURN_INTERRUPTED") as told:
            await anext(events)
    assert told.metadata["cause"] == "turn_cancelled"


async def test_another_router_says_who_is_at_work(start: Start, client: Client, agents: ScriptedAgents, ws: str) -> None:
    slowly = Slowly(agents)
    async with start(advertise="10.0.0.7:50053") as owner:
        running = owner.run(ws, thread_id="t", operation_id="op")
        events = aiter(running)
        assert (await anext(events)).started.router == "10.0.0.7:50053"
        for ask in (client.attached, client.cancel):
            with refused(Code.ABORTED, "REASON_BUSY") as told:
                await ask(ws, "op", thread_id="t")
            assert told.metadata["router"] == "10.0.0.7:50053"
            assert b"RetryInfo" in told.details
        with refused(Code.ABORTED, "REASON_BUSY"):
            await client.turn(ws, thread_id="t", operation_id="op")
        slowly.goes_on.set()
        await until_said(events, "öne two")
        async for _ in events:
            pass
    assert (await client.turn(ws, thread_id="t", operation_id="op")).started.replayed
    assert len(agents.heard) == 1


async def test_operations_that_nobody_knows_or_that_are_anothers_are_not_there(
    client: Client, registry: FakeRegistry, ws: str
) -> None:
    registry.grant(ws, "bob", "agent")
    await client.turn(ws, thread_id="t", operation_id="op")
    for fields in ({}, {"thread_id": "t"}):
        for ask in (client.attached, client.cancel):
            with refused(Code.NOT_FOUND, "REASON_OPERATION_UNKNOWN"):
                await ask(ws, "never-was", **fields)
            with refused(Code.NOT_FOUND, "REASON_OPERATION_UNKNOWN"):
                await ask(ws, "op", user_id="bob", **fields)


async def test_who_may_not_use_the_agent_any_more_hears_nothing_of_its_turns(
    client: Client, registry: FakeRegistry, agents: ScriptedAgents, ws: str
) -> None:
    Slowly(agents)
    running = client.run(ws, thread_id="t", operation_id="op")
    await until_said(aiter(running), "öne")
    registry.revoke(ws, "ada", "agent")
    await registry.changes.applied()
    with refused(Code.PERMISSION_DENIED, "REASON_NOT_PERMITTED"):
        await client.attached(ws, "op")
    with refused(Code.PERMISSION_DENIED, "REASON_NOT_PERMITTED"):
        await client.turn(ws, thread_id="t", operation_id="op")
    assert await client.cancel(ws, "op")  # whoever began it may end it


@pytest.mark.parametrize("offset", [1, 5, 100])
async def test_an_offset_that_nobody_can_have_got_is_refused_by_name(
    client: Client, agents: ScriptedAgents, ws: str, offset: int
) -> None:
    slowly = Slowly(agents)
    running = client.run(ws, thread_id="t", operation_id="op")
    events = aiter(running)
    await until_said(events, "öne")
    with refused(Code.INVALID_ARGUMENT, "REASON_INVALID_FIELD") as told:
        await client.attached(ws, "op", text_offset=offset)
    assert "text_offset" in told.message
    slowly.goes_on.set()
    await until_said(events, " two")
    if offset != 5:  # by now there is so much
        with refused(Code.INVALID_ARGUMENT, "REASON_INVALID_FIELD"):
            await client.attached(ws, "op", thread_id="t", text_offset=offset)


async def test_a_router_that_ends_closes_what_is_not_answered(
    start: Start, memory: FakeMemory, agents: ScriptedAgents, ws: str
) -> None:
    Slowly(agents)
    async with start(drain_s=0.1) as ending:
        running = ending.run(ws, thread_id="t", operation_id="op", keep_running=True)
        await until_said(aiter(running), "öne")
    kept = memory.messages[ws, "t"][1]
    assert (kept.content, kept.status, kept.metadata["interrupted_by"]) == ("öne", INTERRUPTED, "draining")


async def test_a_listener_that_does_not_read_holds_nobody_back(client: Client, agents: ScriptedAgents, ws: str) -> None:
    async def lengthy(heard: Heard) -> web.StreamResponse:
        return await heard.say(*[delta("x" * 1000)] * 1000, finish())

    agents.agent("agent", lengthy)
    idle = client.run(ws, operation_id="op")
    assert len((await client.attached(ws, "op")).text) == 10**6
    assert sum([len(event.delta.text) async for event in idle]) == 10**6
