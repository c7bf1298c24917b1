"""What clients saw, and the judgement: pure, so that it can be tested without servers."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Append:
    """One append of one exchange, over all its attempts. Times are of one clock; `answered` is None without an answer."""

    thread: str
    turn_id: str
    texts: tuple[str, str]
    sent: float
    answered: float | None = None
    seqs: tuple[int, int] | None = None


@dataclass(frozen=True, slots=True)
class Read:
    """One window that was read: what it said, and whether it said COMPLETE, or carried a token's promise."""

    thread: str
    sent: float
    answered: float
    complete: bool
    at_least_seq: int
    asked: int
    messages: tuple[tuple[int, str], ...]


@dataclass(frozen=True, slots=True)
class Row:
    """One message as Postgres holds it."""

    seq: int
    turn_id: str
    index: int
    text: str


@dataclass
class History:
    """Everything that one schedule saw."""

    appends: list[Append] = field(default_factory=list)
    reads: list[Read] = field(default_factory=list)
    stuck: int = 0
    refused: int = 0


def judge(history: History, stored: Mapping[str, Sequence[Row]]) -> Counter[str]:
    """Violations by kind; empty if all is well.

    LOST: an acknowledged turn is not stored as it was sent. DUPLICATED: a turn is stored twice, or acknowledged under two
    numbers. HOLE: numbers of a thread are not 1..n, or a window has a gap. ORDER: acknowledged before sent, yet the larger
    number. PHANTOM: something is stored, or read, that nobody sent. STALE: a COMPLETE window, or one with a token, lacks
    what it promised. FALSE-EMPTY: a COMPLETE window of a thread with acknowledged messages is empty. TENANT: a thread's
    window shows another thread's message. STUCK: a call was neither answered nor refused in time. REFUSED: a call was
    refused for a reason that no fault of Redis gives.
    """
    found: Counter[str] = Counter()
    found["STUCK"] += history.stuck
    found["REFUSED"] += history.refused
    by_thread: dict[str, list[Append]] = {}
    for append in history.appends:
        by_thread.setdefault(append.thread, []).append(append)
    for thread in by_thread.keys() | stored.keys():
        found.update(_judge_thread(by_thread.get(thread, []), stored.get(thread, [])))
    owners = {text: append.thread for append in history.appends for text in append.texts}
    for read in history.reads:
        found.update(_judge_read(read, by_thread.get(read.thread, []), owners))
    return Counter({kind: count for kind, count in found.items() if count})


def _judge_thread(appends: Sequence[Append], rows: Sequence[Row]) -> Counter[str]:
    found: Counter[str] = Counter()
    if [row.seq for row in rows] != list(range(1, len(rows) + 1)):
        found["HOLE"] += 1
    turns: dict[str, list[Row]] = {}
    for row in rows:
        turns.setdefault(row.turn_id, []).append(row)
    known = {append.turn_id: append for append in appends}
    for turn_id, kept in turns.items():
        append = known.get(turn_id)
        if append is None:
            found["PHANTOM"] += 1
        elif [row.text for row in kept] != list(append.texts) or [row.index for row in kept] != [0, 1]:
            found["DUPLICATED" if len(kept) > len(append.texts) else "LOST"] += 1
        elif kept[1].seq != kept[0].seq + 1:
            found["HOLE"] += 1
    acknowledged = [append for append in appends if append.seqs is not None]
    for append in acknowledged:
        kept = turns.get(append.turn_id, [])
        if not kept:
            found["LOST"] += 1
        elif (kept[0].seq, kept[-1].seq) != append.seqs:
            found["DUPLICATED"] += 1
    found["ORDER"] += _overtaken(acknowledged)
    return found


def _overtaken(acknowledged: Sequence[Append]) -> int:
    """Pairs of which the earlier one was answered before the later one was sent, and yet has the larger number."""
    by_sent = sorted(acknowledged, key=lambda append: append.sent)
    by_answer = sorted(acknowledged, key=lambda append: append.answered or 0)
    highest, next_answer, count = 0, 0, 0
    for append in by_sent:
        while next_answer < len(by_answer) and (by_answer[next_answer].answered or 0) < append.sent:
            highest = max(highest, (by_answer[next_answer].seqs or (0, 0))[1])
            next_answer += 1
        if append.seqs is not None and append.seqs[0] < highest:
            count += 1
    return count


def _judge_read(read: Read, appends: Sequence[Append], owners: Mapping[str, str]) -> Counter[str]:
    found: Counter[str] = Counter()
    seqs = [seq for seq, _ in read.messages]
    if seqs != list(range(seqs[0], seqs[0] + len(seqs)) if seqs else []):
        found["HOLE"] += 1
    for _, text in read.messages:
        if text not in owners:
            found["PHANTOM"] += 1
        elif owners[text] != read.thread:
            found["TENANT"] += 1
    promised = read.at_least_seq
    if read.complete:
        before = [append.seqs[1] for append in appends if append.seqs and (append.answered or 0) < read.sent]
        promised = max([promised, *before])
        if promised and not seqs:
            found["FALSE-EMPTY"] += 1
    if promised and (not seqs or seqs[-1] < promised):
        found["STALE"] += 1
    if read.complete and seqs and seqs[0] != 1 and len(seqs) < read.asked - 1:
        found["HOLE"] += 1  # turns have two messages: a window that does not reach the beginning is at most one short
    return found
