"""Appending turns from many sides at once: M1 to M4, and what a repeat is."""

import asyncio

import grpc
import pytest

from tests.memory.conftest import Worker
from tests.memory.rooms import CALL_S, Memory, refused, said, seqs, texts, thread
from twofold.memory.v1.context_pb2 import InvokedRequest
from twofold.memory.v1.conversation_pb2 import AppendTurnRequest, GetTurnRequest, TurnUsage
from twofold_memory.threads import ThreadKey


async def test_m1_m3_concurrent_appends_over_two_workers_number_the_thread_without_gaps_and_keep_turns_together(
    room: Memory, other_room: Memory, key: ThreadKey
) -> None:
    """M1, M3."""
    sizes = [1 + index % 3 for index in range(64)]
    answers = await asyncio.gather(
        *(
            (room, other_room)[index % 2].append(key, *(f"{index}/{part}" for part in range(size)), turn_id=f"t{index}")
            for index, size in enumerate(sizes)
        )
    )
    stored = await room.all_messages(key)
    assert seqs(stored) == list(range(1, sum(sizes) + 1))
    for index, (answer, size) in enumerate(zip(answers, sizes, strict=True)):
        assert answer.last_seq - answer.first_seq + 1 == size
        turn = stored[answer.first_seq - 1 : answer.last_seq]
        assert texts(turn) == [f"{index}/{part}" for part in range(size)]
        assert [(message.turn_id, message.turn_index) for message in turn] == [(f"t{index}", part) for part in range(size)]


async def test_m2_a_turn_acknowledged_before_another_is_sent_has_the_smaller_numbers(
    room: Memory, other_room: Memory, key: ThreadKey
) -> None:
    """M2: whichever worker takes it."""
    last = 0
    for index in range(20):
        answer = await (room, other_room)[index % 2].append(key, f"{index}")
        assert answer.first_seq == last + 1
        last = answer.last_seq


async def test_m4_retries_at_once_on_both_workers_leave_one_turn_and_get_its_numbers(
    room: Memory, other_room: Memory, key: ThreadKey
) -> None:
    """M4: also while the first attempt is still under way."""
    for turn in range(5):
        calls = [(room, other_room)[index % 2].append(key, "q", "a", turn_id=f"t{turn}") for index in range(16)]
        answers = await asyncio.gather(*calls)
        assert {(answer.first_seq, answer.last_seq, answer.thread_token) for answer in answers} == {
            (2 * turn + 1, 2 * turn + 2, answers[0].thread_token)
        }
        assert sum(not answer.duplicate for answer in answers) == 1
        assert len({answer.create_time.ToNanoseconds() for answer in answers}) == 1
    assert seqs(await room.all_messages(key)) == list(range(1, 11))


async def test_the_same_request_id_with_another_payload_is_refused_and_changes_nothing(
    room: Memory, other_room: Memory, key: ThreadKey
) -> None:
    """M4."""
    await room.append(key, "q", "a", turn_id="t")
    before = await room.all_messages(key)
    for worker in (room, other_room):
        for changed in (["q", "b"], ["q"], ["q", "a", "more"], ["qa"]):
            async with refused(grpc.StatusCode.ALREADY_EXISTS, "REASON_REQUEST_REUSED"):
                await worker.append(key, *changed, turn_id="t")
    request = AppendTurnRequest(
        workspace_id=key.workspace_id, thread_id=key.thread_id, request_id="t", messages=said("q", "a"), usage=TurnUsage()
    )
    async with refused(grpc.StatusCode.ALREADY_EXISTS, "REASON_REQUEST_REUSED"):
        await room.conversations.AppendTurn(request, timeout=CALL_S)
    assert await room.all_messages(key) == before


async def test_of_two_payloads_under_one_request_id_at_once_one_is_stored(
    room: Memory, other_room: Memory, key: ThreadKey
) -> None:
    """M4."""
    calls = [(room, other_room)[index % 2].append(key, f"{index // 2 % 2}", turn_id="t") for index in range(12)]
    answers = await asyncio.gather(*calls, return_exceptions=True)
    (stored,) = await room.all_messages(key)
    for index, answer in enumerate(answers):
        assert isinstance(answer, grpc.aio.AioRpcError) == (f"{index // 2 % 2}" != stored.content)


async def test_the_same_request_id_in_two_threads_is_two_turns(room: Memory, workspace_id: str) -> None:
    one, two = thread(workspace_id), thread(workspace_id)
    first, second = await asyncio.gather(room.append(one, "1", turn_id="t"), room.append(two, "2", turn_id="t"))
    assert not first.duplicate
    assert not second.duplicate


async def test_ids_that_would_meet_if_they_were_joined_carelessly_are_two_threads(room: Memory, workspace_id: str) -> None:
    pairs = [(f"{workspace_id}:a", "b"), (workspace_id, "a:b"), (f"{workspace_id}/a", "b"), (workspace_id, "a/b")]
    await asyncio.gather(*(room.append(ThreadKey(*pair), repr(pair)) for pair in pairs))
    for pair in pairs:
        assert texts((await room.read(ThreadKey(*pair))).messages) == [repr(pair)]


async def test_invoked_keeps_the_exchange_as_an_append_does_and_either_is_a_repeat_of_the_other(
    room: Memory, key: ThreadKey
) -> None:
    messages = said("q", "a")
    invoked = await room.contexts.Invoked(
        InvokedRequest(
            workspace_id=key.workspace_id,
            thread_id=key.thread_id,
            request_id="t",
            request_messages=messages[:1],
            response_messages=messages[1:],
        ),
        timeout=CALL_S,
    )
    appended = await room.append(key, "q", "a", turn_id="t")
    assert appended.duplicate
    assert (appended.first_seq, appended.last_seq) == (invoked.first_seq, invoked.last_seq) == (1, 2)


async def test_a_turn_can_be_asked_for_by_its_request_id(room: Memory, key: ThreadKey) -> None:
    await room.append(key, "before")
    request = AppendTurnRequest(
        workspace_id=key.workspace_id,
        thread_id=key.thread_id,
        request_id="t",
        messages=said("q", "a"),
        usage=TurnUsage(input_tokens=7, output_tokens=0),
    )
    await room.conversations.AppendTurn(request, timeout=CALL_S)
    asked = GetTurnRequest(workspace_id=key.workspace_id, thread_id=key.thread_id, turn_id="t")
    turn = await room.conversations.GetTurn(asked, timeout=CALL_S)
    assert (texts(turn.messages), seqs(turn.messages), turn.usage.input_tokens) == (["q", "a"], [2, 3], 7)
    asked.turn_id = "other"
    async with refused(grpc.StatusCode.NOT_FOUND, "REASON_TURN_UNKNOWN"):
        await room.conversations.GetTurn(asked, timeout=CALL_S)
    asked.thread_id = "other"
    async with refused(grpc.StatusCode.NOT_FOUND, "REASON_CONVERSATION_UNKNOWN"):
        await room.conversations.GetTurn(asked, timeout=CALL_S)


@pytest.mark.parametrize("lanes", [1, 3])
async def test_several_commits_at_a_time_number_a_thread_without_gaps_too(
    new_worker: Worker, workspace_id: str, lanes: int
) -> None:
    async with new_worker(commit_lanes=lanes) as worker:
        key = thread(workspace_id)
        await asyncio.gather(*(worker.append(key, f"{index}") for index in range(40)))
        assert seqs(await worker.all_messages(key)) == list(range(1, 41))
