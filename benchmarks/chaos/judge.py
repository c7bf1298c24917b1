"""The judgement: clients' histories held against each other and against the stores. Pure.

LOST: a turn that was acknowledged is not kept as it was sent. DUPLICATED: it is kept twice, or under two numbers, or stored
and given up as well. HOLE: the numbers of a thread are not 1..n, a turn is not in one piece, a window has a gap. ORDER:
acknowledged before the other was sent, yet the larger number. PHANTOM: stored or shown, but never sent, refused for sure, or
at another place. STALE: an answer lacks what it promised, or shows what is deleted. TENANT: another thread's message.
FALSE-EMPTY: a thread that has messages is called empty, or unknown. OVERDUE: a journaled turn still waits, long after all
faults. WINDOW: the copy in Redis is not a contiguous run of the thread, or would live for ever. STUCK: a call had no answer
at all in time. REFUSED: a call was refused for what no fault explains.

What the protocol gives up is not held against it, but counted: turns that are stored with the mark `order_unverified`; where
Redis lost data, turns without token that overtook one that waited, and reads without token that missed it; and journaled
turns of which every holder was killed and Redis lost its data.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import TypeVar

from benchmarks.chaos.history import (
    Attempt,
    Deletion,
    History,
    Promise,
    Read,
    Row,
    Sample,
    Shown,
    Texts,
    Thread,
    Token,
    Told,
    Violation,
    said,
)

_ALWAYS = float("inf")

Of = TypeVar("Of", Attempt, Read, Sample)


@dataclass
class Verdict:
    """Violations, and how often something was excused, by what."""

    violations: list[Violation] = field(default_factory=list)
    excused: Counter[str] = field(default_factory=Counter)

    def counts(self) -> Counter[str]:
        """Violations by kind."""
        return Counter(violation.kind for violation in self.violations)


@dataclass(frozen=True, slots=True)
class _Turn:
    """One payload under one id, over all attempts: a turn as clients know it."""

    turn_id: str
    texts: Texts
    attempts: Sequence[Attempt]

    @property
    def sent(self) -> float:
        return min(attempt.sent for attempt in self.attempts)

    @property
    def committed(self) -> float:
        """When a client knew that it is committed."""
        return min((a.answered or 0 for a in self.attempts if a.told is Told.COMMITTED), default=_ALWAYS)

    @property
    def acknowledged(self) -> float:
        """When a client knew that it is kept."""
        return min((a.answered or 0 for a in self.attempts if a.acknowledged), default=_ALWAYS)


def judge(history: History, stored: Mapping[str, Thread]) -> Verdict:
    """What is wrong with a history; no violations if all is well."""
    verdict = Verdict()
    for kind, calls in (("STUCK", history.stuck), ("REFUSED", history.refused)):
        verdict.violations += [Violation(kind, thread, (), detail) for thread, detail in calls]
    owners = {text: attempt.thread for attempt in history.attempts for text in attempt.texts}
    attempts, reads, samples = _by_thread(history.attempts), _by_thread(history.reads), _by_thread(history.samples)
    for name in sorted({*attempts, *reads, *stored}):
        thread = _ThreadJudge(name, history, attempts[name], stored.get(name, Thread()), owners)
        for violation in thread.found(reads[name], samples[name]):
            verdict.violations.append(violation)
        verdict.excused += thread.excused
    return verdict


def _by_thread(things: Iterable[Of]) -> defaultdict[str, list[Of]]:
    found: defaultdict[str, list[Of]] = defaultdict(list)
    for thing in things:
        found[thing.thread].append(thing)
    return found


class _ThreadJudge:
    """One thread."""

    def __init__(
        self, name: str, history: History, attempts: Sequence[Attempt], kept: Thread, owners: Mapping[str, str]
    ) -> None:
        self._name = name
        self._history = history
        self._kept = kept
        self._owners = owners
        self._turns = [
            _Turn(turn_id, texts, list(group))
            for (turn_id, texts), group in groupby(sorted(attempts, key=_payload), key=_payload)
        ]
        self._rows: dict[str, list[Row]] = {}
        for row in kept.rows:
            self._rows.setdefault(row.turn_id, []).append(row)
        # Of a turn that is stored twice, once.
        self._stored = {
            turn_id: tuple({row.index: said(row.text) for row in rows}.values()) for turn_id, rows in self._rows.items()
        }
        self._edits = [edit for edit in history.edits if edit.thread == name]
        self._by_seq = {row.seq: row for row in kept.rows}
        self._longest = max((len(turn.texts) for turn in self._turns), default=1)
        self.excused: Counter[str] = Counter()

    def found(self, reads: Iterable[Read], samples: Iterable[Sample]) -> Iterator[Violation]:
        """Everything that is wrong with it."""
        yield from self._of_numbers()
        yield from self._of_rows()
        for turn in self._turns:
            yield from self._of_answers(turn)
        for _, turn_id in {late for late in self._history.overdue if late[0] == self._name}:
            yield self._bad("OVERDUE", [turn_id], "was acknowledged as journaled, and still waited long after the faults")
        yield from self._of_order()
        yield from self._of_texts("Postgres", {row.seq: row.text for row in self._kept.rows}, _ALWAYS)
        for read in reads:
            yield from self._of_read(read)
        for sample in samples:
            yield from self._of_window(sample)

    def _bad(self, kind: str, turns: Iterable[str], detail: str) -> Violation:
        return Violation(kind, self._name, tuple(turns), detail)

    # The store -------------------------------------------------------------------------------------------

    def _of_numbers(self) -> Iterator[Violation]:
        seqs = [row.seq for row in self._kept.rows]
        if seqs != list(range(1, self._kept.next_seq)):
            yield self._bad("HOLE", (), f"numbers are not 1..{self._kept.next_seq - 1}: {_runs(seqs)}")

    def _of_rows(self) -> Iterator[Violation]:
        sent = {
            turn.turn_id: [other.texts for other in self._turns if other.turn_id == turn.turn_id] for turn in self._turns
        }
        for turn_id, texts in self._stored.items():
            rows = self._rows[turn_id]
            if turn_id not in sent:
                yield self._bad("PHANTOM", [turn_id], "is stored, but nobody sent it")
            elif len(set(rows)) < len(rows) or len({row.index for row in rows}) < len(rows):
                yield self._bad("DUPLICATED", [turn_id], f"is stored more than once, at {_runs([row.seq for row in rows])}")
            elif texts not in sent[turn_id]:
                yield self._bad("LOST", [turn_id], "is stored otherwise than it was sent")
            elif rows[-1].seq - rows[0].seq != len(rows) - 1:
                yield self._bad("HOLE", [turn_id], f"is in pieces, at {_runs([row.seq for row in rows])}")
            elif (kept := self._kept.turns.get(turn_id)) is None or (kept.first_seq, kept.last_seq) != _ends(rows):
                yield self._bad("DUPLICATED", [turn_id], f"has messages at {_ends(rows)} and is known as {kept}")
        for turn_id in self._kept.turns.keys() - self._stored.keys():
            yield self._bad("LOST", [turn_id], "is known, but has no messages")

    def _of_answers(self, turn: _Turn) -> Iterator[Violation]:
        is_stored = self._stored.get(turn.turn_id) == turn.texts
        is_dead = (turn.turn_id, turn.texts) in self._kept.dead
        told = {attempt.told for attempt in turn.attempts}
        if is_stored and is_dead:
            yield self._bad("DUPLICATED", [turn.turn_id], "is stored, and given up as well")
        if is_stored and told == {Told.NOT_STORED}:
            yield self._bad("PHANTOM", [turn.turn_id], "is stored, although every attempt was refused for sure")
        numbers = {attempt.seqs for attempt in turn.attempts if attempt.told is Told.COMMITTED}
        if is_stored and numbers - {(self._kept.turns[turn.turn_id].first_seq, self._kept.turns[turn.turn_id].last_seq)}:
            yield self._bad(
                "DUPLICATED", [turn.turn_id], f"was acknowledged under {numbers}, is {self._kept.turns[turn.turn_id]}"
            )
        if is_stored or not any(attempt.acknowledged for attempt in turn.attempts):
            return
        if Told.COMMITTED in told:
            yield self._bad("LOST", [turn.turn_id], "was acknowledged as committed, and is not stored")
        elif is_dead:
            return
        elif turn.turn_id in self._kept.waiting:
            if (self._name, turn.turn_id) not in self._history.overdue:
                yield self._bad("OVERDUE", [turn.turn_id], "was acknowledged as journaled, and waits even now")
        elif self._all_holders_died(turn):
            self.excused["lost with every holder and with Redis"] += 1
        else:
            yield self._bad("LOST", [turn.turn_id], "was acknowledged as journaled, and is nowhere")

    def _all_holders_died(self, turn: _Turn) -> bool:
        """Whether every worker that promised it was killed after that, and Redis lost its data as well."""
        promised = [attempt for attempt in turn.attempts if attempt.acknowledged]
        return self._was_lost(turn.sent, _ALWAYS) and all(
            any(death.worker == attempt.worker and death.at >= attempt.sent for death in self._history.deaths)
            for attempt in promised
        )

    def _was_lost(self, since: float, until: float) -> bool:
        return any(loss.meets(since, until) for loss in self._history.losses)

    # The order -------------------------------------------------------------------------------------------

    def _of_order(self) -> Iterator[Violation]:
        kept = [turn for turn in self._turns if self._stored.get(turn.turn_id) == turn.texts]
        for earlier in kept:
            known = earlier.acknowledged
            for later in kept:
                if known < later.sent and self._first(earlier) > self._first(later):
                    excuse = self._excuse_of_order(earlier, later)
                    if excuse:
                        self.excused[excuse] += 1
                    else:
                        numbers = f"{self._first(earlier)} and {self._first(later)}"
                        yield self._bad(
                            "ORDER", [earlier.turn_id, later.turn_id], f"in this order, have the numbers {numbers}"
                        )

    def _first(self, turn: _Turn) -> int:
        return self._kept.turns[turn.turn_id].first_seq

    def _excuse_of_order(self, earlier: _Turn, later: _Turn) -> str:
        with_token = any(attempt.after == earlier.turn_id for attempt in later.attempts)
        # With a token the mark is an excuse only for one that waited in vain for what was lost.
        if (self._is_marked(earlier) or self._is_marked(later)) and (not with_token or self._history.losses):
            return "order_unverified"
        until = max(attempt.answered or _ALWAYS for attempt in later.attempts)
        if not with_token and earlier.committed > later.sent and self._was_lost(earlier.sent, until):
            return "overtaken after Redis lost data"
        return ""

    def _is_marked(self, turn: _Turn) -> bool:
        """Whether it is stored as one whose order is not known, and who was told its numbers was told so."""
        return self._kept.turns[turn.turn_id].unverified and all(
            attempt.unverified for attempt in turn.attempts if attempt.told is Told.COMMITTED
        )

    # Answers to readers ----------------------------------------------------------------------------------

    def _of_read(self, read: Read) -> Iterator[Violation]:
        if read.promise is Promise.MISSING:
            yield from self._of_missing(read)
            return
        yield from self._of_shown(read.messages)
        seqs = [shown.seq for shown in read.messages if shown.seq]
        first_seq = self._begin(read)
        if seqs != list(range(seqs[0], seqs[0] + len(seqs)) if seqs else []):
            yield self._bad("HOLE", (), f"a window shows {_runs(seqs)}")
        yield from self._of_promises(read, first_seq)
        if read.promise is not Promise.COMPLETE:
            return
        yield from self._of_texts("a complete window", {shown.seq: shown.text for shown in read.messages}, read.sent)
        if seqs and seqs[0] > 1 and not self._is_full(read):
            yield self._bad("HOLE", (), f"a complete window is too short: {_told(read)}")
        if read.messages and any((gone.answered or _ALWAYS) < read.sent for gone in self._deletions()):
            yield self._bad("STALE", (), "a complete window shows a conversation that was deleted")

    def _of_texts(self, where: str, texts: Mapping[int, str], before: float) -> Iterator[Violation]:
        """Whether each message says what it must say after the edits that were acknowledged before a moment."""
        for seq in {edit.seq for edit in self._edits} & texts.keys():
            edits = [edit for edit in self._edits if edit.seq == seq]
            known = [edit for edit in edits if (edit.answered or _ALWAYS) < before]
            this = next((edit for edit in edits if edit.text == texts[seq]), None)
            # An edit may have been overtaken by those only that were sent after it was answered; the first text by all.
            later = [edit for edit in known if this is None or (this.answered or _ALWAYS) < edit.sent]
            if later:
                turn_id = self._by_seq[seq].turn_id if seq in self._by_seq else ""
                yield self._bad("STALE", [turn_id], f"{where} shows message {seq} as it was before an edit: {texts[seq]!r}")

    def _of_missing(self, read: Read) -> Iterator[Violation]:
        known = [turn.turn_id for turn in self._turns if turn.committed < read.sent]
        if known and not any(gone.sent < read.answered for gone in self._deletions()):
            yield self._bad("FALSE-EMPTY", known[:5], "a reader was told that there is no such conversation")

    def _deletions(self) -> list[Deletion]:
        return [gone for gone in self._history.deletions if gone.thread == self._name]

    def _of_shown(self, messages: Sequence[Shown]) -> Iterator[Violation]:
        """Whether each message is one of this thread, at its place."""
        sent = {text for turn in self._turns for text in turn.texts}
        for shown in messages:
            row = self._by_seq.get(shown.seq)
            if said(shown.text) not in sent:
                foreign = self._owners.get(said(shown.text))
                kind = "TENANT" if foreign not in (None, self._name) else "PHANTOM"
                yield self._bad(
                    kind, [shown.turn_id], f"message {shown.seq} was {f'sent to {foreign}' if foreign else 'never sent'}"
                )
            elif shown.seq and (row is None or (row.turn_id, said(row.text)) != (shown.turn_id, said(shown.text))):
                yield self._bad("PHANTOM", [shown.turn_id], f"shown as number {shown.seq}, which is {row}")
        waiting = {shown.turn_id for shown in messages if not shown.seq}
        for turn_id in waiting & {shown.turn_id for shown in messages if shown.seq}:
            yield self._bad("DUPLICATED", [turn_id], "is shown as stored and as waiting at once")
        texts = Counter((shown.turn_id, shown.text) for shown in messages if not shown.seq)
        if any(count > 1 for count in texts.values()):
            yield self._bad("DUPLICATED", sorted(waiting), "a waiting turn is shown twice")

    def _of_promises(self, read: Read, first_seq: int) -> Iterator[Violation]:
        """Whether it shows every turn that it had to show."""
        shown = {message.turn_id for message in read.messages}
        missed = [
            turn
            for turn in self._turns
            if turn.turn_id not in shown
            and not self._is_before(turn, first_seq)
            and (turn.turn_id, turn.texts) not in self._kept.dead
            and not self._is_cut_off(read, turn)
        ]
        if read.token is not None and any(turn.turn_id == read.token.turn_id for turn in missed):
            if self._is_pushed_out(read, read.token):
                self.excused["pushed out of an unverified window by what waits, or did"] += 1
                return
            yield self._bad("STALE", [read.token.turn_id], f"a window that had to show this turn does not: {_told(read)}")
        elif read.token is not None and read.token.seq > read.as_of_seq:
            yield self._bad(
                "STALE", [read.token.turn_id], f"a window that had to reach {read.token.seq} does not: {_told(read)}"
            )
        lacking = [turn for turn in missed if self._had_to_show(read, turn)]
        if not lacking:
            return
        what = f"a window from {first_seq} on lacks an acknowledged turn: {_told(read)}"
        kind = "STALE" if read.messages else "FALSE-EMPTY"
        yield self._bad(kind, [turn.turn_id for turn in lacking[:5]], what)

    def _begin(self, read: Read) -> int:
        """The number from which on it must show everything.

        A full window of waiting turns only: that which its first has got since. One that is not full: 0, nothing may lack.
        """
        numbered = [shown.seq for shown in read.messages if shown.seq]
        if numbered:
            return numbered[0]
        kept = [self._kept.turns[shown.turn_id] for shown in read.messages if shown.turn_id in self._kept.turns]
        return min((turn.first_seq for turn in kept), default=0) if self._is_full(read) else 0

    def _is_full(self, read: Read) -> bool:
        """Whether another turn might not have fitted."""
        return bool(read.messages) and len(read.messages) > read.asked - self._longest

    def _is_before(self, turn: _Turn, first_seq: int) -> bool:
        kept = self._kept.turns.get(turn.turn_id)
        return kept is not None and 0 < kept.last_seq < first_seq

    def _is_cut_off(self, read: Read, turn: _Turn) -> bool:
        """Whether it may have stood before a window of waiting turns, which a data loss may have put into another order.

        Those that were put back stand behind what came meanwhile, until they are stored in the order of their prevs.
        """
        if any(message.seq for message in read.messages) or not self._is_full(read):
            return False
        shown = {message.turn_id for message in read.messages}
        sent = [other.sent for other in self._turns if other is turn or other.turn_id in shown]
        return any(self._was_lost(moment, _ALWAYS) for moment in sent)

    def _is_pushed_out(self, read: Read, token: Token) -> bool:
        """Whether the answer reached the token, and only what seemed to wait behind it left no room to show its turn.

        Without Postgres nobody can know that a turn which lies in the journal has been stored since.
        """
        reached = 0 < token.seq <= read.as_of_seq
        return read.promise is Promise.SOME and reached and self._is_full(read) and not read.messages[-1].seq

    def _had_to_show(self, read: Read, turn: _Turn) -> bool:
        if read.promise is Promise.SOME:
            return False
        if turn.committed < read.sent:
            return True
        if read.promise is Promise.COMMITTED_ONLY or turn.acknowledged >= read.sent:
            return False
        if self._was_lost(turn.sent, read.answered):
            self.excused["a read that missed a turn after Redis lost data"] += 1
            return False
        return True

    # The copy --------------------------------------------------------------------------------------------

    def _of_window(self, sample: Sample) -> Iterator[Violation]:
        if sample.problem:
            yield self._bad("WINDOW", (), sample.problem)
            return
        if sample.epoch > self._kept.epoch:
            yield self._bad("WINDOW", (), f"the copy is of epoch {sample.epoch}, Postgres is at {self._kept.epoch}")
        for place, shown in enumerate(sample.messages):
            row = self._by_seq.get(sample.first_seq + place)
            # Of an epoch that is over, the copy may show what was said before an edit; then nobody takes it for good.
            text = shown.text if sample.epoch == self._kept.epoch and row else said(shown.text)
            kept = row.text if sample.epoch == self._kept.epoch and row else said(row.text) if row else ""
            if row is None or (row.seq, row.turn_id, kept) != (shown.seq, shown.turn_id, text):
                yield self._bad(
                    "WINDOW", [shown.turn_id], f"the copy has {shown} at place {sample.first_seq + place}, Postgres {row}"
                )
                return


def _payload(attempt: Attempt) -> tuple[str, Texts]:
    return attempt.turn_id, attempt.texts


def _told(read: Read) -> str:
    """A read in short."""
    waiting = list(dict.fromkeys(message.turn_id[:8] for message in read.messages if not message.seq))
    token = f", with the token of {read.token.turn_id} at {read.token.seq}" if read.token else ""
    return (
        f"{read.promise.value} of worker {read.worker}, {read.asked} asked{token}, as of {read.as_of_seq}, shows"
        f" {_runs([message.seq for message in read.messages if message.seq])}, waiting {' '.join(waiting) or 'none'},"
        f" sent {read.sent:.3f}, answered {read.answered:.3f}"
    )


def _ends(rows: Sequence[Row]) -> tuple[int, int]:
    return rows[0].seq, rows[-1].seq


def _runs(seqs: Sequence[int]) -> str:
    """Numbers in short: 1-4, 6, 6-9."""
    runs: list[list[int]] = []
    for seq in seqs:
        if runs and seq == runs[-1][-1] + 1:
            runs[-1][-1] = seq
        else:
            runs.append([seq, seq])
    return ", ".join(str(first) if first == last else f"{first}-{last}" for first, last in runs[:20]) or "none"
