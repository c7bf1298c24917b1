"""Search finds what is there now, in the index or not yet, and never what is not the caller's or is gone."""

import asyncio
from typing import Any

import asyncpg
import grpc
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.memory.conftest import Worker
from tests.memory.rooms import CALL_S, Memory, refused, seqs, thread
from tests.waiting import until
from twofold.memory.v1.branch_pb2 import ForkConversationRequest
from twofold.memory.v1.conversation_pb2 import AppendTurnRequest, DeleteConversationRequest
from twofold.memory.v1.message_pb2 import ImageRef, Message, Part, Role
from twofold.memory.v1.revision_pb2 import DeleteMessageRequest, EditMessageRequest, NewContent, RedactMessageRequest
from twofold.memory.v1.search_pb2 import SearchHit, SearchMessagesRequest, SearchOrder
from twofold_chassis import postgres
from twofold_chassis.settings import DatabaseSettings
from twofold_memory.searching import Indexing
from twofold_memory.store.search import PostgresSearch
from twofold_memory.store.statements import STATEMENTS
from twofold_memory.threads import ThreadKey

Sql = asyncpg.Pool


async def search(room: Memory, workspace_id: str, query: str, **asked: Any) -> list[SearchHit]:
    """All pages."""
    request = SearchMessagesRequest(workspace_id=workspace_id, query=query, **asked)
    hits: list[SearchHit] = []
    while True:
        page = await room.search.SearchMessages(request, timeout=CALL_S)
        hits += page.hits
        if not page.next_page_token:
            return hits
        request.page_token = page.next_page_token


async def found(room: Memory, workspace_id: str, query: str, **asked: Any) -> list[tuple[str, int]]:
    return [(hit.thread_id, hit.message.seq) for hit in await search(room, workspace_id, query, **asked)]


async def is_indexed(sql: "Sql[Any]", workspace_id: str) -> None:
    """Returns when nothing of the workspace is left to be looked at."""

    async def nothing_waits() -> bool:
        query = "SELECT NOT EXISTS (SELECT FROM memory.search_pending WHERE workspace_id = $1)"
        return bool(await sql.fetchval(query, workspace_id))

    await until(nothing_waits)


async def change(room: Memory, key: ThreadKey, seq: int, how: str) -> None:
    named: dict[str, Any] = {"workspace_id": key.workspace_id, "thread_id": key.thread_id, "seq": seq}
    if how == "edit":
        edit = EditMessageRequest(**named, content=NewContent(text="quince"))
        await room.revisions.EditMessage(edit, timeout=CALL_S)
    elif how == "redact":
        await room.revisions.RedactMessage(RedactMessageRequest(**named), timeout=CALL_S)
    else:
        await room.revisions.DeleteMessage(DeleteMessageRequest(**named), timeout=CALL_S)


@pytest.mark.parametrize("indexed", [False, True])
async def test_what_was_said_is_found_at_once_and_also_once_it_is_in_the_index(
    room: Memory, key: ThreadKey, sql: "Sql[Any]", indexed: bool
) -> None:
    await room.append(key, "apples and pears", "Pears, and plums", "nothing of the kind", "PEARS!")
    if indexed:
        await is_indexed(sql, key.workspace_id)
    mine = [(key.thread_id, seq) for seq in (4, 2, 1)]
    assert await found(room, key.workspace_id, "pears") == mine
    assert await found(room, key.workspace_id, "pears -plums -apples") == mine[:1]
    assert await found(room, key.workspace_id, '"apples and pears"') == mine[2:]
    assert await found(room, key.workspace_id, '"pears and apples"') == []
    assert await found(room, key.workspace_id, "kind or plums") == [(key.thread_id, 3), (key.thread_id, 2)]
    hit = (await search(room, key.workspace_id, "apples"))[0]
    assert (hit.snippet, hit.message.content) == ("«apples» and pears", "apples and pears")
    assert hit.rank > 0


@pytest.mark.parametrize("indexed", [False, True])
@pytest.mark.parametrize("how", ["edit", "redact", "delete"])
async def test_what_was_changed_is_not_found_as_it_was(
    room: Memory, key: ThreadKey, sql: "Sql[Any]", how: str, indexed: bool
) -> None:
    await room.append(key, "quetsch", "other")
    if indexed:
        await is_indexed(sql, key.workspace_id)
    await change(room, key, 1, how)
    expected = [(key.thread_id, 1)] if how == "edit" else []
    for _ in range(2):
        assert await found(room, key.workspace_id, "quetsch") == []
        assert await found(room, key.workspace_id, "quince") == expected
        await is_indexed(sql, key.workspace_id)
    words = "SELECT words::text FROM memory.search_entries WHERE (workspace_id, thread_id, seq) = ($1, $2, 1)"
    assert "quetsch" not in await sql.fetchval(words, *key)


async def test_an_older_look_at_a_message_never_replaces_a_newer_one(room: Memory, key: ThreadKey, sql: "Sql[Any]") -> None:
    await room.append(key, "quetsch")
    await change(room, key, 1, "delete")
    await is_indexed(sql, key.workspace_id)
    late = (
        STATEMENTS["index_pending"]
        .replace("m.revision, m.created_at", "0, m.created_at")
        .replace(
            "CASE WHEN m.status IN (0, 1) THEN memory.search_words(m.workspace_id, m.content, m.rest) ELSE '' END",
            "to_tsvector('simple', 'quetsch')",
        )
    )
    assert "'quetsch'" in late
    await sql.execute(
        "INSERT INTO memory.search_pending (workspace_id, thread_id, first_seq, last_seq) VALUES ($1, $2, 1, 1)", *key
    )
    await sql.fetchval(late, 1000)
    words = "SELECT words::text FROM memory.search_entries WHERE (workspace_id, thread_id, seq) = ($1, $2, 1)"
    assert await sql.fetchval(words, *key) == ""


async def test_nothing_of_another_workspace_or_user_or_of_a_deleted_conversation_is_found(
    room: Memory, workspace_id: str, sql: "Sql[Any]"
) -> None:
    adas, graces, nobodys = (thread(workspace_id) for _ in range(3))
    foreign = thread(f"{workspace_id}-other")
    for key, user in ((adas, "ada"), (graces, "grace"), (nobodys, ""), (foreign, "ada")):
        await room.append(key, f"medlar w:{workspace_id}", user_id=user)
    for _ in range(2):
        assert await found(room, workspace_id, "medlar") == [(nobodys[1], 1), (graces[1], 1), (adas[1], 1)]
        assert await found(room, workspace_id, "medlar", user_id="ada") == [(adas[1], 1)]
        assert await found(room, foreign.workspace_id, "medlar") == [(foreign[1], 1)]
        assert await found(room, workspace_id, "medlar", user_id="ada", thread_id=adas[1]) == [(adas[1], 1)]
        async with refused(grpc.StatusCode.NOT_FOUND, "REASON_CONVERSATION_UNKNOWN"):
            await found(room, workspace_id, "medlar", user_id="ada", thread_id=graces[1])
        await is_indexed(sql, workspace_id)
    await room.conversations.DeleteConversation(
        DeleteConversationRequest(workspace_id=workspace_id, thread_id=graces[1]), timeout=CALL_S
    )
    assert await found(room, workspace_id, "medlar") == [(nobodys[1], 1), (adas[1], 1)]
    async with refused(grpc.StatusCode.NOT_FOUND, "REASON_CONVERSATION_UNKNOWN"):
        await found(room, workspace_id, "medlar", thread_id=graces[1])


@pytest.mark.parametrize("workspace_id", ["it's", "back\\slash", "a b & c | !d", "é'\\''", "x" * 255])
async def test_a_workspace_is_searched_whatever_its_id(room: Memory, sql: "Sql[Any]", workspace_id: str) -> None:
    key = thread(workspace_id)
    await room.append(key, "sloe")
    assert (key.thread_id, 1) in await found(room, workspace_id, "sloe")
    await is_indexed(sql, workspace_id)
    assert (key.thread_id, 1) in await found(room, workspace_id, "sloe")


async def test_a_hit_stands_among_the_messages_around_it(room: Memory, key: ThreadKey) -> None:
    await room.append(key, *[f"m{index}" for index in range(1, 10)])
    (hit,) = await search(room, key.workspace_id, "m5", around=2)
    assert (seqs(hit.before), hit.message.seq, seqs(hit.after), hit.truncated) == ([3, 4], 5, [6, 7], False)
    (hit,) = await search(room, key.workspace_id, "m1", around=10)
    assert (seqs(hit.before), seqs(hit.after)) == ([], list(range(2, 10)))


async def test_pages_are_bounded_in_bytes_and_lose_no_hit(room: Memory, key: ThreadKey) -> None:
    for _ in range(5):
        await room.append(key, "damson " + "x" * 900_000)
    request = SearchMessagesRequest(workspace_id=key.workspace_id, query="damson", around=1)
    pages = []
    while True:
        page = await room.search.SearchMessages(request, timeout=CALL_S)
        assert page.ByteSize() < 3.5 * 1024 * 1024
        pages.append([hit.message.seq for hit in page.hits])
        if not page.next_page_token:
            break
        request.page_token = page.next_page_token
    assert [seq for page in pages for seq in page] == [5, 4, 3, 2, 1]
    assert len(pages) > 2
    (hit, *_) = await search(room, key.workspace_id, "damson", around=10)
    assert hit.truncated


@pytest.mark.parametrize("order", [SearchOrder.SEARCH_ORDER_NEWEST, SearchOrder.SEARCH_ORDER_RELEVANCE])
async def test_pages_follow_their_order(room: Memory, key: ThreadKey, order: SearchOrder.ValueType) -> None:
    for index in range(12):
        await room.append(key, "greengage " * (1 + index * 7 % 5))
    whole = await search(room, key.workspace_id, "greengage", order=order)
    paged = await search(room, key.workspace_id, "greengage", order=order, page_size=5)
    assert paged == whole
    assert len(whole) == 12
    ranks = [hit.rank for hit in whole]
    if order == SearchOrder.SEARCH_ORDER_RELEVANCE:
        assert ranks == sorted(ranks, reverse=True)
        assert len(set(ranks)) == 5
    else:
        assert [hit.message.seq for hit in whole] == list(range(12, 0, -1))


async def test_a_range_of_time_is_from_and_before(room: Memory, key: ThreadKey) -> None:
    moments = [(await room.append(key, "bullace")).create_time for _ in range(3)]
    assert await found(room, key.workspace_id, "bullace", start_time=moments[1]) == [(key.thread_id, 3), (key.thread_id, 2)]
    assert await found(room, key.workspace_id, "bullace", end_time=moments[1]) == [(key.thread_id, 1)]


async def test_the_text_among_parts_is_found(room: Memory, key: ThreadKey, sql: "Sql[Any]") -> None:
    parts = [Part(text="a mirabelle"), Part(text=""), Part(text="ünd " + "z" * 300 + " Zwetschge")]
    parts[1:1] = [Part(image=ImageRef(url="https://mirabelle.example/persimmon.png"))]
    message = Message(role=Role.ROLE_USER, parts=parts, name="name", metadata={"k": "v" * 200})
    request = AppendTurnRequest(workspace_id=key.workspace_id, thread_id=key.thread_id, messages=[message])
    await room.conversations.AppendTurn(request, timeout=CALL_S)
    for _ in range(2):
        for word in ("mirabelle", "zwetschge", '"a mirabelle ünd"'):
            assert await found(room, key.workspace_id, word) == [(key.thread_id, 1)]
        assert await found(room, key.workspace_id, "persimmon") == []
        await is_indexed(sql, key.workspace_id)


async def test_only_the_beginning_of_a_very_long_message_is_looked_at(room: Memory, key: ThreadKey, sql: "Sql[Any]") -> None:
    hard = " ".join(f"𝔸{index:x}-é{index:x}" for index in range(60_000))[:900_000]
    await room.append(key, "first " + hard[:200_000] + " last")
    for _ in range(2):
        assert await found(room, key.workspace_id, "first") == [(key.thread_id, 1)]
        assert await found(room, key.workspace_id, "last") == []
        await is_indexed(sql, key.workspace_id)


async def test_a_branch_is_searched_with_what_it_shares_and_hits_are_their_owners(
    room: Memory, key: ThreadKey, sql: "Sql[Any]"
) -> None:
    await room.append(key, "cherry one", "cherry two", "cherry three")
    fork = ForkConversationRequest(workspace_id=key.workspace_id, thread_id=key.thread_id, at_seq=2)
    branch = (await room.branches.ForkConversation(fork, timeout=CALL_S)).conversation.thread_id
    await room.append(ThreadKey(key.workspace_id, branch), "cherry four")
    for _ in range(2):
        hits = await search(room, key.workspace_id, "cherry", thread_id=branch, around=1)
        assert [(hit.thread_id, hit.message.seq) for hit in hits] == [(branch, 3), (key.thread_id, 2), (key.thread_id, 1)]
        assert [message.content for message in hits[0].before] == ["cherry two"]
        assert len(await search(room, key.workspace_id, "cherry")) == 4
        await is_indexed(sql, key.workspace_id)


async def test_around_a_hit_in_a_branch_stands_what_the_branch_has_and_nothing_that_its_parent_said_later(
    room: Memory, key: ThreadKey
) -> None:
    await room.append(key, "cherry one", "cherry two", "the parent's alone")
    fork = ForkConversationRequest(workspace_id=key.workspace_id, thread_id=key.thread_id, at_seq=2, user_id="ada")
    branch = (await room.branches.ForkConversation(fork, timeout=CALL_S)).conversation.thread_id
    await room.append(ThreadKey(key.workspace_id, branch), "the branch's")
    parent = DeleteConversationRequest(workspace_id=key.workspace_id, thread_id=key.thread_id)
    for parent_is_deleted in (False, True):  # then nothing else of it may be shown
        if parent_is_deleted:
            await room.conversations.DeleteConversation(parent, timeout=CALL_S)
        hits = await search(room, key.workspace_id, "two", thread_id=branch, user_id="ada", around=2)
        assert [(hit.thread_id, hit.user_id, hit.message.seq) for hit in hits] == [(key.thread_id, "", 2)]
        assert [message.content for message in hits[0].before] == ["cherry one"]
        assert [message.content for message in hits[0].after] == ["the branch's"]


@pytest.mark.parametrize("query", ["", " ", "!!!", "\n", "--", '""'])
async def test_a_search_without_words_is_refused(room: Memory, workspace_id: str, query: str) -> None:
    async with refused(grpc.StatusCode.INVALID_ARGUMENT, "REASON_INVALID_FIELD"):
        await search(room, workspace_id, query)


async def test_a_search_that_takes_too_long_is_refused_and_so_is_one_too_many(
    new_worker: Worker, key: ThreadKey, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(STATEMENTS, "search_within", "SET LOCAL statement_timeout = '50ms'")
    monkeypatch.setitem(STATEMENTS, "search_has_words", "SELECT $1::text IS NOT NULL")
    monkeypatch.setitem(
        STATEMENTS,
        "search_workspace",
        STATEMENTS["search_workspace"].replace("SELECT f.thread_id", "SELECT pg_sleep(9), f.thread_id", 1),
    )
    async with new_worker() as worker:
        await worker.append(key, "crab apple")
        async with refused(grpc.StatusCode.RESOURCE_EXHAUSTED, "REASON_SEARCH_TOO_BROAD"):
            await search(worker, key.workspace_id, "crab")
        many = await asyncio.gather(*(search(worker, key.workspace_id, "crab") for _ in range(40)), return_exceptions=True)
        told = [
            dict(error.trailing_metadata() or ())["twofold-reason"]
            for error in many
            if isinstance(error, grpc.aio.AioRpcError)
        ]
        assert set(told) == {"REASON_SEARCH_TOO_BROAD", "REASON_OVERLOADED"}


async def test_indexing_goes_on_after_a_worker_died_in_the_middle(
    room: Memory, key: ThreadKey, sql: "Sql[Any]", memory_database: DatabaseSettings
) -> None:
    """What it had taken is not lost: it was in a transaction that never ended."""
    await is_indexed(sql, key.workspace_id)
    async with sql.acquire() as dying:
        transaction = dying.transaction()
        await transaction.start()
        await room.append(key, "rowan")
        await dying.fetchval(STATEMENTS["index_pending"], 100_000)
        assert await found(room, key.workspace_id, "rowan") == [(key.thread_id, 1)]
        await transaction.rollback()
    await is_indexed(sql, key.workspace_id)
    assert await found(room, key.workspace_id, "rowan") == [(key.thread_id, 1)]


STEPS = st.lists(
    st.tuples(st.sampled_from(["append", "append", "edit", "redact", "delete", "index", "search"]), st.integers(0, 10**6)),
    max_size=25,
)
WORDS = ["fig", "date", "lime"]


@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
@given(steps=STEPS)
async def test_search_finds_what_the_model_finds(
    room: Memory, other_room: Memory, memory_database: DatabaseSettings, sql: "Sql[Any]", steps: list[tuple[str, int]]
) -> None:
    key = thread("search-machine")
    said: list[str | None] = []
    pool = await postgres.open_pool(memory_database, name="test")
    try:
        indexing = Indexing(PostgresSearch(pool, pool))
        for name, number in [("append", 0), *steps, ("search", 0), ("index", 0), ("search", 0)]:
            alive = [seq for seq, text in enumerate(said, 1) if text is not None]
            if name == "append":
                words = WORDS[: 1 + number % 3]
                await (room, other_room)[number % 2].append(key, " ".join(words))
                said.append(" ".join(words))
            elif name == "index":
                await indexing.sweep(1)
            elif name == "search":
                for word in (*WORDS, "quince"):
                    expected = [(key.thread_id, seq) for seq in reversed(alive) if word in (said[seq - 1] or "")]
                    assert await found(room, key.workspace_id, word, thread_id=key.thread_id) == expected
            elif alive:
                seq = alive[number % len(alive)]
                await change(room, key, seq, name)
                said[seq - 1] = "quince" if name == "edit" else None
    finally:
        await postgres.close_pool(pool)
