"""Which waiting turns go in, and in which order: the rules alone, and against any order of arrival and loss."""

from hypothesis import given
from hypothesis import strategies as st

from twofold_memory.draining import Waiter, plan
from twofold_memory.journaled import Journaled, entry, payload, turn_of
from twofold_memory.threads import INTERRUPTED, NewMessage, NewTurn, ThreadKey, Usage

KEY = ThreadKey("w", "t")


def waiter(
    turn_id: str, *prevs: str, payload_hash: bytes = b"h", overdue: bool = False, own: tuple[str, ...] | None = None
) -> Waiter:
    turn = NewTurn(KEY, None, turn_id, payload_hash, [NewMessage(2, turn_id, b"", None)], 1)
    sets = [frozenset(prevs)] + ([] if own is None else [frozenset(own)])
    return Waiter(Journaled(turn, frozenset(prevs), "worker", 0), sets, overdue)


def inserted(made: object) -> list[tuple[str, bool]]:
    return [(journaled.turn.turn_id, unverified) for journaled, unverified in made.insert]  # type: ignore[attr-defined]


def test_a_turn_waits_for_everything_that_it_names_wherever_it_lies_in_the_list() -> None:
    made = plan([waiter("c", "a", "b"), waiter("b", "a"), waiter("a")], {})
    assert inserted(made) == [("a", False), ("b", False), ("c", False)]
    made = plan([waiter("b", "a")], {})
    assert inserted(made) == []
    assert [journaled.turn.turn_id for journaled in made.held] == ["b"]
    assert inserted(plan([waiter("b", "a")], {"a": b"h"})) == [("b", False)]


def test_a_turn_that_is_stored_is_found_and_another_payload_under_its_id_is_a_conflict() -> None:
    """M4."""
    made = plan([waiter("a"), waiter("a", payload_hash=b"other")], {"a": b"h"})
    assert [journaled.turn.payload_hash for journaled in made.found] == [b"h"]
    assert [journaled.turn.payload_hash for journaled in made.conflicts] == [b"other"]
    made = plan([waiter("a"), waiter("a", payload_hash=b"other")], {})
    assert inserted(made) == [("a", False)]
    assert [journaled.turn.payload_hash for journaled in made.conflicts] == [b"other"]


def test_what_an_own_copy_was_told_to_wait_for_suffices_as_well() -> None:
    """Race 5: journaled again behind successors that name it, each would wait for the other for ever."""
    made = plan([waiter("b", "a"), waiter("a", "b", own=())], {})
    assert inserted(made) == [("a", False), ("b", False)]


def test_what_waits_for_something_that_is_lost_goes_in_once_it_is_overdue_and_says_so() -> None:
    """Races 5 and 6: only those whose missing predecessors are nowhere in sight; not their successors with them."""
    waiters = [waiter("c", "b", overdue=True), waiter("b", "lost", overdue=True)]
    assert inserted(plan(waiters, {})) == [("b", True), ("c", False)]
    assert inserted(plan([waiter("b", "lost")], {})) == []
    ring = [waiter("a", "b", overdue=True), waiter("b", "a", overdue=True)]
    assert inserted(plan(ring, {})) == [("a", True), ("b", False)]


NAMES = "abcdef"


@given(
    st.permutations(NAMES),
    st.integers(0, len(NAMES)),
    st.lists(st.sampled_from(NAMES), max_size=3, unique=True),
)
def test_any_order_of_the_list_stores_every_turn_once_in_the_order_of_arrival(
    listed: list[str], stored: int, again: list[str]
) -> None:
    """M6: turns arrived as a, b, c …, each naming all before it; the list came back in any order, some are stored."""
    known = dict.fromkeys(NAMES[:stored], b"h")
    waiters = [waiter(name, *NAMES[: NAMES.index(name)]) for name in [*listed, *again]]
    made = plan(waiters, known)
    assert [turn_id for turn_id, _ in inserted(made)] == list(NAMES[stored:])
    assert not made.held
    assert not made.conflicts


text = st.text(alphabet=st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=20)
message = st.builds(
    NewMessage, st.integers(1, 4), st.none() | text, st.binary(max_size=20), st.none() | st.integers(0, 9), st.integers(0, 3)
)


@given(st.lists(message, min_size=1, max_size=4), st.none() | text, st.booleans())
def test_a_turn_that_is_written_down_comes_back_as_it_was(
    messages: list[NewMessage], user: str | None, interrupted: bool
) -> None:
    """M17."""
    turn = NewTurn(
        KEY,
        user,
        "turn\u00e9",
        b"\x00\xffhash",
        messages,
        7,
        Usage(1, 2) if interrupted else None,
        None,
        INTERRUPTED * interrupted,
    )
    assert turn_of(KEY, turn.turn_id, turn.payload_hash, payload(turn)) == turn
    value = b"\n".join((turn.payload_hash.hex().encode(), b"worker", b"12", b"x\ty", payload(turn)))
    assert entry(turn.turn_id, value, KEY) == Journaled(turn, frozenset("xy"), "worker", 12)
