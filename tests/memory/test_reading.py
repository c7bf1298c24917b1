"""Reading from anywhere: within a budget of tokens, from a number on in either direction, one message alone."""

import asyncio

import grpc
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.memory.changing import message
from tests.memory.rooms import CALL_S, Memory, refused, seqs, texts
from twofold.memory.v1.conversation_pb2 import (
    AppendTurnRequest,
    GetConversationRequest,
    GetMessageRequest,
    ListMessagesRequest,
    ReadWindowRequest,
    ReadWindowResponse,
)
from twofold.memory.v1.message_pb2 import Role, ToolCall
from twofold_memory import windows
from twofold_memory.threads import Entry, ThreadKey

NOT_FOUND = grpc.StatusCode.NOT_FOUND


async def within(room: Memory, key: ThreadKey, budget: int, count: int = 0) -> ReadWindowResponse:
    request = ReadWindowRequest(
        workspace_id=key.workspace_id, thread_id=key.thread_id, token_count_max=budget, message_count_max=count
    )
    return await room.conversations.ReadWindow(request, timeout=CALL_S)


async def counted(room: Memory, key: ThreadKey, *counts: int | None, turn_id: str = "") -> None:
    """A turn whose messages have these token counts."""
    request = AppendTurnRequest(workspace_id=key.workspace_id, thread_id=key.thread_id, request_id=turn_id)
    for index, count in enumerate(counts):
        request.messages.add(role=(Role.ROLE_USER, Role.ROLE_ASSISTANT)[index % 2], content="x" * 34, token_count=count)
    await room.conversations.AppendTurn(request, timeout=CALL_S)


async def test_a_window_within_a_budget_holds_the_newest_whole_turns_that_fit(room: Memory, key: ThreadKey) -> None:
    await counted(room, key, 10, 20)
    await counted(room, key, 30, 40)
    await counted(room, key, 5, 5)
    for budget, expected, cost in (
        (110, [1, 2, 3, 4, 5, 6], 110),
        (109, [3, 4, 5, 6], 80),
        (79, [5, 6], 10),
        (10, [5, 6], 10),
    ):
        window = await within(room, key, budget)
        assert (seqs(window.messages), window.token_count) == (expected, cost)
        assert (window.truncated, window.as_of_seq) == (len(expected) < 6, 6)


async def test_of_a_turn_that_does_not_fit_the_end_is_there_and_never_half_a_tool_pair(room: Memory, key: ThreadKey) -> None:
    request = AppendTurnRequest(workspace_id=key.workspace_id, thread_id=key.thread_id)
    request.messages.add(role=Role.ROLE_USER, content="q", token_count=10)
    call = ToolCall(id="c", type="function", name="f")
    request.messages.add(role=Role.ROLE_ASSISTANT, tool_calls=[call], token_count=10)
    request.messages.add(role=Role.ROLE_TOOL, content="r", tool_call_id="c", token_count=10)
    request.messages.add(role=Role.ROLE_ASSISTANT, content="a", token_count=10)
    await room.conversations.AppendTurn(request, timeout=CALL_S)
    for budget, expected in ((40, [1, 2, 3, 4]), (39, [2, 3, 4]), (29, [4]), (19, [4]), (9, [])):
        window = await within(room, key, budget)
        assert (seqs(window.messages), window.token_count) == (expected, 10 * len(expected))
        assert (window.truncated, window.as_of_seq) == (len(expected) < 4, 4)  # M10: what is left out is told


async def test_a_message_without_a_count_costs_a_quarter_of_its_line(room: Memory, key: ThreadKey) -> None:
    await counted(room, key, None)  # "user: " and 34 bytes: 40
    assert seqs((await within(room, key, 10)).messages) == [1]
    assert seqs((await within(room, key, 9)).messages) == []


async def test_without_a_number_a_budget_alone_decides_up_to_what_the_copy_holds(room: Memory, key: ThreadKey) -> None:
    for begin in range(0, 120, 40):
        await counted(room, key, *[1] * 40, turn_id=f"{begin}")
    assert seqs((await within(room, key, 1_000)).messages) == list(range(41, 121))
    assert seqs((await within(room, key, 1_000, count=120)).messages) == list(range(1, 121))
    assert seqs((await within(room, key, 1_000, count=50)).messages) == list(range(81, 121))


TURNS = st.lists(st.lists(st.tuples(st.integers(0, 9), st.booleans()), min_size=1, max_size=4), max_size=6)


@given(turns=TURNS, budget=st.integers(0, 60))
def test_a_cut_to_a_budget_is_the_longest_that_fits_and_begins_where_it_may(
    turns: list[list[tuple[int, bool]]], budget: int
) -> None:
    """M12, against all suffixes tried one by one."""
    spoken = [(cost, index == 0, is_result and index > 0) for turn in turns for index, (cost, is_result) in enumerate(turn)]
    entries = [Entry(seq, starts, is_result, b"") for seq, (_, starts, is_result) in enumerate(spoken, 1)]
    costs = [cost for cost, _, _ in spoken]
    kept = windows.within(entries, costs, budget)
    fitting = [length for length in range(len(entries) + 1) if sum(costs[len(costs) - length :]) <= budget]
    starts = [length for length in fitting if length and entries[len(entries) - length].starts_turn]
    cuts = [length for length in fitting if not length or not entries[len(entries) - length].is_result]
    assert kept == (max(starts) if starts else max(cuts))


async def test_pages_begin_at_any_number_and_go_either_way(room: Memory, key: ThreadKey) -> None:
    await asyncio.gather(*(room.append(key, f"{index}") for index in range(11)))
    request = ListMessagesRequest(workspace_id=key.workspace_id, thread_id=key.thread_id, page_size=2)

    async def page(from_seq: int, newest_first: bool = False, page_token: str = "") -> tuple[list[int], str]:
        request.from_seq, request.newest_first, request.page_token = from_seq, newest_first, page_token
        answer = await room.conversations.ListMessages(request, timeout=CALL_S)
        return seqs(answer.messages), answer.next_page_token

    found, token = await page(4)
    assert found == [4, 5]
    assert (await page(4, page_token=token))[0] == [6, 7]
    found, token = await page(4, newest_first=True)
    assert found == [4, 3]
    assert await page(4, newest_first=True, page_token=token) == ([2, 1], "")
    assert await page(1, newest_first=True) == ([1], "")
    assert await page(11) == ([11], "")
    assert await page(12) == ([], "")
    assert (await page(12, newest_first=True))[0] == [11, 10]
    assert (await page(2**53))[0] == []
    for other in (5, 0):
        with pytest.raises(grpc.aio.AioRpcError, match="another query"):
            await page(other, newest_first=True, page_token=token)


async def test_one_message_is_read_by_its_number(room: Memory, key: ThreadKey) -> None:
    await room.append(key, "q", "a", turn_id="t")
    found = await message(room, key, 2)
    assert (found.content, found.seq, found.turn_id, found.turn_index, found.revision) == ("a", 2, "t", 1, 0)
    async with refused(NOT_FOUND, "REASON_MESSAGE_UNKNOWN"):
        await message(room, key, 3)


async def test_reads_that_name_a_user_show_only_what_is_theirs(room: Memory, key: ThreadKey) -> None:
    await room.append(key, "secret", user_id="ada")
    name = {"workspace_id": key.workspace_id, "thread_id": key.thread_id}
    for user_id in ("ada", "", "bob"):
        calls = [
            room.conversations.GetMessage(GetMessageRequest(seq=1, user_id=user_id, **name), timeout=CALL_S),
            room.conversations.ListMessages(ListMessagesRequest(user_id=user_id, **name), timeout=CALL_S),  # type: ignore[arg-type]
            room.conversations.GetConversation(GetConversationRequest(user_id=user_id, **name), timeout=CALL_S),
        ]
        for call in calls:
            if user_id == "bob":
                async with refused(NOT_FOUND, "REASON_CONVERSATION_UNKNOWN"):
                    await call  # type: ignore[misc]
            else:
                assert await call  # type: ignore[misc]
    assert texts(await room.all_messages(key)) == ["secret"]
