"""Branches: they share rows with the conversations they came from, at no cost, and follow what changes there."""

import asyncio
from functools import partial
from typing import Any

import asyncpg
import grpc
import pytest
import redis.asyncio
from hypothesis import given
from hypothesis import strategies as st

from tests.memory.changing import (
    branches,
    delete,
    edit,
    fork,
    forked,
    hide,
    insisting,
    message,
    metadata,
    pop,
    redact,
    revisions,
    rows,
    show,
)
from tests.memory.checker import check_window
from tests.memory.rooms import CALL_S, Memory, redis_of, refused, said, seqs, serving, texts, thread
from tests.waiting import until
from twofold.memory.v1.context_pb2 import InvokingRequest
from twofold.memory.v1.conversation_pb2 import AppendTurnRequest, Conversation, GetConversationRequest, GetTurnRequest
from twofold.memory.v1.event_pb2 import ListEventsRequest
from twofold.memory.v1.message_pb2 import ReadLevel, ReadSource, Role, ToolCall
from twofold_chassis.settings import DatabaseSettings
from twofold_cli.embedded.redis import EmbeddedRedis
from twofold_memory import keys
from twofold_memory.branches import DEPTH_MAX, Lineage, TooManyBranches
from twofold_memory.threads import MessageUnknown, ThreadKey

NOT_FOUND, REFUSED = grpc.StatusCode.NOT_FOUND, grpc.StatusCode.FAILED_PRECONDITION
UNKNOWN = "REASON_CONVERSATION_UNKNOWN"
ANY = ReadLevel.READ_LEVEL_ANY
L1, L2 = ReadSource.READ_SOURCE_L1, ReadSource.READ_SOURCE_L2


async def get(room: Memory, key: ThreadKey) -> Conversation:
    request = GetConversationRequest(workspace_id=key.workspace_id, thread_id=key.thread_id)
    return (await room.conversations.GetConversation(request, timeout=CALL_S)).conversation


async def test_a_branch_begins_as_its_parent_did_and_both_go_their_ways(
    room: Memory, other_room: Memory, key: ThreadKey, raw_redis: redis.asyncio.Redis, sql: "asyncpg.Pool[Any]"
) -> None:
    """M1, M7: numbers go on behind the shared ones; the first append to a branch claims no window from 1 on."""
    await room.append(key, "q1", "a1", user_id="ada")
    await room.append(key, "q2", "a2")
    made = await forked(room, key, 2, branch_thread_id="branch", title="Other", metadata={"a": "b"})
    branch = ThreadKey(key.workspace_id, "branch")
    assert (made.parent_thread_id, made.fork_seq, made.first_seq, made.message_count) == (key.thread_id, 2, 1, 2)
    assert (made.user_id, made.title, dict(made.metadata)) == ("ada", "Other", {"a": "b"})
    answer = await other_room.append(branch, "q3", "a3")
    assert (answer.first_seq, answer.last_seq) == (3, 4)
    await check_window(raw_redis, sql, branch)
    for worker in (room, other_room):
        for level in (ReadLevel.READ_LEVEL_VERIFIED, ANY):
            assert texts((await worker.read(branch, level=level)).messages) == ["q1", "a1", "q3", "a3"]
            assert texts((await worker.read(key, level=level)).messages) == ["q1", "a1", "q2", "a2"]
        assert texts(await worker.all_messages(branch, page_size=3)) == ["q1", "a1", "q3", "a3"]
    await check_window(raw_redis, sql, branch)
    assert (await get(room, branch)).message_count == 4


async def test_the_first_append_to_a_branch_leaves_no_window_that_claims_to_be_all(
    room: Memory, key: ThreadKey, raw_redis: redis.asyncio.Redis
) -> None:
    await room.append(key, "q1", "a1")
    branch = await fork(room, key)
    await room.append(branch, "q2", "a2")
    assert not await raw_redis.exists(keys.thread_messages(branch))
    window = await room.read(branch)
    assert (window.source, seqs(window.messages)) == (L2, [1, 2, 3, 4])

    async def is_warm() -> bool:
        return (await room.read(branch)).source == L1

    await until(is_warm)
    await room.append(branch, "q3")
    for level in (ReadLevel.READ_LEVEL_VERIFIED, ANY):
        assert texts((await room.read(branch, level=level)).messages) == ["q1", "a1", "q2", "a2", "q3"]


async def test_an_empty_branch_shares_nothing_and_begins_at_one(room: Memory, key: ThreadKey) -> None:
    await room.append(key, "q1", "a1")
    made = await forked(room, key, 0)
    branch = ThreadKey(key.workspace_id, made.thread_id)
    assert (made.parent_thread_id, made.fork_seq, made.message_count) == (key.thread_id, 0, 0)
    assert (await room.read(branch)).messages == []
    assert (await room.append(branch, "other")).first_seq == 1
    assert texts((await room.read(branch, level=ANY)).messages) == ["other"]
    await edit(room, key, 1, "Q1")
    assert texts((await room.read(branch)).messages) == ["other"]


async def test_a_fork_writes_the_same_few_rows_whatever_it_shares(
    room: Memory, sql: "asyncpg.Pool[Any]", workspace_id: str
) -> None:
    """M13: constant, as rows written instead of as time."""
    written = []
    for size in (2, 2_000):
        key = ThreadKey(workspace_id, f"thread-{size}")
        for begin in range(0, size, 500):
            await room.append(key, *(f"{begin + index}" for index in range(min(size, 500))))
        before = await rows(sql, workspace_id)
        await forked(room, key, request_id=f"fork-{size}")
        after = await rows(sql, workspace_id)
        written.append({table: after[table] - count for table, count in before.items()})
    assert written[0] == written[1]
    assert written[0] == {
        "conversations": 1,
        "messages": 0,
        "turns": 0,
        "message_revisions": 0,
        "window_purges": 0,
        "requests": 1,
        "events": 1,
    }


async def test_a_change_of_a_shared_message_is_seen_in_every_branch_that_has_it_and_in_no_other(
    room: Memory, other_room: Memory, key: ThreadKey, raw_redis: redis.asyncio.Redis, sql: "asyncpg.Pool[Any]"
) -> None:
    await room.append(key, "q1", "a1")
    await room.append(key, "q2", "a2")
    early, late = await fork(room, key, 2), await fork(room, key, 4)
    deep = await fork(room, late, 3)
    every = (key, early, late, deep)
    for branch in every:
        await room.append(branch, "own")
        await room.read(branch)
    before = {branch: (await get(room, branch)).etag for branch in every}
    epochs = {branch: await epoch(sql, branch) for branch in every}
    await edit(other_room, key, 3, "Q2")
    assert {branch: await epoch(sql, branch) - epochs[branch] for branch in every} == {key: 1, early: 0, late: 1, deep: 1}
    for level in (ANY, ReadLevel.READ_LEVEL_VERIFIED):
        for branch, expected in (
            (key, ["q1", "a1", "Q2", "a2", "own"]),
            (early, ["q1", "a1", "own"]),
            (late, ["q1", "a1", "Q2", "a2", "own"]),
            (deep, ["q1", "a1", "Q2", "own"]),
        ):
            assert texts((await room.read(branch, level=level)).messages) == expected
            await check_window(raw_redis, sql, branch)
    assert {branch: (await get(room, branch)).etag for branch in every} == before
    assert (await message(room, deep, 3)).revision == 1
    assert [revision.former.content for revision in await revisions(room, deep, 3)] == ["q2"]


async def epoch(sql: "asyncpg.Pool[Any]", key: ThreadKey) -> int:
    return int(await sql.fetchval("SELECT epoch FROM memory.conversations WHERE workspace_id = $1 AND thread_id = $2", *key))


@pytest.mark.parametrize("fault", ["pause", "kill"])
async def test_an_edit_while_redis_is_away_shows_nothing_old_of_any_branch_when_it_is_back(
    memory_database: DatabaseSettings, own_redis: EmbeddedRedis, workspace_id: str, fault: str
) -> None:
    """M8, from the first read on, at every level; and the windows go by themselves."""
    key = thread(workspace_id)
    async with serving(memory_database, redis_of(own_redis, budget_ms=200)) as room:
        await room.append(key, "old")
        branch = await fork(room, key)
        await room.append(branch, "own")
        token = (await room.read(branch)).thread_token

        async def is_warm() -> bool:
            return (await room.read(branch)).source == L1

        await until(is_warm)
        if fault == "pause":
            own_redis.pause()
        else:
            await own_redis.kill()
        await edit(room, key, 1, "new")
        if fault == "pause":
            own_redis.resume()
        else:
            await own_redis.start()
        for _ in range(20):
            for level in (ANY, ReadLevel.READ_LEVEL_VERIFIED):
                assert texts((await room.read(key, level=level)).messages) == ["new"]
                assert texts((await room.read(branch, level=level)).messages) == ["new", "own"]
            assert texts((await room.read(branch, token=token)).messages) == ["new", "own"]
        await until(is_warm)
        assert texts((await room.read(branch, level=ANY)).messages) == ["new", "own"]


async def test_a_shared_message_is_changed_where_it_was_said_and_the_refusal_names_that_place(
    room: Memory, key: ThreadKey
) -> None:
    await room.append(key, "q1", "a1")
    middle = await fork(room, key)
    await room.append(middle, "q2", "a2")
    branch = await fork(room, middle)
    for seq, owner in ((1, key), (2, key), (3, middle), (4, middle)):
        for call in (edit(room, branch, seq, "x"), redact(room, branch, seq), delete(room, branch, seq)):
            async with refused(REFUSED, "REASON_MESSAGE_SHARED") as told:
                await call
            assert metadata(told.value)["owner_thread_id"] == owner.thread_id
    async with refused(REFUSED, "REASON_MESSAGE_SHARED") as told:
        await pop(room, branch)
    assert metadata(told.value)["owner_thread_id"] == middle.thread_id
    await room.append(branch, "q3", turn_id="mine")
    assert (await pop(room, branch)).turn_id == "mine"
    await delete(room, middle, 3)
    assert [bool(m.content) for m in await room.all_messages(branch)] == [True, True, False, True, False]


async def test_a_fork_within_a_turn_cuts_it_and_no_tool_pair_stands_in_half(room: Memory, key: ThreadKey) -> None:
    """M3, M12: the branch has the first part of the turn, and contexts leave the open call out."""
    request = AppendTurnRequest(workspace_id=key.workspace_id, thread_id=key.thread_id, request_id="t")
    call = ToolCall(id="c", type="function", name="f")
    request.messages.extend(said("q"))
    request.messages.add(role=Role.ROLE_ASSISTANT, tool_calls=[call])
    request.messages.add(role=Role.ROLE_TOOL, content="42", tool_call_id="c")
    await room.conversations.AppendTurn(request, timeout=CALL_S)
    branch = await fork(room, key, 2)
    await room.append(branch, "next", turn_id="own")
    assert [(m.turn_id, m.turn_index) for m in await room.all_messages(branch)] == [("t", 0), ("t", 1), ("own", 0)]
    turn = GetTurnRequest(workspace_id=key.workspace_id, thread_id=branch.thread_id, turn_id="t")
    assert seqs((await room.conversations.GetTurn(turn, timeout=CALL_S)).messages) == [1, 2]
    context = InvokingRequest(workspace_id=key.workspace_id, thread_id=branch.thread_id)
    assert seqs((await room.contexts.Invoking(context, timeout=CALL_S)).messages) == [1, 3]
    # A turn id is a conversation's own: the branch may use the same one again, and its own goes first.
    await room.append(branch, "again", turn_id="t")
    assert seqs((await room.conversations.GetTurn(turn, timeout=CALL_S)).messages) == [4]


async def test_branches_are_listed_and_go_on_when_their_parent_is_hidden(room: Memory, key: ThreadKey) -> None:
    await room.append(key, "q1", "a1")
    made = [await fork(room, key, branch_thread_id=f"b{index}") for index in range(5)]
    await fork(room, made[0], branch_thread_id="grandchild")
    assert await branches(room, key, page_size=2) == [f"b{index}" for index in range(5)]
    await hide(room, made[1])
    assert await branches(room, key) == ["b0", "b2", "b3", "b4"]
    await hide(room, key)
    async with refused(NOT_FOUND, UNKNOWN):
        await branches(room, key)
    async with refused(NOT_FOUND, UNKNOWN):
        await fork(room, key)
    assert texts((await room.read(made[0])).messages) == ["q1", "a1"]
    await room.append(made[0], "q2")
    await show(room, key)
    assert await branches(room, key) == ["b0", "b2", "b3", "b4"]


async def test_of_nobodys_conversation_a_user_is_listed_the_branches_that_this_user_may_see(
    room: Memory, key: ThreadKey
) -> None:
    await room.append(key, "q1", "a1")
    for name, user_id in (("adas", "ada"), ("graces", "grace"), ("nobodys", "")):
        await fork(room, key, branch_thread_id=name, user_id=user_id)
    assert await branches(room, key) == ["adas", "graces", "nobodys"]
    assert await branches(room, key, user_id="grace", page_size=1) == ["graces", "nobodys"]


async def test_forks_that_cannot_be_are_refused(room: Memory, key: ThreadKey, sql: "asyncpg.Pool[Any]") -> None:
    async with refused(NOT_FOUND, UNKNOWN):
        await fork(room, key)
    await room.append(key, "q", user_id="ada")
    async with refused(NOT_FOUND, "REASON_MESSAGE_UNKNOWN"):
        await fork(room, key, 2)
    async with refused(NOT_FOUND, UNKNOWN):
        await fork(room, key, user_id="bob")
    async with refused(grpc.StatusCode.ALREADY_EXISTS, "REASON_CONVERSATION_EXISTS"):
        await fork(room, key, branch_thread_id=key.thread_id)
    made = await forked(room, key, request_id="r")
    assert await forked(room, key, request_id="r") == made
    about = "SELECT thread_id FROM memory.requests WHERE workspace_id = $1 AND request_id = 'r'"
    assert await sql.fetchval(about, key.workspace_id) == made.thread_id  # so that it is erased with the branch
    async with refused(grpc.StatusCode.ALREADY_EXISTS, "REASON_REQUEST_REUSED"):
        await forked(room, key, 0, request_id="r")
    assert await branches(room, key) == [made.thread_id]
    await sql.execute("UPDATE memory.conversations SET erased_at = now() WHERE thread_id = $1", key.thread_id)
    async with refused(REFUSED, "REASON_CONVERSATION_ERASED"):
        await fork(room, key)


async def test_a_line_of_branches_is_sixteen_long_and_not_longer(room: Memory, key: ThreadKey) -> None:
    await room.append(key, "0")
    line = [key]
    for depth in range(DEPTH_MAX):
        line.append(await fork(room, line[-1]))
        await room.append(line[-1], f"{depth + 1}")
    assert texts(await room.all_messages(line[-1], page_size=5)) == [f"{index}" for index in range(DEPTH_MAX + 1)]
    assert texts((await room.read(line[-1], 5)).messages) == [f"{index}" for index in range(DEPTH_MAX - 4, DEPTH_MAX + 1)]
    async with refused(grpc.StatusCode.RESOURCE_EXHAUSTED, "REASON_TOO_MANY"):
        await fork(room, line[-1])
    await fork(room, line[-1], 1)  # of the first one only
    await edit(room, key, 1, "zero")
    assert texts((await room.read(line[-1], level=ANY)).messages)[0] == "zero"


async def test_so_many_branches_share_a_message_and_not_more(room: Memory, key: ThreadKey, sql: "asyncpg.Pool[Any]") -> None:
    await room.append(key, "q")
    await sql.execute(
        "INSERT INTO memory.conversations (workspace_id, thread_id, next_seq, parent_thread_id, ancestors, shared_until)"
        " SELECT $1, 'b' || i, 2, $2, ARRAY[$2::text], ARRAY[1] FROM generate_series(1, 999) i",
        *key,
    )
    await fork(room, key, branch_thread_id="last")
    async with refused(grpc.StatusCode.RESOURCE_EXHAUSTED, "REASON_TOO_MANY"):
        await fork(room, key)
    await fork(room, key, 0)
    await edit(room, key, 1, "Q")
    assert texts((await room.read(ThreadKey(key.workspace_id, "last"))).messages) == ["Q"]


async def test_what_an_erased_ancestor_held_is_gone_and_the_rest_of_the_branch_is_read_on(
    room: Memory, key: ThreadKey, sql: "asyncpg.Pool[Any]"
) -> None:
    """The state that an erasure leaves, made by hand: numbers stay, first_seq says where it begins."""
    await room.append(key, "q1", "a1")
    branch = await fork(room, key)
    await room.append(branch, "q2", "a2")
    await sql.execute(
        "UPDATE memory.conversations SET floor_seq = 2, epoch = epoch + 1 WHERE workspace_id = $1 AND thread_id = $2",
        *branch,
    )
    assert ((await get(room, branch)).first_seq, (await get(room, branch)).message_count) == (3, 4)
    assert seqs((await room.read(branch)).messages) == [3, 4]
    assert seqs(await room.all_messages(branch)) == [3, 4]
    for call in (message(room, branch, 2), edit(room, branch, 2, "x"), fork(room, branch, 2)):
        async with refused(NOT_FOUND, "REASON_MESSAGE_UNKNOWN"):
            await call
    assert (await forked(room, branch, 3)).first_seq == 3
    await pop(room, branch)
    async with refused(NOT_FOUND, "REASON_TURN_UNKNOWN"):
        await pop(room, branch)


async def test_a_branch_that_is_made_while_its_parent_changes_shows_nothing_old(
    room: Memory, other_room: Memory, key: ThreadKey, raw_redis: redis.asyncio.Redis, sql: "asyncpg.Pool[Any]"
) -> None:
    """M7, M8: an edit reaches those who share what it changes, also the ones that are just being made."""
    await room.append(key, "0", "a")
    made: list[ThreadKey] = []

    async def forks(worker: Memory) -> None:
        for index in range(12):
            parent = made[-1] if made and index % 3 == 2 else key
            branch = await insisting(partial(fork, worker, parent))
            made.append(branch)
            await worker.read(branch)
            await insisting(partial(worker.append, branch, "own", turn_id="own"))
            await worker.read(branch)

    async def edits() -> None:
        for index in range(1, 13):
            await insisting(partial(edit, other_room, key, 1, f"{index}"))
            for branch in made:
                window = await room.read(branch, level=ANY)
                assert int(window.messages[0].content) >= index

    await asyncio.gather(forks(room), forks(other_room), edits())
    for branch in made:
        assert texts((await room.read(branch, level=ANY)).messages)[:2] == ["12", "a"]
        await check_window(raw_redis, sql, branch)


async def test_the_parents_log_tells_of_its_branches(room: Memory, key: ThreadKey) -> None:
    await room.append(key, "q")
    branch = await fork(room, key)
    request = ListEventsRequest(workspace_id=key.workspace_id, thread_id=key.thread_id)
    (event,) = (await room.events.ListEvents(request, timeout=CALL_S)).events
    assert (event.kind, branch.thread_id in event.payload) == ("conversation.forked", True)


@given(steps=st.lists(st.tuples(st.integers(0, 30), st.integers(0, 30), st.integers(0, 5)), max_size=25))
def test_a_lineage_says_of_every_message_where_it_was_said(steps: list[tuple[int, int, int]]) -> None:
    """Against a model that copies: each conversation is the list of those who said its messages."""
    lineages, said_by = [Lineage("0", [], [], 0, 1)], [list[str]()]
    for which, where, size in steps:
        parent = which % len(lineages)
        at_seq = where % (len(said_by[parent]) + 1)
        name = f"{len(lineages)}"
        try:
            made = lineages[parent].forked(name, at_seq)
        except TooManyBranches:
            assert len(set(said_by[parent][:at_seq])) > DEPTH_MAX
            continue
        lineages.append(Lineage(name, made.ancestors, made.shared_until, made.floor_seq, made.next_seq + size))
        said_by.append(said_by[parent][:at_seq] + [name] * size)
    for lineage, owners in zip(lineages, said_by, strict=True):
        assert [lineage.owner(seq) for seq in range(1, len(owners) + 1)] == owners
        with pytest.raises(MessageUnknown):
            lineage.owner(len(owners) + 1)
