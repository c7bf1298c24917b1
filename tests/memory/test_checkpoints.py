"""Checkpoints: lines that grow at their heads, forks that cost the same anywhere, deletions that harm no kept one."""

import asyncio
from typing import Any

import asyncpg
import grpc

from tests.memory.rooms import CALL_S, Memory, reason, refused, thread
from tests.waiting import until
from twofold.memory.v1.checkpoint_pb2 import (
    Checkpoint,
    DeleteCheckpointsRequest,
    DeleteCheckpointsResponse,
    ForkCheckpointRequest,
    GetCheckpointRequest,
    ListCheckpointsRequest,
    PinCheckpointRequest,
    PutCheckpointRequest,
)
from twofold.memory.v1.conversation_pb2 import DeleteConversationRequest
from twofold_memory.threads import ThreadKey

Sql = asyncpg.Pool


async def put(
    room: Memory,
    key: ThreadKey,
    data: bytes = b"state",
    *,
    head: str = "",
    line: str = "",
    request_id: str = "",
    user_id: str = "",
    **given: Any,
) -> Checkpoint:
    request = PutCheckpointRequest(
        **where(key),
        user_id=user_id,
        checkpoint=Checkpoint(line=line, data=data, **given),
        expected_head_id=head,
        request_id=request_id,
    )
    return (await room.checkpoints.PutCheckpoint(request, timeout=CALL_S)).checkpoint


async def get(room: Memory, key: ThreadKey, checkpoint_id: str = "", *, line: str = "", user_id: str = "") -> Checkpoint:
    request = GetCheckpointRequest(**where(key), user_id=user_id, checkpoint_id=checkpoint_id, line=line)
    return (await room.checkpoints.GetCheckpoint(request, timeout=CALL_S)).checkpoint


async def listed(
    room: Memory, key: ThreadKey, *, line: str = "", size: int = 3, with_data: bool = False, user_id: str = ""
) -> list[Checkpoint]:
    request = ListCheckpointsRequest(**where(key), user_id=user_id, line=line, page_size=size, with_data=with_data)
    found: list[Checkpoint] = []
    while True:
        page = await room.checkpoints.ListCheckpoints(request, timeout=CALL_S)
        assert page.ByteSize() < 3.5 * 1024 * 1024
        found += page.checkpoints
        if not page.next_page_token:
            return found
        request.page_token = page.next_page_token


async def fork(room: Memory, key: ThreadKey, checkpoint_id: str, new_line: str, request_id: str = "") -> Checkpoint:
    request = ForkCheckpointRequest(**where(key), checkpoint_id=checkpoint_id, new_line=new_line, request_id=request_id)
    return (await room.checkpoints.ForkCheckpoint(request, timeout=CALL_S)).checkpoint


async def pin(room: Memory, key: ThreadKey, checkpoint_id: str, *, pinned: bool = True) -> Checkpoint:
    request = PinCheckpointRequest(**where(key), checkpoint_id=checkpoint_id, pinned=pinned)
    return (await room.checkpoints.PinCheckpoint(request, timeout=CALL_S)).checkpoint


async def delete(room: Memory, key: ThreadKey, keep: int, line: str = "", request_id: str = "") -> DeleteCheckpointsResponse:
    request = DeleteCheckpointsRequest(**where(key), line=line, keep_newest=keep, request_id=request_id)
    return await room.checkpoints.DeleteCheckpoints(request, timeout=CALL_S)


def where(key: ThreadKey) -> dict[str, Any]:
    return {"workspace_id": key.workspace_id, "thread_id": key.thread_id}


async def line_of(room: Memory, key: ThreadKey, length: int, line: str = "") -> list[str]:
    """Ids of a line's checkpoints, the oldest first; the data of each is its place."""
    made = [""]
    for index in range(length):
        made.append((await put(room, key, b"%d" % index, head=made[-1], line=line)).checkpoint_id)
    return made[1:]


async def test_a_checkpoint_comes_back_byte_for_byte_and_the_newest_is_the_head(
    room: Memory, other_room: Memory, key: ThreadKey
) -> None:
    await room.append(key, "q")
    data = bytes(range(256)) * 12_288  # 3 MiB
    first = await put(room, key, data, content_type="application/x", metadata={"a": "b"}, checkpoint_id="first")
    assert (first.checkpoint_id, first.version, first.data_bytes, first.data) == ("first", 1, len(data), b"")
    second = await put(other_room, key, b"", head="first")
    found = await get(other_room, key, "first")
    assert (found.data, found.content_type, dict(found.metadata), found.parent_id) == (data, "application/x", {"a": "b"}, "")
    newest = await get(room, key)
    assert (newest.checkpoint_id, newest.version, newest.parent_id, newest.data) == (second.checkpoint_id, 2, "first", b"")


async def test_m15_of_two_that_expect_the_same_head_exactly_one_succeeds(
    room: Memory, other_room: Memory, key: ThreadKey
) -> None:
    """M15: also for the first of a line, and the newest is the one that was committed last."""
    await room.append(key, "q")
    head = ""
    for version in range(1, 6):
        told = await asyncio.gather(
            *(put((room, other_room)[index % 2], key, b"%d" % index, head=head) for index in range(6)),
            return_exceptions=True,
        )
        (won,) = [answer for answer in told if isinstance(answer, Checkpoint)]
        lost = [reason(error) for error in told if isinstance(error, grpc.aio.AioRpcError)]
        assert lost == ["REASON_HEAD_MOVED"] * 5
        assert won.version == version
        head = won.checkpoint_id
        assert (await get(other_room, key)).checkpoint_id == head
    assert [entry.version for entry in await listed(room, key)] == [5, 4, 3, 2, 1]


async def test_a_wrong_head_changes_nothing(room: Memory, key: ThreadKey) -> None:
    await room.append(key, "q")
    ids = await line_of(room, key, 2)
    for head in ("", ids[0], "never there"):
        async with refused(grpc.StatusCode.ABORTED, "REASON_HEAD_MOVED"):
            await put(room, key, head=head)
    async with refused(grpc.StatusCode.ABORTED, "REASON_HEAD_MOVED"):
        await put(room, key, line="another", head=ids[1])
    async with refused(grpc.StatusCode.ALREADY_EXISTS, "REASON_RECORD_EXISTS"):
        await put(room, key, head=ids[1], checkpoint_id=ids[0])
    async with refused(grpc.StatusCode.NOT_FOUND, "REASON_CHECKPOINT_UNKNOWN"):
        await put(room, key, head=ids[1], parent_id="never there")
    assert (await get(room, key)).checkpoint_id == ids[1]
    back = await put(room, key, head=ids[1], parent_id=ids[0])
    assert (back.parent_id, back.version) == (ids[0], 3)


async def test_lines_of_a_conversation_do_not_meet(room: Memory, workspace_id: str) -> None:
    one, other = thread(workspace_id), thread(workspace_id)
    for key in (one, other):
        await room.append(key, "q")
        await line_of(room, key, 2)
        await line_of(room, key, 1, line="a/b")
    assert [entry.version for entry in await listed(room, one)] == [2, 1]
    assert [entry.data for entry in await listed(room, one, line="a/b", with_data=True)] == [b"0"]
    assert await listed(room, one, line="a") == []
    async with refused(grpc.StatusCode.NOT_FOUND, "REASON_CHECKPOINT_UNKNOWN"):
        await get(room, one, line="a")
    async with refused(grpc.StatusCode.NOT_FOUND, "REASON_CHECKPOINT_UNKNOWN"):
        await get(room, one, (await get(room, other)).checkpoint_id)


async def test_a_fork_begins_with_the_state_of_any_checkpoint_and_goes_its_own_way(
    room: Memory, key: ThreadKey, sql: "Sql[Any]"
) -> None:
    await room.append(key, "q")
    ids = await line_of(room, key, 5)
    made = await fork(room, key, ids[1], "try", request_id="r")
    assert (made.version, made.parent_id, made.line) == (1, ids[1], "try")
    assert await fork(room, key, ids[1], "try", request_id="r") == made
    await put(room, key, b"elsewhere", head=made.checkpoint_id, line="try")
    assert (await get(room, key)).data == b"4"
    assert [entry.data for entry in await listed(room, key, line="try", with_data=True)] == [b"elsewhere", b"1"]
    async with refused(grpc.StatusCode.ABORTED, "REASON_HEAD_MOVED"):
        await fork(room, key, ids[0], "try")
    async with refused(grpc.StatusCode.NOT_FOUND, "REASON_CHECKPOINT_UNKNOWN"):
        await fork(room, key, "never there", "another")
    assert await listed(room, key, line="another") == []
    # What a fork writes is one row, however long the line is that it was made of.
    rows = await sql.fetchval("SELECT count(*) FROM memory.checkpoints WHERE workspace_id = $1", key.workspace_id)
    assert rows == 5 + 2


async def test_whatever_is_deleted_what_is_kept_can_be_loaded(room: Memory, other_room: Memory, key: ThreadKey) -> None:
    await room.append(key, "q")
    ids = await line_of(room, key, 10)
    await pin(room, key, ids[2])
    await pin(room, key, ids[3])
    await pin(other_room, key, ids[3], pinned=False)
    made = await fork(room, key, ids[0], "try")
    deleted = await delete(room, key, 3)
    assert (deleted.deleted_count, deleted.more) == (6, False)
    kept = [ids[9], ids[8], ids[7], ids[2]]
    assert [entry.checkpoint_id for entry in await listed(room, key)] == kept
    for checkpoint_id in kept:
        assert (await get(room, key, checkpoint_id)).data == b"%d" % ids.index(checkpoint_id)
    fork_root = await get(room, key, made.checkpoint_id)
    assert (fork_root.data, fork_root.parent_id) == (b"0", ids[0])
    for gone in (ids[0], ids[6]):
        async with refused(grpc.StatusCode.NOT_FOUND, "REASON_CHECKPOINT_UNKNOWN"):
            await get(room, key, gone)
    assert (await delete(room, key, 3)).deleted_count == 0
    assert (await delete(room, key, 1, line="never there")).deleted_count == 0
    assert (await put(room, key, b"on", head=ids[9])).version == 11


async def test_a_long_line_is_deleted_some_at_a_time(room: Memory, key: ThreadKey, sql: "Sql[Any]") -> None:
    await room.append(key, "q")
    await put(room, key, checkpoint_id="first")
    await sql.execute(
        "INSERT INTO memory.checkpoints (workspace_id, thread_id, line, version, checkpoint_id, parent_id, data,"
        " content_type, metadata, pinned)"
        " SELECT $1, $2, '', i, 'c' || i, '', '', '', '{}', false FROM generate_series(2, 702) i",
        *key,
    )
    await sql.execute(
        "UPDATE memory.checkpoint_lines SET head_id = 'c702', head_version = 702 WHERE workspace_id = $1", key.workspace_id
    )
    first = await delete(room, key, 2, request_id="r")
    assert (first.deleted_count, first.more) == (500, True)
    assert await delete(room, key, 2, request_id="r") == first
    assert await delete(room, key, 2) == DeleteCheckpointsResponse(deleted_count=200, more=False)
    assert [entry.checkpoint_id for entry in await listed(room, key)] == ["c702", "c701"]


async def test_what_is_pinned_while_older_ones_are_deleted_is_kept(room: Memory, key: ThreadKey, sql: "Sql[Any]") -> None:
    await room.append(key, "q")
    ids = await line_of(room, key, 4)
    async with sql.acquire() as connection:
        pinning = connection.transaction()
        await pinning.start()
        await connection.execute("UPDATE memory.checkpoints SET pinned = true WHERE checkpoint_id = $1", ids[1])
        pid = await connection.fetchval("SELECT pg_backend_pid()")
        deleting = asyncio.ensure_future(delete(room, key, 1))

        async def waits() -> bool:
            blocked = "SELECT count(*) FROM pg_stat_activity WHERE $1 = ANY (pg_blocking_pids(pid))"
            return bool(await sql.fetchval(blocked, pid))

        await until(waits)
        await pinning.commit()
    assert (await deleting).deleted_count == 2
    assert [entry.checkpoint_id for entry in await listed(room, key)] == [ids[3], ids[1]]


async def test_repeats_change_nothing(room: Memory, other_room: Memory, key: ThreadKey, sql: "Sql[Any]") -> None:
    """M11: and what is remembered of them holds no state."""
    await room.append(key, "q")
    one, same = await asyncio.gather(
        put(room, key, b"secret", request_id="r"), put(other_room, key, b"secret", request_id="r")
    )
    assert one == same
    assert await put(room, key, b"secret", request_id="r") == one
    async with refused(grpc.StatusCode.ALREADY_EXISTS, "REASON_REQUEST_REUSED"):
        await put(room, key, b"other", request_id="r")
    assert len(await listed(room, key)) == 1
    assert b"secret" not in await sql.fetchval(
        "SELECT answer FROM memory.requests WHERE workspace_id = $1", key.workspace_id
    )


async def test_pages_with_data_are_bounded(room: Memory, key: ThreadKey) -> None:
    await room.append(key, "q")
    head = ""
    for index in range(5):
        head = (await put(room, key, b"%d" % index * 1_000_000, head=head)).checkpoint_id
    found = await listed(room, key, size=500, with_data=True)
    assert [entry.data[:1] for entry in found] == [b"4", b"3", b"2", b"1", b"0"]
    assert {len(entry.data) for entry in found} == {1_000_000}
    assert {entry.data for entry in await listed(room, key, size=500)} == {b""}


async def test_a_conversation_that_is_not_there_or_not_ones_own_has_none(room: Memory, workspace_id: str) -> None:
    missing, foreign, deleted = thread(workspace_id), thread(workspace_id), thread(workspace_id)
    await room.append(foreign, "q", user_id="ada")
    await room.append(deleted, "q")
    await put(room, deleted)
    await room.conversations.DeleteConversation(DeleteConversationRequest(**where(deleted)), timeout=CALL_S)
    for key in (missing, foreign, deleted):
        for call in (put(room, key, user_id="bob"), get(room, key, user_id="bob"), listed(room, key, user_id="bob")):
            async with refused(grpc.StatusCode.NOT_FOUND, "REASON_CONVERSATION_UNKNOWN"):
                await call
