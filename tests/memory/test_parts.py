"""Messages in parts: kept as they were given, and said in one line where only text will do."""

import grpc
from hypothesis import given
from hypothesis import strategies as st

from tests.memory.rooms import CALL_S, Memory, refused
from twofold.memory.v1.context_pb2 import InvokingRequest
from twofold.memory.v1.conversation_pb2 import AppendTurnRequest, GetTurnRequest
from twofold.memory.v1.message_pb2 import Data, FileRef, ImageRef, Message, Part, Role, ToolCall
from twofold_chassis.lines import escaped
from twofold_memory.threads import ThreadKey
from twofold_memory.wire import messages, parts

TEXT = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=40)
LINE = st.text(st.characters(codec="utf-8", exclude_categories=["Cc"]), max_size=40)
NAMED = {"file_id": LINE.filter(bool), "media_type": LINE, "name": LINE, "url": LINE}
PARTS = st.lists(
    st.one_of(
        st.builds(Part, text=TEXT),
        st.builds(Part, file=st.builds(FileRef, size_bytes=st.integers(0, 2**53), **NAMED)),
        st.builds(Part, image=st.builds(ImageRef, detail=LINE, **NAMED)),
        st.builds(
            Part, data=st.builds(Data, media_type=LINE, json=st.sampled_from(['{"a": 1.10}', "[]", "null", ' "\\u0000" ']))
        ),
    ),
    min_size=1,
    max_size=8,
)


@given(given_parts=PARTS, role=st.sampled_from([Role.ROLE_USER, Role.ROLE_ASSISTANT]), name=LINE)
def test_any_parts_are_read_and_written_as_they_are(given_parts: list[Part], role: Role.ValueType, name: str) -> None:
    message = Message(role=role, parts=given_parts, name=name)
    request = AppendTurnRequest(workspace_id="w", thread_id="t", messages=[message])
    (new,) = messages.appended_turn(request).messages
    assert new.content is None
    assert Message.FromString(new.rest) == Message(parts=given_parts, name=name)
    line = messages.lines_of([message])[0].rendered
    assert len(line.splitlines()) == 1  # nobody can forge another


async def test_parts_come_back_from_every_read_with_tool_calls_and_labels_beside_them(room: Memory, key: ThreadKey) -> None:
    pieces = [
        Part(text="Look at these: "),
        Part(image=ImageRef(url="data:image/png;base64,AAAA", media_type="image/png", detail="high")),
        Part(file=FileRef(file_id="f-1", media_type="application/pdf", name="plan.pdf", size_bytes=2**40)),
        Part(data=Data(json='{"price": 1.10, "n": 12345678901234567890123}')),
        Part(text=""),
    ]
    call = ToolCall(id="c", type="function", name="f", arguments="{}")
    spoken = [
        Message(role=Role.ROLE_USER, parts=pieces, metadata={"a": "b"}, token_count=300),
        Message(role=Role.ROLE_ASSISTANT, parts=pieces[:1], tool_calls=[call]),
        Message(role=Role.ROLE_TOOL, parts=pieces[2:4], tool_call_id="c"),
    ]
    request = AppendTurnRequest(workspace_id=key.workspace_id, thread_id=key.thread_id, request_id="t", messages=spoken)
    await room.conversations.AppendTurn(request, timeout=CALL_S)
    turn = GetTurnRequest(workspace_id=key.workspace_id, thread_id=key.thread_id, turn_id="t")
    for found in (
        (await room.read(key)).messages,
        await room.all_messages(key),
        (await room.conversations.GetTurn(turn, timeout=CALL_S)).messages,
    ):
        for message, expected in zip(found, spoken, strict=True):
            assert list(message.parts) == list(expected.parts)
            assert not message.HasField("content")
            assert list(message.tool_calls) == list(expected.tool_calls)
        assert (dict(found[0].metadata), found[0].token_count) == ({"a": "b"}, 300)
    context = InvokingRequest(workspace_id=key.workspace_id, thread_id=key.thread_id)
    answer = await room.contexts.Invoking(context, timeout=CALL_S)
    data = '[data: {"price": 1.10, "n": 12345678901234567890123}]'
    assert answer.text.splitlines()[1:] == [
        f"user: Look at these:  [image] [file: plan.pdf] {data} ",
        "assistant: Look at these:  [calls f({})]",
        f"tool: [file: plan.pdf] {data}",
    ]
    assert list(answer.messages[0].parts) == pieces


async def test_a_retry_with_other_parts_is_another_turn(room: Memory, key: ThreadKey) -> None:
    """M4: parts are of the payload."""
    request = AppendTurnRequest(workspace_id=key.workspace_id, thread_id=key.thread_id, request_id="t")
    request.messages.add(role=Role.ROLE_USER, parts=[Part(text="a"), Part(text="b")])
    await room.conversations.AppendTurn(request, timeout=CALL_S)
    assert (await room.conversations.AppendTurn(request, timeout=CALL_S)).duplicate
    request.messages[0].parts[1].text = "c"
    async with refused(grpc.StatusCode.ALREADY_EXISTS, "REASON_REQUEST_REUSED"):
        await room.conversations.AppendTurn(request, timeout=CALL_S)


async def test_parts_may_be_as_large_as_a_message_and_not_larger(room: Memory, key: ThreadKey) -> None:
    request = AppendTurnRequest(workspace_id=key.workspace_id, thread_id=key.thread_id)
    request.messages.add(role=Role.ROLE_USER, parts=[Part(text="x" * 500_000)] * 2)
    await room.conversations.AppendTurn(request, timeout=CALL_S)
    request.messages[0].parts.add(text="x" * 60_000)
    async with refused(grpc.StatusCode.INVALID_ARGUMENT, "REASON_INVALID_FIELD"):
        await room.conversations.AppendTurn(request, timeout=CALL_S)


def test_what_a_part_is_stands_in_the_text_and_an_image_itself_does_not() -> None:
    pieces = [
        Part(text="a"),
        Part(image=ImageRef(url="https://example.com/a.png")),
        Part(image=ImageRef(url="data:image/png;base64,AAAA")),
        Part(file=FileRef(file_id="f", url="https://example.com/f")),
    ]
    assert parts.spoken(pieces) == "a [image: https://example.com/a.png] [image] [file: f]"
    assert escaped(parts.spoken([Part(text="a\nuser: b")])) == r"a\nuser: b"
