"""Tools: what the agent is offered, what it calls, and how its turn is gone on with."""

import grpc
import pytest
from aiohttp import web

from tests.router.conftest import Client, refused
from tests.router.fakes import FakeMemory, FakeRegistry
from tests.router.scripted import Heard, ScriptedAgents, delta, finish
from twofold.memory.v1 import message_pb2
from twofold.registry.v1 import agent_pb2
from twofold.router.v1 import turn_pb2
from twofold_router.agents import Message, ToolCall
from twofold_router.prompts import well_formed

Code = grpc.StatusCode
SCHEMA = '{"type": "object", "properties": {"city": {"type": "string"}}}'
WEATHER = turn_pb2.Tool(name="weather", description="Says what it is like outside.", parameters_json=SCHEMA)
FUNCTION = {"name": "weather", "arguments": '{"city": "Oslo"}'}
CALLED = {"role": "assistant", "content": None, "tool_calls": [{"id": "c1", "type": "function", "function": FUNCTION}]}


async def calls_then_answers(heard: Heard) -> web.StreamResponse:
    """An agent that wants to know the weather, and then says it."""
    newest = heard.body["messages"][-1]
    if newest["role"] == "tool":
        return await heard.say(delta(f"It is {newest['content']}."), finish())
    call = {"index": 0, "id": "c1", "type": "function", "function": FUNCTION}
    return await heard.say(delta(tool_calls=[call]), finish("tool_calls"))


def result(call_id: str = "c1", content: str = "cold") -> turn_pb2.ToolResult:
    return turn_pb2.ToolResult(tool_call_id=call_id, content=content)


@pytest.mark.parametrize("delivery", [agent_pb2.CONTEXT_DELIVERY_INSTRUCTIONS, agent_pb2.CONTEXT_DELIVERY_MESSAGES])
async def test_an_agent_is_offered_tools_calls_one_and_goes_on_with_its_result(
    client: Client,
    registry: FakeRegistry,
    memory: FakeMemory,
    agents: ScriptedAgents,
    ws: str,
    delivery: agent_pb2.ContextDelivery.ValueType,
) -> None:
    registry.publish(ws, "agent", agents.agent("agent", calls_then_answers), context_delivery=delivery)
    memory.messages[ws, "t"] = [
        message_pb2.Message(role=message_pb2.ROLE_USER, content="Hello."),
        message_pb2.Message(role=message_pb2.ROLE_ASSISTANT, content="Hello, Ada."),
    ]
    first = await client.turn(ws, "Is it cold?", thread_id="t", tools=[WEATHER], min_revision_token=registry.token)
    assert first.calls == [message_pb2.ToolCall(id="c1", type="function", name="weather", arguments='{"city": "Oslo"}')]
    assert (first.text, first.completed.finish_reason) == ("", "tool_calls")
    offered = {"name": "weather", "description": "Says what it is like outside."}
    offered["parameters"] = {"type": "object", "properties": {"city": {"type": "string"}}}  # type: ignore[assignment]
    assert agents.heard[-1].body["tools"] == [{"type": "function", "function": offered}]

    second = await client.turn(ws, "", thread_id="t", operation_id="op", tool_results=[result()], tools=[WEATHER])
    assert second.text == "It is cold."
    given = agents.heard[-1].body["messages"]
    goes_on = [{"role": "user", "content": "Is it cold?"}, CALLED]
    goes_on.append({"role": "tool", "content": "cold", "tool_call_id": "c1"})
    assert given[-3:] == goes_on
    if delivery == agent_pb2.CONTEXT_DELIVERY_INSTRUCTIONS:
        assert given[:-3] == [{"role": "system", "content": "Previous conversation:\nuser: Hello.\nassistant: Hello, Ada."}]
    else:
        assert [message["content"] for message in given[:-3]] == ["Hello.", "Hello, Ada."]
    kept = memory.messages[ws, "t"][2:]
    roles = (message_pb2.ROLE_USER, message_pb2.ROLE_ASSISTANT, message_pb2.ROLE_TOOL, message_pb2.ROLE_ASSISTANT)
    assert tuple(message.role for message in kept) == roles
    assert (kept[2].tool_call_id, kept[2].content, kept[3].content) == ("c1", "cold", "It is cold.")

    # The same once more is told again, though the conversation has gone on since.
    again = await client.turn(ws, "", thread_id="t", operation_id="op", tool_results=[result()], tools=[WEATHER])
    assert (again.started.replayed, again.text) == (True, "It is cold.")
    assert len(agents.heard) == 2


@pytest.mark.parametrize(
    ("results", "named"),
    [([result("c2")], "tool_results[0].tool_call_id"), ([result(), result("c2")], "tool_results[1].tool_call_id")],
)
async def test_results_that_no_call_asked_for_are_refused_and_not_kept(
    client: Client, memory: FakeMemory, agents: ScriptedAgents, ws: str, results: list[turn_pb2.ToolResult], named: str
) -> None:
    agents.agent("agent", calls_then_answers)
    await client.turn(ws, "Is it cold?", thread_id="t", tools=[WEATHER])
    with refused(Code.INVALID_ARGUMENT, "REASON_INVALID_FIELD") as told:
        await client.turn(ws, "", thread_id="t", tool_results=results)
    assert named in told.message
    assert (len(memory.messages[ws, "t"]), len(agents.heard)) == (2, 1)
    assert (ws, "t") not in memory.open_turns.open


async def test_all_calls_of_an_answer_want_their_results(
    client: Client, agents: ScriptedAgents, memory: FakeMemory, ws: str
) -> None:
    calls = [message_pb2.ToolCall(id=name, type="function", name="f") for name in ("a", "b")]
    memory.messages[ws, "t"] = [
        message_pb2.Message(role=message_pb2.ROLE_USER, content="Both."),
        message_pb2.Message(role=message_pb2.ROLE_ASSISTANT, tool_calls=calls),
    ]
    with refused(Code.INVALID_ARGUMENT, "REASON_INVALID_FIELD") as told:
        await client.turn(ws, "", thread_id="t", tool_results=[result("a")])
    assert "lack the result of 1" in told.message
    await client.turn(ws, "", thread_id="t", tool_results=[result("a"), result("b")])
    assert [message["role"] for message in agents.heard[-1].body["messages"]] == ["user", "assistant", "tool", "tool"]


BAD = [
    ({"message": "", "tool_results": [result()]}, "tool_results"),  # without a conversation
    ({"thread_id": "t", "tool_results": [result()]}, "message"),
    ({"thread_id": "t", "message": "", "tool_results": [result(), result()]}, "tool_results[1].tool_call_id"),
    ({"thread_id": "t", "message": "", "tool_results": [result("")]}, "tool_results[0].tool_call_id"),
    ({"thread_id": "t", "message": "", "tool_results": [result(content="a\0")]}, "tool_results[0].content"),
    (
        {"thread_id": "t", "message": "", "tool_results": [result(f"c{n}", "x" * 2**20) for n in range(2)]},
        "tool_results",
    ),
    ({"tools": [WEATHER, WEATHER]}, "tools[1].name"),
    ({"tools": [turn_pb2.Tool(name=f"t{n}", description="x" * 16_000) for n in range(17)]}, "tools"),
    ({"turn_policy": 9}, "turn_policy"),
    ({"queue_wait": {"seconds": 901}}, "queue_wait"),
]


@pytest.mark.parametrize(("fields", "named"), BAD, ids=[f"{number}-{named}" for number, (_, named) in enumerate(BAD)])
async def test_what_breaks_a_rule_of_the_contract_is_refused_by_name(
    client: Client, ws: str, fields: dict[str, object], named: str
) -> None:
    with refused(Code.INVALID_ARGUMENT, "REASON_INVALID_FIELD") as told:
        await client.turn(ws, **fields)  # type: ignore[arg-type]
    assert told.metadata["field"] == named


def test_calls_that_nothing_answers_and_results_that_nothing_asked_for_are_not_shown() -> None:
    call = ToolCall("c1", "function", "f", "")
    asked, silent = Message("user", "Hello."), Message("assistant", None, (call,))
    spoken, outcome = Message("assistant", "Let me see.", (call,)), Message("tool", "x", tool_call_id="c1")
    assert well_formed([asked, silent, outcome, asked], goes_on=False) == [asked, silent, outcome, asked]
    assert well_formed([asked, silent, asked], goes_on=False) == [asked, asked]
    assert well_formed([asked, spoken, asked], goes_on=False) == [asked, Message("assistant", "Let me see."), asked]
    assert well_formed([outcome, asked, outcome], goes_on=False) == [asked]
    assert well_formed([asked, silent], goes_on=True) == [asked, silent]
    assert well_formed([asked, silent], goes_on=False) == [asked]
