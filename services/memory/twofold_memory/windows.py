"""Cutting a window: whole turns, whole tool pairs, a bounded answer. Pure."""

from collections.abc import Sequence

from twofold_memory.threads import ANSWER_BYTES_MAX, Entry


def whole(entries: Sequence[Entry], count_max: int, *, bytes_max: int = ANSWER_BYTES_MAX) -> tuple[Sequence[Entry], bool]:
    """The newest entries that fit `count_max` and `bytes_max`, and whether bytes made it shorter.

    It begins at the start of a turn. If not even the newest turn fits, it is the end of that turn; and it never begins
    with the result of a tool whose call is cut off.
    """
    counted = entries[-count_max:]
    kept = fitting(counted[::-1], bytes_max=bytes_max)
    return _from_a_start(counted[len(counted) - kept :]), kept < len(counted)


def within(entries: Sequence[Entry], costs: Sequence[int], budget: int) -> int:
    """How many of the newest of these entries, a whole window, cost no more than the budget; it begins as `whole` does."""
    spent, kept = 0, 0
    for cost in reversed(costs):
        spent += cost
        if spent > budget:
            return len(_from_a_start(entries[len(entries) - kept :]))
        kept += 1
    return kept


def fitting(entries: Sequence[Entry], *, bytes_max: int = ANSWER_BYTES_MAX) -> int:
    """How many of the first entries fit an answer; the first one always does."""
    size = 0
    for index, entry in enumerate(entries):
        size += len(entry.frame)
        if size > bytes_max and index:
            return index
    return len(entries)


def _from_a_start(entries: Sequence[Entry]) -> Sequence[Entry]:
    begin = next((index for index, entry in enumerate(entries) if entry.starts_turn), 0)
    while begin < len(entries) and entries[begin].is_result and entries[begin].seq != 1:
        begin += 1
    return entries[begin:]
