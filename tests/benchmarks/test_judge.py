"""The checker of `make chaos` must see what it is there to see, and accuse nobody else."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

import pytest

from benchmarks.chaos.history import (
    Attempt,
    Death,
    Deletion,
    Edit,
    History,
    Kept,
    Promise,
    Read,
    Row,
    Sample,
    Shown,
    Span,
    Thread,
    Token,
    Told,
    edited,
)
from benchmarks.chaos.judge import judge

THREAD = "t"


def texts(name: str) -> tuple[str, str]:
    return f"q {name}", f"a {name}"


def sent(
    name: str, at: float, first: int | None = None, *, told: Told = Told.COMMITTED, after: str = "", worker: int = 0
) -> Attempt:
    """An attempt that took one second."""
    seqs = None if first is None else (first, first + 1)
    answered = None if told is Told.UNKNOWN else at + 1
    return Attempt(THREAD, name, texts(name), worker, at, answered, told, seqs, after=after)


def journaled(name: str, at: float, *, worker: int = 0) -> Attempt:
    return sent(name, at, told=Told.JOURNALED, worker=worker)


def rows(*names: str) -> list[Row]:
    return [
        Row(2 * place + index + 1, name, index, text)
        for place, name in enumerate(names)
        for index, text in enumerate(texts(name))
    ]


def thread(*names: str, unverified: Iterable[str] = (), waiting: Iterable[str] = (), dead: Iterable[str] = ()) -> Thread:
    """A thread that holds these turns in this order."""
    turns = {name: Kept(2 * place + 1, 2 * place + 2, name in unverified) for place, name in enumerate(names)}
    gone = frozenset((name, texts(name)) for name in dead)
    return Thread(rows(*names), turns, gone, frozenset(waiting), next_seq=2 * len(names) + 1)


def shown(seqs: Sequence[int], *names: str, waiting: Sequence[str] = ()) -> tuple[Shown, ...]:
    """Messages of a window: those with these numbers in a thread of these turns, then what waits."""
    all_rows = rows(*names)
    numbered = [Shown(seq, all_rows[seq - 1].turn_id, all_rows[seq - 1].text) for seq in seqs]
    return (*numbered, *(Shown(0, name, text) for name in waiting for text in texts(name)))


def read(
    messages: tuple[Shown, ...],
    *,
    promise: Promise = Promise.COMPLETE,
    token: Token | None = None,
    asked: int = 20,
    at: float = 9,
) -> Read:
    as_of_seq = max((message.seq for message in messages), default=0)
    return Read(THREAD, 0, at, at + 1, promise, asked, messages, token, as_of_seq)


def kinds(history: History, stored: Thread | Mapping[str, Thread]) -> dict[str, int]:
    return dict(judge(history, {THREAD: stored} if isinstance(stored, Thread) else stored).counts())


TWO = [sent("one", 1, 1), sent("two", 3, 3)]


def test_a_history_in_which_all_is_well_is_not_accused() -> None:
    attempts = [*TWO, sent("two", 5, 3), sent("three", 5, told=Told.UNKNOWN), journaled("four", 7)]
    reads = [
        read(shown([1, 2, 3, 4, 5, 6], "one", "two", "three", waiting=["four"])),
        read(shown([3, 4, 5, 6, 7, 8], "one", "two", "three", "four"), asked=6),
        read((), at=0),
        read((), promise=Promise.SOME),
        read(shown([1, 2], "one"), promise=Promise.SOME, token=Token("one", 2)),
        read(shown([1, 2, 3, 4], "one", "two"), promise=Promise.COMMITTED_ONLY),
        read(shown([], waiting=["four"]), asked=2),
    ]
    samples = [Sample(THREAD, 5, 1, 3, shown([3, 4], "one", "two"))]
    verdict = judge(History(attempts, reads, samples=samples), {THREAD: thread("one", "two", "three", "four")})
    assert (verdict.violations, verdict.excused) == ([], {})


@pytest.mark.parametrize(
    ("stored", "expected"),
    [
        (thread("one"), {"LOST": 1}),
        (thread("two", "one"), {"DUPLICATED": 2, "ORDER": 1}),
        (replace(thread("one", "two"), rows=rows("one", "two", "one"), next_seq=7), {"DUPLICATED": 1}),
        (replace(thread("one", "two"), next_seq=7), {"HOLE": 1}),
        (replace(thread("one", "two"), rows=rows("one", "two")[:3], next_seq=4), {"LOST": 2}),
        (thread("one", "two", "nobody"), {"PHANTOM": 1}),
        (thread("one", "two", dead=["two"]), {"DUPLICATED": 1}),
        (replace(thread("one", "two"), turns={"one": Kept(1, 2), "two": Kept(3, 5)}), {"DUPLICATED": 2}),
        (
            Thread(
                [Row(1, "one", 0, "q one"), Row(2, "two", 0, "q two"), Row(3, "one", 1, "a one"), Row(4, "two", 1, "a two")],
                {"one": Kept(1, 3), "two": Kept(2, 4)},
                next_seq=5,
            ),
            {"HOLE": 2, "DUPLICATED": 2},
        ),
    ],
)
def test_what_is_wrong_with_the_store_is_named(stored: Thread, expected: dict[str, int]) -> None:
    assert kinds(History(TWO), stored) == expected


def test_two_answers_with_different_numbers_are_a_duplicate() -> None:
    assert kinds(History([*TWO, sent("two", 5, 5)]), thread("one", "two")) == {"DUPLICATED": 1}


def test_another_payload_that_was_acknowledged_is_lost() -> None:
    other = replace(sent("two", 5, 3), texts=("another", "payload"))
    assert kinds(History([*TWO, other]), thread("one", "two")) == {"LOST": 1}
    refused = replace(other, told=Told.NOT_STORED, seqs=None)
    assert not kinds(History([*TWO, refused]), thread("one", "two"))


def test_a_turn_that_was_refused_for_sure_must_not_be_stored() -> None:
    refused = sent("two", 3, told=Told.NOT_STORED)
    assert kinds(History([TWO[0], refused]), thread("one", "two")) == {"PHANTOM": 1}
    assert not kinds(History([TWO[0], refused, sent("two", 5, told=Told.UNKNOWN)]), thread("one", "two"))
    assert not kinds(History([TWO[0], refused]), thread("one"))


def test_a_journaled_turn_is_stored_or_given_up_or_overdue_or_lost() -> None:
    history = History([TWO[0], journaled("two", 3)])
    assert not kinds(history, thread("one", "two"))
    assert not kinds(history, thread("one", dead=["two"]))
    assert kinds(history, thread("one", waiting=["two"])) == {"OVERDUE": 1}
    assert kinds(history, thread("one")) == {"LOST": 1}
    history.overdue.append((THREAD, "two"))
    assert kinds(history, thread("one", waiting=["two"])) == {"OVERDUE": 1}
    assert kinds(history, thread("one", "two")) == {"OVERDUE": 1}


def test_a_journaled_turn_may_be_lost_only_with_every_holder_and_with_redis() -> None:
    attempts = [TWO[0], journaled("two", 3, worker=0), journaled("two", 5, worker=1)]
    both, one, loss = [Death(0, 6), Death(1, 7)], [Death(0, 6), Death(1, 4)], [Span(8, 8)]
    for deaths, losses in ((both, []), (one, loss), ([], loss), (both, [Span(1, 2)])):
        assert kinds(History(attempts, deaths=deaths, losses=losses), thread("one")) == {"LOST": 1}
    verdict = judge(History(attempts, deaths=both, losses=loss), {THREAD: thread("one")})
    assert (verdict.violations, verdict.excused) == ([], {"lost with every holder and with Redis": 1})
    committed = [*attempts, sent("two", 9, 3)]
    assert kinds(History(committed, deaths=both, losses=loss), thread("one")) == {"LOST": 1}


def test_a_turn_that_was_acknowledged_before_another_was_sent_has_the_smaller_number() -> None:
    stored = thread("two", "one")
    assert kinds(History([sent("one", 1, 3), sent("two", 3, 1)]), stored) == {"ORDER": 1}
    assert kinds(History([journaled("one", 1), sent("two", 3, 1)]), stored) == {"ORDER": 1}
    assert not kinds(History([sent("one", 1, 3), sent("two", 1.5, 1)]), stored)
    assert not kinds(History([sent("one", 1, told=Told.UNKNOWN), sent("two", 3, 1)]), stored)


def test_a_marked_turn_excuses_its_order_only_if_who_was_told_its_number_was_told_so() -> None:
    stored = thread("two", "one", unverified=["two"])
    silent = sent("two", 3, 1)
    assert kinds(History([journaled("one", 1), silent]), stored) == {"ORDER": 1}
    verdict = judge(History([journaled("one", 1), replace(silent, unverified=True)]), {THREAD: stored})
    assert (verdict.violations, verdict.excused) == ([], {"order_unverified": 1})
    with_token = replace(silent, unverified=True, after="one")
    assert kinds(History([journaled("one", 1), with_token]), stored) == {"ORDER": 1}
    assert not kinds(History([journaled("one", 1), with_token], losses=[Span(0, 0)]), stored)


def test_after_redis_lost_data_a_turn_without_token_may_overtake_one_that_waited() -> None:
    stored, losses = thread("two", "one"), [Span(2.5, 2.5)]
    overtaking = [journaled("one", 1), sent("two", 3, 1)]
    assert judge(History(overtaking, losses=losses), {THREAD: stored}).excused == {"overtaken after Redis lost data": 1}
    for attempts, when in (
        ([journaled("one", 1), sent("two", 3, 1, after="one")], losses),
        ([sent("one", 1, 3), sent("two", 3, 1)], losses),
        (overtaking, [Span(0, 0.5)]),
        (overtaking, [Span(5, 6)]),
    ):
        assert kinds(History(attempts, losses=when), stored) == {"ORDER": 1}


@pytest.mark.parametrize(
    ("seen", "kind"),
    [
        (read(shown([1, 2], "one")), "STALE"),
        (read(shown([1, 2], "one"), promise=Promise.COMMITTED_ONLY), "STALE"),
        (read(shown([1, 2], "one"), promise=Promise.SOME, token=Token("two", 4)), "STALE"),
        (read((), promise=Promise.SOME, token=Token("two", 4)), "STALE"),
        (read(shown([1, 2, 3], "one", "two"), promise=Promise.SOME, token=Token("two", 4)), "STALE"),
        (read(()), "FALSE-EMPTY"),
        (read((), promise=Promise.MISSING), "FALSE-EMPTY"),
        (read(shown([1, 2, 4], "one", "two")), "HOLE"),
        (read(shown([3, 4], "one", "two")), "HOLE"),
        (read(shown([1, 2, 3, 4], "one", "two", waiting=["two"])), "DUPLICATED"),
        (read(shown([1, 2, 3, 4], "one", "two", waiting=["three", "three"])), "DUPLICATED"),
        (read((*shown([1, 2, 3, 4], "one", "two"), Shown(5, "x", "invented"))), "PHANTOM"),
        (read((*shown([1, 2], "one"), Shown(3, "two", "a two"), Shown(4, "two", "q two"))), "PHANTOM"),
        (read((*shown([1, 2, 3, 4], "one", "two"), Shown(5, "x", "q elsewhere"))), "TENANT"),
    ],
)
def test_what_is_wrong_with_a_window_is_named(seen: Read, kind: str) -> None:
    elsewhere = replace(sent("elsewhere", 1, 1), thread="other")
    history = History([*TWO, sent("three", 5, told=Told.UNKNOWN), elsewhere], [seen])
    stored = {THREAD: thread("one", "two"), "other": thread("elsewhere")}
    assert set(kinds(history, stored)) == {kind}


def test_a_complete_window_shows_what_waits_and_one_of_committed_turns_need_not() -> None:
    attempts, stored = [*TWO, journaled("three", 5)], thread("one", "two", "three")
    without = shown([1, 2, 3, 4], "one", "two")
    assert kinds(History(attempts, [read(without)]), stored) == {"STALE": 1}
    assert not kinds(History(attempts, [read(without, promise=Promise.COMMITTED_ONLY)]), stored)
    verdict = judge(History(attempts, [read(without)], losses=[Span(7, 8)]), {THREAD: stored})
    assert (verdict.violations, len(verdict.excused)) == ([], 1)
    with_token = read(without, token=Token("three", 0))
    assert kinds(History(attempts, [with_token], losses=[Span(7, 8)]), stored) == {"STALE": 1}


def test_a_turn_may_be_pushed_out_of_an_unverified_window_only_if_the_answer_reached_it() -> None:
    attempts, stored = [journaled("one", 1), sent("two", 3, 3)], thread("one", "two")
    seen = read(shown([], waiting=["one"]), promise=Promise.SOME, token=Token("two", 4), asked=2)
    assert len(judge(History(attempts, [replace(seen, as_of_seq=4)]), {THREAD: stored}).excused) == 1
    for wrong in (seen, replace(seen, as_of_seq=4, asked=20), replace(seen, as_of_seq=4, promise=Promise.COMPLETE)):
        assert set(kinds(History(attempts, [wrong]), stored)) == {"STALE"}


def test_a_window_of_waiting_turns_only_may_lack_what_is_committed_later_and_nothing_else() -> None:
    stored = thread("late", "waiting")
    seen = read(shown([], waiting=["waiting"]), at=4)
    assert not kinds(History([sent("late", 1, told=Told.UNKNOWN), journaled("waiting", 2)], [seen]), stored)
    assert kinds(History([sent("late", 1, 1), journaled("waiting", 2)], [seen]), stored) == {"STALE": 1}
    assert not kinds(History([sent("late", 1, 1), journaled("waiting", 2)], [replace(seen, asked=2)]), stored)


def test_what_is_deleted_is_not_shown_as_complete() -> None:
    seen, stored = read(shown([1, 2, 3, 4], "one", "two")), thread("one", "two")
    assert kinds(History(TWO, [seen], [Deletion(THREAD, 6, 7)]), stored) == {"STALE": 1}
    assert not kinds(History(TWO, [seen], [Deletion(THREAD, 6, None)]), stored)
    assert not kinds(History(TWO, [read((), promise=Promise.MISSING)], [Deletion(THREAD, 6, None)]), stored)


def test_after_an_edit_nobody_sees_what_was_before() -> None:
    def with_text(text: str) -> tuple[Shown, ...]:
        return (Shown(1, "one", text), *shown([2, 3, 4], "one", "two"))

    first, second = edited("q one", "first"), edited("q one", "second")
    stored = replace(thread("one", "two"), rows=[Row(1, "one", 0, second), *rows("one", "two")[1:]], epoch=3)
    edits = [Edit(THREAD, 1, first, 5, 6), Edit(THREAD, 1, second, 7, 8)]
    assert not kinds(History(TWO, [read(with_text(second))], edits=edits), stored)
    for text in ("q one", first):
        assert kinds(History(TWO, [read(with_text(text))], edits=edits), stored) == {"STALE": 1}
        assert not kinds(History(TWO, [read(with_text(text), promise=Promise.SOME)], edits=edits), stored)
        assert not kinds(History(TWO, [read(with_text(text), at=4.5)], edits=edits), stored)
        assert kinds(History(TWO, edits=edits), replace(stored, rows=[Row(1, "one", 0, text), *rows("one", "two")[1:]]))
    together = [edits[0], replace(edits[1], sent=5.5)]
    assert not kinds(History(TWO, [read(with_text(first))], edits=together), stored)
    samples = [Sample(THREAD, 9, epoch, 1, with_text(first)) for epoch in (2, 3)]
    assert not kinds(History(TWO, edits=edits, samples=samples[:1]), stored)
    assert kinds(History(TWO, edits=edits, samples=samples[1:]), stored) == {"WINDOW": 1}


@pytest.mark.parametrize(
    "sample",
    [
        Sample(THREAD, 5, 1, 1, shown([3, 4], "one", "two")),
        Sample(THREAD, 5, 1, 3, shown([3, 4, 5], "one", "two", "three")),
        Sample(THREAD, 5, 1, 1, (*shown([1, 2], "one"), *shown([1, 2], "one"))),
        Sample(THREAD, 5, 2, 1, shown([1, 2], "one")),
        Sample(THREAD, 5, 1, 1, (), problem="no time to live"),
    ],
)
def test_a_copy_that_is_no_run_of_the_thread_is_named(sample: Sample) -> None:
    assert kinds(History(TWO, samples=[sample]), thread("one", "two")) == {"WINDOW": 1}


def test_calls_without_an_answer_or_with_a_wrong_one_are_named() -> None:
    assert kinds(History(stuck=[(THREAD, "append")], refused=[(THREAD, "INTERNAL")]), {}) == {"STUCK": 1, "REFUSED": 1}
