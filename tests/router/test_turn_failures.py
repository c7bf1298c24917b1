"""Run, when something fails: each with its own status, the words kept, and what was consumed counted."""

import asyncio
import socket
from collections.abc import Awaitable, Callable

import grpc
import pytest
from aiohttp import web

from tests.router.conftest import Client, Start, refused
from tests.router.fakes import ConversationUnknown, FakeMemory, FakeRegistry
from tests.router.scripted import Heard, ScriptedAgents, delta, finish, sse
from twofold.memory.v1 import conversation_pb2, message_pb2
from twofold_chassis.refusals import InvalidField, StoreUnavailable

Code = grpc.StatusCode
Script = Callable[[Heard], Awaitable[web.StreamResponse]]


def said(memory: FakeMemory, ws: str, thread_id: str = "t") -> list[tuple[str, bool]]:
    """What stands in the conversation, and whether it is marked as cut off."""
    return [
        (message.content, message.status == message_pb2.MESSAGE_STATUS_INTERRUPTED)
        for message in memory.messages.get((ws, thread_id), [])
    ]


def words_kept(memory: FakeMemory, registry: FakeRegistry, ws: str) -> bool:
    """Whether the turn is closed with the user's words alone, and nothing is counted."""
    interrupted = {(thread_id, turn_id) for _, thread_id, turn_id in memory.open_turns.interrupted}
    return said(memory, ws) == [("you", False)] and len(interrupted) == 1 and not registry.events


def let_go(memory: FakeMemory, registry: FakeRegistry, ws: str) -> bool:
    """Whether the turn is open still, and anybody's, and nothing is counted."""
    open_turn = memory.open_turns.open[ws, "t"]
    return not open_turn.alive and not memory.messages.get((ws, "t")) and not registry.events


async def test_who_may_not_use_the_agent_does_not_reach_it(client: Client, agents: ScriptedAgents, ws: str) -> None:
    with refused(Code.PERMISSION_DENIED, "REASON_NOT_PERMITTED"):
        await client.turn(ws, user_id="bob")
    assert not agents.heard


async def test_anothers_conversation_is_not_there(
    client: Client, registry: FakeRegistry, memory: FakeMemory, agents: ScriptedAgents, ws: str
) -> None:
    registry.grant(ws, "bob", "agent")
    await client.turn(ws, thread_id="t", operation_id="op")
    # (An operation_id of another user's is one of its own, for the limits of the workspace: REASON_REQUEST_REUSED.)
    for operation_id, message in (("op-2", "you"), ("op-3", "other"), ("", "you")):
        with refused(Code.NOT_FOUND, "REASON_CONVERSATION_UNKNOWN"):
            await client.turn(ws, message, user_id="bob", thread_id="t", operation_id=operation_id)
    assert len(agents.heard) == 1


async def test_without_a_context_the_agent_is_not_asked(
    client: Client, memory: FakeMemory, agents: ScriptedAgents, ws: str
) -> None:
    memory.calls.refuse("Invoking", StoreUnavailable("no store"), times=4)
    with refused(Code.UNAVAILABLE, "REASON_STORE_UNAVAILABLE"):
        await client.turn(ws, thread_id="t")
    assert not agents.heard


async def test_without_memory_there_is_no_turn(start: Start, agents: ScriptedAgents, ws: str) -> None:
    async with start(memory_target="127.0.0.1:1") as forgetful:
        with refused(Code.UNAVAILABLE, "REASON_PEER_UNAVAILABLE") as told:
            await forgetful.turn(ws, thread_id="t")
    assert "memory" in told.message
    assert not agents.heard


@pytest.mark.parametrize("url", ["http://127.0.0.1:1", "http://no-such-host.svc.cluster.local", "https://127.0.0.1:1"])
async def test_an_agent_that_cannot_be_dialled_is_unreachable(
    client: Client, registry: FakeRegistry, memory: FakeMemory, ws: str, url: str
) -> None:
    registry.publish(ws, "agent", url)
    with refused(Code.UNAVAILABLE, "REASON_AGENT_UNREACHABLE") as told:
        await client.turn(ws, thread_id="t")
    assert b"RetryInfo" in told.details
    assert told.metadata["outcome"] == "OPEN"
    assert let_go(memory, registry, ws)


async def test_an_agent_that_does_not_take_the_call_is_unreachable(start: Start, registry: FakeRegistry, ws: str) -> None:
    with socket.create_server(("127.0.0.1", 0), backlog=0) as full:
        address = full.getsockname()
        waiting = [socket.socket() for _ in range(4)]
        for caller in waiting:  # fills the queue of the listener, so that further dials are not answered
            caller.setblocking(False)
            caller.connect_ex(address)
        registry.publish(ws, "agent", f"http://127.0.0.1:{address[1]}")
        async with start(connect_timeout_s=0.2) as hurried:
            with refused(Code.UNAVAILABLE, "REASON_AGENT_UNREACHABLE"):
                await hurried.turn(ws)
        for caller in waiting:
            caller.close()


@pytest.mark.parametrize("status", [300, 302, 400, 404, 500, 503])
async def test_an_http_error_of_the_agent_is_named_by_its_status_and_never_by_its_words(
    client: Client, registry: FakeRegistry, memory: FakeMemory, agents: ScriptedAgents, ws: str, status: int
) -> None:
    async def failing(heard: Heard) -> web.StreamResponse:
        return web.Response(status=status, text="secret", headers={"location": "/elsewhere"})

    agents.agent("agent", failing)
    with refused(Code.UNAVAILABLE, "REASON_AGENT_FAILED") as told:
        await client.turn(ws, thread_id="t")
    assert str(status) in told.message
    assert b"secret" not in told.details
    assert told.metadata["outcome"] == "INTERRUPTED"
    assert len(agents.heard) == 1
    assert words_kept(memory, registry, ws)


async def bad_json(heard: Heard) -> web.StreamResponse:
    response = await heard.stream()
    await response.write(sse(delta("Hel")) + b"data: {oops\n\n")
    return response


async def cut(heard: Heard) -> web.StreamResponse:
    response = await heard.stream()
    await response.write(sse(delta("Hel")))
    assert heard.request.transport is not None
    heard.request.transport.abort()
    return response


async def ends_early(heard: Heard) -> web.StreamResponse:
    response = await heard.stream()
    await response.write(sse(delta("Hel")))
    await response.write_eof()
    return response


async def closes_at_once(heard: Heard) -> web.StreamResponse:
    assert heard.request.transport is not None
    heard.request.transport.abort()
    return web.Response()


async def three_mebibytes(heard: Heard) -> web.StreamResponse:
    return await heard.say(*[delta("x" * 1024)] * 3072, finish())


async def three_mebibytes_of_json(heard: Heard) -> web.StreamResponse:
    return web.json_response({"choices": [{"index": 0, "message": {"content": "x" * 3 * 2**20}}]})


async def a_line_without_end(heard: Heard) -> web.StreamResponse:
    response = await heard.stream()
    for _ in range(160):
        await response.write(b"x" * 65536)
    return response


async def text(heard: Heard) -> web.StreamResponse:
    return web.Response(text="Hello.")


async def zipped(heard: Heard) -> web.StreamResponse:
    response = web.json_response({"choices": [{"message": {"content": "x" * 2000}}]})
    response.enable_compression(web.ContentCoding.gzip)
    response.headers["content-encoding"] = "gzip"
    return response


async def error_event(heard: Heard) -> web.StreamResponse:
    return await heard.say({"error": {"message": "secret"}})


@pytest.mark.parametrize(
    "script",
    [
        bad_json,
        cut,
        ends_early,
        closes_at_once,
        three_mebibytes,
        three_mebibytes_of_json,
        a_line_without_end,
        text,
        zipped,
        error_event,
    ],
    ids=lambda script: script.__name__,
)
async def test_an_agent_that_breaks_the_protocol_has_failed(
    client: Client,
    registry: FakeRegistry,
    memory: FakeMemory,
    agents: ScriptedAgents,
    ws: str,
    script: Script,
) -> None:
    agents.agent("agent", script)
    with refused(Code.UNAVAILABLE, "REASON_AGENT_FAILED") as told:
        await client.turn(ws, thread_id="t", operation_id="op")
    assert b"secret" not in told.details
    assert told.metadata["outcome"] == "INTERRUPTED"
    partial = said(memory, ws)[1:]
    if script in (bad_json, cut, ends_early):
        # What there was is kept, marked, and counted: "you" and "Hel" are a token each.
        assert partial == [("Hel", True)]
        assert memory.messages[ws, "t"][1].metadata["interrupted_by"] == "agent_failed"
        assert memory.usages[ws, "t", "op"] == conversation_pb2.TurnUsage(input_tokens=1, output_tokens=1)
        event = registry.events[ws, "op/0"]
        assert (event.messages, event.input_tokens, event.output_tokens) == (1, 1, 1)
    elif script is three_mebibytes:
        (text, is_marked), kept_bytes = partial[0], 2**20 - 4096
        assert (len(text), is_marked) == (kept_bytes, True)
        assert registry.events[ws, "op/0"].output_tokens == 2**20 // 4
    else:
        assert words_kept(memory, registry, ws)


async def hangs_before_headers(heard: Heard) -> web.StreamResponse:
    await asyncio.Event().wait()
    return web.Response()


async def hangs_after_headers(heard: Heard) -> web.StreamResponse:
    await heard.stream()
    return await hangs_before_headers(heard)


async def hangs_after_saying_who_it_is(heard: Heard) -> web.StreamResponse:
    response = await heard.stream()
    await response.write(sse(delta("", role="assistant")))
    return await hangs_before_headers(heard)


@pytest.mark.parametrize(
    "script",
    [hangs_before_headers, hangs_after_headers, hangs_after_saying_who_it_is],
    ids=lambda script: script.__name__,
)
async def test_an_agent_that_says_nothing_in_time_is_hung_up_on(
    client: Client,
    registry: FakeRegistry,
    memory: FakeMemory,
    agents: ScriptedAgents,
    ws: str,
    script: Script,
) -> None:
    registry.publish(ws, "agent", agents.agent("agent", script), first_token_timeout=0.2)
    with refused(Code.DEADLINE_EXCEEDED, "REASON_AGENT_TIMEOUT") as told:
        await client.turn(ws, thread_id="t")
    async with asyncio.timeout(5):
        await agents.heard[-1].hung_up.wait()
    assert told.metadata["outcome"] == "INTERRUPTED"
    assert words_kept(memory, registry, ws)


async def test_an_agent_that_does_not_come_to_an_end_is_hung_up_on(
    client: Client, registry: FakeRegistry, memory: FakeMemory, agents: ScriptedAgents, ws: str
) -> None:
    async def endless(heard: Heard) -> web.StreamResponse:
        response = await heard.stream()
        while True:
            await response.write(sse(delta("again ")))
            await asyncio.sleep(0.02)

    registry.publish(ws, "agent", agents.agent("agent", endless), first_token_timeout=0.2, turn_timeout=0.5)
    with refused(Code.DEADLINE_EXCEEDED, "REASON_AGENT_TIMEOUT"):
        await client.turn(ws, thread_id="t", operation_id="op")
    (_, _), (text, is_marked) = said(memory, ws)
    assert (text.replace("again ", ""), is_marked) == ("", True)
    assert memory.messages[ws, "t"][1].metadata["interrupted_by"] == "agent_timeout"
    assert registry.events[ws, "op/0"].output_tokens == -(-len(text) // 4)


async def test_an_agent_may_take_longer_than_its_first_token_may(
    client: Client, registry: FakeRegistry, agents: ScriptedAgents, ws: str
) -> None:
    async def steady(heard: Heard) -> web.StreamResponse:
        response = await heard.stream()
        for _ in range(5):
            await response.write(sse(delta("tick ")))
            await asyncio.sleep(0.1)
        await response.write(sse(finish()))
        return response

    registry.publish(ws, "agent", agents.agent("agent", steady), first_token_timeout=0.3)
    assert (await client.turn(ws)).text == "tick " * 5


async def test_a_caller_that_goes_away_takes_the_request_to_the_agent_with_it(
    client: Client, registry: FakeRegistry, memory: FakeMemory, agents: ScriptedAgents, ws: str
) -> None:
    async def patient(heard: Heard) -> web.StreamResponse:
        response = await heard.stream()
        await response.write(sse(delta("Hel")))
        return await hangs_before_headers(heard)

    agents.agent("agent", patient)
    running = client.run(ws, thread_id="t")
    events = aiter(running)
    assert [(await anext(events)).WhichOneof("event") for _ in range(2)] == ["started", "delta"]
    running.cancel()
    async with asyncio.timeout(5):
        await agents.heard[-1].hung_up.wait()
    await memory.calls.came("AbortTurn")
    await registry.calls.came("RecordUsage")
    assert said(memory, ws) == [("you", False), ("Hel", True)]


async def test_the_callers_deadline_ends_the_request_to_the_agent(client: Client, agents: ScriptedAgents, ws: str) -> None:
    agents.agent("agent", hangs_after_headers)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        [event async for event in client.run(ws, timeout=0.5)]
    assert caught.value.code() is Code.DEADLINE_EXCEEDED
    async with asyncio.timeout(5):
        await agents.heard[-1].hung_up.wait()


async def test_a_conversation_that_is_deleted_meanwhile_fails_the_turn(
    client: Client, memory: FakeMemory, registry: FakeRegistry, ws: str
) -> None:
    for rpc in ("CommitTurn", "AbortTurn"):
        memory.calls.refuse(rpc, ConversationUnknown("gone"))
    with refused(Code.NOT_FOUND, "REASON_CONVERSATION_UNKNOWN"):
        await client.turn(ws, thread_id="t", operation_id="op")
    assert registry.events[ws, "op/0"].output_tokens == 3  # what was used is owed


def calling(**call: object) -> Script:
    """An agent that calls a tool."""
    function = {"name": call.pop("name", "weather"), "arguments": call.pop("arguments", "{}")}
    said = [{"index": 0, "id": "c1", "function": function, **call}]

    async def script(heard: Heard) -> web.StreamResponse:
        return await heard.say(delta(tool_calls=said), finish("tool_calls"))

    return script


@pytest.mark.parametrize(
    "script",
    [
        calling(arguments="x" * (2**20 - 30)),
        calling(arguments="a\0b"),
        calling(id="x" * 256),
        calling(id="\x85"),
        calling(name="a\nb"),
        calling(name=""),
        calling(type="x" * 256),
    ],
    ids=[
        "arguments_too_large",
        "arguments_with_nul",
        "long_id",
        "id_of_two_lines",
        "name_of_two_lines",
        "no_name",
        "long_type",
    ],
)
async def test_what_memory_would_not_keep_is_no_answer(
    client: Client, registry: FakeRegistry, memory: FakeMemory, agents: ScriptedAgents, ws: str, script: Script
) -> None:
    agents.agent("agent", script)
    with refused(Code.UNAVAILABLE, "REASON_AGENT_FAILED"):
        await client.turn(ws, thread_id="t")
    assert words_kept(memory, registry, ws)


async def test_a_memory_that_is_stricter_than_the_router_knows_does_not_blame_the_caller(
    client: Client, memory: FakeMemory, registry: FakeRegistry, ws: str
) -> None:
    memory.calls.refuse("CommitTurn", InvalidField("response_messages[0].content", "must be polite"))
    with refused(Code.UNAVAILABLE, "REASON_AGENT_FAILED") as told:
        await client.turn(ws, thread_id="t", operation_id="op")
    assert "must be polite" in told.message
    assert said(memory, ws) == [("you", False), ("Hello, you.", True)]
    assert registry.events[ws, "op/0"].output_tokens == 3
