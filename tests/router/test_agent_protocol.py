"""The chat completions protocol: what is sent, and what is taken for an answer."""

import contextlib
import itertools
import json
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.router.scripted import delta, finish, usage
from twofold_memory.wire import messages as memory_wire
from twofold_memory.wire import turns as memory_turns
from twofold_router import wire_memory
from twofold_router.agent_protocol import EventStream, Hearing, request_body
from twofold_router.agents import AgentFailed, Answer, Limits, Message, Prompt, ToolCall, Usage
from twofold_router.conversations import Debt, Exchange, Hold, TurnKey

STREAM = b': hello\r\ndata: {"a":\r\ndata: 1}\r\n\r\nevent: x\ndata:two\n\nid: 3\rdata: three\r\rdata: last'


def hearing(*events: object, answer_bytes_max: int = 1000) -> Hearing:
    heard = Hearing(answer_bytes_max=answer_bytes_max)
    for event in events:
        heard.event(event if isinstance(event, bytes) else json.dumps(event).encode())
    return heard


def test_a_request_says_everything_that_was_said() -> None:
    call = ToolCall("c1", "function", "weather", '{"city": "Zürich"}')
    messages = (
        Message("system", "Be kind."),
        Message("assistant", None, tool_calls=(call,)),
        Message("tool", "sunny", tool_call_id="c1", name="weather"),
        Message("assistant", ""),
        Message("user", "Hi"),
    )
    prompt = Prompt("agent", "http://a", "model-1", "ada", messages, Limits(1, 1))
    assert json.loads(request_body(prompt)) == {
        "model": "model-1",
        "stream": True,
        "stream_options": {"include_usage": True},
        "user": "ada",
        "messages": [
            {"role": "system", "content": "Be kind."},
            {
                "role": "assistant",
                "content": None,
                "tool_calls": [
                    {
                        "id": "c1",
                        "type": "function",
                        "function": {"name": "weather", "arguments": '{"city": "Zürich"}'},
                    }
                ],
            },
            {"role": "tool", "content": "sunny", "tool_call_id": "c1", "name": "weather"},
            {"role": "assistant", "content": ""},
            {"role": "user", "content": "Hi"},
        ],
    }


@given(cuts=st.lists(st.integers(0, len(STREAM)), max_size=8))
def test_a_stream_is_the_same_however_it_is_cut(cuts: list[int]) -> None:
    stream = EventStream(event_bytes_max=100)
    bounds = [0, *sorted(cuts), len(STREAM)]
    events = [event for a, b in itertools.pairwise(bounds) for event in stream.feed(STREAM[a:b])]
    assert [*events, *stream.end()] == [b'{"a":\n1}', b"two", b"three", b"last"]


def test_an_event_without_end_is_too_large_at_some_point() -> None:
    for chunk in (b"data: xxxx\n", b"x", b": comment without an end", b"data:\n"):
        stream = EventStream(event_bytes_max=100)
        for _ in range(100 // len(chunk)):
            stream.feed(chunk)
        with pytest.raises(AgentFailed, match="too large"):
            stream.feed(chunk * 100)


def test_pieces_make_an_answer() -> None:
    answer = hearing(delta("Hel"), delta("lo"), finish("length"), usage(5, 2), b"[DONE]").answer()
    assert answer == Answer("Hello", (), "length", Usage(5, 2))


def test_an_agent_that_says_nothing_has_said_the_empty_text() -> None:
    assert hearing(delta(role="assistant"), b"[DONE]").answer() == Answer("", (), "stop", None)


def test_tool_calls_are_collected_with_their_arguments_as_text() -> None:
    answer = hearing(
        delta(tool_calls=[{"index": 0, "id": "c1", "type": "function", "function": {"name": "a", "arguments": '{"x"'}}]),
        delta(tool_calls=[{"index": 1, "id": "c2", "function": {"name": "b", "arguments": ""}}]),
        delta(tool_calls=[{"index": 0, "function": {"arguments": ": 1}"}}]),
        finish("tool_calls"),
    ).answer()
    assert answer.text is None
    assert answer.tool_calls == (ToolCall("c1", "function", "a", '{"x": 1}'), ToolCall("c2", "function", "b", ""))


def test_an_answer_in_one_piece_is_an_answer() -> None:
    message = {"role": "assistant", "content": "Hi", "tool_calls": None}
    body = {"choices": [{"index": 0, "message": message, "finish_reason": "stop"}], "usage": {"prompt_tokens": 1}}
    heard = Hearing(answer_bytes_max=100)
    assert heard.whole(json.dumps(body).encode()) == "Hi"
    assert heard.answer() == Answer("Hi", (), "stop", None)


def test_other_choices_than_the_first_are_not_heard() -> None:
    other = {"choices": [{"index": 1, "delta": {"content": "no"}}]}
    assert hearing(other, delta("yes"), finish()).answer().text == "yes"


@pytest.mark.parametrize(
    "reported",
    [None, {}, {"prompt_tokens": -1, "completion_tokens": 1}, {"prompt_tokens": True, "completion_tokens": 10**13}, 7],
)
def test_usage_that_is_none_is_not_taken(reported: object) -> None:
    assert hearing(delta("x"), {"choices": [], "usage": reported}, b"[DONE]").answer().usage is None


def test_an_agent_that_did_not_say_that_it_is_done_has_hung_up() -> None:
    with pytest.raises(AgentFailed, match="hung up"):
        hearing(delta("Hel")).answer()


@pytest.mark.parametrize(
    "event",
    [
        b"{",
        b"\xff",
        b"[" * 100_000,
        b"1" * 5000,
        b"[]",
        b'"text"',
        {"choices": 1},
        {"choices": [1]},
        {"choices": [{"delta": "text"}]},
        delta(content=7),
        delta("\0"),
        b'{"choices": [{"delta": {"content": "\\ud800"}}]}',
        delta(tool_calls={"a": 1}),
        delta(tool_calls=["x"]),
        delta(tool_calls=[{"index": -1}]),
        delta(tool_calls=[{"index": 128}]),
        delta(tool_calls=[{"index": "1"}]),
        finish(""),
        finish("a\nb"),
        finish("x" * 65),
        {"error": {"message": "secret"}},
    ],
)
def test_what_is_not_the_protocol_is_not_an_answer(event: object) -> None:
    with pytest.raises(AgentFailed) as refusal:
        hearing(event)
    assert "secret" not in refusal.value.message


@pytest.mark.parametrize("call", [{"function": {"name": "a"}}, {"id": "c"}, {"id": "c\n", "function": {"name": "a"}}])
def test_a_tool_call_without_id_or_name_is_not_one(call: object) -> None:
    with pytest.raises(AgentFailed, match="tool call"):
        hearing(delta(tool_calls=[call]), finish("tool_calls")).answer()


def test_text_and_tool_calls_share_one_bound() -> None:
    hearing(delta("x" * 10), answer_bytes_max=10)
    calls = [{"index": 0, "function": {"arguments": "xx"}}]
    for events in ([delta("x" * 11)], [delta("é" * 6)], [delta("x" * 9), delta(tool_calls=calls)]):
        with pytest.raises(AgentFailed, match="too large"):
            hearing(*events, answer_bytes_max=10)


def kept(answer: Answer) -> None:
    """Memory's own reading of the exchange that holds this answer; it refuses what breaks its rules."""
    key = TurnKey("w" * 255, "t" * 255, "o" * 250)
    words = (Message("user", "x" * 2**20),)
    exchange = Exchange(key, "u" * 255, "a" * 255, words, answer, Usage(10**12, 10**12))
    memory_wire.exchange(wire_memory.invoked_request(exchange))
    at = datetime(2026, 1, 1, tzinfo=UTC)
    debt = Debt("o" * 250 + "/0", "u" * 255, "a" * 255, at, Usage(10**12, 10**12))
    memory_turns.commit(wire_memory.commit_request(Hold(key, 1), answer, debt))
    memory_turns.abort(wire_memory.abort_request(Hold(key, 1), answer.text or "", "agent_failed", "a" * 255, debt))
    memory_turns.heartbeat(wire_memory.heartbeat_request(Hold(key, 1), "a" * 255, answer.text or "", 15.0))


ids = st.text(st.characters(exclude_categories=["Cs"]), max_size=300)


@given(
    text=st.none() | ids,
    calls=st.lists(st.tuples(st.integers(0, 130), ids, ids, ids, ids), max_size=4),
    reason=st.none() | ids,
)
def test_what_is_taken_for_an_answer_can_be_kept(
    text: str | None, calls: list[tuple[int, str, str, str, str]], reason: str | None
) -> None:
    said = [
        {"index": index, "id": id_, "type": kind, "function": {"name": name, "arguments": arguments}}
        for index, id_, kind, name, arguments in calls
    ]
    event = {"choices": [{"index": 0, "delta": {"content": text, "tool_calls": said}, "finish_reason": reason}]}
    with contextlib.suppress(AgentFailed):
        kept(hearing(event, b"[DONE]", answer_bytes_max=2**20).answer())


@pytest.mark.parametrize("count", [1, 2, 128])
@pytest.mark.parametrize("word", ["x", "x" * 255], ids=["short", "long"])
def test_the_largest_tool_calls_that_are_taken_can_be_kept(count: int, word: str) -> None:
    calls = [{"index": index, "id": word, "type": word, "function": {"name": word}} for index in range(count)]

    def answer(size: int) -> Answer:
        more = delta(tool_calls=[{"index": 0, "function": {"arguments": "x" * size}}])
        return hearing(delta(tool_calls=calls), more, finish("é" * 64), answer_bytes_max=2**20).answer()

    taken, refused = 0, 2**20
    while refused - taken > 1:
        middle = (taken + refused) // 2
        try:
            answer(middle)
        except AgentFailed:
            refused = middle
        else:
            taken = middle
    assert taken > 2**20 - 2048 - count * (3 * len(word) + 64)
    kept(answer(taken))


def test_a_name_may_hold_all_that_memory_keeps() -> None:
    call = {"index": 0, "id": "c\u00a01", "function": {"name": "wetter\u2028"}}
    answer = hearing(delta(tool_calls=[call]), finish("tool_calls")).answer()
    assert answer.tool_calls == (ToolCall("c\u00a01", "function", "wetter\u2028", ""),)
    kept(answer)


def test_a_broken_name_is_noticed_when_it_comes() -> None:
    for call in ({"id": "x" * 256}, {"type": "a\x7f"}, {"function": {"name": "a\n"}}):
        with pytest.raises(AgentFailed, match="tool call"):
            hearing(delta(tool_calls=[call]))
