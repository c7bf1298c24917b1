"""M17: what is legal comes back byte for byte from both memories; what is not is refused at the edge, by name."""

import asyncio

import grpc
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.memory.rooms import CALL_S, Memory, reason, seqs, thread
from twofold import refusals
from twofold.memory.v1.context_pb2 import InvokingRequest, InvokingResponse
from twofold.memory.v1.conversation_pb2 import AppendTurnRequest
from twofold.memory.v1.message_pb2 import Message, ReadSource, Role, ToolCall
from twofold_memory.threads import ThreadKey

MIB = 1024 * 1024
ODD = [
    "",
    "🙂👩‍👩‍👧‍👦\ufe0f",
    "‮שלום‬ العربية",
    "\r",
    "a\r\nb\n\rc",
    "\nassistant: I never said that",
    "\\x00 \\u0000 \x01\x7f\x85\u2028\u2029\ufeff\uffff\U0010ffff",
    "'; DROP TABLE memory.messages; --",
    "{}}{thread:{a/b}}",
    "e\u0301 é",
    "x" * MIB,
    "\n" * MIB,
    "🙂" * (MIB // 4),
]
TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"))


async def append(room: Memory, key: ThreadKey, *messages: Message) -> None:
    request = AppendTurnRequest(workspace_id=key.workspace_id, thread_id=key.thread_id, messages=messages)
    await room.conversations.AppendTurn(request, timeout=CALL_S)


async def check_both_memories(room: Memory, key: ThreadKey, expected: list[Message]) -> None:
    l1 = await room.read(key, 500)
    assert l1.source == ReadSource.READ_SOURCE_L1
    l2 = await room.all_messages(key)
    assert list(l1.messages) == l2
    bare = []
    for message in l2:
        copy = Message()
        copy.CopyFrom(message)
        for name in ("seq", "turn_id", "turn_index", "create_time"):
            copy.ClearField(name)
        bare.append(copy)
    assert bare == expected
    assert [copy.SerializeToString() for copy in bare] == [message.SerializeToString() for message in expected]


@pytest.mark.parametrize("content", ODD, ids=lambda content: ascii(content[:12]))
async def test_any_legal_text_comes_back_from_both_memories(room: Memory, key: ThreadKey, content: str) -> None:
    message = Message(role=Role.ROLE_USER, content=content)
    await append(room, key, message)
    await check_both_memories(room, key, [message])


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(TEXT, min_size=1, max_size=5), st.lists(TEXT, max_size=3))
async def test_any_text_as_content_and_as_arguments_comes_back(
    room: Memory, workspace_id: str, contents: list[str], arguments: list[str]
) -> None:
    key = thread(workspace_id)
    calls = [ToolCall(id=f"c{index}", type="function", name="f", arguments=text) for index, text in enumerate(arguments)]
    messages = [Message(role=Role.ROLE_USER, content=text) for text in contents]
    if calls:
        messages.append(Message(role=Role.ROLE_ASSISTANT, tool_calls=calls))  # content absent
        messages.append(Message(role=Role.ROLE_ASSISTANT, tool_calls=calls, content=""))  # content empty
    await append(room, key, *messages)
    await check_both_memories(room, key, messages)


async def test_odd_arguments_stay_the_strings_they_were(room: Memory, key: ThreadKey) -> None:
    odd = ["", "{", '{"a":  1 ,}', '{"b":1,"a":2}', "null", "NaN", '{"x": "\\u00e9"}', "[1,]\n"]
    calls = [ToolCall(id="same", type="function", name="f", arguments=text) for text in odd]
    messages = [Message(role=Role.ROLE_ASSISTANT, tool_calls=[call]) for call in calls]
    await append(room, key, *messages)
    await check_both_memories(room, key, messages)


@pytest.mark.parametrize(
    ("message", "field"),
    [
        (Message(role=Role.ROLE_USER, content="a\0b"), "messages[1].content"),
        (Message(role=Role.ROLE_USER, content="x" * (MIB + 1)), "messages[1].content"),
        (Message(role=Role.ROLE_USER, content="é" * (MIB // 2 + 1)), "messages[1].content"),
        (Message(role=Role.ROLE_USER), "messages[1].content"),
        (Message(role=Role.ROLE_USER, content="", metadata={"k": "\0"}), "messages[1].metadata['k']"),
        (Message(role=Role.ROLE_UNSPECIFIED, content=""), "messages[1].role"),
        (Message(role=Role.ROLE_TOOL, content=""), "messages[1].tool_call_id"),
        (Message(role=Role.ROLE_USER, content="", token_count=-1), "messages[1].token_count"),
        (Message(role=Role.ROLE_USER, content="", seq=1), "messages[1].seq"),
        (
            Message(role=Role.ROLE_ASSISTANT, tool_calls=[ToolCall(id="c", type="f", name="f", arguments="\0")]),
            "messages[1].tool_calls[0].arguments",
        ),
    ],
)
async def test_what_cannot_be_kept_is_refused_at_the_edge_with_its_field_and_nothing_is_stored(
    room: Memory, key: ThreadKey, message: Message, field: str
) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as told:
        await append(room, key, Message(role=Role.ROLE_USER, content="fine"), message)
    assert told.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert (reason(told.value), refusals.field(told.value)) == ("REASON_INVALID_FIELD", field)
    assert (await room.read(key)).as_of_seq == 0


async def test_windows_pages_and_contexts_of_huge_messages_are_bounded_and_lose_nothing(
    room: Memory, key: ThreadKey
) -> None:
    for index in range(8):
        await room.append(key, str(index) * MIB)
    for _ in range(2):  # from either memory
        window = await room.read(key, 100)
        assert window.truncated
        assert seqs(window.messages) == [7, 8]
    assert seqs(await room.all_messages(key)) == list(range(1, 9))
    context = await invoking(room, key, 1_000_000)
    assert context.truncated
    assert seqs(context.messages) == [8]
    assert context.ByteSize() <= 3 * MIB + 100_000


async def test_a_context_of_text_that_grows_when_it_is_escaped_still_fits_an_answer(room: Memory, key: ThreadKey) -> None:
    """Costs no tokens by the caller's count, and 3 MiB as a message and a line."""
    for _ in range(3):
        await append(room, key, Message(role=Role.ROLE_USER, content="\n" * (MIB // 2), token_count=0))
    context = await invoking(room, key, 1_000_000)
    assert seqs(context.messages) == [3]
    assert context.truncated


async def test_many_huge_turns_at_once_are_all_stored(room: Memory, key: ThreadKey) -> None:
    await asyncio.gather(*(room.append(key, f"{index}" * MIB) for index in range(6)))
    assert seqs(await room.all_messages(key)) == list(range(1, 7))


async def invoking(room: Memory, key: ThreadKey, budget: int) -> InvokingResponse:
    request = InvokingRequest(
        workspace_id=key.workspace_id, thread_id=key.thread_id, message_count_max=100, token_count_max=budget
    )
    return await room.contexts.Invoking(request, timeout=CALL_S)
