"""M11: after an erasure is DONE no byte of the content is left in any store; late writers are refused."""

import asyncio
import json
import os
import signal
import sys
import uuid
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator
from typing import Any

import asyncpg
import grpc
import pytest
from redis.asyncio import Redis

from tests.memory.conftest import Worker
from tests.memory.rooms import (
    CALL_S,
    Memory,
    connected,
    database_of,
    reason,
    redis_of,
    refused,
    said,
    seqs,
    serving,
    texts,
    thread,
)
from tests.waiting import until
from twofold.memory.v1 import erasure_pb2 as pb
from twofold.memory.v1.branch_pb2 import ForkConversationRequest
from twofold.memory.v1.checkpoint_pb2 import Checkpoint, PutCheckpointRequest
from twofold.memory.v1.context_pb2 import InvokingRequest
from twofold.memory.v1.conversation_pb2 import (
    AppendTurnRequest,
    Conversation,
    CreateConversationRequest,
    GetConversationRequest,
    UpdateConversationRequest,
)
from twofold.memory.v1.event_pb2 import AppendEventsRequest, Event
from twofold.memory.v1.message_pb2 import Durability, Message, ReadLevel, Role
from twofold.memory.v1.preference_pb2 import GetPreferencesRequest, UpdatePreferencesRequest
from twofold.memory.v1.revision_pb2 import EditMessageRequest, NewContent
from twofold.memory.v1.summary_pb2 import ListSummariesRequest, PutSummaryRequest, Summary
from twofold.memory.v1.tool_run_pb2 import ClaimToolRunRequest, CreateToolRunRequest, FailToolRunRequest, ToolRun
from twofold.memory.v1.turn_pb2 import BeginTurnRequest, CommitTurnRequest
from twofold_chassis.settings import DatabaseSettings
from twofold_cli.embedded.postgres import EmbeddedPostgres
from twofold_cli.embedded.redis import EmbeddedRedis
from twofold_memory.store.erasures import TABLES_OF_A_THREAD, TABLES_OF_A_WORKSPACE, TABLES_THAT_STAY
from twofold_memory.threads import ThreadKey

Sql = asyncpg.Pool
DONE, PENDING = pb.ERASURE_STATE_DONE, pb.ERASURE_STATE_PENDING


async def places_in_postgres(sql: "Sql[Any]", needle: str) -> list[str]:
    """The tables that hold the text, in whatever column, as text or as bytes."""
    tables = await sql.fetch(
        "SELECT table_name AS name FROM information_schema.tables"
        " WHERE table_schema = 'memory' AND table_type = 'BASE TABLE'"
    )
    forms = [f"%{needle}%", f"%{needle.encode().hex()}%"]
    query = "SELECT count(*) FROM memory.{} t WHERE t::text ILIKE ANY ($1::text[])"
    return [row["name"] for row in tables if await sql.fetchval(query.format(row["name"]), forms)]


async def places_in_redis(client: Redis, needle: str) -> list[str]:
    """The keys that hold the text, in whatever type of value."""
    found = []
    async for key in client.scan_iter(count=1000):
        kind = await client.type(key)
        match kind:
            case b"string":
                value: object = await client.get(key)
            case b"list":
                value = await client.lrange(key, 0, -1)
            case b"hash":
                value = await client.hgetall(key)
            case b"stream":
                value = await client.xrange(key)
            case b"set":
                value = await client.smembers(key)
            case b"zset":
                value = await client.zrange(key, 0, -1)
            case b"none":
                continue
            case _:
                raise AssertionError(f"a key of type {kind!r}: {key!r}")
        if needle in repr(value) or needle in repr(key):
            found.append(str(key, "utf-8"))
    return found


async def filled(memory: Memory, key: ThreadKey, user_id: str, needle: str) -> None:
    """A conversation that has the text in everything that belongs to a conversation or its user."""
    place: dict[str, Any] = {"workspace_id": key.workspace_id, "thread_id": key.thread_id}
    asked = iter(f"{key.thread_id}-{number}" for number in range(100))
    conversation = Conversation(**place, user_id=user_id, title=needle, metadata={"a": needle})
    await memory.conversations.CreateConversation(
        CreateConversationRequest(conversation=conversation, request_id=next(asked)), timeout=CALL_S
    )
    await memory.conversations.AppendTurn(
        AppendTurnRequest(
            **place, user_id=user_id, request_id=next(asked), messages=said(needle, f"a {needle}", needle, needle)
        ),
        timeout=CALL_S,
    )
    await memory.append(key, needle, needle)
    update = UpdateConversationRequest(conversation=conversation, request_id=next(asked))
    update.update_mask.paths.append("title")
    await memory.conversations.UpdateConversation(update, timeout=CALL_S)
    await memory.revisions.EditMessage(
        EditMessageRequest(**place, seq=1, content=NewContent(text=f"{needle} edited"), request_id=next(asked)),
        timeout=CALL_S,
    )
    await memory.summaries.PutSummary(
        PutSummaryRequest(**place, summary=Summary(first_seq=1, last_seq=2, text=needle), request_id=next(asked)),
        timeout=CALL_S,
    )
    run = ToolRun(**place, tool_run_id=f"run-{key.thread_id}", name="f", arguments=needle, metadata={"a": needle})
    await memory.tool_runs.CreateToolRun(CreateToolRunRequest(tool_run=run, request_id=next(asked)), timeout=CALL_S)
    await memory.checkpoints.PutCheckpoint(
        PutCheckpointRequest(**place, checkpoint=Checkpoint(data=needle.encode()), request_id=next(asked)), timeout=CALL_S
    )
    await memory.events.AppendEvents(
        AppendEventsRequest(**place, events=[Event(kind="note", payload=needle)], request_id=next(asked)), timeout=CALL_S
    )
    await memory.turns.BeginTurn(
        BeginTurnRequest(**place, request_id=next(asked), messages=[Message(role=Role.ROLE_USER, content=needle)]),
        timeout=CALL_S,
    )
    await memory.preferences.UpdatePreferences(
        UpdatePreferencesRequest(
            workspace_id=key.workspace_id, user_id=user_id, set={"tone": needle}, request_id=next(asked)
        ),
        timeout=CALL_S,
    )
    # Into the copies.
    await memory.read(key)
    await memory.preferences.GetPreferences(
        GetPreferencesRequest(workspace_id=key.workspace_id, user_id=user_id), timeout=CALL_S
    )
    await memory.contexts.Invoking(InvokingRequest(**place), timeout=CALL_S)


async def erase(memory: Memory, key: ThreadKey, request_id: str = "") -> pb.Erasure:
    request = pb.EraseConversationRequest(workspace_id=key.workspace_id, thread_id=key.thread_id, request_id=request_id)
    return (await memory.erasures.EraseConversation(request, timeout=CALL_S)).erasure


async def erase_user(memory: Memory, workspace_id: str, user_id: str) -> pb.Erasure:
    request = pb.EraseUserRequest(workspace_id=workspace_id, user_id=user_id)
    return (await memory.erasures.EraseUser(request, timeout=CALL_S)).erasure


async def erase_workspace(memory: Memory, workspace_id: str) -> pb.Erasure:
    request = pb.EraseWorkspaceRequest(workspace_id=workspace_id)
    return (await memory.erasures.EraseWorkspace(request, timeout=CALL_S)).erasure


async def done(memory: Memory, erasure: pb.Erasure) -> pb.Erasure:
    """The receipt, once it says DONE."""
    found = erasure

    async def is_done() -> bool:
        nonlocal found
        request = pb.GetErasureRequest(workspace_id=erasure.workspace_id, erasure_id=erasure.erasure_id)
        found = (await memory.erasures.GetErasure(request, timeout=CALL_S)).erasure
        return found.state == DONE

    await until(is_done)
    return found


def states(erasure: pb.Erasure) -> dict[str, str]:
    return {
        pb.ErasedStore.Name(store.store).removeprefix("ERASED_STORE_"): pb.ErasureState.Name(store.state).removeprefix(
            "ERASURE_STATE_"
        )
        for store in erasure.stores
    }


def rows(erasure: pb.Erasure) -> dict[str, int]:
    return dict(erasure.stores[0].counts)


@pytest.fixture
def needle() -> str:
    return f"n{uuid.uuid4().hex}"


async def test_m11_an_erased_conversation_leaves_no_byte_anywhere(
    room: Memory, other_room: Memory, sql: "Sql[Any]", raw_redis: Redis, key: ThreadKey, needle: str
) -> None:
    """M11"""
    await filled(room, key, "ada", needle)
    await sql.execute(
        "INSERT INTO memory.dead_letters (workspace_id, thread_id, turn_id, payload_hash, reason, payload)"
        " VALUES ($1, $2, 'dead', 'x', 'INVALID', $3)",
        *key,
        needle.encode(),
    )
    in_postgres = await places_in_postgres(sql, needle)
    assert {"messages", "conversations", "requests", "message_revisions", "dead_letters", "summaries", "tool_runs",
            "checkpoints", "events", "open_turns", "preferences"} <= set(in_postgres)  # fmt: skip
    assert len(await places_in_redis(raw_redis, needle)) >= 3

    erasure = await done(room, await erase(room, key))
    assert set(states(erasure).values()) == {"DONE"}
    assert (erasure.thread_id, erasure.conversation_count) == (key.thread_id, 1)
    assert rows(erasure)["messages"] == 6
    assert rows(erasure)["dead_letters"] == 1
    # The user's preferences are the user's.
    assert set(await places_in_postgres(sql, needle)) <= {"preferences", "requests"}
    kept = await sql.fetch(
        "SELECT rpc FROM memory.requests WHERE encode(answer, 'hex') LIKE $1", f"%{needle.encode().hex()}%"
    )
    assert {row["rpc"] for row in kept} <= {"UpdatePreferences"}
    assert [name for name in await places_in_redis(raw_redis, needle) if not name.endswith("}:preferences")] == []

    for memory in (room, other_room):
        async with refused(grpc.StatusCode.FAILED_PRECONDITION, "REASON_CONVERSATION_ERASED"):
            await memory.append(key, needle)
        async with refused(grpc.StatusCode.NOT_FOUND, "REASON_CONVERSATION_UNKNOWN"):
            await memory.read(key)
        async with refused(grpc.StatusCode.NOT_FOUND, "REASON_CONVERSATION_UNKNOWN"):
            await memory.conversations.GetConversation(
                GetConversationRequest(workspace_id=key.workspace_id, thread_id=key.thread_id), timeout=CALL_S
            )
    tombstone = await sql.fetchrow("SELECT * FROM memory.conversations WHERE workspace_id = $1 AND thread_id = $2", *key)
    assert tombstone is not None
    assert (tombstone["user_id"], tombstone["title"], tombstone["metadata"]) == (None, "", "{}")
    assert tombstone["epoch"] == erasure.epoch


async def test_an_erased_user_leaves_no_byte_anywhere_and_others_everything(
    room: Memory, sql: "Sql[Any]", raw_redis: Redis, workspace_id: str, needle: str
) -> None:
    """M11"""
    others = f"x{needle}"
    for number in range(3):
        await filled(room, ThreadKey(workspace_id, f"ada-{number}"), "ada", needle)
    await filled(room, ThreadKey(workspace_id, "bob-0"), "bob", others[:20])
    before = await room.all_messages(ThreadKey(workspace_id, "bob-0"))
    erasure = await done(room, await erase_user(room, workspace_id, "ada"))
    assert set(states(erasure).values()) == {"DONE"}
    assert (erasure.user_id, erasure.conversation_count) == ("ada", 3)
    assert rows(erasure)["messages"] == 18
    assert rows(erasure)["preferences"] == 1
    assert await places_in_postgres(sql, needle) == []
    assert await places_in_redis(raw_redis, needle) == []
    found = await room.preferences.GetPreferences(
        GetPreferencesRequest(workspace_id=workspace_id, user_id="ada"), timeout=CALL_S
    )
    assert list(found.preferences) == []
    assert await room.all_messages(ThreadKey(workspace_id, "bob-0")) == before
    # The user is no tombstone: what is new is kept.
    await room.append(ThreadKey(workspace_id, "new"), "hello", user_id="ada")
    await room.preferences.UpdatePreferences(
        UpdatePreferencesRequest(workspace_id=workspace_id, user_id="ada", set={"tone": "short"}), timeout=CALL_S
    )
    for _ in range(2):
        found = await room.preferences.GetPreferences(
            GetPreferencesRequest(workspace_id=workspace_id, user_id="ada"), timeout=CALL_S
        )
        assert [(entry.key, entry.value) for entry in found.preferences] == [("tone", "short")]


async def test_an_erased_workspace_leaves_no_byte_anywhere_and_others_everything(
    room: Memory, sql: "Sql[Any]", raw_redis: Redis, workspace_id: str, needle: str
) -> None:
    """M11"""
    other = f"{workspace_id}-other"
    for number in range(60):
        await room.append(ThreadKey(workspace_id, f"t{number}"), needle, user_id=f"u{number % 7}")
    await filled(room, ThreadKey(workspace_id, "full"), "ada", needle)
    run = ToolRun(workspace_id=workspace_id, tool_run_id="run", name="f", arguments=needle)
    await room.tool_runs.CreateToolRun(CreateToolRunRequest(tool_run=run), timeout=CALL_S)
    await room.append(ThreadKey(other, "t0"), "kept")
    erasure = await done(room, await erase_workspace(room, workspace_id))
    assert (set(states(erasure).values()), erasure.conversation_count) == ({"DONE"}, 61)
    assert await places_in_postgres(sql, needle) == []
    assert await places_in_redis(raw_redis, needle) == []
    assert texts(await room.all_messages(ThreadKey(other, "t0"))) == ["kept"]
    listed = await room.erasures.ListErasures(pb.ListErasuresRequest(workspace_id=workspace_id), timeout=CALL_S)
    assert list(listed.erasures) == [erasure]


async def test_the_erasure_knows_every_table(sql: "Sql[Any]") -> None:
    found = await sql.fetch(
        "SELECT DISTINCT table_name AS name FROM information_schema.columns"
        " WHERE table_schema = 'memory' AND column_name = 'workspace_id'"
    )
    with_threads = await sql.fetch(
        "SELECT table_name AS name FROM information_schema.columns"
        " WHERE table_schema = 'memory' AND column_name = 'thread_id'"
    )
    assert {row["name"] for row in found} == {*TABLES_OF_A_THREAD, *TABLES_OF_A_WORKSPACE, *TABLES_THAT_STAY}
    assert {row["name"] for row in with_threads} <= {*TABLES_OF_A_THREAD, *TABLES_THAT_STAY}
    assert not {*TABLES_OF_A_THREAD, *TABLES_OF_A_WORKSPACE} & {*TABLES_THAT_STAY}


async def test_nobody_can_delete_rows_of_a_conversation_that_is_not_erased(
    room: Memory, memory_database: DatabaseSettings, key: ThreadKey
) -> None:
    await room.append(key, "a", "b")
    connection = await asyncpg.connect(memory_database.url.get_secret_value())
    try:
        assert await connection.fetchval("SELECT memory.erase_rows($1, $2, 'messages', 10)", *key) == 0
        for table in ("conversations", "erasures"):
            with pytest.raises(asyncpg.InsufficientPrivilegeError):
                await connection.fetchval("SELECT memory.erase_rows($1, $2, $3, 10)", *key, table)
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            await connection.execute("DELETE FROM memory.messages")
    finally:
        await connection.close()
    assert len(await room.all_messages(key)) == 2


async def test_while_redis_is_away_the_receipt_is_pending_and_done_when_it_is_back(
    postgres_server: EmbeddedPostgres, own_redis: EmbeddedRedis, workspace_id: str, needle: str
) -> None:
    """M11"""
    urls = await postgres_server.create_database("memory_erasures_redis")
    key = ThreadKey(workspace_id, "t")
    async with (
        serving(database_of(urls), redis_of(own_redis, budget_ms=500)) as memory,
        asyncpg.create_pool(urls.superuser, min_size=1, max_size=2) as sql,
    ):
        await filled(memory, key, "ada", needle)
        async with Redis(host=own_redis.host, port=own_redis.port, password=own_redis.password) as client:
            assert await places_in_redis(client, needle)
            await client.save()
        await own_redis.kill()
        one = await erase(memory, key, "one")
        user = await erase_user(memory, workspace_id, "ada")
        assert one.state == user.state == PENDING
        assert states(one) == {"POSTGRES": "DONE", "WINDOWS": "PENDING", "JOURNAL": "PENDING", "PREFERENCE_COPIES": "DONE"}
        assert states(user)["PREFERENCE_COPIES"] == "PENDING"
        assert await places_in_postgres(sql, needle) == []
        async with refused(grpc.StatusCode.FAILED_PRECONDITION, "REASON_CONVERSATION_ERASED"):
            await memory.append(key, needle)
        conversation = Conversation(workspace_id=workspace_id, thread_id="t")
        async with refused(grpc.StatusCode.ABORTED, "REASON_BUSY"):
            await memory.conversations.CreateConversation(
                CreateConversationRequest(conversation=conversation, erased_epoch=one.epoch), timeout=CALL_S
            )
        await own_redis.start()  # with what it had saved
        for erasure in (one, user):
            assert set(states(await done(memory, erasure)).values()) == {"DONE"}
        async with Redis(host=own_redis.host, port=own_redis.port, password=own_redis.password) as client:
            assert await places_in_redis(client, needle) == []
        assert await erase(memory, key, "one") == await done(memory, one)


ROWS = 8_000


async def started(database: DatabaseSettings, redis_server: EmbeddedRedis) -> tuple[Process, int]:
    """A worker as a process, and its port."""
    environment = {
        "DATABASE__URL": database.url.get_secret_value(),
        "DATABASE__MIGRATE": "false",
        "REDIS__HOST": redis_server.host,
        "REDIS__PORT": str(redis_server.port),
        "REDIS__PASSWORD": redis_server.password,
        "MEMORY__PORT": "0",
    }
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "twofold_memory", env=os.environ | environment, stdout=PIPE, stderr=None
    )
    assert process.stdout is not None
    async with asyncio.timeout(30):
        while line := (await process.stdout.readline()).decode():
            if '"event": "serving"' in line or '"event":"serving"' in line:
                return process, json.loads(line)["port"]
    raise AssertionError("the worker did not start")


async def test_an_erasure_whose_worker_is_killed_in_the_middle_is_brought_to_its_end_by_another(
    postgres_server: EmbeddedPostgres, redis_server: EmbeddedRedis, redis_settings: Any, workspace_id: str, needle: str
) -> None:
    """M11"""
    urls = await postgres_server.create_database("memory_erasures_kill")
    database = database_of(urls)
    async with asyncpg.create_pool(urls.superuser, min_size=1, max_size=2) as sql:
        async with serving(database, redis_settings) as memory:
            keys = [ThreadKey(workspace_id, f"t{number}") for number in range(120)]
            await asyncio.gather(*(memory.append(key, needle, user_id="ada") for key in keys))
        await sql.execute(
            "INSERT INTO memory.messages"
            " (workspace_id, thread_id, seq, turn_id, turn_index, role, content, rest, created_at)"
            " SELECT $1, 't1', i, 't' || i, 0, 2, $2, '', now() FROM generate_series(2, $3) i",
            workspace_id,
            needle,
            ROWS,
        )
        process, port = await started(database, redis_server)
        try:
            async with connected(port) as worker:
                request = pb.EraseUserRequest(workspace_id=workspace_id, user_id="ada", request_id="erase")
                erasing = asyncio.ensure_future(worker.erasures.EraseUser(request, timeout=CALL_S))

                async def is_in_the_middle() -> bool:
                    left = await sql.fetchval("SELECT count(*) FROM memory.messages WHERE workspace_id = $1", workspace_id)
                    return 0 < int(left) < ROWS

                await until(is_in_the_middle)
                process.send_signal(signal.SIGKILL)
                await process.wait()
                with pytest.raises(grpc.aio.AioRpcError):
                    await erasing
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
        assert "messages" in await places_in_postgres(sql, needle)
        async with serving(database, redis_settings) as memory:
            (erasure,) = (
                await memory.erasures.ListErasures(pb.ListErasuresRequest(workspace_id=workspace_id), timeout=CALL_S)
            ).erasures
            ended = await done(memory, erasure)
            assert (ended.conversation_count, rows(ended)["messages"]) == (120, ROWS + 119)
            again = await memory.erasures.EraseUser(request, timeout=CALL_S)
            assert again.erasure == ended
        assert await places_in_postgres(sql, needle) == []


async def test_writers_while_an_erasure_runs_leave_nothing_behind(
    room: Memory, other_room: Memory, sql: "Sql[Any]", raw_redis: Redis, workspace_id: str, needle: str
) -> None:
    """M11: appends, fills, summaries and preferences that race the erasure."""
    keys = [ThreadKey(workspace_id, f"t{number}") for number in range(12)]
    for key in keys:
        await room.append(key, needle, user_id="ada")
    begun: set[ThreadKey] = set()
    refusals: set[str] = set()

    async def write(memory: Memory, key: ThreadKey) -> None:
        number = 0
        while True:
            number += 1
            try:
                await memory.append(key, f"{needle}-{number}", user_id="ada")
                await memory.read(key)
                summary = Summary(first_seq=1, last_seq=1, text=needle)
                await memory.summaries.PutSummary(
                    PutSummaryRequest(workspace_id=workspace_id, thread_id=key.thread_id, summary=summary), timeout=CALL_S
                )
                await memory.contexts.Invoking(
                    InvokingRequest(workspace_id=workspace_id, thread_id=key.thread_id), timeout=CALL_S
                )
                begun.add(key)
            except grpc.aio.AioRpcError as error:
                if reason(error) != "REASON_BUSY":  # the conversation is being erased at this moment
                    refusals.add(reason(error))
                    return

    writers = [asyncio.create_task(write((room, other_room)[index % 2], key)) for index, key in enumerate(keys)]
    await until(lambda: len(begun) == len(keys))
    erasure = await done(room, await erase_user(room, workspace_id, "ada"))
    await asyncio.gather(*writers)
    assert erasure.conversation_count == 12
    assert refusals <= {"REASON_CONVERSATION_ERASED", "REASON_CONVERSATION_UNKNOWN"}
    assert await places_in_postgres(sql, needle) == []
    assert await places_in_redis(raw_redis, needle) == []


async def test_a_repeat_returns_the_receipt_as_it_is_and_another_wish_under_its_id_is_refused(
    room: Memory, key: ThreadKey
) -> None:
    await room.append(key, "a")
    first = await done(room, await erase(room, key, "once"))
    assert await erase(room, key, "once") == first
    again = await done(room, await erase(room, key))
    assert (again.erasure_id != first.erasure_id, again.epoch) == (True, first.epoch + 1)
    named = pb.EraseConversationRequest(workspace_id=key.workspace_id, thread_id=key.thread_id, erasure_id="mine")
    for _ in range(2):
        receipt = (await room.erasures.EraseConversation(named, timeout=CALL_S)).erasure
        assert (receipt.erasure_id, receipt.epoch) == ("mine", first.epoch + 2)
    async with refused(grpc.StatusCode.ALREADY_EXISTS, "REASON_REQUEST_REUSED"):
        request = pb.EraseUserRequest(workspace_id=key.workspace_id, user_id="ada", erasure_id="mine")
        await room.erasures.EraseUser(request, timeout=CALL_S)
    async with refused(grpc.StatusCode.ALREADY_EXISTS, "REASON_REQUEST_REUSED"):
        await erase(room, thread(key.workspace_id), "once")


async def test_what_is_not_there_cannot_be_erased_but_a_user_without_anything_can(room: Memory, key: ThreadKey) -> None:
    async with refused(grpc.StatusCode.NOT_FOUND, "REASON_CONVERSATION_UNKNOWN"):
        await erase(room, key)
    erasure = await done(room, await erase_user(room, key.workspace_id, "nobody"))
    assert (erasure.conversation_count, rows(erasure)) == (0, {})
    async with refused(grpc.StatusCode.NOT_FOUND, "REASON_ERASURE_UNKNOWN"):
        request = pb.GetErasureRequest(workspace_id=f"{key.workspace_id}-other", erasure_id=erasure.erasure_id)
        await room.erasures.GetErasure(request, timeout=CALL_S)


async def test_receipts_are_listed_by_pages_the_newest_first(room: Memory, workspace_id: str) -> None:
    made = [(await erase_user(room, workspace_id, f"u{number}")).erasure_id for number in range(5)]
    request = pb.ListErasuresRequest(workspace_id=workspace_id, page_size=2)
    found: list[str] = []
    while True:
        page = await room.erasures.ListErasures(request, timeout=CALL_S)
        found += [erasure.erasure_id for erasure in page.erasures]
        if not page.next_page_token:
            break
        request.page_token = page.next_page_token
    assert found == made[::-1]


async def test_turns_that_wait_in_the_journal_are_erased_with_their_user(
    room: Memory, other_room: Memory, sql: "Sql[Any]", raw_redis: Redis, workspace_id: str, needle: str
) -> None:
    """M11: also those of a conversation that is not in Postgres yet."""
    keys = [thread(workspace_id) for _ in range(4)]
    for number, key in enumerate(keys):
        request = AppendTurnRequest(
            workspace_id=workspace_id,
            thread_id=key.thread_id,
            user_id="ada",
            messages=said(needle),
            durability=Durability.DURABILITY_JOURNALED,
        )
        await (room, other_room)[number % 2].conversations.AppendTurn(request, timeout=CALL_S)
    erasure = await done(room, await erase_user(room, workspace_id, "ada"))
    assert erasure.conversation_count == 4
    assert await places_in_postgres(sql, needle) == []
    assert await places_in_redis(raw_redis, needle) == []


async def test_an_erasure_that_fails_is_no_hindrance_to_the_others(
    room: Memory, sql: "Sql[Any]", workspace_id: str, needle: str
) -> None:
    for number in range(2):
        await room.append(ThreadKey(workspace_id, f"t{number}"), needle, user_id=f"u{number}")
    await room.preferences.UpdatePreferences(
        UpdatePreferencesRequest(workspace_id=workspace_id, user_id="u1", set={"tone": needle}), timeout=CALL_S
    )
    # A row that cannot be deleted: the function is refused, each time again.
    await sql.execute(
        "CREATE FUNCTION memory.refuse() RETURNS trigger LANGUAGE plpgsql AS"
        f" $$ BEGIN IF old.workspace_id = '{workspace_id}' AND old.thread_id = 't0'"
        " THEN RAISE 'refused'; END IF; RETURN old; END $$;"
        "CREATE TRIGGER refuse BEFORE DELETE ON memory.turns FOR EACH ROW EXECUTE FUNCTION memory.refuse()"
    )
    try:
        request = pb.EraseUserRequest(workspace_id=workspace_id, user_id="u0", erasure_id="stuck")
        with pytest.raises(grpc.aio.AioRpcError):
            await room.erasures.EraseUser(request, timeout=CALL_S)
        # As if its worker had been killed at once: nobody but the rounds knows of it.
        await sql.execute(
            "INSERT INTO memory.erasures (workspace_id, erasure_id, kind, user_id, actor)"
            " VALUES ($1, 'other', 2, 'u1', 'ada')",
            workspace_id,
        )
        other = await done(room, pb.Erasure(workspace_id=workspace_id, erasure_id="other"))
        assert (other.conversation_count, other.stores[-1].counts["users"]) == (1, 1)
    finally:
        await sql.execute("DROP TRIGGER refuse ON memory.turns; DROP FUNCTION memory.refuse()")
    await done(room, pb.Erasure(workspace_id=workspace_id, erasure_id="stuck"))
    assert await places_in_postgres(sql, needle) == []


# Begun anew


async def test_an_erased_id_is_taken_again_only_by_who_names_the_tombstones_epoch(
    room: Memory, other_room: Memory, key: ThreadKey
) -> None:
    await room.append(key, "old", "words")
    await room.read(key)
    erasure = await done(room, await erase(room, key))
    conversation = Conversation(workspace_id=key.workspace_id, thread_id=key.thread_id, title="Anew")

    async def create(epoch: int) -> None:
        request = CreateConversationRequest(conversation=conversation, erased_epoch=epoch)
        await room.conversations.CreateConversation(request, timeout=CALL_S)

    for epoch in (0, erasure.epoch - 1, erasure.epoch + 1):
        async with refused(grpc.StatusCode.FAILED_PRECONDITION, "REASON_CONVERSATION_ERASED"):
            await create(epoch)
    await create(erasure.epoch)
    async with refused(grpc.StatusCode.ALREADY_EXISTS, "REASON_CONVERSATION_EXISTS"):
        await create(erasure.epoch)
    for memory in (room, other_room):
        assert list((await memory.read(key)).messages) == []
    await room.append(key, "new")
    for memory in (room, other_room, room):
        window = await memory.read(key)
        assert (texts(window.messages), seqs(window.messages)) == (["new"], [1])
    window = await room.read(key, level=ReadLevel.READ_LEVEL_ANY)
    assert texts(window.messages) == ["new"]


# Branches


async def test_branches_lose_what_they_shared_with_an_erased_conversation_at_once(
    room: Memory, other_room: Memory, sql: "Sql[Any]", raw_redis: Redis, key: ThreadKey, needle: str
) -> None:
    """M11, M7: also in the windows and the summaries of the branch, and of a branch of it."""
    await room.append(key, f"1 {needle}", f"2 {needle}")
    branch, twig = thread(key.workspace_id), thread(key.workspace_id)
    for parent, child in ((key, branch), (branch, twig)):
        await room.branches.ForkConversation(
            ForkConversationRequest(
                workspace_id=key.workspace_id, thread_id=parent.thread_id, branch_thread_id=child.thread_id
            ),
            timeout=CALL_S,
        )
        await room.append(child, "own", "words")
    for memory, child in ((room, branch), (other_room, twig)):
        assert len((await memory.read(child)).messages) == len(await memory.all_messages(child))
    for first, last, text in ((1, 2, needle), (3, 4, "of its own")):
        await room.summaries.PutSummary(
            PutSummaryRequest(
                workspace_id=key.workspace_id,
                thread_id=branch.thread_id,
                summary=Summary(first_seq=first, last_seq=last, text=text),
            ),
            timeout=CALL_S,
        )
    await room.contexts.Invoking(InvokingRequest(workspace_id=key.workspace_id, thread_id=branch.thread_id), timeout=CALL_S)
    erasure = await erase(room, key)
    for memory in (room, other_room):
        assert texts((await memory.read(branch)).messages) == ["own", "words"]
        assert texts(await memory.all_messages(branch)) == ["own", "words"]
        assert seqs(await memory.all_messages(branch)) == [3, 4]
        assert texts(await memory.all_messages(twig)) == ["own", "words", "own", "words"]
    listed = await room.summaries.ListSummaries(
        ListSummariesRequest(workspace_id=key.workspace_id, thread_id=branch.thread_id), timeout=CALL_S
    )
    assert [summary.text for summary in listed.summaries] == ["of its own"]
    await done(room, erasure)
    assert await places_in_postgres(sql, needle) == []
    assert await places_in_redis(raw_redis, needle) == []
    await room.append(branch, "more")
    assert texts((await room.read(branch)).messages) == ["own", "words", "more"]


async def test_an_erased_branch_leaves_its_parent_whole(room: Memory, key: ThreadKey) -> None:
    await room.append(key, "a", "b")
    branch = thread(key.workspace_id)
    await room.branches.ForkConversation(
        ForkConversationRequest(workspace_id=key.workspace_id, thread_id=key.thread_id, branch_thread_id=branch.thread_id),
        timeout=CALL_S,
    )
    await room.append(branch, "c")
    erasure = await done(room, await erase(room, branch))
    assert rows(erasure)["messages"] == 1
    assert texts((await room.read(key)).messages) == ["a", "b"]


# Retention


@pytest.fixture
async def watchful(new_worker: Worker) -> AsyncIterator[Memory]:
    """A worker that looks at retentions all the time."""
    async with new_worker(retention_look_s=0.1) as worker:
        yield worker


async def set_days(memory: Memory, workspace_id: str, days: int, **more: Any) -> pb.Retention:
    request = pb.SetRetentionRequest(workspace_id=workspace_id, days=days, **more)
    return (await memory.erasures.SetRetention(request, timeout=CALL_S)).retention


async def age(sql: "Sql[Any]", workspace_id: str, days: int, *threads: str) -> None:
    await sql.execute(
        "UPDATE memory.conversations"
        " SET updated_at = now() - $3 * interval '1 day', listed_at = now() - $3 * interval '1 day'"
        " WHERE workspace_id = $1 AND thread_id = ANY ($2::text[])",
        workspace_id,
        list(threads),
        days,
    )


async def test_what_a_workspace_has_kept_for_long_enough_is_erased_with_a_receipt(
    watchful: Memory, sql: "Sql[Any]", workspace_id: str, needle: str
) -> None:
    for name in ("old", "deleted", "new", "parent"):
        await watchful.append(ThreadKey(workspace_id, name), needle if name in ("old", "deleted") else "kept")
    await watchful.branches.ForkConversation(
        ForkConversationRequest(workspace_id=workspace_id, thread_id="parent", branch_thread_id="branch"), timeout=CALL_S
    )
    await sql.execute(
        "UPDATE memory.conversations SET deleted_at = now() WHERE workspace_id = $1 AND thread_id = 'deleted'", workspace_id
    )
    await age(sql, workspace_id, 31, "old", "deleted", "parent")
    await age(sql, workspace_id, 29, "new")
    await set_days(watchful, workspace_id, 30)

    async def is_done() -> bool:
        request = pb.ListErasuresRequest(workspace_id=workspace_id)
        found = (await watchful.erasures.ListErasures(request, timeout=CALL_S)).erasures
        return sum(erasure.conversation_count for erasure in found if erasure.state == DONE) == 2

    await until(is_done)
    listed = await watchful.erasures.ListErasures(pb.ListErasuresRequest(workspace_id=workspace_id), timeout=CALL_S)
    assert {(erasure.kind, erasure.actor) for erasure in listed.erasures} == {(pb.ERASURE_KIND_RETENTION, "system")}
    assert await places_in_postgres(sql, needle) == []
    for name in ("new", "parent", "branch"):
        assert texts(await watchful.all_messages(ThreadKey(workspace_id, name))) == ["kept"]
    # Once the branch has to go as well, both do.
    await age(sql, workspace_id, 31, "branch")
    await sql.execute("UPDATE memory.retentions SET due_at = now() WHERE workspace_id = $1", workspace_id)

    async def all_gone() -> bool:
        query = "SELECT count(*) FROM memory.conversations WHERE workspace_id = $1 AND erased_at IS NULL"
        return int(await sql.fetchval(query, workspace_id)) == 1

    await until(all_gone)


async def test_a_retention_takes_no_conversation_in_which_a_turn_is_open_nor_what_its_branches_share(
    watchful: Memory, sql: "Sql[Any]", workspace_id: str
) -> None:
    """What the user has just said is in no message yet, and must not go with what is old."""
    for name in ("old", "talking", "parent"):
        await watchful.append(ThreadKey(workspace_id, name), "kept")
    fork = ForkConversationRequest(workspace_id=workspace_id, thread_id="parent", branch_thread_id="branch")
    await watchful.branches.ForkConversation(fork, timeout=CALL_S)
    await age(sql, workspace_id, 31, "old", "talking", "parent", "branch")
    fences = {}
    for name in ("talking", "branch"):
        request = BeginTurnRequest(workspace_id=workspace_id, thread_id=name, request_id="t", messages=said("I am back"))
        fences[name] = (await watchful.turns.BeginTurn(request, timeout=CALL_S)).fence
    await set_days(watchful, workspace_id, 30)

    async def old_is_gone() -> bool:
        query = "SELECT thread_id FROM memory.conversations WHERE workspace_id = $1 AND erased_at IS NOT NULL"
        return "old" in [row["thread_id"] for row in await sql.fetch(query, workspace_id)]

    async def looked_again() -> bool:
        return bool(
            await sql.fetchval("SELECT due_at > $2 FROM memory.retentions WHERE workspace_id = $1", workspace_id, now)
        )

    await until(old_is_gone)
    now = await sql.fetchval("SELECT now() + interval '300 ms'")
    await until(looked_again)
    for name, fence in fences.items():
        commit = CommitTurnRequest(
            workspace_id=workspace_id, thread_id=name, turn_id="t", fence=fence, response_messages=said("Hello!")
        )
        await watchful.turns.CommitTurn(commit, timeout=CALL_S)
        assert texts(await watchful.all_messages(ThreadKey(workspace_id, name))) == ["kept", "I am back", "Hello!"]


async def test_an_erasure_lets_answers_be_that_tell_of_something_else(room: Memory, workspace_id: str) -> None:
    """An id may be as short as "1", and stand in anything: a repeat of another call must still change nothing."""
    await room.append(ThreadKey(workspace_id, "1"), "hello")

    async def wish(value: str, request_id: str) -> str:
        request = UpdatePreferencesRequest(workspace_id=workspace_id, user_id="ada", request_id=request_id)
        request.set["key-1"] = value
        await room.preferences.UpdatePreferences(request, timeout=CALL_S)
        asked = GetPreferencesRequest(workspace_id=workspace_id, user_id="ada")
        return (await room.preferences.GetPreferences(asked, timeout=CALL_S)).preferences[0].value

    assert await wish("first", "r1") == "first"
    assert await wish("second", "r2") == "second"
    erase = pb.EraseConversationRequest(workspace_id=workspace_id, thread_id="1")
    assert (await room.erasures.EraseConversation(erase, timeout=CALL_S)).erasure.state == DONE
    assert await wish("first", "r1") == "second"


async def test_an_erasure_takes_answers_whose_calls_did_not_name_the_conversation(
    room: Memory, sql: "Sql[Any]", workspace_id: str, needle: str
) -> None:
    create = CreateConversationRequest(
        conversation=Conversation(workspace_id=workspace_id, title=needle), request_id="made here"
    )
    thread_id = (await room.conversations.CreateConversation(create, timeout=CALL_S)).conversation.thread_id
    run = ToolRun(workspace_id=workspace_id, thread_id=thread_id, tool_run_id="run", name=needle)
    await room.tool_runs.CreateToolRun(CreateToolRunRequest(tool_run=run), timeout=CALL_S)
    claim = ClaimToolRunRequest(workspace_id=workspace_id, names=[needle], holder="w", request_id="claim")
    claimed = (await room.tool_runs.ClaimToolRun(claim, timeout=CALL_S)).tool_run
    fail = FailToolRunRequest(
        workspace_id=workspace_id,
        tool_run_id="run",
        version=claimed.version,
        attempt=claimed.attempt,
        error=needle,
        request_id="fail",
    )
    await room.tool_runs.FailToolRun(fail, timeout=CALL_S)
    kept = "SELECT request_id FROM memory.requests WHERE workspace_id = $1 ORDER BY request_id"
    assert [row[0] for row in await sql.fetch(kept, workspace_id)] == ["claim", "fail", "made here"]
    erase = pb.EraseConversationRequest(workspace_id=workspace_id, thread_id=thread_id)
    assert (await room.erasures.EraseConversation(erase, timeout=CALL_S)).erasure.state == DONE
    assert await sql.fetch(kept, workspace_id) == []
    assert await places_in_postgres(sql, needle) == []


async def test_a_retention_is_read_as_it_was_set_and_guarded_by_its_etag(room: Memory, workspace_id: str) -> None:
    async def read() -> pb.Retention:
        request = pb.GetRetentionRequest(workspace_id=workspace_id)
        return (await room.erasures.GetRetention(request, timeout=CALL_S)).retention

    before = await read()
    assert (before.days, before.HasField("update_time"), bool(before.etag)) == (0, False, True)
    first = await set_days(room, workspace_id, 30, etag=before.etag, request_id="r")
    assert await read() == first
    assert first.days == 30
    assert await set_days(room, workspace_id, 30, etag=before.etag, request_id="r") == first
    async with refused(grpc.StatusCode.ABORTED, "REASON_ETAG_MISMATCH"):
        await set_days(room, workspace_id, 7, etag=before.etag)
    assert (await set_days(room, workspace_id, 0, etag=first.etag)).days == 0
