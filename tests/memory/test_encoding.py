"""Stored bytes are messages: what is written by hand, the library reads; and windows cut from them are whole."""

from datetime import UTC, datetime, timedelta

from hypothesis import given
from hypothesis import strategies as st

from twofold.memory.v1.conversation_pb2 import AppendTurnRequest, ReadWindowResponse
from twofold.memory.v1.message_pb2 import Completeness, Message, ReadSource, Role, ToolCall
from twofold_memory import encoding, windows
from twofold_memory.threads import Completeness as Known
from twofold_memory.threads import Entry, ThreadKey, Window
from twofold_memory.threads import Source as From
from twofold_memory.wire import messages as wire

TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=30)
LINE = st.text("abcäß🙂-", max_size=10)
NAME = st.text("abcäß🙂-", min_size=1, max_size=10)
CALL = st.builds(ToolCall, id=NAME, type=st.just("function"), name=NAME, arguments=TEXT)
MOMENT = st.datetimes(datetime(1970, 1, 1), datetime(9000, 1, 1)).map(lambda at: at.replace(tzinfo=UTC))


@st.composite
def new_messages(draw: st.DrawFn) -> Message:
    role = draw(st.sampled_from([Role.ROLE_SYSTEM, Role.ROLE_USER, Role.ROLE_ASSISTANT, Role.ROLE_TOOL]))
    calls = draw(st.lists(CALL, max_size=3)) if role == Role.ROLE_ASSISTANT else []
    return Message(
        role=role,
        content=draw(TEXT if not calls else st.none() | TEXT),
        tool_calls=calls,
        tool_call_id=draw(NAME) if role == Role.ROLE_TOOL else "",
        name=draw(LINE),
        author=draw(LINE),
        token_count=draw(st.none() | st.integers(0, 10**9)),
        metadata=draw(st.dictionaries(NAME, TEXT, max_size=3)),
    )


@given(st.lists(new_messages(), min_size=1, max_size=4), st.integers(1, 2**60), NAME, MOMENT)
def test_m17_any_message_comes_back_from_its_stored_bytes_as_it_was_with_its_number_added(
    given_messages: list[Message], first_seq: int, turn_id: str, at: datetime
) -> None:
    """M17; the presence of content and of token_count is kept."""
    turn = wire.appended_turn(
        AppendTurnRequest(workspace_id="w", thread_id="t", request_id=turn_id, messages=given_messages)
    )
    for index, entry in enumerate(encoding.entries_of(turn.messages, first_seq, turn_id, at)):
        expected = Message()
        expected.CopyFrom(given_messages[index])
        expected.seq, expected.turn_id, expected.turn_index = first_seq + index, turn_id, index
        expected.create_time.FromDatetime(at)
        assert wire.messages_of([entry]) == [expected]
        assert entry == encoding.entry_of(entry.seq, encoding.element(entry))
        assert entry[:3] == (first_seq + index, index == 0, expected.role == Role.ROLE_TOOL)


@given(st.lists(new_messages(), max_size=4), st.sampled_from(list(From)), st.sampled_from(list(Known)), st.booleans())
def test_a_window_put_together_from_stored_bytes_is_what_the_library_would_have_written(
    given_messages: list[Message], source: From, known: Known, truncated: bool
) -> None:
    frames = [ReadWindowResponse(messages=[message]).SerializeToString() for message in given_messages]
    entries = [Entry(index, False, False, frame) for index, frame in enumerate(frames, 1)]
    window = Window(entries, 3, len(entries), source, known, truncated)
    answer = ReadWindowResponse.FromString(wire.EncodedWindow(ThreadKey("w", "t"), window).SerializeToString())
    assert list(answer.messages) == given_messages
    assert (answer.as_of_seq, answer.truncated) == (len(entries), truncated)
    assert ReadSource.Name(answer.source).endswith(source.name)
    assert Completeness.Name(answer.completeness).endswith(known.name)


@given(st.integers(0, 2**63 - 1))
def test_numbers_are_encoded_as_the_library_does(number: int) -> None:
    assert Message(seq=number).SerializeToString() == (b"\x80\x01" + encoding.varint(number) if number else b"")


@given(MOMENT)
def test_times_are_kept_to_the_microsecond(at: datetime) -> None:
    message = Message.FromString(encoding.stamp(at))
    assert message.create_time.ToDatetime(tzinfo=UTC) == at
    assert timedelta(0) <= timedelta(microseconds=message.create_time.nanos // 1000) < timedelta(seconds=1)


ENTRIES = st.lists(st.tuples(st.booleans(), st.booleans(), st.integers(0, 40)), max_size=25).map(
    lambda given: [
        Entry(101 + index, starts, is_result, b"x" * size) for index, (starts, is_result, size) in enumerate(given)
    ]
)


@given(ENTRIES, st.integers(1, 30), st.integers(0, 300))
def test_a_window_is_the_newest_whole_turns_that_fit(entries: list[Entry], count: int, size: int) -> None:
    kept, truncated = windows.whole(entries, count, bytes_max=size)
    assert len(kept) <= count
    assert list(kept) == entries[len(entries) - len(kept) :]
    assert len(kept) <= 1 or sum(len(entry.frame) for entry in kept) <= size
    fits = entries[-count:]
    fits = fits[len(fits) - windows.fitting(fits[::-1], bytes_max=size) :]
    assert truncated == (len(fits) < min(count, len(entries)))
    dropped = fits[: len(fits) - len(kept)]
    if kept:
        assert not kept[0].is_result
        assert kept[0].starts_turn or dropped[-1:] == [] or dropped[-1].is_result
    # What is dropped of it is the rest of one turn, and results without their call.
    assert not any(entry.starts_turn and not entry.is_result for entry in dropped)


@given(ENTRIES, st.integers(0, 300))
def test_a_page_holds_what_fits_and_at_least_one(entries: list[Entry], size: int) -> None:
    count = windows.fitting(entries, bytes_max=size)
    assert count >= min(1, len(entries))
    assert count <= 1 or sum(len(entry.frame) for entry in entries[:count]) <= size


def test_the_first_message_of_a_thread_is_shown_even_if_it_is_a_result() -> None:
    entries = [Entry(1, True, True, b""), Entry(2, False, False, b"")]
    assert windows.whole(entries, 10) == (entries, False)
