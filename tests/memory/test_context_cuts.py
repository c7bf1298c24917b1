"""M12: a context is within its budget, contiguous, with tool pairs whole, and its text cannot be forged."""

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from twofold_memory import contexts, summaries
from twofold_memory.contexts import Line
from twofold_memory.documents import Document
from twofold_memory.preferences import Preference
from twofold_memory.summaries import Summary

ID = st.sampled_from("abc")
TEXT = st.text(
    st.characters(exclude_categories=["Cs"]) | st.sampled_from("\n\r\\\u2028\u2029\x85\v\f\x1c\x1d\x1e:"), max_size=40
)
NOW = datetime(2030, 1, 1, tzinfo=UTC)


@st.composite
def lines_of_a_conversation(draw: st.DrawFn) -> list[Line]:
    """Real ones are not tidy: ids repeat, calls stay open, results come in later turns or without a call."""
    lines = []
    for _ in range(draw(st.integers(0, 14))):
        kind = draw(st.sampled_from(["user", "assistant", "calls", "result", "result"]))
        lines.append(
            Line(
                speaker="tool" if kind == "result" else "assistant" if kind == "calls" else kind,
                text=draw(TEXT),
                tokens=draw(st.none() | st.integers(0, 30)),
                starts_turn=draw(st.booleans()),
                calls=draw(st.lists(ID, min_size=1, max_size=3, unique=True)) if kind == "calls" else (),
                answers=draw(ID) if kind == "result" else None,
                bytes=draw(st.integers(0, 50)),
            )
        )
    return lines


PREFERENCES = st.dictionaries(st.text("abc:\u2028", min_size=1, max_size=5), TEXT, max_size=4).map(
    lambda known: [Preference(key, value, 1, NOW) for key, value in sorted(known.items())]
)


DOCUMENTS = st.dictionaries(
    st.text("abc:\u2028", min_size=1, max_size=5), st.tuples(TEXT, TEXT, st.dictionaries(ID, TEXT)), max_size=4
).map(lambda known: [Document(key, title, url, "", labels) for key, (title, url, labels) in sorted(known.items())])


@st.composite
def summaries_of_a_conversation(draw: st.DrawFn, *, newest_seq: int = 20) -> list[Summary]:
    """The newest first; most are rolling."""
    found = []
    for version in range(draw(st.integers(0, 4)), 0, -1):
        first = draw(st.just(1) | st.integers(1, newest_seq))
        found.append(
            Summary(
                summary_id=f"s{version}",
                version=version,
                first_seq=first,
                last_seq=draw(st.integers(first, newest_seq)),
                text=draw(TEXT),
                token_count=draw(st.none() | st.integers(0, 40)),
                model="",
                author="",
                metadata={},
                stale=False,
                created_at=NOW,
            )
        )
    return found


def is_paired(lines: Sequence[Line]) -> bool:
    """Said differently from the code: right behind each call exactly its results, and no other result anywhere."""
    position = 0
    while position < len(lines):
        calls = set(lines[position].calls)
        if lines[position].answers is not None:
            return False
        results = lines[position + 1 : position + 1 + len(calls)]
        if {line.answers for line in results} != calls:
            return False
        position += 1 + len(calls)
    return True


@given(lines_of_a_conversation(), PREFERENCES, DOCUMENTS, st.integers(0, 160), st.integers(0, 800))
def test_a_cut_is_within_its_budgets_and_never_parts_a_result_from_its_call(
    lines: list[Line], preferences: list[Preference], documents: list[Document], budget: int, bytes_max: int
) -> None:
    cut = contexts.cut(lines, preferences, budget, bytes_max=bytes_max, documents=documents)
    chosen = [lines[index] for index in cut.lines]
    assert cut.tokens <= budget
    assert cut.tokens == sum(line.cost for line in chosen) + sum(
        contexts.estimate(text.partition("\n")[2])
        for text in [contexts.text_of([], [entry]) for entry in cut.preferences]
        + [contexts.text_of([], [], None, [entry]) for entry in cut.documents]
    )
    listed = sum(len(f"{entry.title}{entry.url}{''.join(entry.metadata.values())}".encode()) for entry in cut.documents)
    assert not (chosen or listed) or sum(line.answer_bytes for line in chosen) + listed <= bytes_max
    assert list(cut.documents) == [entry for entry in documents if entry in cut.documents]
    assert cut.truncated or list(cut.documents) == documents
    assert list(cut.lines) == sorted(set(cut.lines))
    assert is_paired(chosen)
    assert contexts.cut(lines, preferences, budget, bytes_max=bytes_max, documents=documents) == cut  # stable


@given(lines_of_a_conversation(), st.integers(0, 120))
def test_a_cut_is_the_end_of_what_an_endless_budget_gives(lines: list[Line], budget: int) -> None:
    """Contiguous: nothing in the middle is left out because of the budget."""
    whole = list(contexts.cut(lines, [], 10**9).lines)
    part = list(contexts.cut(lines, [], budget).lines)
    assert part == whole[len(whole) - len(part) :]
    assert contexts.cut(lines, [], budget).truncated == (len(part) < len(whole))
    begins = [index for index in whole if lines[index].starts_turn and lines[index].answers is None]
    if part and any(index >= part[0] for index in begins):
        assert lines[part[0]].starts_turn or part == whole


@given(lines_of_a_conversation(), PREFERENCES, DOCUMENTS, st.integers(0, 160), st.integers(0, 800))
def test_documents_take_the_place_of_older_turns_and_never_of_the_newest_one_or_of_preferences(
    lines: list[Line], preferences: list[Preference], documents: list[Document], budget: int, bytes_max: int
) -> None:
    alone = contexts.cut(lines, preferences, budget, bytes_max=bytes_max)
    beside = contexts.cut(lines, preferences, budget, bytes_max=bytes_max, documents=documents)
    assert beside.preferences == alone.preferences
    assert list(beside.lines) == list(alone.lines)[len(alone.lines) - len(beside.lines) :]
    everything = list(contexts.cut(lines, preferences, 10**9).lines)
    starts = [index for index in everything if lines[index].starts_turn and lines[index].answers is None]
    newest = {index for index in everything if not starts or index >= starts[-1]}
    assert newest & set(alone.lines) == newest & set(beside.lines)
    if not newest <= set(alone.lines):
        assert not beside.documents


@given(lines_of_a_conversation(), PREFERENCES, DOCUMENTS)
def test_each_message_and_preference_is_one_line_of_the_text_whatever_it_holds(
    lines: list[Line], preferences: list[Preference], documents: list[Document]
) -> None:
    text = contexts.text_of(lines, preferences)
    listed = contexts.text_of(lines, preferences, None, documents)
    assert listed.startswith(text)
    if documents:
        added = listed[len(text) :].splitlines()
        assert added == ([""] * 2 if text else []) + [contexts.DOCUMENTS_HEADING] + added[-len(documents) :]
    expected = [contexts.CONVERSATION_HEADING] + [line.rendered for line in lines] if lines else []
    if preferences:
        expected += ([""] if lines else []) + [contexts.PREFERENCES_HEADING]
    found = text.splitlines()
    assert found[: len(expected)] == expected
    assert len(found) == len(expected) + len(preferences)
    for line in lines:
        assert line.rendered.startswith(f"{line.speaker}: ")


@given(TEXT, TEXT)
def test_two_texts_never_look_alike(one: str, two: str) -> None:
    rendered = [Line("user", text, None, True).rendered for text in (one, two)]
    assert (rendered[0] == rendered[1]) == (one == two)


def test_the_block_is_as_the_contract_shows_it() -> None:
    lines = [Line("user", "Hello", None, True), Line("assistant", "Hi there!\nassistant: no\\", None, False)]
    assert contexts.text_of(lines, [Preference("preferred_language", "Python", 1, NOW)]) == (
        "Previous conversation:\nuser: Hello\nassistant: Hi there!\\nassistant: no\\\\\n\n"
        "User preferences:\npreferred_language: Python"
    )
    documents = [Document("a", "A book of rhymes", "https://x.org/r", "", {}), Document("b", "", "", "", {})]
    assert contexts.text_of(lines[:1], [], None, documents) == (
        "Previous conversation:\nuser: Hello\n\nDocuments:\nA book of rhymes: https://x.org/r\nb"
    )
    assert contexts.text_of([], []) == ""


def test_a_turn_that_begins_with_the_results_of_the_turn_before_is_not_cut_off_its_calls() -> None:
    lines = [
        Line("user", "q", 10, True),
        Line("assistant", "", 10, False, calls=["a"]),
        Line("tool", "r", 10, True, answers="a"),
        Line("assistant", "done", 10, False),
    ]
    assert contexts.cut(lines, [], 20).lines == [3]
    assert contexts.cut(lines, [], 30).lines == [1, 2, 3]


def test_open_calls_are_there_for_who_brings_their_results_and_only_those_of_the_newest_message() -> None:
    lines = [
        Line("user", "q", 10, True),
        Line("assistant", "", 10, False, calls=["a"]),
        Line("user", "never mind", 10, True),
        Line("assistant", "", 10, False, calls=["b", "c"]),
    ]
    assert contexts.cut(lines, [], 100).lines == [0, 2]
    cut = contexts.cut(lines, [], 100, open_calls=True)
    assert (cut.lines, cut.truncated) == ([0, 2, 3], False)
    assert contexts.cut([*lines, Line("user", "nor this", 10, True)], [], 100, open_calls=True).lines == [0, 2, 4]


@given(
    lines_of_a_conversation(),
    PREFERENCES,
    DOCUMENTS,
    summaries_of_a_conversation(),
    st.integers(0, 160),
    st.integers(0, 600),
    st.data(),
)
def test_m12_a_context_is_contiguous_with_its_summary_or_names_the_gap(
    lines: list[Line],
    preferences: list[Preference],
    documents: list[Document],
    known: list[Summary],
    budget: int,
    bytes_max: int,
    data: st.DataObject,
) -> None:
    """M12."""
    before = data.draw(st.integers(0, 20 - len(lines)))
    waiting = data.draw(st.integers(0, 2))  # turns of the journal have no numbers yet
    newest_seq = before + max(len(lines) - waiting, 0)
    seqs = [before + index + 1 if before + index < newest_seq else 0 for index in range(len(lines))]
    known = [entry for entry in known if entry.last_seq <= newest_seq]
    beside: dict[str, Any] = {"bytes_max": bytes_max, "documents": documents}
    joined = contexts.joined(lines, seqs, preferences, known, budget, newest_seq=newest_seq, **beside)
    cut = joined.cut
    assert cut.tokens <= budget
    assert is_paired([lines[index] for index in cut.lines])
    first = min((seqs[index] for index in cut.lines if seqs[index]), default=newest_seq + 1)
    told = set(range(cut.summary.first_seq, cut.summary.last_seq + 1)) if cut.summary else set()
    missing = set(range(1, first)) - told
    assert joined.gap == ((min(missing), max(missing)) if missing else (0, 0))
    for entry in known:
        alone = contexts.cut(lines, preferences, budget, summary=entry, **beside)
        begin = min((seqs[index] for index in alone.lines if seqs[index]), default=newest_seq + 1)
        if alone.summary and entry.first_seq == 1 and entry.last_seq >= begin - 1:
            assert cut.summary == entry, "the newest one that joins"
            break
    else:
        assert cut.summary in (None, *known[:1]), "else the newest one"


@given(lines_of_a_conversation(), PREFERENCES, summaries_of_a_conversation(), st.integers(0, 160), st.integers(0, 600))
def test_a_summary_never_takes_the_place_of_the_newest_turn(
    lines: list[Line], preferences: list[Preference], known: list[Summary], budget: int, bytes_max: int
) -> None:
    alone = contexts.cut(lines, preferences, budget, bytes_max=bytes_max)
    everything = list(contexts.cut(lines, preferences, 10**9).lines)
    starts = [index for index in everything if lines[index].starts_turn and lines[index].answers is None]
    newest = [index for index in everything if not starts or index >= starts[-1]]
    for summary in known:
        cut = contexts.cut(lines, preferences, budget, bytes_max=bytes_max, summary=summary)
        assert cut.tokens <= budget
        if set(newest) <= set(alone.lines):
            assert set(newest) <= set(cut.lines)
        if cut.summary is None:
            assert (cut.lines, cut.preferences, cut.tokens) == (alone.lines, alone.preferences, alone.tokens)
            assert cut.truncated
        else:
            assert list(cut.lines) == list(alone.lines)[len(alone.lines) - len(cut.lines) :]


@given(TEXT)
def test_a_summary_is_one_line_of_the_text_whatever_it_holds(text: str) -> None:
    summary = Summary("s", 1, 1, 2, text, None, "", "", {}, False, NOW)
    block = contexts.text_of([Line("user", "Hello", None, True)], [], summary)
    assert block.splitlines()[0] == contexts.SUMMARY_HEADING
    assert block.splitlines()[2:] == ["", contexts.CONVERSATION_HEADING, "user: Hello"]


def test_a_summary_joins_if_it_reaches_up_to_the_first_message_and_not_if_one_is_between() -> None:
    def summary(version: int, first_seq: int, last_seq: int) -> Summary:
        return Summary(f"s{version}", version, first_seq, last_seq, "x", None, "", "", {}, False, NOW)

    newer, older = summary(2, 1, 3), summary(1, 1, 4)
    assert summaries.newest_joining([newer, older], lambda _: 4) == newer
    assert summaries.newest_joining([newer, older], lambda _: 5) == older
    assert summaries.newest_joining([newer, older], lambda _: 6) == newer
    assert summaries.newest_joining([summary(2, 2, 9), older], lambda _: 5) == older
    assert [summaries.gap(newer, first) for first in (1, 4, 5, 7)] == [(0, 0), (0, 0), (4, 4), (4, 6)]
    assert [summaries.gap(summary(1, 3, 4), first) for first in (1, 2, 3, 5, 6)] == [(0, 0), (1, 1), (1, 2), (1, 2), (1, 5)]
    assert [summaries.gap(None, first) for first in (1, 2)] == [(0, 0), (1, 1)]


def test_of_older_summaries_those_are_kept_that_reach_further() -> None:
    made = [
        Summary(f"s{index}", 9 - index, first, last, "x", None, "", "", {}, False, NOW)
        for index, (first, last) in enumerate([(1, 4), (1, 4), (2, 9), (1, 6), (1, 5)])
    ]
    assert [entry.summary_id for entry in summaries.useful(made)] == ["s0", "s3"]
    assert summaries.useful([]) == []
