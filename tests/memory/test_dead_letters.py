"""Dead letters on real servers: listed, shown, replayed once and only once, discarded, and nothing changed by a refusal."""

import asyncio
import hashlib
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import asyncpg
import grpc
import pytest

from tests.memory.rooms import CALL_S, OPTIONS, Memory, reason, refused, said, seqs, texts, thread
from tests.waiting import until
from twofold.memory.v1 import sync_pb2 as pb
from twofold.memory.v1.conversation_pb2 import (
    AppendTurnRequest,
    Conversation,
    CreateConversationRequest,
    DeleteConversationRequest,
    GetTurnRequest,
    UndeleteConversationRequest,
)
from twofold.memory.v1.event_pb2 import ListEventsRequest
from twofold.memory.v1.message_pb2 import Durability, ReadSource
from twofold.memory.v1.sync_pb2_grpc import SyncServiceStub
from twofold_chassis import postgres
from twofold_chassis.settings import DatabaseSettings
from twofold_memory.draining import Waiter
from twofold_memory.journaled import Journaled, payload
from twofold_memory.store.journal import PostgresJournal
from twofold_memory.threads import NewMessage, NewTurn, ThreadKey, Usage

Sql = asyncpg.Pool
REPLAYED, DISCARDED = pb.DEAD_LETTER_RESOLUTION_REPLAYED, pb.DEAD_LETTER_RESOLUTION_DISCARDED
USER, ASSISTANT = 2, 3


def turn(key: ThreadKey, *words: str, turn_id: str = "late", user_id: str | None = None) -> NewTurn:
    """A turn as it lies in the journal."""
    messages = [NewMessage((USER, ASSISTANT)[index % 2], text, b"", None) for index, text in enumerate(words)]
    digest = hashlib.sha256("\0".join(words).encode()).digest()
    return NewTurn(key, user_id, turn_id, digest, messages, sum(map(len, words)), Usage(3, 4))


async def plant(
    sql: "Sql[Any]", dead: NewTurn, why: str = "INVALID", *, age: str = "0", written: bytes | None = None
) -> None:
    """A dead letter that nobody has dealt with."""
    await sql.execute(
        "INSERT INTO memory.conversations (workspace_id, thread_id) VALUES ($1, $2) ON CONFLICT DO NOTHING", *dead.key
    )
    await sql.execute(
        "INSERT INTO memory.dead_letters (workspace_id, thread_id, turn_id, payload_hash, reason, payload, created_at)"
        " VALUES ($1, $2, $3, $4, $5, $6, now() - $7::text::interval)",
        *dead.key,
        dead.turn_id,
        dead.payload_hash,
        why,
        payload(dead) if written is None else written,
        age,
    )


def replaying(dead: NewTurn, **fields: Any) -> pb.ReplayDeadLetterRequest:
    ids = {"workspace_id": dead.key.workspace_id, "thread_id": dead.key.thread_id, "turn_id": dead.turn_id}
    return pb.ReplayDeadLetterRequest(**(ids | fields))


def discarding(dead: NewTurn, **fields: Any) -> pb.DiscardDeadLetterRequest:
    ids = {"workspace_id": dead.key.workspace_id, "thread_id": dead.key.thread_id, "turn_id": dead.turn_id}
    return pb.DiscardDeadLetterRequest(**(ids | {"reason": "a test"} | fields))


async def shown(memory: Memory, dead: NewTurn, **fields: Any) -> pb.GetDeadLetterResponse:
    ids = {"workspace_id": dead.key.workspace_id, "thread_id": dead.key.thread_id, "turn_id": dead.turn_id}
    return await memory.sync.GetDeadLetter(pb.GetDeadLetterRequest(**(ids | fields)), timeout=CALL_S)


async def listed(memory: Memory, workspace_id: str, **fields: Any) -> list[pb.DeadLetter]:
    """All pages."""
    request = pb.ListDeadLettersRequest(workspace_id=workspace_id, **fields)
    found: list[pb.DeadLetter] = []
    while True:
        page = await memory.sync.ListDeadLetters(request, timeout=CALL_S)
        found += page.dead_letters
        if not page.next_page_token:
            return found
        request.page_token = page.next_page_token


async def delete(memory: Memory, key: ThreadKey) -> None:
    await memory.conversations.DeleteConversation(
        DeleteConversationRequest(workspace_id=key.workspace_id, thread_id=key.thread_id), timeout=CALL_S
    )


async def undelete(memory: Memory, key: ThreadKey) -> None:
    await memory.conversations.UndeleteConversation(
        UndeleteConversationRequest(workspace_id=key.workspace_id, thread_id=key.thread_id), timeout=CALL_S
    )


async def journal(memory: Memory, key: ThreadKey, *words: str, turn_id: str, user_id: str = "") -> None:
    """Accepts a turn into the journal without asking Postgres."""
    answer = await memory.conversations.AppendTurn(
        AppendTurnRequest(
            workspace_id=key.workspace_id,
            thread_id=key.thread_id,
            user_id=user_id,
            request_id=turn_id,
            messages=said(*words),
            durability=Durability.DURABILITY_JOURNALED,
        ),
        timeout=CALL_S,
    )
    assert answer.durability == Durability.DURABILITY_JOURNALED


async def test_turns_that_the_conversation_does_not_take_are_listed_with_why_and_shown_with_what_was_said(
    room: Memory, workspace_id: str
) -> None:
    """DELETED and FOREIGN, on the way that they really come."""
    deleted, foreign = thread(workspace_id), thread(workspace_id)
    await room.append(deleted, "q0")
    await room.append(foreign, "q0", user_id="ada")
    await delete(room, deleted)
    await journal(room, deleted, "q1", "a1", turn_id="late")
    await journal(room, foreign, "mine", turn_id="late", user_id="bob")

    async def both() -> bool:
        return len(await listed(room, workspace_id)) == 2

    await until(both)
    why = {letter.thread_id: letter.reason for letter in await listed(room, workspace_id)}
    assert why[deleted.thread_id] == pb.DEAD_LETTER_REASON_CONVERSATION_DELETED
    assert why[foreign.thread_id] == pb.DEAD_LETTER_REASON_FOREIGN
    found = await shown(room, turn(deleted))
    assert texts(found.messages) == ["q1", "a1"]
    assert [(m.seq, m.turn_id, m.turn_index) for m in found.messages] == [(0, "late", 0), (0, "late", 1)]
    assert (found.unreadable, found.user_id, found.HasField("usage")) == (False, "", False)
    assert len(bytes.fromhex(found.dead_letter.payload_hash)) == 32
    assert not found.dead_letter.HasField("resolve_time")
    assert (await shown(room, turn(foreign))).user_id == "bob"


async def test_they_are_listed_by_age_in_stable_pages_those_that_are_dealt_with_on_demand(
    room: Memory, sql: "Sql[Any]", workspace_id: str
) -> None:
    key = thread(workspace_id)
    for index in range(7):
        await plant(sql, turn(key, "q", turn_id=f"t{index}"), age=f"{100 - index // 2} days")
    every = [letter.turn_id for letter in await listed(room, workspace_id, page_size=2)]
    assert every == [f"t{index}" for index in range(7)]
    await room.sync.DiscardDeadLetter(discarding(turn(key, "q", turn_id="t3")), timeout=CALL_S)
    assert [letter.turn_id for letter in await listed(room, workspace_id, page_size=3)] == [
        "t0",
        "t1",
        "t2",
        "t4",
        "t5",
        "t6",
    ]
    assert [letter.turn_id for letter in await listed(room, workspace_id, page_size=3, with_resolved=True)] == every
    assert {letter.workspace_id for letter in await listed(room, "", page_size=500)} >= {workspace_id}
    assert await listed(room, f"{workspace_id}-other") == []


@pytest.mark.parametrize("why", ["KEY_CONFLICT", "INVALID", "DELETED", "FOREIGN"])
async def test_a_dead_letter_of_any_reason_is_replayed_at_the_end_of_its_conversation(
    room: Memory, sql: "Sql[Any]", workspace_id: str, why: str
) -> None:
    key = thread(workspace_id)
    await room.append(key, "q0", "a0", turn_id="late")  # its own id is taken
    dead = turn(key, "q1", "a1")
    await plant(sql, dead, why)
    answer = await room.sync.ReplayDeadLetter(
        replaying(dead, new_turn_id="again", reason="it is wanted"), timeout=CALL_S, metadata=[("twofold-actor", "olga")]
    )
    assert (answer.new_turn_id, answer.first_seq, answer.last_seq) == ("again", 3, 4)
    assert (answer.duplicate, answer.order_unverified) == (False, False)
    window = await room.read(key, token=answer.thread_token)
    assert (texts(window.messages), seqs(window.messages)) == (["q0", "a0", "q1", "a1"], [1, 2, 3, 4])
    assert window.source == ReadSource.READ_SOURCE_L1, "the window was extended"
    stored = await room.conversations.GetTurn(
        GetTurnRequest(workspace_id=workspace_id, thread_id=key.thread_id, turn_id="again"), timeout=CALL_S
    )
    assert (texts(stored.messages), stored.usage.input_tokens) == (["q1", "a1"], 3)
    letter = (await shown(room, dead)).dead_letter
    assert (letter.resolution, letter.resolved_by, letter.resolved_because) == (REPLAYED, "olga", "it is wanted")
    assert letter.HasField("resolve_time")
    assert await listed(room, workspace_id) == []
    events = await room.events.ListEvents(
        ListEventsRequest(workspace_id=workspace_id, thread_id=key.thread_id), timeout=CALL_S
    )
    assert "dead_letter.replayed" in [event.kind for event in events.events]


async def test_of_many_replays_at_once_at_two_workers_exactly_one_stores_the_turn(
    room: Memory, other_room: Memory, sql: "Sql[Any]", workspace_id: str
) -> None:
    dead = turn(thread(workspace_id), "q", "a")
    await plant(sql, dead)
    calls = [worker.sync.ReplayDeadLetter(replaying(dead), timeout=CALL_S) for worker in (room, other_room) * 6]
    answers = await asyncio.gather(*calls, return_exceptions=True)
    assert [answer for answer in answers if isinstance(answer, pb.ReplayDeadLetterResponse)] != []
    refusals = [reason(error) for error in answers if isinstance(error, grpc.aio.AioRpcError)]
    assert len(refusals) == len(answers) - 1
    assert set(refusals) <= {"REASON_DEAD_LETTER_RESOLVED", "REASON_BUSY"}
    assert texts(await room.all_messages(dead.key)) == ["q", "a"]


async def test_a_repeat_with_its_request_id_gets_the_first_answer_and_stores_nothing(
    room: Memory, sql: "Sql[Any]", workspace_id: str
) -> None:
    dead = turn(thread(workspace_id), "q")
    await plant(sql, dead)
    calls = [room.sync.ReplayDeadLetter(replaying(dead, request_id="r"), timeout=CALL_S) for _ in range(4)]
    answers: Sequence[pb.ReplayDeadLetterResponse] = await asyncio.gather(*calls)
    assert all(answer == answers[0] for answer in answers)
    assert texts(await room.all_messages(dead.key)) == ["q"]
    async with refused(grpc.StatusCode.ALREADY_EXISTS, "REASON_REQUEST_REUSED"):
        await room.sync.ReplayDeadLetter(replaying(dead, request_id="r", reason="another"), timeout=CALL_S)
    async with refused(grpc.StatusCode.FAILED_PRECONDITION, "REASON_DEAD_LETTER_RESOLVED"):
        await room.sync.ReplayDeadLetter(replaying(dead), timeout=CALL_S)


async def test_a_replay_goes_behind_what_waits_in_the_journal(room: Memory, sql: "Sql[Any]", workspace_id: str) -> None:
    """M2: it is a new append, and those were accepted before it."""
    key = thread(workspace_id)
    dead = turn(key, "replayed")
    await plant(sql, dead)
    await journal(room, key, "waits", turn_id="waits")
    answer = await room.sync.ReplayDeadLetter(replaying(dead), timeout=CALL_S)
    assert (answer.first_seq, answer.order_unverified) == (2, False)
    assert texts(await room.all_messages(key)) == ["waits", "replayed"]


async def test_a_replay_that_is_refused_changes_nothing_and_can_be_tried_again(
    room: Memory, sql: "Sql[Any]", workspace_id: str
) -> None:
    key, foreign = thread(workspace_id), thread(workspace_id)
    await room.append(key, "q0", turn_id="first")
    await room.append(foreign, "q0", user_id="ada")
    dead, others = turn(key, "q1"), turn(foreign, "q1", user_id="bob")
    await plant(sql, dead)
    await plant(sql, others, "FOREIGN")
    await delete(room, key)
    async with refused(grpc.StatusCode.FAILED_PRECONDITION, "REASON_CONVERSATION_DELETED"):
        await room.sync.ReplayDeadLetter(replaying(dead, request_id="r"), timeout=CALL_S)
    async with refused(grpc.StatusCode.NOT_FOUND, "REASON_CONVERSATION_UNKNOWN"):
        await room.sync.ReplayDeadLetter(replaying(others), timeout=CALL_S)
    await undelete(room, key)
    async with refused(grpc.StatusCode.ALREADY_EXISTS, "REASON_REQUEST_REUSED"):
        await room.sync.ReplayDeadLetter(replaying(dead, new_turn_id="first"), timeout=CALL_S)
    async with refused(grpc.StatusCode.NOT_FOUND, "REASON_DEAD_LETTER_UNKNOWN"):
        await room.sync.ReplayDeadLetter(replaying(dead, payload_hash="00"), timeout=CALL_S)
    assert len(await listed(room, workspace_id)) == 2
    assert texts(await room.all_messages(key)) == ["q0"]
    assert (await room.sync.ReplayDeadLetter(replaying(dead, request_id="r"), timeout=CALL_S)).first_seq == 2


async def test_what_cannot_be_stored_or_read_is_shown_as_that_and_only_discarded(
    room: Memory, sql: "Sql[Any]", workspace_id: str
) -> None:
    key = thread(workspace_id)
    poison, garbled = turn(key, "nul \0 byte", turn_id="poison"), turn(key, "x", turn_id="garbled")
    own = turn(key, "x", turn_id="own")
    await plant(sql, poison)
    await plant(sql, garbled, written=b'{"no": "turn"}')
    await plant(sql, own)
    await sql.execute(
        "INSERT INTO memory.turns"
        " (workspace_id, thread_id, turn_id, payload_hash, first_seq, last_seq, epoch, created_at, dead)"
        " VALUES ($1, $2, 'own', $3, 0, 0, 1, now(), true)",
        *key,
        own.payload_hash,
    )
    assert (await shown(room, garbled)).unreadable
    assert texts((await shown(room, poison)).messages) == ["nul \0 byte"]
    for dead, fields in ((poison, {}), (garbled, {}), (own, {"new_turn_id": "own"})):
        async with refused(grpc.StatusCode.FAILED_PRECONDITION, "REASON_TURN_DEAD"):
            await room.sync.ReplayDeadLetter(replaying(dead, **fields), timeout=CALL_S)
    for dead in (poison, garbled):
        assert (await room.sync.DiscardDeadLetter(discarding(dead), timeout=CALL_S)).dead_letter.resolution == DISCARDED
    assert [letter.turn_id for letter in await listed(room, workspace_id)] == ["own"]
    assert await room.all_messages(key) == []


async def test_a_discarded_one_keeps_what_was_said_and_cannot_be_replayed(
    room: Memory, sql: "Sql[Any]", workspace_id: str
) -> None:
    dead = turn(thread(workspace_id), "q", "a")
    await plant(sql, dead)
    request = discarding(dead, reason="spam", request_id="r")
    answers = [
        await room.sync.DiscardDeadLetter(request, timeout=CALL_S, metadata=[("twofold-actor", "olga")]) for _ in "12"
    ]
    assert answers[0] == answers[1]
    letter = answers[0].dead_letter
    assert (letter.resolution, letter.resolved_by, letter.resolved_because) == (DISCARDED, "olga", "spam")
    assert texts((await shown(room, dead)).messages) == ["q", "a"]
    async with refused(grpc.StatusCode.FAILED_PRECONDITION, "REASON_DEAD_LETTER_RESOLVED"):
        await room.sync.ReplayDeadLetter(replaying(dead), timeout=CALL_S)
    async with refused(grpc.StatusCode.FAILED_PRECONDITION, "REASON_DEAD_LETTER_RESOLVED"):
        await room.sync.DiscardDeadLetter(discarding(dead), timeout=CALL_S)
    assert await room.all_messages(dead.key) == []


async def test_where_several_have_one_turn_id_the_hash_tells_which(room: Memory, sql: "Sql[Any]", workspace_id: str) -> None:
    key = thread(workspace_id)
    one, other = turn(key, "one"), turn(key, "other")
    await plant(sql, one, "KEY_CONFLICT")
    await plant(sql, other, "KEY_CONFLICT")
    for call in (shown(room, one), room.sync.ReplayDeadLetter(replaying(one), timeout=CALL_S)):
        async with refused(grpc.StatusCode.INVALID_ARGUMENT, "REASON_INVALID_FIELD"):
            await call
    answer = await room.sync.ReplayDeadLetter(replaying(other, payload_hash=other.payload_hash.hex()), timeout=CALL_S)
    assert answer.first_seq == 1
    assert texts((await shown(room, one, payload_hash=one.payload_hash.hex())).messages) == ["one"]
    assert [letter.payload_hash for letter in await listed(room, workspace_id)] == [one.payload_hash.hex()]


async def test_the_same_turn_under_the_new_id_already_ends_the_dead_letter_and_is_told(
    room: Memory, sql: "Sql[Any]", workspace_id: str
) -> None:
    """Its caller may have sent it again under another id, without knowing what became of the first."""
    key = thread(workspace_id)
    first = turn(key, "q", turn_id="one")
    await plant(sql, first)
    await plant(sql, turn(key, "q", turn_id="other"))
    await room.sync.ReplayDeadLetter(replaying(first, new_turn_id="again"), timeout=CALL_S)
    answer = await room.sync.ReplayDeadLetter(
        replaying(turn(key, "q", turn_id="other"), new_turn_id="again"), timeout=CALL_S
    )
    assert (answer.duplicate, answer.first_seq) == (True, 1)
    assert texts(await room.all_messages(key)) == ["q"]
    assert await listed(room, workspace_id) == []


async def test_a_replay_that_its_caller_gave_up_is_whole_or_was_never_begun(
    room: Memory, sql: "Sql[Any]", workspace_id: str
) -> None:
    key = thread(workspace_id)
    for index in range(12):
        dead = turn(key, f"q{index}", turn_id=f"t{index}")
        await plant(sql, dead)
        async with grpc.aio.insecure_channel(f"127.0.0.1:{room.port}", options=OPTIONS) as channel:
            call = SyncServiceStub(channel).ReplayDeadLetter(
                replaying(dead, new_turn_id=f"n{index}", request_id=f"r{index}")
            )
            await asyncio.sleep(0.001 * index)
            call.cancel()
    answers = [
        await room.sync.ReplayDeadLetter(
            replaying(turn(key, turn_id=f"t{index}"), new_turn_id=f"n{index}", request_id=f"r{index}"), timeout=CALL_S
        )
        for index in range(12)
    ]
    assert sorted(answer.first_seq for answer in answers) == list(range(1, 13))
    assert sorted(texts(await room.all_messages(key))) == sorted(f"q{index}" for index in range(12))
    assert await listed(room, workspace_id) == []


async def test_a_dead_letter_of_a_conversation_that_is_erased_is_gone(
    room: Memory, sql: "Sql[Any]", workspace_id: str
) -> None:
    dead = turn(thread(workspace_id), "q")
    await room.conversations.CreateConversation(
        CreateConversationRequest(conversation=Conversation(workspace_id=workspace_id, thread_id=dead.key.thread_id)),
        timeout=CALL_S,
    )
    await plant(sql, dead)
    await sql.execute(
        "UPDATE memory.conversations SET erased_at = now() WHERE workspace_id = $1 AND thread_id = $2", *dead.key
    )
    # Between the tombstone and the last row.
    async with refused(grpc.StatusCode.FAILED_PRECONDITION, "REASON_CONVERSATION_ERASED"):
        await room.sync.ReplayDeadLetter(replaying(dead), timeout=CALL_S)
    await sql.execute("DELETE FROM memory.dead_letters WHERE workspace_id = $1", workspace_id)
    async with refused(grpc.StatusCode.NOT_FOUND, "REASON_DEAD_LETTER_UNKNOWN"):
        await room.sync.ReplayDeadLetter(replaying(dead), timeout=CALL_S)


async def test_a_turn_that_cannot_be_stored_brings_no_disorder_into_those_that_wait_with_it(
    room: Memory, memory_database: DatabaseSettings, key: ThreadKey
) -> None:
    """M2, M6: all have waited for so long that what they wait for would be given up, were it not in sight."""

    def waiter(turn_id: str, text: str, *prevs: str) -> Waiter:
        journaled = Journaled(turn(key, text, turn_id=turn_id), frozenset(prevs), "worker", 0)
        return Waiter(journaled, [journaled.prevs], overdue=True)

    waiters = [waiter("third", "3", "second"), waiter("poison", "\0"), waiter("second", "2", "poison")]
    waiters.append(replace(waiter("behind", "4", "lost"), overdue=False))
    pool = await postgres.open_pool(memory_database, name="test")
    drained = await PostgresJournal(pool).drain(key, waiters)
    await postgres.close_pool(pool)
    found = {name.turn_id: (turn.first_seq, turn.order_unverified) for name, turn in drained.stored.items()}
    assert found == {"second": (1, False), "third": (2, False)}
    assert drained.inserted == drained.stored.keys()
    assert {name.turn_id: why for name, why in drained.refused.items()} == {"poison": "INVALID"}
    assert [name.turn_id for name in drained.held] == ["behind"]
