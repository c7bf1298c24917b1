"""Contexts: what an agent is given before a turn, within a budget, with tool pairs whole, as messages and as text. Pure."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

from twofold_chassis.lines import escaped
from twofold_memory import summaries
from twofold_memory.documents import Document
from twofold_memory.preferences import Preference
from twofold_memory.summaries import Summary
from twofold_memory.threads import ANSWER_BYTES_MAX

_FRAMES_BYTES = 16
_NOWHERE = 2**63
SUMMARY_HEADING = "Summary of the earlier conversation:"
CONVERSATION_HEADING = "Previous conversation:"
PREFERENCES_HEADING = "User preferences:"
DOCUMENTS_HEADING = "Documents:"


@dataclass(frozen=True)
class Line:
    """What a context must know of a message: the one line it is in the text, its size, and what it calls or answers.

    `tokens` are the caller's count, if there is one; `bytes` are those of the message itself.
    """

    speaker: str
    text: str
    tokens: int | None
    starts_turn: bool
    calls: Sequence[str] = ()
    answers: str | None = None
    bytes: int = 0

    @cached_property
    def rendered(self) -> str:
        """The line, with all that could end it escaped, so that content cannot forge another."""
        return f"{escaped(self.speaker)}: {escaped(self.text)}"

    @cached_property
    def cost(self) -> int:
        """Tokens: as counted by the caller, else a quarter of the line's bytes, rounded up."""
        return self.tokens if self.tokens is not None else estimate(self.rendered)

    @cached_property
    def answer_bytes(self) -> int:
        """Bytes in an answer, where it stands as a message and as a line."""
        return self.bytes + len(self.rendered.encode()) + _FRAMES_BYTES


@dataclass(frozen=True, slots=True)
class Cut:
    """Which lines a context holds (indices, in order), which preferences, summary and documents, and what all that costs."""

    lines: Sequence[int]
    preferences: Sequence[Preference]
    tokens: int
    truncated: bool
    summary: Summary | None = None
    documents: Sequence[Document] = ()


@dataclass(frozen=True, slots=True)
class Joined:
    """A cut with the summary before it, and what neither tells of: the first and last such message, or 0 and 0."""

    cut: Cut
    gap: tuple[int, int]


class _Size(NamedTuple):
    """Tokens of the text, and bytes of the answer."""

    tokens: int
    bytes: int

    def within(self, other: "_Size") -> bool:
        return self.tokens <= other.tokens and self.bytes <= other.bytes

    def plus(self, other: "_Size") -> "_Size":
        return _Size(self.tokens + other.tokens, self.bytes + other.bytes)

    def minus(self, other: "_Size") -> "_Size":
        return _Size(self.tokens - other.tokens, self.bytes - other.bytes)


_NOTHING = _Size(0, 0)


def estimate(text: str) -> int:
    """Tokens of a text whose tokens nobody counted."""
    return -(-len(text.encode()) // 4)


def joined(
    lines: Sequence[Line],
    seqs: Sequence[int],
    preferences: Sequence[Preference],
    known: Sequence[Summary],
    budget: int,
    *,
    newest_seq: int,
    documents: Sequence[Document] = (),
    bytes_max: int = ANSWER_BYTES_MAX,
    open_calls: bool = False,
) -> Joined:
    """The newest lines that fit the budget, and before them the newest of the `known` summaries that joins them.

    `seqs` are the lines' numbers, 0 where one has none yet; `newest_seq` is that of the newest message there is. What both
    tell of is shown as a message and stays in the summary: an overlap is harmless, a hole is not.
    """
    cuts: dict[str, Cut] = {}

    def cut_with(summary: Summary | None) -> Cut:
        return cut(
            lines,
            preferences,
            budget,
            bytes_max=bytes_max,
            summary=summary,
            documents=documents,
            open_calls=open_calls,
        )

    def first_seq(summary: Summary) -> int:
        made = cuts[summary.summary_id] = cut_with(summary)
        return _first_seq(made, seqs, newest_seq) if made.summary else _NOWHERE

    chosen = summaries.newest_joining(known, first_seq)
    made = cuts[chosen.summary_id] if chosen else cut_with(None)
    return Joined(made, summaries.gap(made.summary, _first_seq(made, seqs, newest_seq)))


def _first_seq(made: Cut, seqs: Sequence[int], newest_seq: int) -> int:
    return next((seqs[index] for index in made.lines if seqs[index]), newest_seq + 1)


def cut(
    lines: Sequence[Line],
    preferences: Sequence[Preference],
    budget: int,
    *,
    bytes_max: int = ANSWER_BYTES_MAX,
    summary: Summary | None = None,
    documents: Sequence[Document] = (),
    open_calls: bool = False,
) -> Cut:
    """The newest whole turns, and what stands beside them, that fit the budget; open tool calls are left out.

    With `open_calls` those of the newest line are not: somebody is about to bring their results.

    The budget is of tokens. `bytes_max` bounds the answer besides, which may be large for few tokens: callers count them.

    Preferences go before all else, then the newest turn, then the summary, whole, if it fits beside these: it never takes
    the place of what was said last. Then those of the documents that fit: somebody chose them, unlike older turns.
    If not even the newest turn fits, as much of its end as does, from a place where no tool pair is cut.
    """
    kept_preferences, spent = _preferences_within(preferences, budget)
    taken = sum(len(entry.value.encode()) + len(_preference_line(entry).encode()) for entry in kept_preferences)
    room = _Size(budget, bytes_max).minus(_Size(spent, taken))
    paired = _paired(lines, open_calls=open_calls)
    newest = _newest_turn_size(lines, paired)
    kept_summary = summary
    if summary is not None and not _summary_size(summary).plus(newest).within(room):
        kept_summary = None
    size = _summary_size(kept_summary) if kept_summary else _NOTHING
    kept_documents, listed = _documents_within(documents, room.minus(size).minus(newest))
    size = size.plus(listed)
    begin = _begin(lines, paired, *room.minus(size))
    chosen = [index for index in paired if index >= begin]
    return Cut(
        chosen,
        kept_preferences,
        spent + size.tokens + sum(lines[index].cost for index in chosen),
        len(chosen) < len(paired)
        or len(kept_preferences) < len(preferences)
        or kept_summary is not summary
        or len(kept_documents) < len(documents),
        kept_summary,
        kept_documents,
    )


def text_of(
    lines: Sequence[Line],
    preferences: Sequence[Preference],
    summary: Summary | None = None,
    documents: Sequence[Document] = (),
) -> str:
    """The text block; empty if there is nothing to say."""
    blocks = []
    if summary is not None:
        blocks.append(f"{SUMMARY_HEADING}\n{escaped(summary.text)}")
    if lines:
        blocks.append("\n".join([CONVERSATION_HEADING, *(line.rendered for line in lines)]))
    if preferences:
        blocks.append("\n".join([PREFERENCES_HEADING, *map(_preference_line, preferences)]))
    if documents:
        blocks.append("\n".join([DOCUMENTS_HEADING, *map(_document_line, documents)]))
    return "\n\n".join(blocks)


def _preferences_within(preferences: Sequence[Preference], budget: int) -> tuple[list[Preference], int]:
    kept, spent = [], 0
    for preference in preferences:
        cost = estimate(_preference_line(preference))
        if spent + cost <= budget:
            kept.append(preference)
            spent += cost
    return kept, spent


def _documents_within(documents: Sequence[Document], room: _Size) -> tuple[list[Document], _Size]:
    kept, taken = [], _NOTHING
    for document in documents:
        size = taken.plus(_document_size(document))
        if size.within(room):
            kept.append(document)
            taken = size
    return kept, taken


def _paired(lines: Sequence[Line], *, open_calls: bool) -> list[int]:
    """The lines without calls that have no result, and without results that have no call. `open_calls`: but the newest.

    A result belongs to the nearest open call of its id: ids may repeat in a conversation, never while a call is open.
    """
    whole: set[int] = set()
    caller: int | None = None
    unanswered: set[str] = set()
    group: list[int] = []
    for index, line in enumerate(lines):
        if line.answers is not None:
            if line.answers in unanswered:
                unanswered.remove(line.answers)
                group.append(index)
                if not unanswered:
                    whole.update(group)
            continue
        unanswered, group, caller = set(line.calls), [index], index
        if not line.calls or (open_calls and index == len(lines) - 1):
            whole.add(caller)
    return sorted(whole)


def _begin(lines: Sequence[Line], paired: Sequence[int], budget: int, bytes_max: int) -> int:
    """The index to begin at: 0 if all fits, else the earliest start of a turn from which all fits, else the earliest line
    that is no result."""
    spent, size, safe, start = 0, 0, len(lines), len(lines)
    for index in reversed(paired):
        spent += lines[index].cost
        size += lines[index].answer_bytes
        if spent > budget or size > bytes_max:
            return start if start < len(lines) else safe
        if lines[index].answers is not None:
            continue  # a turn may begin with results of calls of the turn before
        safe = index
        if lines[index].starts_turn:
            start = index
    return 0


def _newest_turn_size(lines: Sequence[Line], paired: Sequence[int]) -> _Size:
    """What the lines from the last start of a turn on take; all of them, if none is one."""
    size = _NOTHING
    for index in reversed(paired):
        size = size.plus(_Size(lines[index].cost, lines[index].answer_bytes))
        if lines[index].starts_turn and lines[index].answers is None:
            break
    return size


def _summary_size(summary: Summary) -> _Size:
    line = escaped(summary.text)
    tokens = summary.token_count if summary.token_count is not None else estimate(line)
    return _Size(tokens, len(summary.text.encode()) + len(line.encode()) + _labels_bytes(summary.metadata) + _FRAMES_BYTES)


def _document_size(document: Document) -> _Size:
    line = _document_line(document)
    said = (document.document_id, document.title, document.url, document.media_type, line)
    return _Size(
        estimate(line),
        sum(len(text.encode()) + _FRAMES_BYTES for text in said) + _labels_bytes(document.metadata) + 2 * _FRAMES_BYTES,
    )


def _labels_bytes(labels: Mapping[str, str]) -> int:
    return sum(len(key.encode()) + len(value.encode()) + _FRAMES_BYTES for key, value in labels.items())


def _preference_line(preference: Preference) -> str:
    return f"{escaped(preference.key)}: {escaped(preference.value)}"


def _document_line(document: Document) -> str:
    name = escaped(document.title or document.document_id)
    return f"{name}: {escaped(document.url)}" if document.url else name
