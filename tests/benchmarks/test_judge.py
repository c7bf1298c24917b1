"""The checker of `make chaos` must see what it is there to see."""

from collections.abc import Sequence

import pytest

from benchmarks.chaos.history import Append, History, Read, Row, judge

THREAD = "t"


def append(name: str, sent: float, answered: float | None, first: int | None) -> Append:
    seqs = None if first is None else (first, first + 1)
    return Append(THREAD, name, (f"q {name}", f"a {name}"), sent, answered, seqs)


def rows(*names: str) -> list[Row]:
    return [
        Row(2 * place + index + 1, name, index, f"{letter} {name}")
        for place, name in enumerate(names)
        for index, letter in enumerate("qa")
    ]


def read(seqs: Sequence[int], *, complete: bool = True, at_least: int = 0, sent: float = 9, thread: str = THREAD) -> Read:
    texts = [row.text for row in rows("one", "two", "three")]
    return Read(thread, sent, sent + 1, complete, at_least, 20, tuple((seq, texts[seq - 1]) for seq in seqs))


GOOD = [append("one", 1, 2, 1), append("two", 3, 4, 3), append("three", 5, None, None)]


def test_a_history_in_which_all_is_well_is_not_accused() -> None:
    history = History(GOOD, [read([1, 2, 3, 4, 5, 6]), read([], complete=False)])
    assert not judge(history, {THREAD: rows("one", "two", "three")})


@pytest.mark.parametrize(
    ("stored", "kind"),
    [
        (rows("one"), "LOST"),
        (rows("two", "one"), "DUPLICATED"),
        (rows("one", "two", "one"), "DUPLICATED"),
        ([*rows("one", "two")[:3], rows("one", "two", "x")[4]], "HOLE"),
        (rows("one", "two", "nobody"), "PHANTOM"),
    ],
)
def test_what_is_wrong_with_the_store_is_named(stored: list[Row], kind: str) -> None:
    assert kind in judge(History(GOOD), {THREAD: stored})


def test_a_turn_that_was_acknowledged_before_another_was_sent_has_the_smaller_number() -> None:
    appends = [append("one", 1, 2, 3), append("two", 3, 4, 1)]
    assert judge(History(appends), {THREAD: rows("two", "one")}) == {"ORDER": 1}
    overlapping = [append("one", 1, 4, 3), append("two", 3, 5, 1)]
    assert not judge(History(overlapping), {THREAD: rows("two", "one")})


@pytest.mark.parametrize(
    ("seen", "kind"),
    [
        (read([1, 2]), "STALE"),
        (read([1, 2], complete=False, at_least=4), "STALE"),
        (read([], complete=False, at_least=4), "STALE"),
        (read([]), "FALSE-EMPTY"),
        (read([1, 3, 4]), "HOLE"),
        (read([3, 4]), "HOLE"),
        (read([1, 2], thread="other"), "TENANT"),
    ],
)
def test_what_is_wrong_with_a_window_is_named(seen: Read, kind: str) -> None:
    assert kind in judge(History(GOOD, [seen]), {THREAD: rows("one", "two")})


def test_a_window_that_shows_what_nobody_said_is_a_phantom() -> None:
    seen = Read(THREAD, 9, 10, False, 0, 20, ((1, "invented"),))
    assert judge(History(GOOD, [seen]), {THREAD: rows("one", "two")}) == {"PHANTOM": 1}


def test_calls_without_an_answer_are_counted() -> None:
    assert judge(History([], [], stuck=2, refused=1), {}) == {"STUCK": 2, "REFUSED": 1}
