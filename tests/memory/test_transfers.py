"""Conversations in and out as streams: once, in order, identical, whatever becomes of the stream; bad lines by number."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Iterable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import asyncpg
import grpc
import pytest

from tests.memory.conftest import Worker
from tests.memory.rooms import CALL_S, Memory, connected, database_of, redis_of, refused, seqs, serving, texts, thread
from tests.waiting import until
from twofold.memory.v1 import transfer_pb2 as pb
from twofold.memory.v1.conversation_pb2 import AppendTurnRequest, DeleteConversationRequest, GetConversationRequest
from twofold.memory.v1.message_pb2 import Data, FileRef, ImageRef, Message, Part, Role
from twofold.memory.v1.revision_pb2 import DeleteMessageRequest, EditMessageRequest, NewContent
from twofold_chassis.refusals import StoreUnavailable
from twofold_cli.embedded.postgres import EmbeddedPostgres
from twofold_cli.embedded.redis import EmbeddedRedis
from twofold_memory.imports import LINE_BYTES_MAX, Imports, Order
from twofold_memory.threads import Conversation, KeptTurn, NewTurn, ThreadKey, Wanted
from twofold_memory.wire import transcripts as transcripts_wire

FILE = Path(__file__).parents[3] / "shared" / "data" / "airline-agent-transcripts.jsonl"
CHUNK = 100_000

Sql = asyncpg.Pool
Told = dict[str, Any]


@dataclass
class Result:
    """What an import has said."""

    progress: list[pb.ImportProgress] = field(default_factory=list)
    errors: list[pb.ImportLineError] = field(default_factory=list)
    summary: pb.ImportSummary = field(default_factory=pb.ImportSummary)

    @property
    def bad_lines(self) -> list[tuple[int, str]]:
        return sorted((error.line, error.field) for error in self.errors)


def header(workspace_id: str, import_id: str = "import", **options: Any) -> pb.ImportConversationsRequest:
    return pb.ImportConversationsRequest(header=pb.ImportHeader(workspace_id=workspace_id, import_id=import_id, **options))


def cut(text: bytes, size: int = CHUNK) -> Iterable[pb.ImportConversationsRequest]:
    for begin in range(0, len(text), size):
        yield pb.ImportConversationsRequest(chunk=text[begin : begin + size])


async def imported(
    memory: Memory, workspace_id: str, text: bytes, *, size: int = CHUNK, import_id: str = "import", **options: Any
) -> Result:
    result = Result()
    requests = [header(workspace_id, import_id, **options), *cut(text, size)]
    async for answer in memory.transfers.ImportConversations(iter(requests), timeout=CALL_S):
        keep(answer, result)
    return result


def keep(answer: pb.ImportConversationsResponse, result: Result) -> None:
    match answer.WhichOneof("answer"):
        case "progress":
            result.progress.append(answer.progress)
        case "line_error":
            result.errors.append(answer.line_error)
        case "summary":
            result.summary = answer.summary


async def exported(memory: Memory, workspace_id: str, **options: Any) -> bytes:
    request = pb.ExportConversationsRequest(workspace_id=workspace_id, **options)
    return b"".join([answer.chunk async for answer in memory.transfers.ExportConversations(request, timeout=CALL_S)])


async def lines_of(memory: Memory, workspace_id: str, **options: Any) -> list[Told]:
    return [json.loads(line) for line in (await exported(memory, workspace_id, **options)).splitlines()]


def jsonl(*lines: object) -> bytes:
    return b"".join(json.dumps(line, ensure_ascii=False, separators=(",", ":")).encode() + b"\n" for line in lines)


def talk(thread_id: str, *texts_: str) -> Told:
    roles = ("user", "assistant")
    return {
        "thread_id": thread_id,
        "messages": [{"role": roles[index % 2], "content": text} for index, text in enumerate(texts_)],
    }


@pytest.fixture(scope="module")
def transcripts() -> bytes:
    if not FILE.exists():
        pytest.skip("the transcripts are not beside this repository (../shared/data/airline-agent-transcripts.jsonl)")
    return FILE.read_bytes()


async def test_all_real_conversations_come_out_byte_for_byte_as_they_went_in(
    room: Memory, other_room: Memory, workspace_id: str, transcripts: bytes
) -> None:
    first = await imported(room, workspace_id, transcripts)
    assert first.errors == []
    assert first.summary.progress == pb.ImportProgress(next_line=201, lines_read=200, conversations=200, messages=5108)
    out = await exported(other_room, workspace_id)
    assert sorted(out.splitlines()) == sorted(transcripts.splitlines())
    again = await imported(other_room, workspace_id, transcripts, size=7919)
    assert again.summary.progress == pb.ImportProgress(next_line=201, lines_read=200, conversations=200, messages_found=5108)
    assert await exported(room, workspace_id) == out
    assert [json.loads(line)["thread_id"] for line in out.splitlines()] == sorted(
        json.loads(line)["thread_id"] for line in out.splitlines()
    )


async def test_the_progress_is_told_after_each_hundred_lines(room: Memory, workspace_id: str) -> None:
    result = await imported(room, workspace_id, jsonl(*(talk(f"t{index}", "a") for index in range(450))))
    assert len(result.progress) >= 4
    told = [progress.lines_read for progress in result.progress]
    assert told == sorted(told)
    assert all(progress.next_line <= progress.lines_read + 1 for progress in result.progress)
    assert result.summary.progress.messages == 450


async def test_the_next_line_is_the_first_that_is_not_stored(room: Memory, sql: "Sql[Any]", workspace_id: str) -> None:
    await room.append(ThreadKey(workspace_id, "t5"), "before")
    lines = [talk(f"t{index}", "a") for index in range(150)]
    requests = iter([header(workspace_id), *cut(jsonl(*lines))])
    async with sql.acquire() as connection:
        holding = connection.transaction()
        await holding.start()
        await connection.execute(
            "SELECT FROM memory.conversations WHERE workspace_id = $1 AND thread_id = 't5' FOR UPDATE", workspace_id
        )
        result = Result()
        async for answer in room.transfers.ImportConversations(requests, timeout=CALL_S):
            keep(answer, result)
            if connection.is_in_transaction() and result.progress and result.progress[-1].lines_read >= 100:
                assert result.progress[-1].next_line == 6
                await holding.rollback()
    assert result.summary.progress.next_line == 151
    assert texts(await room.all_messages(ThreadKey(workspace_id, "t5"))) == ["before", "a"]


EVERYTHING = [
    {
        "thread_id": "unicode",
        "messages": [{"role": "user", "content": '👋🏽 \u2028 \u202e مرحبا \nassistant: \\n "x" \x07'}],
    },
    {"thread_id": "empty", "messages": []},
    {"thread_id": "full", "user_id": "ada", "title": "A title", "metadata": {"a": "b"}, "messages": []},
    {
        "thread_id": "roles",
        "messages": [
            {"role": "system", "content": "s"},
            {"role": "developer", "content": "d"},
            {"role": "user", "content": "", "name": "ada", "author": "u-1", "token_count": 0, "metadata": {"k": "v"}},
            {"role": "assistant", "content": "t", "refusal": None, "annotations": [], "audio": {"id": "x", "n": [1, 2.5]}},
            {
                "role": "assistant",
                "content": None,
                "tool_calls": [
                    {"function": {"arguments": "{not json", "name": "f"}, "id": "c", "type": "function"},
                    {"function": {"arguments": "", "name": "g"}, "id": "d", "type": "function"},
                ],
            },
            {"role": "tool", "content": "", "tool_call_id": "c", "name": "f"},
        ],
    },
    {
        "thread_id": "parts",
        "messages": [
            {
                "role": "user",
                "content": [
                    {"type": "text", "text": ""},
                    {"type": "text", "text": "x", "cache_control": {"type": "ephemeral"}},
                    {"type": "image_url", "image_url": {"url": "https://example.com/a.png", "detail": "low"}},
                    {"type": "image_url", "image_url": {"url": ""}},
                    {"type": "file", "file": {"file_data": "data:text/plain;base64,YQ==", "filename": "a.txt"}},
                    {"type": "file", "file": {"file_id": "f-1", "size_bytes": 7}},
                    {"type": "input_audio", "input_audio": {"data": "YQ==", "format": "wav"}},
                    {"type": "json", "media_type": "application/vnd.x+json", "json": '{ "a" : 1.00 }'},
                ],
            }
        ],
    },
]


@pytest.mark.parametrize("line", EVERYTHING, ids=lambda line: line["thread_id"])
async def test_whatever_a_line_may_hold_comes_out_as_it_went_in(room: Memory, workspace_id: str, line: Told) -> None:
    result = await imported(room, workspace_id, jsonl(line), size=1)
    assert result.errors == []
    out = await lines_of(room, workspace_id)
    assert out == [line]


async def test_parts_become_parts_of_messages(room: Memory, workspace_id: str) -> None:
    await imported(room, workspace_id, jsonl(EVERYTHING[-1]))
    (message,) = await room.all_messages(ThreadKey(workspace_id, "parts"))
    kinds = [part.WhichOneof("kind") for part in message.parts]
    assert kinds == ["text", "data", "image", "data", "file", "file", "data", "data"]
    assert message.parts[2].image == ImageRef(url="https://example.com/a.png", detail="low")
    assert message.parts[5].file == FileRef(file_id="f-1", size_bytes=7)


async def test_what_was_not_imported_can_be_exported_and_imported_elsewhere(room: Memory, workspace_id: str) -> None:
    parts = [
        Part(text="see"),
        Part(image=ImageRef(file_id="i", media_type="image/png", name="n")),
        Part(data=Data(json="[1]")),
        Part(data=Data(media_type="application/x-chat-completion-part+json", json="[1]")),
    ]
    key = ThreadKey(workspace_id, "t")
    messages = [
        Message(role=Role.ROLE_USER, parts=parts, author="x", metadata={"json:role": "no json", "json:content": '"x"'}),
        Message(role=Role.ROLE_ASSISTANT, content="x", metadata={"json:z": "no json"}),
    ]
    request = AppendTurnRequest(workspace_id=workspace_id, thread_id="t", messages=messages)
    await room.conversations.AppendTurn(request, timeout=CALL_S)
    (line,) = await lines_of(room, workspace_id)
    assert line["messages"][0]["metadata"] == {"json:role": "no json", "json:content": '"x"'}
    assert line["messages"][1]["metadata"] == {"json:z": "no json"}
    line["messages"][0]["metadata"] = {"a": "b"}  # the prefix is the importer's own
    line["messages"][1].pop("metadata")
    other = f"{workspace_id}-other"
    assert (await imported(room, other, jsonl(line))).errors == []
    (copied, _) = await room.all_messages(ThreadKey(other, "t"))
    assert list(copied.parts) == parts
    assert len(await room.all_messages(key)) == 2


async def test_a_conversation_is_cut_into_turns_where_the_user_speaks_and_where_it_is_too_large(
    room: Memory, workspace_id: str
) -> None:
    large = [{"role": "assistant", "content": "x" * 1_000_000} for _ in range(5)]
    many = [{"role": "assistant", "content": str(index)} for index in range(1001)]
    messages = [
        {"role": "system", "content": "s"},
        {"role": "user", "content": "u"},
        *large,
        {"role": "user", "content": "v"},
    ]
    result = await imported(
        room, workspace_id, jsonl({"thread_id": "t", "messages": messages}, {"thread_id": "many", "messages": many})
    )
    assert result.errors == []
    assert result.summary.progress.messages == 8 + 1001
    stored = await room.all_messages(ThreadKey(workspace_id, "t"))
    assert [message.seq for message in stored if message.turn_index == 0] == [1, 2, 6, 8]
    stored = await room.all_messages(ThreadKey(workspace_id, "many"))
    assert texts(stored) == [str(index) for index in range(1001)]
    assert [message.seq for message in stored if message.turn_index == 0] == [1, 501, 1001]
    (out,) = await lines_of(room, workspace_id, thread_ids=["t"])
    assert out["messages"] == messages


BAD = [
    (b"{not json}", ""),
    (b'"text"', ""),
    (b"\xff\xfe", ""),
    (b'{"messages": "x"}', "messages"),
    (b'{"thread_id": "x"}', "messages"),
    (b'{"thread_id": 7, "messages": []}', "thread_id"),
    (b'{"thread_id": "a\\u0000b", "messages": []}', "thread_id"),
    (b'{"nonsense": 1, "messages": []}', "nonsense"),
    (b'{"metadata": {"a": 1}, "messages": []}', "metadata.a"),
    (b'{"messages": [{"role": "user", "content": "x"}, 7]}', "messages[1]"),
    (b'{"messages": [{"role": "robot", "content": "x"}]}', "messages[0].role"),
    (b'{"messages": [{"role": "user"}]}', "messages[0].content"),
    (b'{"messages": [{"role": "user", "content": 7}]}', "messages[0].content"),
    (b'{"messages": [{"role": "user", "content": []}]}', "messages[0].content"),
    (b'{"messages": [{"role": "user", "content": "a\\u0000b"}]}', "messages[0].content"),
    (b'{"messages": [{"role": "user", "content": "\\ud800"}]}', ""),
    (b'{"messages": [{"role": "user", "content": NaN}]}', ""),
    (b'{"messages": [{"role": "user", "content": "x", "n": 1e999}]}', ""),
    (b'{"messages": [{"role": "tool", "content": "x"}]}', "messages[0].tool_call_id"),
    (b'{"messages": [{"role": "user", "content": "x", "token_count": -1}]}', "messages[0].token_count"),
    (b'{"messages": [{"role": "user", "content": "x", "metadata": {"json:x": "y"}}]}', "messages[0].metadata"),
    (
        b'{"messages": [{"role": "assistant", "tool_calls": [{"id": "c", "type": "custom", "custom": {}}]}]}',
        "messages[0].tool_calls[0].custom",
    ),
    (b"[" * 100_000, ""),
    (b'{"messages": [{"role": "user", "content": "' + b"x" * (1024 * 1024 + 1) + b'"}]}', "messages[0].content"),
    (b'{"messages": [{"role": "user", "content": "x", "more": "' + b"x" * 1024 + b'"}]}', "messages[0].more"),
]


async def test_bad_lines_are_told_by_number_and_field_and_the_good_ones_kept(room: Memory, workspace_id: str) -> None:
    lines: list[bytes] = []
    for index, (line, _) in enumerate(BAD):
        lines += [line, jsonl(talk(f"good-{index}", "u", "a")).strip(), b"", b"  \r"]
    result = await imported(room, workspace_id, b"\n".join(lines))
    assert result.bad_lines == [(4 * index + 1, where) for index, (_, where) in enumerate(BAD)]
    assert {error.reason for error in result.errors} == {"REASON_INVALID_FIELD"}
    assert all(error.message for error in result.errors)
    progress = result.summary.progress
    assert (progress.lines_read, progress.errors, progress.conversations) == (len(lines), len(BAD), len(BAD))
    assert progress.next_line == len(lines) + 1
    assert not result.summary.stopped
    found = await lines_of(room, workspace_id)
    assert sorted(line["thread_id"] for line in found) == sorted(f"good-{index}" for index in range(len(BAD)))


async def test_a_line_that_is_too_long_is_told_and_the_next_one_kept(room: Memory, workspace_id: str) -> None:
    text = b'{"messages": "' + b"x" * LINE_BYTES_MAX + b'"}\n' + jsonl(talk("good", "u"))
    result = await imported(room, workspace_id, text, size=1024 * 1024)
    assert result.bad_lines == [(1, "")]
    assert [line["thread_id"] for line in await lines_of(room, workspace_id)] == ["good"]


async def test_lines_that_do_not_fit_what_is_stored_are_told_with_the_reason(room: Memory, workspace_id: str) -> None:
    await room.append(ThreadKey(workspace_id, "others"), "x", user_id="grace")
    await room.append(ThreadKey(workspace_id, "gone"), "x")
    await room.conversations.DeleteConversation(
        DeleteConversationRequest(workspace_id=workspace_id, thread_id="gone"), timeout=CALL_S
    )
    lines = [talk("others", "a") | {"user_id": "ada"}, talk("gone", "a"), talk("mine", "a")]
    result = await imported(room, workspace_id, jsonl(*lines), user_id="bob")
    assert sorted((error.line, error.reason) for error in result.errors) == [
        (1, "REASON_CONVERSATION_UNKNOWN"),
        (2, "REASON_CONVERSATION_DELETED"),
    ]
    (mine,) = await lines_of(room, workspace_id, user_id="bob")
    assert (mine["thread_id"], mine["user_id"]) == ("mine", "bob")
    lines[2] = talk("mine", "something else")
    result = await imported(room, workspace_id, jsonl(*lines), user_id="bob")
    assert [error.reason for error in result.errors if error.line == 3] == ["REASON_REQUEST_REUSED"]


async def test_an_import_that_is_to_stop_at_a_bad_line_does_and_goes_on_from_it(room: Memory, workspace_id: str) -> None:
    good = [talk(f"t{index:02}", "u") for index in range(40)]
    text = jsonl(*good[:20]) + b"broken\n" + jsonl(*good[20:])
    result = await imported(room, workspace_id, text, on_error=pb.ON_LINE_ERROR_STOP)
    assert result.summary.stopped
    assert result.bad_lines == [(21, "")]
    assert result.summary.progress.next_line == 21
    rest = await imported(room, workspace_id, jsonl(*good[20:]), first_line=22, on_error=pb.ON_LINE_ERROR_STOP)
    assert rest.summary.progress.next_line == 42
    out = await lines_of(room, workspace_id)
    assert out == good
    # The numbers are part of the turns' ids: sent as a whole, nothing is stored twice.
    again = await imported(room, workspace_id, text)
    assert (again.summary.progress.messages, again.summary.progress.messages_found) == (0, 40)


async def test_lines_of_one_conversation_are_stored_in_their_order(room: Memory, workspace_id: str) -> None:
    lines = [talk("one", *(f"{number}-{index}" for index in range(10))) for number in range(50)]
    result = await imported(room, workspace_id, jsonl(*lines))
    assert result.errors == []
    stored = await room.all_messages(ThreadKey(workspace_id, "one"))
    assert texts(stored) == [message["content"] for line in lines for message in line["messages"]]


async def test_a_line_is_not_stored_before_one_of_its_conversation_that_could_not_be(
    monkeypatch: pytest.MonkeyPatch, workspace_id: str
) -> None:
    """Postgres is away for as long as anybody waits, and back a moment later: the import is sent again, in its order."""
    monkeypatch.setattr("twofold_memory.imports._PATIENCE_S", 0.0)
    stored: list[str] = []

    class Store:
        async def make(self, new: Conversation) -> None:
            pass

        async def append(self, turn: NewTurn, wanted: Wanted) -> KeptTurn:
            if not stored and turn.messages[0].content == "first":
                raise StoreUnavailable("away for a moment")
            stored.append(turn.messages[0].content or "")
            return KeptTurn(1, 1, 1, datetime.now(UTC), None, duplicate=False)

    async def chunks() -> AsyncIterator[bytes]:
        yield jsonl(talk("one", "first"), talk("one", "second"), talk("one", "third"))

    with pytest.raises(StoreUnavailable):
        async for _ in Imports(Store(), Store()).run(Order(workspace_id, "import"), chunks(), transcripts_wire.imported):
            pass
    assert stored == []


async def test_a_line_without_thread_id_gets_the_same_one_each_time(room: Memory, workspace_id: str) -> None:
    lines = [{"messages": [{"role": "user", "content": str(index)}]} for index in range(3)]
    for _ in range(2):
        assert (await imported(room, workspace_id, jsonl(*lines))).errors == []
    out = await lines_of(room, workspace_id)
    assert sorted(line["messages"][0]["content"] for line in out) == ["0", "1", "2"]
    await imported(room, workspace_id, jsonl(*lines), import_id="another")
    assert len(await lines_of(room, workspace_id)) == 6


async def test_title_and_metadata_of_a_conversation_that_exists_stay_as_they_are(room: Memory, workspace_id: str) -> None:
    line = talk("t", "u") | {"title": "First", "metadata": {"a": "1"}}
    await imported(room, workspace_id, jsonl(line))
    await imported(room, workspace_id, jsonl(talk("t", "v") | {"title": "Second"}), import_id="second")
    (out,) = await lines_of(room, workspace_id)
    assert (out["title"], out["metadata"], len(out["messages"])) == ("First", {"a": "1"}, 2)


async def test_an_import_that_is_cut_off_goes_on_at_another_worker_and_stores_nothing_twice(
    new_worker: Worker, room: Memory, workspace_id: str
) -> None:
    lines = [talk(f"t{index:03}", "u", "a") for index in range(300)]
    text = jsonl(*lines)
    half = len(jsonl(*lines[:150]))

    async def requests(enough: asyncio.Event) -> AsyncIterator[pb.ImportConversationsRequest]:
        yield header(workspace_id)
        for request in cut(text[:half], 1000):
            yield request
        await enough.wait()

    result, never = Result(), asyncio.Event()
    async with contextlib.AsyncExitStack() as clients:
        async with new_worker() as worker:
            client = await clients.enter_async_context(connected(worker.port))
            call = client.transfers.ImportConversations(requests(never), timeout=CALL_S)
            reading = asyncio.create_task(rest_of(call, result))
            await until(lambda: bool(result.progress) and result.progress[-1].next_line > 100)
        # The worker has ended, the stream with it.
        async with refused(grpc.StatusCode.UNAVAILABLE, "REASON_DRAINING"):
            await reading
    following = result.progress[-1].next_line
    assert 100 < following <= 151
    rest = await imported(room, workspace_id, jsonl(*lines[following - 1 :]), first_line=following)
    assert rest.errors == []
    assert await lines_of(room, workspace_id) == lines
    await imported(room, workspace_id, text)
    assert await lines_of(room, workspace_id) == lines


async def rest_of(call: Any, result: Result) -> None:
    async for answer in call:
        keep(answer, result)


@pytest.mark.parametrize(
    ("requests", "where"),
    [
        ([], "header"),
        ([pb.ImportConversationsRequest(chunk=b"x")], "header"),
        ([header("ws"), header("ws")], "chunk"),
        ([header("ws"), pb.ImportConversationsRequest()], "chunk"),
        ([header("ws"), pb.ImportConversationsRequest(chunk=b"x" * (1024 * 1024 + 1))], "chunk"),
        ([header("ws", "")], "header.import_id"),
        ([header("ws", on_error=9)], "header.on_error"),
        ([header("ws", first_line=-1)], "header.first_line"),
    ],
)
async def test_requests_that_are_no_import_are_refused(
    room: Memory, requests: Sequence[pb.ImportConversationsRequest], where: str
) -> None:
    async with refused(grpc.StatusCode.INVALID_ARGUMENT, "REASON_INVALID_FIELD") as told:
        async for _ in room.transfers.ImportConversations(iter(requests), timeout=CALL_S):
            pass
    assert str(told.value.details()).startswith(f"{where}:")


async def test_too_many_imports_at_once_are_refused(new_worker: Worker, workspace_id: str) -> None:
    go_on = asyncio.Event()

    async def held() -> AsyncIterator[pb.ImportConversationsRequest]:
        yield header(workspace_id)
        yield pb.ImportConversationsRequest(chunk=b"\n" * 100)
        await go_on.wait()

    async with new_worker() as worker:
        calls = [worker.transfers.ImportConversations(held(), timeout=CALL_S) for _ in range(4)]
        for call in calls:
            assert (await anext(aiter(call))).HasField("progress")
        async with refused(grpc.StatusCode.RESOURCE_EXHAUSTED, "REASON_OVERLOADED"):
            await imported(worker, workspace_id, b"")
        go_on.set()
        for call in calls:
            async for _ in call:
                pass
        assert (await imported(worker, workspace_id, b"")).summary.progress.next_line == 1


# Out


async def test_an_export_can_be_narrowed(room: Memory, workspace_id: str) -> None:
    lines = [talk(f"t{index}", "u") | {"user_id": ("ada", "bob")[index % 2]} for index in range(10)]
    await imported(room, workspace_id, jsonl(*lines))
    await room.conversations.DeleteConversation(
        DeleteConversationRequest(workspace_id=workspace_id, thread_id="t0"), timeout=CALL_S
    )

    async def ids(**options: Any) -> list[str]:
        return [line["thread_id"] for line in await lines_of(room, workspace_id, **options)]

    assert await ids() == [f"t{index}" for index in range(1, 10)]
    assert await ids(include_deleted=True) == [f"t{index}" for index in range(10)]
    assert await ids(user_id="ada") == ["t2", "t4", "t6", "t8"]
    assert await ids(thread_ids=["t3", "t4", "nothing"]) == ["t3", "t4"]
    assert await ids(thread_ids=["t3", "t4"], user_id="bob") == ["t3"]
    found = await room.conversations.GetConversation(
        GetConversationRequest(workspace_id=workspace_id, thread_id="t5"), timeout=CALL_S
    )
    at = found.conversation.update_time
    assert "t5" in await ids(updated_from=at)
    assert "t5" not in await ids(updated_before=at)
    assert sorted(await ids(updated_from=at) + await ids(updated_before=at)) == await ids()


async def test_an_export_with_the_services_fields_shows_them_and_can_be_imported(room: Memory, workspace_id: str) -> None:
    key = ThreadKey(workspace_id, "t")
    await room.append(key, "u", "a", "v", turn_id="turn-1")
    await room.revisions.EditMessage(
        EditMessageRequest(workspace_id=workspace_id, thread_id="t", seq=1, content=NewContent(text="U")),
        timeout=CALL_S,
    )
    await room.revisions.DeleteMessage(DeleteMessageRequest(workspace_id=workspace_id, thread_id="t", seq=2), timeout=CALL_S)
    (plain,) = await lines_of(room, workspace_id)
    assert [message["content"] for message in plain["messages"]] == ["U", "v"]
    (line,) = await lines_of(room, workspace_id, include_service_fields=True, include_deleted=True)
    first, second, third = line["messages"]
    assert (first["seq"], first["turn_id"], first["turn_index"], first["revision"]) == (1, "turn-1", 0, 1)
    assert (second["status"], second["content"]) == ("deleted", None)
    assert {"create_time", "update_time"} <= line.keys()
    assert third["create_time"].endswith("Z")
    other = f"{workspace_id}-other"
    assert (await imported(room, other, jsonl(line))).errors == []
    assert await lines_of(room, other) == [plain]


async def test_an_export_goes_on_from_its_last_token_and_chunks_are_bounded(room: Memory, workspace_id: str) -> None:
    sizes = [10, 700_000, 10, 900_000, 10, 800_000, 10, 900_000, 10]
    lines = [talk(f"t{index}", "x" * size) for index, size in enumerate(sizes)]
    lines.append({"thread_id": "t9", "messages": [{"role": "user", "content": "y" * 1_000_000} for _ in range(4)]})
    await imported(room, workspace_id, jsonl(*lines))
    request = pb.ExportConversationsRequest(workspace_id=workspace_id)
    answers = [answer async for answer in room.transfers.ExportConversations(request, timeout=CALL_S)]
    assert max(len(answer.chunk) for answer in answers) <= 1024 * 1024
    assert b"".join(answer.chunk for answer in answers) == jsonl(*lines)
    assert answers[-1].next_page_token
    tokens = [index for index, answer in enumerate(answers) if answer.next_page_token]
    assert len(tokens) >= 3
    assert len(tokens) < len(answers)
    for index in tokens:
        before = b"".join(answer.chunk for answer in answers[: index + 1])
        rest = await exported(room, workspace_id, page_token=answers[index].next_page_token)
        assert before + rest == jsonl(*lines)
    async with refused(grpc.StatusCode.INVALID_ARGUMENT, "REASON_INVALID_PAGE_TOKEN"):
        await exported(room, f"{workspace_id}-other", page_token=answers[tokens[0]].next_page_token)


async def test_a_conversation_whose_past_changes_while_it_is_sent_aborts_the_export_and_is_right_the_next_time(
    room: Memory, other_room: Memory, workspace_id: str
) -> None:
    big = {"thread_id": "big", "messages": [{"role": "user", "content": f"{index}" + "x" * 500_000} for index in range(30)]}
    await imported(room, workspace_id, jsonl(talk("a", "before"), big), size=1024 * 1024)
    request = pb.ExportConversationsRequest(workspace_id=workspace_id)
    call = room.transfers.ExportConversations(request, timeout=CALL_S)
    first = await anext(aiter(call))
    assert len(first.chunk) > 500_000
    edit = EditMessageRequest(workspace_id=workspace_id, thread_id="big", seq=30, content=NewContent(text="edited"))
    await other_room.revisions.EditMessage(edit, timeout=CALL_S)
    async with refused(grpc.StatusCode.ABORTED, "REASON_HISTORY_CHANGED"):
        async for _ in call:
            pass
    big["messages"][29] = {"role": "user", "content": "edited"}  # type: ignore[index]
    assert await lines_of(room, workspace_id) == [talk("a", "before"), big]


async def test_an_export_while_turns_are_appended_holds_whole_states(
    room: Memory, other_room: Memory, workspace_id: str
) -> None:
    key, stop = thread(workspace_id), asyncio.Event()

    async def write() -> None:
        number = 1
        while not stop.is_set():
            await other_room.append(key, f"{number}", "x" * 2000)
            number += 1

    await other_room.append(key, "0", "x" * 2000)
    writing = asyncio.create_task(write())
    lengths = []
    for _ in range(20):
        for line in await lines_of(room, workspace_id):
            asked = [message["content"] for message in line["messages"][::2]]
            assert asked == [str(number) for number in range(len(asked))]
            assert len(line["messages"]) == 2 * len(asked)
            lengths.append(len(asked))
    stop.set()
    await writing
    assert lengths == sorted(lengths)
    assert lengths


async def test_an_import_lives_through_a_restart_of_postgres_and_the_loss_of_redis(
    own_postgres: EmbeddedPostgres, own_redis: EmbeddedRedis, workspace_id: str
) -> None:
    database = database_of(await own_postgres.create_database("memory"), command_timeout_s=2)
    lines = [talk(f"t{index:03}", *(f"{index}-{number}" for number in range(6))) for index in range(200)]

    async with serving(database, redis_of(own_redis)) as memory:

        async def requests() -> AsyncIterator[pb.ImportConversationsRequest]:
            yield header(workspace_id)
            for index, line in enumerate(lines):
                if index == 80:
                    await own_redis.kill()
                    await own_postgres.kill()
                    restart.set()
                yield pb.ImportConversationsRequest(chunk=jsonl(line))

        restart = asyncio.Event()

        async def start_again() -> None:
            await restart.wait()
            await own_postgres.start()
            await own_redis.start()

        result, again = Result(), asyncio.create_task(start_again())
        async for answer in memory.transfers.ImportConversations(requests(), timeout=CALL_S):
            keep(answer, result)
        await again
        assert result.errors == []
        assert result.summary.progress.conversations == 200
        assert await lines_of(memory, workspace_id) == lines
        for line in lines[:20]:
            key = ThreadKey(workspace_id, line["thread_id"])
            assert seqs(await memory.all_messages(key)) == [1, 2, 3, 4, 5, 6]
